/* token_table: see token_table.h. */
#include "model/token_table.h"

#include <stdlib.h>
#include <string.h>

#include "model/byte_alphabet.h"

enum { FIRST_SLOTS = 256, FIRST_ENTRIES = 256, FIRST_POOL_BYTES = 4096 };

/* Multiply and fold, eight bytes at a time: the table is fixed once loaded, so a client cannot
 * choose what collides in it. */
static uint64_t
bytes_hash(const char *bytes, size_t size_bytes, bool raw)
{
    uint64_t hash = 0x9E3779B97F4A7C15u ^ (size_bytes << 1 | raw);
    while (size_bytes > 0) {
        uint64_t word = 0;
        size_t n = size_bytes < sizeof word ? size_bytes : sizeof word;
        memcpy(&word, bytes, n);
        unsigned __int128 product = (unsigned __int128)(hash ^ word) * 0xD6E8FEB86659FD93u;
        hash = (uint64_t)product ^ (uint64_t)(product >> 64) ^ word << 29;
        bytes += n;
        size_bytes -= n;
    }
    hash *= 0x9E3779B97F4A7C15u;
    return hash ^ hash >> 32;
}

bool
token_table_has(const struct token_table *table, int64_t id)
{
    return id >= 0 && id < table->size && (table->entry[id].flags & TOKEN_PRESENT);
}

const char *
token_table_bytes(const struct token_table *table, int id, size_t *ret_size_bytes)
{
    *ret_size_bytes = 0;
    if (!token_table_has(table, id))
        return NULL;
    *ret_size_bytes = table->entry[id].size_bytes;
    return table->pool + table->entry[id].offset;
}

/* The slot that holds these bytes, or the free one where they belong. */
static struct token_slot *
table_slot(const struct token_table *table, const char *bytes, size_t size_bytes, bool raw,
           uint64_t hash)
{
    uint32_t at = (uint32_t)hash & table->slot_mask, tag = (uint32_t)(hash >> 32);
    for (; table->slot[at].id >= 0; at = (at + 1) & table->slot_mask) {
        if (table->slot[at].tag != tag)
            continue;
        const struct token_entry *entry = &table->entry[table->slot[at].id];
        if (entry->size_bytes == size_bytes && !!(entry->flags & TOKEN_RAW) == raw &&
            memcmp(table->pool + entry->offset, bytes, size_bytes) == 0)
            break;
    }
    return &table->slot[at];
}

int
token_table_find_bytes(const struct token_table *table, const char *bytes, size_t size_bytes,
                       bool raw)
{
    if (!table->slot || size_bytes > TOKEN_MAX_BYTES)
        return -1;
    return table_slot(table, bytes, size_bytes, raw, bytes_hash(bytes, size_bytes, raw))->id;
}

/* room: size_bytes. */
static int
find_within(const struct token_table *table, const char *text, size_t size_bytes, char *room)
{
    int64_t n = byte_alphabet_decode(text, size_bytes, room);
    return n >= 0 ? token_table_find_bytes(table, room, (size_t)n, false)
                  : token_table_find_bytes(table, text, size_bytes, true);
}

/* Rare, and not worth an allocation that could fail: "no such token" would be a lie then. */
static __attribute__((noinline)) int
find_long(const struct token_table *table, const char *text, size_t size_bytes)
{
    char room[TOKEN_MAX_BYTES];
    return find_within(table, text, size_bytes, room);
}

int
token_table_find(const struct token_table *table, const char *text, size_t size_bytes)
{
    char room[512];
    if (size_bytes > TOKEN_MAX_BYTES)
        return -1;
    return size_bytes > sizeof room ? find_long(table, text, size_bytes)
                                    : find_within(table, text, size_bytes, room);
}

static int
table_grow_slots(struct token_table *table)
{
    uint32_t slots = table->slot ? (table->slot_mask + 1) * 2 : FIRST_SLOTS;
    struct token_slot *slot = malloc(slots * sizeof *slot);
    if (!slot)
        return -ENOMEM;
    memset(slot, 0xFF, slots * sizeof *slot);
    free(table->slot);
    table->slot = slot;
    table->slot_mask = slots - 1;
    for (int id = 0; id < table->size; id++) {
        size_t size_bytes;
        const char *bytes = token_table_bytes(table, id, &size_bytes);
        if (bytes) {
            bool raw = table->entry[id].flags & TOKEN_RAW;
            uint64_t hash = bytes_hash(bytes, size_bytes, raw);
            *table_slot(table, bytes, size_bytes, raw, hash) =
                (struct token_slot){id, (uint32_t)(hash >> 32)};
        }
    }
    return 0;
}

static int
table_grow_entries(struct token_table *table, int wanted)
{
    int capacity = table->capacity ? table->capacity : FIRST_ENTRIES;
    while (capacity < wanted)
        capacity *= 2;
    struct token_entry *entry = realloc(table->entry, (size_t)capacity * sizeof *entry);
    if (!entry)
        return -ENOMEM;
    memset(entry + table->capacity, 0, (size_t)(capacity - table->capacity) * sizeof *entry);
    table->entry = entry;
    table->capacity = capacity;
    return 0;
}

