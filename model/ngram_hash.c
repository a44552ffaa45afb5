#include "model/ngram_hash.h"

#include <stdbool.h>
#include <string.h>

#include "base/check.h"
#include "model/prime.h"

/* The set of primes already dealt, kept sorted: a search passes over all dealt before it. */
struct dealt {
    int n;
    uint64_t prime[SHAPE_MAX_ENGRAM_LAYERS * SHAPE_MAX_ORDERS * SHAPE_MAX_HEADS_PER_NGRAM];
};

/* Takes `prime` into the set; false when it was there. */
static bool
deal(struct dealt *dealt, uint64_t prime)
{
    int low = 0, high = dealt->n;
    while (low < high) {
        int middle = (low + high) / 2;
        if (dealt->prime[middle] < prime)
            low = middle + 1;
        else
            high = middle;
    }
    if (low < dealt->n && dealt->prime[low] == prime)
        return false;
    memmove(dealt->prime + low + 1, dealt->prime + low,
            (size_t)(dealt->n - low) * sizeof dealt->prime[0]);
    dealt->prime[low] = prime;
    dealt->n++;
    return true;
}

/* One column's prime: the least above *current that nobody has. 0 when there is none. */
static uint64_t
deal_after(struct dealt *dealt, uint64_t current)
{
    do
        current = prime_after(current);
    while (current != 0 && !deal(dealt, current));
    return current;
}

static int
derive_rows(struct engram_table_shape *table, const struct engram_shape *engram,
            const int64_t *size_per_order, struct dealt *dealt, struct err *err)
{
    int64_t rows = 0;
    for (int order = 2; order <= engram->max_order; order++) {
        uint64_t current = (uint64_t)size_per_order[order - 2] - 1;
        for (int head = 0; head < engram->heads; head++) {
            current = deal_after(dealt, current);
            if (current == 0 || __builtin_add_overflow(rows, (int64_t)current, &rows))
                return err_set(err, EINVAL, "engram: no prime of 63 bits for layer %d, order %d",
                               table->layer, order);
            table->prime[order - 2][head] = (int64_t)current;
            table->row_base[order - 2][head] = rows - (int64_t)current;
        }
    }
    table->rows = rows;
    return 0;
}

/* half = max(1, ((2^63 - 1) // V_c) // 2); m = 2 r + 1 with r in [0, half). An id times m stays
 * below 2^63, since m < 2 half <= (2^63 - 1) / V_c. The max never bites: V_c is an int. */
static int
derive_multipliers(struct engram_table_shape *table, const struct engram_shape *engram,
                   uint64_t seed, struct err *err)
{
    uint64_t draw[SHAPE_MAX_ORDER], layer_seed;
    uint64_t half = (uint64_t)INT64_MAX / (uint64_t)engram->compressed_vocab / 2;
    ASSERT(half > 0);
    if (__builtin_add_overflow(seed, (uint64_t)10007 * (uint64_t)table->layer, &layer_seed))
        return err_set(err, EINVAL, "engram.seed %llu is too large", (unsigned long long)seed);
    numpy_rng_integers(layer_seed, half, engram->max_order, draw);
    for (int i = 0; i < engram->max_order; i++)
        table->multiplier[i] = (int64_t)(2 * draw[i] + 1);
    return 0;
}

int
ngram_hash_derive(struct engram_shape *engram, uint64_t seed, const int64_t *size_per_order,
                  struct err *err)
{
    if (engram->n_layers < 0 || engram->n_layers > SHAPE_MAX_ENGRAM_LAYERS)
        return err_set(err, EINVAL, "engram: %d layers, of at most %d", engram->n_layers,
                       SHAPE_MAX_ENGRAM_LAYERS);
    if (engram->max_order < 2 || engram->max_order > SHAPE_MAX_ORDER)
        return err_set(err, EINVAL, "engram.max_ngram_size %d is not in 2..%d", engram->max_order,
                       SHAPE_MAX_ORDER);
    if (engram->heads < 1 || engram->heads > SHAPE_MAX_HEADS_PER_NGRAM)
        return err_set(err, EINVAL, "engram.heads_per_ngram %d is not in 1..%d", engram->heads,
                       SHAPE_MAX_HEADS_PER_NGRAM);
    if (engram->compressed_vocab < 1)
        return err_set(err, EINVAL, "engram.compressed_vocab_size %d is not positive",
                       engram->compressed_vocab);
    for (int i = 0; i < engram->max_order - 1; i++) {
        if (size_per_order[i] < 1)
            return err_set(err, EINVAL, "engram.vocab_size_per_ngram[%d] is not positive", i);
    }

    /* A local copy: `engram` is untouched on failure. */
    struct engram_table_shape table[SHAPE_MAX_ENGRAM_LAYERS];
    struct dealt dealt;
    dealt.n = 0;
    for (int i = 0; i < engram->n_layers; i++) {
        table[i] = (struct engram_table_shape){.layer = engram->table[i].layer};
        if (table[i].layer < 0)
            return err_set(err, EINVAL, "engram.layer_ids[%d] is negative", i);
        int r = derive_rows(&table[i], engram, size_per_order, &dealt, err);
        if (r >= 0)
            r = derive_multipliers(&table[i], engram, seed, err);
        if (r < 0)
            return r;
    }
    memcpy(engram->table, table, (size_t)engram->n_layers * sizeof table[0]);
    return 0;
}

void
ngram_hash_mix(const struct engram_shape *engram, int table, const int32_t *ids, uint64_t *ret_mix)
{
    const int64_t *multiplier = engram->table[table].multiplier;
    uint64_t mix = (uint64_t)ids[0] * (uint64_t)multiplier[0];
    for (int k = 1; k < engram->max_order; k++) {
        mix ^= (uint64_t)ids[k] * (uint64_t)multiplier[k];
        ret_mix[k - 1] = mix;
    }
}
