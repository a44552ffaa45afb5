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

#include "base/log.h"
#include "tests/unit/daemon/engine_rig.h"

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
a_device_that_fails_while_nothing_runs_is_noticed_and_the_loop_is_woken(void **state)
{
    struct rig *r = open_rig(true, NULL, 0);
    struct pollfd readable = {.fd = engine_fd(r->engine), .events = POLLIN};
    struct engine_load load;
    uint64_t wakes;

    submit(r, 0, short_job(3));
    assert_true(wait_ended(r, 1, PATIENCE_MS));
    assert_int_equal(r->outcome[0].error, 0);
    (void)!read(readable.fd, &wakes, sizeof wakes);
    behind_fail(r->behind, 0);
    do {
        assert_int_equal(poll(&readable, 1, 20000), 1);
        (void)!read(readable.fd, &wakes, sizeof wakes);
        assert_null(engine_collect(r->engine));
        engine_load(r->engine, &load);
    } while (load.fault == 0);
    assert_int_equal(load.fault, -EIO);
    submit(r, 1, short_job(4));
    assert_true(wait_ended(r, 2, PATIENCE_MS));
    assert_int_equal(r->outcome[1].error, -EIO);
    close_rig(r);
}

/* For another probe; held: for one that is. It may have been issued before probes were held. */
static void
wait_probe(struct rig *r, bool held)
{
    struct behind_counts counts, before = behind_counts(r->behind);
    int i = 0;

    for (;;) {
        counts = behind_counts(r->behind);
        if (held ? counts.probes > counts.probes_begun : counts.probes > before.probes)
            return;
        assert_true(i++ < 20000);
        usleep(1000);
    }
}

static void
an_engine_that_stops_tells_whether_the_device_has_finished(void **state)
{
    const char *const soon[] = {"tier.nvme.timeout=500ms", NULL};

    for (int held = 0; held < 2; held++) {
        struct rig *r = open_rig(true, soon, 500);
        struct engine_load load;

        submit(r, 0, short_job(3));
        assert_true(wait_ended(r, 1, PATIENCE_MS));
        if (held)
            behind_hold(r->behind, 0);
        wait_probe(r, held);
        engine_stop(r->engine);
        engine_load(r->engine, &load);
        assert_int_equal(load.fault, held ? -EIO : 0);
        close_rig(r);
    }
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
        cmocka_unit_test(a_device_that_fails_while_nothing_runs_is_noticed_and_the_loop_is_woken),
        cmocka_unit_test(an_engine_that_stops_tells_whether_the_device_has_finished),
        cmocka_unit_test(a_late_disk_is_an_error_and_not_a_hang),
        cmocka_unit_test(a_disk_that_fails_ends_the_jobs_that_need_it),
        cmocka_unit_test(the_engine_stops_with_steps_in_flight),
    };
    log_set_level(LOG_LEVEL_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
