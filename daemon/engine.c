#include "daemon/engine.h"

#include <stdlib.h>

#include "base/check.h"
#include "base/clock.h"
#include "daemon/engine_state.h"

enum { EVENT_BLOCKS = 32, INBOX_SPARE = 16 };

/* What a step may take beside the wait for its rows, before the device is taken for lost; when the
 * daemon ends, less. */
static const uint64_t default_step_limit_ns = 60 * 1000 * 1000 * 1000ull,
                      last_step_limit_ns = 10 * 1000 * 1000 * 1000ull;

static void *
engine_main(void *arg)
{
    struct engine *e = arg;
    uint64_t wait_ns = 0;

    thread_enter(THREAD_ENGINE);
    while (!atomic_load(&e->stopping)) {
        engine_take_ended(e);
        engine_take_inbox(e, wait_ns);
        engine_cancel_sweep(e);
        if (atomic_load(&e->fault))
            engine_drop_all(e, atomic_load(&e->fault), "the compute device failed");
        engine_admit_waiting(e);
        wait_ns = 0;
        if (!engine_issue(e)) {
            engine_flush_events(e);
            if (e->n_flight)
                engine_wait_oldest(e);
            else
                wait_ns = engine_look_idle(e);
        }
        if (e->options.heartbeat)
            e->options.heartbeat(e->options.heartbeat_arg);
    }
    while (e->n_flight)
        engine_wait_oldest(e);
    engine_settle(e);
    engine_take_inbox(e, 0);
    engine_drop_all(e, -ESHUTDOWN, "the server is shutting down");
    engine_flush_events(e);
    while (e->prefix && prefix_cache_evict(e->prefix))
        ;
    ASSERT(kv_pages_n_free(e->pages) == kv_pages_n(e->pages));
    atomic_store(&e->stopped, true);
    return NULL;
}

/* A span of the prefix cache ends where a chunk and a page end. */
static int
span_pages(const struct engine *e)
{
    int page = e->batch.page_tokens, chunk = e->batch.prefill_chunk, tokens = chunk;

    while (tokens % page)
        tokens += chunk;
    return tokens / page;
}

static bool
open_prefix_cache(struct engine *e)
{
    const struct forward_limits *limits = &e->options.limits;
    struct prefix_options options = {.pages = e->pages,
                                     .span_tokens = span_pages(e) * limits->page_tokens,
                                     .span_pages = span_pages(e),
                                     .first_state = limits->max_sequences,
                                     .n_states = limits->n_states - limits->max_sequences};

    e->span_pages = options.span_pages;
    e->found_pages = calloc((size_t)limits->kv_pages + 1, sizeof *e->found_pages);
    if (e->options.prefix_cache && e->pages)
        e->prefix = prefix_cache_new(&options);
    return e->found_pages && (e->prefix || !e->options.prefix_cache);
}

int
engine_start(struct engine **ret_engine, const struct engine_options *options, struct err *err)
{
    const struct forward_limits *limits = &options->limits;
    struct engine *e = calloc(1, sizeof *e);

    if (e == NULL)
        return err_set(err, ENOMEM, "no memory for the engine");
    e->options = *options;
    e->queue_tail = &e->queue_head;
    e->batch = (struct batch_options){.shape = options->shape,
                                      .compressed = options->compressed,
                                      .page_tokens = limits->page_tokens,
                                      .prefill_chunk = options->prefill_chunk};
    uint64_t step_ns = options->step_timeout_ns ? options->step_timeout_ns : default_step_limit_ns;
    uint64_t last_ns = step_ns < last_step_limit_ns ? step_ns : last_step_limit_ns;
    uint64_t rows_ns = (uint64_t)options->shape->engram.n_layers * options->row_timeout_ns;

    e->step_limit_ns = step_ns + rows_ns;
    e->last_limit_ns = last_ns + rows_ns;
    e->inbox = mailbox_new((unsigned)(limits->max_sequences + options->max_queue + INBOX_SPARE));
    e->outbox = mailbox_new(EVENT_BLOCKS);
    e->free_blocks = mailbox_new(EVENT_BLOCKS);
    e->blocks = calloc(EVENT_BLOCKS, sizeof *e->blocks);
    e->pages = kv_pages_new(limits->kv_pages);
    e->sequences = calloc((size_t)limits->max_sequences, sizeof *e->sequences);
    e->order = calloc((size_t)limits->max_sequences, sizeof *e->order);
    bool ok = open_prefix_cache(e);

    for (int i = 0; i < STEP_BUFFERS; i++)
        ok &= (e->uses[i] = calloc((size_t)limits->max_outputs, sizeof *e->uses[i])) != NULL;
    if (!e->inbox || !e->outbox || !e->free_blocks || !e->blocks || !e->pages || !e->sequences ||
        !e->order || !ok) {
        engine_free(e);
        return err_set(err, ENOMEM, "no memory for the engine");
    }
    for (int i = 0; i < EVENT_BLOCKS; i++)
        (void)mailbox_send(e->free_blocks, &e->blocks[i]);
    for (int i = 0; i < STEP_BUFFERS; i++) {
        /* Page lists of a step name a page once per sequence that has it. */
        int max_pages = limits->max_step_pages
                            ? limits->max_step_pages
                            : limits->max_sequences * options->max_sequence_pages;
        int status = step_buffer_init(&e->buffer[i], options->device, options->shape, limits,
                                      max_pages, err);

        if (status < 0) {
            engine_free(e);
            return status;
        }
    }
    int status = pthread_create(&e->thread, NULL, engine_main, e);

    if (status != 0) {
        engine_free(e);
        return err_errno(err, status, "cannot start the engine thread");
    }
    e->started = true;
    *ret_engine = e;
    return 0;
}

