/* ops_model: a small random model with Engram layers, the same on both devices, and steps of its
 * sequences. Every sequence has tokens, KV pages and a state slot of its own. */
#ifndef TESTS_GPU_OPS_MODEL_H
#define TESTS_GPU_OPS_MODEL_H

#include "gpu/forward.h"

enum {
    MODEL_SEQS = 44,
    MODEL_TOKENS = 800, /* of a sequence */
    MODEL_ROWS = 256,   /* of a step */
    MODEL_PAGE_TOKENS = 16,
    MODEL_PAGES_EACH = MODEL_TOKENS / MODEL_PAGE_TOKENS,
    MODEL_VOCAB = 2000,
};

struct model_memory; /* what a device reads by itself */

struct ops_model {
    struct device *dev;
    struct forward *forward;
    struct model_shape shape;
    struct model_memory *memory;
    uint64_t steps;
    int32_t tokens[MODEL_SEQS][MODEL_TOKENS];
    int32_t pages[MODEL_SEQS][MODEL_PAGES_EACH];
};

struct model_part {
    int seq, context, n_rows;
    bool engram_off;
};

enum model_width {
    MODEL_NARROW,
    MODEL_WIDE, /* wide enough for what a backend has for large models alone: products that share a sum, carried norms */
};

/* Takes the device, also when it fails; aborts with a line that says why. */
struct ops_model *model_open(struct device *dev, enum model_width width);
struct ops_model *model_close(struct ops_model *m); /* accepts NULL, returns NULL */
/* One step; one output for each part, of its last row, sampled with all top log-probabilities.
 * logits NULL, or [n_parts, vocab]: a decode step with it is never a graph. ret_results [n_parts]
 * or NULL. 0, or what the device returned. */
int model_step(struct ops_model *m, const struct model_part *parts, int n_parts, int n_decode,
               float *logits, struct sample_result *ret_results);
/* The state of a sequence is put aside, and back: a step of it can then be done again. */
int model_save(struct ops_model *m, int seq);
int model_restore(struct ops_model *m, int seq);

#endif
