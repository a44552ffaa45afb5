#include "proto/http_head.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/check.h"

/* Collects what llhttp finds. Every span points into one copy of the head, in the request's arena.
 */
struct head_reader {
    struct http_request *request;
    int max_headers;
    char *target, *target_end; /* request-target */
    char *name, *name_end;     /* header being read */
    char *value, *value_end;
    bool name_done, done, too_many, keep_alive;
};

/* llhttp may report a span in pieces; within one buffer they are adjacent. An empty piece may point
 * anywhere, even at the next line. */
static void
extend(char **begin, char **end, const char *at, size_t size)
{
    char *piece = (char *)at; /* the copy of the head is ours to write */

    if (size == 0)
        return;
    if (!*begin)
        *begin = piece;
    *end = piece + size;
}

/* Ends the strings of the header that was read last. Only once llhttp has gone past it: the byte
 * after a value is the CR it still has to read when it reports the value. */
static int
close_header(struct head_reader *reader)
{
    struct http_header *header;

    if (!reader->name)
        return 0;
    if (reader->request->n_headers == reader->max_headers) {
        reader->too_many = true;
        return -1;
    }
    header = &reader->request->headers[reader->request->n_headers++];
    for (char *c = reader->name; c < reader->name_end; c++)
        *c = (char)(*c >= 'A' && *c <= 'Z' ? *c + ('a' - 'A') : *c);
    *reader->name_end = '\0';
    header->name = reader->name;
    header->value = "";
    if (reader->value) {
        while (reader->value_end > reader->value &&
               (reader->value_end[-1] == ' ' || reader->value_end[-1] == '\t'))
            reader->value_end--;
        *reader->value_end = '\0';
        header->value = reader->value;
    }
    reader->name = reader->value = NULL;
    reader->name_done = false;
    return 0;
}

/* A reader is set while a head is read. Without one these are trailers, which are dropped: none may
 * change a request whose head has been judged. */
static int
on_url(llhttp_t *parser, const char *at, size_t size)
{
    struct head_reader *reader = parser->data;

    if (reader)
        extend(&reader->target, &reader->target_end, at, size);
    return 0;
}

static int
on_header_field(llhttp_t *parser, const char *at, size_t size)
{
    struct head_reader *reader = parser->data;

    if (!reader)
        return 0;
    if (reader->name_done && close_header(reader) < 0)
        return HPE_USER;
    extend(&reader->name, &reader->name_end, at, size);
    return 0;
}

static int
on_header_field_complete(llhttp_t *parser)
{
    struct head_reader *reader = parser->data;

    if (!reader)
        return 0;
    reader->name_done = true;
    return reader->name ? 0 : -1; /* ": value" */
}

static int
on_header_value(llhttp_t *parser, const char *at, size_t size)
{
    struct head_reader *reader = parser->data;

    if (reader)
        extend(&reader->value, &reader->value_end, at, size);
    return 0;
}

static int
on_headers_complete(llhttp_t *parser)
{
    struct head_reader *reader = parser->data;

    if (reader) {
        reader->done = true;
        /* Now: for a request without a body llhttp forgets it before llhttp_execute returns. */
        reader->keep_alive = llhttp_should_keep_alive(parser) != 0;
    }
    return 0;
}

void
http_head_settings(llhttp_settings_t *settings)
{
    llhttp_settings_init(settings);
    settings->on_url = on_url;
    settings->on_header_field = on_header_field;
    settings->on_header_field_complete = on_header_field_complete;
    settings->on_header_value = on_header_value;
    settings->on_headers_complete = on_headers_complete;
}

int
http_llhttp_error(const llhttp_t *parser, llhttp_errno_t failure, struct api_error *error)
{
    const char *reason = llhttp_get_error_reason(parser);

    if (failure == HPE_INVALID_VERSION)
        return api_error_set(error, 505, "malformed_http", NULL, "Only HTTP/1.1 and HTTP/1.0.");
    return api_error_set(error, 400, "malformed_http", NULL, "The HTTP request is malformed: %s.",
                         reason && reason[0] ? reason : llhttp_errno_name(failure));
}

static int
hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

/* target is origin-form, absolute-form, or "*" for OPTIONS; it is split and decoded in place. */
static int
read_target(struct http_request *request, char *target, struct api_error *error)
{
    char *query, *out;

    for (const char *c = target; *c; c++)
        if (*c <= 0x20 || *c >= 0x7F || *c == '#') /* char is signed or not: both refuse 0x80.. */
            return api_error_set(error, 400, "malformed_http", NULL,
                                 "The request target has a character that must be escaped.");
    if (strncasecmp(target, "http://", 7) == 0 || strncasecmp(target, "https://", 8) == 0) {
        char *path = target + strcspn(target, ":") + 3;

        path += strcspn(path, "/?");
        if (*path == '/') {
            target = path;
        } else if (*path == '\0') {
            request->path = "/";
            request->query = "";
            return 0;
        }
    }
    if (strcmp(target, "*") == 0 && request->method == HTTP_OPTIONS_) {
        request->path = "*";
        request->query = "";
        return 0;
    }
    if (*target != '/')
        return api_error_set(error, 400, "malformed_http", NULL,
                             "The request target must be an absolute path.");
    query = target + strcspn(target, "?");
    request->query = "";
    if (*query) {
        *query = '\0';
        request->query = query + 1;
    }
    out = target;
    for (const char *in = target; *in; in++) {
        int high, low;

        if (*in != '%') {
            *out++ = *in;
            continue;
        }
        high = hex_digit(in[1]);
        low = high < 0 ? -1 : hex_digit(in[2]);
        if (low < 0 || high * 16 + low == 0)
            return api_error_set(error, 400, "malformed_http", NULL,
                                 "The path has a bad percent escape.");
        *out++ = (char)(high * 16 + low);
        in += 2;
    }
    *out = '\0';
    request->path = target;
    return 0;
}

