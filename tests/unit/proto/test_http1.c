/* The request parser, driven by bytes; what it says is compared as text, so that a whole feed and
 * every way to split it can be compared too. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "proto/http1.h"

static const struct http_limits limits = {
    .max_head_bytes = 1024, .max_body_bytes = 200000, .max_headers = 8};

static void
note_request(struct buf *out, struct http_request *request)
{
    buf_printf(out, "%s %s ?%s%s%s", request->method_name, request->path, request->query,
               request->http10 ? " 1.0" : "", request->keep_alive ? "" : " close");
    for (int i = 0; i < request->n_headers; i++)
        buf_printf(out, " [%s: %s]", request->headers[i].name, request->headers[i].value);
    assert_int_equal(request->body[request->body_size], '\0');
    if (request->body_size > 64)
        buf_printf(out, " body of %zu", request->body_size);
    else if (request->body_size) {
        buf_text(out, " body ");
        buf_append(out, request->body, request->body_size);
    }
    buf_text(out, "\n");
    http_request_free(request);
}

/* Feeds data in pieces of at most `piece` bytes; each event becomes a line. */
static void
feed(struct http_parser *parser, const char *data, size_t size, size_t piece, struct buf *out)
{
    for (size_t at = 0; at < size;) {
        size_t part = size - at < piece ? size - at : piece;

        for (size_t done = 0; done < part;) {
            struct http_request *request = NULL;
            struct api_error error = {0};
            size_t consumed = SIZE_MAX;

            switch (http_parser_feed(parser, data + at + done, part - done, &consumed, &request,
                                     &error)) {
            case HTTP_MORE:
                assert_int_equal(consumed, part - done);
                break;
            case HTTP_REQUEST:
                assert_non_null(request);
                note_request(out, request);
                break;
            case HTTP_CONTINUE:
                buf_text(out, "continue\n");
                break;
            case HTTP_FAILED:
                buf_printf(out, "failed %d %s %s: %s\n", error.status, error.type, error.code,
                           error.message);
                return;
            }
            assert_true(consumed > 0 && consumed <= part - done);
            done += consumed;
        }
        at += part;
    }
}

/* What the parser says; the same for a whole feed, byte by byte, and three bytes at a time. */
static const char *
said_within(const struct http_limits *within, const char *data, size_t size)
{
    static struct buf whole, pieces;
    static const size_t sizes[] = {1, 3, 64};
    struct http_parser *parser = http_parser_new(within);

    buf_reset(&whole);
    feed(parser, data, size, size, &whole);
    http_parser_free(parser);
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        parser = http_parser_new(within);
        buf_reset(&pieces);
        feed(parser, data, size, sizes[i], &pieces);
        http_parser_free(parser);
        assert_int_equal(whole.size_bytes, pieces.size_bytes);
        if (whole.size_bytes)
            assert_memory_equal(whole.data, pieces.data, whole.size_bytes);
    }
    buf_append(&whole, "", 1);
    assert_false(whole.failed || pieces.failed);
    return whole.data;
}

static const char *
said(const char *text)
{
    return said_within(&limits, text, strlen(text));
}

#define assert_starts(text, start) assert_memory_equal((text), (start), strlen(start))
/* The event lines must begin with this. */
static void
assert_refused(const char *text, const char *start)
{
    const char *line = said(text);

    if (strncmp(line, start, strlen(start)) != 0)
        fail_msg("'%s' gave '%s', not '%s'", text, line, start);
}

static void
a_get_request_is_read(void **state)
{
    assert_string_equal(said("GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n"),
                        "GET /v1/models ? [host: a]\n");
}

static void
names_are_lower_case_and_values_are_trimmed(void **state)
{
    assert_string_equal(
        said("GET / HTTP/1.1\r\nHOST: a\r\nX-Long-NAME: \t Some Value \t \r\nEmpty:\r\nBlank:  \r\n"
             "\r\n"),
        "GET / ? [host: a] [x-long-name: Some Value] [empty: ] [blank: ]\n");
}

