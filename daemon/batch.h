/* batch: what the next step computes. A pure function of the sequences: no clock, no device.
 * Thread: engine.                                                                           */
#ifndef DAEMON_BATCH_H
#define DAEMON_BATCH_H

#include "daemon/sequence.h"
#include "daemon/step_buffer.h"

/* What a row of outputs is for. */
struct batch_use {
    int slot;         /* of the sequence it is for */
    int choice;       /* sampled for this choice of the job; -1: a prompt score */
    int prompt_index; /* score of prompt[prompt_index] */
};

struct batch_options {
    const struct model_shape *shape;
    const int32_t *compressed; /* [vocab], NULL without Engram */
    int page_tokens, prefill_chunk;
};

/* Fills the buffer: a row for every sequence that may decode (sequence.h; its token is TOKEN_OF_SLOT
 * while one is pending, and the row awaits it), then chunks of sequences in PREFILL in the
 * order given by `order` (slots, oldest first), at most prefill_chunk rows of them. Returns the
 * number of rows. uses is [max_outputs]. The last chunk of a prompt has one sampled output per
 * choice of its job, unless it is computed again after a preemption. */
int batch_compose(struct step_buffer *buffer, const struct sequence *sequences, const int *order,
                  int n_order, const struct batch_options *options, struct batch_use *uses);

#endif
