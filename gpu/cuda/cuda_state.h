/* cuda_state: what the files of the CUDA backend share: the device, and its operations.
 *
 * One file of operations each: elementwise.cu, projection.cu (with gemm.cu and gemv.cu), kv_cache.cu,
 * attention_decode.cu, attention_prefill.cu, engram_gather.cu, engram_fuse.cu, sample.cu, step.cu,
 * memory.cu, cuda_device.cu. Types on this device: residual stream x F32; activations BF16; matrices BF16;
 * vectors (norm weights, biases, convolution) F32; KV cache BF16; logits, angles, u and Engram states F32.
 *
 * What a batch looks like to a kernel (step_view, made by step.cu): n_rows, n_seqs and n_decode are host
 * values that may set a grid; the arrays and the page lists are device memory at addresses that are the same in every
 * step, so that a captured graph can be replayed. Rows with row_seq < 0 are padding: their inputs are
 * harmless (token 0, position 0), and a kernel neither looks up their sequence nor writes for them
 * anything but their own row of a scratch buffer. In a pure decode step n_decode == n_seqs == n_rows, padding
 * included (padded seq: n_rows 0). Row r of a decode step belongs to seq[r], or to none.
 *
 * No operation reads anything from the host but what step.cu copied, and none synchronises. Thread: engine,
 * but for memory.cu (any thread).                                                                          */
#ifndef GPU_CUDA_CUDA_STATE_H
#define GPU_CUDA_CUDA_STATE_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>

#include "gpu/cuda/launch.h"

extern "C" {
#include "gpu/device.h"
}

/* What varies between replays of one graph and is not in the view's arrays. Device memory, at one address;
 * filled by begin_step. */
struct cuda_block {
    uint64_t step, timeout_ns;
    struct step_report *report;    /* host */
    struct sample_result *results; /* host, [n_outputs] */
    int32_t n_rows, n_outputs;     /* without padding */
    int32_t status; /* 0, or -ETIMEDOUT once a wait was over; engram_keep looks at it */
    struct {
        const struct bundle_address *address; /* host, [n_rows, orders] */
        const uint64_t *mix;                  /* host, or NULL */
        const uint64_t *flag;                 /* host: the word of a struct flag */
        uint64_t value, rows_from; /* as in struct forward_engram */
        uint64_t waited_ns;
        int32_t rows_there; /* of a small step: first rows whose addresses and mixes are on the device */
        int32_t unused;
    } engram[SHAPE_MAX_ENGRAM_LAYERS];
};

/* A tile of prefill rows: rows first_row .. first_row + n_rows of the batch, all of sequence seq. */
enum { CUDA_TILE_ROWS = 128 };
struct cuda_tile {
    int32_t seq, first_row, n_rows, unused;
};

/* Decode attention: a sequence's positions are cut into pieces of CUDA_SPLIT_TOKENS, from 0 on, or, where a
 * step decodes a single row and the machine is otherwise idle, of CUDA_SPLIT_TOKENS_ALONE. Pieces are
 * combined in rising order. */
enum { CUDA_SPLIT_TOKENS = 256, CUDA_SPLIT_TOKENS_ALONE = 128 };
/* attention_stream.cu takes more decoding rows than that; one of the counts that steps are padded to. */
enum { CUDA_STREAM_ROWS = 32 };

/* One such piece: positions index * split_tokens and on of decoding row `row`. The pieces of a row
 * follow each other in rising order, rows rise too; behind the last come pieces of no row, up to the
 * size of the grid. A step has at most max_sequences + max_step_pages * page_tokens / CUDA_SPLIT_TOKENS_ALONE. */
struct cuda_piece {
    const int32_t *pages; /* device: of the row's sequence, as in batch_seq */
    int32_t row;          /* -1: a piece of no row */
    int32_t index;        /* among the row's pieces */
    int32_t n_keys;       /* of the row: context + 1 */
    int32_t unused;
};
__host__ __device__ static inline int32_t
cuda_pieces(int32_t n_keys, int split)
{
    return (n_keys + split - 1) / split;
}

struct cuda_steps;  /* step.cu: pinned copies, graphs */
struct cuda_gemms;  /* gemm.cu: cuBLASLt handle, workspace, plans */
struct cuda_memory; /* memory.cu: slabs of device and pinned memory, what uploads go through */

struct cuda_device {
    struct device device;                      /* first: a struct device is cast back */
    int ordinal, sm_count, compute_capability; /* 90: 9.0 */
    size_t l2_bytes;
    size_t block_shared_bytes; /* dynamic shared memory one block can have; 1 KiB is left for static */
    int clusters[2];         /* of 2 and of 4 blocks of skinny.cu that run at the same time */
    void *encode_tensor_map; /* the driver's, for driver.cu; NULL where skinny.cu is not for this device */
    int kernels;     /* loaded when the device was opened; engram_gather and engram_fuse name theirs one by one */
    char text[384];  /* for logs */
    cudaStream_t stream;
    struct cuda_steps *steps;
    struct cuda_gemms *gemms;
    uint64_t plans_made, plans_late; /* of products, by gemm.cu; of these, within a step */
    struct cuda_memory *memory; /* memory.cu: its pools; may stay NULL */

