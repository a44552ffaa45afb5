/* tokenizer_json: tokenizer.json to the parts of a tokenizer. See tokenizer.h for what is
 * understood. */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "model/json_check.h"
#include "model/tokenizer_parts.h"

/* A string of the file without its escapes. Room is taken once, for the longest. */
struct unescaped {
    char *text;
    size_t size_bytes, capacity_bytes;
};

static int
unescaped_reserve(struct unescaped *u, size_t wanted, struct err *err)
{
    if (wanted <= u->capacity_bytes)
        return 0;
    char *text = realloc(u->text, wanted + 256);
    if (!text)
        return err_errno(err, ENOMEM, "a string of %zu bytes", wanted);
    u->text = text;
    u->capacity_bytes = wanted + 256;
    return 0;
}

static int
unescape(struct unescaped *u, struct json_span string, struct err *err)
{
    int r = unescaped_reserve(u, string.size_bytes, err);
    if (r == 0)
        u->size_bytes = json_span_string(string, u->text);
    return r;
}

static int
shown(struct json_span span)
{
    return span.size_bytes > 200 ? 200 : (int)span.size_bytes;
}

/* "vocab": { string: id }. */
static int
read_vocab(struct tokenizer *tokenizer, struct json_span vocab, int64_t limit, struct err *err)
{
    int r = json_check_kind(vocab, JSON_OBJECT, "model: \"vocab\"", err);
    struct json_walk walk = json_walk(vocab);
    struct json_span key, value;
    struct unescaped token = {0};
    while (r == 0 && json_walk_next(&walk, &key, &value)) {
        int64_t id;
        if (!json_span_integer(value, &id)) {
            r = err_set(err, EBADMSG, "model: token %.*s has %.*s as its id", shown(key), key.text,
                        shown(value), value.text);
            break;
        }
        r = unescape(&token, key, err);
        if (r < 0)
            break;
        int count = tokenizer->table.count;
        r = token_table_add(&tokenizer->table, id, token.text, token.size_bytes, TOKEN_MODEL, limit,
                            err);
        if (r == 0 && tokenizer->table.count == count)
            r = err_set(err, EBADMSG, "model: token %.*s is there twice", shown(key), key.text);
    }
    free(token.text);
    return r;
}

static size_t
count_elements(struct json_span array)
{
    struct json_walk walk = json_walk(array);
    struct json_span key, value;
    size_t n = 0;
    while (json_walk_next(&walk, &key, &value))
        n++;
    return n;
}

/* The two halves of a merge: "a b" or ["a", "b"]. */
static int
split_merge(struct json_span merge, struct unescaped *first, struct unescaped *second,
            struct err *err)
{
    enum json_kind kind = json_span_kind(merge);
    if (kind == JSON_STRING) {
        int r = unescape(first, merge, err);
        if (r < 0)
            return r;
        char *space = memchr(first->text, ' ', first->size_bytes);
        size_t left = space ? (size_t)(space - first->text) : 0;
        size_t right = space ? first->size_bytes - left - 1 : 0;
        if (!space || memchr(space + 1, ' ', right))
            return err_set(err, EBADMSG, "model: merge %.*s is not two strings", shown(merge),
                           merge.text);
        r = unescaped_reserve(second, right, err);
        if (r < 0)
            return r;
        /* An empty half fails as an unknown token; memcpy wants a pointer even so. */
        if (right == 0)
            return err_set(err, EBADMSG, "model: merge %.*s is not two strings", shown(merge),
                           merge.text);
        memcpy(second->text, space + 1, right);
        second->size_bytes = right;
        first->size_bytes = left;
        return 0;
    }
    struct json_walk walk = json_walk(merge);
    struct json_span key, left, right, more;
    if (kind != JSON_ARRAY || !json_walk_next(&walk, &key, &left) ||
        !json_walk_next(&walk, &key, &right) || json_walk_next(&walk, &key, &more) ||
        json_span_kind(left) != JSON_STRING || json_span_kind(right) != JSON_STRING)
        return err_set(err, EBADMSG, "model: merge %.*s is not two strings", shown(merge),
                       merge.text);
    int r = unescape(first, left, err);
    return r < 0 ? r : unescape(second, right, err);
}

