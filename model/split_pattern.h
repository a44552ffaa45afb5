/* split_pattern: one pattern of a Split pre-tokenizer, and where it matches.
 *
 * Regexes run in PCRE2: with JIT where the kernel allows executable pages, else (and when the JIT's
 * stack is full) interpreted. Both are bounded by match limits that grow with the text, so a
 * pattern that backtracks without end is an error of that text, not a hang. Thread: a compiled
 * pattern is read-only; a split_matcher belongs to one thread.                   */
#ifndef MODEL_SPLIT_PATTERN_H
#define MODEL_SPLIT_PATTERN_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

struct split_pattern;

/* The pattern in Oniguruma's words (model/regex_dialect.h). *ret_pattern is freed by
 * split_pattern_free. -ENOTSUP, -EBADMSG (it does not compile), -ENOMEM. */
int split_pattern_regex(struct split_pattern **ret_pattern, const char *regex, size_t size_bytes,
                        struct err *err);
/* A plain string (not empty). */
int split_pattern_literal(struct split_pattern **ret_pattern, const char *text, size_t size_bytes,
                          struct err *err);
/* One character of the categories Nd, Nl, No. */
int split_pattern_digit(struct split_pattern **ret_pattern, struct err *err);
struct split_pattern *split_pattern_free(struct split_pattern *pattern);
/* No JIT for this pattern, for tests of the other way. */
void split_pattern_interpret(struct split_pattern *pattern);

/* The memory a search needs. */
struct split_matcher;
int split_matcher_new(struct split_matcher **ret_matcher, struct err *err);
struct split_matcher *split_matcher_free(struct split_matcher *matcher);

/* The first match in text (well-formed UTF-8) at or after from_bytes, as [*ret_start, *ret_end).
 * 1; 0: there is none; -ELOOP: the pattern needs too many steps on this text; -ENOMEM. */
int split_pattern_find(const struct split_pattern *pattern, struct split_matcher *matcher,
                       const char *text, size_t size_bytes, size_t from_bytes, size_t *ret_start,
                       size_t *ret_end, struct err *err);

#endif
