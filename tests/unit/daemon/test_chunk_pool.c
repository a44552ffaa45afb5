/* chunk_pool: what is not ready is refused and then comes, everything goes back, nobody waits. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "daemon/chunk_pool.h"
#include "daemon/engine.h"

/* A device that has only memory; `slow` holds whoever asks, as a driver does while a kernel stands. */
static struct {
    struct device device;
    struct device_ops ops;
    _Atomic long bytes;
    _Atomic long calls;
    _Atomic bool refuses, held;
    _Atomic int ready;
} fake;

static void *
fake_alloc(struct device *device, size_t size_bytes)
{
    while (fake.held)
        sched_yield();
    fake.calls++;
    if (fake.refuses)
        return NULL;
    fake.bytes += (long)size_bytes;
    return malloc(size_bytes);
}

static void
fake_free(struct device *device, void *memory, size_t size_bytes)
{
    while (fake.held)
        sched_yield();
    fake.bytes -= (long)size_bytes;
    free(memory);
}

static void
on_ready(void *arg)
{
    fake.ready++;
}

static struct chunk_pool *
open_pool(bool waits)
{
    struct chunk_pool *pool = NULL;
    struct err err = ERR_INIT;

    memset(&fake, 0, sizeof fake);
    fake.ops.alloc = fake.ops.alloc_shared = fake_alloc;
    fake.ops.free = fake.ops.free_shared = fake_free;
    fake.device.ops = &fake.ops;
    assert_int_equal(chunk_pool_new(&pool, &fake.device, false, on_ready, NULL, &err), 0);
    chunk_pool_wait(pool, waits);
    return pool;
}

/* As steps begin, one after the other. */
static void *
until_there(const struct chunk_ops *ops, size_t size)
{
    uint64_t give_up = clock_now_ns() + 10000000000u, step = 0;

    for (;;) {
        ops->begin(ops->arg, ++step);
        void *chunk = ops->alloc(ops->arg, size);

        if (chunk)
            return chunk;
        assert_true(clock_now_ns() < give_up);
        sched_yield();
    }
}

static void
at_start_memory_is_there_at_once(void **state)
{
    struct chunk_pool *pool = open_pool(true);
    struct chunk_ops ops = chunk_pool_ops(pool);
    void *chunk = ops.alloc(ops.arg, 1 << 20);

    assert_non_null(chunk);
    ops.free(ops.arg, chunk, 1 << 20);
    chunk_pool_free(pool);
    assert_int_equal(fake.bytes, 0);
}

static void
later_it_is_refused_until_the_thread_has_it(void **state)
{
    struct chunk_pool *pool = open_pool(false);
    struct chunk_ops ops = chunk_pool_ops(pool);

    assert_true(ops.later(ops.arg));
    fake.held = true;
    assert_null(ops.alloc(ops.arg, 1 << 20)); /* and this thread is not held */
    assert_null(ops.alloc(ops.arg, 1 << 20));
    assert_int_equal(fake.ready, 0);
    fake.held = false;
    void *chunk = until_there(&ops, 1 << 20);
    assert_true(fake.ready >= 1);
    fake.held = true;
    ops.free(ops.arg, chunk, 1 << 20); /* nor here */
    fake.held = false;
    chunk_pool_free(pool);
    assert_int_equal(fake.bytes, 0);
}

static void
no_step_is_given_what_came_after_its_launch(void **state)
{
    struct chunk_pool *pool = open_pool(false);
    struct chunk_ops ops = chunk_pool_ops(pool);

    ops.begin(ops.arg, 10);
    assert_null(ops.alloc(ops.arg, 1 << 20));
    while (fake.ready < 8)
        sched_yield();
    for (uint64_t step = 10; step < 10 + ENGINE_STEPS_IN_FLIGHT; step++) {
        ops.begin(ops.arg, step);
        assert_null(ops.alloc(ops.arg, 1 << 20)); /* in flight by then, maybe */
    }
    assert_int_equal(fake.calls, 8); /* what is ready is not asked for again */
    ops.begin(ops.arg, 10 + ENGINE_STEPS_IN_FLIGHT);
    void *chunk = ops.alloc(ops.arg, 1 << 20);
    assert_non_null(chunk);
    /* What nobody wants goes back, what is in use stays. */
    for (uint64_t step = 64; step < 1300; step++)
        ops.begin(ops.arg, step);
    uint64_t give_up = clock_now_ns() + 10000000000u;
    while (fake.bytes > 1 << 20 && clock_now_ns() < give_up)
        sched_yield();
    assert_int_equal(fake.bytes, 1 << 20);
    ops.free(ops.arg, chunk, 1 << 20);
    chunk_pool_free(pool);
    assert_int_equal(fake.bytes, 0);
}

static void
small_chunks_share_slabs_and_do_not_overlap(void **state)
{
    enum { N = 200, SIZE = 60000 };
    struct chunk_pool *pool = open_pool(true);
    struct chunk_ops ops = chunk_pool_ops(pool);
    uint8_t *chunk[N];

    for (int i = 0; i < N; i++) {
        chunk[i] = ops.alloc(ops.arg, SIZE);
        assert_non_null(chunk[i]);
        memset(chunk[i], i, SIZE);
    }
    assert_true(fake.calls < N / 16);
    for (int i = 0; i < N; i++)
        for (int b = 0; b < SIZE; b += 997)
            assert_int_equal(chunk[i][b], (uint8_t)i);
    for (int i = 0; i < N; i += 2)
        ops.free(ops.arg, chunk[i], SIZE);
    for (int i = 0; i < N; i += 2)
        assert_non_null(chunk[i] = ops.alloc(ops.arg, SIZE));
    long most = fake.bytes;
    for (int i = 0; i < N; i++)
        ops.free(ops.arg, chunk[i], SIZE);
    chunk_pool_free(pool);
    assert_int_equal(fake.bytes, 0);
    assert_true(most <= (N / 34 + 2) * (2l << 20));
}

static void
without_memory_it_is_asked_for_again(void **state)
{
    struct chunk_pool *pool = open_pool(false);
    struct chunk_ops ops = chunk_pool_ops(pool);

    fake.refuses = true;
    assert_null(ops.alloc(ops.arg, 1 << 20));
    while (fake.calls == 0)
        sched_yield();
    assert_null(ops.alloc(ops.arg, 1 << 20));
    fake.refuses = false;
    void *chunk = until_there(&ops, 1 << 20);
    ops.free(ops.arg, chunk, 1 << 20);
    chunk_pool_free(pool);
    assert_int_equal(fake.bytes, 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(at_start_memory_is_there_at_once),
        cmocka_unit_test(later_it_is_refused_until_the_thread_has_it),
        cmocka_unit_test(no_step_is_given_what_came_after_its_launch),
        cmocka_unit_test(small_chunks_share_slabs_and_do_not_overlap),
        cmocka_unit_test(without_memory_it_is_asked_for_again),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