/* A token of the model by its string; -EBADMSG naming the merge that wants it. */
static int
merge_token(const struct tokenizer *tokenizer, const char *text, size_t size_bytes,
            struct json_span merge, struct err *err)
{
    int id = token_table_find(&tokenizer->table, text, size_bytes);
    if (id < 0 || !(tokenizer->table.entry[id].flags & TOKEN_MODEL))
        return err_set(err, EBADMSG, "model: merge %.*s needs the token \"%.*s\"", shown(merge),
                       merge.text, size_bytes > 100 ? 100 : (int)size_bytes, text);
    return id;
}

static int
read_merge(struct tokenizer *tokenizer, struct json_span merge, struct unescaped *first,
           struct unescaped *second, struct err *err)
{
    int r = split_merge(merge, first, second, err);
    if (r < 0)
        return r;
    int left = merge_token(tokenizer, first->text, first->size_bytes, merge, err);
    if (left < 0)
        return left;
    int right = merge_token(tokenizer, second->text, second->size_bytes, merge, err);
    if (right < 0)
        return right;
    size_t joined_bytes = first->size_bytes + second->size_bytes;
    r = unescaped_reserve(first, joined_bytes, err);
    if (r < 0)
        return r;
    memcpy(first->text + first->size_bytes, second->text, second->size_bytes);
    int result = merge_token(tokenizer, first->text, joined_bytes, merge, err);
    if (result < 0)
        return result;
    bpe_add(&tokenizer->bpe, left, right, result);
    return 0;
}

/* "merges": in the order of their rank. */
static int
read_merges(struct tokenizer *tokenizer, struct json_span merges, struct err *err)
{
    int r = json_check_kind(merges, JSON_ARRAY, "model: \"merges\"", err);
    if (r == 0)
        r = bpe_init(&tokenizer->bpe, count_elements(merges), err);
    struct json_walk walk = json_walk(merges);
    struct json_span key, merge;
    struct unescaped first = {0}, second = {0};
    while (r == 0 && json_walk_next(&walk, &key, &merge)) {
        /* The line that heads a merges.txt, carried along by some converters. */
        if (json_span_kind(merge) == JSON_STRING && merge.size_bytes >= 10 &&
            memcmp(merge.text, "\"#version", 9) == 0)
            continue;
        r = read_merge(tokenizer, merge, &first, &second, err);
    }
    free(first.text);
    free(second.text);
    return r;
}

/* The members of "model", in the order of model_names. */
enum {
    MODEL_TYPE,
    MODEL_DROPOUT,
    MODEL_UNK_TOKEN,
    MODEL_PREFIX,
    MODEL_SUFFIX,
    MODEL_FUSE_UNK,
    MODEL_BYTE_FALLBACK,
    MODEL_IGNORE_MERGES,
    MODEL_VOCAB,
    MODEL_MERGES,
    MODEL_MEMBERS,
};
static const char *const model_names[MODEL_MEMBERS + 1] = {
    [MODEL_TYPE] = "type",
    [MODEL_DROPOUT] = "dropout",
    [MODEL_UNK_TOKEN] = "unk_token",
    [MODEL_PREFIX] = "continuing_subword_prefix",
    [MODEL_SUFFIX] = "end_of_word_suffix",
    [MODEL_FUSE_UNK] = "fuse_unk",
    [MODEL_BYTE_FALLBACK] = "byte_fallback",
    [MODEL_IGNORE_MERGES] = "ignore_merges",
    [MODEL_VOCAB] = "vocab",
    [MODEL_MERGES] = "merges",
};

static bool
is_absent(struct json_span span)
{
    return json_span_kind(span) == JSON_NONE || json_span_kind(span) == JSON_NIL;
}

