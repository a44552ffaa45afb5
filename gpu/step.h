/* step: what one step computes, as the engine tells it to the forward pass and the forward pass to
 * a device: rows, sequences, where N-gram rows are, what is sampled, and where the answer goes.
 * Plain data, read by C and by CUDA C++.
 *
 * Memory marked "shared" was given out by device_ops.alloc_shared: host and device read and write
 * it at one address. A step is asynchronous on a device that runs behind the host: what it points
 * to stays as it is until report->done has reached the step's number, but for the lists of
 * sample_params, which begin_step has copied where it returns before the step has run. */
#ifndef GPU_STEP_H
#define GPU_STEP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bundle.h"
#include "base/shape.h"

struct flag;

/* batch.token of a row whose token the host has not seen yet: the last one sampled for the state
 * slot of the row's sequence (sample_params.slot), which the device remembers. */
enum { TOKEN_OF_SLOT = -1 };

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
    const int32_t *token;        /* [n_rows] or TOKEN_OF_SLOT */
    const int32_t *position;     /* [n_rows] */
    const int32_t *row_seq;      /* [n_rows] index into seq; -1: a row added by the device, which
                                  * belongs to nobody and has no effect */
    const struct batch_seq *seq; /* [n_seqs] */
};

/* Whether any sequence of the batch takes part in the Engram layers. */
static inline bool
batch_any_engram(const struct batch *b)
{
    for (int i = 0; i < b->n_seqs; i++)
        if (!b->seq[i].engram_off)
            return true;
    return false;
}

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
    int32_t slot;   /* the state slot that is told the token, for TOKEN_OF_SLOT; < 0: none */
    int32_t n_top;  /* top log-probabilities wanted, 0..SAMPLE_MAX_TOP */
    int32_t n_bias, n_counts, n_banned;
    const struct logit_bias *bias;
    const struct token_count *counts;
    const int32_t *banned; /* tokens that may not be sampled (min_tokens, ignore_eos) */
    const int32_t *replay; /* NULL, or one token that takes the place of the sampled one once all
                            * the work is done: benchmarks on real text with random weights */
};

struct sample_result {
    int32_t token; /* -1: every token was banned or the logits were not finite */
    float logprob;
    int32_t n_top;
    int32_t top_token[SAMPLE_MAX_TOP]; /* by falling log-probability, ties by rising id */
    float top_logprob[SAMPLE_MAX_TOP];
};

/* A step's rows_from: no step of the same flag has this number or reaches it. step > 0; rows of a step are fewer than
 * 2^STEP_ROWS_BITS. */
enum { STEP_ROWS_BITS = 20 };
static inline uint64_t
step_rows_from(uint64_t step)
{
    return step << STEP_ROWS_BITS;
}

/* The rows of one Engram layer for this step; addresses are complete once ready->word >=
 * ready_value. With rows_from, 0 else, those of the first r rows are once ready->word >= rows_from + r, and
 * ready_value is rows_from + n_rows: a device may begin with the rows that are there. */
struct forward_engram {
    const struct bundle_address *address; /* [n_rows, max_order - 1], shared, 16-byte aligned */
    struct flag *ready;
    uint64_t ready_value, rows_from;
    uint64_t waited_ns;  /* out: how long the step stood here (host; else in the report) */
    const uint64_t *mix; /* shared memory; these three as in struct bundle_source */
    const void *weights, *scales;
};

struct forward_output {
    int32_t row;
    struct sample_params params;
};

/* How a step ended. Shared memory; the device writes `done` last, with release order. */
struct step_report {
    uint64_t done;  /* number of the last step that has ended; read it with acquire order */
    int32_t status; /* of that step: 0, or -ETIMEDOUT: an Engram layer's rows did not come in time,
                     * its results are void, no Engram state was changed */
    int32_t unused;
    uint64_t waited_ns[SHAPE_MAX_ENGRAM_LAYERS]; /* how long the step stood before each layer */
};

/* Whether a step of this number has ended: results and report are there. Any thread. */
static inline bool
step_report_done(const struct step_report *report, uint64_t step)
{
    return __atomic_load_n(&report->done, __ATOMIC_ACQUIRE) >= step;
}

struct forward_step {
    uint64_t step;              /* number, rising; 0: the forward pass counts for itself */
    struct step_report *report; /* shared memory; NULL: the forward pass has one of its own */
    struct batch batch;
    struct forward_engram engram[SHAPE_MAX_ENGRAM_LAYERS];
    uint64_t wait_timeout_ns;
    int n_outputs;
    const struct forward_output *outputs;
    struct sample_result *results; /* [n_outputs] shared memory */
    float *logits; /* NULL, or [n_outputs, vocab] on the host: raw logits, for tests */
};

/* A step as the operations of a device see it: where the device has put what forward_step says.
 * Rows and outputs may be more than were asked for (row_seq -1, padding up to a shape the device
 * likes); what is computed for those goes nowhere. */
struct step_view {
    struct batch batch;
    struct bundle_source engram[SHAPE_MAX_ENGRAM_LAYERS];
    int n_outputs;
    const int32_t *output_row; /* [n_outputs] */
    const struct sample_params *params;
    struct sample_result *results;
};

#endif
