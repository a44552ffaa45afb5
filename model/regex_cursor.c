/* regex_cursor: see regex_cursor.h. */
#include "model/regex_cursor.h"

#include <string.h>

#include "base/utf8_scan.h"

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

int
regex_cursor_refuse(const struct regex_cursor *c, const char *what)
{
    return err_set(c->err, ENOTSUP, "%s is not supported, at byte %zu of the pattern", what, c->at);
}

char
regex_cursor_peek(const struct regex_cursor *c, size_t ahead)
{
    return c->at + ahead < c->size_bytes ? c->pattern[c->at + ahead] : '\0';
}

bool
regex_cursor_starts(const struct regex_cursor *c, const char *text)
{
    size_t length = strlen(text);
    return c->size_bytes - c->at >= length && memcmp(c->pattern + c->at, text, length) == 0;
}

/* One character that stands for itself, by number where it could mean something. */
void
regex_cursor_put(struct regex_cursor *c, uint32_t cp)
{
    if ((cp >= '0' && cp <= '9') || (cp >= 'a' && cp <= 'z') || (cp >= 'A' && cp <= 'Z')) {
        char letter = (char)cp;
        buf_append(c->out, &letter, 1);
    } else {
        buf_printf(c->out, "\\x{%x}", (unsigned)cp);
    }
}

/* Under (?i) Oniguruma folds whole strings: "ss" matches U+00DF and back. ASCII without the few
 * pairs that a single character folds to is the part on which the engines agree. */
int
regex_cursor_fold(struct regex_cursor *c, uint32_t cp)
{
    static const char pairs[][2] = {{'s', 's'}, {'f', 'f'}, {'f', 'i'}, {'f', 'l'}, {'s', 't'}};
    if (!c->caseless)
        return 0;
    if (cp >= 0x80)
        return regex_cursor_refuse(c, "a character past ASCII inside (?i)");
    char letter = (char)(cp >= 'A' && cp <= 'Z' ? cp - 'A' + 'a' : cp);
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        if (c->last == pairs[i][0] && letter == pairs[i][1])
            return regex_cursor_refuse(c, "that pair of letters inside (?i)");
    }
    c->last = letter;
    return 0;
}

/* Hexadecimal digits from c->at on, at least low and at most high of them; -1. */
static int64_t
take_hex(struct regex_cursor *c, int low, int high)
{
    int64_t value = 0;
    int n = 0;
    for (; n < high; n++) {
        char next = regex_cursor_peek(c, 0);
        int digit = next >= '0' && next <= '9'   ? next - '0'
                    : next >= 'a' && next <= 'f' ? next - 'a' + 10
                    : next >= 'A' && next <= 'F' ? next - 'A' + 10
                                                 : -1;
        if (digit < 0)
            break;
        value = value * 16 + digit;
        c->at++;
    }
    return n >= low ? value : -1;
}

/* \xHH, \x{H...}, \uHHHH: c->at is behind the letter. */
static int
take_code(struct regex_cursor *c, char kind, uint32_t *ret_cp)
{
    int64_t cp;
    if (kind == 'u') {
        cp = take_hex(c, 4, 4);
    } else if (regex_cursor_peek(c, 0) == '{') {
        c->at++;
        cp = take_hex(c, 1, 8);
        if (cp >= 0 && regex_cursor_peek(c, 0) != '}')
            cp = -1;
        c->at += cp >= 0;
    } else {
        /* Two digits are one byte of UTF-8 to Oniguruma: only ASCII is a character. */
        cp = take_hex(c, 2, 2);
        if (cp > 0x7F)
            return regex_cursor_refuse(c, "\\xHH past 7F");
    }
    if (cp < 0 || cp > 0x10FFFF || (cp >= 0xD800 && cp <= 0xDFFF))
        return regex_cursor_refuse(c, "a code point that is none");
    *ret_cp = (uint32_t)cp;
    return 0;
}

/* \p{...} or \P{...}: c->at is at the brace. General categories by their short names, else scripts.
 */
static int
take_property(struct regex_cursor *c, bool negated)
{
    static const char *const long_names[][2] = {
        {"Letter", "L"}, {"Mark", "M"},   {"Number", "N"},    {"Punctuation", "P"},
        {"Punct", "P"},  {"Symbol", "S"}, {"Separator", "Z"}, {"Other", "C"},
    };
    static const char majors[] = "LMNPSZC", *const minors[] = {"ultmo", "nce", "dlo",  "cdseifo",
                                                               "mcko",  "slp", "cfnos"};
    char name[48];
    size_t length = 0;
    if (regex_cursor_peek(c, 0) != '{')
        return regex_cursor_refuse(c, "\\p without braces");
    c->at++;
    if (regex_cursor_peek(c, 0) == '^') {
        negated = !negated;
        c->at++;
    }
    for (; regex_cursor_peek(c, 0) != '}'; c->at++) {
        char next = regex_cursor_peek(c, 0);
        bool letter = (next >= 'a' && next <= 'z') || (next >= 'A' && next <= 'Z') || next == '_';
        if (!letter || length == sizeof name - 1)
            return regex_cursor_refuse(c, "a property name of that kind");
        name[length++] = next;
    }
    name[length] = '\0';
    c->at++;
    for (size_t i = 0; i < sizeof long_names / sizeof *long_names; i++) {
        if (strcmp(name, long_names[i][0]) == 0) {
            memcpy(name, long_names[i][1], 2);
            length = 1;
        }
    }
    const char *major = length == 1 || length == 2 ? strchr(majors, name[0]) : NULL;
    bool category = major && (length == 1 || strchr(minors[major - majors], name[1]));
    if (!category && length <= 2)
        return regex_cursor_refuse(c, "that property");
    if (c->caseless)
        return regex_cursor_refuse(c, "a property inside (?i)");
    buf_printf(c->out, "\\%c{%s%s}", negated ? 'P' : 'p', category ? "" : "sc:", name);
    return 0;
}

