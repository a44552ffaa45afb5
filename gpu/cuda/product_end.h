/* product_end: what becomes of an element of a product: the ends of gemv.h, for every kernel that has them. */
#ifndef GPU_CUDA_PRODUCT_END_H
#define GPU_CUDA_PRODUCT_END_H

#include "gpu/cuda/gemv.h"

/* Element `column` of row `row`; sum_up: SwiGLU's of `up`. BOUNDED: nothing behind the last row or column. One thread. */
template <int END, bool BOUNDED>
__device__ static inline void
put_product(const struct gemv &a, int row, int column, float sum, float sum_up)
{
    size_t at = (size_t)row * (size_t)a.ld_out + (size_t)column;

    if (BOUNDED && (row >= a.m || column >= a.n))
        return;
    if (a.bias)
        sum += a.bias[column];
    if (END == GEMV_BF16) {
        ((__nv_bfloat16 *)a.out)[at] = __float2bfloat16(sum);
    } else if (END == GEMV_F32) {
        ((float *)a.out)[at] = sum;
    } else if (END == GEMV_ADD) {
        ((float *)a.out)[at] += sum;
    } else {
        if (a.bias_up)
            sum_up += a.bias_up[column];
        ((__nv_bfloat16 *)a.out)[at] = __float2bfloat16(sum / (1.0f + __expf(-sum)) * sum_up);
    }
}

#endif
