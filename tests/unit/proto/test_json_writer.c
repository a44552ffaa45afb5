#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <jansson.h>

#include "base/utf8_scan.h"
#include "proto/json_writer.h"

static struct buf out;

static const char *
written(void)
{
    assert_false(out.failed);
    buf_append(&out, "", 1);
    out.size_bytes = 0;
    return out.data;
}

static const char *
string_of(const char *text)
{
    json_write_text(&out, text);
    return written();
}

static void
strings_are_quoted_and_escaped(void **state)
{
    assert_string_equal(string_of(""), "\"\"");
    assert_string_equal(string_of("a b"), "\"a b\"");
    assert_string_equal(string_of("\"a\\b\"\n"), "\"\\\"a\\\\b\\\"\\n\"");
    assert_string_equal(string_of(NULL), "null");
    assert_string_equal(string_of("\x01\x7f\t\r"), "\"\\u0001\\u007f\\t\\r\"");
}

static void
every_byte_and_pair_of_bytes_gives_json_that_reads_back(void **state)
{
    for (unsigned pair = 0; pair < 65536; pair++) {
        char text[3] = {(char)(pair >> 8), (char)pair, 'x'};
        json_t *back;

        json_write_string(&out, text, 3);
        back = json_loadb(out.data, out.size_bytes, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
        if (!back)
            fail_msg("%04x gave %.*s", pair, (int)out.size_bytes, out.data);
        if (utf8_valid(text, 3)) {
            assert_int_equal(json_string_length(back), 3);
            assert_memory_equal(json_string_value(back), text, 3);
        } else {
            assert_non_null(
                memmem(json_string_value(back), json_string_length(back), "\xef\xbf\xbd", 3));
        }
        assert_int_equal(json_string_value(back)[json_string_length(back) - 1], 'x');
        json_decref(back);
        out.size_bytes = 0;
    }
}

/* Against an encoder that knows nothing of the decoder: every code point is well-formed, and every
 * way to damage it is not. */
static void
utf_8_is_exactly_the_well_formed_sequences(void **state)
{
    for (uint32_t c = 0; c < 0x110000; c++) {
        char text[5];
        int size;

        if (c < 0x80)
            size = sprintf(text, "%c", (int)c) ? 1 : 1;
        else if (c < 0x800)
            size = sprintf(text, "%c%c", (int)(0xC0 | c >> 6), (int)(0x80 | (c & 63)));
        else if (c < 0x10000)
            size = sprintf(text, "%c%c%c", (int)(0xE0 | c >> 12), (int)(0x80 | (c >> 6 & 63)),
                           (int)(0x80 | (c & 63)));
        else
            size = sprintf(text, "%c%c%c%c", (int)(0xF0 | c >> 18), (int)(0x80 | (c >> 12 & 63)),
                           (int)(0x80 | (c >> 6 & 63)), (int)(0x80 | (c & 63)));
        if (c >= 0xD800 && c < 0xE000) {
            assert_int_equal(utf8_step(text, 3), -1);
            continue;
        }
        assert_int_equal(utf8_step(text, (size_t)size), size);
        for (int cut = 1; cut < size; cut++)
            assert_int_equal(utf8_step(text, (size_t)cut), -cut);
    }
    assert_false(utf8_valid("\xc0\x80", 2));
    assert_false(utf8_valid("\xe0\x80\x80", 3));
    assert_false(utf8_valid("\xf0\x80\x80\x80", 4));
    assert_false(utf8_valid("\xf4\x90\x80\x80", 4));
    assert_false(utf8_valid("\xf5\x80\x80\x80", 4));
    assert_false(utf8_valid("\x80", 1));
    assert_true(utf8_valid("", 0));
}

static void
a_broken_sequence_gets_one_replacement_for_its_maximal_part(void **state)
{
    assert_string_equal(string_of("\xf0\x9f\x98"), "\"\xef\xbf\xbd\"");
    assert_string_equal(string_of("\xf0\x9f\x98g"), "\"\xef\xbf\xbdg\"");
    assert_string_equal(string_of("\xe2\x28\xa1"), "\"\xef\xbf\xbd(\xef\xbf\xbd\"");
}

static void
integers_are_exact(void **state)
{
    json_write_int(&out, INT64_MIN);
    assert_string_equal(written(), "-9223372036854775808");
    json_write_uint(&out, UINT64_MAX);
    assert_string_equal(written(), "18446744073709551615");
}

static void
reals_are_short_and_marked_as_reals(void **state)
{
    static const struct {
        double value;
        const char *text;
    } rows[] = {{0, "0.0"},
                {1, "1.0"},
                {-1.5, "-1.5"},
                {0.1, "0.1"},
                {1e300, "1e+300"},
                {1e-7, "1e-07"},
                {100000, "100000.0"},
                {1234567, "1234567.0"},
                {1.0 / 3, "0.3333333333333333"}};

    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        json_write_double(&out, rows[i].value);
        assert_string_equal(written(), rows[i].text);
    }
    json_write_float(&out, 0.1F);
    assert_string_equal(written(), "0.1");
    json_write_float(&out, 16777216.0F);
    assert_string_equal(written(), "16777216.0");
    json_write_float(&out, -0.0F);
    assert_string_equal(written(), "-0.0");
}

static void
what_json_cannot_say_is_null(void **state)
{
    static const double values[] = {NAN, INFINITY, -INFINITY};

    for (int i = 0; i < 3; i++) {
        json_write_double(&out, values[i]);
        assert_string_equal(written(), "null");
        json_write_float(&out, (float)values[i]);
        assert_string_equal(written(), "null");
    }
}

static int
drop_out(void **state)
{
    buf_free(&out);
    return 0;
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(strings_are_quoted_and_escaped),
        cmocka_unit_test(every_byte_and_pair_of_bytes_gives_json_that_reads_back),
        cmocka_unit_test(utf_8_is_exactly_the_well_formed_sequences),
        cmocka_unit_test(a_broken_sequence_gets_one_replacement_for_its_maximal_part),
        cmocka_unit_test(integers_are_exact),
        cmocka_unit_test(reals_are_short_and_marked_as_reals),
        cmocka_unit_test(what_json_cannot_say_is_null),
    };

    return cmocka_run_group_tests(tests, NULL, drop_out);
}
