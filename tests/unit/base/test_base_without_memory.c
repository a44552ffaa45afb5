#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/failing_malloc.h"

#include "base/arena.h"
#include "base/buf.h"
#include "base/mailbox.h"
#include "base/metric.h"
#include "base/pool.h"

/* Runs the scenario with the 1st, 2nd, ... allocation failing (and all after it), until none did.
 * It returns whether it got everything it asked for. Returns how many allocations there were. */
static long
fail_in_turn(bool (*scenario)(void))
{
    for (long n = 0;; n++) {
        failing_malloc_arm(n);
        bool complete = scenario();
        bool failed = failing_malloc_disarm();
        assert_int_equal(complete, !failed);
        if (!failed)
            return n;
        assert_true(n < 10000);
    }
}

static bool
use_an_arena(void)
{
    struct arena *arena = arena_new(0);
    bool complete = arena && arena_alloc(arena, 100) && arena_alloc(arena, 5000) &&
                    arena_alloc(arena, 1 << 20) && arena_strndup(arena, "text", 4);
    arena_free(arena);
    return complete;
}

static bool
use_a_buf(void)
{
    struct buf buf = {0};
    buf_text(&buf, "some");
    buf_printf(&buf, "%2000d", 7);
    for (int i = 0; i < 100; i++)
        buf_append(&buf, "0123456789", 10);
    bool complete = !buf.failed && buf.size_bytes == 3004;
    buf_free(&buf);
    return complete;
}

static bool
use_metrics(void)
{
    struct metrics *metrics = metrics_new();
    bool complete = metrics != NULL;
    if (metrics) {
        complete = metrics_series(metrics, METRIC_ID_tier_used_bytes, "tier=\"hbm\"") == 0 &&
                   metrics_series(metrics, METRIC_ID_tier_used_bytes, "tier=\"ram\"") == 1;
        /* The row is whole either way. */
        metrics_set(metrics, METRIC_ID_tier_used_bytes, 0, 3);
        struct buf out = {0};
        metrics_render(metrics, &out);
        complete = complete && !out.failed;
        buf_free(&out);
    }
    metrics_free(metrics);
    return complete;
}

static bool
use_a_mailbox(void)
{
    struct mailbox *mailbox = mailbox_new(100);
    bool complete = mailbox != NULL;
    mailbox_free(mailbox);
    return complete;
}

static bool
use_a_pool(void)
{
    struct pool *pool = NULL;
    struct err err = ERR_INIT;
    int result = pool_new(&pool, 3, &err);
    if (result < 0) {
        assert_null(pool);
        assert_int_equal(err.code, result);
        assert_true(err.text[0] != '\0');
    }
    pool_free(pool);
    return result == 0;
}

static void
every_failed_allocation_is_reported_and_nothing_leaks(void **state)
{
    assert_true(fail_in_turn(use_an_arena) >= 3);
    assert_true(fail_in_turn(use_a_buf) >= 3);
    assert_true(fail_in_turn(use_metrics) > METRIC_ID_COUNT);
    assert_true(fail_in_turn(use_a_mailbox) >= 1);
    assert_true(fail_in_turn(use_a_pool) >= 1);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_failed_allocation_is_reported_and_nothing_leaks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
