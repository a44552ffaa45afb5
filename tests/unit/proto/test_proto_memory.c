/* The 1st, 2nd, ... allocation fails, in turn: every parser answers with an error, leaks nothing
 * and works again with the next input. The linker turns the allocations of our code into the ones
 * below (--wrap); jansson's go through its own hook. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <jansson.h>

#include "proto/api_json.h"
#include "proto/completion.h"
#include "proto/http1.h"

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *old, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *old, size_t size);

static long left = -1;       /* allocations that still succeed; -1: all */
static size_t largest_bytes; /* asked for since it was last cleared */

static bool
fails(size_t size)
{
    if (size > largest_bytes)
        largest_bytes = size;
    if (left > 0)
        left--;
    return left == 0;
}

void *
__wrap_malloc(size_t size)
{
    return fails(size) ? NULL : __real_malloc(size);
}

void *
__wrap_calloc(size_t count, size_t size)
{
    return fails(count * size) ? NULL : __real_calloc(count, size);
}

void *
__wrap_realloc(void *old, size_t size)
{
    return fails(size) ? NULL : __real_realloc(old, size);
}

static const struct http_limits limits = {
    .max_head_bytes = 8192, .max_body_bytes = 1 << 24, .max_headers = 50};

/* One event of a parser fed with the whole text; 0 when the parser itself could not be made. */
static int
feed(const char *text, size_t size, struct api_error *error)
{
    struct http_parser *parser = http_parser_new(&limits);
    struct http_request *request = NULL;
    size_t consumed = 0;
    enum http_event event;

    if (!parser)
        return 0;
    event = http_parser_feed(parser, text, size, &consumed, &request, error);
    assert_int_equal(event == HTTP_REQUEST, request != NULL);
    http_request_free(request);
    http_parser_free(parser);
    return event == HTTP_REQUEST ? 1 : event == HTTP_FAILED ? -error->status : 2;
}

static void
fail_each_in_turn(const char *text, size_t size)
{
    int outcome = 0;
    long n = 1;

    for (; outcome != 1; n++) {
        struct api_error error = {0};

        assert_true(n < 100);
        left = n;
        outcome = feed(text, size, &error);
        left = -1;
        assert_true(outcome == 1 || outcome == 0 || outcome == -503);
    }
    assert_true(n > 3);
}

static void
a_request_without_memory_is_503(void **state)
{
    static const char get[] = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    static const char chunked[] = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
                                  "5\r\nhello\r\n0\r\n\r\n";
    static const char head[] = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\n\r\n";
    size_t size = strlen(head) + 300000;
    char *post = calloc(1, size);

    memcpy(post, head, strlen(head));
    fail_each_in_turn(get, strlen(get));
    fail_each_in_turn(chunked, strlen(chunked));
    fail_each_in_turn(post, size);
    free(post);
}

/* A client that announces much and sends nothing holds no memory for it. */
static void
an_announced_length_is_not_allocated(void **state)
{
    static const char length[] = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 16777216\r\n\r\nx";
    static const char chunk[] =
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1000000\r\nx";
    static const char small[] = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4000\r\n\r\nx";
    struct api_error error = {0};

    largest_bytes = 0;
    assert_int_equal(feed(length, strlen(length), &error), 2);
    assert_int_equal(largest_bytes, 65536);
    largest_bytes = 0;
    assert_int_equal(feed(chunk, strlen(chunk), &error), 2);
    assert_int_equal(largest_bytes, 65536);
    largest_bytes = 0;
    assert_int_equal(feed(small, strlen(small), &error), 2);
    assert_true(largest_bytes < 8192);
}

static void
a_body_grows_by_doubling_and_stays_below_its_limit(void **state)
{
    static const char head[] = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 16777216\r\n\r\n";
    struct http_parser *parser = http_parser_new(&limits);
    struct http_request *request = NULL;
    struct api_error error = {0};
    static char block[4096];
    size_t consumed;

    http_parser_feed(parser, head, strlen(head), &consumed, &request, &error);
    largest_bytes = 0;
    for (size_t at = 0; at < limits.max_body_bytes; at += sizeof block) {
        assert_null(request);
        assert_true(largest_bytes <= 65536 || largest_bytes <= 2 * at + 1);
        http_parser_feed(parser, block, sizeof block, &consumed, &request, &error);
    }
    assert_non_null(request);
    assert_int_equal(request->body_size, limits.max_body_bytes);
    assert_int_equal(largest_bytes, limits.max_body_bytes + 1);
    http_request_free(request);
    http_parser_free(parser);
}

static void
a_completion_without_memory_is_503(void **state)
{
    static const char body[] =
        "{\"prompt\":[[1,2,3],[4]],\"stop\":[\"a\",\"b\"],\"logit_bias\":{\"1\":1},\"user\":\"u\","
        "\"stop_token_ids\":[1],\"foo\":1,\"temperature\":0.5,\"metadata\":{\"a\":[1,{\"b\":2}]}}";
    const struct completion_limits completion_limits = {
        .vocab = 10, .max_prompts = 4, .max_context = 10};
    int status = -1;
    long n = 1;

    json_set_alloc_funcs(__wrap_malloc, free);
    for (; status != 0; n++) {
        struct arena *arena = arena_new(0);
        struct completion_request *request = NULL;
        struct api_error error = {0};

        assert_true(n < 500);
        left = n;
        status = completion_parse(arena, body, strlen(body), &completion_limits, &request, &error);
        left = -1;
        assert_int_equal(status == 0, request != NULL);
        /* jansson reports some of its failed allocations as if the text were wrong. */
        assert_true(status == 0 || status == -503 || status == -400);
        if (status == -400)
            assert_string_equal(error.code, "invalid_json");
        arena_free(arena);
    }
    assert_true(n > 20);
    json_set_alloc_funcs(malloc, free);
}

static void
tier_sizes_without_memory_are_an_error(void **state)
{
    static const char body[] = "{\"tiers\":{\"ram\":\"8GiB\",\"hbm\":5}}";
    int status = -1;

    json_set_alloc_funcs(__wrap_malloc, free);
    for (long n = 1; status != 0; n++) {
        struct api_tier_sizes sizes = {0};
        struct api_error error = {0};

        assert_true(n < 100);
        left = n;
        status = api_tier_sizes_parse(body, strlen(body), &sizes, &error);
        left = -1;
        assert_true(status == 0 || status == -503 || status == -400);
    }
    json_set_alloc_funcs(malloc, free);
}

static void
output_without_memory_is_marked_as_failed(void **state)
{
    struct completion_meta meta = {.id = "x", .model = "y"};
    struct completion_choice choice = {.text = "hello", .text_size = 5, .stop_id = -1};
    bool failed = true;

    for (long n = 1; failed; n++) {
        struct buf out = {0};

        assert_true(n < 50);
        left = n;
        completion_write(&out, &meta, 1, &choice, NULL);
        left = -1;
        failed = out.failed;
        buf_free(&out);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_request_without_memory_is_503),
        cmocka_unit_test(an_announced_length_is_not_allocated),
        cmocka_unit_test(a_body_grows_by_doubling_and_stays_below_its_limit),
        cmocka_unit_test(a_completion_without_memory_is_503),
        cmocka_unit_test(tier_sizes_without_memory_are_an_error),
        cmocka_unit_test(output_without_memory_is_marked_as_failed),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
