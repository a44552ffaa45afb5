/* compressed_ids: see compressed_ids.h. */
#include "model/compressed_ids.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/buf.h"
#include "base/utf8_scan.h"
#include "model/byte_alphabet.h"
#include "model/tokenizer_parts.h"
#include "model/unicode9.h"

static bool
is_blank(int32_t cp)
{
    return cp == ' ' || cp == '\t' || cp == '\r' || cp == '\n';
}

/* N of the specification on code points that are NFKC already; out gets its UTF-8.
 * nfd is scratch. */
static int
fold(const char *nfkc, size_t size_bytes, struct code_points *nfd, struct buf *out)
{
    if (text_form_apply(TEXT_NFD, nfkc, size_bytes, nfd) < 0)
        return -ENOMEM;
    size_t count = 0;
    for (size_t i = 0; i < nfd->count; i++) {
        int32_t cp = nfd->cp[i];
        if (unicode9_is_mark(cp))
            continue;
        /* Only U+0130 has a lower case of more than one character, and NFD has taken it apart. */
        cp = utf8proc_tolower(cp);
        if (is_blank(cp)) {
            if (count > 0 && nfd->cp[count - 1] == ' ')
                continue;
            cp = ' ';
        }
        nfd->cp[count++] = cp;
    }
    size_t start = 0, end = count;
    if (!(count == 1 && nfd->cp[0] == ' ')) {
        while (start < end && utf8_is_white_space((uint32_t)nfd->cp[start]))
            start++;
        while (start < end && utf8_is_white_space((uint32_t)nfd->cp[end - 1]))
            end--;
    }
    for (size_t i = start; i < end; i++) {
        char put[4];
        buf_append(out, put, (size_t)utf8_put((uint32_t)nfd->cp[i], put));
    }
    return out->failed ? -ENOMEM : 0;
}

/* The key of one id's text. scratch is for the code points. */
static int
token_key(const struct token_table *table, int id, struct code_points *scratch, struct buf *nfkc,
          struct buf *out)
{
    static const char replacement[] = UTF8_REPLACEMENT;
    size_t size_bytes;
    const char *bytes = token_table_bytes(table, id, &size_bytes);
    buf_reset(out);
    if (!bytes)
        return 0; /* a hole decodes to nothing */
    if (!utf8_valid(bytes, size_bytes) || memmem(bytes, size_bytes, replacement, 3)) {
        /* A fragment: the string of the vocabulary, which is the bytes themselves for raw tokens.
         */
        if (table->entry[id].flags & TOKEN_RAW) {
            buf_append(out, bytes, size_bytes);
            return out->failed ? -ENOMEM : 0;
        }
        for (size_t i = 0; i < size_bytes; i++) {
            char put[2];
            buf_append(out, put, byte_alphabet_encode(bytes + i, 1, put));
        }
        return out->failed ? -ENOMEM : 0;
    }
    if (text_form_apply(TEXT_NFKC, bytes, size_bytes, scratch) < 0)
        return -ENOMEM;
    buf_reset(nfkc);
    for (size_t i = 0; i < scratch->count; i++) {
        char put[4];
        buf_append(nfkc, put, (size_t)utf8_put((uint32_t)scratch->cp[i], put));
    }
    if (nfkc->failed || fold(nfkc->data, nfkc->size_bytes, scratch, out) < 0)
        return -ENOMEM;
    if (out->size_bytes == 0)
        buf_append(out, bytes, size_bytes);
    return out->failed ? -ENOMEM : 0;
}

/* The keys seen so far: one pool, an open-addressed table of compressed ids. */
struct key_set {
    struct buf pool;
    size_t *end;   /* [count] where key i ends in pool */
    int32_t *slot; /* -1: free */
    size_t slot_mask;
    int32_t count;
};

static int
key_set_init(struct key_set *set, int tokens)
{
    size_t slots = 16;
    while (slots < (size_t)tokens * 2)
        slots *= 2;
    set->slot = malloc(slots * sizeof *set->slot);
    set->end = malloc(((size_t)tokens + 1) * sizeof *set->end);
    if (!set->slot || !set->end)
        return -ENOMEM;
    memset(set->slot, 0xFF, slots * sizeof *set->slot);
    set->slot_mask = slots - 1;
    return 0;
}

static void
key_set_release(struct key_set *set)
{
    buf_free(&set->pool);
    free(set->end);
    free(set->slot);
}

/* FNV-1a, folded. */
static size_t
key_hash(const char *key, size_t size_bytes)
{
    uint64_t hash = 0xCBF29CE484222325u;
    for (size_t i = 0; i < size_bytes; i++)
        hash = (hash ^ (uint8_t)key[i]) * 0x100000001B3u;
    return (size_t)(hash ^ hash >> 29);
}

/* The compressed id of a key, dealt when it is new. -ENOMEM. */
static int32_t
key_set_id(struct key_set *set, const char *key, size_t size_bytes)
{
    size_t at = key_hash(key, size_bytes) & set->slot_mask;
    for (; set->slot[at] >= 0; at = (at + 1) & set->slot_mask) {
        int32_t id = set->slot[at];
        size_t start = id ? set->end[id - 1] : 0;
        if (set->end[id] - start == size_bytes &&
            (size_bytes == 0 || memcmp(set->pool.data + start, key, size_bytes) == 0))
            return id;
    }
    buf_append(&set->pool, key, size_bytes);
    if (set->pool.failed)
        return -ENOMEM;
    set->end[set->count] = set->pool.size_bytes;
    set->slot[at] = set->count;
    return set->count++;
}

int
compressed_ids_build(const struct tokenizer *tokenizer, int vocab, int pad_id, int32_t *map,
                     int *ret_count, struct err *err)
{
    const struct token_table *table = &tokenizer->table;
    struct key_set set = {0};
    struct code_points scratch = {0};
    struct buf nfkc = {0}, key = {0};
    int known = table->size < vocab ? table->size : vocab;
    int r = key_set_init(&set, known);
    for (int id = 0; r == 0 && id < known; id++) {
        r = token_key(table, id, &scratch, &nfkc, &key);
        if (r == 0)
            map[id] = key_set_id(&set, key.data, key.size_bytes);
        if (r == 0 && map[id] < 0)
            r = map[id];
    }
    for (int id = known; r == 0 && id < vocab; id++)
        map[id] = pad_id;
    *ret_count = set.count;
    key_set_release(&set);
    free(scratch.cp);
    buf_free(&nfkc);
    buf_free(&key);
    if (r < 0)
        return err_errno(err, ENOMEM, "compressed ids of %d tokens", vocab);
    if (pad_id < 0 || pad_id >= *ret_count)
        return err_set(err, EINVAL, "pad id %d is none of the %d compressed ids", pad_id,
                       *ret_count);
    return 0;
}
