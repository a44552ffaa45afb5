/* step_buffer: everything the host says about one step, in memory the device can read: rows,
 * sequences, pages, N-gram ids and mixes, bundle addresses, outputs and results. Made once, filled
 * per step.
 *
 * The engine fills rows and the ids of tokens it has seen, the resolver the ids of tokens that the
 * step before is sampling (awaits), mixes, addresses and `failed` (until the flags are raised), the
 * device results. A buffer is free for the next step when its step is done, every flag has been
 * raised, and so have those of the step that awaits its results. */
#ifndef DAEMON_STEP_BUFFER_H
#define DAEMON_STEP_BUFFER_H

#include "base/err.h"
#include "base/flag.h"
#include "gpu/forward.h"

struct step_buffer {
    uint64_t step; /* id of the step that uses it; 0: none yet */
    int max_rows, max_sequences, max_outputs, max_pages;
    struct forward_step forward;
    /* Shared memory. */
    int32_t *token, *position, *row_seq; /* [max_rows] */
    struct batch_seq *seq;               /* [max_sequences] */
    int32_t *pages;                      /* [max_pages] all sequences' page lists */
    struct sample_result *results;       /* [max_outputs] */
    struct step_report *report;
    struct flag *ready;                                      /* [SHAPE_MAX_ENGRAM_LAYERS] */
    struct bundle_address *address[SHAPE_MAX_ENGRAM_LAYERS]; /* [max_rows, orders] */
    uint64_t *mix[SHAPE_MAX_ENGRAM_LAYERS];                  /* [max_rows, orders] */
    /* Host memory. */
    struct forward_output *outputs; /* [max_outputs] */
    int32_t *ngram_ids;             /* [max_rows, max_order] compressed, newest first */
    /* [max_rows] index into before->results of the row's own token, whose id, the first of its
     * ngram_ids, is the resolver's to fill in; -1: its ids are complete. */
    int32_t *awaits;
    int n_awaits;                             /* rows that await */
    struct step_buffer *before;               /* NULL when no row awaits */
    uint64_t before_step;                     /* of `before` */
    uint64_t give_up_ns;                      /* when its end is not waited for any more */
    uint8_t *skip;                            /* [max_rows] 1: the row takes no part in Engram */
    uint8_t *failed[SHAPE_MAX_ENGRAM_LAYERS]; /* [max_rows] */
    /* Resolver: requests of each layer that are not over; rows left when the others were looked up, -1
     * before that. */
    uint32_t unfinished[SHAPE_MAX_ENGRAM_LAYERS];
    int n_late;
    uint64_t posted_ns;
};

int step_buffer_init(struct step_buffer *buffer, struct device *device,
                     const struct model_shape *shape, const struct forward_limits *limits,
                     int max_pages, struct err *err);
void step_buffer_fini(struct step_buffer *buffer, struct device *device,
                      const struct model_shape *shape);

#endif
