/* The engine when its resolver has died: no flag is raised any more, no token is hashed, no buffer comes back. */
#include "base/clock.h"
#include "base/log.h"
#include "tests/unit/daemon/engine_rig.h"

struct tiers *__real_tiers_free(struct tiers *tiers);
struct tiers *__wrap_tiers_free(struct tiers *tiers);

static bool keep;
static struct tiers *kept;

/* A thread that dies leaves its memory, which steps on the device may still read. */
struct tiers *
__wrap_tiers_free(struct tiers *tiers)
{
    if (!keep || tiers == NULL)
        return __real_tiers_free(tiers);
    kept = tiers;
    return NULL;
}

static struct job *
greedy_job(unsigned seed, int64_t max_tokens)
{
    struct job *job = make_job(seed, 20, max_tokens);

    job->params.temperature = 0;
    return job;
}

static void
let_it_die(struct rig *r)
{
    keep = true;
    resolver_stop(r->serving->resolver);
    keep = false;
}

static void
close_dead(struct rig *r)
{
    engine_stop(r->engine);
    kept = __real_tiers_free(kept);
    close_rig(r);
}

/* n_before jobs have ended well; the others wait for rows that do not come. */
static void
expect_late(struct rig *r, int n_before, int n)
{
    struct engine_load load;
    uint64_t begin_ns = clock_now_ns();

    assert_true(wait_ended(r, n, PATIENCE_MS));
    assert_true(clock_now_ns() - begin_ns < 10000000000);
    for (int i = 0; i < n; i++)
        assert_int_equal(r->outcome[i].error, i < n_before ? 0 : -ETIMEDOUT);
    engine_load(r->engine, &load);
    assert_int_equal(load.fault, 0);
    wait_all_free(r);
}

/* Long enough for a resolver that lives, under a sanitizer on a busy machine. */
static const char *const soon[] = {"tier.nvme.timeout=500ms", NULL};

static void
a_resolver_that_died_between_requests_is_an_error_and_not_a_hang(void **state)
{
    struct rig *r = open_rig(true, soon, 60);

    for (int i = 0; i < 3; i++)
        submit(r, i, greedy_job((unsigned)i, 8));
    assert_true(wait_ended(r, 3, PATIENCE_MS));
    let_it_die(r);
    for (int i = 3; i < 14; i++)
        submit(r, i, greedy_job((unsigned)i, 8));
    expect_late(r, 3, 14);
    close_dead(r);
}

static void
a_resolver_that_dies_during_a_request_is_an_error_and_not_a_hang(void **state)
{
    struct rig *r = open_rig(true, soon, 60);

    behind_hold(r->behind, 6);
    submit(r, 0, greedy_job(1, MAX_TOKENS));
    wait_issued(r, 7);
    let_it_die(r);
    behind_release(r->behind);
    for (int i = 1; i < 6; i++)
        submit(r, i, greedy_job((unsigned)i, 8));
    expect_late(r, 0, 6);
    assert_in_range(r->outcome[0].n_tokens[0], 1, MAX_TOKENS - 1);
    close_dead(r);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_resolver_that_died_between_requests_is_an_error_and_not_a_hang),
        cmocka_unit_test(a_resolver_that_dies_during_a_request_is_an_error_and_not_a_hang),
    };
    log_set_level(LOG_LEVEL_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
