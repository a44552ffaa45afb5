/* engine_step: steps on their way through the device, and what they did to the sequences.
 * Thread: engine. */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "base/check.h"
#include "base/clock.h"
#include "daemon/engine_state.h"

/* How the oldest step is waited for: looking all the time at first, then now and then. */
static const uint64_t look_ns = 50 * 1000, pause_ns = 20 * 1000;

/* How often a device that has nothing to do is looked at, and the rows of abandoned steps. */
static const uint64_t idle_look_ns = 1000 * 1000 * 1000, abandoned_look_ns = 100 * 1000 * 1000;

static const char rows_late[] = "rows of the N-gram tables did not arrive in time";

static int
n_tables(const struct engine *e)
{
    return e->options.shape->engram.n_layers;
}

/* ------------------------------------------------------------------ buffers */

static bool
rows_landed(const struct engine *e, struct step_buffer *b)
{
    for (int t = 0; t < n_tables(e); t++)
        if (flag_read(&b->ready[t]) < b->forward.engram[t].ready_value)
            return false;
    return true;
}

/* Its results are still to be read, by the resolver for the step behind it. */
static bool
is_awaited(struct engine *e, const struct step_buffer *b)
{
    for (int i = 0; i < STEP_BUFFERS; i++)
        if (e->buffer[i].before == b && !rows_landed(e, &e->buffer[i]))
            return true;
    return false;
}

/* Abandoned buffers whose rows have landed are free, and the resolver hears that their steps are over:
 * tables may wait to go for that. Returns how many are still to come. */
static int
free_landed(struct engine *e)
{
    int n_left = 0;

    for (int i = 0; i < STEP_BUFFERS; i++) {
        struct step_buffer *b = &e->buffer[i];

        if (e->buffer_state[i] != BUFFER_ABANDONED)
            continue;
        if (!rows_landed(e, b)) {
            n_left++;
            continue;
        }
        resolver_step_done(e->options.resolver, b->step, false);
        e->buffer_state[i] = BUFFER_FREE;
    }
    return n_left;
}

static struct step_buffer *
free_buffer(struct engine *e)
{
    (void)free_landed(e);
    for (int i = 0; i < STEP_BUFFERS; i++)
        /* A step without a row that takes part in Engram ends without its flags. */
        if (e->buffer_state[i] == BUFFER_FREE && rows_landed(e, &e->buffer[i]) &&
            !is_awaited(e, &e->buffer[i]))
            return &e->buffer[i];
    return NULL;
}

/* ------------------------------------------------------------------ a step begins */

/* The other choices start from copies of the first one's state, behind the step that makes it. */
static void
fork_choices(struct engine *e, struct sequence *parent)
{
    struct job *job = parent->job;
    int shared = engine_shared_pages(e, job), parent_slot = (int)(parent - e->sequences);

    for (int slot = 0; slot < e->options.limits.max_sequences; slot++) {
        struct sequence *child = &e->sequences[slot];

        if (child->job != job || child->phase != SEQUENCE_RESERVED)
            continue;
        sequence_fork(child, parent, shared, e->pages, &e->options.shape->engram,
                      e->options.compressed);
        (void)forward_copy_state(e->options.forward, slot, parent_slot);
        if (job->n_prompt % e->batch.page_tokens)
            (void)forward_copy_page(e->options.forward, child->pages[shared],
                                    parent->pages[shared]);
    }
}

/* Moves the sequences of an issued step to where they will stand when it has ended. */
static void
advance(struct engine *e, const struct step_buffer *b)
{
    const struct batch *batch = &b->forward.batch;
    const struct batch_use *uses = e->uses[b - e->buffer];

    for (int i = 0; i < batch->n_seqs; i++) {
        struct sequence *s = &e->sequences[b->seq[i].state_slot];

        s->context += b->seq[i].n_rows;
        s->last_step = b->step;
        if (s->phase != SEQUENCE_PREFILL)
            continue;
        engine_keep_prefix(e, s);
        if (s->context == s->prefill_end)
            sequence_prefilled(s, &e->options.shape->engram, e->options.compressed);
        if (s->context == s->job->n_prompt)
            fork_choices(e, s);
    }
    for (int i = 0; i < b->forward.n_outputs; i++) {
        if (uses[i].choice < 0)
            continue;
        ASSERT(uses[i].slot >= 0);
        struct sequence *s = &e->sequences[uses[i].slot];

        s->n_pending++;
        s->pending_output = i;
        s->last_step = b->step;
    }
}

