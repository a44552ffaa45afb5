/* added_tokens: see added_tokens.h. */
#include "model/added_tokens.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "model/json_check.h"
#include "base/utf8_scan.h"

/* What \w is to the regex engine that the library asks here: Alphabetic, marks, Nd, Pc,
 * Join_Control. Of Alphabetic only the circled and squared letters are neither letters, Nl nor
 * marks.              */
static bool
is_word(uint32_t cp)
{
    switch (utf8proc_category((int32_t)cp)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
        return true;
    default:
        return cp == 0x200C || cp == 0x200D || (cp >= 0x24B6 && cp <= 0x24E9) ||
               (cp >= 0x1F130 && cp <= 0x1F149) || (cp >= 0x1F150 && cp <= 0x1F169) ||
               (cp >= 0x1F170 && cp <= 0x1F189);
    }
}

static uint32_t
trie_child(const struct added_trie *trie, uint32_t node, uint8_t byte)
{
    if (node == 0)
        return trie->root_child[byte];
    uint32_t child = trie->node[node].first_child;
    while (child && trie->node[child].byte != byte)
        child = trie->node[child].next_sibling;
    return child;
}

static int
trie_grow(struct added_trie *trie)
{
    uint32_t capacity = trie->capacity ? trie->capacity * 2 : 64;
    struct added_node *node =
        capacity > trie->capacity ? realloc(trie->node, capacity * sizeof *node) : NULL;
    if (!node)
        return -ENOMEM;
    trie->node = node;
    trie->capacity = capacity;
    return 0;
}

/* The first of two equal texts stays. */
static int
trie_add(struct added_trie *trie, const char *text, size_t size_bytes, int32_t token)
{
    uint32_t at = 0;
    if (trie->count == 0) {
        if (trie_grow(trie) < 0)
            return -ENOMEM;
        trie->node[trie->count++] = (struct added_node){.token = -1};
    }
    for (size_t i = 0; i < size_bytes; i++) {
        uint8_t byte = (uint8_t)text[i];
        uint32_t child = trie_child(trie, at, byte);
        if (!child) {
            if (trie->count == trie->capacity && trie_grow(trie) < 0)
                return -ENOMEM;
            child = trie->count++;
            trie->node[child] = (struct added_node){
                .next_sibling = at ? trie->node[at].first_child : 0, .token = -1, .byte = byte};
            if (at)
                trie->node[at].first_child = child;
            else
                trie->root_child[byte] = child;
        }
        at = child;
    }
    if (trie->node[at].token < 0)
        trie->node[at].token = token;
    return 0;
}

/* The leftmost match from `from` on, the longest of those that begin there. */
static bool
trie_find(const struct added_trie *trie, const char *text, size_t size_bytes, size_t from,
          size_t *ret_start, size_t *ret_end, int32_t *ret_token)
{
    for (size_t start = from; start < size_bytes; start++) {
        uint32_t at = trie->root_child[(uint8_t)text[start]];
        size_t end = start;
        bool found = false;
        while (at) {
            end++;
            if (trie->node[at].token >= 0) {
                *ret_end = end;
                *ret_token = trie->node[at].token;
                found = true;
            }
            at = end < size_bytes ? trie_child(trie, at, (uint8_t)text[end]) : 0;
        }
        if (found) {
            *ret_start = start;
            return true;
        }
    }
    return false;
}

static bool
is_single_word(const char *text, size_t size_bytes, size_t start, size_t end)
{
    uint32_t cp;
    if (start > 0 && utf8_previous(text, start, &cp) > 0 && is_word(cp))
        return false;
    return end == size_bytes || utf8_next(text + end, size_bytes - end, &cp) <= 0 || !is_word(cp);
}

/* Where the white space that ends at `start` begins, not before `floor`. */
static size_t
strip_left(const char *text, size_t start, size_t floor)
{
    uint32_t cp;
    while (start > floor) {
        int length = utf8_previous(text, start, &cp);
        if (length <= 0 || !utf8_is_white_space(cp))
            break;
        start -= (size_t)length;
    }
    return start > floor ? start : floor;
}

static size_t
strip_right(const char *text, size_t size_bytes, size_t end)
{
    uint32_t cp;
    while (end < size_bytes) {
        int length = utf8_next(text + end, size_bytes - end, &cp);
        if (length <= 0 || !utf8_is_white_space(cp))
            break;
        end += (size_t)length;
    }
    return end;
}

