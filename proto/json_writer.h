/* json_writer: JSON values as text, straight into a buffer. Pure. The caller writes the structure
 * (braces, commas, keys that are literals); these write the values that come from elsewhere.
 * What leaves here is always valid JSON and valid UTF-8: broken sequences become U+FFFD, control
 * characters are escaped, numbers that JSON does not have become null.                           */
#ifndef PROTO_JSON_WRITER_H
#define PROTO_JSON_WRITER_H

#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"

/* A quoted string. */
void json_write_string(struct buf *out, const char *text, size_t size);
/* The same for a NUL-terminated text; NULL gives null. */
void json_write_text(struct buf *out, const char *text);
/* The inside of a string, without the quotes. */
void json_write_escaped(struct buf *out, const char *text, size_t size);
void json_write_int(struct buf *out, int64_t value);
void json_write_uint(struct buf *out, uint64_t value);
/* The fewest digits that read back as the same value; always with a point or an exponent. */
void json_write_float(struct buf *out, float value);
void json_write_double(struct buf *out, double value);

#endif
