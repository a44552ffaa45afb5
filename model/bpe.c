/* bpe: see bpe.h. */
#include "model/bpe.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"

enum {
    LONG_BYTES = 64,
    FIRST_IDS = 64,
};
static const uint32_t NO_RANK = UINT32_MAX;

int
token_ids_append(struct token_ids *ids, int32_t id, struct err *err)
{
    if (ids->limit && ids->count >= ids->limit)
        return err_set(err, E2BIG, "the text has more than %zu tokens", ids->limit);
    if (ids->count == ids->capacity) {
        size_t capacity = ids->capacity ? ids->capacity * 2 : FIRST_IDS;
        int32_t *grown = capacity <= SIZE_MAX / 2 / sizeof *grown
                             ? realloc(ids->id, capacity * sizeof *grown)
                             : NULL;
        if (!grown)
            return err_errno(err, ENOMEM, "%zu tokens", capacity);
        ids->id = grown;
        ids->capacity = capacity;
    }
    ids->id[ids->count++] = id;
    return 0;
}

static uint64_t
pair_of(int left, int right)
{
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

static struct bpe_merge *
bpe_slot(const struct bpe *bpe, uint64_t pair)
{
    uint64_t hash = pair * 0x9E3779B97F4A7C15u;
    uint32_t at = (uint32_t)(hash >> 32) & bpe->slot_mask;
    while (bpe->slot[at].pair != pair && bpe->slot[at].pair != UINT64_MAX)
        at = (at + 1) & bpe->slot_mask;
    return &bpe->slot[at];
}

int
bpe_init(struct bpe *bpe, size_t n_merges, struct err *err)
{
    size_t slots = 16;
    if (n_merges > (size_t)1 << 28)
        return err_set(err, EBADMSG, "%zu merges are more than 2^28", n_merges);
    while (slots < n_merges + n_merges / 2)
        slots *= 2;
    bpe->slot = malloc(slots * sizeof *bpe->slot);
    if (!bpe->slot)
        return err_errno(err, ENOMEM, "%zu merges", n_merges);
    memset(bpe->slot, 0xFF, slots * sizeof *bpe->slot);
    bpe->slot_mask = (uint32_t)(slots - 1);
    return 0;
}

void
bpe_add(struct bpe *bpe, int left, int right, int result)
{
    struct bpe_merge *merge = bpe_slot(bpe, pair_of(left, right));
    *merge = (struct bpe_merge){pair_of(left, right), bpe->n_merges++, result};
    ASSERT(bpe->n_merges <= bpe->slot_mask);
}

void
bpe_bytes(struct bpe *bpe, const struct token_table *table)
{
    for (int i = 0; i < 256; i++) {
        char byte = (char)i;
        int id = token_table_find_bytes(table, &byte, 1, false);
        bpe->byte_id[i] = id >= 0 && (table->entry[id].flags & TOKEN_MODEL) ? id : -1;
    }
}

static uint32_t
pair_rank(const struct bpe *bpe, int left, int right, int32_t *ret_result)
{
    const struct bpe_merge *merge = bpe_slot(bpe, pair_of(left, right));
    if (merge->pair == UINT64_MAX)
        return NO_RANK;
    *ret_result = merge->result;
    return merge->rank;
}

static int
bad_byte(uint8_t byte, struct err *err)
{
    return err_set(err, EILSEQ, "the vocabulary has no token for byte 0x%02X", byte);
}

/* Few bytes: arrays on the stack, and the lowest rank is looked for each time. */
static int
encode_short(const struct bpe *bpe, const char *text, size_t size_bytes, struct token_ids *ids,
             struct err *err)
{
    int32_t id[LONG_BYTES], result[LONG_BYTES];
    uint32_t rank[LONG_BYTES];
    size_t n = size_bytes;
    for (size_t i = 0; i < n; i++) {
        id[i] = bpe->byte_id[(uint8_t)text[i]];
        if (id[i] < 0)
            return bad_byte((uint8_t)text[i], err);
        if (i > 0)
            rank[i - 1] = pair_rank(bpe, id[i - 1], id[i], &result[i - 1]);
    }
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i < n - 1; i++) {
            if (rank[i] < rank[best])
                best = i;
        }
        if (rank[best] == NO_RANK)
            break;
        id[best] = result[best];
        n--;
        size_t moved = n - best - 1;
        memmove(id + best + 1, id + best + 2, moved * sizeof *id);
        memmove(rank + best, rank + best + 1, moved * sizeof *rank);
        memmove(result + best, result + best + 1, moved * sizeof *result);
        if (best > 0)
            rank[best - 1] = pair_rank(bpe, id[best - 1], id[best], &result[best - 1]);
        if (best + 1 < n)
            rank[best] = pair_rank(bpe, id[best], id[best + 1], &result[best]);
    }
    for (size_t i = 0; i < n; i++) {
        int r = token_ids_append(ids, id[i], err);
        if (r < 0)
            return r;
    }
    return 0;
}

/* Many bytes: a list of parts, and a heap of candidate pairs. A candidate is out of date when the
 * part it starts at is gone or begins a pair of another rank by now. */