int
added_tokens_split(const struct added_tokens *added, const struct added_trie *trie,
                   const char *text, size_t size_bytes, added_fn *fn, void *arg, struct err *err)
{
    size_t done = 0, from = 0, start = 0, end = 0;
    int32_t index = 0;
    int r = 0;
    while (trie_find(trie, text, size_bytes, from, &start, &end, &index)) {
        const struct added_token *token = &added->token[index];
        from = end; /* the search goes on behind the match itself, whatever is stripped */
        if (token->single_word && !is_single_word(text, size_bytes, start, end))
            continue;
        if (token->lstrip)
            start = strip_left(text, start, done);
        if (token->rstrip)
            end = strip_right(text, size_bytes, end);
        if (done < start)
            r = fn(arg, -1, text + done, start - done, err);
        if (r >= 0)
            r = fn(arg, token->id, text + start, end > start ? end - start : 0, err);
        if (r < 0)
            return r;
        done = end;
    }
    return done < size_bytes ? fn(arg, -1, text + done, size_bytes - done, err) : 0;
}

static int
added_reserve(struct added_tokens *added)
{
    if (added->count < added->capacity)
        return 0;
    size_t capacity = added->capacity ? added->capacity * 2 : 16;
    struct added_token *token = realloc(added->token, capacity * sizeof *token);
    if (!token)
        return -ENOMEM;
    added->token = token;
    added->capacity = capacity;
    return 0;
}

/* Enters one token under its text; `text` becomes its normalised form when it is matched there. */
static int
added_enter(struct added_tokens *added, struct added_token token, bool normalized, const char *text,
            size_t size_bytes, const struct text_normalizer *normalizer, struct err *err)
{
    char *changed = NULL;
    if (added_reserve(added) < 0)
        return err_errno(err, ENOMEM, "added token %d", token.id);
    if (normalized) {
        int r = text_normalize(normalizer, text, size_bytes, &changed, &size_bytes, err);
        if (r < 0)
            return r;
    }
    int r = trie_add(normalized ? &added->normalized : &added->raw, changed ? changed : text,
                     size_bytes, (int32_t)added->count);
    free(changed);
    if (r < 0)
        return err_errno(err, ENOMEM, "added token %d", token.id);
    added->token[added->count++] = token;
    return 0;
}

static int
parse_flags(struct json_span json, struct added_token *token, bool *ret_normalized,
            bool *ret_special, struct err *err)
{
    static const char where[] = "added token";
    int r = json_check_bool(json, where, "special", false, ret_special, err);
    if (r == 0)
        r = json_check_bool(json, where, "normalized", true, ret_normalized, err);
    if (r == 0)
        r = json_check_bool(json, where, "single_word", false, &token->single_word, err);
    if (r == 0)
        r = json_check_bool(json, where, "lstrip", false, &token->lstrip, err);
    if (r == 0)
        r = json_check_bool(json, where, "rstrip", false, &token->rstrip, err);
    return r;
}

/* Special tokens come first among equals, so the list is gone through twice: specials says for
 * which. */
static int
parse_one(struct added_tokens *added, struct json_span json, bool specials,
          const struct text_normalizer *normalizer, struct token_table *table, int64_t limit,
          struct err *err)
{
    static const char *const names[] = {"id",     "content",    "single_word", "lstrip",
                                        "rstrip", "normalized", "special",     NULL};
    struct added_token token = {0};
    bool normalized = false, special = false;
    int64_t id;
    int r = json_check_kind(json, JSON_OBJECT, "an added token", err);
    if (r == 0)
        r = json_check_members(json, "added token", names, NULL, err);
    if (r == 0)
        r = parse_flags(json, &token, &normalized, &special, err);
    if (r < 0 || special != specials)
        return r;
    if (!json_span_integer(json_span_member(json, "id"), &id))
        return err_set(err, EBADMSG, "added token: \"id\" is no integer");
    char *text = NULL;
    size_t size_bytes = 0;
    r = json_check_string(json, "added token", "content", &text, &size_bytes, err);
    if (r == 0 && size_bytes > ADDED_MAX_BYTES)
        r = err_set(err, ENOTSUP, "added token %lld: %zu bytes are not supported, %d are",
                    (long long)id, size_bytes, ADDED_MAX_BYTES);
    if (r == 0)
        r = token_table_add(table, id, text, size_bytes, special ? TOKEN_SPECIAL : 0, limit, err);
    token.id = (int32_t)id;
    if (r == 0)
        r = added_enter(added, token, normalized, text, size_bytes, normalizer, err);
    free(text);
    return r;
}

int
added_tokens_parse(struct added_tokens *added, struct json_span json,
                   const struct text_normalizer *normalizer, struct token_table *table,
                   int64_t limit, struct err *err)
{
    enum json_kind kind = json_span_kind(json);
    int r = kind == JSON_NONE || kind == JSON_NIL
                ? 0
                : json_check_kind(json, JSON_ARRAY, "\"added_tokens\"", err);
    for (int pass = 0; pass < 2 && r == 0; pass++) {
        struct json_walk walk = json_walk(json);
        struct json_span key, value;
        while (r == 0 && json_walk_next(&walk, &key, &value))
            r = parse_one(added, value, pass == 0, normalizer, table, limit, err);
    }
    return r;
}

void
added_tokens_release(struct added_tokens *added)
{
    free(added->token);
    free(added->raw.node);
    free(added->normalized.node);
    *added = (struct added_tokens){0};
}
