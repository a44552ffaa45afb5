/* Matches as Oniguruma 6.9.8 gives them (recorded from it), with the JIT and without. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/split_pattern.h"

/* All matches as "start-end start-end ...", empty ones as in the library's iteration. */
static void
check_matches(const char *regex, const char *text, const char *expected)
{
    struct split_pattern *pattern;
    struct split_matcher *matcher;
    struct err err = ERR_INIT;
    if (split_pattern_regex(&pattern, regex, strlen(regex), &err) < 0)
        fail_msg("%s: %s", regex, err.text);
    assert_int_equal(split_matcher_new(&matcher, NULL), 0);
    for (int round = 0; round < 2; round++) {
        char found[500] = "";
        size_t from = 0, size = strlen(text), start, end, last = SIZE_MAX;
        while (from <= size &&
               split_pattern_find(pattern, matcher, text, size, from, &start, &end, NULL) == 1) {
            if (start == end && end == last) {
                from++;
                continue;
            }
            (void)sprintf(found + strlen(found), "%zu-%zu ", start, end);
            from = last = end;
        }
        if (strcmp(found, expected) != 0)
            fail_msg("%s on \"%s\", %s: %s, not %s", regex, text, round ? "interpreted" : "JIT",
                     found, expected);
        split_pattern_interpret(pattern);
    }
    matcher = split_matcher_free(matcher);
    pattern = split_pattern_free(pattern);
}

