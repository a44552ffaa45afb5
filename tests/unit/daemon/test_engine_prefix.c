/* Prompts that begin alike: what the prefix cache saves, nobody can tell from the tokens. Everything on
 * the CPU backend and on a device that runs behind the host, against an engine without the cache. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/log.h"
#include "tests/unit/daemon/engine_rig.h"

static const char *const roomy[] = {"engine.kv_size=2MiB", NULL};

/* Of 40 tokens, the first `n_common` those of family `seed`. */
static struct job *
related(unsigned seed, int n_common, unsigned own)
{
    struct job *job = make_job(3000 + seed, 40, 12), *other = make_job(4000 + own, 40, 12);

    for (int i = n_common; i < 40; i++)
        job->prompt[i] = other->prompt[i];
    for (int k = 0; k < MAX_CHOICES; k++)
        job->seed[k] = own + 7u * (unsigned)k;
    job_free(other);
    return job;
}

static struct job *
family_job(unsigned i)
{
    struct job *job = related(i % 2, i < 12 ? 33 : 20, i);

    if (i % 5 == 1)
        job->n_choices = 2;
    if (i % 5 == 2) {
        job->params.frequency_penalty = 0.4f;
        job->params.repetition_penalty = 1.1f;
    }
    if (i % 5 == 3) {
        job->score_prompt = true;
        job->prompt_scores = calloc((size_t)job->n_prompt, sizeof *job->prompt_scores);
    }
    if (i % 7 == 4)
        job->engram_off = true;
    return job;
}

/* One after the other, so that each finds what those before it left; then all at a time. */
static void
run_family(struct job *(*make)(unsigned), int n, const char *const *options, bool in_turn,
           int least_hits, int most_hits)
{
    struct rig *expected = reference(make, n);

    for (int variant = 0; variant < 3; variant++) {
        struct rig *r = open_rig(variant > 0, options, 0);

        if (variant == 2)
            behind_slow(r->behind, 200);
        for (int i = 0; i < n; i++) {
            submit(r, i, make((unsigned)i));
            if (in_turn)
                assert_true(wait_ended(r, i + 1, PATIENCE_MS));
        }
        assert_true(wait_ended(r, n, PATIENCE_MS));
        for (int i = 0; i < n; i++) {
            assert_int_equal(r->outcome[i].error, 0);
            compare(r, expected, i, true);
        }
        assert_in_range(rig_metric(r, METRIC_ID_prefix_cache_hit_tokens_total), least_hits,
                        most_hits);
        wait_all_free(r);
        close_rig(r);
    }
    close_rig(expected);
}

static struct job *
same_job(unsigned i)
{
    return related(0, 40, i % 2);
}

static void
a_prompt_seen_before_is_computed_from_its_last_span_on(void **state)
{
    /* 40 tokens: spans of 16 end at 16 and 32. */
    run_family(same_job, 4, roomy, true, 3 * 32, 3 * 32);
}

static struct job *
exact_job(unsigned i)
{
    return make_job(3100, 32, 9);
}

static void
the_last_token_of_a_prompt_is_always_computed(void **state)
{
    run_family(exact_job, 3, roomy, true, 2 * 16, 2 * 16);
}

static void
all_kinds_of_jobs_with_common_prompts_are_as_without_a_cache(void **state)
{
    run_family(family_job, MAX_JOBS, roomy, true, 200, 600);
    run_family(family_job, MAX_JOBS, roomy, false, 0, 600);
}

static struct job *
other_job(unsigned i)
{
    return make_job(3200 + i, 40, 12);
}

static void
prompts_of_equal_length_and_other_tokens_find_nothing(void **state)
{
    run_family(other_job, 6, roomy, true, 0, 0);
}

static struct job *
half_bare_job(unsigned i)
{
    struct job *job = related(0, 40, 0);

    job->engram_off = i % 2;
    return job;
}

static void
prompts_with_and_without_engram_have_nothing_in_common(void **state)
{
    run_family(half_bare_job, 2, roomy, true, 0, 0);
    run_family(half_bare_job, 4, roomy, true, 2 * 32, 2 * 32);
}

static void
a_cache_under_pressure_is_evicted_and_jobs_preempted(void **state)
{
    const char *const tight[] = {"engine.kv_size=144KiB", NULL};

    run_family(family_job, MAX_JOBS, tight, true, 0, 600);
    run_family(family_job, MAX_JOBS, tight, false, 0, 600);
    run_family(any_job, MAX_JOBS, roomy, false, 0, 0);
}

