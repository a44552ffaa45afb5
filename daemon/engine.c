#include "daemon/engine.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "daemon/batch.h"

enum { EVENT_BLOCKS = 32, INBOX_SPARE = 16 };

/* A step that timed out keeps its buffer until its rows have landed; the others work on meanwhile.
 */
enum { STEP_BUFFERS = ENGINE_STEPS_IN_FLIGHT };

enum buffer_state { BUFFER_FREE, BUFFER_ABANDONED };

struct engine {
    /* Set before the thread starts. */
    struct engine_options options;
    struct mailbox *inbox, *outbox, *free_blocks;
    struct job_block *blocks; /* [EVENT_BLOCKS] */
    pthread_t thread;
    bool started;
    struct batch_options batch;

    /* Loop adds, engine takes away. */
    _Atomic int inside;    /* choices submitted and not ended */
    _Atomic bool stopping; /* loop to engine */
    _Atomic bool stopped;  /* engine to loop */

    /* Engine. */
    struct kv_pages *pages;
    struct sequence *sequences; /* [max_sequences] */
    int *order;                 /* [n_order] slots in use, oldest first */
    int n_order;
    struct job *queue_head, **queue_tail;
    struct step_buffer buffer[STEP_BUFFERS];
    enum buffer_state buffer_state[STEP_BUFFERS];
    struct batch_use *uses; /* [max_outputs] */
    uint64_t last_step;
    struct job_block *block; /* being filled */

    /* Engine writes, anyone reads. */
    _Atomic int running, waiting, fault;
    _Atomic int pages_used;
};

static struct job_block *
next_block(struct engine *e)
{
    for (;;) {
        struct job_block *block = mailbox_receive(e->free_blocks, 100 * 1000 * 1000);

        if (block) {
            block->n_events = 0;
            return block;
        }
        /* The loop is behind; it never waits for us, so it will come. Shutting down counts too:
         * then engine_free recycles. */
        if (e->options.heartbeat)
            e->options.heartbeat(e->options.heartbeat_arg);
    }
}

static void
flush_events(struct engine *e)
{
    if (e->block == NULL || e->block->n_events == 0)
        return;
    int status = mailbox_send(e->outbox, e->block);

    ASSERT(status == 0); /* the outbox has room for every block there is */
    e->block = NULL;
}

static struct job_event *
put_event(struct engine *e, struct job *job, enum job_event_kind kind)
{
    if (e->block && e->block->n_events == JOB_BLOCK_EVENTS)
        flush_events(e);
    if (e->block == NULL)
        e->block = next_block(e);

    struct job_event *event = &e->block->event[e->block->n_events++];

    *event = (struct job_event){.job = job, .kind = kind};
    return event;
}

/* The job's last event. Its sequences must be released. */
static void
end_job(struct engine *e, struct job *job, int error, const char *text)
{
    struct job_event *event = put_event(e, job, JOB_ENDED);

    event->error = error;
    snprintf(event->error_text, sizeof event->error_text, "%s", text);
    atomic_fetch_sub_explicit(&e->inside, job->n_choices, memory_order_relaxed);
}

static void
drop_slot(struct engine *e, int slot)
{
    int at = 0;

    sequence_release(&e->sequences[slot], e->pages);
    while (e->order[at] != slot)
        at++;
    memmove(e->order + at, e->order + at + 1, (size_t)(--e->n_order - at) * sizeof *e->order);
}

static void
drop_job(struct engine *e, struct job *job, int error, const char *text)
{
    for (int i = e->n_order - 1; i >= 0; i--)
        if (e->sequences[e->order[i]].job == job)
            drop_slot(e, e->order[i]);
    end_job(e, job, error, text);
}

static void
drop_all(struct engine *e, int error, const char *text)
{
    while (e->n_order)
        drop_job(e, e->sequences[e->order[0]].job, error, text);
    while (e->queue_head) {
        struct job *job = e->queue_head;

        e->queue_head = job->next;
        end_job(e, job, error, text);
    }
    e->queue_tail = &e->queue_head;
}

