/* json_grammar: see json_grammar.h. */
#include "model/json_grammar.h"

#include <string.h>

#include "base/utf8_scan.h"

struct json_check {
    const char *start, *at, *end;
    struct err *err;
};

static int
check_fail(const struct json_check *c, const char *expected)
{
    if (c->at == c->end)
        return err_set(c->err, EBADMSG, "JSON ends early, at byte %zu: expected %s",
                       (size_t)(c->at - c->start), expected);
    return err_set(c->err, EBADMSG, "not JSON at byte %zu: expected %s", (size_t)(c->at - c->start),
                   expected);
}

static void
check_space(struct json_check *c)
{
    while (c->at < c->end && json_grammar_is_space(*c->at))
        c->at++;
}

int
json_grammar_hex4(const char *text, const char *end)
{
    if (end - text < 4)
        return -1;
    int value = 0;
    for (int i = 0; i < 4; i++) {
        char d = text[i];
        int digit = d >= '0' && d <= '9'   ? d - '0'
                    : d >= 'a' && d <= 'f' ? d - 'a' + 10
                    : d >= 'A' && d <= 'F' ? d - 'A' + 10
                                           : -1;
        if (digit < 0)
            return -1;
        value = value << 4 | digit;
    }
    return value;
}

static int
check_escape(struct json_check *c)
{
    if (c->end - c->at < 2)
        return check_fail(c, "an escape");
    char kind = c->at[1];
    if (kind != 'u') {
        if (!memchr("\"\\/bfnrt", kind, 8))
            return check_fail(c, "an escape");
        c->at += 2;
        return 0;
    }
    int high = json_grammar_hex4(c->at + 2, c->end);
    if (high < 0)
        return check_fail(c, "four hexadecimal digits after \\u");
    if (high >= 0xDC00 && high <= 0xDFFF)
        return check_fail(c, "no low surrogate alone");
    size_t length = 6;
    if (high >= 0xD800 && high <= 0xDBFF) {
        int low = -1;
        if (c->end - c->at >= 12 && c->at[6] == '\\' && c->at[7] == 'u')
            low = json_grammar_hex4(c->at + 8, c->end);
        if (low < 0xDC00 || low > 0xDFFF)
            return check_fail(c, "a low surrogate after the high one");
        length = 12;
    }
    c->at += length;
    return 0;
}

static int
check_string(struct json_check *c)
{
    if (c->at == c->end || *c->at != '"')
        return check_fail(c, "a string");
    c->at++;
    while (c->at < c->end && *c->at != '"') {
        uint8_t byte = (uint8_t)*c->at;
        if (byte == '\\') {
            int r = check_escape(c);
            if (r < 0)
                return r;
        } else if (byte < 0x20) {
            return check_fail(c, "no control character in a string");
        } else if (byte < 0x80) {
            c->at++;
        } else {
            uint32_t cp;
            int length = utf8_next(c->at, (size_t)(c->end - c->at), &cp);
            if (length <= 0)
                return check_fail(c, "UTF-8");
            c->at += length;
        }
    }
    if (c->at == c->end)
        return check_fail(c, "the end of a string");
    c->at++;
    return 0;
}

static bool
check_digits(struct json_check *c)
{
    const char *from = c->at;
    while (c->at < c->end && *c->at >= '0' && *c->at <= '9')
        c->at++;
    return c->at > from;
}

static int
check_number(struct json_check *c)
{
    if (*c->at == '-')
        c->at++;
    if (c->at < c->end && *c->at == '0')
        c->at++;
    else if (!check_digits(c))
        return check_fail(c, "a digit");
    if (c->at < c->end && *c->at == '.') {
        c->at++;
        if (!check_digits(c))
            return check_fail(c, "a digit");
    }
    if (c->at < c->end && (*c->at == 'e' || *c->at == 'E')) {
        c->at++;
        if (c->at < c->end && (*c->at == '+' || *c->at == '-'))
            c->at++;
        if (!check_digits(c))
            return check_fail(c, "a digit");
    }
    return 0;
}

static int
check_word(struct json_check *c, const char *word)
{
    size_t length = strlen(word);
    if ((size_t)(c->end - c->at) < length || memcmp(c->at, word, length) != 0)
        return check_fail(c, "a value");
    c->at += length;
    return 0;
}

static int
check_scalar(struct json_check *c)
{
    switch (c->at < c->end ? *c->at : '\0') {
    case '"':
        return check_string(c);
    case 't':
        return check_word(c, "true");
    case 'f':
        return check_word(c, "false");
    case 'n':
        return check_word(c, "null");
    case '-':
    case '0' ... '9':
        return check_number(c);
    default:
        return check_fail(c, "a value");
    }
}

/* The name of a member and its colon. */
static int
check_name(struct json_check *c)
{
    check_space(c);
    int r = check_string(c);
    if (r < 0)
        return r;
    check_space(c);
    if (c->at == c->end || *c->at != ':')
        return check_fail(c, "':'");
    c->at++;
    return 0;
}

/* One value, without recursion: the open brackets are kept in a fixed stack. */
static int
check_value(struct json_check *c)
{
    char closing[JSON_GRAMMAR_MAX_DEPTH];
    int depth = 0;
    for (;;) {
        check_space(c);
        char first = c->at < c->end ? *c->at : '\0';
        if (first == '{' || first == '[') {
            if (depth == JSON_GRAMMAR_MAX_DEPTH)
                return check_fail(c, "less nesting");
            closing[depth++] = first == '{' ? '}' : ']';
            c->at++;
            check_space(c);
            if (c->at == c->end || *c->at != closing[depth - 1]) {
                int r = first == '{' ? check_name(c) : 0;
                if (r < 0)
                    return r;
                continue;
            }
        } else {
            int r = check_scalar(c);
            if (r < 0)
                return r;
        }
        /* A value has ended, or an empty container is about to: close what closes here. */
        for (;;) {
            if (depth == 0)
                return 0;
            check_space(c);
            if (c->at == c->end)
                return check_fail(c, closing[depth - 1] == '}' ? "',' or '}'" : "',' or ']'");
            if (*c->at == closing[depth - 1]) {
                depth--;
                c->at++;
                continue;
            }
            if (*c->at != ',')
                return check_fail(c, closing[depth - 1] == '}' ? "',' or '}'" : "',' or ']'");
            c->at++;
            int r = closing[depth - 1] == '}' ? check_name(c) : 0;
            if (r < 0)
                return r;
            break;
        }
    }
}

int
json_grammar_check(const char *text, size_t size_bytes, size_t *ret_start, size_t *ret_end,
                   struct err *err)
{
    struct json_check c = {text, text, text + size_bytes, err};
    check_space(&c);
    *ret_start = (size_t)(c.at - text);
    int r = check_value(&c);
    if (r < 0)
        return r;
    *ret_end = (size_t)(c.at - text);
    check_space(&c);
    return c.at < c.end ? check_fail(&c, "the end of the file") : 0;
}
