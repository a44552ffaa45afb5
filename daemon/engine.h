/* engine: continuous batching with chunked prefill over a paged KV cache.
 *
 * On a device that runs behind the host the next step is issued before the tokens of the one before
 * it are known: the device remembers them (TOKEN_OF_SLOT), the resolver hashes them as they appear.
 * Tokens do not depend on it. Only sequences with penalties, whose counts are the host's, sit out
 * every step that is issued before their last token is known. engine_state.h has the rules.
 *
 * A sequence's prefill chunks are cut at multiples of `prefill_chunk` from its own start, so what
 * is computed for it never depends on what else is in the batch. Pages for the completion are taken
 * as they are needed; when none is left the youngest job is preempted and computed again later. What
 * it had generated is prefilled then, by the kernels for prompts and not by those for single rows,
 * which may round otherwise: tokens already told never change, those to come may differ from what
 * they would have been, in the last bits of their logits. Pages of prompts are kept for prompts that
 * begin alike (prefix_cache.h): what is computed is the same with and without. Threads:
 * engine_submit, engine_wake and engine_collect belong to the loop; the rest runs on its own.  */
#ifndef DAEMON_ENGINE_H
#define DAEMON_ENGINE_H

#include "base/mailbox.h"
#include "base/metric.h"
#include "daemon/job.h"
#include "daemon/resolver.h"
#include "gpu/forward.h"
#include "gpu/kv_pages.h"

/* Steps begun whose rows may still be on their way: those the device works on, and those that timed
 * out. */
enum { ENGINE_STEPS_IN_FLIGHT = 3 };

struct engine;

struct engine_options {
    const struct model_shape *shape;
    struct device *device;
    struct forward *forward;
    struct forward_limits limits;
    struct resolver *resolver; /* NULL without Engram layers */
    const int32_t *compressed; /* [vocab] compressed ids; NULL without Engram layers */
    bool prefix_cache; /* of state slots beyond max_sequences, if the model has states at all */
    int prefill_chunk; /* rows of prompts in one step, and of one prompt's chunk */
    int max_queue;     /* choices that may wait beyond those in the batch */
    int max_sequence_pages; /* KV pages of the longest sequence */
    uint64_t row_timeout_ns;
    uint64_t step_timeout_ns; /* a step that takes longer, waits for rows aside, is never going to
                               * end; 0: a minute; nor is a probe of the idle device */
    struct metrics *metrics;
    void (*heartbeat)(
        void *arg); /* called by the engine thread after each iteration, idle ones included */
    void *heartbeat_arg;
    uint64_t heartbeat_ns; /* longest time between two calls when idle; 0: no limit */
};

int engine_start(struct engine **ret_engine, const struct engine_options *options, struct err *err);
/* The daemon ends: from now on a step that does not end is given up after ten seconds, waits for rows
 * aside. Any thread. */
void engine_hurry(struct engine *engine);
/* Cancels what runs, stops the thread. The step buffers stay: the resolver may still write to one
 * that was abandoned. Afterwards engine_load tells whether the device may be touched: without a fault
 * it has finished all there is. */
void engine_stop(struct engine *engine);
/* After resolver_stop. Accepts NULL, returns NULL. */
struct engine *engine_free(struct engine *engine);

/* 0, or -EAGAIN: the queue is full. Takes the job. */
int engine_submit(struct engine *engine, struct job *job);
/* After setting job->cancelled or job->stop. */
void engine_wake(struct engine *engine);
/* Readable when engine_collect has something. */
int engine_fd(struct engine *engine);
/* Next block of events, or NULL; give it back with engine_recycle. */
struct job_block *engine_collect(struct engine *engine);
void engine_recycle(struct engine *engine, struct job_block *block);

/* KV pages a job needs for all its choices. */
int64_t engine_job_pages(int page_tokens, int64_t n_prompt, int64_t max_tokens, int64_t n_choices);

struct engine_load { /* any thread, relaxed */
    int running, waiting;
    double kv_usage;
    int fault; /* -errno of a device error that ended the engine's work, else 0 */
};
void engine_load(const struct engine *engine, struct engine_load *ret_load);

#endif
