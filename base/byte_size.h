/* byte_size: "8GiB" to bytes and back.
 * Accepts a decimal number (a fraction is allowed) and an optional unit: B, K KiB KB, M MiB MB, G GiB
 * GB, T TiB TB; K/M/G/T alone and KiB.. are powers of 1024, KB.. are powers of 1000. Case-insensitive,
 * one optional space. Result must be a whole number of bytes below 2^63.                            */
#ifndef BASE_BYTE_SIZE_H
#define BASE_BYTE_SIZE_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

int byte_size_parse(const char *text, uint64_t *ret_bytes, struct err *err); /* -EINVAL */
/* "8GiB", "1.5MiB", "17B": the shortest exact form, else three digits. Returns out. */
const char *byte_size_format(uint64_t bytes, char *out, size_t out_size);

#endif
