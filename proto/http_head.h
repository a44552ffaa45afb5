/* http_head: one complete request head, bytes to struct http_request, on llhttp. Internal to proto/.
 * Thread: none. Errors: a negated HTTP status with *error filled.                                  */
#ifndef PROTO_HTTP_HEAD_H
#define PROTO_HTTP_HEAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/http1.h"

/* llhttp has an enumerator that our contract also uses for one of its events. */
#define HTTP_REQUEST LLHTTP_KIND_REQUEST
#include <llhttp.h>
#undef HTTP_REQUEST

/* How the body is framed. */
struct http_framing {
    bool chunked;
    bool expect_continue;
    uint64_t length_bytes; /* Content-Length; 0 when chunked or absent */
};

/* parser was set up by llhttp_init; its `data` is used during the call. head[0..size) ends with the
 * empty line. On success *ret_request has everything but the body, and llhttp stands at the first
 * byte of the body: feed it the chunks. */
int http_head_parse(llhttp_t *parser, const char *head, size_t size, const struct http_limits *limits,
                    struct http_request **ret_request, struct http_framing *ret_framing,
                    struct api_error *error);
/* The settings http_head_parse and the chunk reader share; install them with llhttp_init. */
void http_head_settings(llhttp_settings_t *settings);
/* Fills *error from what llhttp_execute returned. */
int http_llhttp_error(const llhttp_t *parser, llhttp_errno_t failure, struct api_error *error);

#endif