struct long_part {
    int32_t id, result;
    uint32_t previous, next; /* NO_PART: none */
    uint32_t rank;           /* of the pair that begins here */
    bool gone;
};
static const uint32_t NO_PART = UINT32_MAX;

struct long_word {
    struct long_part *part;
    uint64_t *heap; /* rank << 32 | part: the lowest rank first, then the leftmost */
    size_t heap_count;
};

static void
heap_push(struct long_word *word, uint64_t candidate)
{
    size_t at = word->heap_count++;
    while (at > 0 && word->heap[(at - 1) / 2] > candidate) {
        word->heap[at] = word->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    word->heap[at] = candidate;
}

static uint64_t
heap_pop(struct long_word *word)
{
    uint64_t top = word->heap[0], last = word->heap[--word->heap_count];
    size_t at = 0, child;
    while ((child = 2 * at + 1) < word->heap_count) {
        if (child + 1 < word->heap_count && word->heap[child + 1] < word->heap[child])
            child++;
        if (word->heap[child] >= last)
            break;
        word->heap[at] = word->heap[child];
        at = child;
    }
    word->heap[at] = last;
    return top;
}

/* Ranks the pair that begins at part i and makes it a candidate. */
static void
long_candidate(const struct bpe *bpe, struct long_word *word, uint32_t i)
{
    struct long_part *part = &word->part[i];
    part->rank = NO_RANK;
    if (part->next == NO_PART)
        return;
    part->rank = pair_rank(bpe, part->id, word->part[part->next].id, &part->result);
    if (part->rank != NO_RANK)
        heap_push(word, (uint64_t)part->rank << 32 | i);
}

static void
long_merge(const struct bpe *bpe, struct long_word *word)
{
    while (word->heap_count > 0) {
        uint64_t candidate = heap_pop(word);
        uint32_t i = (uint32_t)candidate;
        struct long_part *part = &word->part[i];
        if (part->gone || part->rank != candidate >> 32)
            continue;
        struct long_part *right = &word->part[part->next];
        right->gone = true;
        part->id = part->result;
        part->next = right->next;
        if (part->next != NO_PART)
            word->part[part->next].previous = i;
        if (part->previous != NO_PART)
            long_candidate(bpe, word, part->previous);
        long_candidate(bpe, word, i);
    }
}

static int
encode_long(const struct bpe *bpe, const char *text, size_t size_bytes, struct token_ids *ids,
            struct err *err)
{
    /* One candidate per pair at first, and each merge takes one out and puts two in at most. */
    struct long_word word = {
        .part = calloc(size_bytes, sizeof *word.part),
        .heap = calloc(size_bytes, 2 * sizeof *word.heap),
    };
    int r = 0;
    if (!word.part || !word.heap)
        r = err_errno(err, ENOMEM, "a word of %zu bytes", size_bytes);
    for (size_t i = 0; r == 0 && i < size_bytes; i++) {
        word.part[i] = (struct long_part){
            .id = bpe->byte_id[(uint8_t)text[i]],
            .previous = i > 0 ? (uint32_t)i - 1 : NO_PART,
            .next = i + 1 < size_bytes ? (uint32_t)i + 1 : NO_PART,
        };
        if (word.part[i].id < 0)
            r = bad_byte((uint8_t)text[i], err);
    }
    if (r == 0) {
        for (size_t i = 0; i < size_bytes; i++)
            long_candidate(bpe, &word, (uint32_t)i);
        long_merge(bpe, &word);
        for (uint32_t i = 0; r == 0 && i != NO_PART; i = word.part[i].next)
            r = token_ids_append(ids, word.part[i].id, err);
    }
    free(word.part);
    free(word.heap);
    return r;
}

int
bpe_encode(const struct bpe *bpe, const struct token_table *table, const char *text,
           size_t size_bytes, struct token_ids *ids, struct err *err)
{
    int whole = -1;
    if (size_bytes == 0)
        return 0;
    if (size_bytes <= table->longest_bytes) {
        whole = token_table_find_bytes(table, text, size_bytes, false);
        if (whole >= 0 && !(table->entry[whole].flags & TOKEN_MODEL))
            whole = -1;
    } else if (ids->limit && table->longest_bytes > 0 &&
               size_bytes / table->longest_bytes > ids->limit - ids->count) {
        /* Nothing can make it fit, so do not spend the time: long words are the expensive ones. */
        return err_set(err, E2BIG, "the text has more than %zu tokens", ids->limit);
    }
    if (whole >= 0 &&
        (bpe->ignore_merges || atomic_load_explicit(&table->alone[whole], memory_order_relaxed)))
        return token_ids_append(ids, whole, err);
    size_t before = ids->count;
    int r = size_bytes <= LONG_BYTES ? encode_short(bpe, text, size_bytes, ids, err)
                                     : encode_long(bpe, text, size_bytes, ids, err);
    if (r == 0 && whole >= 0 && ids->count == before + 1 && ids->id[before] == whole)
        atomic_store_explicit(&table->alone[whole], 1, memory_order_relaxed);
    return r;
}

void
bpe_release(struct bpe *bpe)
{
    free(bpe->slot);
    bpe->slot = NULL;
}
