/* The engine on a device that runs behind the host (behind_device.h), with the real model, tiers and
 * resolver, against the same jobs on the CPU backend, which has run a step when forward_run returns:
 * whatever is in flight when something happens, tokens and scores are the same, bit for bit. */
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/log.h"
#include "daemon/serving.h"
#include "tests/unit/daemon/behind_device.h"

enum { MAX_JOBS = 24, MAX_CHOICES = 4, MAX_TOKENS = 64, PROMPT = 64, PATIENCE_MS = 60000 };

struct outcome {
    int n_tokens[MAX_CHOICES];
    struct sample_result token[MAX_CHOICES][MAX_TOKENS];
    bool ended;
    int error;
    struct sample_result score[PROMPT];
};

struct rig {
    struct conf *conf;
    struct metrics *metrics;
    struct serving *serving;
    struct behind *behind; /* NULL: serving->engine on the CPU backend itself */
    struct forward *forward;
    struct engine *engine;
    struct job *jobs[MAX_JOBS]; /* in the engine */
    struct outcome outcome[MAX_JOBS];
    int n_ended;
    /* When the job has this many tokens of choice 0, it is cancelled, or its choice 0 stopped. */
    int cancel_at[MAX_JOBS], stop_at[MAX_JOBS];
};

static void
set(struct conf *conf, const char *assignment)
{
    struct err err = ERR_INIT;

    if (conf_set(conf, assignment, &err) < 0)
        fail_msg("%s: %s", assignment, err.text);
}

