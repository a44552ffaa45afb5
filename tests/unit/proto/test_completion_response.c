/* Answers and events, compared as text: clients read these bytes. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <jansson.h>

#include "proto/completion.h"

static const struct completion_meta meta = {
    .id = "cmpl-1", .model = "demo", .created = 1767225600, .fingerprint = "fp_1"};
static const struct completion_usage usage = {
    .prompt_tokens = 5, .completion_tokens = 7, .cached_tokens = 3};

static struct buf out;

/* What was written, as text; it must be JSON apart from an event's frame. */
static const char *
written(void)
{
    const char *json;
    json_error_t failure;
    json_t *parsed;

    assert_false(out.failed);
    buf_append(&out, "", 1);
    json = out.data;
    if (strncmp(json, "data: ", 6) == 0) {
        json += 6;
        assert_string_equal(strstr(json, "\n\n"), "\n\n"); /* the only line end is at the end */
        assert_ptr_equal(strchr(json, '\n'), strstr(json, "\n\n"));
    }
    assert_null(strchr(out.data, '\r'));
    parsed = json_loads(json, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &failure);
    if (!parsed)
        fail_msg("%s: %s", failure.text, json);
    json_decref(parsed);
    return out.data;
}

static int
drop_out(void **state)
{
    buf_free(&out);
    out = (struct buf){0};
    return 0;
}

static struct completion_choice
choice_of(const char *text, const char *finish_reason)
{
    return (struct completion_choice){
        .text = text, .text_size = strlen(text), .finish_reason = finish_reason, .stop_id = -1};
}

static void
an_answer_has_openais_shape(void **state)
{
    struct completion_choice choice = choice_of(" Hello", "length");

    completion_write(&out, &meta, 1, &choice, &usage);
    assert_string_equal(
        written(), "{\"id\":\"cmpl-1\",\"object\":\"text_completion\",\"created\":1767225600,"
                   "\"model\":\"demo\",\"system_fingerprint\":\"fp_1\",\"choices\":[{\"index\":0,"
                   "\"text\":\" Hello\",\"logprobs\":null,\"finish_reason\":\"length\","
                   "\"stop_reason\":null}],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":7,"
                   "\"total_tokens\":12,\"prompt_tokens_details\":{\"cached_tokens\":3}}}");
}

static void
choices_are_listed_with_their_index_and_reason(void **state)
{
    struct completion_choice choices[3] = {choice_of("a", "stop"), choice_of("b", "stop"),
                                           choice_of("c", "length")};

    choices[1].index = 1;
    choices[1].stop_text = "END";
    choices[2].index = 2;
    choices[0].stop_id = 17;
    completion_write(&out, &meta, 3, choices, NULL);
    assert_non_null(strstr(written(), "[{\"index\":0,\"text\":\"a\",\"logprobs\":null,\"finish_"
                                      "reason\":\"stop\",\"stop_reason\":17},{\"index\":1,"));
    assert_non_null(strstr(out.data,
                           "\"finish_reason\":\"stop\",\"stop_reason\":\"END\"},{\"index\""
                           ":2,"));
    assert_non_null(strstr(out.data, "\"length\",\"stop_reason\":null}]}"));
}

static void
an_event_is_one_data_line_and_an_empty_line(void **state)
{
    struct completion_choice choice = choice_of(" a\nb", NULL);

    choice.index = 2;
    completion_write_event(&out, &meta, &choice, NULL);
    assert_string_equal(
        written(),
        "data: {\"id\":\"cmpl-1\",\"object\":\"text_completion\",\"created\":1767225600,"
        "\"model\":\"demo\",\"system_fingerprint\":\"fp_1\",\"choices\":[{\"index\":2,\"text\":\" "
        "a\\nb\",\"logprobs\":null,\"finish_reason\":null}]}\n\n");
}

