/* attention_decode: what the kernels of decode attention share. */
#ifndef GPU_CUDA_ATTENTION_DECODE_H
#define GPU_CUDA_ATTENTION_DECODE_H

#include "gpu/cuda/attention_paged.h"

enum { STREAM_HEAD = 128 }; /* head_dim that attention_stream.cu and attention_merge are for */

struct decode_args {
    __nv_bfloat16 *out;
    const __nv_bfloat16 *q;
    struct paged_keys keys;
    const struct cuda_piece *pieces;
    int heads, group; /* query heads, those of a KV head */
    int chunks;       /* blocks that a group of heads is cut into */
    int units;        /* blocks of a piece */
    int split;        /* positions of a piece */
    float scale_log2;
    int32_t *counters;
    float2 *summaries;
    float *values;
};

/* Adds up the pieces of all rows that have several, of heads of 128 in groups of `group`. */
int cuda_attention_merge(struct cuda_device *, const struct decode_args *);

/* attention_stream.cu: more than CUDA_STREAM_ROWS rows, on Hopper, heads of 128 in groups of up to 8, pages of whole
 * KEY_GROUPs. Leaves what cuda_attention_merge is for. */
bool cuda_attention_stream_fits(const struct cuda_device *, const struct kv_cache *,
                                const struct decode_args *, const struct model_shape *);
int cuda_attention_stream(struct cuda_device *, const struct kv_cache *, int layer,
                          const struct decode_args *, const struct model_shape *);
int cuda_attention_stream_open(struct cuda_device *);

#endif