static void
end_choice(struct engine *e, int slot)
{
    struct job *job = e->sequences[slot].job;

    drop_slot(e, slot);
    if (--job->n_running == 0)
        end_job(e, job, 0, "");
}

/* Takes what the loop asks for: jobs cancelled, choices stopped. Pairs with job->cancelled and
 * stop. */
static void
cancel_sweep(struct engine *e)
{
    for (int i = e->n_order - 1; i >= 0; i--) {
        if (i >= e->n_order)
            continue; /* several slots of one job went at once */
        struct sequence *s = &e->sequences[e->order[i]];

        if (atomic_load_explicit(&s->job->cancelled, memory_order_acquire))
            drop_job(e, s->job, -ECANCELED, "cancelled");
        else if (s->phase == SEQUENCE_DECODE &&
                 atomic_load_explicit(&s->job->stop[s->choice], memory_order_acquire))
            end_choice(e, e->order[i]);
    }
    for (struct job **at = &e->queue_head; *at;) {
        struct job *job = *at;

        if (atomic_load_explicit(&job->cancelled, memory_order_acquire)) {
            *at = job->next;
            end_job(e, job, -ECANCELED, "cancelled");
        } else {
            at = &job->next;
        }
    }
    e->queue_tail = &e->queue_head;
    while (*e->queue_tail)
        e->queue_tail = &(*e->queue_tail)->next;
}

static int
free_slot(const struct engine *e)
{
    int slot = 0;

    while (e->sequences[slot].phase != SEQUENCE_FREE)
        slot++;
    return slot;
}

/* Full pages of the prompt are shared by all choices; the rest each choice has for itself. */
static int
shared_pages(const struct engine *e, const struct job *job)
{
    return job->n_choices > 1 ? job->n_prompt / e->batch.page_tokens : 0;
}

/* Reserves slots and pages for all choices of a job, or nothing. */
static int
admit(struct engine *e, struct job *job)
{
    int old_n_order = e->n_order;

    if (e->n_order + job->n_choices > e->options.limits.max_sequences)
        return -ENOSPC;
    for (int choice = 0; choice < job->n_choices; choice++) {
        int slot = free_slot(e);
        int status =
            sequence_reserve(&e->sequences[slot], job, choice, choice ? shared_pages(e, job) : 0,
                             e->pages, e->batch.page_tokens);

        if (status < 0) {
            while (e->n_order > old_n_order)
                drop_slot(e, e->order[e->n_order - 1]);
            return status;
        }
        e->order[e->n_order++] = slot;
    }
    e->sequences[e->order[old_n_order]].phase = SEQUENCE_PREFILL;
    job->n_running = job->n_choices;
    return 0;
}

static void
admit_waiting(struct engine *e)
{
    while (e->queue_head) {
        struct job *job = e->queue_head;
        int status = admit(e, job);

        if (status == -ENOSPC && e->n_order > 0)
            break; /* running sequences will make room */
        e->queue_head = job->next;
        if (e->queue_head == NULL)
            e->queue_tail = &e->queue_head;
        if (status < 0)
            end_job(e, job, status, "no memory for the request");
    }
    int waiting = 0;

    for (const struct job *job = e->queue_head; job; job = job->next)
        waiting += job->n_choices;
    atomic_store_explicit(&e->waiting, waiting, memory_order_relaxed);
    atomic_store_explicit(&e->running, e->n_order, memory_order_relaxed);
    atomic_store_explicit(&e->pages_used, kv_pages_n(e->pages) - kv_pages_n_free(e->pages),
                          memory_order_relaxed);
}

/* After the last chunk of a prompt: the other choices start from copies of the first one's state.
 */