static void
the_last_event_carries_text_and_reason(void **state)
{
    struct completion_choice choice = choice_of("end", "stop");

    completion_write_event(&out, &meta, &choice, &usage);
    assert_non_null(
        strstr(written(), "\"text\":\"end\",\"logprobs\":null,\"finish_reason\":\"stop\""));
    assert_non_null(strstr(out.data, "],\"usage\":{\"prompt_tokens\":5"));
}

static void
the_usage_event_has_an_empty_list_of_choices(void **state)
{
    struct completion_meta plain = meta;

    plain.fingerprint = NULL;
    completion_write_usage_event(&out, &plain, &usage);
    assert_string_equal(
        written(), "data: {\"id\":\"cmpl-1\",\"object\":\"text_completion\",\"created\":1767225600,"
                   "\"model\":\"demo\",\"choices\":[],\"usage\":{\"prompt_tokens\":5,"
                   "\"completion_tokens\":7,\"total_tokens\":12,\"prompt_tokens_details\":{"
                   "\"cached_tokens\":3}}}\n\n");
}

static void
the_error_event_has_the_error_object(void **state)
{
    struct api_error error = {0};

    api_error_set(&error, 500, "internal_error", NULL, "a row could not be read");
    completion_write_error_event(&out, &error);
    assert_string_equal(written(),
                        "data: {\"error\":{\"message\":\"a row could not be read\",\"type\":"
                        "\"server_error\",\"param\":null,\"code\":\"internal_error\"}}\n\n");
}

static void
the_done_event_is_literal(void **state)
{
    assert_string_equal(completion_done_event, "data: [DONE]\n\n");
}

static void
text_is_escaped(void **state)
{
    static const char text[] = "\"\\/\b\f\n\r\t\0\x1f\x7f<>\xc3\xa9\xe2\x80\xa8\xf0\x9f\x98\x80";
    struct completion_choice choice = {
        .text = text, .text_size = sizeof text - 1, .stop_id = -1, .finish_reason = "stop"};

    completion_write_event(&out, &meta, &choice, NULL);
    assert_non_null(strstr(written(),
                           "\"text\":\"\\\"\\\\/\\u0008\\u000c\\n\\r\\t\\u0000\\u001f\\u007f<>"
                           "\xc3\xa9\xe2\x80\xa8\xf0\x9f\x98\x80\""));
}

static void
text_that_is_not_utf_8_gets_replacement_characters(void **state)
{
    struct completion_choice choice = choice_of("a\xff\xe2\x82z\xf0\x9f", "stop");

    completion_write_event(&out, &meta, &choice, NULL);
    assert_non_null(strstr(written(), "\"text\":\"a\xef\xbf\xbd\xef\xbf\xbdz\xef\xbf\xbd\""));
}

static void
logprobs_have_the_legacy_shape(void **state)
{
    struct completion_top first[] = {{" b", 2, 5, -0.25F}, {"c", 1, 6, -1.5F}};
    struct completion_logprob positions[] = {
        {.text = "A", .size = 1, .id = 4, .logprob = NAN, .text_offset = 0},
        {.text = " b",
         .size = 2,
         .id = 5,
         .logprob = -0.25F,
         .text_offset = 1,
         .n_top = 2,
         .top = first},
    };
    struct completion_choice choice = choice_of("A b", "length");

    choice.has_logprobs = choice.with_top = true;
    choice.n_logprobs = 2;
    choice.logprobs = positions;
    completion_write(&out, &meta, 1, &choice, NULL);
    assert_non_null(strstr(
        written(), "\"logprobs\":{\"tokens\":[\"A\",\" b\"],\"token_logprobs\":[null,-0.25],"
                   "\"top_logprobs\":[null,{\" b\":-0.25,\"c\":-1.5}],\"text_offset\":[0,1]}"));
}

