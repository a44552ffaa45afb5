#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/json_grammar.h"
#include "model/json_span.h"

/* Opens a copy without a NUL behind it, so that a sanitizer sees each byte read too many. */
static int
open_text(const char *text, size_t size, struct err *err)
{
    struct json_span span;
    char *copy = malloc(size ? size : 1);
    assert_non_null(copy);
    memcpy(copy, text, size);
    int r = json_span_open(&span, copy, size, err);
    if (r == 0) {
        struct json_walk walk = json_walk(span);
        struct json_span key, value;
        while (json_walk_next(&walk, &key, &value))
            assert_int_not_equal(json_span_kind(value), JSON_NONE);
    }
    free(copy);
    return r;
}

static void
good_json_is_accepted(void **state)
{
    static const char *const good[] = {
        "0",
        "-0",
        "12",
        "-1.5e+10",
        "1E5",
        "0.0",
        "\"\"",
        "null",
        "true",
        "false",
        " [ ] ",
        "{}",
        "[1,2]",
        "[[],{},[[]]]",
        "{\"a\":1}",
        "\"\\u00e9\\ud83d\\ude00\\n\\/\"",
        "{\"a\" : [ { \"b\" : null } , 2 ] }\n",
        "\"\xe4\xb8\xad \xf0\x9f\x98\x80\"",
        "[\"]\",\"}\",\"\\\"\"]",
        "\"\\u0000\"",
    };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        struct err err = ERR_INIT;
        if (open_text(good[i], strlen(good[i]), &err) < 0)
            fail_msg("%s: %s", good[i], err.text);
    }
}

static void
bad_json_is_refused(void **state)
{
    static const char *const bad[] = {
        "",
        " ",
        "nul",
        "truee",
        "01",
        "1.",
        "-",
        ".5",
        "1e",
        "+1",
        "[",
        "]",
        "[1",
        "[1,",
        "[1,]",
        "[,1]",
        "[1 2]",
        "{",
        "{\"a\"",
        "{\"a\":",
        "{\"a\":1",
        "{\"a\":1,",
        "{\"a\":1,}",
        "{a:1}",
        "{1:1}",
        "{\"a\" 1}",
        "{\"a\":}",
        "{,}",
        "\"",
        "\"a",
        "\"\\\"",
        "\"\\x\"",
        "\"\\u12\"",
        "\"\\u12g4\"",
        "\"\\ud800\"",
        "\"\\udc00\"",
        "\"\\ud800\\u0041\"",
        "\"\\ud800\\ud800\"",
        "\"\n\"",
        "\"\xff\"",
        "\"\xe4\xb8\"",
        "\"\xed\xa0\x80\"",
        "[1]]",
        "[1] 2",
        "{}{}",
        "'a'",
        "NaN",
        "[1}",
        "{\"a\":1]",
        "//x\n1",
        "\xef\xbb\xbf[]",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct err err = ERR_INIT;
        if (open_text(bad[i], strlen(bad[i]), &err) != -EBADMSG)
            fail_msg("accepted: %s", bad[i]);
        assert_true(err.text[0] != '\0');
    }
    assert_int_equal(open_text("[\0]", 3, NULL), -EBADMSG);
}

static void
every_prefix_of_a_document_is_refused(void **state)
{
    static const char text[] = "{\"a\":[1,-2.5e3,\"x\\u00e9\\ud83d\\ude00\\\\\",{\"b\":null,\"c\":["
                               "true,false]}],\"d\":{}}";
    for (size_t size = 0; size < sizeof text - 1; size++)
        assert_int_equal(open_text(text, size, NULL), -EBADMSG);
    assert_int_equal(open_text(text, sizeof text - 1, NULL), 0);
}

