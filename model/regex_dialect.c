/* regex_dialect: see regex_dialect.h. */
#include "model/regex_dialect.h"

#include <string.h>

#include "base/utf8_scan.h"
#include "model/regex_cursor.h"

enum { MAX_REPEAT = 65535 };

struct group {
    size_t start;  /* in out */
    bool caseless; /* outside of it */
    bool looks;    /* it takes no text, so it is nothing to repeat */
};

struct dialect {
    struct regex_cursor c;
    struct group group[REGEX_MAX_DEPTH];
    int depth;
    bool has_atom;     /* something a quantifier may follow */
    size_t atom_start; /* in c.out */
};

static void
begin_atom(struct dialect *d)
{
    d->has_atom = true;
    d->atom_start = d->c.out->size_bytes;
}

/* (...: d->c.at is at the parenthesis. No group captures, since nothing may refer back. */
static int
take_group(struct dialect *d)
{
    static const char *const same[] = {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:"};
    if (regex_cursor_starts(&d->c, "(?i)") && d->c.at == 0) {
        /* Only at the very start do both engines mean the whole pattern by it. */
        buf_text(d->c.out, "(?i)");
        d->c.at += 4;
        d->c.caseless = true;
        return 0;
    }
    if (d->depth == REGEX_MAX_DEPTH)
        return regex_cursor_refuse(&d->c, "deeper nesting");
    d->group[d->depth++] = (struct group){d->c.out->size_bytes, d->c.caseless, false};
    d->has_atom = false;
    if (regex_cursor_peek(&d->c, 1) != '?') {
        buf_text(d->c.out, "(?:");
        d->c.at++;
        return 0;
    }
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
        if (regex_cursor_starts(&d->c, same[i])) {
            buf_text(d->c.out, same[i]);
            d->c.at += strlen(same[i]);
            d->c.caseless |= same[i][2] == 'i';
            d->group[d->depth - 1].looks = strpbrk(same[i], "=!") != NULL;
            return 0;
        }
    }
    return regex_cursor_refuse(&d->c, "that kind of group");
}

static int
end_group(struct dialect *d)
{
    if (d->depth == 0)
        return err_set(d->c.err, EBADMSG, "')' without '(' in the pattern");
    struct group group = d->group[--d->depth];
    buf_text(d->c.out, ")");
    d->c.at++;
    d->c.caseless = group.caseless;
    d->c.last = '\0';
    d->has_atom = !group.looks;
    d->atom_start = group.start;
    return 0;
}

/* The number at pattern[*at]; -1 when there is none, MAX_REPEAT + 1 when it is too large. */
static int
take_count(const struct dialect *d, size_t *at)
{
    int value = -1;
    for (; *at < d->c.size_bytes && d->c.pattern[*at] >= '0' && d->c.pattern[*at] <= '9'; ++*at) {
        value = (value < 0 ? 0 : value) * 10 + (d->c.pattern[*at] - '0');
        value = value > MAX_REPEAT ? MAX_REPEAT + 1 : value;
    }
    return value;
}

/* {n}, {n,}, {n,m}, {,m}. 0: it is none of them, and the brace stands for itself. */
static int
take_interval(struct dialect *d)
{
    size_t at = d->c.at + 1;
    int low = take_count(d, &at), high = low;
    bool comma = at < d->c.size_bytes && d->c.pattern[at] == ',';
    if (comma) {
        at++;
        high = take_count(d, &at);
    }
    if ((low < 0 && high < 0) || at == d->c.size_bytes || d->c.pattern[at] != '}')
        return 0;
    if (low > MAX_REPEAT || high > MAX_REPEAT || (high >= 0 && low > high))
        return regex_cursor_refuse(&d->c, "that interval");
    if (!d->has_atom)
        return regex_cursor_refuse(&d->c, "an interval of nothing");
    d->c.at = at + 1;
    if (!comma)
        buf_printf(d->c.out, "{%d}", low);
    else if (high < 0)
        buf_printf(d->c.out, "{%d,}", low);
    else
        buf_printf(d->c.out, "{%d,%d}", low < 0 ? 0 : low, high);
    if (regex_cursor_peek(&d->c, 0) == '+') {
        /* The atom and its interval become a group that is repeated. */
        buf_text(d->c.out, "(?:)+");
        if (d->c.out->failed)
            return 1; /* regex_dialect_translate says so */
        char *atom = d->c.out->data + d->atom_start, *end = d->c.out->data + d->c.out->size_bytes;
        memmove(atom + 3, atom, (size_t)(end - 5 - atom));
        memcpy(atom, "(?:", 3);
        memcpy(end - 2, ")+", 2);
        d->c.at++;
    } else if (regex_cursor_peek(&d->c, 0) == '?') {
        if (!comma)
            return regex_cursor_refuse(&d->c, "{n}?");
        buf_text(d->c.out, "?");
        d->c.at++;
    }
    d->has_atom = false;
    return 1;
}