static void
logprobs_without_top_have_null_for_it(void **state)
{
    struct completion_logprob position = {.text = "A", .size = 1, .logprob = 0.0F};
    struct completion_choice choice = choice_of("A", "length");

    choice.has_logprobs = true;
    choice.n_logprobs = 1;
    choice.logprobs = &position;
    completion_write(&out, &meta, 1, &choice, NULL);
    assert_non_null(strstr(written(), "\"logprobs\":{\"tokens\":[\"A\"],\"token_logprobs\":[0.0],"
                                      "\"top_logprobs\":null,\"text_offset\":[0]}"));
    drop_out(NULL);
    choice.n_logprobs = 0;
    choice.with_top = true;
    completion_write(&out, &meta, 1, &choice, NULL);
    assert_non_null(strstr(written(), "\"logprobs\":{\"tokens\":[],\"token_logprobs\":[],"
                                      "\"top_logprobs\":[],\"text_offset\":[]}"));
}

static void
write_one(const struct completion_logprob *position, bool as_ids)
{
    struct completion_choice choice = choice_of("", "length");

    drop_out(NULL);
    choice.has_logprobs = choice.with_top = true;
    choice.tokens_as_ids = as_ids;
    choice.n_logprobs = 1;
    choice.logprobs = position;
    completion_write(&out, &meta, 1, &choice, NULL);
    written();
}

static void
the_chosen_token_is_always_among_the_top(void **state)
{
    struct completion_top top[] = {{"a", 1, 1, -0.5F}, {"b", 1, 2, -1.0F}};
    struct completion_logprob position = {
        .text = "z", .size = 1, .id = 26, .logprob = -4.0F, .n_top = 2, .top = top};

    write_one(&position, false);
    assert_non_null(strstr(out.data, "[{\"a\":-0.5,\"b\":-1.0,\"z\":-4.0}]"));
    position.n_top = 0;
    write_one(&position, false);
    assert_non_null(strstr(out.data, "[{\"z\":-4.0}]"));
    position = (struct completion_logprob){
        .text = "b", .size = 1, .id = 2, .logprob = -1.0F, .n_top = 2, .top = top};
    write_one(&position, false);
    assert_non_null(strstr(out.data, "[{\"a\":-0.5,\"b\":-1.0}]"));
}

static void
tokens_with_equal_text_become_one_entry_with_the_higher_value(void **state)
{
    struct completion_top top[] = {
        {"a", 1, 1, -0.5F}, {"a", 1, 2, -0.25F}, {"b", 1, 3, -1.0F}, {"b", 1, 4, -1.0F}};
    struct completion_logprob position = {
        .text = "a", .size = 1, .id = 9, .logprob = -8.0F, .n_top = 4, .top = top};

    write_one(&position, false);
    assert_non_null(strstr(out.data, "[{\"a\":-0.25,\"b\":-1.0}]"));
    write_one(&position, true);
    assert_non_null(strstr(out.data, "\"tokens\":[\"token_id:9\"]"));
    assert_non_null(strstr(out.data,
                           "[{\"token_id:1\":-0.5,\"token_id:2\":-0.25,\"token_id:3\":-1.0,"
                           "\"token_id:4\":-1.0,\"token_id:9\":-8.0}]"));
}

/* Found by fuzz_completion: comparisons with NaN left both entries, or none. */
static void
tokens_with_equal_text_become_one_entry_even_without_a_value(void **state)
{
    struct completion_top top[] = {{"a", 1, 1, -1.0F},
                                   {"a", 1, 2, NAN},
                                   {"a", 1, 3, -0.5F},
                                   {"b", 1, 4, NAN},
                                   {"b", 1, 5, NAN}};
    struct completion_logprob position = {
        .text = "a", .size = 1, .id = 1, .logprob = -1.0F, .n_top = 5, .top = top};

    write_one(&position, false);
    assert_non_null(strstr(out.data, "[{\"a\":-0.5,\"b\":null}]"));
}