static void
chunks_that_are_no_multiple_of_a_page_make_longer_spans(void **state)
{
    const char *const odd[] = {"engine.prefill_chunk=24", "engine.kv_size=2MiB", NULL};
    const char *const odd_off[] = {"engine.prefill_chunk=24", "engine.prefix_cache=false", NULL};
    struct rig *r = open_rig(true, odd, 0), *expected = open_rig(false, odd_off, 0);

    for (int i = 0; i < 3; i++) {
        submit(r, i, make_job(3300, 60, 10));
        submit(expected, i, make_job(3300, 60, 10));
        assert_true(wait_ended(r, i + 1, PATIENCE_MS));
    }
    assert_true(wait_ended(expected, 3, PATIENCE_MS));
    for (int i = 0; i < 3; i++)
        compare(r, expected, i, true);
    assert_int_equal(rig_metric(r, METRIC_ID_prefix_cache_hit_tokens_total), 2 * 48);
    close_rig(r);
    close_rig(expected);
}

static void
a_cache_that_is_off_finds_nothing(void **state)
{
    const char *const off[] = {"engine.prefix_cache=false", NULL};

    run_family(same_job, 4, off, true, 0, 0);
}

static void
what_a_step_that_timed_out_did_not_compute_is_not_found(void **state)
{
    struct rig *expected = reference(same_job, 4);

    for (uint64_t late = 1; late <= 4; late++) {
        struct rig *r = open_rig(true, roomy, 0);

        behind_time_out(r->behind, late);
        submit(r, 0, same_job(0));
        assert_true(wait_ended(r, 1, PATIENCE_MS));
        assert_int_equal(r->outcome[0].error, -ETIMEDOUT);
        for (int i = 1; i < 4; i++) {
            submit(r, i, same_job((unsigned)i));
            assert_true(wait_ended(r, i + 1, PATIENCE_MS));
            assert_int_equal(r->outcome[i].error, 0);
            compare(r, expected, i, true);
        }
        wait_all_free(r);
        close_rig(r);
    }
    close_rig(expected);
}

static struct job *
common_job(unsigned i)
{
    return related(i / 4, 36, i);
}

static void
rows_that_could_not_be_read_leave_nothing_in_the_cache(void **state)
{
    const char *const bad[] = {"tier.nvme.fault=fail=1/1000", "tier.ram.size=0B",
                               "tier.hbm.size=0B",          "tier.nvme.retries=0",
                               "engine.kv_size=2MiB",       NULL};
    struct rig *expected = reference(common_job, MAX_JOBS);
    int n_failed = 0, n_hits = 0;

    for (int variant = 0; variant < 2; variant++) {
        struct rig *r = open_rig(variant > 0, bad, 0);

        for (int i = 0; i < MAX_JOBS; i++) {
            submit(r, i, common_job((unsigned)i));
            assert_true(wait_ended(r, i + 1, PATIENCE_MS));
            n_failed += r->outcome[i].error != 0;
            compare(r, expected, i, r->outcome[i].error == 0);
        }
        n_hits += rig_metric(r, METRIC_ID_prefix_cache_hit_tokens_total);
        wait_all_free(r);
        close_rig(r);
    }
    assert_true(n_failed > 0);
    assert_true(n_failed < 2 * MAX_JOBS);
    assert_true(n_hits > 0);
    close_rig(expected);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_prompt_seen_before_is_computed_from_its_last_span_on),
        cmocka_unit_test(the_last_token_of_a_prompt_is_always_computed),
        cmocka_unit_test(all_kinds_of_jobs_with_common_prompts_are_as_without_a_cache),
        cmocka_unit_test(prompts_of_equal_length_and_other_tokens_find_nothing),
        cmocka_unit_test(prompts_with_and_without_engram_have_nothing_in_common),
        cmocka_unit_test(a_cache_under_pressure_is_evicted_and_jobs_preempted),
        cmocka_unit_test(chunks_that_are_no_multiple_of_a_page_make_longer_spans),
        cmocka_unit_test(a_cache_that_is_off_finds_nothing),
        cmocka_unit_test(what_a_step_that_timed_out_did_not_compute_is_not_found),
        cmocka_unit_test(rows_that_could_not_be_read_leave_nothing_in_the_cache),
    };
    log_set_level(LOG_LEVEL_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
