/* utf8_scan: one step over text that may not be UTF-8. Pure.
 * Well-formed means table 3-7 of the Unicode standard: no overlong forms, no surrogates, nothing past
 * U+10FFFF.                                                                                       */
#ifndef PROTO_UTF8_SCAN_H
#define PROTO_UTF8_SCAN_H

#include <stdbool.h>
#include <stddef.h>

/* Bytes of the well-formed sequence at text (1 to 4), or minus the bytes of the broken one there (the
 * "maximal subpart", 1 to 3: what one U+FFFD replaces). size > 0. */
int utf8_step(const char *text, size_t size);
bool utf8_valid(const char *text, size_t size);

#endif