/* extra: more options, NULL at the end, or NULL. step_timeout_ms: 0: the engine's own. */
static struct rig *
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
static void
close_rig(struct rig *r)
{
    struct engine *on_top = r->behind ? r->engine : NULL;

    engine_stop(on_top);
    for (int i = 0; i < MAX_JOBS; i++)
        job_free(r->jobs[i]);
    behind_stop(r->behind);
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

static struct job *
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
static struct job *
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

static void
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
static bool
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

static void
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
static void
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

static struct rig *
reference(struct job *(*make)(unsigned), int n)
{
    struct rig *r = open_rig(false, NULL, 0);

    for (int i = 0; i < n; i++)
        submit(r, i, make((unsigned)i));
    assert_true(wait_ended(r, n, PATIENCE_MS));
    for (int i = 0; i < n; i++)
        assert_int_equal(r->outcome[i].error, 0);
    return r;
}

/* ------------------------------------------------------------------ tests */

static void
tokens_are_the_same_when_steps_are_issued_ahead(void **state)
{
    struct rig *expected = reference(any_job, MAX_JOBS);
    /* Alone, crowded, and with hardly any KV pages; a fast device and a slow one. */
    const char *const tight[] = {"engine.kv_size=256KiB", NULL};
    const char *const single[] = {"engine.max_sequences=3", NULL};
    const char *const *const variants[] = {NULL, tight, single};

    for (int v = 0; v < 6; v++) {
        struct rig *r = open_rig(true, variants[v % 3], 0);

        behind_slow(r->behind, v < 3 ? 0 : 300);
        for (int i = 0; i < MAX_JOBS; i++)
            submit(r, i, any_job((unsigned)i));
        assert_true(wait_ended(r, MAX_JOBS, PATIENCE_MS));
        for (int i = 0; i < MAX_JOBS; i++) {
            assert_int_equal(r->outcome[i].error, 0);
            compare(r, expected, i, true);
        }
        assert_true(behind_counts(r->behind).remembered > 0);
        close_rig(r);
    }
    close_rig(expected);
}

static struct job *
plain_job(unsigned i)
{
    return make_job(500 + i, 20, 40);
}

static struct job *
short_job(unsigned i)
{
    return make_job(500 + i, 5, 1 + (int)i);
}

static struct job *
penalty_job(unsigned i)
{
    struct job *job = make_job(600 + i, 10, 30);

    job->params.presence_penalty = 1;
    return job;
}

static struct job *
fork_job(unsigned i)
{
    struct job *job = make_job(700 + i, 14 + (int)i, i == 3 ? 1 : 25);

    job->n_choices = 3;
    return job;
}

static struct job *
bare_job(unsigned i)
{
    struct job *job = make_job(800 + i, 3, 30);

    job->engram_off = true;
    return job;
}

/* Their steps end without waiting for the resolver. */
static void
jobs_without_engram_overtake_no_resolver(void **state)
{
    struct rig *r = open_rig(true, NULL, 0), *expected = reference(bare_job, MAX_JOBS);

    for (int i = 0; i < MAX_JOBS; i++)
        submit(r, i, bare_job((unsigned)i));
    assert_true(wait_ended(r, MAX_JOBS, PATIENCE_MS));
    for (int i = 0; i < MAX_JOBS; i++)
        compare(r, expected, i, true);
    close_rig(r);
    close_rig(expected);
}

static void
no_step_is_issued_behind_the_last_token(void **state)
{
    struct rig *r = open_rig(true, NULL, 0), *expected = reference(short_job, 2);

    submit(r, 0, short_job(0));
    assert_true(wait_ended(r, 1, PATIENCE_MS));
    assert_int_equal(behind_counts(r->behind).issued, 1);
    submit(r, 1, short_job(1));
    assert_true(wait_ended(r, 2, PATIENCE_MS));
    assert_int_equal(behind_counts(r->behind).issued, 3);
    for (int i = 0; i < 2; i++)
        compare(r, expected, i, true);
    close_rig(r);
    close_rig(expected);
}

static void
a_stop_or_a_cancellation_in_flight_is_nobody_elses_business(void **state)
{
    struct rig *r = open_rig(true, NULL, 0), *expected = reference(plain_job, 6);

    behind_slow(r->behind, 500);
    r->stop_at[1] = 3;
    r->cancel_at[3] = 5;
    r->stop_at[4] = 1;
    for (int i = 0; i < 6; i++)
        submit(r, i, plain_job((unsigned)i));
    assert_true(wait_ended(r, 6, PATIENCE_MS));
    for (int i = 0; i < 6; i++) {
        compare(r, expected, i, i % 2 == 0 && i != 4);
        assert_int_equal(r->outcome[i].error, i == 3 ? -ECANCELED : 0);
    }
    assert_true(r->outcome[1].n_tokens[0] >= 3);
    assert_true(r->outcome[1].n_tokens[0] < 40);
    close_rig(r);
    close_rig(expected);
}

static void
a_slot_has_a_new_owner_only_when_the_last_step_that_knows_it_has_ended(void **state)
{
    const char *const alone[] = {"engine.max_sequences=1", NULL};
    struct rig *r = open_rig(true, alone, 0), *expected = reference(plain_job, 2);

    /* Steps 6 and 7 are in flight, 6 ends, the job is cancelled: 7 knows its slot. */
    behind_hold(r->behind, 6);
    submit(r, 0, plain_job(0));
    submit(r, 1, plain_job(1));
    wait_issued(r, 7);
    atomic_store(&r->jobs[0]->cancelled, true);
    behind_hold(r->behind, 7);
    assert_true(wait_ended(r, 1, PATIENCE_MS));
    assert_int_equal(r->outcome[0].error, -ECANCELED);
    assert_false(wait_ended(r, 2, 50));
    assert_int_equal(behind_counts(r->behind).issued, 7);
    behind_release(r->behind);
    assert_true(wait_ended(r, 2, PATIENCE_MS));
    compare(r, expected, 0, false);
    compare(r, expected, 1, true);
    close_rig(r);
    close_rig(expected);
}

static void
penalties_wait_for_the_tokens_they_count(void **state)
{
    struct rig *r = open_rig(true, NULL, 0), *expected = reference(penalty_job, 4);

    for (int i = 0; i < 4; i++)
        submit(r, i, penalty_job((unsigned)i));
    assert_true(wait_ended(r, 4, PATIENCE_MS));
    for (int i = 0; i < 4; i++)
        compare(r, expected, i, true);
    assert_int_equal(behind_counts(r->behind).remembered, 0);
    close_rig(r);
    close_rig(expected);
}

static void
choices_start_behind_the_prompt_they_share(void **state)
{
    /* 14 to 17 tokens: a page that is partly filled, a full one, one more. */
    struct rig *r = open_rig(true, NULL, 0), *expected = reference(fork_job, 4);

    behind_slow(r->behind, 200);
    for (int i = 0; i < 4; i++)
        submit(r, i, fork_job((unsigned)i));
    assert_true(wait_ended(r, 4, PATIENCE_MS));
    for (int i = 0; i < 4; i++)
        compare(r, expected, i, true);
    assert_true(behind_counts(r->behind).remembered > 0);
    close_rig(r);
    close_rig(expected);
}

static void
a_step_that_times_out_ends_its_jobs_and_no_others(void **state)
{
    struct rig *r = open_rig(true, NULL, 0), *expected = reference(plain_job, 2);

    /* The job is in steps 6 and 7 when 6 times out; the next job comes with step 7. */
    behind_hold(r->behind, 5);
    behind_time_out(r->behind, 6);
    submit(r, 0, plain_job(0));
    wait_issued(r, 6);
    submit(r, 1, plain_job(1));
    behind_hold(r->behind, 6);
    wait_issued(r, 7);
    behind_release(r->behind);
    assert_true(wait_ended(r, 2, PATIENCE_MS));
    assert_int_equal(r->outcome[0].error, -ETIMEDOUT);
    assert_int_equal(r->outcome[1].error, 0);
    compare(r, expected, 0, false);
    compare(r, expected, 1, true);
    close_rig(r);
    close_rig(expected);
}

static void
every_other_step_may_time_out(void **state)
{
    struct rig *r = open_rig(true, NULL, 0);
    int n_late = 0;

    for (int i = 0; i < MAX_JOBS; i++) {
        submit(r, i, plain_job((unsigned)i % 4));
        behind_time_out(r->behind, behind_counts(r->behind).issued + 4);
        (void)wait_ended(r, i + 1, 3);
    }
    assert_true(wait_ended(r, MAX_JOBS, PATIENCE_MS));
    for (int i = 0; i < MAX_JOBS; i++)
        n_late += r->outcome[i].error == -ETIMEDOUT;
    assert_true(n_late > 0);
    close_rig(r);
}

static void
an_error_of_the_device_ends_every_job(void **state)
{
    struct rig *r = open_rig(true, NULL, 0);
    struct engine_load load;

    behind_fail(r->behind, 9);
    for (int i = 0; i < 8; i++)
        submit(r, i, plain_job((unsigned)i));
    assert_true(wait_ended(r, 8, PATIENCE_MS));
    for (int i = 0; i < 8; i++)
        assert_int_equal(r->outcome[i].error, -EIO);
    engine_load(r->engine, &load);
    assert_int_equal(load.fault, -EIO);
    submit(r, 8, plain_job(8));
    assert_true(wait_ended(r, 9, PATIENCE_MS));
    assert_int_equal(r->outcome[8].error, -EIO);
    close_rig(r);
}

static void
a_device_that_does_not_answer_has_failed(void **state)
{
    const char *const soon[] = {"tier.nvme.timeout=20ms", NULL};
    struct rig *r = open_rig(true, soon, 60);
    struct engine_load load;

    behind_hold(r->behind, 4);
    for (int i = 0; i < 3; i++)
        submit(r, i, short_job(9 + (unsigned)i));
    assert_true(wait_ended(r, 3, PATIENCE_MS));
    for (int i = 0; i < 3; i++)
        assert_int_equal(r->outcome[i].error, -EIO);
    engine_load(r->engine, &load);
    assert_int_equal(load.fault, -EIO);
    close_rig(r);
}

static void
a_late_disk_is_an_error_and_not_a_hang(void **state)
{
    const char *const late[] = {"tier.nvme.fault=delay=3s", "tier.nvme.timeout=10ms",
                                "tier.ram.size=0B", "tier.hbm.size=0B", NULL};
    struct rig *r = open_rig(true, late, 60);

    for (int i = 0; i < 12; i++)
        submit(r, i, plain_job((unsigned)i));
    assert_true(wait_ended(r, 12, 2500));
    for (int i = 0; i < 12; i++)
        assert_int_equal(r->outcome[i].error, -ETIMEDOUT);
    close_rig(r);
}

static void
a_disk_that_fails_ends_the_jobs_that_need_it(void **state)
{
    const char *const bad[] = {"tier.nvme.fault=fail=1/40", "tier.ram.size=0B", "tier.hbm.size=0B",
                               "tier.nvme.retries=0", NULL};
    struct rig *r = open_rig(true, bad, 0), *expected = reference(any_job, MAX_JOBS);
    int n_failed = 0;

    for (int i = 0; i < MAX_JOBS; i++)
        submit(r, i, any_job((unsigned)i));
    assert_true(wait_ended(r, MAX_JOBS, PATIENCE_MS));
    for (int i = 0; i < MAX_JOBS; i++) {
        bool failed = r->outcome[i].error != 0;

        if (failed)
            assert_int_equal(r->outcome[i].error, -EIO);
        n_failed += failed;
        compare(r, expected, i, !failed);
    }
    assert_in_range(n_failed, 1, MAX_JOBS - 1);
    close_rig(r);
    close_rig(expected);
}

static void
the_engine_stops_with_steps_in_flight(void **state)
{
    for (unsigned i = 0; i < 20; i++) {
        struct rig *r = open_rig(true, NULL, 0);

        behind_slow(r->behind, 100);
        for (int k = 0; k < 8; k++)
            submit(r, k, any_job((unsigned)k));
        (void)wait_ended(r, 8, (int)i / 4);
        engine_stop(r->engine);
        close_rig(r);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tokens_are_the_same_when_steps_are_issued_ahead),
        cmocka_unit_test(jobs_without_engram_overtake_no_resolver),
        cmocka_unit_test(no_step_is_issued_behind_the_last_token),
        cmocka_unit_test(a_stop_or_a_cancellation_in_flight_is_nobody_elses_business),
        cmocka_unit_test(a_slot_has_a_new_owner_only_when_the_last_step_that_knows_it_has_ended),
        cmocka_unit_test(penalties_wait_for_the_tokens_they_count),
        cmocka_unit_test(choices_start_behind_the_prompt_they_share),
        cmocka_unit_test(a_step_that_times_out_ends_its_jobs_and_no_others),
        cmocka_unit_test(every_other_step_may_time_out),
        cmocka_unit_test(an_error_of_the_device_ends_every_job),
        cmocka_unit_test(a_device_that_does_not_answer_has_failed),
        cmocka_unit_test(a_late_disk_is_an_error_and_not_a_hang),
        cmocka_unit_test(a_disk_that_fails_ends_the_jobs_that_need_it),
        cmocka_unit_test(the_engine_stops_with_steps_in_flight),
    };
    log_set_level(LOG_LEVEL_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
