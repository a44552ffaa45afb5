/* regex_dialect: see regex_dialect.h. */
#include "model/regex_dialect.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "base/utf8_scan.h"

enum { MAX_REPEAT = 65535 };

#define SPACE_SET                                                                                  \
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}"    \
    "\\x{205f}\\x{3000}"
/* What is left, because a negated set cannot stand inside another. */
#define NON_SPACE_SET                                                                              \
    "\\x{0}-\\x{8}\\x{e}-\\x{1f}\\x{21}-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}\\x{1681}-\\x{"     \
    "1fff}"                                                                                        \
    "\\x{200b}-\\x{2027}\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}\\x{2060}-\\x{2fff}"                 \
    "\\x{3001}-\\x{10ffff}"
#define WORD_SET "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}"
/* Outside of sets Oniguruma reads a table below U+0100 that has superscripts and fractions too. */
#define WORD_ALONE WORD_SET "\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}"

struct group {
    size_t start;  /* in out */
    bool caseless; /* outside of it */
    bool looks;    /* it takes no text, so it is nothing to repeat */
};

struct dialect {
    const char *pattern;
    size_t size_bytes, at;
    struct buf *out;
    struct err *err;
    struct group group[REGEX_MAX_DEPTH];
    int depth;
    bool caseless;
    char last;         /* the letter just put, in lower case and under (?i) only */
    bool has_atom;     /* something a quantifier may follow */
    size_t atom_start; /* in out */
};

static int
refuse(const struct dialect *d, const char *what)
{
    return err_set(d->err, ENOTSUP, "%s is not supported, at byte %zu of the pattern", what, d->at);
}

static char
peek(const struct dialect *d, size_t ahead)
{
    return d->at + ahead < d->size_bytes ? d->pattern[d->at + ahead] : '\0';
}

static bool
starts(const struct dialect *d, const char *text)
{
    size_t length = strlen(text);
    return d->size_bytes - d->at >= length && memcmp(d->pattern + d->at, text, length) == 0;
}

static void
begin_atom(struct dialect *d)
{
    d->has_atom = true;
    d->atom_start = d->out->size_bytes;
}

/* One character that stands for itself, by number where it could mean something. */
static void
put_literal(struct dialect *d, uint32_t cp)
{
    if ((cp >= '0' && cp <= '9') || (cp >= 'a' && cp <= 'z') || (cp >= 'A' && cp <= 'Z')) {
        char letter = (char)cp;
        buf_append(d->out, &letter, 1);
    } else {
        buf_printf(d->out, "\\x{%x}", (unsigned)cp);
    }
}

/* Under (?i) Oniguruma folds whole strings: "ss" matches U+00DF and back. ASCII without the few
 * pairs that a single character folds to is the part on which the engines agree. */
static int
check_caseless(struct dialect *d, uint32_t cp)
{
    static const char pairs[][2] = {{'s', 's'}, {'f', 'f'}, {'f', 'i'}, {'f', 'l'}, {'s', 't'}};
    if (!d->caseless)
        return 0;
    if (cp >= 0x80)
        return refuse(d, "a character past ASCII inside (?i)");
    char letter = (char)(cp >= 'A' && cp <= 'Z' ? cp - 'A' + 'a' : cp);
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        if (d->last == pairs[i][0] && letter == pairs[i][1])
            return refuse(d, "that pair of letters inside (?i)");
    }
    d->last = letter;
    return 0;
}

/* Hexadecimal digits from d->at on, at least low and at most high of them; -1. */
static int64_t
take_hex(struct dialect *d, int low, int high)
{
    int64_t value = 0;
    int n = 0;
    for (; n < high; n++) {
        char c = peek(d, 0);
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;
        if (digit < 0)
            break;
        value = value * 16 + digit;
        d->at++;
    }
    return n >= low ? value : -1;
}