static void
fork_choices(struct engine *e, struct sequence *parent)
{
    struct job *job = parent->job;
    int shared = shared_pages(e, job), parent_slot = (int)(parent - e->sequences);

    for (int slot = 0; slot < e->options.limits.max_sequences; slot++) {
        struct sequence *child = &e->sequences[slot];

        if (child->job != job || child->phase != SEQUENCE_RESERVED)
            continue;
        sequence_fork(child, parent, shared, e->pages);
        (void)forward_copy_state(e->options.forward, slot, parent_slot);
        if (job->n_prompt % e->batch.page_tokens)
            (void)forward_copy_page(e->options.forward, child->pages[shared],
                                    parent->pages[shared]);
    }
}

static bool
is_stop_token(const struct job *job, int32_t token)
{
    for (int i = 0; i < job->n_stop_ids; i++)
        if (job->stop_ids[i] == token)
            return true;
    return false;
}

static void
observe_token(struct engine *e, struct job *job, bool first)
{
    uint64_t now = clock_now_ns();

    if (first)
        metrics_observe(e->options.metrics, METRIC_ID_time_to_first_token_seconds, 0,
                        (double)(now - job->received_ns) * 1e-9);
    else
        metrics_observe(e->options.metrics, METRIC_ID_inter_token_latency_seconds, 0,
                        (double)(now - job->last_token_ns) * 1e-9);
    job->last_token_ns = now;
}

/* One sampled token of the choice in `slot`: told to the loop, and the end of the choice where it
 * is one. */
static void
take_token(struct engine *e, int slot, const struct sample_result *result)
{
    struct sequence *s = &e->sequences[slot];
    struct job *job = s->job;

    if (result->token < 0) {
        drop_job(e, job, -EDOM, "the model gave no finite logits, or every token is banned");
        return;
    }
    sequence_append(s, result->token, e->options.compressed);
    metrics_add(e->options.metrics, METRIC_ID_generation_tokens_total, 0, 1);
    if (s->choice == 0)
        observe_token(e, job, s->n_generated == 1);

    struct job_event *event = put_event(e, job, JOB_TOKEN);

    event->choice = s->choice;
    event->result = *result;
    event->stop_token = s->n_generated > job->min_tokens && is_stop_token(job, result->token);
    event->finish = event->stop_token                   ? JOB_STOP
                    : s->n_generated == job->max_tokens ? JOB_LENGTH
                                                        : JOB_RUNNING;
    if (event->finish != JOB_RUNNING)
        end_choice(e, slot);
}

static int
slot_of_choice(const struct engine *e, const struct job *job, int choice)
{
    for (int slot = 0; slot < e->options.limits.max_sequences; slot++)
        if (e->sequences[slot].job == job && e->sequences[slot].choice == choice)
            return slot;
    return -1;
}

/* Jobs one of whose rows could not be read end here, and only those. */
static void
drop_failed_rows(struct engine *e, const struct step_buffer *b)
{
    const struct engram_shape *engram = &e->options.shape->engram;
    const struct batch *batch = &b->forward.batch;

    for (int i = batch->n_seqs - 1; i >= 0; i--) {
        const struct batch_seq *seq = &b->seq[i];
        struct job *job = e->sequences[seq->state_slot].job;

        for (int t = 0; t < engram->n_layers && job && !seq->engram_off; t++)
            if (memchr(b->failed[t] + seq->first_row, 1, (size_t)seq->n_rows)) {
                drop_job(e, job, -EIO, "rows of the N-gram tables could not be read from the disk");
                break;
            }
    }
}

/* What the step did to its sequences. Slots freed along the way are empty by then: each output
 * looks its sequence up again. */
