/* How texts go through a tokenizer. What a file may not say is in test_tokenizer_file.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <pthread.h>

#include "tests/unit/model/tokenizer_fixture.h"

#define AB                                                                                         \
    ",\"ab\":256,\"abc\":257,\"\xc4\xa0"                                                           \
    "a\":258"
#define AB_MERGES "\"a b\",\"ab c\",\"\xc4\xa0 a\""

static struct tokenizer *
tokenizer_of(const struct fixture_parts *parts)
{
    struct tokenizer *tokenizer = NULL;
    struct err err = ERR_INIT;
    if (fixture_parse(&tokenizer, parts, 1000, &err) < 0)
        fail_msg("%s", err.text);
    return tokenizer;
}

/* Ids as "1 2 3 ". */
static void
check_ids(const struct tokenizer *tokenizer, const char *text, const char *expected)
{
    int32_t *ids;
    char found[2000] = "";
    struct err err = ERR_INIT;
    int64_t n = tokenizer_encode(tokenizer, text, strlen(text), 0, &ids, &err);
    if (n < 0)
        fail_msg("%s", err.text);
    for (int64_t i = 0; i < n; i++)
        (void)sprintf(found + strlen(found), "%d ", ids[i]);
    if (strcmp(found, expected) != 0)
        fail_msg("\"%s\": %snot %s", text, found, expected);
    free(ids);
}

static void
check_fixture(const struct fixture_parts *parts, const char *text, const char *expected)
{
    struct tokenizer *tokenizer = tokenizer_of(parts);
    check_ids(tokenizer, text, expected);
    tokenizer = tokenizer_free(tokenizer);
}

static void
merges_may_be_strings_or_pairs(void **state)
{
    check_fixture(&(struct fixture_parts){.vocab = AB, .merges = AB_MERGES}, "abcab a",
                  "257 256 258 ");
    check_fixture(
        &(struct fixture_parts){.vocab = AB,
                                .merges = "[\"a\",\"b\"],[\"ab\",\"c\"],[\"\\u0120\",\"a\"]"},
        "abcab a", "257 256 258 ");
    check_fixture(&(struct fixture_parts){.vocab = AB, .merges = "\"#version: 0.2\"," AB_MERGES},
                  "ab", "256 ");
}

static void
ignore_merges_takes_whole_words_from_the_vocabulary(void **state)
{
    struct fixture_parts parts = {.vocab = ",\"abc\":256", .pre_tokenizer = FIXTURE_WORDS};
    check_fixture(&parts, "abc abc", "97 98 99 32 97 98 99 ");
    parts.model_extra = ",\"ignore_merges\":true";
    check_fixture(&parts, "abc abc", "256 32 97 98 99 ");
}

static void
settings_that_change_nothing_are_accepted(void **state)
{
    check_fixture(
        &(struct fixture_parts){.model_extra =
                                    ",\"dropout\":null,\"unk_token\":\"<unk>\",\"fuse_unk\":false,"
                                    "\"byte_fallback\":false,\"continuing_subword_prefix\":\"\","
                                    "\"end_of_word_suffix\":null",
                                .extra = ",\"truncation\":{\"max_length\":1},\"padding\":null"},
        "ab", "97 98 ");
}

static void
a_byte_without_a_token_fails_the_text_and_not_the_file(void **state)
{
    static const char json[] =
        "{\"pre_tokenizer\":" FIXTURE_BYTES ",\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{"
        "\"vocab\":{\"a\":0},\"merges\":[]}}";
    struct tokenizer *tokenizer = NULL;
    struct err err = ERR_INIT;
    int32_t *ids;
    assert_int_equal(tokenizer_parse(&tokenizer, json, sizeof json - 1, 10, NULL), 0);
    assert_int_equal(tokenizer_encode(tokenizer, "aa", 2, 0, &ids, NULL), 2);
    free(ids);
    assert_int_equal(tokenizer_encode(tokenizer, "aba", 3, 0, &ids, &err), -EILSEQ);
    assert_null(ids);
    assert_non_null(strstr(err.text, "0x62"));
    tokenizer = tokenizer_free(tokenizer);
}

#define ADDED(id, text, flags) "{\"id\":" #id ",\"content\":\"" text "\"" flags "}"
#define RAW                    ",\"normalized\":false"

