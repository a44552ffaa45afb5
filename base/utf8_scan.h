/* utf8_scan: well-formed UTF-8 and where it breaks (Unicode 15, table 3-7; section 3.9 for broken
 * parts).
 *
 * A "broken part" is the longest prefix of a character that cannot be completed, else one byte:
 * what Python's bytes.decode("utf-8", "replace") and Rust's from_utf8_lossy turn into one U+FFFD.
 * Thread: none; pure functions. */
#ifndef BASE_UTF8_SCAN_H
#define BASE_UTF8_SCAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The three bytes of U+FFFD. */
#define UTF8_REPLACEMENT "\xEF\xBF\xBD"

/* Looks at the first character of text (size_bytes > 0). Returns its length (1..4) and sets
 * *ret_cp; or minus the length of a broken part (1..3); or 0 when all size_bytes (1..3) are the
 * beginning of a character that more bytes could complete. */
int utf8_next(const char *text, size_t size_bytes, uint32_t *ret_cp);
/* The same for the last character of text that is known to be well-formed. */
int utf8_previous(const char *text, size_t size_bytes, uint32_t *ret_cp);
/* One step over text that may be broken and ends here: as utf8_next, but an unfinished character at the end is a
 * broken part too. */
int utf8_step(const char *text, size_t size_bytes);
/* Writes cp (<= U+10FFFF, no surrogate) to out; returns 1..4. */
int utf8_put(uint32_t cp, char out[4]);
bool utf8_valid(const char *text, size_t size_bytes);
/* A copy of text with each broken part as U+FFFD; at most 3 * size_bytes long. *ret_text is
 * malloc'd, or NULL when the text is well-formed as it stands. 0 or -ENOMEM. */
int utf8_repair(const char *text, size_t size_bytes, char **ret_text, size_t *ret_size_bytes);
/* The White_Space property: what \s means to the tokenizers library (both of its regex engines). */
bool utf8_is_white_space(uint32_t cp);

#endif