static int
table_grow_pool(struct token_table *table, size_t wanted)
{
    size_t capacity = table->pool_capacity_bytes ? table->pool_capacity_bytes : FIRST_POOL_BYTES;
    while (capacity < wanted)
        capacity *= 2;
    char *pool = realloc(table->pool, capacity);
    if (!pool)
        return -ENOMEM;
    table->pool = pool;
    table->pool_capacity_bytes = capacity;
    return 0;
}

/* Room for one more token of size_bytes under id. */
static int
table_reserve(struct token_table *table, int64_t id, size_t size_bytes)
{
    int r = 0;
    if (id >= table->capacity)
        r = table_grow_entries(table, (int)id + 1);
    if (r == 0 && table->pool_bytes + size_bytes > table->pool_capacity_bytes)
        r = table_grow_pool(table, table->pool_bytes + size_bytes);
    /* Half full at most: most look-ups are of text that is no token. */
    if (r == 0 && (!table->slot || ((uint32_t)table->count + 1) * 2 > table->slot_mask + 1))
        r = table_grow_slots(table);
    return r;
}

int
token_table_add(struct token_table *table, int64_t id, const char *text, size_t size_bytes,
                enum token_flag flags, int64_t limit, struct err *err)
{
    int shown = size_bytes > 200 ? 200 : (int)size_bytes;
    if (size_bytes == 0)
        return err_set(err, EBADMSG, "token %lld is the empty string", (long long)id);
    if (size_bytes > TOKEN_MAX_BYTES)
        return err_set(err, EBADMSG, "token %lld has %zu bytes, more than %d", (long long)id,
                       size_bytes, TOKEN_MAX_BYTES);
    if (id < 0 || id >= limit)
        return err_set(err, EBADMSG, "token \"%.*s\" has id %lld, outside the vocabulary of %lld",
                       shown, text, (long long)id, (long long)limit);
    if (id > TOKEN_MAX_ID)
        return err_set(err, EBADMSG, "token \"%.*s\" has id %lld, more than %d", shown, text,
                       (long long)id, TOKEN_MAX_ID);
    int r = table_reserve(table, id, size_bytes);
    if (r < 0)
        return err_errno(err, ENOMEM, "token %lld", (long long)id);
    char *bytes = table->pool + table->pool_bytes;
    int64_t n = byte_alphabet_decode(text, size_bytes, bytes);
    bool raw = n < 0;
    if (raw) {
        memcpy(bytes, text, size_bytes);
        n = (int64_t)size_bytes;
    }
    uint64_t hash = bytes_hash(bytes, (size_t)n, raw);
    struct token_slot *slot = table_slot(table, bytes, (size_t)n, raw, hash);
    if (slot->id >= 0 && slot->id != id)
        return err_set(err, EBADMSG, "token \"%.*s\" has two ids, %d and %lld", shown, text,
                       slot->id, (long long)id);
    struct token_entry *entry = &table->entry[id];
    if (slot->id < 0) {
        if (entry->flags & TOKEN_PRESENT)
            return err_set(err, EBADMSG, "id %lld has two tokens, \"%.*s\" is the second",
                           (long long)id, shown, text);
        *entry = (struct token_entry){(uint32_t)table->pool_bytes, (uint16_t)n, TOKEN_PRESENT};
        if (raw)
            entry->flags |= TOKEN_RAW;
        *slot = (struct token_slot){(int32_t)id, (uint32_t)(hash >> 32)};
        table->pool_bytes += (size_t)n;
        table->count++;
        if (id >= table->size)
            table->size = (int)id + 1;
    }
    entry->flags |= (uint8_t)flags;
    if ((flags & TOKEN_MODEL) && !raw && (size_t)n > table->longest_bytes)
        table->longest_bytes = (size_t)n;
    return 0;
}

int
token_table_freeze(struct token_table *table, struct err *err)
{
    /* calloc: no mark is set. At least one element, so that NULL always means no memory. */
    table->alone = calloc((size_t)table->size + 1, sizeof *table->alone);
    if (!table->alone)
        return err_errno(err, ENOMEM, "%d tokens", table->size);
    if (table->size > 0 && table->size < table->capacity) {
        void *entry = realloc(table->entry, (size_t)table->size * sizeof *table->entry);
        if (entry)
            table->entry = entry;
        table->capacity = table->size;
    }
    void *pool = table->pool_bytes ? realloc(table->pool, table->pool_bytes) : NULL;
    if (pool) {
        table->pool = pool;
        table->pool_capacity_bytes = table->pool_bytes;
    }
    return 0;
}

void
token_table_release(struct token_table *table)
{
    free(table->entry);
    free(table->pool);
    free(table->slot);
    free((void *)table->alone);
    *table = (struct token_table){0};
}