/* Settings of BPE that would change what comes out, and are refused unless they change nothing. */
static int
check_model_settings(const struct json_span *member, struct err *err)
{
    for (int i = MODEL_TYPE; i < MODEL_IGNORE_MERGES; i++) {
        bool on = true;
        if (i == MODEL_TYPE || i == MODEL_UNK_TOKEN || is_absent(member[i]) ||
            (json_span_bool(member[i], &on) && !on) ||
            ((i == MODEL_PREFIX || i == MODEL_SUFFIX) && json_span_is(member[i], "")))
            continue;
        return err_set(err, ENOTSUP, "model: \"%s\": %.*s is not supported", model_names[i],
                       shown(member[i]), member[i].text);
    }
    return 0;
}

/* With a token for every byte nothing is ever unknown, and an unk_token does nothing. */
static int
check_unk_token(const struct tokenizer *tokenizer, struct json_span unk_token, struct err *err)
{
    if (is_absent(unk_token))
        return 0;
    for (int byte = 0; byte < 256; byte++) {
        if (tokenizer->bpe.byte_id[byte] < 0)
            return err_set(err, ENOTSUP,
                           "model: \"unk_token\" is not supported where byte 0x%02X has no token",
                           (unsigned)byte);
    }
    return 0;
}

static int
read_model(struct tokenizer *tokenizer, struct json_span model, int64_t limit, struct err *err)
{
    struct json_span member[MODEL_MEMBERS];
    int r = json_check_kind(model, JSON_OBJECT, "\"model\"", err);
    if (r == 0)
        r = json_check_members(model, "model", model_names, member, err);
    /* Files of the first years leave the type out. */
    if (r == 0 && member[MODEL_TYPE].text && !json_span_is(member[MODEL_TYPE], "BPE"))
        r = json_check_refuse(member[MODEL_TYPE], "model", err);
    if (r == 0)
        r = check_model_settings(member, err);
    if (r == 0 && !is_absent(member[MODEL_IGNORE_MERGES]) &&
        !json_span_bool(member[MODEL_IGNORE_MERGES], &tokenizer->bpe.ignore_merges))
        r = json_check_kind(member[MODEL_IGNORE_MERGES], JSON_BOOL, "model: \"ignore_merges\"",
                            err);
    if (r == 0)
        r = read_vocab(tokenizer, member[MODEL_VOCAB], limit, err);
    if (r == 0)
        r = read_merges(tokenizer, member[MODEL_MERGES], err);
    if (r == 0) {
        bpe_bytes(&tokenizer->bpe, &tokenizer->table);
        r = check_unk_token(tokenizer, member[MODEL_UNK_TOKEN], err);
    }
    return r;
}

static int
read_decoder(struct json_span decoder, int depth, struct err *err)
{
    struct json_span type, key, value;
    int r = json_check_type(decoder, "decoder", &type, err);
    if (r < 0)
        return r;
    if (json_span_is(type, "ByteLevel"))
        return 0;
    if (!json_span_is(type, "Sequence") || depth == 0)
        return json_check_refuse(type, "decoder", err);
    struct json_span members = json_span_member(decoder, "decoders");
    if (count_elements(members) != 1)
        return err_set(err, ENOTSUP, "decoder: a Sequence of other than one is not supported");
    struct json_walk walk = json_walk(members);
    (void)json_walk_next(&walk, &key, &value);
    return read_decoder(value, depth - 1, err);
}

