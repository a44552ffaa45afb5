/* device: the table of operations a backend fills. gpu/host is complete and is the definition of
 * correct; gpu/cuda overrides entry by entry. No CUDA type appears here.
 *
 * Every compute operation takes the stream last, allocates nothing, synchronises nothing, and is
 * ordered after the operations issued to the same stream before it. The host backend has one stream
 * and has finished an operation when it returns. Return: 0, or -errno (the host backend returns
 * failures of wait_rows only). Activations have the device's element type (`activation`: F32
 * on the host), but for the residual stream, which is F32 on every device; shapes in comments are
 * row-major. Memory given out by alloc_shared is readable and
 * writable by the host and the device at one address: batches, addresses and results travel in it.
 *
 * Results for one row never depend on what other rows of the batch hold: the reduction order of every
 * operation is a function of that row's own sequence, and, on a device whose libraries choose by size
 * (cuda), of the number of rows of the step, which decode steps pad to a few numbers. The host: of the
 * sequence alone (rows of one prefill segment may share a blocked product, whose blocking depends on
 * the segment's length alone). Thread: engine, but for alloc/free/upload, which any thread may call
 * before serving. */
#ifndef GPU_DEVICE_H
#define GPU_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bundle.h"
#include "base/dtype.h"
#include "base/err.h"
#include "base/shape.h"
#include "gpu/step.h"

struct device;
struct stream;

/* A weight matrix [rows, cols] or vector (rows 1), BF16 or F32 as in the checkpoint (F16 widened).
 */
struct weight {
    const void *data; /* NULL: absent (an optional bias) */
    enum dtype dtype;
    int rows, cols;
};

struct kv_cache {
    void *data; /* device memory; layout is the device's own */
    int n_pages, page_tokens;
    int layers, kv_heads, head_dim;
};

/* One of several products of the same rows. */
struct matmul_part {
    void *out; /* [n_rows, w.rows] */
    struct weight w, bias;
};

/* conv is [kernel, hidden]: the checkpoint's [hidden, kernel] turned, tap kernel-1 is the present.
 */
struct engram_weights {
    struct weight key, key_bias, value, value_bias, key_norm, query_norm, conv_norm, conv;
};

/* One attention layer's projections; a bias or head norm may be absent. */
struct qkv_weights {
    struct weight norm; /* RMSNorm before them, [hidden] */
    struct weight q, k, v, q_bias, k_bias, v_bias;
    struct weight q_norm, k_norm; /* per head, [head_dim] */
};

struct feed_forward_weights {
    struct weight norm;
    struct weight gate, up, down, gate_bias, up_bias, down_bias;
};

/* What follows attention in a layer. */
struct layer_end_weights {
    struct weight o, o_bias;
    struct feed_forward_weights feed_forward;
    struct weight next_norm; /* of the next layer's projections, where they follow at once; or absent */
};

/* The products with weights that the steps of a model do: one of each, all layers' have the same shapes; and what
 * they read and write, as in a step. */
struct step_products {
    struct qkv_weights qkv;
    struct weight o; /* of attended [max_rows, o.cols], added to x */
    struct feed_forward_weights feed_forward;
    struct matmul_part engram[2]; /* of rows [max_rows, w.cols]; no data without Engram layers */
    struct weight head;           /* to logits */
    const void *attended, *rows;
    float *x;      /* [max_rows, hidden] */
    float *logits; /* [logit_rows, head.rows] */
    int logit_rows;
};

/* What forward_new sizes a device's own working memory by. */
struct device_limits {
    int max_rows, max_sequences, max_outputs, n_states;
    int max_step_pages; /* entries of all page lists of one step */
    int page_tokens;
};

enum { STEP_ISSUE, STEP_REPLAYED };

struct device_ops {
    const char *name;
    enum dtype activation;
    /* Matrices are kept as BF16 whatever they come as, and those of one group (q, k, v; gate, up;
     * Engram key, value) lie one behind the other. */
    bool bf16_matrices;
    size_t logit_block_bytes; /* logits computed at a time; one row at least */

