/* model_fixture: a random model, the same in a forward pass and in a plain double precision
 * reference that shares no code with it. For tests. */
#ifndef TESTS_UNIT_GPU_MODEL_FIXTURE_H
#define TESTS_UNIT_GPU_MODEL_FIXTURE_H

#include "gpu/forward.h"

struct model_fixture {
    struct model_shape shape;
    float *global[ROLE_COUNT]; /* values as on the device, widened */
    float *layer[SHAPE_MAX_LAYERS][ROLE_COUNT];
    uint8_t *bundles;     /* [n_bundles] in the layout of base/shape.h */
    float *bundle_values; /* [n_bundles, heads * head_dim] */
    int n_bundles;
};

enum fixture_kind { FIXTURE_ENGRAM, FIXTURE_QWEN3, FIXTURE_LLAMA_BIAS };

void fixture_make(struct model_fixture *m, enum fixture_kind kind, unsigned seed);
void fixture_free(struct model_fixture *m);
/* Loads every weight; matrices arrive as dtype (the values are exact in BF16). */
int fixture_load(const struct model_fixture *m, struct forward *forward, enum dtype dtype,
                 struct err *err);
/* Which bundle the token at a position of a sequence uses. */
int fixture_bundle(const struct model_fixture *m, const int32_t *tokens, int position, int table,
                   int order);
/* logits [n, vocab] of every position of one sequence. */
void fixture_reference(const struct model_fixture *m, const int32_t *tokens, int n, bool engram_off,
                       double *logits);

/* A step put together for one or more sequences, with everything it points to. */
struct step_part {
    const int32_t *tokens; /* of the whole sequence */
    int context, n_rows;   /* this step's rows: tokens[context .. context + n_rows) */
    int state_slot, engram_off;
    const int32_t *pages;
    int n_pages;
    bool all_outputs; /* logits of every row; else of the last */
};
enum { FIXTURE_MAX_ROWS = 512, FIXTURE_MAX_SEQS = 64 };
/* Decoding parts (one row) must come first. logits [n_outputs, vocab] in order of rows. */
int fixture_step(const struct model_fixture *m, struct forward *forward,
                 const struct step_part *parts, int n_parts, int n_decode, float *logits,
                 struct sample_result *results, struct err *err);
/* Largest |a - b| over the largest |b| of a position. */
double fixture_error(const float *a, const double *b, int vocab);

#endif