    /* Set by reserve. */
    struct device_limits limits;
    struct model_shape shape;
    int32_t *slot_token; /* device, [n_states + 1]: token last sampled for the slot */

    /* The step being issued: host values, from begin_step. */
    bool in_step;                  /* operations are being issued, until end_step */
    struct cuda_block *block;      /* device */
    const struct cuda_tile *tiles; /* device, [n_tiles]: prefill rows; longest context first */
    int n_tiles;
    const struct cuda_piece *pieces; /* device, [n_pieces]: decode rows */
    int split_tokens; /* positions of a piece */
    const void *carried_norm; /* weights of the norm whose rows projection.cu has ready, but for their factors; or NULL */
    int n_squares;
    int n_pieces; /* with those of no row: rounded up, so that few sizes of a graph are needed */
    bool several_pieces; /* some row has more than one */
    bool
        all_greedy; /* every output is greedy without bias, counts, bans, forced token, replay and top: sampling may take
                        a shorter way with the same result */

    /* Scratch, device memory, sized by reserve. */
    void *
        activations; /* [max_rows, widest of: hidden; (heads + 2 kv_heads) * head_dim; 3 * intermediate] BF16:
                          projection.cu's own */
    size_t activations_bytes;
    float *partial; /* decode attention: pieces of all (row, head): see attention_decode.cu */
    size_t partial_bytes;
    void *sample_scratch; /* sample.cu's own, beside `scratch` of the operation */
    size_t sample_scratch_bytes;
    float *squares; /* projection.cu: sums of squares of parts of rows, cuda_squares_bytes */
};

static inline struct cuda_device *
cuda_of(struct device *device)
{
    return (struct cuda_device *)device;
}

/* KV cache: layer by layer, so that what one layer reads lies together:
 * [layer][page][k, v][kv_head][page_tokens][head_dim] BF16. Elements from kv->data: */
__host__ __device__ static inline size_t
cuda_kv_offset(const struct kv_cache *kv, int layer, int page, int is_v, int head)
{
    return ((((size_t)layer * (size_t)kv->n_pages + (size_t)page) * 2 + (size_t)is_v) *
                (size_t)kv->kv_heads +
            (size_t)head) *
           (size_t)kv->page_tokens * (size_t)kv->head_dim;
}

/* Each file's part of reserve: what it needs of the scratch, as bytes added to the device's fields. */
size_t cuda_activation_bytes(const struct model_shape *shape, const struct device_limits *limits);
size_t cuda_squares_bytes(const struct cuda_device *);
size_t cuda_partial_bytes(const struct model_shape *shape, const struct device_limits *limits);
size_t cuda_sample_bytes(const struct model_shape *shape, const struct device_limits *limits);
/* Kernels (LOAD_KERNELS) and their attributes (ALLOW_SHARED), when the device is opened. */
void cuda_elementwise_open(struct cuda_device *);
void cuda_kv_cache_open(struct cuda_device *);
void cuda_steps_open(struct cuda_device *);
int cuda_attention_decode_open(struct cuda_device *);
int cuda_attention_prefill_open(struct cuda_device *);
int cuda_projection_open(struct cuda_device *);
int cuda_sample_open(struct cuda_device *);
int cuda_engram_open(struct cuda_device *);
int cuda_engram_gather_open(struct cuda_device *); /* called by cuda_engram_open */

/* gemm.cu */
int cuda_gemms_new(struct cuda_gemms **ret_gemms, struct cuda_device *);
struct cuda_gemms *cuda_gemms_free(struct cuda_gemms *);
/* Numbers of rows that share a plan, by the largest: up to 8 a power of two, then multiples of 8, from 128 on of an
 * eighth of the power of two below. Those that decode steps are padded to are among them up to 1,024. */
int64_t cuda_gemm_bucket(int64_t m);
/* out [m, n] (row stride ld_out) = x [m, k] BF16 (row stride k) w^T, w [n, k] BF16; out is BF16, or F32 when
 * f32_out; accumulate: added to out. No bias. Same bits for a row whatever the other rows hold, for the same m. */
int cuda_gemm(struct cuda_device *, void *out, int64_t ld_out, bool f32_out, bool accumulate,
              const void *x, const void *w, int64_t m, int64_t n, int64_t k);

/* Operations, by file. */
/* elementwise.cu */
int cuda_embed(struct device *, void *out, struct weight table, const struct batch *,
               struct stream *);
