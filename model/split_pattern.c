/* split_pattern: see split_pattern.h. */
#include "model/split_pattern.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "base/buf.h"
#include "model/regex_dialect.h"

enum {
    JIT_STACK_FIRST_BYTES = 32 << 10,
    JIT_STACK_BYTES = 1 << 20,
    HEAP_LIMIT_KIB = 64 << 10, /* of the interpreter's frames */
    LIMIT_BASE = 2000000,      /* steps of one search: about a tenth of a second */
    LIMIT_PER_BYTE = 16,
};

enum split_kind { SPLIT_REGEX, SPLIT_LITERAL };

struct split_pattern {
    enum split_kind kind;
    pcre2_code *code;
    bool jit;
    size_t literal_bytes;
    char literal[];
};

struct split_matcher {
    pcre2_match_data *data;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
};

static int
pattern_new(struct split_pattern **ret_pattern, enum split_kind kind, size_t literal_bytes,
            struct err *err)
{
    struct split_pattern *pattern = calloc(1, sizeof *pattern + literal_bytes);
    if (!pattern)
        return err_errno(err, ENOMEM, "a pattern");
    pattern->kind = kind;
    pattern->literal_bytes = literal_bytes;
    *ret_pattern = pattern;
    return 0;
}

static int
pattern_compile(struct split_pattern *pattern, const struct buf *text, struct err *err)
{
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    if (!context)
        return err_errno(err, ENOMEM, "a pattern");
    (void)pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    int code = 0;
    PCRE2_SIZE at = 0;
    pattern->code = pcre2_compile((PCRE2_SPTR)text->data, text->size_bytes,
                                  PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE |
                                      PCRE2_NEVER_BACKSLASH_C | PCRE2_NO_AUTO_CAPTURE,
                                  &code, &at, context);
    pcre2_compile_context_free(context);
    if (!pattern->code) {
        char reason[160] = "";
        (void)pcre2_get_error_message(code, (PCRE2_UCHAR *)reason, sizeof reason);
        return err_set(err, EBADMSG, "the pattern does not compile: %s (behind \"%.*s\")", reason,
                       (int)(at < 100 ? at : 100), text->data ? text->data : "");
    }
    /* Without executable pages (MemoryDenyWriteExecute) there is no JIT, and that is fine. */
    pattern->jit = pcre2_jit_compile(pattern->code, PCRE2_JIT_COMPLETE) == 0;
    return 0;
}

int
split_pattern_regex(struct split_pattern **ret_pattern, const char *regex, size_t size_bytes,
                    struct err *err)
{
    struct buf text = {0};
    struct split_pattern *pattern = NULL;
    int r = regex_dialect_translate(regex, size_bytes, &text, err);
    if (r == 0)
        r = pattern_new(&pattern, SPLIT_REGEX, 0, err);
    if (r == 0)
        r = pattern_compile(pattern, &text, err);
    buf_free(&text);
    if (r < 0) {
        pattern = split_pattern_free(pattern);
        return r;
    }
    *ret_pattern = pattern;
    return 0;
}

int
split_pattern_literal(struct split_pattern **ret_pattern, const char *text, size_t size_bytes,
                      struct err *err)
{
    if (size_bytes == 0)
        return err_set(err, ENOTSUP, "an empty string as the pattern is not supported");
    int r = pattern_new(ret_pattern, SPLIT_LITERAL, size_bytes, err);
    if (r == 0)
        memcpy((*ret_pattern)->literal, text, size_bytes);
    return r;
}

int
split_pattern_digit(struct split_pattern **ret_pattern, struct err *err)
{
    return split_pattern_regex(ret_pattern, "\\p{N}", 5, err);
}

struct split_pattern *
split_pattern_free(struct split_pattern *pattern)
{
    if (pattern) {
        pcre2_code_free(pattern->code);
        free(pattern);
    }
    return NULL;
}

void
split_pattern_interpret(struct split_pattern *pattern)
{
    pattern->jit = false;
}

