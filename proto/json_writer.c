#include "proto/json_writer.h"

#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8_scan.h"

void
json_write_escaped(struct buf *out, const char *text, size_t size)
{
    size_t run = 0; /* bytes before `at` that need no change and are not written yet */

    for (size_t at = 0; at < size;) {
        unsigned char c = (unsigned char)text[at];
        int step = c < 0x80 ? 1 : utf8_step(text + at, size - at);

        if (step > 0 && c >= 0x20 && c != '"' && c != '\\' && c != 0x7F) {
            run += (size_t)step;
            at += (size_t)step;
            continue;
        }
        if (run)
            buf_append(out, text + at - run, run);
        run = 0;
        if (step < 0) {
            buf_text(out, "\xEF\xBF\xBD");
            at += (size_t)-step;
            continue;
        }
        if (c == '"')
            buf_text(out, "\\\"");
        else if (c == '\\')
            buf_text(out, "\\\\");
        else if (c == '\n')
            buf_text(out, "\\n");
        else if (c == '\r')
            buf_text(out, "\\r");
        else if (c == '\t')
            buf_text(out, "\\t");
        else
            buf_printf(out, "\\u%04x", c);
        at++;
    }
    if (run)
        buf_append(out, text + size - run, run);
}

void
json_write_string(struct buf *out, const char *text, size_t size)
{
    buf_append(out, "\"", 1);
    json_write_escaped(out, text, size);
    buf_append(out, "\"", 1);
}

void
json_write_text(struct buf *out, const char *text)
{
    if (text)
        json_write_string(out, text, strlen(text));
    else
        buf_text(out, "null");
}

void
json_write_int(struct buf *out, int64_t value)
{
    buf_printf(out, "%" PRId64, value);
}

void
json_write_uint(struct buf *out, uint64_t value)
{
    buf_printf(out, "%" PRIu64, value);
}

/* "3" would read back as an integer in typed languages; a client that expects a float gets one. */
static void
write_real(struct buf *out, const char *digits)
{
    buf_text(out, digits);
    if (!strpbrk(digits, ".e"))
        buf_text(out, ".0");
}

void
json_write_float(struct buf *out, float value)
{
    char digits[40];

    if (!isfinite(value)) {
        buf_text(out, "null");
        return;
    }
    for (int precision = 6; precision <= 9; precision++) {
        snprintf(digits, sizeof digits, "%.*g", precision, (double)value);
        if (strtof(digits, NULL) == value)
            break;
    }
    write_real(out, digits);
}

void
json_write_double(struct buf *out, double value)
{
    char digits[40];

    if (!isfinite(value)) {
        buf_text(out, "null");
        return;
    }
    for (int precision = 6; precision <= 17; precision++) {
        snprintf(digits, sizeof digits, "%.*g", precision, value);
        if (strtod(digits, NULL) == value)
            break;
    }
    write_real(out, digits);
}