int cuda_rms_norm(struct device *, void *out, const void *x, struct weight weight, int64_t rows,
                  int dim, float eps, struct stream *);
int cuda_rope_angles(struct device *, float *angles, int head_dim, const double *inv_freq,
                     double attention_scale, const struct batch *, struct stream *);
int cuda_rope(struct device *, void *q, void *k, const struct model_shape *, const float *angles,
              const struct batch *, struct stream *);
int cuda_silu_mul(struct device *, void *out, const void *gate, const void *up, int64_t count,
                  struct stream *);
/* projection.cu */
int cuda_matmul(struct device *, void *out, const void *x, struct weight w, struct weight bias,
                bool accumulate, const struct batch *, struct stream *);
int cuda_matmul_group(struct device *, const struct matmul_part *parts, int n_parts, const void *x,
                      const struct batch *, struct stream *);
int cuda_matmul_rows(struct device *, float *out, const void *x, const int32_t *row, int n,
                     struct weight w, struct stream *);
int cuda_project_qkv(struct device *, void *q, const float *x, const struct qkv_weights *,
                     const float *angles, const struct kv_cache *, int layer,
                     const struct model_shape *, const struct batch *, struct stream *);
int cuda_finish_layer(struct device *, float *x, const void *attended, const struct layer_end_weights *,
                      const struct model_shape *, const struct batch *, struct stream *);
int cuda_warm_up(struct device *, const struct step_products *, struct stream *);
/* kv_cache.cu */
size_t cuda_kv_page_bytes(const struct device *, const struct model_shape *, int page_tokens);
int cuda_kv_write(struct device *, const struct kv_cache *, int layer, const void *k, const void *v,
                  const struct batch *, struct stream *);
int cuda_kv_copy_page(struct device *, const struct kv_cache *, int dst_page, int src_page,
                      struct stream *);
/* attention_decode.cu (rows 0 .. n_decode - 1), attention_prefill.cu (the rest); cuda_attention calls both */
int cuda_attention(struct device *, void *out, const void *q, const struct kv_cache *, int layer,
                   const struct model_shape *, const struct batch *, struct stream *);
int cuda_attention_decode(struct cuda_device *, void *out, const void *q, const struct kv_cache *,
                          int layer, const struct model_shape *, const struct batch *);
int cuda_attention_prefill(struct cuda_device *, void *out, const void *q, const struct kv_cache *,
                           int layer, const struct model_shape *, const struct batch *);
/* engram_gather.cu, engram_fuse.cu */
int cuda_wait_rows(struct device *, const struct forward_step *, int index, struct stream *);
int cuda_engram_gather(struct device *, void *out, const struct bundle_source *source, int index,
                       const struct engram_shape *, const struct batch *, struct stream *);
int cuda_engram_fuse(struct device *, void *x, const void *key, const void *value, float *u,
                     const float *state, const struct engram_weights *, const struct engram_shape *,
                     int hidden, const struct batch *, struct stream *);
int cuda_engram_keep(struct device *, float *state, const float *u, const struct engram_shape *,
                     int hidden, const struct batch *, struct stream *);
/* sample.cu */
int cuda_sample(struct device *, const float *logits, float *scratch, int vocab,
                const struct sample_params *params, int n, struct sample_result *results,
                struct stream *);
/* step.cu */
size_t cuda_reserve_bytes(const struct device *, const struct model_shape *,
                          const struct device_limits *);
int cuda_reserve(struct device *, const struct model_shape *, const struct device_limits *);
int cuda_begin_step(struct device *, const struct forward_step *, struct step_view *ret_view,
                    struct stream *);
int cuda_end_step(struct device *, const struct forward_step *, int status, struct stream *);
void cuda_steps_free(struct cuda_device *);
/* Device copies of an Engram layer's addresses and mixes, [max_rows, orders]: wait_rows fills them. */
struct bundle_address *cuda_step_addresses(struct cuda_device *, int index);
uint64_t *cuda_step_mixes(struct cuda_device *, int index);
/* memory.cu */
int cuda_memory_open(struct cuda_device *);
void cuda_memory_close(struct cuda_device *); /* everything given out has been given back */
void *cuda_alloc(struct device *, size_t size_bytes);
void cuda_free(struct device *, void *memory, size_t size_bytes);
void *cuda_alloc_shared(struct device *, size_t size_bytes);
void cuda_free_shared(struct device *, void *memory, size_t size_bytes);
int cuda_upload(struct device *, void *dst, const void *src, size_t size_bytes);
int cuda_download(struct device *, void *dst, const void *src, size_t size_bytes);
int cuda_copy(struct device *, void *dst, const void *src, size_t size_bytes, struct stream *);
int cuda_fill_random(struct device *, void *dst, enum dtype, size_t n_elements, uint64_t seed,
                     float deviation);

#endif
