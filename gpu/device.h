/* device: the table of operations a backend fills. gpu/host is complete and is the definition of
 * correct; gpu/cuda overrides entry by entry. No CUDA type appears here.
 *
 * Every compute operation takes the stream last, allocates nothing, synchronises nothing, and is
 * ordered after the operations issued to the same stream before it. The host backend has one stream
 * and has finished an operation when it returns. Return: 0, or -errno (the host backend returns
 * failures of device_wait_flag only). Activations have the device's element type (`activation`: F32
 * on the host); shapes in comments are row-major. Memory given out by alloc_shared is readable and
 * writable by the host and the device at one address: batches, addresses and results travel in it.
 *
 * Results for one row never depend on which other rows are in the batch: the reduction order of
 * every operation is a function of that row's own sequence alone (rows of one prefill segment may
 * share a blocked product, whose blocking depends on the segment's length alone). Thread: engine,
 * but for alloc/free/upload, which any thread may call before serving.              */
#ifndef GPU_DEVICE_H
#define GPU_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bundle.h"
#include "base/dtype.h"
#include "base/err.h"
#include "base/flag.h"
#include "base/shape.h"

struct device;
struct stream;

/* A weight matrix [rows, cols] or vector (rows 1), BF16 or F32 as in the checkpoint (F16 widened).
 */
struct weight {
    const void *data; /* NULL: absent (an optional bias) */
    enum dtype dtype;
    int rows, cols;
};

/* One sequence's part of a batch. Rows of a sequence are consecutive. */
struct batch_seq {
    int32_t first_row, n_rows;
    int32_t context; /* tokens in the KV cache before this step; row i has position context + i */
    int32_t state_slot; /* Engram convolution state */
    int32_t engram_off; /* 1: this sequence skips the Engram layers */
    int32_t n_pages;
    const int32_t *pages; /* KV pages in order, covering context + n_rows tokens */
};

/* Rows of a step. Sequences with one row that are decoding come first (n_decode of them, rows
 * 0..n_decode-1); the others are prefill segments. Everything is in shared memory. */
struct batch {
    int32_t n_rows, n_seqs, n_decode;
    const int32_t *token;        /* [n_rows] */
    const int32_t *position;     /* [n_rows] */
    const int32_t *row_seq;      /* [n_rows] index into seq */
    const struct batch_seq *seq; /* [n_seqs] */
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

enum { SAMPLE_MAX_TOP = 20 };

struct logit_bias {
    int32_t token;
    float bias;
};
struct token_count {
    int32_t token;
    int32_t in_output; /* times sampled; 0: in the prompt only */
};

/* How to choose a token from one row of logits. Order of operations: bias, repetition penalty,
 * presence/frequency penalty, then greedy if temperature == 0, else temperature, top-k, top-p,
 * min-p. Log-probabilities are those of the model: log-softmax of the raw logits. bias         l +=
 * bias, entry by entry; ids outside the vocabulary are ignored here and below repetition   of every
 * token in counts: l > 0 ? l / penalty : l * penalty; 0 and 1: off presence     of tokens with
 * in_output > 0: l -= presence; frequency: l -= frequency * in_output banned       l = -infinity
 *   greedy       the largest l, the lowest id of several
 *   top-k        the k largest l; of equal ones at the edge, the lowest ids
 *   top-p        of what top-k left, the fewest most probable tokens whose share reaches top_p (of
 * equal ones at the edge, the lowest ids), at least one; >= 1: off min-p        of what is left,
 * tokens with at least min_p times the largest probability; <= 0: off draw         u = Philox(seed,
 * draw) in [0, 1): the first id at which the running sum of what is left, in order of ids, exceeds
 * u times the whole A logit that is not finite makes the whole row void (token -1). */
struct sample_params {
    float temperature, top_p, min_p;
    int32_t top_k; /* 0: all */
    float presence_penalty, frequency_penalty, repetition_penalty;
    uint64_t seed,
        draw;       /* Philox4x32-10 key and counter: same pair, same draw, whatever the batch */
    int32_t forced; /* >= 0: score this token instead of sampling */
    int32_t n_top;  /* top log-probabilities wanted, 0..SAMPLE_MAX_TOP */
    int32_t n_bias, n_counts, n_banned;
    const struct logit_bias *bias;
    const struct token_count *counts;
    const int32_t *banned; /* tokens that may not be sampled (min_tokens, ignore_eos) */
};

struct sample_result {
    int32_t token; /* -1: every token was banned or the logits were not finite */
    float logprob;
    int32_t n_top;
    int32_t top_token[SAMPLE_MAX_TOP]; /* by falling log-probability, ties by rising id */
    float top_logprob[SAMPLE_MAX_TOP];
};

struct device_ops {
    const char *name;
    enum dtype activation;

    /* Memory. alloc returns device memory, zeroed; NULL when there is none left. */
    void *(*alloc)(struct device *dev, size_t size_bytes);
    void (*free)(struct device *dev, void *memory, size_t size_bytes);
    void *(*alloc_shared)(struct device *dev, size_t size_bytes);
    void (*free_shared)(struct device *dev, void *memory, size_t size_bytes);
    int (*upload)(struct device *dev, void *dst, const void *src, size_t size_bytes);
    int (*download)(struct device *dev, void *dst, const void *src, size_t size_bytes);
    /* Device memory to device memory; the two do not overlap. */
    int (*copy)(struct device *dev, void *dst, const void *src, size_t size_bytes, struct stream *);
    /* True: alloc returns memory the host can write, so a file is read straight into it. */
    bool host_addressable;
    size_t (*kv_page_bytes)(const struct device *dev, const struct model_shape *shape,
                            int page_tokens);

    /* out [rows, hidden] = table[token[row]] */
    int (*embed)(struct device *, void *out, struct weight table, const struct batch *,
                 struct stream *);
    /* out [rows, dim] = x / sqrt(mean(x^2) + eps) * weight; also used with rows * heads groups of
     * head_dim in place (out == x). */
    int (*rms_norm)(struct device *, void *out, const void *x, struct weight weight, int64_t rows,
                    int dim, float eps, struct stream *);
    /* out [n_rows, w.rows] = x [n_rows, w.cols] w^T (+ bias) (+ out when accumulate) */
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

    /* Holds the stream until flag->word >= value; -ETIMEDOUT after timeout_ns. */
    int (*wait_flag)(struct device *, struct flag *flag, uint64_t value, uint64_t timeout_ns,
                     struct stream *);
    /* out [rows, C * head_dim], C = orders * heads, dequantised, in column order; also writes each
     * bundle to its promote address. address [rows, orders]. Rows of a sequence with engram_off get
     * zeros, and their addresses are not looked at. In one call several rows may name the same
     * source and the same promote address; no promote address is a source. */
    int (*engram_gather)(struct device *, void *out, const struct bundle_address *address,
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
    /* Waits until everything issued has finished. 0, or the device's sticky error. */
    int (*synchronize)(struct device *, struct stream *);
    struct device *(*close)(struct device *); /* accepts NULL, returns NULL */
};

struct device {
    const struct device_ops *ops;
};

#endif
