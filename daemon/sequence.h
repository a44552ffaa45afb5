/* sequence: one choice of a job in the batch: its KV pages, its state slot, its recent tokens.
 *
 *     FREE --reserve--> RESERVED --admitted (first choice)--> PREFILL --last chunk issued--> DECODE
 *                           +--------fork (other choices), when the prompt's end is issued---^
 *     RESERVED, PREFILL, DECODE --ended, no step in flight knows it--> FREE
 *                               --ended, a step in flight knows it---> DRAINING --that step ended--> FREE
 *     A sequence that is preempted ends like any other, but what it has generated goes into a
 *     parked_choice, from which another slot is reserved later. That one prefills the prompt in the
 *     chunks of the first time, then what was generated, and decodes on from the last token.
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
 * Q4  room_tokens >= context + what the next step computes: a sequence that wants a row and has no
 *     room for it sits out. Room for all that is to be prefilled is there from the beginning.
 * Thread: engine.                                                                               */
#ifndef DAEMON_SEQUENCE_H
#define DAEMON_SEQUENCE_H

#include "daemon/job.h"
#include "daemon/prefix_cache.h"
#include "gpu/kv_pages.h"

enum sequence_phase {
    SEQUENCE_FREE,
    SEQUENCE_RESERVED,
    SEQUENCE_PREFILL,
    SEQUENCE_DECODE,
    SEQUENCE_DRAINING,
};

/* What outlives a preemption: everything the host has seen of a choice. Owned by its job. */
struct parked_choice {
    int choice;
    int64_t n_generated;
    int32_t *generated;         /* owned */
    struct token_count *counts; /* owned */
    int n_counts, max_counts;
};

/* The slot of a sequence in the engine's table is its Engram state slot too. */
struct sequence {
    enum sequence_phase phase;
    struct job *job; /* NULL when DRAINING */
    int choice;
    int32_t context;     /* tokens in the KV cache once all that is issued has run */
    int32_t prefill_end; /* PREFILL ends here: the prompt, and after a preemption all that had been
                          * generated but the last token */
    int32_t next_token;  /* DECODE, nothing pending: sampled, not yet computed */
    int64_t n_generated; /* tokens the host has seen, next_token included */
    int32_t *generated;  /* [max_tokens of the job] these tokens, owned */
    int n_pending;       /* tokens behind those that steps in flight sample */
    int32_t pending_output;          /* of the newest of these: its index in its step's outputs */
    uint64_t last_step;              /* newest step that knows it; 0: none */
    int32_t recent[SHAPE_MAX_ORDER]; /* compressed ids of tokens seen, newest first */
    int32_t *pages; /* [n_pages] of [max_pages], owned; -1: shared from the fork on */
    int n_pages, max_pages;
    int32_t room_tokens;        /* what n_pages hold */
    struct prefix_ref prefix;   /* n_spans > 0: the last span of the prefix cache it uses */
    int n_spans;                /* its first pages are those of so many spans */
    struct token_count *counts; /* sorted by token; NULL when no penalty is asked for */
    int n_counts, max_counts;
};

/* Takes pages for the prompt and what has been generated, all but the first n_shared_pages its own:
 * 0, -ENOSPC, -ENOMEM. */
int sequence_reserve(struct sequence *sequence, struct job *job, int choice, int n_shared_pages,
                     struct kv_pages *pages, int page_tokens);
/* The same for a choice that was preempted, whose lists it takes. */
int sequence_resume(struct sequence *sequence, struct job *job, struct parked_choice *parked,
                    int n_shared_pages, struct kv_pages *pages, int page_tokens);
/* One page more: 0, -ENOSPC. */
int sequence_grow(struct sequence *sequence, struct kv_pages *pages, int page_tokens);
/* Takes the lists out of a sequence that is about to end. */
void sequence_park(struct sequence *sequence, struct parked_choice *ret_parked);
void parked_choice_fini(struct parked_choice *parked);
/* Gives pages back; the slot is SEQUENCE_FREE afterwards. */
void sequence_release(struct sequence *sequence, struct kv_pages *pages);
/* The sequence is over, its pages stay until sequence_release. */
void sequence_drain(struct sequence *sequence);
/* Another token may be asked for: there is one to come, and all that its sampling depends on is
 * known. Penalties count tokens the host has seen: with them one token is pending at most, and
 * every step in flight must end first. */
bool sequence_wants_row(const struct sequence *sequence);
/* And there is room for it (Q4). */
bool sequence_may_decode(const struct sequence *sequence);
/* Rows of the next chunk of one in PREFILL. Chunks of the prompt end with it: other choices start
 * there, and it is computed in the same chunks whenever it is computed. */
int sequence_chunk_rows(const struct sequence *sequence, int prefill_chunk);
/* Token at a position of the prompt, or behind it of what was generated. */
int32_t sequence_token(const struct sequence *sequence, int64_t position);
/* The last chunk has been issued: DECODE, with the last tokens as recent. */
void sequence_prefilled(struct sequence *sequence, const struct engram_shape *engram,
                        const int32_t *compressed);
/* Notes a sampled token in recent and counts. compressed may be NULL. */
void sequence_append(struct sequence *sequence, int32_t token, const int32_t *compressed);
/* Makes `child`, reserved with n_shared pages left open, continue where `parent` stands, at the end
 * of the prompt: DECODE when it has nothing more to prefill. */
void sequence_fork(struct sequence *child, const struct sequence *parent, int n_shared_pages,
                   struct kv_pages *pages, const struct engram_shape *engram,
                   const int32_t *compressed);

#endif