/* E4 */
static void
device_failed(struct engine *e, int status, const char *text)
{
    atomic_store(&e->fault, status);
    e->n_flight = 0;
    e->done_step = e->last_step;
    engine_release_drained(e);
    engine_drop_all(e, status, text);
    engine_flush_events(e);
    mailbox_wake(e->outbox); /* there may have been nobody to tell */
}

static void
describe_step(struct engine *e, struct step_buffer *b)
{
    b->step = ++e->last_step;
    b->posted_ns = clock_now_ns();
    b->give_up_ns = b->posted_ns + 2 * e->step_limit_ns;
    b->forward.step = b->step;
    b->forward.report = b->report;
    b->forward.wait_timeout_ns = e->options.row_timeout_ns;
    b->before = NULL;
    if (b->n_awaits) {
        ASSERT(e->n_flight > 0);
        b->before = e->flight[e->n_flight - 1]; /* E2 */
        b->before_step = b->before->step;
    }
    uint64_t rows_from = step_rows_from(b->step), n_rows = (uint64_t)b->forward.batch.n_rows;
    ASSERT(n_rows < 1u << STEP_ROWS_BITS);
    for (int t = 0; t < n_tables(e); t++) {
        struct tier_resident resident = resolver_resident(e->options.resolver, t);

        b->forward.engram[t] = (struct forward_engram){.address = b->address[t],
                                                       .ready = &b->ready[t],
                                                       .ready_value = rows_from + n_rows,
                                                       .rows_from = rows_from,
                                                       .mix = b->mix[t],
                                                       .weights = resident.weights,
                                                       .scales = resident.scales};
    }
}

static void
issue(struct engine *e, struct step_buffer *b)
{
    struct err err = ERR_INIT;

    describe_step(e, b);
    if (n_tables(e))
        resolver_post_step(e->options.resolver, b);
    engine_flush_events(e); /* the loop works on the last step's tokens while this one runs */

    e->unanswered_ns = 0; /* what it owes now is this step's */
    int status = forward_run(e->options.forward, &b->forward, &err);

    if (status < 0 && status != -ETIMEDOUT) {
        device_failed(e, status, "the compute device failed");
        return;
    }
    if (e->n_flight == 0)
        e->oldest_since_ns = b->posted_ns;
    e->flight[e->n_flight++] = b;
    e->buffer_state[b - e->buffer] = BUFFER_IN_FLIGHT;
    advance(e, b);
}

/* Never again a step, when a resolver or a disk holds all the buffers for ever: the jobs end. */
static void
check_starved(struct engine *e)
{
    uint64_t now_ns = clock_now_ns();

    if (e->starved_since_ns == 0) {
        e->starved_since_ns = now_ns;
    } else if (now_ns - e->starved_since_ns > e->step_limit_ns) {
        engine_drop_all(e, -ETIMEDOUT, rows_late);
        e->starved_since_ns = 0;
    }
}

bool
engine_issue(struct engine *e)
{
    if (e->n_flight || e->n_order == 0)
        e->starved_since_ns = 0;
    if (e->n_order == 0 || e->n_flight == ENGINE_STEPS_AHEAD || atomic_load(&e->fault))
        return false;

    struct step_buffer *b = free_buffer(e);

    if (b == NULL) {
        if (e->n_flight == 0)
            check_starved(e);
        return false;
    }
    e->starved_since_ns = 0;
    engine_give_pages(e);
    if (batch_compose(b, e->sequences, e->order, e->n_order, &e->batch, e->uses[b - e->buffer]) ==
        0)
        return false;
    issue(e, b);
    return true;
}

