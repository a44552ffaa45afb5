#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/pretokenizer.h"

static int
collect(void *arg, const char *piece, size_t size, struct err *err)
{
    char *out = arg;
    assert_true(size > 0);
    (void)sprintf(out + strlen(out), "[%.*s]", (int)size, piece);
    return 0;
}

static int
parse(struct pretokenizer *p, const char *json, struct err *err)
{
    struct json_span span;
    *p = (struct pretokenizer){0};
    assert_int_equal(json_span_open(&span, json, strlen(json), NULL), 0);
    return pretokenizer_parse(p, span, err);
}

static void
check_pieces(const char *json, const char *text, const char *expected)
{
    struct pretokenizer p;
    struct split_matcher *matcher;
    struct err err = ERR_INIT;
    char out[1000] = "";
    if (parse(&p, json, &err) < 0)
        fail_msg("%s: %s", json, err.text);
    assert_int_equal(split_matcher_new(&matcher, NULL), 0);
    assert_int_equal(pretokenizer_run(&p, matcher, text, strlen(text), collect, out, &err), 0);
    if (strcmp(out, expected) != 0)
        fail_msg("%s on \"%s\": %s, not %s", json, text, out, expected);
    matcher = split_matcher_free(matcher);
    pretokenizer_release(&p);
}

#define BYTES          "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}"
#define SEQUENCE(list) "{\"type\":\"Sequence\",\"pretokenizers\":[" list "," BYTES "]}"
#define SPLIT(pattern, behavior, invert)                                                           \
    "{\"type\":\"Split\",\"pattern\":" pattern ",\"behavior\":\"" behavior "\",\"invert\":" invert \
    "}"
#define DASHES "{\"Regex\":\"-\"}"
#define WORDS  "{\"Regex\":\"\\\\w+|[^\\\\w\\\\s]+\"}"

static void
each_behavior_cuts_as_the_library_does(void **state)
{
    static const char text[] = "the-final--countdown";
    check_pieces(SEQUENCE(SPLIT(DASHES, "Isolated", "false")), text,
                 "[the][-][final][-][-][countdown]");
    check_pieces(SEQUENCE(SPLIT(DASHES, "Removed", "false")), text, "[the][final][countdown]");
    check_pieces(SEQUENCE(SPLIT(DASHES, "MergedWithPrevious", "false")), text,
                 "[the-][final-][-][countdown]");
    check_pieces(SEQUENCE(SPLIT(DASHES, "MergedWithNext", "false")), text,
                 "[the][-final][-][-countdown]");
    check_pieces(SEQUENCE(SPLIT(DASHES, "Contiguous", "false")), text,
                 "[the][-][final][--][countdown]");
}

static void
each_behavior_can_be_inverted(void **state)
{
    static const char text[] = "How are you doing?";
    check_pieces(SEQUENCE(SPLIT(WORDS, "Removed", "true")), text, "[How][are][you][doing][?]");
    check_pieces(SEQUENCE(SPLIT(WORDS, "Isolated", "true")), text,
                 "[How][ ][are][ ][you][ ][doing][?]");
    check_pieces(SEQUENCE(SPLIT(WORDS, "MergedWithPrevious", "true")), text,
                 "[How ][are ][you ][doing][?]");
    check_pieces(SEQUENCE(SPLIT(WORDS, "MergedWithNext", "true")), text,
                 "[How][ are][ you][ doing][?]");
    check_pieces(SEQUENCE(SPLIT(WORDS, "Contiguous", "true")), text,
                 "[How][ ][are][ ][you][ ][doing?]");
}

static void
matches_at_the_ends_have_no_neighbour(void **state)
{
    check_pieces(SEQUENCE(SPLIT(DASHES, "MergedWithPrevious", "false")), "-a-", "[-][a-]");
    check_pieces(SEQUENCE(SPLIT(DASHES, "MergedWithNext", "false")), "-a-", "[-a][-]");
    check_pieces(SEQUENCE(SPLIT(DASHES, "Removed", "false")), "---", "");
    check_pieces(SEQUENCE(SPLIT(DASHES, "Contiguous", "false")), "--", "[--]");
    check_pieces(SEQUENCE(SPLIT(DASHES, "Isolated", "false")), "", "");
}