static void
a_header_is_found_by_its_lower_case_name(void **state)
{
    static const char text[] = "GET / HTTP/1.1\r\nHost: a\r\nX-A: 1\r\nx-a: 2\r\n\r\n";
    struct http_parser *parser = http_parser_new(&limits);
    struct http_request *request = NULL;
    struct api_error error = {0};
    size_t consumed = 0;

    assert_int_equal(http_parser_feed(parser, text, strlen(text), &consumed, &request, &error),
                     HTTP_REQUEST);
    assert_string_equal(http_request_header(request, "x-a"), "1");
    assert_null(http_request_header(request, "x-b"));
    assert_int_equal(request->method, HTTP_GET_);
    assert_null(http_request_free(request));
    assert_null(http_request_free(NULL));
    assert_null(http_parser_free(parser));
    assert_null(http_parser_free(NULL));
}

static void
every_method_has_its_kind(void **state)
{
    static const struct {
        const char *name;
        enum http_method method;
    } methods[] = {{"GET", HTTP_GET_},      {"HEAD", HTTP_HEAD_},       {"POST", HTTP_POST_},
                   {"PATCH", HTTP_PATCH_},  {"OPTIONS", HTTP_OPTIONS_}, {"PUT", HTTP_OTHER_},
                   {"DELETE", HTTP_OTHER_}, {"TRACE", HTTP_OTHER_}};

    for (size_t i = 0; i < sizeof methods / sizeof methods[0]; i++) {
        struct http_parser *parser = http_parser_new(&limits);
        struct http_request *request = NULL;
        struct api_error error = {0};
        char text[64];
        size_t consumed;

        snprintf(text, sizeof text, "%s / HTTP/1.1\r\nHost: a\r\n\r\n", methods[i].name);
        assert_int_equal(http_parser_feed(parser, text, strlen(text), &consumed, &request, &error),
                         HTTP_REQUEST);
        assert_int_equal(request->method, methods[i].method);
        assert_string_equal(request->method_name, methods[i].name);
        http_request_free(request);
        http_parser_free(parser);
    }
}

static void
an_unknown_method_is_refused(void **state)
{
    assert_refused("BREW / HTTP/1.1\r\nHost: a\r\n\r\n", "failed 400 ");
    assert_refused("get / HTTP/1.1\r\nHost: a\r\n\r\n", "failed 400 ");
    assert_refused("GETX / HTTP/1.1\r\nHost: a\r\n\r\n", "failed 400 ");
}

static void
connect_is_refused_with_405(void **state)
{
    assert_refused("CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
                   "failed 405 invalid_request_error method_not_allowed");
}

static void
an_offer_to_upgrade_is_ignored(void **state)
{
    assert_string_equal(
        said("GET /a HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
             "GET /b HTTP/1.1\r\nHost: a\r\n\r\n"),
        "GET /a ? [host: a] [connection: Upgrade] [upgrade: h2c]\n"
        "GET /b ? [host: a]\n");
    assert_string_equal(
        said("POST /a HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n"
             "Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\nGET /b HTTP/1.1\r\nHost: "
             "a\r\n\r\n"),
        "POST /a ? [host: a] [connection: Upgrade] [upgrade: x] [transfer-encoding: chunked] body "
        "hi\nGET /b ? [host: a]\n");
}

static void
the_path_is_decoded_and_the_query_is_not(void **state)
{
    assert_string_equal(said("GET /a%20b/%41%2F?q=%20x?y HTTP/1.1\r\nHost: a\r\n\r\n"),
                        "GET /a b/A/ ?q=%20x?y [host: a]\n");
    assert_string_equal(said("GET /x? HTTP/1.1\r\nHost: a\r\n\r\n"), "GET /x ? [host: a]\n");
}