static void
nesting_has_a_limit(void **state)
{
    char text[4 * JSON_GRAMMAR_MAX_DEPTH];
    for (int depth = JSON_GRAMMAR_MAX_DEPTH - 1; depth <= JSON_GRAMMAR_MAX_DEPTH + 1; depth++) {
        memset(text, '[', (size_t)depth);
        memset(text + depth, ']', (size_t)depth);
        assert_int_equal(open_text(text, (size_t)depth * 2, NULL),
                         depth <= JSON_GRAMMAR_MAX_DEPTH ? 0 : -EBADMSG);
    }
    size_t many = 1 << 20;
    char *deep = malloc(many);
    assert_non_null(deep);
    memset(deep, '[', many);
    assert_int_equal(open_text(deep, many, NULL), -EBADMSG);
    free(deep);
}

static struct json_span
span_of(const char *text)
{
    struct json_span span;
    assert_int_equal(json_span_open(&span, text, strlen(text), NULL), 0);
    return span;
}

static void
members_and_elements_are_found(void **state)
{
    struct json_span span =
        span_of(" {\"a\": 1, \"b\" :[2, \"x,]}\\\"\", {}],\"c\":{\"a\":3},\"a\":4,\"\\u0064\":5} ");
    int64_t value = 0;
    assert_int_equal(json_span_kind(span), JSON_OBJECT);
    assert_true(json_span_integer(json_span_member(span, "a"), &value));
    assert_int_equal(value, 4); /* the last one */
    assert_true(json_span_integer(json_span_member(span, "d"), &value));
    assert_int_equal(value, 5); /* a name written with an escape */
    assert_null(json_span_member(span, "e").text);
    struct json_walk walk = json_walk(json_span_member(span, "b"));
    struct json_span key, element;
    assert_true(json_walk_next(&walk, &key, &element));
    assert_null(key.text);
    assert_true(json_span_integer(element, &value));
    assert_int_equal(value, 2);
    assert_true(json_walk_next(&walk, &key, &element));
    assert_true(json_walk_next(&walk, &key, &element));
    assert_int_equal(json_span_kind(element), JSON_OBJECT);
    assert_false(json_walk_next(&walk, &key, &element));
    assert_null(json_span_member(span_of("[1]"), "a").text);
    walk = json_walk(span_of("\"a\""));
    assert_false(json_walk_next(&walk, &key, &element));
}

static void
strings_lose_their_escapes(void **state)
{
    char out[100];
    size_t size = json_span_string(
        span_of("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u0041\\u00E9\\u4e2d\\uD83d\\uDe00\\u0000x\""), out);
    static const char expected[] = "\"\\/\b\f\n\r\tA\xc3\xa9\xe4\xb8\xad\xf0\x9f\x98\x80\0x";
    assert_int_equal(size, sizeof expected - 1);
    assert_memory_equal(out, expected, size);
}

static void
integers_are_exact_or_refused(void **state)
{
    int64_t value = 7;
    assert_true(json_span_integer(span_of("9223372036854775807"), &value));
    assert_true(value == INT64_MAX);
    assert_true(json_span_integer(span_of("-9223372036854775808"), &value));
    assert_true(value == INT64_MIN);
    assert_false(json_span_integer(span_of("9223372036854775808"), &value));
    assert_false(json_span_integer(span_of("-9223372036854775809"), &value));
    assert_false(json_span_integer(span_of("1.0"), &value));
    assert_false(json_span_integer(span_of("1e3"), &value));
    assert_false(json_span_integer(span_of("\"1\""), &value));
    assert_false(json_span_integer((struct json_span){0}, &value));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(good_json_is_accepted),
        cmocka_unit_test(bad_json_is_refused),
        cmocka_unit_test(every_prefix_of_a_document_is_refused),
        cmocka_unit_test(nesting_has_a_limit),
        cmocka_unit_test(members_and_elements_are_found),
        cmocka_unit_test(strings_lose_their_escapes),
        cmocka_unit_test(integers_are_exact_or_refused),
    };
    return cmocka_run_group_tests_name("json_span", tests, NULL, NULL);
}