/* \xHH, \x{H...}, \uHHHH: d->at is behind the letter. */
static int
take_code(struct dialect *d, char kind, uint32_t *ret_cp)
{
    int64_t cp;
    if (kind == 'u') {
        cp = take_hex(d, 4, 4);
    } else if (peek(d, 0) == '{') {
        d->at++;
        cp = take_hex(d, 1, 8);
        if (cp >= 0 && peek(d, 0) != '}')
            cp = -1;
        d->at += cp >= 0;
    } else {
        /* Two digits are one byte of UTF-8 to Oniguruma: only ASCII is a character. */
        cp = take_hex(d, 2, 2);
        if (cp > 0x7F)
            return refuse(d, "\\xHH past 7F");
    }
    if (cp < 0 || cp > 0x10FFFF || (cp >= 0xD800 && cp <= 0xDFFF))
        return refuse(d, "a code point that is none");
    *ret_cp = (uint32_t)cp;
    return 0;
}

/* \p{...} or \P{...}: d->at is at the brace. General categories by their short names, else scripts.
 */
static int
take_property(struct dialect *d, bool negated)
{
    static const char *const long_names[][2] = {
        {"Letter", "L"}, {"Mark", "M"},   {"Number", "N"},    {"Punctuation", "P"},
        {"Punct", "P"},  {"Symbol", "S"}, {"Separator", "Z"}, {"Other", "C"},
    };
    static const char majors[] = "LMNPSZC", *const minors[] = {"ultmo", "nce", "dlo",  "cdseifo",
                                                               "mcko",  "slp", "cfnos"};
    char name[48];
    size_t length = 0;
    if (peek(d, 0) != '{')
        return refuse(d, "\\p without braces");
    d->at++;
    if (peek(d, 0) == '^') {
        negated = !negated;
        d->at++;
    }
    for (; peek(d, 0) != '}'; d->at++) {
        char c = peek(d, 0);
        bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
        if (!letter || length == sizeof name - 1)
            return refuse(d, "a property name of that kind");
        name[length++] = c;
    }
    name[length] = '\0';
    d->at++;
    for (size_t i = 0; i < sizeof long_names / sizeof *long_names; i++) {
        if (strcmp(name, long_names[i][0]) == 0) {
            memcpy(name, long_names[i][1], 2);
            length = 1;
        }
    }
    const char *major = length == 1 || length == 2 ? strchr(majors, name[0]) : NULL;
    bool category = major && (length == 1 || strchr(minors[major - majors], name[1]));
    if (!category && length <= 2)
        return refuse(d, "that property");
    if (d->caseless)
        return refuse(d, "a property inside (?i)");
    buf_printf(d->out, "\\%c{%s%s}", negated ? 'P' : 'p', category ? "" : "sc:", name);
    return 0;
}

/* A set's or an atom's single-letter class; false when the letter is none. */
static bool
put_class(struct dialect *d, char letter, bool in_set)
{
    static const struct {
        char letter;
        const char *in_set, *alone;
    } classes[] = {
        {'s', SPACE_SET, "[" SPACE_SET "]"}, {'S', NON_SPACE_SET, "[^" SPACE_SET "]"},
        {'d', "\\p{Nd}", "\\p{Nd}"},         {'D', "\\P{Nd}", "\\P{Nd}"},
        {'w', WORD_SET, "[" WORD_ALONE "]"}, {'W', NULL, "[^" WORD_ALONE "]"},
    };
    for (size_t i = 0; i < sizeof classes / sizeof *classes; i++) {
        const char *text = in_set ? classes[i].in_set : classes[i].alone;
        if (classes[i].letter == letter && text) {
            buf_text(d->out, text);
            return true;
        }
    }
    return false;
}

/* Behind a backslash, what means the same inside and outside of sets. 1: *ret_cp is one character,
 * 0: a class was put, or an error. d->at is at the letter. */
static int
take_escape(struct dialect *d, bool in_set, uint32_t *ret_cp)
{
    static const char from[] = "rntfvae", to[] = "\r\n\t\f\v\a\x1b";
    char letter = peek(d, 0);
    const char *control = letter ? strchr(from, letter) : NULL;
    if (d->at == d->size_bytes)
        return refuse(d, "a backslash at the end");
    if (control) {
        *ret_cp = (uint8_t)to[control - from];
        d->at++;
        return 1;
    }
    if (letter == 'x' || letter == 'u') {
        d->at++;
        int r = take_code(d, letter, ret_cp);
        return r < 0 ? r : 1;
    }
    if (letter == 'p' || letter == 'P') {
        d->at++;
        return take_property(d, letter == 'P');
    }
    if ((letter >= 'a' && letter <= 'z') || (letter >= 'A' && letter <= 'Z')) {
        if (d->caseless && (letter == 'w' || letter == 'W' || letter == 'S' || letter == 'D'))
            return refuse(d, "a wide class inside (?i)");
        if (!put_class(d, letter, in_set)) {
            char what[4] = {'\\', letter, '\0'};
            return refuse(d, what);
        }
        d->at++;
        return 0;
    }
    if (letter >= '0' && letter <= '9')
        return refuse(d, "a numbered escape");
    d->at += (size_t)utf8_next(d->pattern + d->at, d->size_bytes - d->at, ret_cp);
    return 1;
}

