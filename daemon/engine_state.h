/* engine_state: what engine.c, engine_jobs.c and engine_step.c share. Private to the engine.
 *
 * A turn of the engine's thread:
 *
 *     take the steps that have ended -> inbox -> cancelled -> admit -> compose and issue one step
 *     nothing to issue: wait for the oldest step in flight, or look at the device and wait for a
 *     message
 *
 *     step buffer: FREE --issued--> IN_FLIGHT --ended--> FREE
 *                                     --timed out--> ABANDONED --rows landed--> FREE
 *
 * E1  Steps end in the order of their issue, and are taken in that order.
 * E2  At most ENGINE_STEPS_AHEAD steps are in flight: when one is composed, a sequence waits for one
 *     token at most, and that one is of the newest step in flight.
 * E3  A step that timed out changed nothing that can be relied on: every job with a row in it ends.
 *     Rows such a job has in the step behind it, issued already, are computed from nothing and are
 *     for nobody (Q3). A job that first appears in the step behind took nothing from the step that
 *     timed out, and goes on.
 * E4  After an error of the device nothing is in flight any more: every job ends, no step is issued,
 *     the loop is woken. Without one the device has finished everything when the thread has ended.
 * E5  Jobs enter in the order they came, and the batch and behind it the queue are in that order: a
 *     job enters when its prompt fits, with a page to spare for every sequence; the one that is
 *     preempted is the youngest of the batch and goes to the head of the queue.
 * E6  Pages for decoding are taken step by step, the oldest job first. When none is free, the
 *     youngest job is preempted, unless sequences drain, whose pages are waited for: what waits for
 *     a page sits out. So the oldest job never waits for more than the steps in flight, alone it
 *     has all the pages, and admit refuses a job that would need more: it always gets on, no job
 *     waits for ever.
 * E7  A preempted job's tokens, draws and counts are those the host has seen; what steps in flight
 *     sample for it is for nobody (Q3) and sampled again with the same draw. Nothing is told twice,
 *     and the prompt's scores are not written again once a token has been told (J3).
 * E8  The prefix cache is told of a span when the step that computes it is issued, gives it to others
 *     when that step has ended, and forgets it when the step, or a row of it, failed (P4).
 * On a device that has run a step when forward_run returns, the step is taken before the next one is
 * composed: nothing is ever pending, by the same code. */
#ifndef DAEMON_ENGINE_STATE_H
#define DAEMON_ENGINE_STATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "daemon/batch.h"
#include "daemon/engine.h"

/* A step that timed out keeps its buffer until its rows have landed; the others work on meanwhile.
 */
enum { STEP_BUFFERS = ENGINE_STEPS_IN_FLIGHT, ENGINE_STEPS_AHEAD = 2 };

enum buffer_state { BUFFER_FREE, BUFFER_IN_FLIGHT, BUFFER_ABANDONED };

struct engine {
    /* Set before the thread starts. */
    struct engine_options options;
    struct mailbox *inbox, *outbox, *free_blocks;
    struct job_block *blocks; /* [EVENT_BLOCKS] */
    pthread_t thread;
    bool started;
    struct batch_options batch;
    uint64_t step_limit_ns; /* longest time the oldest step may take */
    uint64_t last_limit_ns; /* the same once `hurry` is set */

    /* Loop adds, engine takes away. */
    _Atomic int inside;    /* choices submitted and not ended */
    _Atomic bool stopping; /* loop to engine */
    _Atomic bool hurry;    /* loop to engine; pairs with engine_step.c, answers_late */
    _Atomic bool stopped;  /* engine to loop */

