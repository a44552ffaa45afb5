/* buf: see buf.h. */
#include "base/buf.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BUF_FIRST_BYTES = 256 };

/* Room for size_bytes more; false (and failed) past the limit or without memory. What follows a
 * dropped append is dropped as well: output with a hole in it must never look complete. */
static bool
buf_reserve(struct buf *buf, size_t size_bytes)
{
    size_t wanted;
    if (buf->failed)
        return false;
    if (__builtin_add_overflow(buf->size_bytes, size_bytes, &wanted) || wanted > SIZE_MAX / 2 ||
        (buf->limit_bytes && wanted > buf->limit_bytes)) {
        buf->failed = true;
        return false;
    }
    if (wanted <= buf->capacity_bytes)
        return true;
    size_t capacity = buf->capacity_bytes ? buf->capacity_bytes : BUF_FIRST_BYTES;
    while (capacity < wanted)
        capacity *= 2;
    if (buf->limit_bytes && capacity > buf->limit_bytes)
        capacity = buf->limit_bytes;
    char *data = realloc(buf->data, capacity);
    if (!data) {
        buf->failed = true;
        return false;
    }
    buf->data = data;
    buf->capacity_bytes = capacity;
    return true;
}

void
buf_append(struct buf *buf, const void *data, size_t size_bytes)
{
    if (size_bytes == 0 || !buf_reserve(buf, size_bytes))
        return;
    memcpy(buf->data + buf->size_bytes, data, size_bytes);
    buf->size_bytes += size_bytes;
}

void
buf_text(struct buf *buf, const char *text)
{
    buf_append(buf, text, strlen(text));
}

void
buf_printf(struct buf *buf, const char *format, ...)
{
    char small[512];
    va_list args;
    va_start(args, format);
    int wanted = vsnprintf(small, sizeof small, format, args);
    va_end(args);
    if (wanted < 0) {
        buf->failed = true;
        return;
    }
    if ((size_t)wanted < sizeof small) {
        buf_append(buf, small, (size_t)wanted);
        return;
    }
    char *large = malloc((size_t)wanted + 1);
    if (!large) {
        buf->failed = true;
        return;
    }
    va_start(args, format);
    (void)vsnprintf(large, (size_t)wanted + 1, format, args);
    va_end(args);
    buf_append(buf, large, (size_t)wanted);
    free(large);
}

void
buf_reset(struct buf *buf)
{
    buf->size_bytes = 0;
    buf->failed = false;
}

void
buf_free(struct buf *buf)
{
    free(buf->data);
    *buf = (struct buf){.limit_bytes = buf->limit_bytes};
}
