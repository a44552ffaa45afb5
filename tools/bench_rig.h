/* bench_rig: a random model on a device, and a ring of steps in flight, so that the device is never
 * waited for between two steps. */
#ifndef TOOLS_BENCH_RIG_H
#define TOOLS_BENCH_RIG_H

#include "tools/bench.h"

enum { RIG_STEPS = 3, RIG_PAGE_TOKENS = 64 };

/* One step's shared memory. */
struct rig_step {
    struct forward_step forward;
    int32_t *token, *position, *row_seq; /* [max_rows] */
    struct batch_seq *seq;               /* [max_sequences] */
    struct sample_result *results;       /* [max_sequences] */
    struct step_report *report;
};

struct rig {
    struct model_shape shape;
    struct device *device;
    struct forward *forward;
    struct forward_limits limits;
    int32_t *pages; /* [max_sequences, pages_each] every sequence has its own */
    int pages_each;
    struct forward_output *outputs; /* [max_sequences] */
    struct rig_step step[RIG_STEPS];
    uint64_t last; /* number of the step issued last */
};

/* Opens the device, makes the model, fills weights and KV cache. tokens: of the longest sequence.
 * Exits on failure. */
void rig_open(struct rig *rig, const char *shape, const char *device, int max_rows,
              int max_sequences, int tokens);
void rig_close(struct rig *rig);
/* The next step's place, once the device is done with it. */
struct rig_step *rig_next(struct rig *rig);
/* Issues what rig_next gave. */
void rig_issue(struct rig *rig, struct rig_step *step);
/* Waits until everything issued is done. */
void rig_drain(struct rig *rig);

#endif
