/* token_table: the strings of a vocabulary by id, and the way back.
 *
 * A token is kept as the bytes it decodes to. When every character of its string is in the byte
 * alphabet those are the bytes the characters stand for, else (TOKEN_RAW) the string's own UTF-8:
 * the ByteLevel decoder's rule, for added tokens too. So a string is found again by its bytes and
 * that flag.
 *
 * T1  no two ids have the same string, and no id has two.
 * T2  after token_table_freeze nothing changes but the `alone` marks, which are only ever set.
 *
 * Thread: built by one, then read by any number. */
#ifndef MODEL_TOKEN_TABLE_H
#define MODEL_TOKEN_TABLE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

enum {
    TOKEN_MAX_BYTES = 65535,
    TOKEN_MAX_ID = (1 << 24) - 1, /* bounds what a lying id can make us allocate */
};

enum token_flag {
    TOKEN_PRESENT = 1,
    TOKEN_RAW = 2,   /* a character outside the byte alphabet: the bytes are the string itself */
    TOKEN_MODEL = 4, /* in the BPE model's vocabulary, so BPE may give it out */
    TOKEN_SPECIAL = 8,
};

struct token_entry {
    uint32_t offset; /* in pool */
    uint16_t size_bytes;
    uint8_t flags;
};

/* A slot tells most strings apart by itself: the bytes lie two cache misses further. */
struct token_slot {
    int32_t id; /* -1: free */
    uint32_t tag;
};

struct token_table {
    struct token_entry *entry; /* [size], by id */
    int size;                  /* highest id + 1 */
    int count;                 /* ids that are present */
    int capacity;
    char *pool;
    size_t pool_bytes, pool_capacity_bytes;
    size_t longest_bytes;    /* of the tokens BPE may give out */
    struct token_slot *slot; /* open addressing */
    uint32_t slot_mask;
    /* [size] 1: BPE of this token's bytes is this token alone, so the merges need not be run again.
     * Relaxed: a mark says what any thread would find out by itself. Pairs with itself. */
    _Atomic uint8_t *alone;
};

/* Adds a string (well-formed UTF-8) as id. A string that is there already under that id gains the
 * flags. limit: one more than the highest id allowed. -EBADMSG: an id out of range or taken by
 * another string, a string that has another id (T1), one that is empty or too long; -ENOMEM. */
int token_table_add(struct token_table *table, int64_t id, const char *text, size_t size_bytes,
                    enum token_flag flags, int64_t limit, struct err *err);
/* Gives back what growing left over. 0 or -ENOMEM. */
int token_table_freeze(struct token_table *table, struct err *err);
/* The id of these bytes among tokens with (raw) or without TOKEN_RAW; -1. */
int token_table_find_bytes(const struct token_table *table, const char *bytes, size_t size_bytes,
                           bool raw);
/* The id of a vocabulary string (byte-alphabet form or the text of an added token); -1. */
int token_table_find(const struct token_table *table, const char *text, size_t size_bytes);
bool token_table_has(const struct token_table *table, int64_t id);
const char *token_table_bytes(const struct token_table *table, int id, size_t *ret_size_bytes);
void token_table_release(struct token_table *table);

#endif
