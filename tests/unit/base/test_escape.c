#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/escape.h"

static void
only_shortest_form_utf8_counts(void **state)
{
    static const struct {
        const char *bytes;
        size_t given, length;
    } rows[] = {
        {"a", 1, 1},
        {"", 1, 1}, /* NUL is a character; escape_text writes it as \x00 */
        {"\xC3\xA9", 2, 2},
        {"\xC3\xA9", 1, 0},
        {"\xC0\x80", 2, 0},
        {"\xC1\xBF", 2, 0},
        {"\xE2\x82\xAC", 3, 3},
        {"\xE2\x82\xAC", 2, 0},
        {"\xE0\x9F\xBF", 3, 0},
        {"\xE0\xA0\x80", 3, 3},
        {"\xED\x9F\xBF", 3, 3},
        {"\xED\xA0\x80", 3, 0},
        {"\xF0\x8F\xBF\xBF", 4, 0},
        {"\xF0\x9F\x98\x80", 4, 4},
        {"\xF4\x8F\xBF\xBF", 4, 4},
        {"\xF4\x90\x80\x80", 4, 0},
        {"\xF5\x80\x80\x80", 4, 0},
        {"\x80", 1, 0},
        {"\xFF", 1, 0},
        {"x", 0, 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        assert_int_equal(escape_utf8_length(rows[i].bytes, rows[i].given), rows[i].length);
}

static void
every_output_size_ends_between_pieces(void **state)
{
    static const char text[] = "a\n\xE2\x82\xAC\x01\xC2\x85\xF0\x9F\x98\x80\xFFz\0y";
    char whole[100], out[100];
    size_t length = escape_text(whole, sizeof whole, text, sizeof text - 1);
    assert_string_equal(whole, "a\\n\xE2\x82\xAC\\x01\\xc2\\x85\xF0\x9F\x98\x80\\xffz\\x00y");
    for (size_t size = 1; size <= length + 1; size++) {
        memset(out, '#', sizeof out);
        size_t written = escape_text(out, size, text, sizeof text - 1);
        assert_true(written < size);
        assert_int_equal(out[written], '\0');
        assert_int_equal(out[size], '#');
        assert_memory_equal(out, whole, written);
        assert_true(size - 1 - written < 8);
        if (size == length + 1)
            assert_int_equal(written, length);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(only_shortest_form_utf8_counts),
        cmocka_unit_test(every_output_size_ends_between_pieces),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
