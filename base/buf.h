/* buf: a growing byte buffer with a limit. Used for output that is rendered before it is sent.
 * Appends past the limit, or when malloc fails, set `failed` and are dropped; check it once.  */
#ifndef BASE_BUF_H
#define BASE_BUF_H

#include <stdbool.h>
#include <stddef.h>

struct buf {
    char *data; /* not NUL-terminated */
    size_t size_bytes, capacity_bytes, limit_bytes; /* limit 0: none */
    bool failed;
};

void buf_append(struct buf *buf, const void *data, size_t size_bytes);
void buf_text(struct buf *buf, const char *text);
void buf_printf(struct buf *buf, const char *format, ...) __attribute__((format(printf, 2, 3)));
void buf_reset(struct buf *buf); /* size 0, failed false, keeps the memory */
void buf_free(struct buf *buf);

#endif
