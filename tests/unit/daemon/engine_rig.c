#include "tests/unit/daemon/engine_rig.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"

static void
set(struct conf *conf, const char *assignment)
{
    struct err err = ERR_INIT;

    if (conf_set(conf, assignment, &err) < 0)
        fail_msg("%s: %s", assignment, err.text);
}

/* extra: more options, NULL at the end, or NULL. step_timeout_ms: 0: the engine's own. */
struct rig *
open_rig(bool behind, const char *const *extra, unsigned step_timeout_ms)
{
    struct rig *r = calloc(1, sizeof *r);
    struct serving_hooks hooks = {0};
    struct err err = ERR_INIT;

    assert_int_equal(conf_new(&r->conf, &err), 0);
    set(r->conf, "device=cpu");
    set(r->conf, "cpu.threads=1");
    set(r->conf, "model.path=tests/golden/engram_tiny");
    set(r->conf, "engine.max_sequences=6");
    set(r->conf, "engine.prefill_chunk=16");
    set(r->conf, "engine.kv_size=512KiB");
    set(r->conf, "engine.max_queue=64");
    set(r->conf, "tier.hbm.size=16KiB");
    set(r->conf, "tier.ram.size=64KiB");
    set(r->conf, "tier.ram.row_share=0.3");
    set(r->conf, "tier.ram.tables=no");
    for (; extra && *extra; extra++)
        set(r->conf, *extra);
    r->metrics = metrics_new();
    if (serving_load(&r->serving, r->conf, r->metrics, &hooks, &err) < 0)
        fail_msg("%s", err.text);
    r->engine = r->serving->engine;
    if (!behind)
        return r;
    struct serving *s = r->serving;

    r->behind = behind_open(s->device, s->forward);
    assert_int_equal(
        forward_new(&r->forward, behind_device(r->behind), &s->config.shape, &s->limits, &err), 0);
    behind_bind(r->behind, r->forward);
    struct engine_options options = {
        .shape = &s->config.shape,
        .device = behind_device(r->behind),
        .forward = r->forward,
        .limits = s->limits,
        .resolver = s->resolver,
        .compressed = s->compressed,
        .prefix_cache = r->conf->engine_prefix_cache,
        .prefill_chunk = (int)r->conf->engine_prefill_chunk,
        .max_queue = (int)r->conf->engine_max_queue,
        .max_sequence_pages = s->limits.kv_pages,
        .row_timeout_ns = r->conf->tier_nvme_timeout,
        .step_timeout_ns = step_timeout_ms * 1000000ull,
        .metrics = r->metrics,
    };
    assert_int_equal(engine_start(&r->engine, &options, &err), 0);
    return r;
}

/* The resolver stops before the buffers go, as in serving_free. */
void
close_rig(struct rig *r)
{
    struct engine *on_top = r->behind ? r->engine : NULL;

    engine_stop(on_top);
    for (int i = 0; i < MAX_JOBS; i++)
        job_free(r->jobs[i]);
    behind_stop(r->behind);
    residence_stop(r->serving->residence);
    resolver_stop(r->serving->resolver);
    engine_free(on_top);
    forward_free(r->forward);
    behind_close(r->behind);
    serving_free(r->serving);
    metrics_free(r->metrics);
    conf_free(r->conf);
    free(r);
}

/* ------------------------------------------------------------------ jobs */

static uint32_t
mixed(uint32_t x)
{
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
}

struct job *
make_job(unsigned seed, int n_prompt, int64_t max_tokens)
{
    struct job *job = calloc(1, sizeof *job);

    assert_non_null(job);
    job->received_ns = clock_now_ns();
    job->prompt = calloc((size_t)n_prompt + 1, sizeof *job->prompt);
    job->n_prompt = n_prompt;
    job->n_choices = 1;
    job->max_tokens = max_tokens;
    for (int i = 0; i < n_prompt; i++)
        job->prompt[i] = (int32_t)(mixed(seed * 1000 + (unsigned)i) % 380);
    job->params = (struct sample_params){
        .temperature = 1, .top_p = 1, .repetition_penalty = 1, .forced = -1, .n_top = 3};
    for (int k = 0; k < MAX_CHOICES; k++)
        job->seed[k] = seed + 77u * (unsigned)k;
    return job;
}

/* All kinds of jobs, by number. */
struct job *
any_job(unsigned i)
{
    struct job *job = make_job(i, 1 + (int)(mixed(i) % 40), 1 + (int)(mixed(i + 9) % 30));

    if (i % 4 == 1)
        job->params.temperature = 0;
    if (i % 5 == 2) {
        job->n_choices = 2 + (int)(i % 2);
        job->params.top_k = 20;
    }
    if (i % 6 == 3) {
        job->params.frequency_penalty = 0.7f;
        job->params.repetition_penalty = 1.2f;
    }
    if (i % 7 == 4) { /* ends somewhere in the middle */
        job->min_tokens = 2;
        for (int k = 0; k < 40; k++)
            job->stop_ids[job->n_stop_ids++] = (int32_t)(mixed(i + 300u + (unsigned)k) % 380);
    }
    if (i % 7 == 5)
        job->engram_off = true;
    if (i % 8 == 6) {
        job->score_prompt = true;
        job->prompt_scores = calloc((size_t)job->n_prompt, sizeof *job->prompt_scores);
        job->max_tokens = i % 16 == 6 ? 0 : job->max_tokens;
    }
    if (i % 8 == 7) {
        job->bias = calloc(2, sizeof *job->bias);
        job->bias[0] = (struct logit_bias){(int32_t)i, 3};
        job->params.bias = job->bias;
        job->params.n_bias = 1;
    }
    return job;
}

