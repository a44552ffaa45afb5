/* api_error: an answer that says what was wrong, in OpenAI's shape:
 * {"error":{"message","type","param","code"}}; code is a string or null. Messages are bounded and echo at
 * most 200 bytes of input.                                                                          */
#ifndef PROTO_API_ERROR_H
#define PROTO_API_ERROR_H

#include <stdbool.h>

#include "base/buf.h"

struct api_error {
    int status;        /* HTTP status; 0: no error */
    const char *type;  /* "invalid_request_error", "server_error", "rate_limit_error", ... */
    const char *code;  /* "invalid_value", ...; NULL gives null */
    char param[96];    /* dotted path; "" gives null */
    char message[512]; /* UTF-8 */
    int retry_after_s; /* 0: no retry-after header */
    bool no_retry;     /* x-should-retry: false */
    const char *allow; /* Allow header of a 405, or NULL */
};

/* Fills *error and returns its status negated. The first error wins. type follows from status and code. */
int api_error_set(struct api_error *error, int status, const char *code, const char *param,
                  const char *format, ...) __attribute__((format(printf, 5, 6)));
/* The JSON object {"error":{...}}. */
void api_error_body(struct buf *out, const struct api_error *error);

#endif
