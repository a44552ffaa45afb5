#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/utf8_scan.h"

static void
every_code_point_is_read_as_it_was_written(void **state)
{
    for (uint32_t cp = 0; cp <= 0x10FFFF; cp++) {
        char text[4];
        uint32_t read;
        if (cp >= 0xD800 && cp <= 0xDFFF)
            continue;
        int length = utf8_put(cp, text);
        assert_int_equal(utf8_next(text, 4, &read), length);
        assert_int_equal(read, cp);
        assert_int_equal(utf8_previous(text, (size_t)length, &read), length);
        assert_int_equal(read, cp);
        for (int cut = 1; cut < length; cut++)
            assert_int_equal(utf8_next(text, (size_t)cut, &read), 0);
    }
}

static void
every_pair_of_bytes_is_a_character_a_start_or_broken(void **state)
{
    for (int a = 0; a < 256; a++) {
        for (int b = 0; b < 256; b++) {
            char text[2] = {(char)a, (char)b};
            uint32_t cp;
            int expected;
            bool follows = b >= 0x80 && b <= 0xBF;
            if (a < 0x80)
                expected = 1;
            else if (a < 0xC2 || a > 0xF4)
                expected = -1;
            else if (a < 0xE0)
                expected = follows ? 2 : -1;
            else if ((a == 0xE0 && b < 0xA0) || (a == 0xED && b > 0x9F) ||
                     (a == 0xF0 && b < 0x90) || (a == 0xF4 && b > 0x8F) || !follows)
                expected = -1;
            else
                expected = 0;
            assert_int_equal(utf8_next(text, 2, &cp), expected);
        }
    }
}

static void
check_repair(const char *text, const char *expected)
{
    char *out;
    size_t size;
    assert_int_equal(utf8_repair(text, strlen(text), &out, &size), 0);
    assert_non_null(out);
    assert_int_equal(size, strlen(expected));
    assert_memory_equal(out, expected, size);
    assert_false(utf8_valid(text, strlen(text)));
    assert_true(utf8_valid(out, size));
    free(out);
}

#define R UTF8_REPLACEMENT

static void
broken_parts_become_one_replacement_each(void **state)
{
    check_repair("\xff", R);
    check_repair("a\x80"
                 "b",
                 "a" R "b");
    check_repair("caf\xc3", "caf" R);
    check_repair("\xe4\xb8x", R "x");
    check_repair("\xe4\xb8", R);
    check_repair("\xf0\x9f\x98", R);
    check_repair("\xf0\x9f ok", R " ok");
    check_repair("\xed\xa0\x80", R R R);
    check_repair("\xc0\x80", R R);
    check_repair("\xe0\x80\xaf", R R R);
    check_repair("\xf4\x90\x80\x80", R R R R);
    check_repair("\xf8\x88\x80\x80\x80", R R R R R);
    check_repair("\xf0\x9f\xf0\x9f\x98\x80", R "\xf0\x9f\x98\x80");
    check_repair("\xe4\xe4\xb8\xad", R "\xe4\xb8\xad");
    check_repair("12345678\xff"
                 "12345678\xff",
                 "12345678" R "12345678" R);
}

static void
good_text_is_not_copied(void **state)
{
    char *out;
    size_t size;
    assert_int_equal(utf8_repair("caf\xc3\xa9 au lait", 13, &out, &size), 0);
    assert_null(out);
    assert_int_equal(size, 13);
    assert_int_equal(utf8_repair("", 0, &out, &size), 0);
    assert_null(out);
    assert_int_equal(size, 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_code_point_is_read_as_it_was_written),
        cmocka_unit_test(every_pair_of_bytes_is_a_character_a_start_or_broken),
        cmocka_unit_test(broken_parts_become_one_replacement_each),
        cmocka_unit_test(good_text_is_not_copied),
    };
    return cmocka_run_group_tests_name("utf8_scan", tests, NULL, NULL);
}
