/* engine_jobs: jobs on their way into the batch and out of it. Thread: engine. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "daemon/engine_state.h"

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

void
engine_flush_events(struct engine *e)
{
    if (e->block == NULL || e->block->n_events == 0)
        return;
    int status = mailbox_send(e->outbox, e->block);

    ASSERT(status == 0); /* the outbox has room for every block there is */
    e->block = NULL;
}

struct job_event *
engine_put_event(struct engine *e, struct job *job, enum job_event_kind kind)
{
    if (e->block && e->block->n_events == JOB_BLOCK_EVENTS)
        engine_flush_events(e);
    if (e->block == NULL)
        e->block = next_block(e);

    struct job_event *event = &e->block->event[e->block->n_events++];

    *event = (struct job_event){.job = job, .kind = kind};
    return event;
}

static const char no_memory[] = "no memory for the request";

static void
forget_parked(struct job *job)
{
    for (int i = 0; i < job->n_parked; i++)
        parked_choice_fini(&job->parked[i]);
    free(job->parked);
    job->parked = NULL;
    job->n_parked = 0;
}

/* The job's last event. Its sequences must be released. */
static void
end_job(struct engine *e, struct job *job, int error, const char *text)
{
    forget_parked(job);
    struct job_event *event = engine_put_event(e, job, JOB_ENDED);

    event->error = error;
    snprintf(event->error_text, sizeof event->error_text, "%s", text);
    atomic_fetch_sub_explicit(&e->inside, job->n_choices, memory_order_relaxed);
}

/* Q3: now, or with the last step that knows it. */
static void
drop_slot(struct engine *e, int slot)
{
    struct sequence *s = &e->sequences[slot];
    int at = 0;

    if (s->last_step > e->done_step) {
        sequence_drain(s);
        e->n_draining++;
    } else {
        sequence_release(s, e->pages);
    }
    while (e->order[at] != slot)
        at++;
    memmove(e->order + at, e->order + at + 1, (size_t)(--e->n_order - at) * sizeof *e->order);
}

void
engine_drop_job(struct engine *e, struct job *job, int error, const char *text)
{
    for (int i = e->n_order - 1; i >= 0; i--)
        if (e->sequences[e->order[i]].job == job)
            drop_slot(e, e->order[i]);
    end_job(e, job, error, text);
}

void
engine_drop_all(struct engine *e, int error, const char *text)
{
    while (e->n_order)
        engine_drop_job(e, e->sequences[e->order[0]].job, error, text);
    while (e->queue_head) {
        struct job *job = e->queue_head;

        e->queue_head = job->next;
        end_job(e, job, error, text);
    }
    e->queue_tail = &e->queue_head;
}

void
engine_end_choice(struct engine *e, int slot)
{
    struct job *job = e->sequences[slot].job;

    drop_slot(e, slot);
    if (--job->n_running == 0)
        end_job(e, job, 0, "");
}

void
engine_preempt(struct engine *e, struct job *job)
{
    int n = 0;

    for (int i = 0; i < e->n_order; i++)
        n += e->sequences[e->order[i]].job == job;
    ASSERT(n > 0 && job->parked == NULL);
    job->parked = calloc((size_t)n, sizeof *job->parked);
    if (job->parked == NULL) {
        engine_drop_job(e, job, -ENOMEM, no_memory);
        return;
    }
    job->n_parked = n;
    for (int i = e->n_order - 1; i >= 0; i--)
        if (e->sequences[e->order[i]].job == job) {
            sequence_park(&e->sequences[e->order[i]], &job->parked[--n]);
            drop_slot(e, e->order[i]);
        }
    job->next = e->queue_head;
    e->queue_head = job;
    if (job->next == NULL)
        e->queue_tail = &job->next;
    metrics_add(e->options.metrics, METRIC_ID_preemptions_total, 0, 1);
}

void
engine_release_drained(struct engine *e)
{
    for (int slot = 0; slot < e->options.limits.max_sequences && e->n_draining; slot++) {
        struct sequence *s = &e->sequences[slot];

        if (s->phase != SEQUENCE_DRAINING || s->last_step > e->done_step)
            continue;
        sequence_release(s, e->pages);
        e->n_draining--;
    }
}

/* Choices of a preempted job that need not be computed again. */
static void
stop_parked(struct job *job)
{
    int n = 0;

    for (int i = 0; i < job->n_parked; i++) {
        struct parked_choice *parked = &job->parked[i];

        if (!atomic_load_explicit(&job->stop[parked->choice], memory_order_acquire)) {
            job->parked[n++] = *parked;
            continue;
        }
        parked_choice_fini(parked);
        job->n_running--;
    }
    job->n_parked = n;
}

/* Takes what the loop asks for: jobs cancelled, choices stopped. Pairs with job->cancelled and
 * stop. */