    /* Engine. */
    struct kv_pages *pages;
    struct prefix_cache *prefix; /* NULL: there is none */
    int span_pages;              /* of one of its entries */
    int32_t *found_pages;        /* [kv_pages] */
    struct sequence *sequences;  /* [max_sequences] */
    int *order; /* [n_order] slots in use, oldest first, without those that drain */
    int n_order, n_draining;
    struct job *queue_head, **queue_tail;
    struct step_buffer buffer[STEP_BUFFERS];
    enum buffer_state buffer_state[STEP_BUFFERS];
    struct batch_use *uses[STEP_BUFFERS];           /* [max_outputs] of each */
    struct step_buffer *flight[ENGINE_STEPS_AHEAD]; /* [n_flight] oldest first */
    int n_flight;
    uint64_t last_step, done_step; /* newest issued; newest ended */
    uint64_t oldest_since_ns;      /* when flight[0] became the oldest */
    uint64_t starved_since_ns;     /* 0: there is a buffer, or nothing to compute */
    uint64_t looked_ns;            /* when the idle device was last looked at */
    uint64_t unanswered_ns;        /* since when it owes the end of a probe; 0: it does not */
    struct job_block *block;       /* being filled */

    /* Engine writes, anyone reads. */
    _Atomic int running, waiting, fault;
    _Atomic int pages_used;
};

/* engine_jobs.c: which jobs are in the batch, and what the loop is told of them. */

/* What has been put so far goes to the loop. */
void engine_flush_events(struct engine *e);
struct job_event *engine_put_event(struct engine *e, struct job *job, enum job_event_kind kind);
/* Ends a job whatever its sequences do. */
void engine_drop_job(struct engine *e, struct job *job, int error, const char *text);
/* Ends those in the batch and those in the queue. */
void engine_drop_all(struct engine *e, int error, const char *text);
/* Ends one choice, and its job with the last one. */
void engine_end_choice(struct engine *e, int slot);
/* Frees what drained until the last step that ended. */
void engine_release_drained(struct engine *e);
/* Full pages of the prompt are shared by all choices; the rest each choice has for itself. */
int engine_shared_pages(const struct engine *e, const struct job *job);
/* Waits for a message at most timeout_ns, then queues all jobs there are. */
void engine_take_inbox(struct engine *e, uint64_t timeout_ns);
/* Takes a job out of the batch and puts it first in the queue, with what it has generated. */
void engine_preempt(struct engine *e, struct job *job);
/* Takes what the loop asks for: jobs cancelled, choices stopped. */
void engine_cancel_sweep(struct engine *e);
void engine_admit_waiting(struct engine *e);

/* engine_pages.c: who has the KV pages. */

/* True: n pages are free now. Evicts from the prefix cache what it must, or nothing at all. */
bool engine_make_room(struct engine *e, int n);
/* Pages in use, beside those that only the prefix cache has. */
int engine_used_pages(const struct engine *e);
/* Spans of the prompt that are in the prefix cache, but for its last token. Their pages, with one
 * more owner, are in found_pages, for the sequence to use, or to be given back. */
int engine_find_prefix(struct engine *e, struct job *job, struct prefix_ref *ret_ref);
void engine_use_prefix(struct engine *e, struct sequence *s, struct prefix_ref ref, int n_spans);
void engine_give_back_prefix(struct engine *e, int n_spans);
/* The step just issued has computed the prompt up to s->context: keeps the span that ends there. */
void engine_keep_prefix(struct engine *e, struct sequence *s);
/* A page for each sequence whose next row needs one, oldest first, at the cost of the youngest. */
void engine_give_pages(struct engine *e);

/* engine_step.c: steps on their way through the device. */

/* Composes and issues a step: true; false when there is nothing to compute, or no buffer. */
bool engine_issue(struct engine *e);
/* Takes every step that has ended. */
void engine_take_ended(struct engine *e);
/* Waits until the oldest step in flight has ended, and takes it. Bounded: a device that does not
 * answer is a device that failed. */
void engine_wait_oldest(struct engine *e);
/* Nothing is in flight: looks at the device when it is time to, and at abandoned buffers. Returns how
 * long a message may be waited for. */
uint64_t engine_look_idle(struct engine *e);
/* Waits until the device has finished all there is. Bounded, likewise. */
void engine_settle(struct engine *e);

#endif