/* The ids of one special token of a template: "special_tokens": { name: { "ids": [...] } }. */
static int
read_template_token(struct tokenizer *tokenizer, struct json_span template, struct json_span name,
                    struct token_ids *ids, struct err *err)
{
    struct json_walk walk = json_walk(json_span_member(template, "special_tokens"));
    struct json_span key, value, found = {0};
    while (json_walk_next(&walk, &key, &value)) {
        if (key.size_bytes == name.size_bytes && memcmp(key.text, name.text, key.size_bytes) == 0)
            found = json_span_member(value, "ids");
    }
    if (json_span_kind(found) != JSON_ARRAY)
        return err_set(err, EBADMSG, "post_processor: special token %.*s has no ids", shown(name),
                       name.text ? name.text : "");
    walk = json_walk(found);
    while (json_walk_next(&walk, &key, &value)) {
        int64_t id;
        if (!json_span_integer(value, &id) || !token_table_has(&tokenizer->table, id))
            return err_set(err, EBADMSG, "post_processor: special token %.*s has the id %.*s",
                           shown(name), name.text, shown(value), value.text);
        int r = token_ids_append(ids, (int32_t)id, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int
read_template(struct tokenizer *tokenizer, struct json_span template, struct err *err)
{
    struct json_span single = json_span_member(template, "single"), key, piece;
    int r = json_check_kind(single, JSON_ARRAY, "post_processor: \"single\"", err);
    struct json_walk walk = json_walk(single);
    bool seen = false;
    while (r == 0 && json_walk_next(&walk, &key, &piece)) {
        struct json_span sequence = json_span_member(piece, "Sequence");
        struct json_span special = json_span_member(piece, "SpecialToken");
        if (json_span_is(json_span_member(sequence, "id"), "A") && !seen)
            seen = true;
        else if (json_span_kind(json_span_member(special, "id")) == JSON_STRING)
            r = read_template_token(tokenizer, template, json_span_member(special, "id"),
                                    seen ? &tokenizer->after : &tokenizer->before, err);
        else
            r = err_set(err, ENOTSUP, "post_processor: %.*s is not supported", shown(piece),
                        piece.text);
    }
    if (r == 0 && !seen)
        r = err_set(err, ENOTSUP, "post_processor: a template without the text is not supported");
    return r;
}

static int
read_post_processor(struct tokenizer *tokenizer, struct json_span post, int depth, struct err *err)
{
    struct json_span type, key, value;
    if (is_absent(post))
        return 0;
    int r = json_check_type(post, "post_processor", &type, err);
    if (r < 0)
        return r;
    if (json_span_is(type, "ByteLevel"))
        return 0; /* moves offsets, which nobody asks for here */
    if (json_span_is(type, "TemplateProcessing")) {
        if (tokenizer->before.count || tokenizer->after.count)
            return err_set(err, ENOTSUP, "post_processor: two templates are not supported");
        return read_template(tokenizer, post, err);
    }
    if (!json_span_is(type, "Sequence") || depth == 0)
        return json_check_refuse(type, "post_processor", err);
    struct json_span members = json_span_member(post, "processors");
    r = json_check_kind(members, JSON_ARRAY, "post_processor: \"processors\"", err);
    struct json_walk walk = json_walk(members);
    while (r == 0 && json_walk_next(&walk, &key, &value))
        r = read_post_processor(tokenizer, value, depth - 1, err);
    return r;
}

int
tokenizer_json_read(struct tokenizer *tokenizer, const char *json, size_t size_bytes, int vocab,
                    struct err *err)
{
    enum { VERSION, TRUNCATION, PADDING, ADDED, NORMALIZER, PRE, POST, DECODER, MODEL, MEMBERS };
    static const char *const names[MEMBERS + 1] = {
        "version",       "truncation",     "padding", "added_tokens", "normalizer",
        "pre_tokenizer", "post_processor", "decoder", "model",        NULL};
    struct json_span root, member[MEMBERS];
    int r = json_span_open(&root, json, size_bytes, err);
    if (r == 0)
        r = json_check_kind(root, JSON_OBJECT, "the file", err);
    if (r == 0)
        r = json_check_members(root, "the file", names, member, err);
    if (r == 0 && member[VERSION].text && !json_span_is(member[VERSION], "1.0"))
        r = err_set(err, ENOTSUP, "version %.*s is not supported", shown(member[VERSION]),
                    member[VERSION].text);
    if (r == 0)
        r = text_normalizer_parse(&tokenizer->normalizer, member[NORMALIZER], err);
    if (r == 0)
        r = pretokenizer_parse(&tokenizer->pretokenizer, member[PRE], err);
    if (r == 0)
        r = read_decoder(member[DECODER], 4, err);
    if (r == 0)
        r = read_model(tokenizer, member[MODEL], vocab, err);
    if (r == 0)
        r = added_tokens_parse(&tokenizer->added, member[ADDED], &tokenizer->normalizer,
                               &tokenizer->table, vocab, err);
    if (r == 0)
        r = read_post_processor(tokenizer, member[POST], 4, err);
    return r < 0 ? r : token_table_freeze(&tokenizer->table, err);
}