static void
take_results(struct engine *e, struct step_buffer *b)
{
    const struct batch *batch = &b->forward.batch;

    drop_failed_rows(e, b);
    for (int i = 0; i < batch->n_seqs; i++) {
        struct sequence *s = &e->sequences[b->seq[i].state_slot];

        if (s->job == NULL)
            continue;
        s->context += b->seq[i].n_rows;
        if (s->phase != SEQUENCE_PREFILL)
            continue;
        metrics_add(e->options.metrics, METRIC_ID_prompt_tokens_total, 0,
                    (uint64_t)b->seq[i].n_rows);
        if (s->context < s->job->n_prompt)
            continue;
        s->phase = SEQUENCE_DECODE;
        for (int k = 0; k < e->options.shape->engram.max_order && e->options.compressed; k++)
            s->recent[k] = s->job->n_prompt > k
                               ? e->options.compressed[s->job->prompt[s->job->n_prompt - 1 - k]]
                               : e->options.shape->engram.pad_id;
        fork_choices(e, s);
    }
    for (int i = 0; i < b->forward.n_outputs; i++) {
        struct batch_use *use = &e->uses[i];
        struct job *job = use->job;
        int slot = slot_of_choice(e, job, use->choice < 0 ? 0 : use->choice);

        if (slot < 0)
            continue;
        if (use->choice < 0)
            job->prompt_scores[use->prompt_index] = b->results[i];
        else
            take_token(e, slot, &b->results[i]);
    }
    /* A prompt that was only to be scored. */
    for (int i = 0; i < batch->n_seqs; i++) {
        struct sequence *s = &e->sequences[b->seq[i].state_slot];

        if (s->job && s->phase == SEQUENCE_DECODE && s->job->max_tokens == 0)
            drop_job(e, s->job, 0, "");
    }
}

static bool
rows_landed(const struct engine *e, struct step_buffer *b)
{
    for (int t = 0; t < e->options.shape->engram.n_layers; t++)
        if (flag_read(&b->ready[t]) < b->step)
            return false;
    return true;
}

static struct step_buffer *
free_buffer(struct engine *e)
{
    for (int i = 0; i < STEP_BUFFERS; i++) {
        if (e->buffer_state[i] == BUFFER_ABANDONED && rows_landed(e, &e->buffer[i])) {
            resolver_step_done(e->options.resolver, e->buffer[i].step, false);
            e->buffer_state[i] = BUFFER_FREE;
        }
        if (e->buffer_state[i] == BUFFER_FREE)
            return &e->buffer[i];
    }
    return NULL;
}

/* Ends every job with a sequence in the step. */
static void
fail_step(struct engine *e, struct step_buffer *b, int error, const char *text)
{
    for (int i = 0; i < b->forward.batch.n_seqs; i++) {
        struct job *job = e->sequences[b->seq[i].state_slot].job;

        if (job)
            drop_job(e, job, error, text);
    }
}

static void
run_step(struct engine *e, struct step_buffer *b)
{
    int n_tables = e->options.shape->engram.n_layers;
    struct err err = ERR_INIT;

    b->step = ++e->last_step;
    b->posted_ns = clock_now_ns();
    b->forward.step = b->step;
    b->forward.report = b->report;
    b->forward.wait_timeout_ns = e->options.row_timeout_ns;
    for (int t = 0; t < n_tables; t++)
        b->forward.engram[t] = (struct forward_engram){.address = b->address[t],
                                                       .ready = &b->ready[t],
                                                       .ready_value = b->step,
                                                       .mix = b->mix[t]};
    if (n_tables)
        resolver_post_step(e->options.resolver, b);
    flush_events(e); /* the loop works on the last step's tokens while this one runs */

    int status = forward_run(e->options.forward, &b->forward, &err);

    if (status == 0)
        status = forward_wait(e->options.forward, &b->forward, &err);
    metrics_add(e->options.metrics, METRIC_ID_engine_steps_total, 0, 1);
    for (int t = 0; t < n_tables; t++)
        metrics_add(e->options.metrics, METRIC_ID_stall_nanoseconds_total, t,
                    b->forward.engram[t].waited_ns);
    if (status == -ETIMEDOUT) {
        e->buffer_state[b - e->buffer] = BUFFER_ABANDONED;
        fail_step(e, b, -ETIMEDOUT, "rows of the N-gram tables did not arrive in time");
        return;
    }
    if (status < 0) {
        atomic_store(&e->fault, status);
        drop_all(e, status, "the compute device failed");
        return;
    }
    if (n_tables)
        resolver_step_done(e->options.resolver, b->step, true);
    take_results(e, b);
}

