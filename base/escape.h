/* escape: text of unknown origin made safe to print: one line of valid UTF-8.
 * Control characters (C0, DEL, C1) become \n, \t, \r or \xNN, a backslash stays, and so does valid
 * UTF-8; bytes that are not UTF-8 become \xNN. Pure.                                            */
#ifndef BASE_ESCAPE_H
#define BASE_ESCAPE_H

#include <stddef.h>
#include <stdint.h>

/* Writes at most out_size - 1 bytes and a NUL, never half a character or half an escape. Returns
 * the bytes written without the NUL. out_size must be at least 1. */
size_t escape_text(char *out, size_t out_size, const char *text, size_t length_bytes);

/* Length in bytes (1..4) of the UTF-8 character at text, or 0 when the bytes there are not a
 * shortest- form, non-surrogate character up to U+10FFFF. (RFC 3629 section 4.) */
size_t escape_utf8_length(const char *text, size_t length_bytes);

#endif
