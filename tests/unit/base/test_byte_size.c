#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/byte_size.h"

static void
sizes_are_read(void **state)
{
    static const struct {
        const char *text;
        uint64_t bytes;
    } rows[] = {
        {"0", 0},
        {"0B", 0},
        {"17", 17},
        {"17B", 17},
        {"8GiB", 8ull << 30},
        {"8gib", 8ull << 30},
        {"8 GiB", 8ull << 30},
        {"8G", 8ull << 30},
        {"8GB", 8000000000ull},
        {"1.5MiB", 3ull << 19},
        {"1.5KB", 1500},
        {"0.5K", 512},
        {"1.000000000000000000000000000000000KiB", 1024},
        {"0000000000000000000000000000000000001KiB", 1024},
        {"0.0009765625KiB", 1},
        {"16TiB", 16ull << 40},
        {"16 TB", 16000000000000ull},
        {"9223372036854775807", INT64_MAX},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        uint64_t bytes = 99;
        struct err err = ERR_INIT;
        assert_int_equal(byte_size_parse(rows[i].text, &bytes, &err), 0);
        assert_int_equal(bytes, rows[i].bytes);
        assert_int_equal(err.code, 0);
    }
}

static void
what_is_no_size_is_refused_and_leaves_the_result_alone(void **state)
{
    static const char *const rows[] = {
        "",
        " ",
        "GiB",
        "-1",
        "+1",
        "1.",
        ".5GiB",
        "1e3",
        "0x10",
        "8  GiB",
        "8GiB ",
        " 8GiB",
        "8 ",
        "8GiBs",
        "8i",
        "8PiB",
        "1,5GiB",
        "1.5",
        "1.0001KiB",
        "0.1KiB",
        "9223372036854775808",
        "8388608TiB",
        "99999999999999999999999999999999999999999999",
        "1.2.3",
        "inf",
        "nan",
        "0.00000000000000000000000000000000000001TiB",
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        uint64_t bytes = 99;
        struct err err = ERR_INIT;
        assert_int_equal(byte_size_parse(rows[i], &bytes, &err), -EINVAL);
        assert_int_equal(bytes, 99);
        assert_int_equal(err.code, -EINVAL);
        assert_non_null(strstr(err.text, "size") ? err.text : strstr(err.text, "bytes"));
    }
}

static void
sizes_are_written_in_the_shortest_exact_form(void **state)
{
    static const struct {
        uint64_t bytes;
        const char *text;
    } rows[] = {
        {0, "0B"},
        {17, "17B"},
        {1023, "1023B"},
        {1024, "1KiB"},
        {1536, "1.5KiB"},
        {8ull << 30, "8GiB"},
        {3ull << 19, "1.5MiB"},
        {1234567, "1.18MiB"},
        {123456789, "118MiB"},
        {(1u << 20) - 1, "1.00MiB"},
        {2000ull << 40, "2000TiB"},
        {UINT64_MAX, "16777216TiB"},
    };
    char out[32];
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        assert_string_equal(byte_size_format(rows[i].bytes, out, sizeof out), rows[i].text);
}

static void
an_exact_form_reads_back_as_the_same_number(void **state)
{
    char out[32];
    for (int unit = 0; unit <= 40; unit += 10) {
        for (uint64_t eighths = 8; eighths < 8192; eighths += 3) {
            uint64_t bytes = (eighths << unit) / 8, back = 0;
            if (unit == 0 && eighths % 8)
                continue;
            assert_int_equal(byte_size_parse(byte_size_format(bytes, out, sizeof out), &back, NULL),
                             0);
            assert_int_equal(back, bytes);
        }
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_are_read),
        cmocka_unit_test(what_is_no_size_is_refused_and_leaves_the_result_alone),
        cmocka_unit_test(sizes_are_written_in_the_shortest_exact_form),
        cmocka_unit_test(an_exact_form_reads_back_as_the_same_number),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