void
submit(struct rig *r, int i, struct job *job)
{
    job->owner = (void *)(uintptr_t)i;
    r->jobs[i] = job;
    assert_int_equal(engine_submit(r->engine, job), 0);
}

static void
take_event(struct rig *r, const struct job_event *event)
{
    int i = (int)(uintptr_t)event->job->owner;
    struct outcome *o = &r->outcome[i];

    assert_false(o->ended);
    if (event->kind == JOB_TOKEN) {
        int k = event->choice, n = o->n_tokens[k];

        o->token[k][o->n_tokens[k]++] = event->result;
        if (k == 0 && n + 1 == r->cancel_at[i])
            atomic_store(&event->job->cancelled, true);
        if (k == 0 && n + 1 == r->stop_at[i])
            atomic_store(&event->job->stop[0], true);
        engine_wake(r->engine);
        return;
    }
    o->ended = true;
    o->error = event->error;
    if (event->job->prompt_scores)
        memcpy(o->score, event->job->prompt_scores,
               (size_t)event->job->n_prompt * sizeof *o->score);
    r->jobs[i] = job_free(r->jobs[i]);
    r->n_ended++;
}

/* Takes events until this many jobs have ended, or until the time is over; false then. */
bool
wait_ended(struct rig *r, int n, int patience_ms)
{
    struct pollfd readable = {.fd = engine_fd(r->engine), .events = POLLIN};
    uint64_t until_ns = clock_now_ns() + (uint64_t)patience_ms * 1000000;

    while (r->n_ended < n) {
        struct job_block *block;
        uint64_t wakes;

        if (clock_now_ns() > until_ns)
            return false;
        (void)poll(&readable, 1, 10);
        (void)!read(readable.fd, &wakes, sizeof wakes);
        while ((block = engine_collect(r->engine)) != NULL) {
            for (int i = 0; i < block->n_events; i++)
                take_event(r, &block->event[i]);
            engine_recycle(r->engine, block);
        }
    }
    return true;
}

void
wait_issued(struct rig *r, uint64_t step)
{
    for (int i = 0; behind_counts(r->behind).issued < step; i++) {
        if (i == 10000)
            fail_msg("step %llu was not issued", (unsigned long long)step);
        (void)wait_ended(r, r->n_ended + 1, 1);
    }
}

static bool
same_result(const struct sample_result *a, const struct sample_result *b)
{
    if (a->token != b->token || a->n_top != b->n_top ||
        memcmp(&a->logprob, &b->logprob, sizeof a->logprob) != 0)
        return false;
    return memcmp(a->top_token, b->top_token, (size_t)a->n_top * sizeof *a->top_token) == 0 &&
           memcmp(a->top_logprob, b->top_logprob, (size_t)a->n_top * sizeof *a->top_logprob) == 0;
}

/* What a has of the job is how b's began; all of it when `whole`. */
void
compare(const struct rig *a, const struct rig *b, int i, bool whole)
{
    const struct outcome *x = &a->outcome[i], *y = &b->outcome[i];

    for (int k = 0; k < MAX_CHOICES; k++) {
        if (whole ? x->n_tokens[k] != y->n_tokens[k] : x->n_tokens[k] > y->n_tokens[k])
            fail_msg("job %d, choice %d: %d tokens, not %d", i, k, x->n_tokens[k], y->n_tokens[k]);
        for (int t = 0; t < x->n_tokens[k]; t++)
            if (!same_result(&x->token[k][t], &y->token[k][t]))
                fail_msg("job %d, choice %d, token %d: %d, not %d", i, k, t, x->token[k][t].token,
                         y->token[k][t].token);
    }
    for (int t = 1; t < PROMPT && whole; t++)
        if (!same_result(&x->score[t], &y->score[t]))
            fail_msg("job %d: score %d differs", i, t);
}

int
rig_metric(const struct rig *r, enum metric_id id)
{
    return (int)metrics_read(r->metrics, id, 0);
}

void
wait_all_free(struct rig *r)
{
    struct engine_load load;

    for (int i = 0;; i++) {
        engine_wake(r->engine);
        usleep(1000);
        engine_load(r->engine, &load);
        if (load.kv_usage == 0 && load.running == 0 && load.waiting == 0)
            return;
        if (i == 5000)
            fail_msg("%f of the KV pages are in use, %d run, %d wait", load.kv_usage, load.running,
                     load.waiting);
    }
}

struct rig *
reference(struct job *(*make)(unsigned), int n)
{
    static const char *const roomy[] = {"engine.kv_size=4MiB", "engine.prefix_cache=false", NULL};
    struct rig *r = open_rig(false, roomy, 0);

    for (int i = 0; i < n; i++)
        submit(r, i, make((unsigned)i));
    assert_true(wait_ended(r, n, PATIENCE_MS));
    for (int i = 0; i < n; i++)
        assert_int_equal(r->outcome[i].error, 0);
    assert_int_equal(rig_metric(r, METRIC_ID_preemptions_total), 0);
    return r;
}