/* ------------------------------------------------------------------ a step has ended */

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
        engine_drop_job(e, job, -EDOM, "the model gave no finite logits, or every token is banned");
        return;
    }
    s->n_pending--;
    sequence_append(s, result->token, e->options.compressed);
    metrics_add(e->options.metrics, METRIC_ID_generation_tokens_total, 0, 1);
    if (s->choice == 0)
        observe_token(e, job, s->n_generated == 1);

    struct job_event *event = engine_put_event(e, job, JOB_TOKEN);

    event->choice = s->choice;
    event->result = *result;
    event->n_cached = s->choice == 0 && s->n_generated == 1 ? job->n_cached : 0;
    event->stop_token = s->n_generated > job->min_tokens && is_stop_token(job, result->token);
    event->finish = event->stop_token                   ? JOB_STOP
                    : s->n_generated == job->max_tokens ? JOB_LENGTH
                                                        : JOB_RUNNING;
    if (event->finish != JOB_RUNNING)
        engine_end_choice(e, slot);
}

/* Jobs one of whose rows could not be read end here, and only those. */
static void
drop_failed_rows(struct engine *e, const struct step_buffer *b)
{
    const struct batch *batch = &b->forward.batch;

    for (int i = batch->n_seqs - 1; i >= 0; i--) {
        const struct batch_seq *seq = &b->seq[i];
        struct job *job = e->sequences[seq->state_slot].job;

        for (int t = 0; t < n_tables(e) && !seq->engram_off; t++)
            if (memchr(b->failed[t] + seq->first_row, 1, (size_t)seq->n_rows)) {
                if (e->prefix)
                    prefix_cache_forget(e->prefix, b->step);
                if (job)
                    engine_drop_job(e, job, -EIO,
                                    "rows of the N-gram tables could not be read from the disk");
                break;
            }
    }
}

/* What the step did to its sequences. Those that have ended meanwhile, or end along the way, have no
 * job: each output looks its sequence up again. */
static void
take_results(struct engine *e, struct step_buffer *b)
{
    const struct batch *batch = &b->forward.batch;
    const struct batch_use *uses = e->uses[b - e->buffer];

    drop_failed_rows(e, b);
    for (int i = batch->n_decode; i < batch->n_seqs; i++)
        if (e->sequences[b->seq[i].state_slot].job)
            metrics_add(e->options.metrics, METRIC_ID_prompt_tokens_total, 0,
                        (uint64_t)b->seq[i].n_rows);
    for (int i = 0; i < b->forward.n_outputs; i++) {
        struct job *job = e->sequences[uses[i].slot].job;

        if (job == NULL)
            continue;
        if (uses[i].choice < 0)
            job->prompt_scores[uses[i].prompt_index] = b->results[i];
        else
            take_token(e, uses[i].slot, &b->results[i]);
    }
    /* A prompt that was only to be scored. */
    for (int i = batch->n_decode; i < batch->n_seqs; i++) {
        struct job *job = e->sequences[b->seq[i].state_slot].job;

        if (job && job->max_tokens == 0 && b->seq[i].context + b->seq[i].n_rows == job->n_prompt)
            engine_drop_job(e, job, 0, "");
    }
}

/* E3 */
static void
fail_step(struct engine *e, const struct step_buffer *b, int error, const char *text)
{
    if (e->prefix)
        prefix_cache_forget(e->prefix, b->step);
    for (int i = 0; i < b->forward.batch.n_seqs; i++) {
        struct job *job = e->sequences[b->seq[i].state_slot].job;

        if (job)
            engine_drop_job(e, job, error, text);
    }
}

/* status: what forward_poll said of the oldest step, which has ended. */
static void
take_oldest(struct engine *e, int status)
{
    struct step_buffer *b = e->flight[0];

    memmove(e->flight, e->flight + 1, (size_t)--e->n_flight * sizeof *e->flight);
    e->oldest_since_ns = clock_now_ns();
    e->done_step = b->step;
    metrics_add(e->options.metrics, METRIC_ID_engine_steps_total, 0, 1);
    for (int t = 0; t < n_tables(e); t++)
        metrics_add(e->options.metrics, METRIC_ID_stall_nanoseconds_total, t,
                    b->report->waited_ns[t]);
    if (status == -ETIMEDOUT) {
        e->buffer_state[b - e->buffer] = BUFFER_ABANDONED;
        fail_step(e, b, -ETIMEDOUT, rows_late);
    } else {
        e->buffer_state[b - e->buffer] = BUFFER_FREE;
        if (n_tables(e))
            resolver_step_done(e->options.resolver, b->step, true);
        take_results(e, b);
    }
    engine_release_drained(e);
}