static void
added_tokens_are_found_first_and_longest(void **state)
{
    struct fixture_parts parts = {
        .added = ADDED(300, "<a>", RAW) "," ADDED(301, "<a><b>", RAW) "," ADDED(302, "b><", RAW)};
    check_fixture(&parts, "x<a>y", "120 300 121 ");
    check_fixture(&parts, "<a><b>", "301 ");
    check_fixture(&parts, "<a><b", "300 60 98 ");
    check_fixture(&parts, "<b><a>", "60 302 97 62 ");
}

static void
stripping_takes_white_space_on_that_side(void **state)
{
    check_fixture(&(struct fixture_parts){.added = ADDED(300, "<l>", RAW ",\"lstrip\":true")},
                  "a \xe3\x80\x80\n<l> b", "97 300 32 98 ");
    check_fixture(&(struct fixture_parts){.added = ADDED(300, "<r>", RAW ",\"rstrip\":true")},
                  "a <r> \t\xc2\x85"
                  "b",
                  "97 32 300 98 ");
    /* U+001C is no White_Space, though Python's str.strip takes it. */
    check_fixture(&(struct fixture_parts){.added = ADDED(300, "<r>", RAW ",\"rstrip\":true")},
                  "<r>\x1c", "300 28 ");
    /* Both sides, at both ends of the text, and white space that one token took is gone for the
     * next. */
    check_fixture(
        &(struct fixture_parts){.added = ADDED(300, "<b>", RAW ",\"lstrip\":true,\"rstrip\":true")},
        " <b>  <b> ", "300 300 ");
}

static void
single_words_stand_alone(void **state)
{
    struct fixture_parts parts = {.added = ADDED(300, "go", RAW ",\"single_word\":true")};
    check_fixture(&parts, "go", "300 ");
    check_fixture(&parts, "(go)", "40 300 41 ");
    check_fixture(&parts, "ago", "97 103 111 ");
    check_fixture(&parts, "got", "103 111 116 ");
    check_fixture(&parts, "go_", "103 111 95 ");
    check_fixture(&parts, "go1", "103 111 49 ");
    check_fixture(&parts, "go\xcc\x81", "103 111 204 129 ");
    check_fixture(&parts, "go\xe2\x80\x8d", "103 111 226 128 141 "); /* a joiner is of the word */
    check_fixture(&parts, "go\xe2\x93\x90", "103 111 226 147 144 "); /* U+24D0 is Alphabetic */
    check_fixture(&parts, "go\xe2\x93\xb0", "300 226 147 176 ");     /* U+24F0 is not */
}

static void
normalized_tokens_are_found_in_normalised_text(void **state)
{
    struct fixture_parts parts = {.normalizer = "{\"type\":\"NFC\"}",
                                  .added =
                                      ADDED(300, "\\u00e9!", "") "," ADDED(301, "\\u00f1!", RAW)};
    check_fixture(&parts, "\xc3\xa9!", "300 ");
    check_fixture(&parts, "e\xcc\x81!", "300 ");
    check_fixture(&parts, "\xc3\xb1!", "301 ");
    check_fixture(&parts, "n\xcc\x83!", "195 177 33 "); /* found in the raw text only */
    /* Nothing is composed across a token: the mark stays alone. */
    parts.added = ADDED(301, "ee", RAW);
    check_fixture(&parts, "ee\xcc\x81", "301 204 129 ");
    /* Two tokens that normalise to the same: the special one, else the first. */
    parts.added = ADDED(300, "\\u212b!", "") "," ADDED(301, "\\u00c5!", ",\"special\":true");
    check_fixture(&parts, "\xc3\x85!", "301 ");
    parts.added = ADDED(300, "\\u212b!", "") "," ADDED(301, "\\u00c5!", "");
    check_fixture(&parts, "\xc3\x85!", "300 ");
}