/* [...]: d->at is at the bracket. */
static int
take_set(struct dialect *d)
{
    begin_atom(d);
    buf_text(d->out, "[");
    d->at++;
    if (peek(d, 0) == '^') {
        if (d->caseless)
            return refuse(d, "a negated set inside (?i)");
        buf_text(d->out, "^");
        d->at++;
    }
    if (peek(d, 0) == ']')
        return refuse(d, "an empty set or one that begins with ']'");
    bool range_may_follow = false, in_range = false;
    uint32_t low = 0;
    for (;;) {
        if (d->at == d->size_bytes)
            return err_set(d->err, EBADMSG, "a set without end");
        char c = peek(d, 0);
        uint32_t cp = 0;
        int r = 1;
        if (c == ']' && !in_range)
            break;
        if (c == '[')
            return refuse(d, "a set inside a set");
        if (starts(d, "&&"))
            return refuse(d, "&&");
        if (c == '-' && range_may_follow && peek(d, 1) != ']' && d->at + 1 < d->size_bytes) {
            buf_text(d->out, "-");
            d->at++;
            in_range = true;
            range_may_follow = false;
            continue;
        }
        if (c == '\\') {
            d->at++;
            r = take_escape(d, true, &cp);
            if (r < 0)
                return r;
        } else {
            d->at += (size_t)utf8_next(d->pattern + d->at, d->size_bytes - d->at, &cp);
        }
        if (in_range && (r == 0 || cp < low))
            return refuse(d, "a range that ends so");
        d->last = '\0';
        if (r == 1 && check_caseless(d, cp) < 0)
            return -ENOTSUP;
        d->last = '\0';
        if (r == 1)
            put_literal(d, cp);
        range_may_follow = r == 1 && !in_range;
        in_range = false;
        low = cp;
    }
    buf_text(d->out, "]");
    d->at++;
    return 0;
}

/* (...: d->at is at the parenthesis. No group captures, since nothing may refer back. */
static int
take_group(struct dialect *d)
{
    static const char *const same[] = {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:"};
    if (starts(d, "(?i)") && d->at == 0) {
        /* Only at the very start do both engines mean the whole pattern by it. */
        buf_text(d->out, "(?i)");
        d->at += 4;
        d->caseless = true;
        return 0;
    }
    if (d->depth == REGEX_MAX_DEPTH)
        return refuse(d, "deeper nesting");
    d->group[d->depth++] = (struct group){d->out->size_bytes, d->caseless, false};
    d->has_atom = false;
    if (peek(d, 1) != '?') {
        buf_text(d->out, "(?:");
        d->at++;
        return 0;
    }
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
        if (starts(d, same[i])) {
            buf_text(d->out, same[i]);
            d->at += strlen(same[i]);
            d->caseless |= same[i][2] == 'i';
            d->group[d->depth - 1].looks = strpbrk(same[i], "=!") != NULL;
            return 0;
        }
    }
    return refuse(d, "that kind of group");
}

static int
end_group(struct dialect *d)
{
    if (d->depth == 0)
        return err_set(d->err, EBADMSG, "')' without '(' in the pattern");
    struct group group = d->group[--d->depth];
    buf_text(d->out, ")");
    d->at++;
    d->caseless = group.caseless;
    d->last = '\0';
    d->has_atom = !group.looks;
    d->atom_start = group.start;
    return 0;
}

