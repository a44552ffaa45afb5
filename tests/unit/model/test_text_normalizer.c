/* Forms against utf8proc_map on whole short texts, and on texts where that one would take forever.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <utf8proc.h>

#include "base/utf8_scan.h"
#include "model/text_normalizer.h"
#include "model/unicode9.h"

static const utf8proc_option_t options[] = {
    [TEXT_NFC] = UTF8PROC_STABLE | UTF8PROC_COMPOSE,
    [TEXT_NFD] = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE,
    [TEXT_NFKC] = UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT,
    [TEXT_NFKD] = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT,
};

static void
check_all_forms(const char *text, size_t size)
{
    for (int form = TEXT_NFC; form <= TEXT_NFKD; form++) {
        struct text_normalizer n = {.form = {(enum text_form)form}, .n_forms = 1};
        utf8proc_uint8_t *expected = NULL;
        char *out;
        size_t out_size;
        utf8proc_ssize_t expected_size = utf8proc_map(
            (const utf8proc_uint8_t *)text, (utf8proc_ssize_t)size, &expected, options[form]);
        assert_true(expected_size >= 0);
        assert_int_equal(text_normalize(&n, text, size, &out, &out_size, NULL), 0);
        assert_int_equal(out_size, expected_size);
        assert_memory_equal(out ? out : text, expected, out_size);
        free(out);
        free(expected);
    }
}

/* All of the first two planes and the compatibility ideographs; a sample of what is all alike. */
static uint32_t
next_code_point(uint32_t cp)
{
    return cp < 0x20000 || (cp >= 0x2F7F0 && cp < 0x2FA20) ? cp + 1 : cp + 17;
}

/* To a form, a character that Unicode 9.0 does not know is plain text that nothing joins or
 * crosses. */
static void
check_unchanged(const char *text, size_t size)
{
    for (int form = TEXT_NFC; form <= TEXT_NFKD; form++) {
        struct text_normalizer n = {.form = {(enum text_form)form}, .n_forms = 1};
        char *out;
        size_t out_size;
        assert_int_equal(text_normalize(&n, text, size, &out, &out_size, NULL), 0);
        assert_int_equal(out_size, size);
        assert_memory_equal(out ? out : text, text, size);
        free(out);
    }
}

static void
every_code_point_alone_and_behind_a_letter(void **state)
{
    int unknown = 0;
    for (uint32_t cp = 1; cp <= 0x10FFFF; cp = next_code_point(cp)) {
        char text[16];
        if (cp >= 0xD800 && cp <= 0xDFFF)
            continue;
        size_t size = (size_t)utf8_put(cp, text);
        text[size++] = 'a';
        size += (size_t)utf8_put(cp, text + size);
        memcpy(text + size, "\xcc\x81z", 3);
        if (unicode9_knows((int32_t)cp))
            check_all_forms(text, size + 3);
        else
            check_unchanged(text, size + 3);
        unknown +=
            !unicode9_knows((int32_t)cp) && utf8proc_get_property((int32_t)cp)->combining_class;
    }
    assert_true(unknown > 50); /* marks that came later */
}

static void
later_marks_are_plain_characters(void **state)
{
    /* U+07FD (Unicode 11, class 220) between classes 230 and 220: nothing is reordered across it.
     */
    check_unchanged("[\xcc\x81\xdf\xbd\xcc\xa3", 7);
    /* U+32FF (12.1) has a compatibility decomposition, U+11938 (13) a canonical one. */
    check_unchanged("\xe3\x8b\xbf", 3);
    check_unchanged("\xf0\x91\xa4\xb8", 4);
    /* U+11935 and U+11930 would compose to it. */
    check_unchanged("\xf0\x91\xa4\xb5\xf0\x91\xa4\xb0", 8);
    assert_false(unicode9_is_mark(0x7FD));
    assert_true(unicode9_is_mark(0x1CF2)); /* a letter since Unicode 12 */
    assert_true(unicode9_is_mark(0x301));
    assert_false(unicode9_is_mark(0x1CD3));
}

static void
random_texts_may_be_taken_apart_at_boundaries(void **state)
{
    static const uint32_t ranges[][2] = {
        {0x20, 0x7E},     {0xA0, 0x24F},    {0x300, 0x36F},     {0x300, 0x36F},
        {0x370, 0x52F},   {0x591, 0x5C7},   {0x610, 0x61A},     {0x900, 0x9FF},
        {0xE31, 0xE4E},   {0x1100, 0x11FF}, {0x1E00, 0x1FFF},   {0x2000, 0x2070},
        {0x2100, 0x214F}, {0x3000, 0x30FF}, {0xAC00, 0xAC80},   {0xF900, 0xFAFF},
        {0xFB00, 0xFB4F}, {0xFE00, 0xFFEF}, {0x1D15E, 0x1D1C8}, {0x1F300, 0x1F700},
    };
    uint32_t seed = 12345;
    for (int round = 0; round < 10000; round++) {
        char text[200];
        size_t size = 0;
        seed = seed * 1664525 + 1013904223;
        int n = 1 + (int)(seed >> 24) % 40;
        for (int i = 0; i < n; i++) {
            seed = seed * 1664525 + 1013904223;
            const uint32_t *range = ranges[(seed >> 8) % (sizeof ranges / sizeof *ranges)];
            seed = seed * 1664525 + 1013904223;
            uint32_t cp = range[0] + (seed >> 8) % (range[1] - range[0] + 1);
            if (!unicode9_knows((int32_t)cp))
                cp = 'x';
            size += (size_t)utf8_put(cp, text + size);
        }
        check_all_forms(text, size);
    }
}

