/* attention_paged: what decode and prefill attention share: one layer of the KV cache, and where a
 * position's key is. Offsets count elements. */
#ifndef GPU_CUDA_ATTENTION_PAGED_H
#define GPU_CUDA_ATTENTION_PAGED_H

#include <math.h>

#include "gpu/cuda/cuda_state.h"
#include "gpu/cuda/mma.h"

enum { CUDA_MAX_HEAD_DIM = 512 };

/* Keys that a warp takes at a time. Where pages are a multiple of them, one look-up does for all. */
enum { KEY_GROUP = 16 };

struct paged_keys {
    const __nv_bfloat16 *k; /* of the layer */
    int64_t page_stride;
    int64_t v_offset; /* from a key to its value */
    int head_stride;
    int page_tokens;
    int groups_per_page; /* 0: pages are not a multiple of KEY_GROUP */
};

static inline struct paged_keys
paged_keys_of(const struct kv_cache *kv, int layer)
{
    struct paged_keys keys = {
        .k = (const __nv_bfloat16 *)kv->data + cuda_kv_offset(kv, layer, 0, 0, 0),
        .page_stride = (int64_t)2 * kv->kv_heads * kv->page_tokens * kv->head_dim,
        .v_offset = (int64_t)kv->kv_heads * kv->page_tokens * kv->head_dim,
        .head_stride = kv->page_tokens * kv->head_dim,
        .page_tokens = kv->page_tokens,
        .groups_per_page = kv->page_tokens % KEY_GROUP ? 0 : kv->page_tokens / KEY_GROUP,
    };

    return keys;
}

/* exp(score / sqrt(dim)) = exp2(score * this) */
static inline float
attention_scale_log2(int head_dim)
{
    return (float)(1.4426950408889634 / sqrt((double)head_dim));
}

/* The key of KV head 0 at any position. */
__device__ static inline const __nv_bfloat16 *
key_at(const struct paged_keys *keys, const int32_t *pages, int position, int dim)
{
    int page = position / keys->page_tokens;

    return keys->k + pages[page] * keys->page_stride +
           (int64_t)((position - page * keys->page_tokens) * dim);
}

/* Where pages are a multiple of groups: the page of a group, and its first key in that page. */
__device__ static inline int32_t
page_of_group(const struct paged_keys *keys, const int32_t *pages, int group)
{
    return pages[keys->groups_per_page == 1 ? group : group / keys->groups_per_page];
}

__device__ static inline const __nv_bfloat16 *
key_of_group(const struct paged_keys *keys, int32_t page, int group, int dim)
{
    int in_page = keys->groups_per_page == 1 ? 0 : group % keys->groups_per_page;

    return keys->k + page * keys->page_stride + (int64_t)(in_page * KEY_GROUP * dim);
}

#endif
