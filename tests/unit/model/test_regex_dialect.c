#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/regex_dialect.h"

static void
check_translation(const char *pattern, const char *expected)
{
    struct buf out = {0};
    struct err err = ERR_INIT;
    if (regex_dialect_translate(pattern, strlen(pattern), &out, &err) < 0)
        fail_msg("%s: %s", pattern, err.text);
    buf_append(&out, "", 1);
    assert_string_equal(out.data, expected);
    buf_free(&out);
}

static void
plain_constructs_stay_as_they_are(void **state)
{
    check_translation("abc", "abc");
    check_translation("a|b", "a|b");
    check_translation("a*b+c?", "a*b+c?");
    check_translation("a*?b+?c??", "a*?b+?c??");
    check_translation("a*+b++c?+", "a*+b++c?+");
    check_translation("^.$", "^.$");
    check_translation("(?:a)(?=b)(?!c)(?<=d)(?<!e)(?>f)", "(?:a)(?=b)(?!c)(?<=d)(?<!e)(?>f)");
    check_translation("(?i:ab)c", "(?i:ab)c");
    check_translation("(?i)ab", "(?i)ab");
    check_translation("\\p{L}\\P{N}\\p{Lu}", "\\p{L}\\P{N}\\p{Lu}");
    check_translation("[a-z\\d\\p{L}]", "[a-z\\p{Nd}\\p{L}]");
    check_translation("\\A\\z\\Z", "\\A\\z\\Z");
    check_translation("", "");
}

static void
what_the_engines_read_differently_is_rewritten(void **state)
{
    check_translation("(a)", "(?:a)");
    check_translation("a{1,3}+", "(?:a{1,3})+");
    check_translation("x(ab){2}+y", "x(?:(?:ab){2})+y");
    check_translation("[ab]{2,}+", "(?:[ab]{2,})+");
    check_translation("a{,3}", "a{0,3}");
    check_translation("a{2}b{2,}c{2,3}?", "a{2}b{2,}c{2,3}?");
    check_translation("a{x}", "a\\x{7b}x\\x{7d}");
    check_translation("a{,}", "a\\x{7b}\\x{2c}\\x{7d}");
    check_translation("\\v", "\\x{b}");
    check_translation("\\u4e2d\\x41\\x{1F600}", "\\x{4e2d}A\\x{1f600}");
    check_translation("\\p{^L}\\P{^N}", "\\P{L}\\p{N}");
    check_translation("\\p{Letter}\\p{Han}", "\\p{L}\\p{sc:Han}");
    check_translation("\\.\\-中", "\\x{2e}\\x{2d}\\x{4e2d}");
    check_translation("[a\\-z-]", "[a\\x{2d}z\\x{2d}]");
    check_translation("[-a\\d-z]", "[\\x{2d}a\\p{Nd}\\x{2d}z]");
    check_translation("[^\\r\\n]", "[^\\x{d}\\x{a}]");
    check_translation("]", "\\x{5d}");
    check_translation("#  x", "\\x{23}\\x{20}\\x{20}x");
}

static void
check_refusal(const char *pattern, size_t size, int code)
{
    struct buf out = {0};
    struct err err = ERR_INIT;
    if (regex_dialect_translate(pattern, size, &out, &err) != code)
        fail_msg("%s: not refused: %s", pattern, err.text);
    assert_true(err.text[0] != '\0');
    buf_free(&out);
}

static void
what_is_not_known_to_mean_the_same_is_refused(void **state)
{
    static const char *const refused[] = {
        "\\b",         "\\B",         "\\G",       "\\K",         "\\R",      "\\X",
        "\\h",         "\\H",         "\\N",       "\\k<a>",      "\\1",      "\\0",
        "\\Qx\\E",     "\\cA",        "\\x80",     "\\xff",       "\\x4",     "\\u12",
        "\\x{110000}", "\\x{d800}",   "\\x{}",     "\\x{1",       "\\pL",     "\\p{L",
        "\\p{Lx}",     "\\p{1}",      "\\p{}",     "[[:alpha:]]", "[a[bc]]",  "[a&&b]",
        "[]",          "[]a]",        "[^]",       "[\\W]",       "[a-\\d]",  "[z-a]",
        "(?<n>a)",     "(?P<n>a)",    "(?m:a)",    "(?x)a",       "(?-i:a)",  "a(?i)b",
        "(?#c)",       "(?(1)a)",     "(*FAIL)",   "a**",         "a{2}{3}",  "a{2}?",
        "a{3,2}",      "a{70000}",    "*a",        "|*",          "^*",       "(?=a)*",
        "(?:+)",       "\\",          "(?i:ss)",   "(?i)STraSSe", "(?i:fi)",  "(?i:é)",
        "(?i:[é])",    "(?i:\\p{L})", "(?i:[^a])", "(?i:\\w)",    "(?i:\\S)",
    };
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        check_refusal(refused[i], strlen(refused[i]), -ENOTSUP);
}

static void
what_is_no_pattern_is_refused(void **state)
{
    check_refusal("(a", 2, -EBADMSG);
    check_refusal("a)", 2, -EBADMSG);
    check_refusal("[a", 2, -EBADMSG);
    check_refusal("[a-", 3, -EBADMSG);
    check_refusal("a\xff", 2, -EBADMSG);
}

static void
depth_and_length_have_limits(void **state)
{
    char pattern[REGEX_MAX_BYTES + 1];
    for (int depth = REGEX_MAX_DEPTH; depth <= REGEX_MAX_DEPTH + 1; depth++) {
        struct buf out = {0};
        memset(pattern, '(', (size_t)depth);
        memset(pattern + depth, ')', (size_t)depth);
        assert_int_equal(regex_dialect_translate(pattern, (size_t)depth * 2, &out, NULL),
                         depth <= REGEX_MAX_DEPTH ? 0 : -ENOTSUP);
        buf_free(&out);
    }
    struct buf out = {0};
    memset(pattern, 'a', sizeof pattern);
    assert_int_equal(regex_dialect_translate(pattern, REGEX_MAX_BYTES, &out, NULL), 0);
    assert_int_equal(regex_dialect_translate(pattern, REGEX_MAX_BYTES + 1, &out, NULL), -ENOTSUP);
    buf_free(&out);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_constructs_stay_as_they_are),
        cmocka_unit_test(what_the_engines_read_differently_is_rewritten),
        cmocka_unit_test(what_is_not_known_to_mean_the_same_is_refused),
        cmocka_unit_test(what_is_no_pattern_is_refused),
        cmocka_unit_test(depth_and_length_have_limits),
    };
    return cmocka_run_group_tests_name("regex_dialect", tests, NULL, NULL);
}
