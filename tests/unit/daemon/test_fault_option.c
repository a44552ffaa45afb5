#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <string.h>

#include "daemon/fault_option.h"

static struct fault_option
parsed(const char *text)
{
    struct fault_option option;
    struct err err = ERR_INIT;

    assert_int_equal(fault_option_parse(text, &option, &err), 0);
    return option;
}

static void
an_empty_text_asks_for_nothing(void **state)
{
    struct fault_option option = parsed("");

    assert_false(option.faulty);
    assert_int_equal(option.delay_ns, 0);
}

static void
every_item_is_understood_alone_and_together(void **state)
{
    assert_int_equal(parsed("delay=5ms").delay_ns, 5000000);
    assert_int_equal(parsed("delay=7us").delay_ns, 7000);
    assert_int_equal(parsed("delay=2s").delay_ns, 2000000000);
    assert_int_equal(parsed("fail=1/100").plan.every_nth, 100);

    struct fault_option option = parsed("delay=1ms,fail-from=9,bad=2:100-200");

    assert_true(option.faulty);
    assert_int_equal(option.plan.fail_from, 9);
    assert_int_equal(option.plan.every_nth, 1);
    assert_int_equal(option.plan.bad_file, 2);
    assert_int_equal(option.plan.bad_begin, 100);
    assert_int_equal(option.plan.bad_end, 200);
    assert_int_equal(option.delay_ns, 1000000);
}

static void
a_wrong_item_is_named(void **state)
{
    static const char *const wrong[] = {"delay=5", "delay=0ms", "fail=1/0", "fail=2/3", "bad=0:9-9",
                                        "x",       "delay=5ms,", "delay=5msx", "fail-from=-"};

    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        struct fault_option option;
        struct err err = ERR_INIT;

        assert_int_equal(fault_option_parse(wrong[i], &option, &err), -EINVAL);
        assert_non_null(strstr(err.text, "tier.nvme.fault"));
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_empty_text_asks_for_nothing),
        cmocka_unit_test(every_item_is_understood_alone_and_together),
        cmocka_unit_test(a_wrong_item_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
