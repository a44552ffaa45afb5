/* bpe: byte-pair encoding of one pre-token, in the exact order of the tokenizers library.
 *
 * Of all neighbouring pairs the one with the lowest rank is merged, the leftmost of equals, until
 * no pair has a rank. Short pre-tokens scan for it, long ones (LONG_BYTES) keep a heap: n log n,
 * whatever the text. Thread: bpe_encode may run on many threads at once. */
#ifndef MODEL_BPE_H
#define MODEL_BPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "model/token_table.h"

struct bpe_merge {
    uint64_t pair; /* left << 32 | right; UINT64_MAX: a free slot */
    uint32_t rank;
    int32_t result;
};

struct bpe {
    struct bpe_merge *slot; /* open addressing */
    uint32_t slot_mask;
    uint32_t n_merges;
    int32_t byte_id[256]; /* -1: no token for that byte */
    bool ignore_merges;   /* a pre-token that is a token needs no merges to be one */
};

/* Token ids that grow at the end. limit 0: none. */
struct token_ids {
    int32_t *id;
    size_t count, capacity, limit;
};

/* 0; -ENOMEM; -E2BIG past the limit. */
int token_ids_append(struct token_ids *ids, int32_t id, struct err *err);

/* Room for n_merges. 0 or -ENOMEM. */
int bpe_init(struct bpe *bpe, size_t n_merges, struct err *err);
/* Merges are added in the order of their rank; a pair given twice keeps the later rank, as in the
 * library. No more of them than bpe_init was told. */
void bpe_add(struct bpe *bpe, int left, int right, int result);
/* Looks up the single bytes; call when the table is complete. */
void bpe_bytes(struct bpe *bpe, const struct token_table *table);
/* Appends the tokens of one pre-token. -E2BIG past ids->limit; -EILSEQ: a byte the vocabulary has
 * no token for (the library would drop it without a word); -ENOMEM. */
int bpe_encode(const struct bpe *bpe, const struct token_table *table, const char *text,
               size_t size_bytes, struct token_ids *ids, struct err *err);
void bpe_release(struct bpe *bpe);

#endif