    /* Memory. alloc returns device memory, zeroed; NULL when there is none left. */
    void *(*alloc)(struct device *dev, size_t size_bytes);
    void (*free)(struct device *dev, void *memory, size_t size_bytes);
    void *(*alloc_shared)(struct device *dev, size_t size_bytes);
    void (*free_shared)(struct device *dev, void *memory, size_t size_bytes);
    int (*upload)(struct device *dev, void *dst, const void *src, size_t size_bytes);
    int (*download)(struct device *dev, void *dst, const void *src, size_t size_bytes);
    /* Device memory that is free now, and all of it. NULL: it is the process's own memory. */
    int (*memory_info)(struct device *dev, uint64_t *ret_free_bytes, uint64_t *ret_total_bytes);
    /* Device memory to device memory; the two do not overlap. */
    int (*copy)(struct device *dev, void *dst, const void *src, size_t size_bytes, struct stream *);
    /* True: alloc returns memory the host can write, so a file is read straight into it. */
    bool host_addressable;
    /* Takes what steps of this size need beside the forward pass's own buffers: -ENOMEM. Once. The
     * other: how much device memory that is; NULL: none to speak of. */
    size_t (*reserve_bytes)(const struct device *, const struct model_shape *,
                            const struct device_limits *);
    int (*reserve)(struct device *, const struct model_shape *, const struct device_limits *);
    /* Fills device memory with values of mean 0 and this deviation, a function of seed and index:
     * random models, without a host copy. dtype BF16, F32 or F8_E4M3. Optional. */
    int (*fill_random)(struct device *, void *dst, enum dtype, size_t n_elements, uint64_t seed,
                       float deviation);
    size_t (*kv_page_bytes)(const struct device *dev, const struct model_shape *shape,
                            int page_tokens);

    /* A step begins: the device takes over what `step` says, and says where its operations find it.
     * STEP_ISSUE: the operations are to be issued, then end_step. STEP_REPLAYED: the device has
     * issued this very sequence before (same rows, same kind of step) and has now issued all of it
     * by itself, end_step too. `step` stays as it is until the report says done. */
    int (*begin_step)(struct device *, const struct forward_step *step, struct step_view *ret_view,
                      struct stream *);
    /* Everything of the step has been issued: results and report follow. status: 0, or the error
     * that ended the issuing (-ETIMEDOUT from wait_rows, on the host). */
    int (*end_step)(struct device *, const struct forward_step *step, int status, struct stream *);

    /* out [rows, hidden] F32 = table[token[row]]; TOKEN_OF_SLOT is resolved here */
    int (*embed)(struct device *, void *out, struct weight table, const struct batch *,
                 struct stream *);
    /* out [rows, dim] activations = x / sqrt(mean(x^2) + eps) * weight, x of the residual stream;
     * also used with rows * heads groups of head_dim activations in place (out == x). */
    int (*rms_norm)(struct device *, void *out, const void *x, struct weight weight, int64_t rows,
                    int dim, float eps, struct stream *);
    /* out [n_rows, w.rows] = x [n_rows, w.cols] w^T (+ bias); accumulate: added to out, which is
     * the residual stream then, and activations else. */
    int (*matmul)(struct device *, void *out, const void *x, struct weight w, struct weight bias,
                  bool accumulate, const struct batch *, struct stream *);
    /* out_i [n_rows, w_i.rows] = x w_i^T (+ bias_i) for n_parts matrices of equal cols and dtype,
     * in one go: the same bits as n_parts calls of matmul. */
    int (*matmul_group)(struct device *, const struct matmul_part *parts, int n_parts,
                        const void *x, const struct batch *, struct stream *);
    /* The same for n arbitrary rows without segments (the language model head): each row on its
     * own. out is F32. */
    int (*matmul_rows)(struct device *, float *out, const void *x, const int32_t *row, int n,
                       struct weight w, struct stream *);
    /* angles [rows, head_dim] F32: cosines, then sines, of inv_freq[head_dim / 2] * position, both
     * times attention_scale. Once per step: all layers share them. inv_freq is host memory. */
    int (*rope_angles)(struct device *, float *angles, int head_dim, const double *inv_freq,
                       double attention_scale, const struct batch *, struct stream *);
    /* Rotates q [rows, heads, head_dim] and k [rows, kv_heads, head_dim] in place (half-split
     * pairs). */
    int (*rope)(struct device *, void *q, void *k, const struct model_shape *, const float *angles,
                const struct batch *, struct stream *);
    /* Writes k, v [rows, kv_heads, head_dim] to the pages of their sequences. */
    int (*kv_write)(struct device *, const struct kv_cache *, int layer, const void *k,
                    const void *v, const struct batch *, struct stream *);
    /* out [rows, heads * head_dim]: causal, scale 1/sqrt(head_dim), grouped heads; reads the KV
     * cache, in which this step's k and v already are. */
    int (*attention)(struct device *, void *out, const void *q, const struct kv_cache *, int layer,
                     const struct model_shape *, const struct batch *, struct stream *);
    /* out [rows, n] = silu(gate) * up */
    int (*silu_mul)(struct device *, void *out, const void *gate, const void *up, int64_t count,
                    struct stream *);
    /* Copies one KV page of all layers (copy on write of a forked sequence). */
    int (*kv_copy_page)(struct device *, const struct kv_cache *, int dst_page, int src_page,
                        struct stream *);

