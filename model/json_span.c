/* json_span: see json_span.h. */
#include "model/json_span.h"

#include <string.h>

#include "base/check.h"
#include "base/utf8_scan.h"
#include "model/json_grammar.h"

int
json_span_open(struct json_span *ret_span, const char *text, size_t size_bytes, struct err *err)
{
    size_t start, end;
    int r = json_grammar_check(text, size_bytes, &start, &end, err);
    if (r == 0)
        *ret_span = (struct json_span){text + start, end - start};
    return r;
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
json_kind_text(enum json_kind kind)
{
    static const char *const text[] = {
        [JSON_NONE] = "nothing",     [JSON_NIL] = "null",        [JSON_BOOL] = "a boolean",
        [JSON_NUMBER] = "a number",  [JSON_STRING] = "a string", [JSON_ARRAY] = "an array",
        [JSON_OBJECT] = "an object",
    };
    return text[kind];
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
        while (text < end && !json_grammar_is_space(*text) && *text != ',' && *text != ']' &&
               *text != '}')
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
    while (at < end && (json_grammar_is_space(*at) || *at == ',' || *at == ':'))
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
            uint32_t cp = (uint32_t)json_grammar_hex4(at + 2, end);
            at += 6;
            if (cp >= 0xD800 && cp <= 0xDBFF) {
                cp = 0x10000 + ((cp - 0xD800) << 10) +
                     ((uint32_t)json_grammar_hex4(at + 2, end) - 0xDC00);
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