static void
templates_are_read_and_not_added(void **state)
{
    struct fixture_parts parts = {
        .added = ADDED(300, "<s>", ",\"special\":true") "," ADDED(301, "</s>", ",\"special\":true"),
        .post_processor =
            "{\"type\":\"Sequence\",\"processors\":[{\"type\":\"ByteLevel\"},{\"type\":"
            "\"TemplateProcessing\","
            "\"single\":[{\"SpecialToken\":{\"id\":\"<s>\",\"type_id\":0}},{\"Sequence\":{\"id\":"
            "\"A\",\"type_id\":0}},"
            "{\"SpecialToken\":{\"id\":\"</s>\",\"type_id\":0}}],\"pair\":[],\"special_tokens\":{"
            "\"<s>\":{\"id\":\"<s>\",\"ids\":[300],\"tokens\":[\"<s>\"]},"
            "\"</s>\":{\"id\":\"</s>\",\"ids\":[301,301],\"tokens\":[]}}}]}"};
    struct tokenizer *tokenizer = tokenizer_of(&parts);
    const int32_t *before, *after;
    int n_before, n_after;
    check_ids(tokenizer, "a", "97 ");
    tokenizer_template(tokenizer, &before, &n_before, &after, &n_after);
    assert_int_equal(n_before, 1);
    assert_int_equal(before[0], 300);
    assert_int_equal(n_after, 2);
    assert_int_equal(after[1], 301);
    tokenizer = tokenizer_free(tokenizer);
    tokenizer = tokenizer_of(&(struct fixture_parts){.post_processor = NULL});
    tokenizer_template(tokenizer, &before, &n_before, &after, &n_after);
    assert_int_equal(n_before + n_after, 0);
    tokenizer = tokenizer_free(tokenizer);
}

static void
tokens_are_found_by_string_and_known_by_id(void **state)
{
    struct tokenizer *tokenizer = tokenizer_of(&(struct fixture_parts){
        .vocab = AB,
        .added = ADDED(300, "<s> \\u4e2d", ",\"special\":true") "," ADDED(302, "\\u00e9t", "")});
    size_t size;
    assert_int_equal(tokenizer_size(tokenizer), 303);
    assert_int_equal(tokenizer_find(tokenizer, "ab", 2), 256);
    assert_int_equal(tokenizer_find(tokenizer,
                                    "\xc4\xa0"
                                    "a",
                                    3),
                     258);
    assert_int_equal(tokenizer_find(tokenizer, " a", 2), -1);
    assert_int_equal(tokenizer_find(tokenizer, "<s> 中", 7), 300);
    assert_int_equal(tokenizer_find(tokenizer, "", 0), -1);
    assert_memory_equal(tokenizer_bytes(tokenizer, 258, &size), " a", 2);
    assert_int_equal(size, 2);
    assert_memory_equal(tokenizer_bytes(tokenizer, 300, &size), "<s> 中", 7);
    assert_int_equal(size, 7);
    /* All its characters are in the byte alphabet, so the decoder reads them as bytes. */
    assert_memory_equal(tokenizer_bytes(tokenizer, 302, &size), "\xe9t", 2);
    assert_int_equal(size, 2);
    static const int absent[] = {-1, 259, 299, 301, 303, INT32_MAX, INT32_MIN};
    for (size_t i = 0; i < sizeof absent / sizeof *absent; i++) {
        size = 7;
        assert_null(tokenizer_bytes(tokenizer, absent[i], &size));
        assert_int_equal(size, 0);
        assert_false(tokenizer_is_special(tokenizer, absent[i]));
    }
    assert_true(tokenizer_is_special(tokenizer, 300));
    assert_false(tokenizer_is_special(tokenizer, 302));
    tokenizer = tokenizer_free(tokenizer);
}

static void
token_limits_are_met_and_not_passed(void **state)
{
    struct tokenizer *tokenizer = tokenizer_of(
        &(struct fixture_parts){.vocab = AB, .merges = AB_MERGES, .added = ADDED(300, "<s>", RAW)});
    int32_t *ids;
    struct err err = ERR_INIT;
    assert_int_equal(tokenizer_encode(tokenizer, "<s>xyz", 6, 4, &ids, NULL), 4);
    free(ids);
    assert_int_equal(tokenizer_encode(tokenizer, "<s>xyz", 6, 3, &ids, &err), -E2BIG);
    assert_null(ids);
    assert_non_null(strstr(err.text, "more than 3 tokens"));
    assert_int_equal(tokenizer_encode(tokenizer, "<s><s>", 6, 1, &ids, NULL), -E2BIG);
    assert_int_equal(tokenizer_encode(tokenizer, "", 0, 1, &ids, NULL), 0);
    assert_non_null(ids);
    free(ids);
    /* One word far longer than the limit is refused without being worked on. */
    char *text = malloc(1 << 20);
    assert_non_null(text);
    memset(text, 'x', 1 << 20);
    assert_int_equal(tokenizer_encode(tokenizer, text, 1 << 20, 1000, &ids, NULL), -E2BIG);
    free(text);
    tokenizer = tokenizer_free(tokenizer);
}

