#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/buf.h"

static void
appended_pieces_stand_in_order(void **state)
{
    struct buf buf = {0};
    for (int i = 0; i < 1000; i++)
        buf_printf(&buf, "%d,", i);
    buf_text(&buf, "end");
    assert_false(buf.failed);
    assert_memory_equal(buf.data, "0,1,2,3,", 8);
    assert_memory_equal(buf.data + buf.size_bytes - 7, "999,end", 7);
    buf_free(&buf);
    assert_null(buf.data);
}

static void
a_printed_text_longer_than_the_small_buffer_is_complete(void **state)
{
    struct buf buf = {0};
    for (int length = 510; length <= 514; length++) {
        buf_reset(&buf);
        buf_printf(&buf, "%*d", length, 7);
        assert_int_equal(buf.size_bytes, length);
        assert_int_equal(buf.data[length - 1], '7');
    }
    buf_free(&buf);
}

static void
the_limit_can_be_filled_but_not_passed(void **state)
{
    struct buf buf = {.limit_bytes = 5};
    buf_text(&buf, "12345");
    assert_false(buf.failed);
    buf_text(&buf, "6");
    assert_true(buf.failed);
    assert_int_equal(buf.size_bytes, 5);
    assert_true(buf.capacity_bytes <= 5);
    buf_free(&buf);
}

static void
after_a_dropped_append_nothing_more_is_taken(void **state)
{
    struct buf buf = {.limit_bytes = 5};
    buf_text(&buf, "123");
    buf_text(&buf, "4567");
    buf_text(&buf, "8");
    assert_true(buf.failed);
    assert_int_equal(buf.size_bytes, 3);
    buf_reset(&buf);
    assert_false(buf.failed);
    buf_text(&buf, "8");
    assert_int_equal(buf.size_bytes, 1);
    buf_free(&buf);
}

static void
an_append_of_an_absurd_size_fails_without_touching_memory(void **state)
{
    struct buf buf = {0};
    buf_text(&buf, "x");
    buf_append(&buf, "y", SIZE_MAX);
    assert_true(buf.failed);
    buf_reset(&buf);
    buf_append(&buf, NULL, 0);
    assert_false(buf.failed);
    buf_free(&buf);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(appended_pieces_stand_in_order),
        cmocka_unit_test(a_printed_text_longer_than_the_small_buffer_is_complete),
        cmocka_unit_test(the_limit_can_be_filled_but_not_passed),
        cmocka_unit_test(after_a_dropped_append_nothing_more_is_taken),
        cmocka_unit_test(an_append_of_an_absurd_size_fails_without_touching_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
