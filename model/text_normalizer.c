/* text_normalizer: see text_normalizer.h. */
#include "model/text_normalizer.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/buf.h"
#include "base/utf8_scan.h"
#include "model/json_check.h"
#include "model/unicode9.h"

enum {
    DECOMPOSITION_MAX = 32, /* code points of one character; U+FDFA has most, 18 */
    SHORT_RUN = 16,         /* marks on one character that insertion sorts fast enough */
};

static int
code_points_reserve(struct code_points *out, size_t more)
{
    size_t wanted = out->count + more, capacity = out->capacity ? out->capacity : 64;
    if (wanted <= out->capacity)
        return 0;
    while (capacity < wanted)
        capacity *= 2;
    int32_t *cp =
        capacity < SIZE_MAX / 2 / sizeof *cp ? realloc(out->cp, capacity * sizeof *cp) : NULL;
    if (!cp)
        return -ENOMEM;
    out->cp = cp;
    out->capacity = capacity;
    return 0;
}

static int
combining_class(int32_t cp)
{
    int class = utf8proc_get_property(cp)->combining_class;
    return class && unicode9_knows(cp) ? class : 0;
}

/* Stable, by combining class: a counting sort, since there are 256 classes. */
static int
sort_long_run(int32_t *cp, size_t count)
{
    size_t at[257] = {0};
    int32_t *sorted = malloc(count * sizeof *sorted);
    if (!sorted)
        return -ENOMEM;
    for (size_t i = 0; i < count; i++)
        at[combining_class(cp[i]) + 1]++;
    for (int c = 1; c < 257; c++)
        at[c] += at[c - 1];
    for (size_t i = 0; i < count; i++)
        sorted[at[combining_class(cp[i])]++] = cp[i];
    memcpy(cp, sorted, count * sizeof *sorted);
    free(sorted);
    return 0;
}

static int
sort_run(int32_t *cp, size_t count)
{
    if (count > SHORT_RUN)
        return sort_long_run(cp, count);
    for (size_t i = 1; i < count; i++) {
        int32_t one = cp[i];
        int class = combining_class(one);
        size_t at = i;
        for (; at > 0 && combining_class(cp[at - 1]) > class; at--)
            cp[at] = cp[at - 1];
        cp[at] = one;
    }
    return 0;
}

/* The canonical ordering of every run of marks. */
static int
order_marks(struct code_points *points)
{
    for (size_t at = 0; at < points->count;) {
        size_t end = at;
        while (end < points->count && combining_class(points->cp[end]) != 0)
            end++;
        if (end - at > 1) {
            int r = sort_run(points->cp + at, end - at);
            if (r < 0)
                return r;
        }
        at = end > at ? end : at + 1;
    }
    return 0;
}

/* Decomposes one character behind what is in out, which has room. */
static int
decompose(int32_t cp, utf8proc_option_t options, struct code_points *out)
{
    int ignored = 0;
    if (!unicode9_knows(cp)) {
        out->cp[out->count++] = cp;
        return 0;
    }
    utf8proc_ssize_t n =
        utf8proc_decompose_char(cp, out->cp + out->count, DECOMPOSITION_MAX, options, &ignored);
    if (n < 0 || n > DECOMPOSITION_MAX)
        return -ENOMEM;
    out->count += (size_t)n;
    return 0;
}

/* Composes what lies between the characters that take no part in it: utf8proc must not see those.
 */
static int
compose(struct code_points *points)
{
    size_t done = 0;
    for (size_t at = 0; at < points->count;) {
        size_t end = at;
        while (end < points->count && unicode9_knows(points->cp[end]))
            end++;
        utf8proc_ssize_t n = 0;
        if (end > at)
            n = utf8proc_normalize_utf32(points->cp + at, (utf8proc_ssize_t)(end - at),
                                         UTF8PROC_COMPOSE | UTF8PROC_STABLE);
        if (n < 0)
            return -ENOMEM;
        memmove(points->cp + done, points->cp + at, (size_t)n * sizeof *points->cp);
        done += (size_t)n;
        if (end < points->count)
            points->cp[done++] = points->cp[end++];
        at = end;
    }
    points->count = done;
    return 0;
}

int
text_form_apply(enum text_form form, const char *text, size_t size_bytes, struct code_points *out)
{
    utf8proc_option_t options = UTF8PROC_DECOMPOSE;
    if (form == TEXT_NFKC || form == TEXT_NFKD)
        options |= UTF8PROC_COMPAT;
    out->count = 0;
    for (size_t at = 0; at < size_bytes;) {
        uint32_t cp;
        at += (size_t)utf8_next(text + at, size_bytes - at, &cp);
        if (code_points_reserve(out, DECOMPOSITION_MAX) < 0 ||
            decompose((int32_t)cp, options, out) < 0)
            return -ENOMEM;
    }
    if (order_marks(out) < 0)
        return -ENOMEM;
    return form == TEXT_NFC || form == TEXT_NFKC ? compose(out) : 0;
}

/* Characters that a form leaves alone and that nothing before them joins or crosses: the text may
 * be normalised piece by piece if each piece begins with one. For NFC also the common letters of
 * several scripts (none of them a second half of a composition, all of them NFC_Quick_Check = Yes).
 */