static void
broken_text_reads_as_replacement_characters(void **state)
{
    struct tokenizer *tokenizer = tokenizer_of(&(struct fixture_parts){.merges = NULL});
    int32_t *ids;
    assert_int_equal(tokenizer_encode(tokenizer, "a\xff", 2, 0, &ids, NULL), 4);
    assert_int_equal(ids[1], 0xEF);
    assert_int_equal(ids[2], 0xBF);
    assert_int_equal(ids[3], 0xBD);
    free(ids);
    assert_int_equal(tokenizer_encode(tokenizer, "\0a\0", 3, 0, &ids, NULL), 3);
    assert_int_equal(ids[2], 0);
    free(ids);
    tokenizer = tokenizer_free(tokenizer);
}

static void
a_pattern_that_runs_wild_fails_the_text(void **state)
{
    struct tokenizer *tokenizer = tokenizer_of(&(struct fixture_parts){
        .pre_tokenizer =
            "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":"
            "\"(?:a|a|aa)+[^a]\"},\"behavior\":\"Isolated\"}," FIXTURE_BYTES "]}"});
    char text[2000];
    int32_t *ids;
    struct err err = ERR_INIT;
    memset(text, 'a', sizeof text);
    assert_int_equal(tokenizer_encode(tokenizer, text, sizeof text, 0, &ids, &err), -ELOOP);
    assert_null(ids);
    assert_int_equal(tokenizer_encode(tokenizer, "aab", 3, 0, &ids, NULL), 3);
    free(ids);
    tokenizer = tokenizer_free(tokenizer);
}

static void *
encode_often(void *arg)
{
    const struct tokenizer *tokenizer = arg;
    intptr_t wrong = 0;
    for (int i = 0; i < 300; i++) {
        int32_t *ids;
        int64_t n = tokenizer_encode(tokenizer, "abcab a <s> abc e\xcc\x81", 19, 0, &ids, NULL);
        wrong += n != 10 || ids[0] != 257 || ids[4] != 300;
        free(ids);
    }
    return (void *)wrong;
}

static void
many_threads_encode_at_once(void **state)
{
    struct tokenizer *tokenizer =
        tokenizer_of(&(struct fixture_parts){.vocab = AB,
                                             .merges = AB_MERGES,
                                             .normalizer = "{\"type\":\"NFC\"}",
                                             .pre_tokenizer = FIXTURE_WORDS,
                                             .added = ADDED(300, "<s>", RAW)});
    check_ids(tokenizer, "abcab a <s> abc e\xcc\x81", "257 256 258 32 300 32 257 32 195 169 ");
    pthread_t thread[4];
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&thread[i], NULL, encode_often, tokenizer), 0);
    for (int i = 0; i < 4; i++) {
        void *wrong;
        assert_int_equal(pthread_join(thread[i], &wrong), 0);
        assert_null(wrong);
    }
    tokenizer = tokenizer_free(tokenizer);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(merges_may_be_strings_or_pairs),
        cmocka_unit_test(ignore_merges_takes_whole_words_from_the_vocabulary),
        cmocka_unit_test(settings_that_change_nothing_are_accepted),
        cmocka_unit_test(a_byte_without_a_token_fails_the_text_and_not_the_file),
        cmocka_unit_test(added_tokens_are_found_first_and_longest),
        cmocka_unit_test(stripping_takes_white_space_on_that_side),
        cmocka_unit_test(single_words_stand_alone),
        cmocka_unit_test(normalized_tokens_are_found_in_normalised_text),
        cmocka_unit_test(templates_are_read_and_not_added),
        cmocka_unit_test(tokens_are_found_by_string_and_known_by_id),
        cmocka_unit_test(token_limits_are_met_and_not_passed),
        cmocka_unit_test(broken_text_reads_as_replacement_characters),
        cmocka_unit_test(a_pattern_that_runs_wild_fails_the_text),
        cmocka_unit_test(many_threads_encode_at_once),
    };
    return cmocka_run_group_tests_name("tokenizer", tests, NULL, NULL);
}