void
engine_hurry(struct engine *e)
{
    atomic_store_explicit(&e->hurry, true, memory_order_relaxed);
}

void
engine_stop(struct engine *e)
{
    if (e == NULL || !e->started)
        return;
    engine_hurry(e);
    atomic_store(&e->stopping, true);
    mailbox_wake(e->inbox);
    while (!atomic_load(&e->stopped)) {
        struct job_block *block = mailbox_receive(e->outbox, 10 * 1000 * 1000);

        if (block)
            engine_recycle(e, block);
    }
    pthread_join(e->thread, NULL);
    e->started = false;
}

struct engine *
engine_free(struct engine *e)
{
    if (e == NULL)
        return NULL;
    engine_stop(e);
    for (int i = 0; i < STEP_BUFFERS; i++) {
        if (e->buffer[i].max_rows)
            step_buffer_fini(&e->buffer[i], e->options.device, e->options.shape);
        free(e->uses[i]);
    }
    mailbox_free(e->inbox);
    mailbox_free(e->outbox);
    mailbox_free(e->free_blocks);
    prefix_cache_free(e->prefix);
    kv_pages_free(e->pages);
    free(e->found_pages);
    free(e->blocks);
    free(e->sequences);
    free(e->order);
    free(e);
    return NULL;
}

int
engine_submit(struct engine *e, struct job *job)
{
    int limit = e->options.limits.max_sequences + e->options.max_queue;
    int inside = atomic_fetch_add_explicit(&e->inside, job->n_choices, memory_order_relaxed);

    if (inside + job->n_choices > limit || mailbox_send(e->inbox, job) < 0) {
        atomic_fetch_sub_explicit(&e->inside, job->n_choices, memory_order_relaxed);
        return -EAGAIN;
    }
    return 0;
}

void
engine_wake(struct engine *e)
{
    mailbox_wake(e->inbox);
}

int
engine_fd(struct engine *e)
{
    return mailbox_fd(e->outbox);
}

struct job_block *
engine_collect(struct engine *e)
{
    return mailbox_receive(e->outbox, 0);
}

void
engine_recycle(struct engine *e, struct job_block *block)
{
    (void)mailbox_send(e->free_blocks, block);
}

int64_t
engine_job_pages(int page_tokens, int64_t n_prompt, int64_t max_tokens, int64_t n_choices)
{
    int64_t all = (n_prompt + max_tokens + page_tokens - 1) / page_tokens;
    int64_t shared = n_choices > 1 ? n_prompt / page_tokens : 0;

    return all + (n_choices - 1) * (all - shared);
}

void
engine_load(const struct engine *e, struct engine_load *ret_load)
{
    int total = kv_pages_n(e->pages);

    ret_load->running = atomic_load_explicit(&e->running, memory_order_relaxed);
    ret_load->waiting = atomic_load_explicit(&e->waiting, memory_order_relaxed);
    ret_load->fault = atomic_load_explicit(&e->fault, memory_order_relaxed);
    ret_load->kv_usage =
        total ? (double)atomic_load_explicit(&e->pages_used, memory_order_relaxed) / total : 0;
}