static void
a_bad_escape_in_the_path_is_refused(void **state)
{
    static const char *const paths[] = {"/%",   "/%2", "/%zz", "/%2g", "/a%00b",
                                        "/%00", "/%%", "/%-1", "/% 1"};

    for (size_t i = 0; i < sizeof paths / sizeof paths[0]; i++) {
        char text[64];

        snprintf(text, sizeof text, "GET %s HTTP/1.1\r\nHost: a\r\n\r\n", paths[i]);
        assert_refused(text, "failed 400 invalid_request_error malformed_http");
    }
}

static void
a_target_in_absolute_form_is_a_path(void **state)
{
    assert_string_equal(said("GET http://h:80/x?y HTTP/1.1\r\nHost: h\r\n\r\n"),
                        "GET /x ?y [host: h]\n");
    assert_string_equal(said("GET http://h HTTP/1.1\r\nHost: h\r\n\r\n"), "GET / ? [host: h]\n");
    assert_string_equal(said("OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n"), "OPTIONS * ? [host: h]\n");
    assert_refused("GET * HTTP/1.1\r\nHost: h\r\n\r\n", "failed 400 ");
    assert_refused("GET x HTTP/1.1\r\nHost: h\r\n\r\n", "failed 400 ");
    assert_refused("GET http://h?x HTTP/1.1\r\nHost: h\r\n\r\n", "failed 400 ");
    assert_refused("GET /a#b HTTP/1.1\r\nHost: h\r\n\r\n", "failed 400 ");
    assert_refused("GET /\xc3\xa9 HTTP/1.1\r\nHost: h\r\n\r\n", "failed 400 ");
}

static void
http_1_0_closes_unless_asked_to_keep_alive(void **state)
{
    assert_string_equal(said("GET / HTTP/1.0\r\n\r\n"), "GET / ? 1.0 close\n");
    assert_string_equal(said("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"),
                        "GET / ? 1.0 [connection: keep-alive]\n");
}

static void
http_1_1_stays_open_unless_told_to_close(void **state)
{
    assert_string_equal(said("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"),
                        "GET / ? close [host: a] [connection: close]\n");
    assert_string_equal(said("GET / HTTP/1.1\r\nHost: a\r\nConnection: foo, Close\r\n\r\n"),
                        "GET / ? close [host: a] [connection: foo, Close]\n");
}

static void
bytes_after_the_last_request_of_a_connection_are_dropped(void **state)
{
    assert_string_equal(said("GET /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
                             "GET /b HTTP/1.1\r\nHost: a\r\n\r\n\x01\x02"),
                        "GET /a ? close [host: a] [connection: close]\n");
}