/* llhttp has checked each header that frames the body; these are the rules for all of them
 * together. What another server in front of us could read differently is refused, not interpreted.
 */
static int
read_framing(const struct http_request *request, struct http_framing *framing,
             struct api_error *error)
{
    int n_host = 0, n_length = 0, n_encoding = 0;

    *framing = (struct http_framing){0};
    for (int i = 0; i < request->n_headers; i++) {
        const char *name = request->headers[i].name, *value = request->headers[i].value;

        if (strcmp(name, "host") == 0) {
            n_host++;
        } else if (strcmp(name, "content-length") == 0) {
            n_length++;
            /* llhttp has refused everything but digits that fit 64 bits. */
            framing->length_bytes = strtoull(value, NULL, 10);
        } else if (strcmp(name, "transfer-encoding") == 0) {
            n_encoding++;
            framing->chunked = true;
            if (strcasecmp(value, "chunked") != 0)
                return api_error_set(error, 501, "not_supported", NULL,
                                     "Transfer-Encoding must be \"chunked\".");
        } else if (strcmp(name, "expect") == 0 && !request->http10) {
            framing->expect_continue = true;
            if (strcasecmp(value, "100-continue") != 0)
                return api_error_set(error, 417, "expectation_failed", NULL,
                                     "Expect must be \"100-continue\".");
        }
    }
    if (n_length > 1 || n_encoding > 1 || (n_length && n_encoding))
        return api_error_set(error, 400, "malformed_http", NULL,
                             "The length of the body is given more than once.");
    if (n_encoding && request->http10)
        return api_error_set(error, 400, "malformed_http", NULL,
                             "HTTP/1.0 has no Transfer-Encoding.");
    if (n_host > 1 || (n_host == 0 && !request->http10))
        return api_error_set(error, 400, "malformed_http", NULL,
                             "An HTTP/1.1 request has exactly one Host header.");
    return 0;
}

static enum http_method
method_of(uint8_t method)
{
    switch (method) {
    case HTTP_GET:
        return HTTP_GET_;
    case HTTP_HEAD:
        return HTTP_HEAD_;
    case HTTP_POST:
        return HTTP_POST_;
    case HTTP_PATCH:
        return HTTP_PATCH_;
    case HTTP_OPTIONS:
        return HTTP_OPTIONS_;
    default:
        return HTTP_OTHER_;
    }
}

static int
parse_into(llhttp_t *parser, char *head, size_t size, const struct http_limits *limits,
           struct http_request *request, struct http_framing *framing, struct api_error *error)
{
    struct head_reader reader = {.request = request, .max_headers = limits->max_headers};
    llhttp_errno_t failure;
    int bad = 0;

    parser->data = &reader;
    failure = llhttp_execute(parser, head, size);
    parser->data = NULL;
    if (!reader.too_many && reader.done)
        bad = close_header(&reader);
    if (reader.too_many || bad < 0)
        return api_error_set(error, 431, "request_too_large", NULL,
                             "The request has more than %d header fields.", limits->max_headers);
    /* Upgrade is an offer we do not take: the request is answered as if it were not there. */
    if (failure != HPE_OK && !(failure == HPE_PAUSED_UPGRADE && reader.done))
        return http_llhttp_error(parser, failure, error);
    /* The caller found the empty line; a parser that has not is one that reads another request. */
    if (!reader.done || !reader.target)
        return api_error_set(error, 400, "malformed_http", NULL, "The HTTP request is malformed.");
    request->http10 = llhttp_get_http_minor(parser) == 0;
    request->keep_alive = reader.keep_alive;
    request->method = method_of(llhttp_get_method(parser));
    request->method_name = llhttp_method_name((llhttp_method_t)llhttp_get_method(parser));
    if (llhttp_get_method(parser) == HTTP_CONNECT) {
        api_error_set(error, 405, "method_not_allowed", NULL, "This server is not a proxy.");
        error->allow = "GET, HEAD, POST, OPTIONS";
        return -405;
    }
    *reader.target_end = '\0';
    bad = read_target(request, reader.target, error);
    return bad < 0 ? bad : read_framing(request, framing, error);
}

int
http_head_parse(llhttp_t *parser, const char *head, size_t size, const struct http_limits *limits,
                struct http_request **ret_request, struct http_framing *ret_framing,
                struct api_error *error)
{
    struct arena *arena = arena_new(0);
    struct http_request *request = NULL;
    char *copy = NULL;
    int bad;

    if (arena) {
        request = arena_alloc(arena, sizeof *request);
        copy = arena_alloc(arena, size + 1);
    }
    if (request)
        request->headers =
            arena_array(arena, (size_t)limits->max_headers, sizeof *request->headers);
    if (!request || !copy || !request->headers) {
        arena_free(arena);
        return api_error_set(error, 503, "out_of_memory", NULL, "The server is out of memory.");
    }
    memcpy(copy, head, size);
    request->arena = arena;
    request->body = "";
    bad = parse_into(parser, copy, size, limits, request, ret_framing, error);
    if (bad < 0) {
        arena_free(arena);
        return bad;
    }
    *ret_request = request;
    return 0;
}
