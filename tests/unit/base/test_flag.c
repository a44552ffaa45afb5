#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <pthread.h>

#include "base/clock.h"
#include "base/flag.h"

static void
a_wait_for_a_value_already_reached_returns_at_once(void **state)
{
    struct flag flag = {0};
    assert_int_equal(flag_wait(&flag, 0, 0, 0), 0);
    flag_raise(&flag, 5);
    assert_int_equal(flag_wait(&flag, 5, 0, 0), 0);
    assert_int_equal(flag_wait(&flag, 4, 0, UINT64_MAX), 0);
}

static void
the_word_never_shrinks(void **state)
{
    struct flag flag = {0};
    flag_raise(&flag, 5);
    flag_raise(&flag, 3);
    assert_int_equal(flag_read(&flag), 5);
}

static void
a_wait_that_is_not_answered_times_out(void **state)
{
    struct flag flag = {0};
    static const uint64_t spins_ns[] = {0, 1000000, UINT64_MAX};
    for (int i = 0; i < 3; i++) {
        uint64_t before = clock_now_ns();
        assert_int_equal(flag_wait(&flag, 1, spins_ns[i], 5000000), -ETIMEDOUT);
        uint64_t passed = clock_now_ns() - before;
        assert_true(passed >= 5000000 && passed < 10000000000u);
    }
    assert_int_equal(flag_wait(&flag, 1, 0, 0), -ETIMEDOUT);
}

struct pair {
    struct flag ping, pong;
    uint64_t payload; /* plain: the flags order it, which ThreadSanitizer checks */
    uint64_t spin_ns;
};
enum { ROUNDS = 20000 };

static void *
answer(void *arg)
{
    struct pair *pair = arg;
    for (uint64_t round = 1; round <= ROUNDS; round++) {
        if (flag_wait(&pair->ping, round, pair->spin_ns, 20000000000u) != 0)
            return NULL;
        if (pair->payload != round * 3)
            return NULL;
        pair->payload = round * 7;
        flag_raise(&pair->pong, round);
    }
    return pair;
}

static void
no_raise_is_lost_between_two_threads(void **state)
{
    static const uint64_t spins_ns[] = {0, 300, 20000};
    for (int i = 0; i < 3; i++) {
        struct pair pair = {.spin_ns = spins_ns[i]};
        pthread_t thread;
        void *result = NULL;
        assert_int_equal(pthread_create(&thread, NULL, answer, &pair), 0);
        for (uint64_t round = 1; round <= ROUNDS; round++) {
            pair.payload = round * 3;
            flag_raise(&pair.ping, round);
            assert_int_equal(flag_wait(&pair.pong, round, pair.spin_ns, 20000000000u), 0);
            assert_int_equal(pair.payload, round * 7);
        }
        assert_int_equal(pthread_join(thread, &result), 0);
        assert_ptr_equal(result, &pair);
    }
}

static void *
wait_for_three(void *arg)
{
    return flag_wait(arg, 3, 0, 20000000000u) == 0 ? arg : NULL;
}

static void
one_raise_wakes_every_waiter(void **state)
{
    struct flag flag = {0};
    pthread_t thread[4];
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&thread[i], NULL, wait_for_three, &flag), 0);
    flag_raise(&flag, 2);
    flag_raise(&flag, 3);
    for (int i = 0; i < 4; i++) {
        void *result = NULL;
        assert_int_equal(pthread_join(thread[i], &result), 0);
        assert_ptr_equal(result, &flag);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_wait_for_a_value_already_reached_returns_at_once),
        cmocka_unit_test(the_word_never_shrinks),
        cmocka_unit_test(a_wait_that_is_not_answered_times_out),
        cmocka_unit_test(no_raise_is_lost_between_two_threads),
        cmocka_unit_test(one_raise_wakes_every_waiter),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
