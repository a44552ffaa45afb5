/* err: see err.h. */
#include "base/err.h"

#include <stdio.h>
#include <string.h>

#include "base/escape.h"

enum { ERR_RAW_BYTES = 2000 }; /* text before escaping and cutting */

static void
err_format(struct err *err, const char *format, va_list args, const char *tail)
{
    char raw[ERR_RAW_BYTES];
    int wanted = vsnprintf(raw, sizeof raw, format, args);
    size_t length = wanted < 0 ? 0 : (size_t)wanted < sizeof raw ? (size_t)wanted : sizeof raw - 1;
    char tail_text[256] = "";
    if (tail)
        (void)snprintf(tail_text, sizeof tail_text, ": %s", tail);
    /* The tail is short and says what happened: a long text is cut in front of it. */
    size_t tail_length = strlen(tail_text);
    size_t used = escape_text(err->text, sizeof err->text - tail_length, raw, length);
    (void)escape_text(err->text + used, sizeof err->text - used, tail_text, tail_length);
}

int
err_set(struct err *err, int code, const char *format, ...)
{
    /* A library that failed without an errno must not turn failure into success. */
    if (code <= 0)
        code = EIO;
    if (err && err->code == 0) {
        va_list args;
        va_start(args, format);
        err_format(err, format, args, NULL);
        va_end(args);
        err->code = -code;
    }
    return -code;
}

int
err_errno(struct err *err, int code, const char *format, ...)
{
    if (code <= 0)
        code = EIO;
    if (err && err->code == 0) {
        char reason[128];
        va_list args;
        va_start(args, format);
        err_format(err, format, args, strerror_r(code, reason, sizeof reason));
        va_end(args);
        err->code = -code;
    }
    return -code;
}

int
err_context(struct err *err, const char *format, ...)
{
    if (!err)
        return -EIO;
    char before[sizeof err->text], context[ERR_RAW_BYTES];
    size_t length = strlen(err->text);
    memcpy(before, err->text, length + 1);
    va_list args;
    va_start(args, format);
    int wanted = vsnprintf(context, sizeof context, format, args);
    va_end(args);
    size_t context_length = wanted < 0                        ? 0
                            : (size_t)wanted < sizeof context ? (size_t)wanted
                                                              : sizeof context - 1;
    /* When both do not fit, the first error keeps at least half of the room. */
    size_t room = sizeof err->text - 2;
    size_t kept = length < room / 2 ? length : room / 2;
    size_t used = escape_text(err->text, room - kept, context, context_length);
    err->text[used++] = ':';
    err->text[used++] = ' ';
    (void)escape_text(err->text + used, sizeof err->text - used, before, length);
    return err->code;
}
