#include <string.h>

#include "base/check.h"
#include "proto/http1.h"

enum { REQUEST_ID_MAX_BYTES = 128 };

const char http_continue[] = "HTTP/1.1 100 Continue\r\n\r\n";

/* Names are listed one by one: "*" does not cover Authorization, and has no prefix form. */
const char http_cors_preflight_headers[] =
    "access-control-allow-origin: *\r\n"
    "access-control-allow-methods: GET, HEAD, POST, OPTIONS\r\n"
    "access-control-allow-headers: authorization, content-type, accept, user-agent, x-request-id, "
    "x-client-request-id, idempotency-key, openai-organization, openai-project, openai-beta, "
    "x-stainless-arch, x-stainless-async, x-stainless-custom-poll-interval, "
    "x-stainless-helper-method, x-stainless-lang, x-stainless-os, x-stainless-package-version, "
    "x-stainless-poll-helper, x-stainless-raw-response, x-stainless-read-timeout, "
    "x-stainless-retry-count, x-stainless-runtime, x-stainless-runtime-version, "
    "x-stainless-timeout\r\n"
    "access-control-max-age: 86400\r\n";

const char *
http_status_text(int status)
{
    static const struct {
        int status;
        const char *text;
    } texts[] = {
        {100, "Continue"},
        {200, "OK"},
        {202, "Accepted"},
        {204, "No Content"},
        {400, "Bad Request"},
        {401, "Unauthorized"},
        {403, "Forbidden"},
        {404, "Not Found"},
        {405, "Method Not Allowed"},
        {408, "Request Timeout"},
        {409, "Conflict"},
        {413, "Content Too Large"},
        {415, "Unsupported Media Type"},
        {417, "Expectation Failed"},
        {422, "Unprocessable Content"},
        {429, "Too Many Requests"},
        {431, "Request Header Fields Too Large"},
        {499, "Client Closed Request"},
        {500, "Internal Server Error"},
        {501, "Not Implemented"},
        {502, "Bad Gateway"},
        {503, "Service Unavailable"},
        {504, "Gateway Timeout"},
        {505, "HTTP Version Not Supported"},
    };

    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        if (texts[i].status == status)
            return texts[i].text;
    return "Unknown";
}

/* An id may come from the client; a header line takes only what cannot end it. */
static void
write_request_id(struct buf *out, const char *id)
{
    buf_text(out, "x-request-id: ");
    for (size_t i = 0; id[i] && i < REQUEST_ID_MAX_BYTES; i++)
        buf_append(out, id[i] > 0x20 && id[i] < 0x7F ? &id[i] : "_", 1);
    buf_text(out, "\r\n");
}

void
http_write_head(struct buf *out, const struct http_response_head *head)
{
    bool has_body = head->status >= 200 && head->status != 204 && head->status != 304;
    bool until_close = has_body && head->content_length < 0 && head->http10;

    buf_printf(out, "HTTP/1.1 %d %s\r\n", head->status, http_status_text(head->status));
    if (head->content_type && has_body)
        buf_printf(out, "content-type: %s\r\n", head->content_type);
    if (has_body && head->content_length >= 0)
        buf_printf(out, "content-length: %lld\r\n", head->content_length);
    else if (has_body && !until_close)
        buf_text(out, "transfer-encoding: chunked\r\n");
    if (head->request_id)
        write_request_id(out, head->request_id);
    if (head->extra)
        buf_text(out, head->extra);
    buf_printf(out, "connection: %s\r\n\r\n",
               head->keep_alive && !until_close ? "keep-alive" : "close");
}

void
http_write_chunk(struct buf *out, const char *data, size_t size)
{
    ASSERT(size > 0); /* an empty chunk would end the body */
    buf_printf(out, "%zx\r\n", size);
    buf_append(out, data, size);
    buf_text(out, "\r\n");
}

void
http_write_last_chunk(struct buf *out)
{
    buf_text(out, "0\r\n\r\n");
}
