#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/duration.h"

static void
times_are_read_and_written_back(void **state)
{
    static const struct {
        const char *text;
        uint64_t ns;
        const char *written;
    } rows[] = {
        {"0", 0, "0s"},
        {"0s", 0, "0s"},
        {"1ns", 1, "1ns"},
        {"250ms", 250000000, "250ms"},
        {"30s", 30000000000, "30s"},
        {"30 S", 30000000000, "30s"},
        {"1.5s", 1500000000, "1500ms"},
        {"90s", 90000000000, "90s"},
        {"2m", 120000000000, "2m"},
        {"2min", 120000000000, "2m"},
        {"60m", 3600000000000, "1h"},
        {"1d", 86400000000000, "1d"},
        {"0.000000001s", 1, "1ns"},
        {"9223372036854775807ns", INT64_MAX, "9223372036854775807ns"},
    };
    char out[32];
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        uint64_t ns = 99;
        struct err err = ERR_INIT;
        assert_int_equal(duration_parse(rows[i].text, &ns, &err), 0);
        assert_int_equal(ns, rows[i].ns);
        assert_string_equal(duration_format(ns, out, sizeof out), rows[i].written);
    }
}

static void
what_is_no_time_is_refused_and_leaves_the_result_alone(void **state)
{
    static const char *const rows[] = {
        "",
        "30",
        "-1s",
        "s",
        "1.s",
        "1 w",
        "1e3s",
        "0.5ns",
        "1s ",
        " 1s",
        "1m30s",
        "106752d",
        "9223372036854775808ns",
        "99999999999999999999999999999999999999999999999999s",
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        uint64_t ns = 99;
        struct err err = ERR_INIT;
        assert_int_equal(duration_parse(rows[i], &ns, &err), -EINVAL);
        assert_int_equal(ns, 99);
        assert_true(strlen(err.text) > 10);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(times_are_read_and_written_back),
        cmocka_unit_test(what_is_no_time_is_refused_and_leaves_the_result_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