void
engine_cancel_sweep(struct engine *e)
{
    for (int i = e->n_order - 1; i >= 0; i--) {
        if (i >= e->n_order)
            continue; /* several slots of one job went at once */
        struct sequence *s = &e->sequences[e->order[i]];

        if (atomic_load_explicit(&s->job->cancelled, memory_order_acquire))
            engine_drop_job(e, s->job, -ECANCELED, "cancelled");
        else if (s->phase == SEQUENCE_DECODE &&
                 atomic_load_explicit(&s->job->stop[s->choice], memory_order_acquire))
            engine_end_choice(e, e->order[i]);
    }
    for (struct job **at = &e->queue_head; *at;) {
        struct job *job = *at;

        if (atomic_load_explicit(&job->cancelled, memory_order_acquire)) {
            *at = job->next;
            end_job(e, job, -ECANCELED, "cancelled");
            continue;
        }
        if (job->parked)
            stop_parked(job);
        if (job->parked && job->n_parked == 0) {
            *at = job->next;
            end_job(e, job, 0, "");
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

int
engine_shared_pages(const struct engine *e, const struct job *job)
{
    return job->n_choices > 1 ? job->n_prompt / e->batch.page_tokens : 0;
}

/* A job enters with pages for its prompt, n_found of which it has, and for what it had generated, if so many are free that
 * each sequence of the batch can have one more: it is not to be preempted at once. */
static bool
pages_for(struct engine *e, const struct job *job, int n, int n_found)
{
    int need = -n_found, shared = engine_shared_pages(e, job), page = e->batch.page_tokens;
    bool alone = e->n_order + e->n_draining == 0;

    for (int i = 0; i < n; i++) {
        int64_t known = job->n_prompt + (job->parked ? job->parked[i].n_generated : 0);

        need += (int)((known + page - 1) / page) - (i ? shared : 0);
    }
    return engine_make_room(e, need + (alone ? 0 : e->n_order + n));
}

/* Reserves slots and pages for all choices of a job, or nothing. */
static int
admit(struct engine *e, struct job *job)
{
    int n = job->parked ? job->n_parked : job->n_choices, first = e->n_order;

    if (engine_job_pages(e->batch.page_tokens, job->n_prompt, job->max_tokens, job->n_choices) >
        kv_pages_n(e->pages))
        return -E2BIG;
    if (e->n_order + e->n_draining + n > e->options.limits.max_sequences)
        return -ENOSPC;

    struct prefix_ref found;
    int n_spans = engine_find_prefix(e, job, &found), n_found = n_spans * e->span_pages;

    if (!pages_for(e, job, n, n_found)) {
        engine_give_back_prefix(e, n_spans);
        return -ENOSPC;
    }
    for (int i = 0; i < n; i++) {
        int slot = free_slot(e), n_shared = i ? engine_shared_pages(e, job) : n_found;
        struct sequence *s = &e->sequences[slot];
        int status =
            job->parked
                ? sequence_resume(s, job, &job->parked[i], n_shared, e->pages, e->batch.page_tokens)
                : sequence_reserve(s, job, i, n_shared, e->pages, e->batch.page_tokens);

        if (status < 0) {
            while (e->n_order > first)
                drop_slot(e, e->order[e->n_order - 1]);
            engine_give_back_prefix(e, n_spans);
            return status;
        }
        e->order[e->n_order++] = slot;
    }
    struct sequence *s = &e->sequences[e->order[first]];

    s->phase = SEQUENCE_PREFILL;
    engine_use_prefix(e, s, found, n_spans);
    if (job->parked == NULL) {
        job->n_running = job->n_choices;
        job->n_cached = s->context;
        if (e->prefix && !job->score_prompt) {
            metrics_add(e->options.metrics, METRIC_ID_prefix_cache_query_tokens_total, 0,
                        (uint64_t)job->n_prompt);
            metrics_add(e->options.metrics, METRIC_ID_prefix_cache_hit_tokens_total, 0,
                        (uint64_t)s->context);
        }
    }
    forget_parked(job);
    return 0;
}

void
engine_admit_waiting(struct engine *e)
{
    while (e->queue_head) {
        struct job *job = e->queue_head;
        int status = admit(e, job);

        if (status == -ENOSPC && e->n_order + e->n_draining > 0)
            break; /* running sequences will make room */
        e->queue_head = job->next;
        if (e->queue_head == NULL)
            e->queue_tail = &e->queue_head;
        if (status < 0)
            end_job(e, job, status, no_memory);
    }
    int waiting = 0;

    for (const struct job *job = e->queue_head; job; job = job->next)
        waiting += job->parked ? job->n_parked : job->n_choices;
    atomic_store_explicit(&e->waiting, waiting, memory_order_relaxed);
    atomic_store_explicit(&e->running, e->n_order, memory_order_relaxed);
    atomic_store_explicit(&e->pages_used, engine_used_pages(e), memory_order_relaxed);
}

void
engine_take_inbox(struct engine *e, uint64_t timeout_ns)
{
    struct job *job = mailbox_receive(e->inbox, timeout_ns);

    for (; job; job = mailbox_receive(e->inbox, 0)) {
        job->next = NULL;
        *e->queue_tail = job;
        e->queue_tail = &job->next;
    }
}