    /* Holds the stream until the rows of Engram layer `index` are there (step->engram[index].ready).
     * The host: -ETIMEDOUT after step->wait_timeout_ns. A device that runs behind: 0 at once; when
     * the time is over the step goes on with zeros and its report says -ETIMEDOUT. */
    int (*wait_rows)(struct device *, const struct forward_step *step, int index, struct stream *);
    /* out [rows, C * head_dim], C = orders * heads, dequantised, in column order; also writes each
     * bundle to its promote address. source->address [rows, orders]; index: of the layer in
     * shape->table. Rows of a sequence with engram_off get
     * zeros, and their addresses are not looked at. In one call several rows may name the same
     * source and the same promote address; no promote address is a source. */
    int (*engram_gather)(struct device *, void *out, const struct bundle_source *source, int index,
                         const struct engram_shape *, const struct batch *, struct stream *);
    /* Specs, "Fusion", steps 2 to 6 for M = 1: x [rows, D] in place, key and value [rows, D] are
     * the projected rows. Writes the vectors u of the convolution to u [rows, D] F32. state [slots,
     * (kernel-1) * max_order, D] F32 is read only: ring of earlier vectors u by position modulo
     * (kernel-1) * max_order; positions before 0 count as zeros whatever the ring holds. Rows of a
     * sequence with engram_off are left as they are. */
    int (*engram_fuse)(struct device *, void *x, const void *key, const void *value, float *u,
                       const float *state, const struct engram_weights *,
                       const struct engram_shape *, int hidden, const struct batch *,
                       struct stream *);
    /* Puts the last rows of u of each sequence (but those with engram_off) into the ring. Issued at
     * the end of a step, so that a step which failed half way can be redone. */
    int (*engram_keep)(struct device *, float *state, const float *u, const struct engram_shape *,
                       int hidden, const struct batch *, struct stream *);
    /* logits [n, vocab] -> results [n]. scratch [n, vocab]. logits are left as they are. */
    int (*sample)(struct device *, const float *logits, float *scratch, int vocab,
                  const struct sample_params *params, int n, struct sample_result *results,
                  struct stream *);
    /* Optional, together: what the operations above do one by one, in fewer passes. NULL: the
     * forward pass composes them; same result up to rounding.
     * project_qkv: h = rms_norm(x); q, k, v = projections of h; head norms; rotation; k and v go to
     * the KV cache. q [rows, heads * head_dim] is left. */
    int (*project_qkv)(struct device *, void *q, const float *x, const struct qkv_weights *,
                       const float *angles, const struct kv_cache *, int layer,
                       const struct model_shape *, const struct batch *, struct stream *);
    /* x += o(attended); x += down(silu(gate(h)) * up(h)), h = rms_norm(x). Where the next operation is project_qkv with
     * next_norm, it may find its own norm begun. */
    int (*finish_layer)(struct device *, float *x, const void *attended,
                        const struct layer_end_weights *, const struct model_shape *,
                        const struct batch *, struct stream *);
    /* Optional. Once, after reserve and before the first step: does the products of steps of every size that makes a
     * difference, so that no step is the first to choose an algorithm or to load code. Writes where the products
     * write and to the device's own working memory, which a step fills before it reads it. Waits until all have
     * finished. How many algorithms were chosen, or the device's error. Thread: any one. */
    int (*warm_up)(struct device *, const struct step_products *, struct stream *);
    /* Waits until everything issued has finished. 0, or the device's sticky error. */
    int (*synchronize)(struct device *, struct stream *);
    /* 1: everything issued has finished; 0: not yet; the device's sticky error. Never waits. */
    int (*poll)(struct device *, struct stream *);
    /* Issues next to nothing, for poll to say how that went: a device that has nothing to do need not
     * know that it is lost. 0, or its sticky error. NULL: the device cannot be lost. */
    int (*probe)(struct device *, struct stream *);
    /* close, free and free_shared are for a device that has finished what was issued or has an error
     * (synchronize has returned, or poll is not 0): before that they may wait for it, for ever if
     * what it runs never ends. Who cannot tell leaves the device as it is and ends the process at
     * once, without the driver's own clearing up. Accepts NULL, returns NULL. */
    struct device *(*close)(struct device *);
};

struct device {
    const struct device_ops *ops;
};

#endif