int
split_matcher_new(struct split_matcher **ret_matcher, struct err *err)
{
    struct split_matcher *matcher = calloc(1, sizeof *matcher);
    if (matcher) {
        matcher->data = pcre2_match_data_create(1, NULL);
        matcher->context = pcre2_match_context_create(NULL);
        matcher->stack = pcre2_jit_stack_create(JIT_STACK_FIRST_BYTES, JIT_STACK_BYTES, NULL);
    }
    if (!matcher || !matcher->data || !matcher->context) {
        matcher = split_matcher_free(matcher);
        return err_errno(err, ENOMEM, "a matcher");
    }
    /* Without a stack of its own the JIT has 32 KiB of ours, and the interpreter behind it. */
    if (matcher->stack)
        pcre2_jit_stack_assign(matcher->context, NULL, matcher->stack);
    (void)pcre2_set_heap_limit(matcher->context, HEAP_LIMIT_KIB);
    *ret_matcher = matcher;
    return 0;
}

struct split_matcher *
split_matcher_free(struct split_matcher *matcher)
{
    if (matcher) {
        pcre2_match_data_free(matcher->data);
        pcre2_match_context_free(matcher->context);
        pcre2_jit_stack_free(matcher->stack);
        free(matcher);
    }
    return NULL;
}

static int
find_literal(const struct split_pattern *pattern, const char *text, size_t size_bytes,
             size_t from_bytes, size_t *ret_start, size_t *ret_end)
{
    const char *found = memmem(text + from_bytes, size_bytes - from_bytes, pattern->literal,
                               pattern->literal_bytes);
    if (!found)
        return 0;
    *ret_start = (size_t)(found - text);
    *ret_end = *ret_start + pattern->literal_bytes;
    return 1;
}

int
split_pattern_find(const struct split_pattern *pattern, struct split_matcher *matcher,
                   const char *text, size_t size_bytes, size_t from_bytes, size_t *ret_start,
                   size_t *ret_end, struct err *err)
{
    if (pattern->kind == SPLIT_LITERAL)
        return find_literal(pattern, text, size_bytes, from_bytes, ret_start, ret_end);
    /* The text is known to be UTF-8; checking it again for each match would be quadratic. */
    uint32_t options = PCRE2_NO_UTF_CHECK;
    PCRE2_SPTR subject = (PCRE2_SPTR)text;
    uint64_t limit = LIMIT_BASE + (uint64_t)size_bytes * LIMIT_PER_BYTE;
    (void)pcre2_set_match_limit(matcher->context,
                                limit < UINT32_MAX ? (uint32_t)limit : UINT32_MAX);
    int r = PCRE2_ERROR_JIT_STACKLIMIT;
    if (pattern->jit)
        r = pcre2_jit_match(pattern->code, subject, size_bytes, from_bytes, options, matcher->data,
                            matcher->context);
    if (r == PCRE2_ERROR_JIT_STACKLIMIT)
        r = pcre2_match(pattern->code, subject, size_bytes, from_bytes, options | PCRE2_NO_JIT,
                        matcher->data, matcher->context);
    if (r >= 0) {
        const PCRE2_SIZE *ends = pcre2_get_ovector_pointer(matcher->data);
        *ret_start = ends[0];
        *ret_end = ends[1];
        return 1;
    }
    switch (r) {
    case PCRE2_ERROR_NOMATCH:
        return 0;
    case PCRE2_ERROR_MATCHLIMIT:
    case PCRE2_ERROR_DEPTHLIMIT:
    case PCRE2_ERROR_HEAPLIMIT:
        return err_set(err, ELOOP, "a pattern of the tokenizer needs too many steps on this text");
    case PCRE2_ERROR_NOMEMORY:
        return err_errno(err, ENOMEM, "matching %zu bytes", size_bytes);
    default:
        return err_set(err, EIO, "PCRE2 failed with %d on a pattern of the tokenizer", r);
    }
}
