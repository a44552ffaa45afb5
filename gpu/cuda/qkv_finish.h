/* qkv_finish: what is done with the heads of q, k and v once the product is there: bias, head norm, rotation; q to its
 * place, k and v to the KV cache. By a kernel of its own (kv_cache.cu) or at the end of the product (skinny.cu). */
#ifndef GPU_CUDA_QKV_FINISH_H
#define GPU_CUDA_QKV_FINISH_H

#include "gpu/cuda/cuda_state.h"

/* One layer of the cache. Offsets in elements. */
struct kv_layer {
    __nv_bfloat16 *data;
    int64_t page_stride, v_offset;
    int kv_heads, head_dim, page_tokens;
};

struct qkv_args {
    __nv_bfloat16 *q;
    const __nv_bfloat16 *qkv;
    const float *q_bias, *k_bias, *v_bias; /* NULL: none */
    const float *q_norm, *k_norm;
    const float *angles;
    struct kv_layer kv;
    struct batch batch;
    int heads;
    float eps;
};

/* qkv [rows, (heads + 2 kv_heads) * head_dim]; q [rows, heads * head_dim]. */
struct qkv_args cuda_qkv_args(void *q, const void *qkv, const struct qkv_weights *,
                              const float *angles, const struct kv_cache *, int layer,
                              const struct model_shape *, const struct batch *);
/* What is left of project_qkv once the product is there, biases not yet added. */
int cuda_qkv_finish(struct cuda_device *, const struct qkv_args *);

/* Where k of head 0 of a row belongs; NULL for a padding row. */
__device__ static inline __nv_bfloat16 *
row_in_cache(const struct kv_layer *kv, const struct batch *batch, int row)
{
    int seq = batch->row_seq[row], position = batch->position[row];

    if (seq < 0)
        return NULL;
    int page = position / kv->page_tokens;
    return kv->data + batch->seq[seq].pages[page] * kv->page_stride +
           (int64_t)(position - page * kv->page_tokens) * kv->head_dim;
}

/* Of the heads of a row: q, then k, then v. */
struct qkv_head {
    bool is_v;
    const float *bias; /* of the head; NULL: none */
    __nv_bfloat16 *to; /* NULL: nowhere */
};

__device__ static inline struct qkv_head
head_of(const struct qkv_args *a, __nv_bfloat16 *cache, int row, int head)
{
    int heads = a->heads, kv_heads = a->kv.kv_heads, dim = a->kv.head_dim;
    int64_t in_page = (int64_t)a->kv.page_tokens * dim;
    struct qkv_head h = {};

    if (head < heads) {
        h.bias = a->q_bias ? a->q_bias + head * dim : NULL;
        h.to = a->q + ((int64_t)row * heads + head) * dim;
    } else if (head < heads + kv_heads) {
        head -= heads;
        h.bias = a->k_bias ? a->k_bias + head * dim : NULL;
        h.to = cache ? cache + head * in_page : NULL;
    } else if (head < heads + 2 * kv_heads) {
        head -= heads + kv_heads;
        h.is_v = true;
        h.bias = a->v_bias ? a->v_bias + head * dim : NULL;
        h.to = cache ? cache + a->kv.v_offset + head * in_page : NULL;
    }
    return h;
}

#endif
