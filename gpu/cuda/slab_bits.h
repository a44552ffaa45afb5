/* slab_bits: which granules of a slab of memory are taken. One bit per granule, first fit; kept apart from
 * the memory, which may be pinned or on the device. Thread: the caller's lock. */
#ifndef GPU_CUDA_SLAB_BITS_H
#define GPU_CUDA_SLAB_BITS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

struct slab_bits {
    uint64_t *word; /* [(n_granules + 63) / 64]; 1: taken */
    uint32_t n_granules, n_free;
    uint32_t first_free; /* every granule below is taken */
    uint32_t longest;    /* no run of free granules is longer: a bound, so that a full slab is passed over */
};

static inline bool
slab_bits_init(struct slab_bits *bits, uint32_t n_granules)
{
    bits->word = (uint64_t *)calloc((n_granules + 63) / 64, sizeof *bits->word);
    bits->n_granules = bits->n_free = bits->longest = n_granules;
    bits->first_free = 0;
    return bits->word != NULL;
}

/* The first granule from `at` on that is taken (or free); `end` when none before it is. */
static inline uint32_t
slab_bits_next(const struct slab_bits *bits, uint32_t at, uint32_t end, bool taken)
{
    while (at < end) {
        uint64_t word = taken ? bits->word[at / 64] : ~bits->word[at / 64];

        word >>= at % 64;
        if (word) {
            uint32_t found = at + (uint32_t)__builtin_ctzll(word);
            return found < end ? found : end;
        }
        at = (at / 64 + 1) * 64;
    }
    return end;
}

static inline void
slab_bits_set(struct slab_bits *bits, uint32_t first, uint32_t n, bool taken)
{
    while (n > 0) {
        uint32_t shift = first % 64, here = 64 - shift < n ? 64 - shift : n;
        uint64_t mask = (here == 64 ? ~0ull : (1ull << here) - 1) << shift;

        if (taken)
            bits->word[first / 64] |= mask;
        else
            bits->word[first / 64] &= ~mask;
        first += here;
        n -= here;
    }
}

/* First of n granules in a row, which are now taken; -1: there are none. n > 0. */
static inline int64_t
slab_bits_take(struct slab_bits *bits, uint32_t n)
{
    if (n > bits->longest || n > bits->n_free)
        return -1;
    uint32_t at = slab_bits_next(bits, bits->first_free, bits->n_granules, false);

    bits->first_free = at;
    while (n <= bits->n_granules - at) {
        uint32_t end = slab_bits_next(bits, at, at + n, true);

        if (end == at + n) {
            slab_bits_set(bits, at, n, true);
            bits->n_free -= n;
            if (at == bits->first_free)
                bits->first_free = end;
            return at;
        }
        at = slab_bits_next(bits, end, bits->n_granules, false);
    }
    bits->longest = n - 1;
    return -1;
}

/* false: not all of them were taken, which is a bug of the caller's. */
static inline bool
slab_bits_give(struct slab_bits *bits, uint32_t first, uint32_t n)
{
    if (n > bits->n_granules || first > bits->n_granules - n ||
        slab_bits_next(bits, first, first + n, false) != first + n)
        return false;
    slab_bits_set(bits, first, n, false);
    bits->n_free += n;
    if (first < bits->first_free)
        bits->first_free = first;
    bits->longest = bits->n_free;
    return true;
}

#endif
