/* KV pages that are too few: jobs are preempted and computed again, and nobody can tell from what they
 * are given. Everything on the CPU backend and on a device that runs behind the host. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/log.h"
#include "tests/unit/daemon/engine_rig.h"

static const char *const pages_8[] = {"engine.kv_size=128KiB", NULL};
static const char *const pages_11[] = {"engine.kv_size=176KiB", NULL};

static struct job *
long_job(unsigned i)
{
    return make_job(900 + i, 40, 60);
}

static struct job *
counting_job(unsigned i)
{
    struct job *job = make_job(950 + i, 37, 60);

    job->params.presence_penalty = 0.5f;
    job->params.frequency_penalty = 0.3f;
    job->params.repetition_penalty = 1.1f;
    return job;
}

static struct job *
forking_job(unsigned i)
{
    struct job *job = make_job(970 + i, 21 + (int)i, 40);

    job->n_choices = 2;
    if (i == 2) {
        job->params.repetition_penalty = 1.2f;
        job->min_tokens = 30;
        for (int k = 0; k < 40; k++)
            job->stop_ids[job->n_stop_ids++] = 9 * k;
    }
    return job;
}

static struct job *
mixed_job(unsigned i)
{
    return i % 4 == 0 ? long_job(i) : any_job(i);
}

static void
hurry_or_crawl(struct rig *r, unsigned microseconds)
{
    if (r->behind)
        behind_slow(r->behind, microseconds);
}

/* Runs n jobs in few pages, with and without steps in flight: same tokens, and some were preempted. */
static void
run_tight(struct job *(*make)(unsigned), int n, const char *const *pages)
{
    struct rig *expected = reference(make, n);

    for (int variant = 0; variant < 3; variant++) {
        struct rig *r = open_rig(variant > 0, pages, 0);

        hurry_or_crawl(r, variant == 2 ? 300 : 0);
        if (r->behind) /* none ends before all are there to compete for pages */
            behind_hold(r->behind, 0);
        for (int i = 0; i < n; i++)
            submit(r, i, make((unsigned)i));
        if (r->behind)
            behind_release(r->behind);
        assert_true(wait_ended(r, n, PATIENCE_MS));
        for (int i = 0; i < n; i++) {
            assert_int_equal(r->outcome[i].error, 0);
            compare(r, expected, i, true);
        }
        assert_true(rig_metric(r, METRIC_ID_preemptions_total) > 0);
        wait_all_free(r);
        close_rig(r);
    }
    close_rig(expected);
}

static void
two_long_jobs_in_few_pages_end_as_if_there_were_many(void **state)
{
    run_tight(long_job, 2, pages_8);
}

static void
a_queue_of_long_jobs_gets_through_few_pages(void **state)
{
    run_tight(long_job, 8, pages_8);
}

static void
penalties_count_what_was_generated_before_the_preemption(void **state)
{
    run_tight(counting_job, 3, pages_8);
}

static void
all_choices_of_a_job_are_preempted_and_share_their_prompt_again(void **state)
{
    run_tight(forking_job, 4, pages_11);
}

static void
all_kinds_of_jobs_get_through_few_pages(void **state)
{
    run_tight(mixed_job, MAX_JOBS, pages_11);
}

/* Until a job has been preempted and waits. */
static void
wait_preempted(struct rig *r)
{
    struct engine_load load = {0};

    for (int i = 0; load.waiting == 0 || rig_metric(r, METRIC_ID_preemptions_total) == 0; i++) {
        assert_true(i < 1000);
        (void)wait_ended(r, r->n_ended + 1, 1);
        engine_load(r->engine, &load);
    }
}

static void
a_preempted_job_can_be_cancelled(void **state)
{
    struct rig *r = open_rig(true, pages_8, 0), *expected = reference(long_job, 2);

    behind_slow(r->behind, 2000);
    for (int i = 0; i < 2; i++)
        submit(r, i, long_job((unsigned)i));
    wait_preempted(r);
    atomic_store(&r->jobs[1]->cancelled, true);
    engine_wake(r->engine);
    assert_true(wait_ended(r, 1, PATIENCE_MS));
    assert_true(r->outcome[1].ended);
    assert_int_equal(r->outcome[1].error, -ECANCELED);
    assert_true(wait_ended(r, 2, PATIENCE_MS));
    compare(r, expected, 0, true);
    compare(r, expected, 1, false);
    wait_all_free(r);
    close_rig(r);
    close_rig(expected);
}