static void
known_texts_compose(void **state)
{
    static const struct {
        const char *text, *nfc;
    } cases[] = {
        {"e\xcc\x81", "\xc3\xa9"},
        {"q\xcc\x87\xcc\xa3", "q\xcc\xa3\xcc\x87"},
        {"\xe1\x84\x92\xe1\x85\xa1\xe1\x86\xab", "\xed\x95\x9c"},
        {"\xea\xb0\x80\xe1\x86\xa8", "\xea\xb0\x81"}, /* LV and T */
        {"\xe2\x84\xab", "\xc3\x85"},
        {"\xe0\xa5\x98", "\xe0\xa4\x95\xe0\xa4\xbc"}, /* excluded from composition */
        {"\xe2\x80\x80", "\xe2\x80\x82"},
    };
    struct text_normalizer n = {.form = {TEXT_NFC}, .n_forms = 1};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *out;
        size_t size;
        assert_int_equal(
            text_normalize(&n, cases[i].text, strlen(cases[i].text), &out, &size, NULL), 0);
        assert_non_null(out);
        assert_int_equal(size, strlen(cases[i].nfc));
        assert_memory_equal(out, cases[i].nfc, size);
        free(out);
    }
}

static void
text_that_needs_nothing_is_not_copied(void **state)
{
    struct text_normalizer n = {.form = {TEXT_NFC, TEXT_NFC}, .n_forms = 2};
    static const char text[] = "caf\xc3\xa9 中文 カタカナ 한국어 Привет 😀";
    char *out;
    size_t size;
    assert_int_equal(text_normalize(&n, text, sizeof text - 1, &out, &size, NULL), 0);
    assert_null(out);
    assert_int_equal(size, sizeof text - 1);
    n.n_forms = 0;
    assert_int_equal(text_normalize(&n, "e\xcc\x81", 3, &out, &size, NULL), 0);
    assert_null(out);
    assert_int_equal(size, 3);
}

static void
long_runs_of_marks_are_sorted_stably(void **state)
{
    /* Three classes, mixed, with two different marks of one class that must keep their order. */
    enum { MARKS = 100000 };
    static const char *const mark[] = {"\xcc\x81", "\xcc\xa3", "\xcc\xb8", "\xcc\x80"};
    struct text_normalizer n = {.form = {TEXT_NFD}, .n_forms = 1};
    char *text = malloc(2 * MARKS + 1), *out;
    size_t size;
    assert_non_null(text);
    text[0] = 'x';
    for (int i = 0; i < MARKS; i++)
        memcpy(text + 1 + 2 * i, mark[i % 4], 2);
    assert_int_equal(text_normalize(&n, text, 2 * MARKS + 1, &out, &size, NULL), 0);
    assert_int_equal(size, 2 * MARKS + 1);
    for (int i = 0; i < MARKS; i++) {
        const char *expected = i < MARKS / 4   ? mark[2]
                               : i < MARKS / 2 ? mark[1]
                               : i % 2         ? mark[3]
                                               : mark[0];
        assert_memory_equal(out + 1 + 2 * i, expected, 2);
    }
    free(out);
    free(text);
}

static int
parse(struct text_normalizer *n, const char *json, struct err *err)
{
    struct json_span span;
    assert_int_equal(json_span_open(&span, json, strlen(json), NULL), 0);
    return text_normalizer_parse(n, span, err);
}

static void
descriptions_are_read_or_refused_by_name(void **state)
{
    struct text_normalizer n;
    static const struct {
        const char *json, *named;
        int code;
    } bad[] = {
        {"{\"type\":\"Lowercase\"}", "Lowercase", -ENOTSUP},
        {"{\"type\":\"Prepend\",\"prepend\":\"_\"}", "Prepend", -ENOTSUP},
        {"{\"type\":\"NFC\",\"x\":1}", "\"x\"", -ENOTSUP},
        {"{\"type\":\"Sequence\"}", "nothing", -EBADMSG},
        {"{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Strip\"}]}", "Strip", -ENOTSUP},
        {"{\"type\":\"Sequence\",\"normalizers\":[null]}", "null", -EBADMSG},
        {"7", "a number", -EBADMSG},
        {"{}", "type", -EBADMSG},
    };
    assert_int_equal(parse(&n, "null", NULL), 0);
    assert_int_equal(n.n_forms, 0);
    assert_int_equal(parse(&n, "{\"type\":\"Sequence\",\"normalizers\":[]}", NULL), 0);
    assert_int_equal(n.n_forms, 0);
    assert_int_equal(
        parse(&n,
              "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFKD\"},{\"type\":\"NFC\"}]}",
              NULL),
        0);
    assert_int_equal(n.n_forms, 2);
    assert_int_equal(n.form[0], TEXT_NFKD);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct err err = ERR_INIT;
        if (parse(&n, bad[i].json, &err) != bad[i].code || !strstr(err.text, bad[i].named))
            fail_msg("%s: %d %s", bad[i].json, err.code, err.text);
    }
    char json[1000] = "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"}";
    for (int i = 0; i < TEXT_NORMALIZER_MAX_FORMS; i++)
        strcat(json, ",{\"type\":\"NFC\"}");
    strcat(json, "]}");
    assert_int_equal(parse(&n, json, NULL), -ENOTSUP);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_code_point_alone_and_behind_a_letter),
        cmocka_unit_test(later_marks_are_plain_characters),
        cmocka_unit_test(random_texts_may_be_taken_apart_at_boundaries),
        cmocka_unit_test(known_texts_compose),
        cmocka_unit_test(text_that_needs_nothing_is_not_copied),
        cmocka_unit_test(long_runs_of_marks_are_sorted_stably),
        cmocka_unit_test(descriptions_are_read_or_refused_by_name),
    };
    return cmocka_run_group_tests_name("text_normalizer", tests, NULL, NULL);
}
