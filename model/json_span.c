/* json_span: see json_span.h. */
#include "model/json_span.h"

#include <string.h>

#include "base/check.h"
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

static bool
is_space(char c)
{
    return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

static void
check_space(struct json_check *c)
{
    while (c->at < c->end && is_space(*c->at))
        c->at++;
}

/* Four hexadecimal digits at text; -1 when they are not. */
static int
hex4(const char *text, const char *end)
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
    int high = hex4(c->at + 2, c->end);
    if (high < 0)
        return check_fail(c, "four hexadecimal digits after \\u");
    if (high >= 0xDC00 && high <= 0xDFFF)
        return check_fail(c, "no low surrogate alone");
    size_t length = 6;
    if (high >= 0xD800 && high <= 0xDBFF) {
        int low = -1;
        if (c->end - c->at >= 12 && c->at[6] == '\\' && c->at[7] == 'u')
            low = hex4(c->at + 8, c->end);
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
    char closing[JSON_SPAN_MAX_DEPTH];
    int depth = 0;
    for (;;) {
        check_space(c);
        char first = c->at < c->end ? *c->at : '\0';
        if (first == '{' || first == '[') {
            if (depth == JSON_SPAN_MAX_DEPTH)
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
json_span_open(struct json_span *ret_span, const char *text, size_t size_bytes, struct err *err)
{
    struct json_check c = {text, text, text + size_bytes, err};
    check_space(&c);
    const char *start = c.at;
    int r = check_value(&c);
    if (r < 0)
        return r;
    *ret_span = (struct json_span){start, (size_t)(c.at - start)};
    check_space(&c);
    if (c.at < c.end)
        return check_fail(&c, "the end of the file");
    return 0;
}

enum json_kind
json_span_kind(struct json_span span)
{
    if (!span.text)
        return JSON_NONE;
    switch (span.text[0]) {
    case 'n':
        return JSON_NIL;
    case 't':
    case 'f':
        return JSON_BOOL;
    case '"':
        return JSON_STRING;
    case '[':
        return JSON_ARRAY;
    case '{':
        return JSON_OBJECT;
    default:
        return JSON_NUMBER;
    }
}

const char *
json_span_kind_text(struct json_span span)
{
    static const char *const text[] = {
        [JSON_NONE] = "nothing",     [JSON_NIL] = "null",        [JSON_BOOL] = "a boolean",
        [JSON_NUMBER] = "a number",  [JSON_STRING] = "a string", [JSON_ARRAY] = "an array",
        [JSON_OBJECT] = "an object",
    };
    return text[json_span_kind(span)];
}

/* The end of the string that opens at text. */
static const char *
skip_string(const char *text)
{
    for (text++; *text != '"'; text++) {
        if (*text == '\\')
            text++;
    }
    return text + 1;
}

/* The end of the value that begins at text; good JSON needs no more than its brackets counted. */
static const char *
skip_value(const char *text, const char *end)
{
    int depth = 0;
    if (*text != '"' && *text != '[' && *text != '{') {
        while (text < end && !is_space(*text) && *text != ',' && *text != ']' && *text != '}')
            text++;
        return text;
    }
    do {
        if (*text == '"') {
            text = skip_string(text);
            continue;
        }
        depth += (*text == '[' || *text == '{') - (*text == ']' || *text == '}');
        text++;
    } while (depth > 0);
    return text;
}

struct json_walk
json_walk(struct json_span span)
{
    enum json_kind kind = json_span_kind(span);
    if (kind != JSON_ARRAY && kind != JSON_OBJECT)
        return (struct json_walk){0};
    return (struct json_walk){span.text + 1, span.text + span.size_bytes - 1, kind == JSON_OBJECT};
}

static const char *
skip_space(const char *at, const char *end)
{
    while (at < end && (is_space(*at) || *at == ',' || *at == ':'))
        at++;
    return at;
}

bool
json_walk_next(struct json_walk *walk, struct json_span *ret_key, struct json_span *ret_value)
{
    const char *at = skip_space(walk->at, walk->end);
    *ret_key = (struct json_span){0};
    *ret_value = (struct json_span){0};
    if (at == walk->end)
        return false;
    if (walk->is_object) {
        const char *key_end = skip_string(at);
        *ret_key = (struct json_span){at, (size_t)(key_end - at)};
        at = skip_space(key_end, walk->end);
    }
    walk->at = skip_value(at, walk->end);
    *ret_value = (struct json_span){at, (size_t)(walk->at - at)};
    return true;
}

bool
json_span_is(struct json_span span, const char *text)
{
    size_t length = strlen(text);
    if (json_span_kind(span) != JSON_STRING)
        return false;
    if (span.size_bytes == length + 2 && memcmp(span.text + 1, text, length) == 0)
        return !memchr(text, '\\', length);
    /* Names written with escapes are rare; six bytes are the most that one character takes. */
    char plain[6 * 64];
    if (span.size_bytes > sizeof plain || !memchr(span.text, '\\', span.size_bytes))
        return false;
    return json_span_string(span, plain) == length && memcmp(plain, text, length) == 0;
}

struct json_span
json_span_member(struct json_span object, const char *name)
{
    struct json_span found = {0}, key, value;
    if (json_span_kind(object) != JSON_OBJECT)
        return found;
    struct json_walk walk = json_walk(object);
    while (json_walk_next(&walk, &key, &value)) {
        if (json_span_is(key, name))
            found = value;
    }
    return found;
}

size_t
json_span_string(struct json_span span, char *out)
{
    ASSERT(json_span_kind(span) == JSON_STRING);
    const char *at = span.text + 1, *end = span.text + span.size_bytes - 1;
    size_t used = 0;
    while (at < end) {
        if (*at != '\\') {
            out[used++] = *at++;
            continue;
        }
        if (at[1] == 'u') {
            uint32_t cp = (uint32_t)hex4(at + 2, end);
            at += 6;
            if (cp >= 0xD800 && cp <= 0xDBFF) {
                cp = 0x10000 + ((cp - 0xD800) << 10) + ((uint32_t)hex4(at + 2, end) - 0xDC00);
                at += 6;
            }
            char put[4];
            int length = utf8_put(cp, put);
            memcpy(out + used, put, (size_t)length);
            used += (size_t)length;
            continue;
        }
        static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
        out[used++] = to[strchr(from, at[1]) - from];
        at += 2;
    }
    return used;
}

bool
json_span_integer(struct json_span span, int64_t *ret_value)
{
    if (json_span_kind(span) != JSON_NUMBER)
        return false;
    bool negative = span.text[0] == '-';
    int64_t value = 0;
    for (size_t i = negative; i < span.size_bytes; i++) {
        char digit = span.text[i];
        if (digit < '0' || digit > '9')
            return false;
        if (__builtin_mul_overflow(value, (int64_t)10, &value) ||
            __builtin_sub_overflow(value, (int64_t)(digit - '0'), &value))
            return false;
    }
    /* Summed up below zero, where the range is one larger. */
    if (!negative && __builtin_sub_overflow((int64_t)0, value, &value))
        return false;
    *ret_value = value;
    return true;
}

bool
json_span_bool(struct json_span span, bool *ret_value)
{
    if (json_span_kind(span) != JSON_BOOL)
        return false;
    *ret_value = span.text[0] == 't';
    return true;
}
