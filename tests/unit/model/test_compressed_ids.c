/* The edge cases of the map, one token each. Whole vocabularies are in test_tokenizer_golden. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>

#include "model/compressed_ids.h"
#include "tests/unit/model/tokenizer_fixture.h"

enum { MAX_TOKENS = 16 };

/* A tokenizer whose token i decodes to texts[i]; added: its "added_tokens". */
static struct tokenizer *
tokenizer_of(const char *const *texts, int n, const char *added)
{
    char json[8000] = "{\"pre_tokenizer\":" FIXTURE_BYTES
                      ",\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"merges\":[],\"vocab\":{";
    struct tokenizer *tokenizer = NULL;
    struct err err = ERR_INIT;
    for (int i = 0; i < n; i++) {
        char name[200];
        name[byte_alphabet_encode(texts[i], strlen(texts[i]), name)] = '\0';
        (void)sprintf(json + strlen(json), "%s\"%s\":%d", i ? "," : "", name, i);
    }
    (void)sprintf(json + strlen(json), "}},\"added_tokens\":[%s]}", added);
    if (tokenizer_parse(&tokenizer, json, strlen(json), 1000, &err) < 0)
        fail_msg("%s", err.text);
    return tokenizer;
}

static int
build(const char *const *texts, int n, int32_t *map)
{
    int count = 0;
    struct tokenizer *tokenizer = tokenizer_of(texts, n, "");
    assert_int_equal(compressed_ids_build(tokenizer, n, 0, map, &count, NULL), 0);
    tokenizer = tokenizer_free(tokenizer);
    return count;
}

static void
check_same(const char *const *texts, int n)
{
    int32_t map[MAX_TOKENS];
    if (build(texts, n, map) == 1)
        return;
    for (int i = 1; i < n; i++) {
        if (map[i] != 0)
            fail_msg("\"%s\" and \"%s\" differ", texts[0], texts[i]);
    }
}

static void
check_apart(const char *const *texts, int n)
{
    int32_t map[MAX_TOKENS];
    if (build(texts, n, map) == n)
        return;
    for (int i = 0; i < n; i++) {
        if (map[i] != i)
            fail_msg("\"%s\" shares %d", texts[i], map[i]);
    }
}

#define COUNT(...) ((int)(sizeof((const char *const[]){__VA_ARGS__}) / sizeof(char *)))
#define SAME(...)  check_same((const char *const[]){__VA_ARGS__}, COUNT(__VA_ARGS__))
#define APART(...) check_apart((const char *const[]){__VA_ARGS__}, COUNT(__VA_ARGS__))

static void
case_width_and_marks_are_folded(void **state)
{
    SAME("cafe", "CAFE", "café", "cafe\xcc\x81", "ＣＡＦＥ", "Café");
    SAME("ix", "IX", "İX");
    SAME("fi", "ﬁ", "ﬁ\xcc\x81");
    SAME("1", "①", "¹", "１");
    SAME("ß", "ẞ");
    APART("ß", "ss");
    SAME("σσ", "ΣΣ", "σΣ"); /* no rule for the sigma that ends a word */
    APART("σσ", "σς");
    SAME("<|a|>", "<｜a｜>", "<｜A｜>");
    SAME("\xe0\xb8\xb2", "\xe0\xb8\xb3");                     /* U+0E33 loses its mark part */
    SAME("x", "x\xe2\x83\x9d", "x\xd2\x89", "x\xe0\xa4\x83"); /* Me, Me, Mc */
    APART("x", "x\xe1\xb3\x93"); /* U+1CD3 stands among marks and is none */
}

static void
hangul_stays_decomposed_and_shared(void **state)
{
    SAME("한", "\xe1\x84\x92\xe1\x85\xa1\xe1\x86\xab");
    APART("한", "하");
}

