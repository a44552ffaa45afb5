/* host_state: what the files of the CPU backend share: the device itself and its operations.
 * Thread: engine; pool threads only inside one operation. */
#ifndef GPU_HOST_HOST_STATE_H
#define GPU_HOST_HOST_STATE_H

#include "base/pool.h"
#include "gpu/device.h"
#include "gpu/host/host_kernels.h"
#include "gpu/host/host_memory.h"

enum {
    HOST_MAX_HEAD_DIM = 512,
    /* Attention: positions of one softmax block, and query vectors that share a pass over the keys.
     */
    HOST_KEY_BLOCK = 64,
    HOST_QUERY_TILE = 16,
    /* Matmul by BLAS: columns and depth of a panel of widened weights. */
    HOST_PANEL_COLUMNS = 64,
    HOST_PANEL_DEPTH = 1024,
    /* Sampling: buckets of one radix level, logits of which the weights are computed at a time. */
    HOST_RADIX = 2048,
    HOST_SAMPLE_BLOCK = 1024,
    HOST_SAMPLE_SHORTLIST = 8192,
};

/* Working memory of one pool thread, all of it taken when the device is opened. */
struct host_scratch {
    float query[HOST_QUERY_TILE * HOST_MAX_HEAD_DIM];
    float value[HOST_QUERY_TILE * HOST_MAX_HEAD_DIM];
    float score[HOST_QUERY_TILE * HOST_KEY_BLOCK];
    float panel[HOST_PANEL_COLUMNS * HOST_PANEL_DEPTH];
    double mass[HOST_RADIX];
    uint32_t count[HOST_RADIX];
    float weight[HOST_SAMPLE_BLOCK];
    float listed_logit[HOST_SAMPLE_SHORTLIST];
    int32_t listed_id[HOST_SAMPLE_SHORTLIST];
};

struct host_device {
    struct device device; /* first: a struct device is cast back */
    struct device_ops ops; /* of a device that rounds its activations */
    const struct host_kernels *kernels;
    struct pool *pool;
    int n_threads;
    struct host_scratch *scratch; /* [n_threads] */
    struct host_memory memory;
    /* Of the step that runs, as arrays: [max_outputs]. */
    int32_t *output_row;
    struct sample_params *params;
    int32_t *slot_token; /* [n_states + 1] the token last sampled for each state slot */
    int n_states;
};

static inline struct host_device *
host_of(struct device *device)
{
    return (struct host_device *)(void *)device;
}

/* Splits fn over the pool, or calls it here when the work (in units of about a nanosecond) is less
 * than waking the pool costs. No operation's result depends on which. */
static inline void
host_run(struct host_device *host, pool_fn fn, void *arg, double work_ns)
{
    if (host->n_threads == 1 || work_ns < 3000)
        fn(arg, 0, 1);
    else
        pool_run(host->pool, fn, arg);
}

int host_matmul(struct device *, void *out, const void *x, struct weight w, struct weight bias,
                bool accumulate, const struct batch *, struct stream *);
int host_matmul_group(struct device *, const struct matmul_part *parts, int n_parts, const void *x,
                      const struct batch *, struct stream *);
int host_matmul_rows(struct device *, float *out, const void *x, const int32_t *row, int n,
                     struct weight w, struct stream *);
int host_embed(struct device *, void *out, struct weight table, const struct batch *,
               struct stream *);
int host_rms_norm(struct device *, void *out, const void *x, struct weight weight, int64_t rows,
                  int dim, float eps, struct stream *);
int host_silu_mul(struct device *, void *out, const void *gate, const void *up, int64_t count,
                  struct stream *);
int host_rope_angles(struct device *, float *angles, int head_dim, const double *inv_freq,
                     double attention_scale, const struct batch *, struct stream *);
int host_rope(struct device *, void *q, void *k, const struct model_shape *, const float *angles,
              const struct batch *, struct stream *);
size_t host_kv_page_bytes(const struct device *dev, const struct model_shape *shape,
                          int page_tokens);
int host_kv_write(struct device *, const struct kv_cache *, int layer, const void *k, const void *v,
                  const struct batch *, struct stream *);
int host_kv_copy_page(struct device *, const struct kv_cache *, int dst_page, int src_page,
                      struct stream *);
int host_attention(struct device *, void *out, const void *q, const struct kv_cache *, int layer,
                   const struct model_shape *, const struct batch *, struct stream *);
int host_engram_gather(struct device *, void *out, const struct bundle_source *source, int index,
                       const struct engram_shape *, const struct batch *, struct stream *);
int host_engram_fuse(struct device *, void *x, const void *key, const void *value, float *u,
                     const float *state, const struct engram_weights *, const struct engram_shape *,
                     int hidden, const struct batch *, struct stream *);
int host_engram_keep(struct device *, float *state, const float *u, const struct engram_shape *,
                     int hidden, const struct batch *, struct stream *);
/* Replaces the operations whose results a BF16 device rounds. */
void host_round_activations(struct device_ops *ops);
int host_sample(struct device *, const float *logits, float *scratch, int vocab,
                const struct sample_params *params, int n, struct sample_result *results,
                struct stream *);

#endif
