#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "proto/http1.h"

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
head_of(struct http_response_head head)
{
    http_write_head(&out, &head);
    return written();
}

static void
a_head_with_a_length_is_written(void **state)
{
    assert_string_equal(
        head_of((struct http_response_head){.status = 200,
                                            .content_type = "application/json",
                                            .content_length = 12,
                                            .request_id = "req-1",
                                            .extra = "a: b\r\n",
                                            .keep_alive = true}),
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 12\r\n"
        "x-request-id: req-1\r\na: b\r\nconnection: keep-alive\r\n\r\n");
}

static void
a_stream_is_chunked_in_http_1_1_and_ends_with_the_connection_in_1_0(void **state)
{
    struct http_response_head head = {.status = 200,
                                      .content_type = "text/event-stream",
                                      .content_length = -1,
                                      .keep_alive = true};

    assert_string_equal(head_of(head),
                        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
                        "transfer-encoding: chunked\r\nconnection: keep-alive\r\n\r\n");
    head.http10 = true;
    assert_string_equal(head_of(head), "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
                                       "connection: close\r\n\r\n");
    head.content_length = 5;
    assert_string_equal(head_of(head), "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
                                       "content-length: 5\r\nconnection: keep-alive\r\n\r\n");
}

static void
a_204_has_neither_length_nor_type(void **state)
{
    assert_string_equal(head_of((struct http_response_head){
                            .status = 204, .content_type = "x", .keep_alive = true}),
                        "HTTP/1.1 204 No Content\r\nconnection: keep-alive\r\n\r\n");
}

static void
an_empty_body_has_length_zero(void **state)
{
    assert_string_equal(head_of((struct http_response_head){.status = 404}),
                        "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
}

static void
a_request_id_cannot_end_its_line(void **state)
{
    char id[300];

    assert_non_null(strstr(
        head_of((struct http_response_head){.status = 200, .request_id = "a\r\nb: c\xff\t d"}),
        "\r\nx-request-id: a__b:_c___d\r\nconnection"));
    memset(id, 'x', sizeof id - 1);
    id[sizeof id - 1] = '\0';
    head_of((struct http_response_head){.status = 200, .request_id = id});
    assert_int_equal(strcspn(strstr(out.data, "x-request-id: ") + 14, "\r"), 128);
}

static void
chunks_carry_their_size_in_hexadecimal(void **state)
{
    static char data[4096];

    http_write_chunk(&out, "hello", 5);
    assert_string_equal(written(), "5\r\nhello\r\n");
    memset(data, 'x', sizeof data);
    http_write_chunk(&out, data, sizeof data);
    assert_int_equal(out.size_bytes, 6 + sizeof data + 2);
    assert_memory_equal(out.data, "1000\r\nx", 7);
    out.size_bytes = 0;
    http_write_last_chunk(&out);
    assert_string_equal(written(), "0\r\n\r\n");
}

static void
every_status_that_is_sent_has_a_text(void **state)
{
    static const int statuses[] = {100, 200, 204, 400, 401, 403, 404, 405, 408,
                                   413, 415, 417, 429, 431, 500, 501, 503, 505};

    for (size_t i = 0; i < sizeof statuses / sizeof statuses[0]; i++)
        assert_string_not_equal(http_status_text(statuses[i]), "Unknown");
    assert_string_equal(http_status_text(418), "Unknown");
    assert_string_equal(http_continue, "HTTP/1.1 100 Continue\r\n\r\n");
}

static void
a_preflight_answer_allows_what_openais_libraries_send(void **state)
{
    static const char *const names[] = {"authorization",
                                        "content-type",
                                        "x-request-id",
                                        "x-stainless-arch",
                                        "x-stainless-async",
                                        "x-stainless-custom-poll-interval",
                                        "x-stainless-helper-method",
                                        "x-stainless-lang",
                                        "x-stainless-os",
                                        "x-stainless-package-version",
                                        "x-stainless-poll-helper",
                                        "x-stainless-retry-count",
                                        "x-stainless-runtime",
                                        "x-stainless-runtime-version",
                                        "x-stainless-timeout"};
    const char *line = strstr(http_cors_preflight_headers, "access-control-allow-headers: ");
    const char *end;

    assert_non_null(line);
    end = strstr(line, "\r\n");
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char item[64];
        const char *found;

        snprintf(item, sizeof item, " %s", names[i]);
        found = strstr(line, item);
        if (!found || found > end || !strchr(",\r", found[strlen(item)]))
            fail_msg("%s is not allowed", names[i]);
    }
    assert_non_null(strstr(http_cors_preflight_headers, "access-control-allow-origin: *\r\n"));
    assert_non_null(strstr(http_cors_preflight_headers, "access-control-allow-methods: GET"));
    assert_non_null(strstr(http_cors_preflight_headers, "access-control-max-age: "));
    assert_string_equal(http_cors_preflight_headers + strlen(http_cors_preflight_headers) - 2,
                        "\r\n");
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
        cmocka_unit_test(a_head_with_a_length_is_written),
        cmocka_unit_test(a_stream_is_chunked_in_http_1_1_and_ends_with_the_connection_in_1_0),
        cmocka_unit_test(a_204_has_neither_length_nor_type),
        cmocka_unit_test(an_empty_body_has_length_zero),
        cmocka_unit_test(a_request_id_cannot_end_its_line),
        cmocka_unit_test(chunks_carry_their_size_in_hexadecimal),
        cmocka_unit_test(every_status_that_is_sent_has_a_text),
        cmocka_unit_test(a_preflight_answer_allows_what_openais_libraries_send),
    };

    return cmocka_run_group_tests(tests, NULL, drop_out);
}