static void
white_space_is_folded_and_trimmed_but_never_to_nothing(void **state)
{
    SAME(" ", "  ", "\n", "\n\n", "\t \r\n", "\xe3\x80\x80", " \xcc\x81", "\xc2\xa0");
    SAME("a", " a", "a ", "\na\t",
         "\xe2\x80\xa8"
         "a",
         "\xc2\x85"
         "a\x0b");
    SAME("a b", "a  b", " a\n\nb ",
         "A\xe3\x80\x80"
         "B");
    APART("a b", "ab",
          "a\xe2\x80\xa8"
          "b",
          "a\x0b"
          "b");
    /* What folds to nothing is keyed by its own text. */
    APART(" ", "\xcc\x81", "\x0b", "\xc2\x85", "\xe2\x80\xa8", "\xcc\x81\xcc\x81", "\x0c");
    APART(" ", "\x1c", "\xe2\x80\x8b", "\xef\xbb\xbf"); /* no White_Space: they stay */
    /* Two spaces that are not the whole string are trimmed, not kept. */
    APART(" ", "\x0b ", "\xe2\x80\xa8 ");
}

static void
fragments_are_keyed_by_their_vocabulary_string(void **state)
{
    APART("\xe4", "\xe4\xb8", "\xb8", "a\xe4", "A\xe4", " \xe4", "\xff");
    /* The character U+FFFD itself counts as one. */
    APART("\xef\xbf\xbd", "\xef\xbf\xbd ", "\xe4");
    /* Byte F0 is U+00F0 in the byte alphabet, and that letter folds to itself: one string, one id.
     */
    SAME("\xf0", "\xc3\xb0");
    APART("\xe9", "\xc3\xa9"); /* U+00E9 loses its accent */
}

static void
ids_are_dealt_in_order_of_first_appearance(void **state)
{
    static const char *const texts[] = {"b", "a", "B", "c", " A", " c", "d"};
    int32_t map[MAX_TOKENS];
    static const int32_t expected[] = {0, 1, 0, 2, 1, 2, 3};
    assert_int_equal(build(texts, 7, map), 4);
    assert_memory_equal(map, expected, sizeof expected);
}

static void
padding_gets_the_pads_id_and_holes_share_the_empty_key(void **state)
{
    static const char *const texts[] = {"a", "b", "A"};
    static const int32_t expected[] = {0, 1, 0, 2, 2, 3, 2, 4, 3, 3};
    int32_t map[10];
    int count;
    struct tokenizer *tokenizer =
        tokenizer_of(texts, 3, "{\"id\":5,\"content\":\"<s>\"},{\"id\":7,\"content\":\"<t>\"}");
    assert_int_equal(compressed_ids_build(tokenizer, 10, 3, map, &count, NULL), 0);
    assert_int_equal(count, 5);
    assert_memory_equal(map, expected, sizeof expected);
    /* A vocabulary cut short of the tokenizer's. */
    assert_int_equal(compressed_ids_build(tokenizer, 2, 1, map, &count, NULL), 0);
    assert_int_equal(count, 2);
    tokenizer = tokenizer_free(tokenizer);
}

static void
a_pad_that_is_no_compressed_id_is_refused(void **state)
{
    static const char *const texts[] = {"a", "b"};
    static const int bad[] = {-1, 2, 9, 10, INT32_MAX, INT32_MIN};
    struct tokenizer *tokenizer = tokenizer_of(texts, 2, "");
    int32_t map[10];
    int count;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct err err = ERR_INIT;
        assert_int_equal(compressed_ids_build(tokenizer, 10, bad[i], map, &count, &err), -EINVAL);
        assert_non_null(strstr(err.text, "pad id"));
    }
    assert_int_equal(compressed_ids_build(tokenizer, 0, 0, map, &count, NULL), -EINVAL);
    tokenizer = tokenizer_free(tokenizer);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(case_width_and_marks_are_folded),
        cmocka_unit_test(hangul_stays_decomposed_and_shared),
        cmocka_unit_test(white_space_is_folded_and_trimmed_but_never_to_nothing),
        cmocka_unit_test(fragments_are_keyed_by_their_vocabulary_string),
        cmocka_unit_test(ids_are_dealt_in_order_of_first_appearance),
        cmocka_unit_test(padding_gets_the_pads_id_and_holes_share_the_empty_key),
        cmocka_unit_test(a_pad_that_is_no_compressed_id_is_refused),
    };
    return cmocka_run_group_tests_name("compressed_ids", tests, NULL, NULL);
}
