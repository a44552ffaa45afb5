/* sequence: one choice of a job in the batch: its KV pages, its state slot, its recent tokens.
 *
 *     FREE --reserve--> RESERVED --admitted (choice 0)--> PREFILL --last chunk issued--> DECODE
 *                           +-----------fork (other choices), when that chunk is issued---^
 *     RESERVED, PREFILL, DECODE --ended, no step in flight knows it--> FREE
 *                               --ended, a step in flight knows it---> DRAINING --that step ended--> FREE
 *
 * The engine issues a step before it has seen the tokens of the step before it, so a sequence has
 * two ages: what steps have been issued for (context, phase, n_pending) and what the host has seen
 * (next_token, n_generated, recent, counts).
 *
 * Q1  n_pending is the number of its tokens that steps in flight sample; with n_pending 0 the host
 *     knows next_token, else the device does (TOKEN_OF_SLOT).
 * Q2  recent and counts are of tokens the host has seen. The id of a pending token is put in front
 *     of recent by the resolver, which sees it first (step_buffer.h, awaits).
 * Q3  a slot and its pages belong to nobody else until the newest step that knows it has ended:
 *     what such a step reports for a DRAINING slot is for nobody.
 * Thread: engine.                                                                               */
#ifndef DAEMON_SEQUENCE_H
#define DAEMON_SEQUENCE_H

#include "daemon/job.h"
#include "gpu/kv_pages.h"

enum sequence_phase {
    SEQUENCE_FREE,
    SEQUENCE_RESERVED,
    SEQUENCE_PREFILL,
    SEQUENCE_DECODE,
    SEQUENCE_DRAINING,
};

/* The slot of a sequence in the engine's table is its Engram state slot too. */
struct sequence {
    enum sequence_phase phase;
    struct job *job; /* NULL when DRAINING */
    int choice;
    int32_t context;                 /* tokens in the KV cache once all that is issued has run */
    int32_t next_token;              /* DECODE, nothing pending: sampled, not yet computed */
    int64_t n_generated;             /* tokens the host has seen, next_token included */
    int n_pending;                   /* tokens behind those that steps in flight sample */
    int32_t pending_output;          /* of the newest of these: its index in its step's outputs */
    uint64_t last_step;              /* newest step that knows it; 0: none */
    int32_t recent[SHAPE_MAX_ORDER]; /* compressed ids of tokens seen, newest first */
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
/* The sequence is over, its pages stay until sequence_release. */
void sequence_drain(struct sequence *sequence);
/* Another token may be asked for: there is one to come, and all that its sampling depends on is
 * known. Penalties count tokens the host has seen: with them one token is pending at most, and
 * every step in flight must end first. */
bool sequence_may_decode(const struct sequence *sequence);
/* The last chunk of the prompt has been issued: DECODE, with the prompt's end as recent. */
void sequence_prompt_issued(struct sequence *sequence, const struct engram_shape *engram,
                            const int32_t *compressed);
/* Notes a sampled token in recent and counts. compressed may be NULL. */
void sequence_append(struct sequence *sequence, int32_t token, const int32_t *compressed);
/* Makes `child`, reserved with n_shared pages left open, continue where `parent` stands. */
void sequence_fork(struct sequence *child, const struct sequence *parent, int n_shared_pages,
                   struct kv_pages *pages);

#endif