/* Looks at the oldest step, and at the device if the step has not ended: true when it was taken or
 * has failed. */
static bool
poll_oldest(struct engine *e)
{
    struct err err = ERR_INIT;
    int status = forward_poll(e->options.forward, &e->flight[0]->forward, &err);

    if (status == 0)
        return false;
    if (status > 0 || status == -ETIMEDOUT)
        take_oldest(e, status);
    else
        device_failed(e, status, "the compute device failed");
    return true;
}

void
engine_take_ended(struct engine *e)
{
    while (e->n_flight && forward_done(&e->flight[0]->forward))
        (void)poll_oldest(e);
}

static const char no_answer[] = "the compute device does not answer";

static bool
answers_late(struct engine *e, uint64_t since_ns)
{
    bool hurry = atomic_load_explicit(&e->hurry, memory_order_relaxed);

    return clock_now_ns() - since_ns > (hurry ? e->last_limit_ns : e->step_limit_ns);
}

void
engine_wait_oldest(struct engine *e)
{
    static const struct timespec pause = {.tv_nsec = (long)pause_ns};
    uint64_t look_until_ns = clock_now_ns() + look_ns;

    while (!forward_done(&e->flight[0]->forward)) {
        uint64_t now_ns = clock_now_ns();

        if (now_ns < look_until_ns)
            continue;
        if (poll_oldest(e))
            return;
        if (answers_late(e, e->oldest_since_ns)) {
            device_failed(e, -EIO, no_answer);
            return;
        }
        (void)nanosleep(&pause, NULL);
    }
    (void)poll_oldest(e);
}

/* ------------------------------------------------------------------ nothing in flight */

/* What the last probe has come to, and the next one. */
static void
look_at_device(struct engine *e, uint64_t now_ns)
{
    struct device *device = e->options.device;
    int status = device->ops->poll(device, NULL);

    if (status > 0) {
        e->unanswered_ns = 0;
        status = device->ops->probe(device, NULL);
    }
    if (e->unanswered_ns == 0)
        e->unanswered_ns = now_ns;
    if (status < 0)
        device_failed(e, status, "the compute device failed");
    else if (answers_late(e, e->unanswered_ns))
        device_failed(e, -EIO, no_answer);
}

uint64_t
engine_look_idle(struct engine *e)
{
    bool looks = e->options.device->ops->probe && !atomic_load(&e->fault);
    uint64_t wait_ns = e->options.heartbeat_ns ? e->options.heartbeat_ns : UINT64_MAX;

    if (looks) {
        uint64_t now_ns = clock_now_ns();

        if (now_ns - e->looked_ns >= idle_look_ns) {
            e->looked_ns = now_ns;
            look_at_device(e, now_ns);
        }
        uint64_t left_ns = e->looked_ns + idle_look_ns - now_ns;

        wait_ns = left_ns < wait_ns ? left_ns : wait_ns;
    }
    if (free_landed(e) > 0 && abandoned_look_ns < wait_ns)
        wait_ns = abandoned_look_ns;
    /* With sequences but no buffer, the rows of abandoned steps are still to come. */
    return e->n_order ? 1000 * 1000 : wait_ns;
}

void
engine_settle(struct engine *e)
{
    static const struct timespec pause = {.tv_nsec = (long)pause_ns};
    struct device *device = e->options.device;
    uint64_t begin_ns = clock_now_ns();

    while (!atomic_load(&e->fault)) {
        int status = device->ops->poll(device, NULL);

        if (status > 0)
            return;
        if (status < 0)
            device_failed(e, status, "the compute device failed");
        else if (answers_late(e, begin_ns))
            device_failed(e, -EIO, no_answer);
        else
            (void)nanosleep(&pause, NULL);
    }
}