static bool
is_boundary(enum text_form form, uint32_t cp)
{
    if (cp < 0x80)
        return true;
    if (form != TEXT_NFC)
        return false;
    return cp < 0x300 || (cp >= 0x400 && cp <= 0x482) || (cp >= 0x2010 && cp <= 0x2027) ||
           (cp >= 0x2030 && cp <= 0x205E) || (cp >= 0x3000 && cp <= 0x3029) ||
           (cp >= 0x3041 && cp <= 0x3096) || (cp >= 0x309B && cp <= 0x30FF) ||
           (cp >= 0x3400 && cp <= 0x4DBF) || (cp >= 0x4E00 && cp <= 0x9FFF) ||
           (cp >= 0xAC00 && cp <= 0xD7A3) || (cp >= 0xFF01 && cp <= 0xFF5E) ||
           (cp >= 0x1F300 && cp <= 0x1FAFF);
}

/* The end of the next stretch that is kept as it is: it ends before the last boundary in front of
 * the first other character, since that one may compose with it. */
static size_t
kept_prefix(enum text_form form, const char *text, size_t size_bytes)
{
    size_t last = 0;
    for (size_t at = 0; at < size_bytes;) {
        uint32_t cp;
        int length = utf8_next(text + at, size_bytes - at, &cp);
        if (!is_boundary(form, cp))
            return last;
        last = at;
        at += (size_t)length;
    }
    return size_bytes;
}

/* The end of the stretch that begins at text with something else. */
static size_t
changed_prefix(enum text_form form, const char *text, size_t size_bytes)
{
    bool other = false;
    size_t at = 0;
    while (at < size_bytes) {
        uint32_t cp;
        int length = utf8_next(text + at, size_bytes - at, &cp);
        bool boundary = is_boundary(form, cp);
        if (boundary && other)
            break;
        other |= !boundary;
        at += (size_t)length;
    }
    return at;
}

static int
normalize_form(enum text_form form, const char *text, size_t size_bytes, struct buf *out)
{
    struct code_points points = {0};
    int r = 0;
    for (size_t at = 0; r == 0 && at < size_bytes;) {
        size_t kept = kept_prefix(form, text + at, size_bytes - at);
        buf_append(out, text + at, kept);
        at += kept;
        size_t changed = changed_prefix(form, text + at, size_bytes - at);
        r = text_form_apply(form, text + at, changed, &points);
        for (size_t i = 0; r == 0 && i < points.count; i++) {
            char put[4];
            buf_append(out, put, (size_t)utf8_put((uint32_t)points.cp[i], put));
        }
        at += changed;
    }
    free(points.cp);
    return r < 0 || out->failed ? -ENOMEM : 0;
}

int
text_normalize(const struct text_normalizer *n, const char *text, size_t size_bytes,
               char **ret_text, size_t *ret_size_bytes, struct err *err)
{
    struct buf now = {0};
    *ret_text = NULL;
    *ret_size_bytes = size_bytes;
    for (int i = 0; i < n->n_forms; i++) {
        const char *from = now.data ? now.data : text;
        size_t from_bytes = now.data ? now.size_bytes : size_bytes;
        if (kept_prefix(n->form[i], from, from_bytes) == from_bytes)
            continue;
        struct buf next = {0};
        int r = normalize_form(n->form[i], from, from_bytes, &next);
        buf_free(&now);
        now = next;
        if (r < 0) {
            buf_free(&now);
            return err_errno(err, ENOMEM, "normalising %zu bytes", size_bytes);
        }
    }
    if (now.data) {
        *ret_text = now.data;
        *ret_size_bytes = now.size_bytes;
    }
    return 0;
}

static int
parse_one(struct text_normalizer *n, struct json_span json, int depth, struct err *err)
{
    static const char *const alone[] = {"type", NULL};
    static const char *const sequence[] = {"type", "normalizers", NULL};
    static const char *const forms[] = {
        [TEXT_NFC] = "NFC", [TEXT_NFD] = "NFD", [TEXT_NFKC] = "NFKC", [TEXT_NFKD] = "NFKD"};
    struct json_span type, key, value;
    int r = json_check_type(json, "normalizer", &type, err);
    if (r < 0)
        return r;
    if (json_span_is(type, "Sequence")) {
        struct json_span members = json_span_member(json, "normalizers");
        r = json_check_members(json, "normalizer Sequence", sequence, NULL, err);
        if (r == 0)
            r = json_check_kind(members, JSON_ARRAY, "normalizer Sequence: \"normalizers\"", err);
        if (r == 0 && depth == 0)
            r = err_set(err, ENOTSUP, "normalizer: Sequences this deep are not supported");
        struct json_walk walk = json_walk(members);
        while (r == 0 && json_walk_next(&walk, &key, &value))
            r = parse_one(n, value, depth - 1, err);
        return r;
    }
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        if (!json_span_is(type, forms[i]))
            continue;
        if (n->n_forms == TEXT_NORMALIZER_MAX_FORMS)
            return err_set(err, ENOTSUP, "normalizer: more than %d forms are not supported",
                           TEXT_NORMALIZER_MAX_FORMS);
        n->form[n->n_forms++] = (enum text_form)i;
        return json_check_members(json, "normalizer", alone, NULL, err);
    }
    return json_check_refuse(type, "normalizer", err);
}

int
text_normalizer_parse(struct text_normalizer *n, struct json_span json, struct err *err)
{
    enum json_kind kind = json_span_kind(json);
    n->n_forms = 0;
    return kind == JSON_NIL || kind == JSON_NONE ? 0 : parse_one(n, json, 4, err);
}
