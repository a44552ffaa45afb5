/* ops_rig: one operation at a time on the CUDA device and on the CPU device, which is the
 * definition of correct, with the same values on both.
 *
 * A rig is one opened CUDA device, the CPU device, and memory that lives until the rig is closed. A
 * step is issued by hand between rig_begin and rig_end. The CUDA device captures a graph only of a
 * step that is a plain decode step, and never of one with `logits`: rig_begin sets it (begin_step
 * does not write there), so every operation is issued as it is, and the batch is not padded. */
#ifndef TESTS_GPU_OPS_RIG_H
#define TESTS_GPU_OPS_RIG_H

#include "gpu/device.h"

enum { HOST, CUDA, SIDES };

/* What a pair of arrays holds. Random values of all but CONTENT_F32 are exact in BF16. */
enum content {
    CONTENT_ACTIVATION, /* F32 on the host, BF16 on CUDA */
    CONTENT_F32,        /* F32 on both: residual stream, logits, states */
    CONTENT_VECTOR,     /* F32 on both, values exact in BF16: norm weights, biases */
    CONTENT_MATRIX,     /* BF16 on both */
};

struct twin {
    void *at[SIDES];
    size_t bytes[SIDES];
    enum content content;
    int64_t rows, cols;
};

struct ops_side {
    struct device *dev;
    struct forward_step step;
    struct step_view view;
    struct step_report *report;
    struct sample_result *results; /* [max_outputs] */
};

/* A sequence of the batch being put together. */
struct ops_seq {
    int n_rows, context, slot, engram_off;
    const int32_t *pages;
    int n_pages;
};

enum { RIG_TWINS = 64, RIG_SHARED = 16 };

struct rig {
    struct ops_side side[SIDES];
    struct model_shape shape;
    struct device_limits limits;
    int status; /* the first operation that failed */
    int status_side;
    uint64_t seed, steps;
    /* The batch, as both sides are told it. */
    int32_t *token, *position, *row_seq; /* [max_rows] */
    const int32_t *cuda_token; /* NULL, or what CUDA is told in place of token: TOKEN_OF_SLOT */
    struct batch_seq *seq;     /* [max_sequences] */
    int n_rows, n_seqs, n_decode;
    struct twin twin[RIG_TWINS];
    int n_twins;
    struct {
        void *at;
        size_t bytes;
        int side;
    } shared[RIG_SHARED];
    int n_shared;
};

/* What the program was asked for. */
struct ops_options {
    int ordinal;
    bool quick;
    const char *only; /* NULL, or the beginning of names of operations */
};
extern struct ops_options ops_options;

/* Takes what an operation of this shape needs; aborts when a device refuses. */
void rig_open(struct rig *rig, const struct model_shape *shape, const struct device_limits *limits);
void rig_close(struct rig *rig);
float rig_random(struct rig *rig, float scale); /* uniform in [-scale, scale) */
uint32_t rig_bits(struct rig *rig);

/* scale 0: zeros. offset is added to each value before it is rounded. */
struct twin *rig_twin(struct rig *rig, enum content content, int64_t rows, int64_t cols,
                      float scale, float offset);
/* The same values again on both sides, or new ones after the host's were written. */
void twin_upload(struct rig *rig, struct twin *twin);
/* Copies what a side computed, widened to F32. */
float *twin_values(struct rig *rig, const struct twin *twin, int side);
struct weight twin_weight(const struct twin *twin, int side);
/* Rows first .. first + n of a matrix as one of its own. */
struct weight twin_rows(const struct twin *twin, int side, int first, int n);
void *rig_shared(struct rig *rig, int side, size_t bytes);
/* Gives back all twins and shared memory taken so far; or the twins beyond the first n. */
void rig_reset(struct rig *rig);
void rig_drop(struct rig *rig, int n_twins);

void rig_batch(struct rig *rig, const struct ops_seq *seqs, int n_seqs, int n_decode);
/* n rows in one segment, or n decoding sequences of one row; without pages. */
void rig_plain_batch(struct rig *rig, int n_rows, bool decode);
void rig_begin(struct rig *rig, const struct forward_output *outputs, int n_outputs);
void rig_end(struct rig *rig);
void rig_did(struct rig *rig, int side, int status);

/* Error of one array: the largest absolute one, and the largest of a row over the largest value of
 * that row as the host has it. A row that should be zero and is not, or is not finite: infinite. */
struct ops_error {
    double abs, rel;
};
struct ops_error ops_error_of(const float *want, const float *have, int64_t rows, int64_t cols);
struct ops_error twin_error(struct rig *rig, const struct twin *twin);
/* Largest |a - b|, exact: 0 means the same values. */
struct ops_error twin_error_rounded(struct rig *rig, const struct twin *twin);

/* One line of the table; what is compared with the bound is error.rel. */
void ops_report(struct rig *rig, const char *op, struct ops_error error, double bound,
                const char *shape, ...) __attribute__((format(printf, 5, 6)));
/* A line for something that holds or does not. */
void ops_report_fact(struct rig *rig, const char *op, bool holds, const char *shape, ...)
    __attribute__((format(printf, 4, 5)));
bool ops_wanted(const char *op);
int ops_failures(void);
int ops_cases(void);

/* Relative bounds. BF16 keeps 8 bits: rounding to it is off by 2^-9 at most. */
#define BOUND_EXACT    0.0
#define BOUND_BF16     4e-3 /* one rounding, and sums in another order */
#define BOUND_BF16_TWO 8e-3 /* two roundings */
#define BOUND_F32      1e-4 /* sums in another order */

/* The groups of operations. */
void ops_rows(void);
void ops_matmul(void);
void ops_attention(void);
void ops_fused(void);
void ops_engram(void);
void ops_sample(void);
void ops_neighbours(void);

#endif
