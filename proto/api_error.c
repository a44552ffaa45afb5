#include "proto/api_error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "proto/json_writer.h"
#include "base/utf8_scan.h"

/* Makes text printable in place: what is not UTF-8 (input echoed byte by byte, or a sequence that
 * the end of the array cut) and control characters become '?'. Logs and headers can show the
 * result. */
static void
sanitise(char *text)
{
    size_t size = strlen(text);

    for (size_t at = 0; at < size;) {
        int step = utf8_step(text + at, size - at);

        if (step > 0) {
            if (step == 1 && ((unsigned char)text[at] < 0x20 || text[at] == 0x7F))
                text[at] = '?';
            at += (size_t)step;
        } else {
            memset(text + at, '?', (size_t)-step);
            at += (size_t)-step;
        }
    }
}

static const char *
type_of(int status)
{
    if (status == 429)
        return "rate_limit_error";
    if (status == 403)
        return "permission_error";
    return status >= 500 ? "server_error" : "invalid_request_error";
}

int
api_error_set(struct api_error *error, int status, const char *code, const char *param,
              const char *format, ...)
{
    va_list args;

    ASSERT(status >= 400 && status < 600);
    if (error->status)
        return -error->status;
    *error = (struct api_error){.status = status, .type = type_of(status), .code = code};
    if (param) {
        snprintf(error->param, sizeof error->param, "%s", param);
        sanitise(error->param);
    }
    va_start(args, format);
    vsnprintf(error->message, sizeof error->message, format, args);
    va_end(args);
    sanitise(error->message);
    /* Clients of OpenAI's libraries retry these: tell them when, or that it is of no use. */
    if (status == 429 || status == 503)
        error->retry_after_s = 1;
    if (status == 501 || status == 505)
        error->no_retry = true;
    return -status;
}

void
api_error_body(struct buf *out, const struct api_error *error)
{
    buf_text(out, "{\"error\":{\"message\":");
    json_write_text(out, error->message);
    buf_text(out, ",\"type\":");
    json_write_text(out, error->type ? error->type : "server_error");
    buf_text(out, ",\"param\":");
    json_write_text(out, error->param[0] ? error->param : NULL);
    buf_text(out, ",\"code\":");
    json_write_text(out, error->code);
    buf_text(out, "}}");
}