static void
a_token_that_is_part_of_a_character_is_written_as_bytes(void **state)
{
    struct completion_top top[] = {{"\xe2\x80", 2, 1, -0.5F}, {"\xff", 1, 2, -1.0F}};
    struct completion_logprob position = {
        .text = "\xe2\x80", .size = 2, .id = 1, .logprob = -0.5F, .n_top = 2, .top = top};

    write_one(&position, false);
    assert_non_null(strstr(out.data, "\"tokens\":[\"bytes:\\\\xe2\\\\x80\"]"));
    assert_non_null(strstr(out.data, "[{\"bytes:\\\\xe2\\\\x80\":-0.5,\"bytes:\\\\xff\":-1.0}]"));
}

/* JSON has no infinities; clients add these numbers up, so a null would break them. */
static void
minus_infinity_is_written_as_a_number(void **state)
{
    struct completion_top top[] = {{"a", 1, 1, 0.0F}, {"b", 1, 2, -INFINITY}, {"c", 1, 3, NAN}};
    struct completion_logprob position = {
        .text = "b", .size = 1, .id = 2, .logprob = -INFINITY, .n_top = 3, .top = top};

    write_one(&position, false);
    assert_non_null(strstr(out.data, "\"token_logprobs\":[-9999.0]"));
    assert_non_null(strstr(out.data, "[{\"a\":0.0,\"b\":-9999.0,\"c\":null}]"));
}

static void
logprobs_read_back_as_the_same_floats(void **state)
{
    uint32_t bits = 1;

    for (int i = 0; i < 20000; i++) {
        float value, back;
        struct completion_logprob position = {.text = "b", .size = 1};
        struct completion_choice choice = choice_of("", "length");

        bits = bits * 1664525u + 1013904223u;
        memcpy(&value, &bits, sizeof value);
        if (!isfinite(value))
            continue;
        buf_reset(&out);
        position.logprob = value;
        choice.has_logprobs = true;
        choice.n_logprobs = 1;
        choice.logprobs = &position;
        completion_write(&out, &meta, 1, &choice, NULL);
        buf_append(&out, "", 1);
        back = strtof(strstr(out.data, "token_logprobs\":[") + 17, NULL);
        assert_memory_equal(&back, &value, sizeof value);
    }
}

static void
a_buffer_that_is_full_is_marked_and_holds_no_half(void **state)
{
    struct completion_choice choice = choice_of("Hello", "stop");

    for (size_t limit = 1; limit < 250; limit++) {
        struct buf small = {.limit_bytes = limit};

        completion_write_event(&small, &meta, &choice, &usage);
        assert_true(small.size_bytes <= limit);
        assert_true(small.failed || memcmp(small.data + small.size_bytes - 3, "}\n\n", 3) == 0);
        buf_free(&small);
    }
}

int
main(void)
{
#define TEST(f) cmocka_unit_test_teardown(f, drop_out)
    const struct CMUnitTest tests[] = {
        TEST(an_answer_has_openais_shape),
        TEST(choices_are_listed_with_their_index_and_reason),
        TEST(an_event_is_one_data_line_and_an_empty_line),
        TEST(the_last_event_carries_text_and_reason),
        TEST(the_usage_event_has_an_empty_list_of_choices),
        TEST(the_error_event_has_the_error_object),
        TEST(the_done_event_is_literal),
        TEST(text_is_escaped),
        TEST(text_that_is_not_utf_8_gets_replacement_characters),
        TEST(logprobs_have_the_legacy_shape),
        TEST(logprobs_without_top_have_null_for_it),
        TEST(the_chosen_token_is_always_among_the_top),
        TEST(tokens_with_equal_text_become_one_entry_with_the_higher_value),
        TEST(tokens_with_equal_text_become_one_entry_even_without_a_value),
        TEST(a_token_that_is_part_of_a_character_is_written_as_bytes),
        TEST(minus_infinity_is_written_as_a_number),
        TEST(logprobs_read_back_as_the_same_floats),
        TEST(a_buffer_that_is_full_is_marked_and_holds_no_half),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
