/* fuzz_http1: bytes of a connection. However they are split, the parser says the same; what it lets
 * through is within its limits. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "proto/http1.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct http_limits limits = {
    .max_head_bytes = 2048, .max_body_bytes = 70000, .max_headers = 16};

static void
note_request(struct buf *out, const struct http_request *request)
{
    ASSERT(request->path[0] == '/' || strcmp(request->path, "*") == 0);
    ASSERT(request->n_headers <= limits.max_headers);
    ASSERT(request->body_size <= limits.max_body_bytes);
    ASSERT(request->body[request->body_size] == '\0');
    buf_printf(out, "%s %d %s ?%s %d %d\n", request->method_name, request->method, request->path,
               request->query, request->http10, request->keep_alive);
    for (int i = 0; i < request->n_headers; i++) {
        const char *name = request->headers[i].name;

        ASSERT(name[0] != '\0');
        for (const char *c = name; *c; c++)
            ASSERT(!(*c >= 'A' && *c <= 'Z'));
        ASSERT(!strpbrk(request->headers[i].value, "\r\n"));
        ASSERT(http_request_header(request, name) != NULL);
        buf_printf(out, "[%s: %s]\n", name, request->headers[i].value);
    }
    buf_append(out, request->body, request->body_size);
}

static void
feed(const uint8_t *data, size_t size, size_t piece, struct buf *out)
{
    struct http_parser *parser = http_parser_new(&limits);
    bool open = true;

    ASSERT(parser);
    for (size_t at = 0; at < size && open;) {
        size_t part = size - at < piece ? size - at : piece, consumed = 0;
        struct http_request *request = NULL;
        struct api_error error = {0};

        switch (
            http_parser_feed(parser, (const char *)data + at, part, &consumed, &request, &error)) {
        case HTTP_MORE:
            ASSERT(consumed == part && !request);
            break;
        case HTTP_REQUEST:
            note_request(out, request);
            http_request_free(request);
            break;
        case HTTP_CONTINUE:
            ASSERT(!request);
            buf_text(out, "continue\n");
            break;
        case HTTP_FAILED:
            ASSERT(error.status >= 400 && error.message[0] && !request);
            api_error_body(out, &error);
            open = false;
            break;
        }
        ASSERT(consumed > 0 && consumed <= part);
        at += consumed;
    }
    http_parser_free(parser);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const size_t pieces[] = {1, 2, 7, 1000};
    struct buf whole = {0}, split = {0};

    feed(data, size, size ? size : 1, &whole);
    for (size_t i = 0; i < sizeof pieces / sizeof pieces[0]; i++) {
        buf_reset(&split);
        feed(data, size, pieces[i], &split);
        ASSERT(whole.failed == split.failed && whole.size_bytes == split.size_bytes);
        ASSERT(!whole.size_bytes || memcmp(whole.data, split.data, whole.size_bytes) == 0);
    }
    buf_free(&whole);
    buf_free(&split);
    return 0;
}