static void
choices_of_a_preempted_job_can_be_stopped(void **state)
{
    struct rig *expected = reference(forking_job, 2);

    for (int n_stopped = 1; n_stopped <= 2; n_stopped++) {
        struct rig *r = open_rig(true, pages_11, 0);

        behind_slow(r->behind, 2000);
        for (int i = 0; i < 2; i++)
            submit(r, i, forking_job((unsigned)i));
        wait_preempted(r);
        for (int k = 0; k < n_stopped; k++)
            atomic_store(&r->jobs[1]->stop[k], true);
        engine_wake(r->engine);
        assert_true(wait_ended(r, 2, PATIENCE_MS));
        assert_int_equal(r->outcome[1].error, 0);
        assert_true(r->outcome[1].n_tokens[0] < 40);
        if (n_stopped == 1)
            assert_int_equal(r->outcome[1].n_tokens[1], 40);
        compare(r, expected, 0, true);
        compare(r, expected, 1, false);
        wait_all_free(r);
        close_rig(r);
    }
    close_rig(expected);
}

/* The step that was in flight when the job was preempted times out, or the device fails. */
static void
what_happens_to_a_step_is_no_business_of_a_job_that_was_preempted_from_it(void **state)
{
    struct rig *expected = reference(long_job, 2);

    for (uint64_t late = 8; late < 60; late += 3) {
        struct rig *r = open_rig(true, pages_8, 0);

        behind_time_out(r->behind, late);
        for (int i = 0; i < 2; i++)
            submit(r, i, long_job((unsigned)i));
        assert_true(wait_ended(r, 2, PATIENCE_MS));
        for (int i = 0; i < 2; i++) {
            bool ended = r->outcome[i].error == 0;

            assert_true(ended || r->outcome[i].error == -ETIMEDOUT);
            compare(r, expected, i, ended);
        }
        wait_all_free(r);
        close_rig(r);
    }
    close_rig(expected);
}

static void
a_device_that_fails_ends_preempted_jobs_too(void **state)
{
    for (uint64_t step = 20; step < 50; step += 5) {
        struct rig *r = open_rig(true, pages_8, 0);

        behind_fail(r->behind, step);
        for (int i = 0; i < 4; i++)
            submit(r, i, long_job((unsigned)i));
        assert_true(wait_ended(r, 4, PATIENCE_MS));
        for (int i = 0; i < 4; i++)
            assert_int_equal(r->outcome[i].error, -EIO);
        close_rig(r);
    }
}

static void
the_engine_stops_with_jobs_preempted(void **state)
{
    struct rig *r = open_rig(true, pages_8, 0);

    behind_slow(r->behind, 1000);
    for (int i = 0; i < 3; i++)
        submit(r, i, counting_job((unsigned)i));
    wait_preempted(r);
    engine_stop(r->engine);
    close_rig(r);
}

static void
a_job_that_needs_more_pages_than_there_are_is_refused(void **state)
{
    struct rig *r = open_rig(true, pages_8, 0), *expected = reference(long_job, 2);

    submit(r, 0, long_job(0));
    submit(r, 1, make_job(1, 100, 60));
    assert_true(wait_ended(r, 2, PATIENCE_MS));
    assert_int_equal(r->outcome[0].error, 0);
    assert_int_not_equal(r->outcome[1].error, 0);
    assert_int_equal(r->outcome[1].n_tokens[0], 0);
    compare(r, expected, 0, true);
    close_rig(r);
    close_rig(expected);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(two_long_jobs_in_few_pages_end_as_if_there_were_many),
        cmocka_unit_test(a_queue_of_long_jobs_gets_through_few_pages),
        cmocka_unit_test(penalties_count_what_was_generated_before_the_preemption),
        cmocka_unit_test(all_choices_of_a_job_are_preempted_and_share_their_prompt_again),
        cmocka_unit_test(all_kinds_of_jobs_get_through_few_pages),
        cmocka_unit_test(a_preempted_job_can_be_cancelled),
        cmocka_unit_test(choices_of_a_preempted_job_can_be_stopped),
        cmocka_unit_test(what_happens_to_a_step_is_no_business_of_a_job_that_was_preempted_from_it),
        cmocka_unit_test(a_device_that_fails_ends_preempted_jobs_too),
        cmocka_unit_test(the_engine_stops_with_jobs_preempted),
        cmocka_unit_test(a_job_that_needs_more_pages_than_there_are_is_refused),
    };
    log_set_level(LOG_LEVEL_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
