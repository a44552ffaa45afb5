/* json_grammar: whether a text is JSON (RFC 8259), checked once and without recursion.
 *
 * Stricter than the letter where readers differ: UTF-8 must be well-formed, and no surrogate may
 * stand alone. Thread: none; pure functions. */
#ifndef MODEL_JSON_GRAMMAR_H
#define MODEL_JSON_GRAMMAR_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

enum { JSON_GRAMMAR_MAX_DEPTH = 64 };

/* Finds the one value of the text, [*ret_start, *ret_end). 0, or -EBADMSG with the byte offset and
 * what was expected there. */
int json_grammar_check(const char *text, size_t size_bytes, size_t *ret_start, size_t *ret_end,
                       struct err *err);
/* The four hexadecimal digits at text as a number; -1 when they are none. */
int json_grammar_hex4(const char *text, const char *end);
static inline bool
json_grammar_is_space(char c)
{
    return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

#endif
