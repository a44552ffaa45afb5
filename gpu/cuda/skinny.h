/* skinny: products of up to 64 rows with BF16 weights on tensor cores, at the rate the weights can be read. Hopper
 * alone: it needs wgmma. Elsewhere gemv takes one or two rows and cuBLASLt more. Thread: engine. */
#ifndef GPU_CUDA_SKINNY_H
#define GPU_CUDA_SKINNY_H

#include "gpu/cuda/gemv.h"
#include "gpu/cuda/qkv_finish.h"

enum {
    SKINNY_MOST_ROWS = 64,
    SKINNY_MOST_SQUARES = 160, /* of a row */
};

/* Whether cuda_skinny takes it, once x is normalised and row NULL: Hopper, k a multiple of 64, n of 8. */
bool cuda_skinny_fits(const struct cuda_device *, const struct gemv *);
/* As cuda_gemv, without norm and row. */
int cuda_skinny(struct cuda_device *, const struct gemv *);
int cuda_skinny_open(struct cuda_device *);
/* The product of q, k and v, and what qkv_finish.h says is to be done with it: heads of 128, all k in 2 or 4 parts. */
bool cuda_skinny_qkv_fits(const struct cuda_device *, const struct gemv *,
                          const struct qkv_args *);
int cuda_skinny_qkv(struct cuda_device *, const struct gemv *, const struct qkv_args *);
/* How many squares a row of a product with `carried` has; 0: the product does not fit, or cannot carry. */
int cuda_skinny_squares(const struct cuda_device *, const struct gemv *);

#endif