/* A set's or an atom's single-letter class; false when the letter is none. */
static bool
put_class(struct regex_cursor *c, char letter, bool in_set)
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
            buf_text(c->out, text);
            return true;
        }
    }
    return false;
}

/* Behind a backslash, what means the same inside and outside of sets. 1: *ret_cp is one character,
 * 0: a class was put, or an error. c->at is at the letter. */
int
regex_cursor_escape(struct regex_cursor *c, bool in_set, uint32_t *ret_cp)
{
    static const char from[] = "rntfvae", to[] = "\r\n\t\f\v\a\x1b";
    char letter = regex_cursor_peek(c, 0);
    const char *control = letter ? strchr(from, letter) : NULL;
    if (c->at == c->size_bytes)
        return regex_cursor_refuse(c, "a backslash at the end");
    if (control) {
        *ret_cp = (uint8_t)to[control - from];
        c->at++;
        return 1;
    }
    if (letter == 'x' || letter == 'u') {
        c->at++;
        int r = take_code(c, letter, ret_cp);
        return r < 0 ? r : 1;
    }
    if (letter == 'p' || letter == 'P') {
        c->at++;
        return take_property(c, letter == 'P');
    }
    if ((letter >= 'a' && letter <= 'z') || (letter >= 'A' && letter <= 'Z')) {
        if (c->caseless && (letter == 'w' || letter == 'W' || letter == 'S' || letter == 'D'))
            return regex_cursor_refuse(c, "a wide class inside (?i)");
        if (!put_class(c, letter, in_set)) {
            char what[4] = {'\\', letter, '\0'};
            return regex_cursor_refuse(c, what);
        }
        c->at++;
        return 0;
    }
    if (letter >= '0' && letter <= '9')
        return regex_cursor_refuse(c, "a numbered escape");
    c->at += (size_t)utf8_next(c->pattern + c->at, c->size_bytes - c->at, ret_cp);
    return 1;
}

/* [...]: c->at is at the bracket. */
int
regex_cursor_set(struct regex_cursor *c)
{
    buf_text(c->out, "[");
    c->at++;
    if (regex_cursor_peek(c, 0) == '^') {
        if (c->caseless)
            return regex_cursor_refuse(c, "a negated set inside (?i)");
        buf_text(c->out, "^");
        c->at++;
    }
    if (regex_cursor_peek(c, 0) == ']')
        return regex_cursor_refuse(c, "an empty set or one that begins with ']'");
    bool range_may_follow = false, in_range = false;
    uint32_t low = 0;
    for (;;) {
        if (c->at == c->size_bytes)
            return err_set(c->err, EBADMSG, "a set without end");
        char next = regex_cursor_peek(c, 0);
        uint32_t cp = 0;
        int r = 1;
        if (next == ']' && !in_range)
            break;
        if (next == '[')
            return regex_cursor_refuse(c, "a set inside a set");
        if (regex_cursor_starts(c, "&&"))
            return regex_cursor_refuse(c, "&&");
        if (next == '-' && range_may_follow && regex_cursor_peek(c, 1) != ']' &&
            c->at + 1 < c->size_bytes) {
            buf_text(c->out, "-");
            c->at++;
            in_range = true;
            range_may_follow = false;
            continue;
        }
        if (next == '\\') {
            c->at++;
            r = regex_cursor_escape(c, true, &cp);
            if (r < 0)
                return r;
        } else {
            c->at += (size_t)utf8_next(c->pattern + c->at, c->size_bytes - c->at, &cp);
        }
        if (in_range && (r == 0 || cp < low))
            return regex_cursor_refuse(c, "a range that ends so");
        c->last = '\0';
        if (r == 1 && regex_cursor_fold(c, cp) < 0)
            return -ENOTSUP;
        c->last = '\0';
        if (r == 1)
            regex_cursor_put(c, cp);
        range_may_follow = r == 1 && !in_range;
        in_range = false;
        low = cp;
    }
    buf_text(c->out, "]");
    c->at++;
    return 0;
}