static void
strings_are_no_regexes(void **state)
{
    check_pieces(SEQUENCE(SPLIT("{\"String\":\".\"}", "Isolated", "false")), "a.b", "[a][.][b]");
    check_pieces(SEQUENCE(SPLIT("{\"String\":\"\\u4e2d\"}", "Removed", "false")), "a中b", "[a][b]");
}

static void
empty_matches_cut_and_leave_nothing(void **state)
{
    check_pieces(SEQUENCE(SPLIT("{\"Regex\":\"(?=b)\"}", "Isolated", "false")), "abab",
                 "[a][ba][b]");
    check_pieces(SEQUENCE(SPLIT("{\"Regex\":\"x*\"}", "Isolated", "false")), "中a", "[中][a]");
}

static void
a_stage_sees_nothing_outside_its_piece(void **state)
{
    /* The spaces in front of the digit end their piece, so the look-ahead finds no letter behind
     * them. */
    check_pieces(SEQUENCE(SPLIT("{\"Regex\":\"\\\\p{N}{1,3}\"}", "Isolated", "false") "," SPLIT(
                     "{\"Regex\":\"\\\\s+(?!\\\\S)|\\\\s+|[a-z]+\"}", "Isolated", "false")),
                 "a  1b  c", "[a][  ][1][b][ ][ ][c]");
}

static void
digits_go_one_by_one_or_together(void **state)
{
    check_pieces(SEQUENCE("{\"type\":\"Digits\",\"individual_digits\":true}"), "ab12½x",
                 "[ab][1][2][½][x]");
    check_pieces(SEQUENCE("{\"type\":\"Digits\",\"individual_digits\":false}"), "ab12½x",
                 "[ab][12½][x]");
    check_pieces(SEQUENCE("{\"type\":\"Digits\"}"), "12", "[12]");
}

static void
byte_level_splits_and_prefixes_if_told(void **state)
{
    check_pieces("{\"type\":\"ByteLevel\",\"add_prefix_space\":false}", "Hi  there's 12!\n",
                 "[Hi][ ][ there]['s][ 12][!][\n]");
    check_pieces("{\"type\":\"ByteLevel\"}", "Hi you", "[ Hi][ you]");
    check_pieces("{\"type\":\"ByteLevel\"}", " Hi", "[ Hi]");
    check_pieces("{\"type\":\"ByteLevel\",\"use_regex\":false}", "Hi you", "[ Hi you]");
    /* The prefix goes in front of every piece that an earlier stage made. */
    check_pieces("{\"type\":\"Sequence\",\"pretokenizers\":[" SPLIT(
                     DASHES, "Removed", "false") ",{\"type\":\"ByteLevel\",\"use_regex\":false}]}",
                 "a-b", "[ a][ b]");
}

static void
check_refusal(const char *json, int code, const char *named)
{
    struct pretokenizer p;
    struct err err = ERR_INIT;
    if (parse(&p, json, &err) != code || !strstr(err.text, named))
        fail_msg("%s: %d %s", json, err.code, err.text);
    pretokenizer_release(&p);
}

static void
everything_else_is_refused_by_name(void **state)
{
    check_refusal("{\"type\":\"Whitespace\"}", -ENOTSUP, "Whitespace");
    check_refusal("{\"type\":\"Metaspace\",\"replacement\":\"_\"}", -ENOTSUP, "Metaspace");
    check_refusal("null", -EBADMSG, "pre_tokenizer is null");
    check_refusal("[]", -EBADMSG, "an array");
    check_refusal("{}", -EBADMSG, "\"type\"");
    check_refusal("{\"type\":7}", -EBADMSG, "a number");
    check_refusal("{\"type\":\"Sequence\",\"pretokenizers\":[]}", -ENOTSUP, "without ByteLevel");
    check_refusal("{\"type\":\"Sequence\",\"pretokenizers\":{}}", -EBADMSG, "an object");
    check_refusal("{\"type\":\"Sequence\"}", -EBADMSG, "nothing");
    check_refusal("{\"type\":\"Digits\"}", -ENOTSUP, "without ByteLevel");
    check_refusal("{\"type\":\"Sequence\",\"pretokenizers\":[" BYTES ",{\"type\":\"Digits\"}]}",
                  -ENOTSUP, "behind ByteLevel");
    check_refusal("{\"type\":\"ByteLevel\",\"use_regex\":1}", -EBADMSG, "use_regex");
    check_refusal("{\"type\":\"ByteLevel\",\"colour\":1}", -ENOTSUP, "colour");
    check_refusal(SEQUENCE(SPLIT(DASHES, "Sideways", "false")), -EBADMSG, "Sideways");
    check_refusal(SEQUENCE(SPLIT(DASHES, "Isolated", "7")), -EBADMSG, "invert");
    check_refusal(SEQUENCE(SPLIT("\"-\"", "Isolated", "false")), -EBADMSG, "a string");
    check_refusal(SEQUENCE(SPLIT("{\"Glob\":\"*\"}", "Isolated", "false")), -ENOTSUP, "Glob");
    check_refusal(SEQUENCE(SPLIT("{}", "Isolated", "false")), -EBADMSG, "String");
    check_refusal(SEQUENCE(SPLIT("{\"Regex\":\"a\",\"String\":\"b\"}", "Isolated", "false")),
                  -EBADMSG, "both");
    check_refusal(SEQUENCE(SPLIT("{\"Regex\":\"(\"}", "Isolated", "false")), -EBADMSG,
                  "pattern \"(\"");
    check_refusal(SEQUENCE(SPLIT("{\"String\":\"\"}", "Isolated", "false")), -ENOTSUP,
                  "empty string");
}