static void
other_versions_are_refused(void **state)
{
    assert_refused("GET / HTTP/2.0\r\nHost: a\r\n\r\n", "failed 505 ");
    assert_refused("GET / HTTP/0.9\r\nHost: a\r\n\r\n", "failed 505 ");
    assert_refused("GET / HTTP/1.2\r\nHost: a\r\n\r\n", "failed 505 ");
    assert_refused("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "failed 505 ");
    assert_refused("GET / HTTP/1\r\n\r\n", "failed 400 ");
    assert_refused("GET / HTTP/1.10\r\n\r\n", "failed 400 ");
    assert_refused("GET /\r\n\r\n", "failed 400 ");
    assert_refused("GET / RTSP/1.0\r\n\r\n", "failed 400 ");
    assert_refused("SOURCE / ICE/1.0\r\n\r\n", "failed 400 ");
    assert_refused("\r\n \r\n", "failed 400 ");
}

static void
other_protocols_are_told_after_their_first_line(void **state)
{
    assert_refused("SSH-2.0-OpenSSH_9.2\r\n", "failed 400 ");
    assert_refused("\x16\x03\x01\x02", "failed 400 ");
    assert_refused("EHLO example.org\r\n", "failed 400 ");
    assert_string_equal(said("GET / HTTP/1.1\r\nHost: a"), "");
}

static void
a_line_that_does_not_end_in_cr_lf_is_refused(void **state)
{
    assert_refused("GET / HTTP/1.1\nHost: a\n\n", "failed 400 ");
    assert_refused("GET / HTTP/1.1\r\nHost: a\n\r\n", "failed 400 ");
    assert_refused("GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n", "failed 400 ");
    assert_refused("GET / HTTP/1.1\r\nHost: a\r\r\n\r\n", "failed 400 ");
    assert_refused("GET / HTTP/1.1\r\nHost: a\r\n\r\r\n", "failed 400 ");
    assert_refused("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "failed 400 ");
    assert_refused("\rGET / HTTP/1.1\r\nHost: a\r\n\r\n", "failed 400 ");
}

static void
control_characters_in_a_head_are_refused(void **state)
{
    for (int c = 0; c < 0x20; c++) {
        char text[] = "GET / HTTP/1.1\r\nHost: a\r\nX: a_b\r\n\r\n";

        if (c == '\t')
            continue;
        *strchr(text, '_') = (char)c;
        assert_starts(said_within(&limits, text, sizeof text - 1), "failed 400 ");
    }
    assert_refused("GET / HTTP/1.1\r\nHost: a\r\nX: a\x7f"
                   "b\r\n\r\n",
                   "failed 400 ");
    assert_string_equal(said("GET / HTTP/1.1\r\nHost: a\r\nX: a\t\xc3\xa9\r\n\r\n"),
                        "GET / ? [host: a] [x: a\t\xc3\xa9]\n");
}

static void
a_folded_header_is_refused(void **state)
{
    assert_refused("GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", "failed 400 ");
    assert_refused("GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n\tb\r\n\r\n", "failed 400 ");
    assert_refused("GET / HTTP/1.1\r\n Host: a\r\n\r\n", "failed 400 ");
    assert_refused(" GET / HTTP/1.1\r\nHost: a\r\n\r\n", "failed 400 ");
}

static void
a_bad_header_name_is_refused(void **state)
{
    assert_refused("GET / HTTP/1.1\r\nHost: a\r\nX : a\r\n\r\n", "failed 400 ");
    assert_refused("GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", "failed 400 ");
    assert_refused("GET / HTTP/1.1\r\nHost: a\r\n: a\r\n\r\n", "failed 400 ");
    assert_refused("GET / HTTP/1.1\r\nHost: a\r\nX(): a\r\n\r\n", "failed 400 ");
    assert_refused("GET / HTTP/1.1\r\nHost: a\r\n\xc3\xa9: a\r\n\r\n", "failed 400 ");
}

static void
a_request_needs_exactly_one_host(void **state)
{
    assert_refused("GET / HTTP/1.1\r\n\r\n", "failed 400 ");
    assert_refused("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "failed 400 ");
    assert_refused("GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", "failed 400 ");
}

static void
a_body_with_a_length_is_read(void **state)
{
    assert_string_equal(said("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"),
                        "POST /x ? [host: a] [content-length: 5] body hello\n");
    assert_string_equal(said("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"),
                        "POST /x ? [host: a] [content-length: 0]\n");
    assert_string_equal(said("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhell"), "");
    /* The body is not looked at: control characters and NULs are content. */
    assert_memory_equal(
        said_within(&limits, "POST / HTTP/1.0\r\nContent-Length: 3\r\n\r\n\n\0\x01", 41),
        "POST / ? 1.0 close [content-length: 3] body \n\0\x01\n", 49);
}

static void
requests_on_one_connection_follow_each_other(void **state)
{
    assert_string_equal(said("POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi"
                             "POST /2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
                             "1\r\nx\r\n0\r\n\r\n\r\n"
                             "GET /3 HTTP/1.1\r\nHost: a\r\n\r\n"),
                        "POST /1 ? [host: a] [content-length: 2] body hi\n"
                        "POST /2 ? [host: a] [transfer-encoding: chunked] body x\n"
                        "GET /3 ? [host: a]\n");
}

static void
one_feed_gives_one_request_and_leaves_the_rest(void **state)
{
    static const char text[] =
        "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n";
    struct http_parser *parser = http_parser_new(&limits);
    struct http_request *request = NULL;
    struct api_error error = {0};
    size_t consumed = 0;

    assert_int_equal(http_parser_feed(parser, text, strlen(text), &consumed, &request, &error),
                     HTTP_REQUEST);
    assert_int_equal(consumed, strlen(text) / 2);
    assert_string_equal(request->path, "/1");
    http_request_free(request);
    http_parser_free(parser);
}

static void
every_split_of_a_pipeline_reads_the_same(void **state)
{
    static const char text[] =
        "POST /a%20b?q HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\nExpect: 100-continue\r\n\r\n"
        "hello\r\n\r\nxy\r\n"
        "POST /2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        "5;name=value\r\nhe\r\no\r\nA;x\r\n0123456789\r\n000\r\nTrailer: x\r\nX-Sum: 3\r\n\r\n"
        "HEAD / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.0\r\n\r\nleft over";
    static const char want[] =
        "continue\n"
        "POST /a b ?q [host: a] [content-length: 11] [expect: 100-continue] body hello\r\n\r\nxy\n"
        "POST /2 ? [host: a] [transfer-encoding: chunked] body he\r\no0123456789\n"
        "HEAD / ? [host: a]\nGET / ? 1.0 close\n";
    size_t size = strlen(text);

    for (size_t first = 0; first < size; first++) {
        for (size_t second = first; second < size; second += 1 + (second - first) / 8) {
            struct http_parser *parser = http_parser_new(&limits);
            struct buf out = {0};

            feed(parser, text, first, first, &out);
            feed(parser, text + first, second - first, second - first, &out);
            feed(parser, text + second, size - second, size - second, &out);
            assert_int_equal(out.size_bytes, strlen(want));
            assert_memory_equal(out.data, want, out.size_bytes);
            buf_free(&out);
            http_parser_free(parser);
        }
    }
}

static void
a_chunked_body_is_put_together(void **state)
{
    assert_string_equal(said("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n"
                             "3\r\nabc\r\n0A\r\n0123456789\r\n0\r\n\r\n"),
                        "POST / ? [host: a] [transfer-encoding: Chunked] body abc0123456789\n");
    assert_string_equal(
        said("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        "POST / ? [host: a] [transfer-encoding: chunked]\n");
}

static void
trailers_do_not_become_headers(void **state)
{
    assert_string_equal(
        said("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"
             "0\r\nAuthorization: y\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        "POST / ? [host: a] [transfer-encoding: chunked] body x\n"
        "GET / ? [host: a]\n");
}

static void
bad_chunk_framing_is_refused(void **state)
{
    static const char *const bodies[] = {
        "\r\n",
        "g\r\n",
        "0x5\r\nhello\r\n",
        "5 \r\nhello\r\n",
        " 5\r\nhello\r\n",
        "-1\r\n",
        "5\nhello\r\n",
        "5\r\nhello\n",
        "5\r\nhelloX\r\n",
        "5\r\nhello\rX",
        "5;a\nb\r\n",
        "5;a\x01\r\n",
        "1\r\r\n",
        "FFFFFFFFFFFFFFFFF\r\n",
        "0\r\nX: y\n\r\n",
        "0\r\nX y\r\n\r\n",
        "+5\r\nhello\r\n",
        "5\r\nhello\r\r\n",
    };

    for (size_t i = 0; i < sizeof bodies / sizeof bodies[0]; i++) {
        char text[160];

        snprintf(text, sizeof text,
                 "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n%s", bodies[i]);
        assert_refused(text, "failed 400 invalid_request_error malformed_http");
    }
}

/* Request smuggling: two readers that see different lengths. */
static void
a_length_given_twice_is_refused(void **state)
{
    static const char *const headers[] = {
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5, 5",
        "Content-Length: +5",
        "Content-Length: -5",
        "Content-Length: 0x5",
        "Content-Length: 5 5",
        "Content-Length: ",
        "Content-Length: 99999999999999999999",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: identity",
        "Transfer-Encoding:\x0b"
        "chunked",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: x",
        "Transfer-Encoding: x\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: \"chunked\"",
        "Content-Length: 5\r\n\tTransfer-Encoding: chunked",
        "Content-Length:\r\n 5",
    };

    for (size_t i = 0; i < sizeof headers / sizeof headers[0]; i++) {
        char text[256];
        const char *line;

        snprintf(text, sizeof text, "POST / HTTP/1.1\r\nHost: a\r\n%s\r\n\r\n0\r\n\r\nhello",
                 headers[i]);
        line = said(text);
        if (strncmp(line, "failed 400 ", 11) != 0 && strncmp(line, "failed 501 ", 11) != 0)
            fail_msg("'%s' gave '%s'", headers[i], line);
    }
}

static void
another_transfer_encoding_is_not_supported(void **state)
{
    assert_refused("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
                   "failed 501 server_error not_supported");
    assert_refused("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", "failed 400 ");
}

static void
a_client_that_expects_100_is_told_to_continue(void **state)
{
    assert_string_equal(
        said("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-Continue\r\n\r\nhi"),
        "continue\nPOST / ? [host: a] [content-length: 2] [expect: 100-Continue] body hi\n");
    assert_string_equal(said("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"
                             "Expect: 100-continue\r\n\r\n0\r\n\r\n"),
                        "continue\nPOST / ? [host: a] [transfer-encoding: chunked] [expect: "
                        "100-continue]\n");
}

static void
nobody_is_told_to_continue_without_a_body_or_in_http_1_0(void **state)
{
    assert_string_equal(said("GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n"),
                        "GET / ? [host: a] [expect: 100-continue]\n");
    assert_string_equal(
        said("POST / HTTP/1.0\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\nhi"),
        "POST / ? 1.0 close [content-length: 2] [expect: 100-continue] body hi\n");
}

static void
an_unknown_expectation_is_417(void **state)
{
    assert_refused("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: tea\r\n\r\n",
                   "failed 417 ");
}

static void
a_head_of_the_largest_size_is_read_and_one_byte_more_is_431(void **state)
{
    char text[1200];
    int fixed = snprintf(text, sizeof text, "GET / HTTP/1.1\r\nHost: a\r\nX: \r\n\r\n");
    int fill = (int)limits.max_head_bytes - fixed;

    snprintf(text, sizeof text, "GET / HTTP/1.1\r\nHost: a\r\nX: %0*d\r\n\r\n", fill, 0);
    assert_int_equal(strlen(text), limits.max_head_bytes);
    assert_starts(said(text), "GET / ");
    snprintf(text, sizeof text, "GET / HTTP/1.1\r\nHost: a\r\nX: %0*d\r\n\r\n", fill + 1, 0);
    assert_refused(text, "failed 431 invalid_request_error request_too_large");
}

static void
one_header_more_than_allowed_is_431(void **state)
{
    char text[512] = "GET / HTTP/1.1\r\nHost: a\r\n";

    for (int i = 1; i < limits.max_headers; i++)
        strcat(text, "A: b\r\n");
    strcat(text, "\r\n");
    assert_starts(said(text), "GET / ");
    text[strlen(text) - 2] = '\0';
    strcat(text, "A: b\r\n\r\n");
    assert_refused(text, "failed 431 invalid_request_error request_too_large");
}

static void
line_ends_before_a_request_are_skipped_but_not_for_ever(void **state)
{
    char text[3000];

    assert_string_equal(said("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"), "GET / ? [host: a]\n");
    for (size_t i = 0; i < sizeof text; i += 2)
        memcpy(text + i, "\r\n", 2);
    assert_starts(said_within(&limits, text, sizeof text), "failed 400 ");
}

static char *
request_with_body(const char *head, size_t body_size, size_t *ret_size)
{
    size_t head_size = strlen(head);
    char *text = malloc(head_size + body_size);

    memcpy(text, head, head_size);
    memset(text + head_size, 'x', body_size);
    *ret_size = head_size + body_size;
    return text;
}

static void
a_body_of_the_largest_size_is_read_and_one_byte_more_is_413(void **state)
{
    size_t size;
    char *text =
        request_with_body("POST / HTTP/1.0\r\nContent-Length: 200000\r\n\r\n", 200000, &size);

    assert_string_equal(said_within(&limits, text, size),
                        "POST / ? 1.0 close [content-length: 200000] body of 200000\n");
    free(text);
    /* At once: no byte of the body is waited for. */
    assert_refused("POST / HTTP/1.0\r\nContent-Length: 200001\r\n\r\n",
                   "failed 413 invalid_request_error request_too_large");
    /* No "continue" for a body that would be refused. */
    assert_refused("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551615\r\nExpect: "
                   "100-continue\r\n\r\n",
                   "failed 413 ");
}

static void
a_chunked_body_is_413_when_it_grows_too_large(void **state)
{
    struct http_limits small = {.max_head_bytes = 1024, .max_body_bytes = 8, .max_headers = 8};
    char text[200];

    snprintf(text, sizeof text,
             "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
             "5\r\nhello\r\n3\r\nabc\r\n0\r\n\r\n");
    assert_starts(said_within(&small, text, strlen(text)), "POST / ");
    snprintf(text, sizeof text,
             "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n4\r\n");
    assert_starts(said_within(&small, text, strlen(text)), "failed 413 ");
    snprintf(
        text, sizeof text,
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF\r\n");
    assert_starts(said_within(&small, text, strlen(text)), "failed 413 ");
}

static void
a_body_limit_of_zero_takes_requests_without_a_body(void **state)
{
    struct http_limits none = {.max_head_bytes = 1024, .max_body_bytes = 0, .max_headers = 8};
    static const char get[] = "GET / HTTP/1.0\r\n\r\n";
    static const char post[] = "POST / HTTP/1.0\r\nContent-Length: 1\r\n\r\n";

    assert_starts(said_within(&none, get, strlen(get)), "GET / ");
    assert_starts(said_within(&none, post, strlen(post)), "failed 413 ");
}

static void
endless_chunk_extensions_and_trailers_are_refused(void **state)
{
    struct buf text = {0};

    buf_text(&text, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;");
    for (int i = 0; i < 2000; i++)
        buf_text(&text, "x");
    assert_starts(said_within(&limits, text.data, text.size_bytes), "failed 431 ");
    buf_reset(&text);
    buf_text(&text, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n");
    for (int i = 0; i < 500; i++)
        buf_text(&text, "A: b\r\n");
    assert_starts(said_within(&limits, text.data, text.size_bytes), "failed 431 ");
    /* Chunks of one byte are a bad habit, but no attack. */
    buf_reset(&text);
    buf_text(&text, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (int i = 0; i < 3000; i++)
        buf_text(&text, "1\r\nx\r\n");
    buf_text(&text, "0\r\n\r\n");
    assert_starts(said_within(&limits, text.data, text.size_bytes), "POST / ");
    buf_free(&text);
}

static void
a_parser_is_idle_between_requests_only(void **state)
{
    static const char text[] = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi";
    struct http_parser *parser = http_parser_new(&limits);
    struct http_request *request = NULL;
    struct api_error error = {0};
    size_t consumed;

    assert_true(http_parser_idle(parser));
    for (size_t at = 0; at < strlen(text); at++) {
        http_parser_feed(parser, text + at, 1, &consumed, &request, &error);
        assert_int_equal(http_parser_idle(parser), at + 1 == strlen(text));
    }
    http_request_free(request);
    http_parser_feed(parser, "\r\n", 2, &consumed, &request, &error);
    assert_true(http_parser_idle(parser));
    http_parser_feed(parser, "G", 1, &consumed, &request, &error);
    assert_false(http_parser_idle(parser));
    http_parser_free(parser);
}

static void
a_failed_parser_stays_failed(void **state)
{
    struct http_parser *parser = http_parser_new(&limits);
    struct http_request *request = NULL;
    struct api_error error = {0}, again = {0};
    size_t consumed;

    assert_int_equal(http_parser_feed(parser, "\x01", 1, &consumed, &request, &error), HTTP_FAILED);
    assert_int_equal(
        http_parser_feed(parser, "GET / HTTP/1.0\r\n\r\n", 18, &consumed, &request, &again),
        HTTP_FAILED);
    assert_int_equal(error.status, again.status);
    assert_string_equal(error.message, again.message);
    assert_null(request);
    http_parser_free(parser);
}

static void
a_parser_can_be_dropped_in_the_middle(void **state)
{
    static const char text[] = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 200\r\n\r\nhi";

    for (size_t size = 0; size <= strlen(text); size++) {
        struct http_parser *parser = http_parser_new(&limits);
        struct buf out = {0};

        feed(parser, text, size, 7, &out);
        assert_int_equal(out.size_bytes, 0);
        http_parser_free(parser);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_get_request_is_read),
        cmocka_unit_test(names_are_lower_case_and_values_are_trimmed),
        cmocka_unit_test(a_header_is_found_by_its_lower_case_name),
        cmocka_unit_test(every_method_has_its_kind),
        cmocka_unit_test(an_unknown_method_is_refused),
        cmocka_unit_test(connect_is_refused_with_405),
        cmocka_unit_test(an_offer_to_upgrade_is_ignored),
        cmocka_unit_test(the_path_is_decoded_and_the_query_is_not),
        cmocka_unit_test(a_bad_escape_in_the_path_is_refused),
        cmocka_unit_test(a_target_in_absolute_form_is_a_path),
        cmocka_unit_test(http_1_0_closes_unless_asked_to_keep_alive),
        cmocka_unit_test(http_1_1_stays_open_unless_told_to_close),
        cmocka_unit_test(bytes_after_the_last_request_of_a_connection_are_dropped),
        cmocka_unit_test(other_versions_are_refused),
        cmocka_unit_test(other_protocols_are_told_after_their_first_line),
        cmocka_unit_test(a_line_that_does_not_end_in_cr_lf_is_refused),
        cmocka_unit_test(control_characters_in_a_head_are_refused),
        cmocka_unit_test(a_folded_header_is_refused),
        cmocka_unit_test(a_bad_header_name_is_refused),
        cmocka_unit_test(a_request_needs_exactly_one_host),
        cmocka_unit_test(a_body_with_a_length_is_read),
        cmocka_unit_test(requests_on_one_connection_follow_each_other),
        cmocka_unit_test(one_feed_gives_one_request_and_leaves_the_rest),
        cmocka_unit_test(every_split_of_a_pipeline_reads_the_same),
        cmocka_unit_test(a_chunked_body_is_put_together),
        cmocka_unit_test(trailers_do_not_become_headers),
        cmocka_unit_test(bad_chunk_framing_is_refused),
        cmocka_unit_test(a_length_given_twice_is_refused),
        cmocka_unit_test(another_transfer_encoding_is_not_supported),
        cmocka_unit_test(a_client_that_expects_100_is_told_to_continue),
        cmocka_unit_test(nobody_is_told_to_continue_without_a_body_or_in_http_1_0),
        cmocka_unit_test(an_unknown_expectation_is_417),
        cmocka_unit_test(a_head_of_the_largest_size_is_read_and_one_byte_more_is_431),
        cmocka_unit_test(one_header_more_than_allowed_is_431),
        cmocka_unit_test(line_ends_before_a_request_are_skipped_but_not_for_ever),
        cmocka_unit_test(a_body_of_the_largest_size_is_read_and_one_byte_more_is_413),
        cmocka_unit_test(a_chunked_body_is_413_when_it_grows_too_large),
        cmocka_unit_test(a_body_limit_of_zero_takes_requests_without_a_body),
        cmocka_unit_test(endless_chunk_extensions_and_trailers_are_refused),
        cmocka_unit_test(a_parser_is_idle_between_requests_only),
        cmocka_unit_test(a_failed_parser_stays_failed),
        cmocka_unit_test(a_parser_can_be_dropped_in_the_middle),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
