/* http1: HTTP/1.1 requests out of bytes, on llhttp, and response heads into bytes. Pure: no I/O, no clock.
 * One parser per connection. Keep-alive, pipelining, chunked bodies, Expect: 100-continue, limits.   */
#ifndef PROTO_HTTP1_H
#define PROTO_HTTP1_H

#include <stdbool.h>
#include <stddef.h>

#include "base/arena.h"
#include "base/buf.h"
#include "proto/api_error.h"

enum http_method { HTTP_GET_, HTTP_HEAD_, HTTP_POST_, HTTP_PATCH_, HTTP_OPTIONS_, HTTP_OTHER_ };

struct http_header {
    const char *name; /* lower case */
    const char *value;
};

struct http_request {
    struct arena *arena; /* owns the request; http_request_free drops it whole */
    enum http_method method;
    const char *method_name;
    const char *path;  /* percent-decoded path, no query */
    const char *query; /* raw, "" when absent */
    int n_headers;
    struct http_header *headers;
    const char *body; /* NUL-terminated for convenience; may hold NULs */
    size_t body_size;
    bool keep_alive; /* the client allows the connection to go on */
    bool http10;     /* no chunked response */
};
const char *http_request_header(const struct http_request *request, const char *lower_name); /* or NULL */
struct http_request *http_request_free(struct http_request *request); /* accepts NULL, returns NULL */

struct http_limits {
    size_t max_head_bytes, max_body_bytes;
    int max_headers;
};
enum http_event {
    HTTP_MORE,     /* all bytes were consumed, nothing is complete */
    HTTP_REQUEST,  /* *ret_request is complete; feed the rest of the bytes again for the next one */
    HTTP_CONTINUE, /* the client waits for "100 Continue"; send it and feed the rest */
    HTTP_FAILED,   /* *ret_error says which 4xx/5xx; the connection must be closed after the answer */
};

struct http_parser;
struct http_parser *http_parser_new(const struct http_limits *limits);
struct http_parser *http_parser_free(struct http_parser *parser); /* accepts NULL, returns NULL */
/* Consumes up to size bytes; *ret_consumed of them are done with. */
enum http_event http_parser_feed(struct http_parser *parser, const char *data, size_t size,
                                 size_t *ret_consumed, struct http_request **ret_request,
                                 struct api_error *ret_error);
/* True between requests with no byte of the next one seen (idle), for the timeouts. */
bool http_parser_idle(const struct http_parser *parser);

const char *http_status_text(int status);

/* A response head. content_length < 0: Transfer-Encoding: chunked (or, for HTTP/1.0, neither). Adds Date-less
 * minimal headers: content-type, content-length, x-request-id, connection, and `extra`, lines that end in CRLF.
 * CORS headers for an Origin are among `extra`. */
struct http_response_head {
    int status;
    const char *content_type; /* NULL: none */
    long long content_length;
    const char *request_id;
    const char *extra; /* NULL or "name: value\r\n..." */
    bool keep_alive;
    bool http10;
};
void http_write_head(struct buf *out, const struct http_response_head *head);
void http_write_chunk(struct buf *out, const char *data, size_t size); /* size > 0 */
void http_write_last_chunk(struct buf *out);
extern const char http_continue[]; /* the interim answer to HTTP_CONTINUE */
/* Headers of a CORS preflight answer, allow-origin included: CRLF-terminated lines. */
extern const char http_cors_preflight_headers[];

#endif
