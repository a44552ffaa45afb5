/* gemv: products of a few rows with BF16 weights, at the rate the weights can be read.
 * Where skinny.h does not take them; from 3 rows on cuBLASLt is as fast. Limits: GEMV_MOST_ROWS rows, k a multiple of 8, the rows in shared memory. Thread: engine. */
#ifndef GPU_CUDA_GEMV_H
#define GPU_CUDA_GEMV_H

#include "gpu/cuda/cuda_state.h"

enum { GEMV_MOST_ROWS = 2, GEMV_SHARED_BYTES = 112 << 10 };

enum gemv_end {
    GEMV_BF16,  /* out [m, n] BF16 = product + bias */
    GEMV_F32,   /* out [m, n] F32 = product + bias */
    GEMV_ADD,   /* out [m, n] F32 += product + bias */
    GEMV_SWIGLU, /* w is gate [n, k], then up [n, k]: out [m, n] BF16 = silu(gate) * up */
    GEMV_QKV     /* skinny alone: qkv_finish.h; out is not used */
};

struct gemv {
    enum gemv_end end;
    void *out;
    int64_t ld_out;
    const void *x;     /* [m, k] BF16; F32 with norm */
    const float *norm; /* NULL, or [k]: x is normalised first (RMSNorm) */
    float eps;
    const int32_t *row;          /* NULL, or [m], device: row r of the product is x[row[r]] */
    const void *w;               /* BF16 */
    const float *bias, *bias_up; /* [n] or NULL; bias_up: of up */
    int m, n, k;
    /* skinny alone: RMSNorm between two products without a kernel of its own. A row's factor can as well be taken
     * behind the product: GEMV_ADD leaves, beside out, out * carried_norm [m, n] BF16 in `carried`, and in squares
     * [m, n_squares] F32 sums of squares of out, one of each part of a row; a product of which that is x takes
     * squares, to read, and eps. */
    __nv_bfloat16 *carried; /* or NULL */
    const float *carried_norm;
    float *squares; /* or NULL */
    int n_squares;
};

/* Whether cuda_gemv takes this: else it is for cuda_gemm. */
bool cuda_gemv_fits(const struct cuda_device *, int64_t m, int64_t k);
int cuda_gemv(struct cuda_device *, const struct gemv *);
int cuda_gemv_open(struct cuda_device *);

#endif