static void
stages_and_sequences_have_limits(void **state)
{
    char json[8000] = "{\"type\":\"Sequence\",\"pretokenizers\":[";
    for (int i = 0; i < PRETOKENIZER_MAX_STAGES; i++)
        strcat(json, "{\"type\":\"Digits\"},");
    size_t length = strlen(json);
    strcat(json, BYTES "]}");
    check_pieces(json, "a1", "[a][1]");
    json[length] = '\0';
    strcat(json, "{\"type\":\"Digits\"}," BYTES "]}");
    check_refusal(json, -ENOTSUP, "stages");
    json[0] = '\0';
    for (int i = 0; i < 10; i++)
        strcat(json, "{\"type\":\"Sequence\",\"pretokenizers\":[");
    strcat(json, BYTES);
    for (int i = 0; i < 10; i++)
        strcat(json, "]}");
    check_refusal(json, -ENOTSUP, "deep");
}

static int
stop_at_b(void *arg, const char *piece, size_t size, struct err *err)
{
    ++*(int *)arg;
    return piece[0] == 'b' ? -ECANCELED : 0;
}

static void
a_refusing_reader_ends_the_run(void **state)
{
    static const char *const behaviors[] = {
        SEQUENCE(SPLIT(DASHES, "Isolated", "false")), SEQUENCE(SPLIT(DASHES, "Removed", "false")),
        SEQUENCE(SPLIT(DASHES, "Contiguous", "false")),
        "{\"type\":\"Sequence\",\"pretokenizers\":[" SPLIT(DASHES, "Removed", "false") "," BYTES
                                                                                       "]}"};
    for (size_t i = 0; i < sizeof behaviors / sizeof *behaviors; i++) {
        struct pretokenizer p;
        struct split_matcher *matcher;
        int calls = 0;
        assert_int_equal(parse(&p, behaviors[i], NULL), 0);
        assert_int_equal(split_matcher_new(&matcher, NULL), 0);
        assert_int_equal(pretokenizer_run(&p, matcher, "a-b-c-d", 7, stop_at_b, &calls, NULL),
                         -ECANCELED);
        assert_in_range(calls, 2, 3);
        matcher = split_matcher_free(matcher);
        pretokenizer_release(&p);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_behavior_cuts_as_the_library_does),
        cmocka_unit_test(each_behavior_can_be_inverted),
        cmocka_unit_test(matches_at_the_ends_have_no_neighbour),
        cmocka_unit_test(strings_are_no_regexes),
        cmocka_unit_test(empty_matches_cut_and_leave_nothing),
        cmocka_unit_test(a_stage_sees_nothing_outside_its_piece),
        cmocka_unit_test(digits_go_one_by_one_or_together),
        cmocka_unit_test(byte_level_splits_and_prefixes_if_told),
        cmocka_unit_test(everything_else_is_refused_by_name),
        cmocka_unit_test(stages_and_sequences_have_limits),
        cmocka_unit_test(a_refusing_reader_ends_the_run),
    };
    return cmocka_run_group_tests_name("pretokenizer", tests, NULL, NULL);
}
