/* regex_dialect: the patterns of tokenizer.json, written for Oniguruma, in PCRE2's words.
 *
 * The library compiles them with Oniguruma 6.9 (UTF-8). Where the two engines read the same letters
 * differently the text is rewritten; what cannot be said exactly is refused by name, never guessed:
 *   \s \S        Oniguruma: the White_Space property. PCRE2's adds U+180E, so the list is spelled
 * out. \w \d        Oniguruma: L, M, N, Pc and Nd. PCRE2's \w varies with its version. {n,m}+
 * Oniguruma: one or more of {n,m}. PCRE2: possessive.
 *   {,m}         Oniguruma: {0,m}. PCRE2: letters, before 10.43.
 *   \v \h \u     a vertical tab; a hexadecimal digit (refused); \uHHHH a character.
 *   \p{Han}      Oniguruma: the Script property. PCRE2: Script_Extensions unless told.
 *   ^ $          Oniguruma: at every line. Compile with PCRE2_MULTILINE and LF as the newline.
 *   (?i:...)     Oniguruma also folds one character to several: only ASCII that cannot is allowed.
 *   [a[b]] &&    sets of sets: refused.
 * Thread: none; pure functions. */
#ifndef MODEL_REGEX_DIALECT_H
#define MODEL_REGEX_DIALECT_H

#include <stddef.h>

#include "base/buf.h"
#include "base/err.h"

enum { REGEX_MAX_BYTES = 16384, REGEX_MAX_DEPTH = 32 };

/* Appends the pattern (well-formed UTF-8) for PCRE2 with UTF, UCP and MULTILINE to out.
 * -ENOTSUP: a construct that is not known to mean the same, named with its byte offset; -EBADMSG:
 * no pattern at all; -ENOMEM. */
int regex_dialect_translate(const char *pattern, size_t size_bytes, struct buf *out,
                            struct err *err);

#endif