static int
take_quantifier(struct dialect *d)
{
    if (!d->has_atom)
        return regex_cursor_refuse(&d->c, "a quantifier of nothing, or of a quantifier,");
    for (int i = 0; i < 2; i++) {
        char c = regex_cursor_peek(&d->c, 0);
        if (i == 1 && c != '?' && c != '+')
            break;
        buf_append(d->c.out, &c, 1);
        d->c.at++;
    }
    d->has_atom = false;
    return 0;
}

static int
take_atom(struct dialect *d)
{
    uint32_t cp = 0;
    begin_atom(d);
    if (regex_cursor_peek(&d->c, 0) == '\\') {
        d->c.at++;
        char letter = regex_cursor_peek(&d->c, 0);
        if (letter == 'A' || letter == 'z' || letter == 'Z') {
            buf_printf(d->c.out, "\\%c", letter);
            d->c.at++;
            d->has_atom = false;
            return 0;
        }
        int r = regex_cursor_escape(&d->c, false, &cp);
        if (r <= 0) {
            d->c.last = '\0';
            return r;
        }
    } else {
        d->c.at += (size_t)utf8_next(d->c.pattern + d->c.at, d->c.size_bytes - d->c.at, &cp);
    }
    regex_cursor_put(&d->c, cp);
    return regex_cursor_fold(&d->c, cp);
}

static int
take_one(struct dialect *d)
{
    char c = regex_cursor_peek(&d->c, 0);
    int r;
    if (c && strchr("[()*+?{|^$.", c))
        d->c.last = '\0';
    switch (c) {
    case '[':
        begin_atom(d);
        return regex_cursor_set(&d->c);
    case '(':
        return take_group(d);
    case ')':
        return end_group(d);
    case '*':
    case '+':
    case '?':
        return take_quantifier(d);
    case '{':
        r = take_interval(d);
        return r ? r : take_atom(d);
    case '|':
    case '^':
    case '$':
        buf_append(d->c.out, &c, 1);
        d->c.at++;
        d->has_atom = false;
        return 0;
    case '.':
        begin_atom(d);
        buf_text(d->c.out, ".");
        d->c.at++;
        return 0;
    default:
        return take_atom(d);
    }
}

int
regex_dialect_translate(const char *pattern, size_t size_bytes, struct buf *out, struct err *err)
{
    struct dialect d = {
        .c = {.pattern = pattern, .size_bytes = size_bytes, .out = out, .err = err}};
    if (size_bytes > REGEX_MAX_BYTES)
        return err_set(err, ENOTSUP, "a pattern of %zu bytes is not supported, %d are", size_bytes,
                       REGEX_MAX_BYTES);
    if (!utf8_valid(pattern, size_bytes))
        return err_set(err, EBADMSG, "the pattern is not UTF-8");
    while (d.c.at < size_bytes) {
        int r = take_one(&d);
        if (r < 0)
            return r;
    }
    if (d.depth > 0)
        return err_set(err, EBADMSG, "'(' without ')' in the pattern");
    if (out->failed)
        return err_errno(err, ENOMEM, "a pattern of %zu bytes", size_bytes);
    return 0;
}