/* The number at pattern[*at]; -1 when there is none, MAX_REPEAT + 1 when it is too large. */
static int
take_count(const struct dialect *d, size_t *at)
{
    int value = -1;
    for (; *at < d->size_bytes && d->pattern[*at] >= '0' && d->pattern[*at] <= '9'; ++*at) {
        value = (value < 0 ? 0 : value) * 10 + (d->pattern[*at] - '0');
        value = value > MAX_REPEAT ? MAX_REPEAT + 1 : value;
    }
    return value;
}

/* {n}, {n,}, {n,m}, {,m}. 0: it is none of them, and the brace stands for itself. */
static int
take_interval(struct dialect *d)
{
    size_t at = d->at + 1;
    int low = take_count(d, &at), high = low;
    bool comma = at < d->size_bytes && d->pattern[at] == ',';
    if (comma) {
        at++;
        high = take_count(d, &at);
    }
    if ((low < 0 && high < 0) || at == d->size_bytes || d->pattern[at] != '}')
        return 0;
    if (low > MAX_REPEAT || high > MAX_REPEAT || (high >= 0 && low > high))
        return refuse(d, "that interval");
    if (!d->has_atom)
        return refuse(d, "an interval of nothing");
    d->at = at + 1;
    if (!comma)
        buf_printf(d->out, "{%d}", low);
    else if (high < 0)
        buf_printf(d->out, "{%d,}", low);
    else
        buf_printf(d->out, "{%d,%d}", low < 0 ? 0 : low, high);
    if (peek(d, 0) == '+') {
        /* The atom and its interval become a group that is repeated. */
        buf_text(d->out, "(?:)+");
        if (d->out->failed)
            return 1; /* regex_dialect_translate says so */
        char *atom = d->out->data + d->atom_start, *end = d->out->data + d->out->size_bytes;
        memmove(atom + 3, atom, (size_t)(end - 5 - atom));
        memcpy(atom, "(?:", 3);
        memcpy(end - 2, ")+", 2);
        d->at++;
    } else if (peek(d, 0) == '?') {
        if (!comma)
            return refuse(d, "{n}?");
        buf_text(d->out, "?");
        d->at++;
    }
    d->has_atom = false;
    return 1;
}

static int
take_quantifier(struct dialect *d)
{
    if (!d->has_atom)
        return refuse(d, "a quantifier of nothing, or of a quantifier,");
    for (int i = 0; i < 2; i++) {
        char c = peek(d, 0);
        if (i == 1 && c != '?' && c != '+')
            break;
        buf_append(d->out, &c, 1);
        d->at++;
    }
    d->has_atom = false;
    return 0;
}

static int
take_atom(struct dialect *d)
{
    uint32_t cp = 0;
    begin_atom(d);
    if (peek(d, 0) == '\\') {
        d->at++;
        char letter = peek(d, 0);
        if (letter == 'A' || letter == 'z' || letter == 'Z') {
            buf_printf(d->out, "\\%c", letter);
            d->at++;
            d->has_atom = false;
            return 0;
        }
        int r = take_escape(d, false, &cp);
        if (r <= 0) {
            d->last = '\0';
            return r;
        }
    } else {
        d->at += (size_t)utf8_next(d->pattern + d->at, d->size_bytes - d->at, &cp);
    }
    put_literal(d, cp);
    return check_caseless(d, cp);
}

static int
take_one(struct dialect *d)
{
    char c = peek(d, 0);
    int r;
    if (c && strchr("[()*+?{|^$.", c))
        d->last = '\0';
    switch (c) {
    case '[':
        return take_set(d);
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
        buf_append(d->out, &c, 1);
        d->at++;
        d->has_atom = false;
        return 0;
    case '.':
        begin_atom(d);
        buf_text(d->out, ".");
        d->at++;
        return 0;
    default:
        return take_atom(d);
    }
}

int
regex_dialect_translate(const char *pattern, size_t size_bytes, struct buf *out, struct err *err)
{
    struct dialect d = {.pattern = pattern, .size_bytes = size_bytes, .out = out, .err = err};
    if (size_bytes > REGEX_MAX_BYTES)
        return err_set(err, ENOTSUP, "a pattern of %zu bytes is not supported, %d are", size_bytes,
                       REGEX_MAX_BYTES);
    if (!utf8_valid(pattern, size_bytes))
        return err_set(err, EBADMSG, "the pattern is not UTF-8");
    while (d.at < size_bytes) {
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
