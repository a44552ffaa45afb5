/* sequence: one choice of a job in the batch: its KV pages, its state slot, its recent tokens.
 * Thread: engine.                                                                               */
#ifndef DAEMON_SEQUENCE_H
#define DAEMON_SEQUENCE_H

#include "daemon/job.h"
#include "gpu/kv_pages.h"

enum sequence_phase { SEQUENCE_FREE, SEQUENCE_RESERVED, SEQUENCE_PREFILL, SEQUENCE_DECODE };

/* The slot of a sequence in the engine's table is its Engram state slot too. */
struct sequence {
    enum sequence_phase phase;
    struct job *job;
    int choice;
    int32_t context;                 /* tokens in the KV cache */
    int32_t next_token;              /* DECODE: sampled, not yet computed */
    int64_t n_generated;             /* next_token included */
    int32_t recent[SHAPE_MAX_ORDER]; /* compressed ids up to next_token, newest first */
    int32_t *pages;                  /* [n_pages], owned; the first n_shared are choice 0's too */
    int n_pages;
    struct token_count *counts; /* sorted by token; NULL when no penalty is asked for */
    int n_counts, max_counts;
};

/* Takes pages for prompt and completion, all its own: 0, -ENOSPC, -ENOMEM. */
int sequence_reserve(struct sequence *sequence, struct job *job, int choice, int n_shared_pages,
                     struct kv_pages *pages, int page_tokens);
/* Gives pages back; the slot is SEQUENCE_FREE afterwards. */
void sequence_release(struct sequence *sequence, struct kv_pages *pages);
/* Notes a sampled token in recent and counts. compressed may be NULL. */
void sequence_append(struct sequence *sequence, int32_t token, const int32_t *compressed);
/* Makes `child`, reserved with n_shared pages left open, continue where `parent` stands. */
void sequence_fork(struct sequence *child, const struct sequence *parent, int n_shared_pages,
                   struct kv_pages *pages);

#endif
