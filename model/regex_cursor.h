/* regex_cursor: reads a pattern from left to right; characters, escapes and sets go out in PCRE2's
 * words.
 *
 * The lower half of regex_dialect, which has the table of differences and sees to groups and
 * repetition. Functions move `at` behind what they took. Errors: -ENOTSUP, -EBADMSG (a set without
 * end). Thread: none. */
#ifndef MODEL_REGEX_CURSOR_H
#define MODEL_REGEX_CURSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"

struct regex_cursor {
    const char *pattern; /* well-formed UTF-8 */
    size_t size_bytes, at;
    struct buf *out;
    struct err *err;
    bool caseless; /* inside (?i) */
    char last;     /* the letter just put, in lower case and under (?i) only */
};

/* -ENOTSUP "what is not supported, at byte ...". */
int regex_cursor_refuse(const struct regex_cursor *c, const char *what);
/* The byte that many ahead, '\0' behind the end. */
char regex_cursor_peek(const struct regex_cursor *c, size_t ahead);
bool regex_cursor_starts(const struct regex_cursor *c, const char *text);
/* Puts one character that stands for itself. */
void regex_cursor_put(struct regex_cursor *c, uint32_t cp);
/* Says whether the engines fold a character alike here: 0 or -ENOTSUP. */
int regex_cursor_fold(struct regex_cursor *c, uint32_t cp);
/* What stands behind a backslash (at is there). 1: *ret_cp is one character, not put yet; 0: a
 * class was put. */
int regex_cursor_escape(struct regex_cursor *c, bool in_set, uint32_t *ret_cp);
/* A set (at is at its bracket). */
int regex_cursor_set(struct regex_cursor *c);

#endif