/* Waits for a message at most timeout_ns, then takes all there are. */
static void
take_inbox(struct engine *e, uint64_t timeout_ns)
{
    struct job *job = mailbox_receive(e->inbox, timeout_ns);

    for (; job; job = mailbox_receive(e->inbox, 0)) {
        job->next = NULL;
        *e->queue_tail = job;
        e->queue_tail = &job->next;
    }
}

static void *
engine_main(void *arg)
{
    struct engine *e = arg;
    uint64_t idle_ns = e->options.heartbeat_ns ? e->options.heartbeat_ns : UINT64_MAX;
    uint64_t wait_ns = 0;

    thread_enter(THREAD_ENGINE);
    while (!atomic_load(&e->stopping)) {
        take_inbox(e, wait_ns);
        cancel_sweep(e);
        if (atomic_load(&e->fault))
            drop_all(e, atomic_load(&e->fault), "the compute device failed");
        admit_waiting(e);

        struct step_buffer *b = e->n_order ? free_buffer(e) : NULL;

        if (b && batch_compose(b, e->sequences, e->order, e->n_order, &e->batch, e->uses) > 0) {
            run_step(e, b);
            wait_ns = 0;
        } else {
            flush_events(e);
            /* With sequences but no buffer, the rows of abandoned steps are still on their way. */
            wait_ns = e->n_order ? 1000 * 1000 : idle_ns;
        }
        if (e->options.heartbeat)
            e->options.heartbeat(e->options.heartbeat_arg);
    }
    take_inbox(e, 0);
    drop_all(e, -ESHUTDOWN, "the server is shutting down");
    flush_events(e);
    atomic_store(&e->stopped, true);
    return NULL;
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
    e->inbox = mailbox_new((unsigned)(limits->max_sequences + options->max_queue + INBOX_SPARE));
    e->outbox = mailbox_new(EVENT_BLOCKS);
    e->free_blocks = mailbox_new(EVENT_BLOCKS);
    e->blocks = calloc(EVENT_BLOCKS, sizeof *e->blocks);
    e->pages = kv_pages_new(limits->kv_pages);
    e->sequences = calloc((size_t)limits->max_sequences, sizeof *e->sequences);
    e->order = calloc((size_t)limits->max_sequences, sizeof *e->order);
    e->uses = calloc((size_t)limits->max_outputs, sizeof *e->uses);
    if (!e->inbox || !e->outbox || !e->free_blocks || !e->blocks || !e->pages || !e->sequences ||
        !e->order || !e->uses) {
        engine_free(e);
        return err_set(err, ENOMEM, "no memory for the engine");
    }
    for (int i = 0; i < EVENT_BLOCKS; i++)
        (void)mailbox_send(e->free_blocks, &e->blocks[i]);
    for (int i = 0; i < STEP_BUFFERS; i++) {
        /* Page lists of a step name a page once per sequence that has it. */
        int max_pages = limits->max_sequences * options->max_sequence_pages;
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
engine_stop(struct engine *e)
{
    if (e == NULL || !e->started)
        return;
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
    for (int i = 0; i < STEP_BUFFERS; i++)
        if (e->buffer[i].max_rows)
            step_buffer_fini(&e->buffer[i], e->options.device, e->options.shape);
    mailbox_free(e->inbox);
    mailbox_free(e->outbox);
    mailbox_free(e->free_blocks);
    kv_pages_free(e->pages);
    free(e->blocks);
    free(e->sequences);
    free(e->order);
    free(e->uses);
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
