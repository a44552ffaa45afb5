#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include <stdbool.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/check.h"
#include "base/pool.h"

enum { MOST = 64 };
struct tally {
    int ran[MOST], n_parts; /* plain: the pool orders them, which ThreadSanitizer checks */
    bool by_worker[MOST];
};

static void
mark(void *arg, int part, int n_parts)
{
    struct tally *tally = arg;
    tally->ran[part]++;
    if (part == 0)
        tally->n_parts = n_parts;
}

static void
every_part_runs_once_per_run(void **state)
{
    static const int sizes[] = {1, 2, 3, 7};
    for (int i = 0; i < 4; i++) {
        struct pool *pool = NULL;
        struct err err = ERR_INIT;
        assert_int_equal(pool_new(&pool, sizes[i], &err), 0);
        assert_int_equal(pool_threads(pool), sizes[i]);
        struct tally tally = {0};
        int rounds = 3000;
        for (int round = 0; round < rounds; round++) {
            if (round % 300 == 299)
                (void)usleep(500); /* long enough for the workers to fall asleep */
            pool_run(pool, mark, &tally);
        }
        for (int part = 0; part < MOST; part++)
            assert_int_equal(tally.ran[part], part < sizes[i] ? rounds : 0);
        assert_int_equal(tally.n_parts, sizes[i]);
        assert_null(pool_free(pool));
    }
}

static void
nap(void *arg, int part, int n_parts)
{
    struct tally *tally = arg;
    (void)usleep(3000);
    tally->ran[part]++;
    tally->by_worker[part] = thread_current() == THREAD_WORKER;
}

static void
workers_take_parts_and_the_caller_waits_for_slow_ones(void **state)
{
    struct pool *pool = NULL;
    assert_int_equal(pool_new(&pool, 3, NULL), 0);
    struct tally tally = {0};
    int by_workers = 0;
    for (int round = 1; round <= 20; round++) {
        pool_run(pool, nap, &tally);
        for (int part = 0; part < 3; part++)
            assert_int_equal(tally.ran[part], round);
        by_workers += tally.by_worker[0] + tally.by_worker[1] + tally.by_worker[2];
    }
    /* Parts are naps: the caller cannot have taken them all while the workers had nothing to do. */
    assert_true(by_workers > 0);
    pool_free(pool);
}

static double
cpu_seconds(void)
{
    struct rusage usage;
    assert_int_equal(getrusage(RUSAGE_SELF, &usage), 0);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static void
an_idle_pool_costs_no_cpu(void **state)
{
    struct pool *pool = NULL;
    struct tally tally = {0};
    assert_int_equal(pool_new(&pool, 4, NULL), 0);
    pool_run(pool, mark, &tally);
    (void)usleep(20000);
    double before = cpu_seconds();
    (void)usleep(300000);
    assert_true(cpu_seconds() - before < 0.05);
    pool_free(pool);
}

static void
the_number_of_threads_is_bounded(void **state)
{
    struct pool *pool = NULL;
    struct err err = ERR_INIT;
    assert_int_equal(pool_new(&pool, -1, &err), -EINVAL);
    assert_int_equal(pool_new(&pool, 1000000, NULL), -EINVAL);
    assert_null(pool);
    assert_non_null(strstr(err.text, "threads"));
    assert_int_equal(pool_new(&pool, 0, &err), 0);
    assert_true(pool_threads(pool) >= 1);
    pool_free(pool);
    assert_null(pool_free(NULL));
}

static void
slices_cover_the_range_once_in_multiples_of_the_grain(void **state)
{
    for (long n = 0; n < 70; n++) {
        for (long grain = 1; grain < 20; grain++) {
            for (int n_parts = 1; n_parts < 9; n_parts++) {
                long at = 0;
                for (int part = 0; part < n_parts; part++) {
                    long begin, end;
                    pool_slice(n, grain, part, n_parts, &begin, &end);
                    assert_int_equal(begin, at);
                    assert_true(end >= begin);
                    assert_true(begin % grain == 0 || begin == n);
                    at = end;
                }
                assert_int_equal(at, n);
            }
        }
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_part_runs_once_per_run),
        cmocka_unit_test(workers_take_parts_and_the_caller_waits_for_slow_ones),
        cmocka_unit_test(an_idle_pool_costs_no_cpu),
        cmocka_unit_test(the_number_of_threads_is_bounded),
        cmocka_unit_test(slices_cover_the_range_once_in_multiples_of_the_grain),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