static void
matches_are_the_librarys(void **state)
{
    check_matches("\\p{N}{1,3}", "1234567 89", "0-3 3-6 6-7 8-10 ");
    check_matches("\\p{N}{1,3}+", "1234567 89", "0-7 8-10 ");
    check_matches("a|x*", "baxx", "0-0 1-2 2-4 ");
    check_matches("^", "a\na\n", "0-0 2-2 ");
    check_matches("a$", "a\na", "0-1 2-3 ");
    check_matches(".", "\r\n\v", "0-1 2-3 ");
    check_matches("\\s+(?!\\S)|\\s+", "a   b  ", "1-3 3-4 5-7 ");
    check_matches("[ ]++$", "a  \nb ", "1-3 5-6 ");
    check_matches("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "'S 'Ll 'RE '\xc5\xbf 'x", "0-2 3-6 7-10 11-14 ");
    check_matches("[一-龥぀-ゟ゠-ヿ]+", "a中の・x", "1-10 ");
}

static void
white_space_is_the_property_and_no_more(void **state)
{
    /* U+180E is white space to PCRE2's \s; U+001C is to Python; neither is to the library. */
    check_matches("\\s", "\xe1\xa0\x8e\x1c\xe2\x80\x8b\xe3\x80\x80\xc2\x85", "7-10 10-12 ");
    check_matches("\\S", "\xe1\xa0\x8e\xe3\x80\x80", "0-3 ");
    check_matches("[^\\s]", "\xe1\xa0\x8e\xe3\x80\x80", "0-3 ");
    check_matches("[\\S]", "\xe1\xa0\x8e\xe3\x80\x80", "0-3 ");
}

static void
words_have_superscripts_outside_of_sets_only(void **state)
{
    check_matches("\\w+", "a\xc2\xb2_\xcc\x81\xe2\x82\x82", "0-6 ");
    check_matches("[\\w]+", "a\xc2\xb2_\xcc\x81\xe2\x82\x82", "0-1 3-6 ");
}

static void
scripts_are_the_plain_property(void **state)
{
    /* U+30FC has Script Common and Script_Extensions with Katakana. */
    check_matches("\\p{Katakana}", "カー", "0-3 ");
}

static void
a_pattern_without_end_is_an_error_not_a_hang(void **state)
{
    struct split_pattern *pattern;
    struct split_matcher *matcher;
    static const char regex[] = "(?:a|a|aa)+[^a]";
    char text[4000];
    size_t start, end;
    memset(text, 'a', sizeof text);
    assert_int_equal(split_pattern_regex(&pattern, regex, strlen(regex), NULL), 0);
    assert_int_equal(split_matcher_new(&matcher, NULL), 0);
    for (int round = 0; round < 2; round++) {
        struct err err = ERR_INIT;
        assert_int_equal(
            split_pattern_find(pattern, matcher, text, sizeof text, 0, &start, &end, &err), -ELOOP);
        assert_non_null(strstr(err.text, "too many steps"));
        split_pattern_interpret(pattern);
    }
    matcher = split_matcher_free(matcher);
    pattern = split_pattern_free(pattern);
}

static void
deep_backtracking_leaves_the_jits_stack_and_is_still_exact(void **state)
{
    struct split_pattern *pattern;
    struct split_matcher *matcher;
    static const char regex[] = "(?:ab|c)+d?";
    enum { SIZE = 1 << 20 };
    char *text = malloc(SIZE);
    size_t start, end;
    assert_non_null(text);
    for (int i = 0; i < SIZE; i += 2)
        memcpy(text + i, "ab", 2);
    assert_int_equal(split_pattern_regex(&pattern, regex, strlen(regex), NULL), 0);
    assert_int_equal(split_matcher_new(&matcher, NULL), 0);
    /* A frame for each turn: more than either way may take is an error, never a wrong match. */
    int r = split_pattern_find(pattern, matcher, text, SIZE, 0, &start, &end, NULL);
    assert_true(r == 1 || r == -ELOOP);
    if (r == 1)
        assert_true(start == 0 && end == SIZE);
    assert_int_equal(split_pattern_find(pattern, matcher, text, 20000, 0, &start, &end, NULL), 1);
    assert_true(start == 0 && end == 20000);
    matcher = split_matcher_free(matcher);
    pattern = split_pattern_free(pattern);
    free(text);
}

static void
a_million_spaces_need_no_jit(void **state)
{
    struct split_pattern *pattern;
    struct split_matcher *matcher;
    static const char regex[] = "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
    enum { SIZE = 1 << 20 };
    char *text = malloc(SIZE);
    size_t start, end;
    assert_non_null(text);
    memset(text, ' ', SIZE);
    text[SIZE - 1] = 'x';
    assert_int_equal(split_pattern_regex(&pattern, regex, strlen(regex), NULL), 0);
    assert_int_equal(split_matcher_new(&matcher, NULL), 0);
    for (int round = 0; round < 2; round++) {
        assert_int_equal(split_pattern_find(pattern, matcher, text, SIZE, 0, &start, &end, NULL),
                         1);
        assert_true(start == 0 && end == SIZE - 2);
        split_pattern_interpret(pattern);
    }
    matcher = split_matcher_free(matcher);
    pattern = split_pattern_free(pattern);
    free(text);
}

static void
literals_are_found_as_they_are(void **state)
{
    struct split_pattern *pattern;
    size_t start, end;
    assert_int_equal(split_pattern_literal(&pattern, "a.", 2, NULL), 0);
    assert_int_equal(split_pattern_find(pattern, NULL, "aba.a.", 6, 0, &start, &end, NULL), 1);
    assert_true(start == 2 && end == 4);
    assert_int_equal(split_pattern_find(pattern, NULL, "aba.a.", 6, 3, &start, &end, NULL), 1);
    assert_true(start == 4 && end == 6);
    assert_int_equal(split_pattern_find(pattern, NULL, "aba.a.", 6, 5, &start, &end, NULL), 0);
    assert_int_equal(split_pattern_find(pattern, NULL, "aba.a.", 6, 6, &start, &end, NULL), 0);
    pattern = split_pattern_free(pattern);
    assert_int_equal(split_pattern_literal(&pattern, "", 0, NULL), -ENOTSUP);
}

static void
patterns_that_do_not_compile_are_named(void **state)
{
    static const char *const bad[] = {"\\p{Klingon}", "(?<=a*)b", "(?:(?:a|bc){60000}){60000}"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct split_pattern *pattern;
        struct err err = ERR_INIT;
        assert_int_equal(split_pattern_regex(&pattern, bad[i], strlen(bad[i]), &err), -EBADMSG);
        assert_non_null(strstr(err.text, "does not compile"));
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(matches_are_the_librarys),
        cmocka_unit_test(white_space_is_the_property_and_no_more),
        cmocka_unit_test(words_have_superscripts_outside_of_sets_only),
        cmocka_unit_test(scripts_are_the_plain_property),
        cmocka_unit_test(a_pattern_without_end_is_an_error_not_a_hang),
        cmocka_unit_test(deep_backtracking_leaves_the_jits_stack_and_is_still_exact),
        cmocka_unit_test(a_million_spaces_need_no_jit),
        cmocka_unit_test(literals_are_found_as_they_are),
        cmocka_unit_test(patterns_that_do_not_compile_are_named),
    };
    return cmocka_run_group_tests_name("split_pattern", tests, NULL, NULL);
}
