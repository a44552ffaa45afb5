#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"

static void *
be_the_ring(void *arg)
{
    char *name = arg;
    thread_enter(THREAD_RING);
    ASSERT_THREAD(THREAD_RING);
    (void)prctl(PR_GET_NAME, name);
    return (void *)(uintptr_t)thread_current();
}

static void
a_named_thread_carries_its_name_and_others_do_not(void **state)
{
    char name[16] = "";
    pthread_t thread;
    void *role;
    assert_int_equal(pthread_create(&thread, NULL, be_the_ring, name), 0);
    assert_int_equal(pthread_join(thread, &role), 0);
    assert_int_equal((uintptr_t)role, THREAD_RING);
    assert_string_equal(name, "ring");
    assert_int_equal(thread_current(), THREAD_ANY);
    ASSERT_THREAD(THREAD_ENGINE); /* nobody named this thread */
}

/* What a child that runs fn wrote to standard error; it must have died of SIGABRT. */
static void
aborting_child(void (*fn)(void), char *out, size_t out_size)
{
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        (void)signal(SIGABRT, SIG_DFL);
        (void)dup2(ends[1], STDERR_FILENO);
        fn();
        _exit(0);
    }
    (void)close(ends[1]);
    size_t used = 0;
    for (ssize_t got;
         used < out_size - 1 && (got = read(ends[0], out + used, out_size - 1 - used)) > 0;)
        used += (size_t)got;
    out[used] = '\0';
    (void)close(ends[0]);
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}

static void
break_an_invariant(void)
{
    int pins = 1;
    ASSERT(pins == 0);
}

static void
be_on_the_wrong_thread(void)
{
    thread_enter(THREAD_LOOP);
    ASSERT_THREAD(THREAD_ENGINE);
}

static void
a_broken_invariant_aborts_with_its_place(void **state)
{
    char out[500];
    aborting_child(break_an_invariant, out, sizeof out);
    assert_non_null(strstr(out, "test_check.c:"));
    assert_non_null(strstr(out, "pins == 0"));
    aborting_child(be_on_the_wrong_thread, out, sizeof out);
    assert_non_null(strstr(out, "thread loop"));
}

static void
the_monotonic_clock_counts_nanoseconds(void **state)
{
    uint64_t before = clock_now_ns();
    (void)usleep(2000);
    uint64_t passed = clock_now_ns() - before;
    assert_true(passed >= 2000000 && passed < 60000000000u);
    assert_true(clock_unix_seconds() > 1700000000);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_named_thread_carries_its_name_and_others_do_not),
        cmocka_unit_test(a_broken_invariant_aborts_with_its_place),
        cmocka_unit_test(the_monotonic_clock_counts_nanoseconds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
