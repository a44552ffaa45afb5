#include "model/numpy_rng.h"

#include "model/ngram_hash.h"

typedef unsigned __int128 u128;

enum { POOL_WORDS = 4, STATE_WORDS = 8 };

static uint32_t
seed_hash(uint32_t value, uint32_t *hash, uint32_t multiplier)
{
    value ^= *hash;
    *hash *= multiplier;
    value *= *hash;
    return value ^ value >> 16;
}

static uint32_t
seed_mix(uint32_t x, uint32_t y)
{
    uint32_t mixed = 0xca01f9ddu * x - 0x4973f715u * y;
    return mixed ^ mixed >> 16;
}

/* A seed below 2^64 is at most two entropy words, fewer than the pool, so there is never entropy
 * left to fold in after the pool is filled. */
void
numpy_rng_seed_state(const uint32_t entropy[4], uint64_t ret_state[4])
{
    uint32_t pool[POOL_WORDS], word[STATE_WORDS], hash = 0x43b0d7e5u;
    for (int i = 0; i < POOL_WORDS; i++)
        pool[i] = seed_hash(entropy[i], &hash, 0x931e8875u);
    for (int from = 0; from < POOL_WORDS; from++) {
        for (int to = 0; to < POOL_WORDS; to++) {
            if (from != to)
                pool[to] = seed_mix(pool[to], seed_hash(pool[from], &hash, 0x931e8875u));
        }
    }
    hash = 0x8b51f9ddu;
    for (int i = 0; i < STATE_WORDS; i++)
        word[i] = seed_hash(pool[i % POOL_WORDS], &hash, 0x58f38dedu);
    for (int i = 0; i < STATE_WORDS / 2; i++)
        ret_state[i] = word[2 * i] | (uint64_t)word[2 * i + 1] << 32;
}

static void
step(struct numpy_rng *rng)
{
    const u128 multiplier = (u128)2549297995355413924u << 64 | 4865540595714422341u;
    rng->state = rng->state * multiplier + rng->increment;
}

void
numpy_rng_init(struct numpy_rng *rng, uint64_t seed)
{
    const uint32_t entropy[4] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint64_t word[4];
    numpy_rng_seed_state(entropy, word);
    *rng = (struct numpy_rng){.increment = ((u128)word[2] << 64 | word[3]) << 1 | 1};
    step(rng);
    rng->state += (u128)word[0] << 64 | word[1];
    step(rng);
}

uint64_t
numpy_rng_next64(struct numpy_rng *rng)
{
    step(rng);
    uint64_t folded = (uint64_t)(rng->state >> 64) ^ (uint64_t)rng->state;
    unsigned turn = (unsigned)(rng->state >> 122);
    return folded >> turn | folded << (-turn & 63);
}

uint32_t
numpy_rng_next32(struct numpy_rng *rng)
{
    if (rng->has_half) {
        rng->has_half = false;
        return rng->half;
    }
    uint64_t wide = numpy_rng_next64(rng);
    rng->has_half = true;
    rng->half = (uint32_t)(wide >> 32);
    return (uint32_t)wide;
}

uint64_t
numpy_rng_bounded(struct numpy_rng *rng, uint64_t bound)
{
    if (bound == 0)
        return numpy_rng_next64(rng);
    if (bound == 1)
        return 0; /* and nothing is drawn */
    if (bound == (uint64_t)1 << 32)
        return numpy_rng_next32(rng);
    if (bound < (uint64_t)1 << 32) {
        uint32_t below = (uint32_t)bound;
        uint64_t product = (uint64_t)numpy_rng_next32(rng) * below;
        if ((uint32_t)product < below) {
            uint32_t threshold = -below % below;
            while ((uint32_t)product < threshold)
                product = (uint64_t)numpy_rng_next32(rng) * below;
        }
        return product >> 32;
    }
    u128 product = (u128)numpy_rng_next64(rng) * bound;
    if ((uint64_t)product < bound) {
        uint64_t threshold = -bound % bound;
        while ((uint64_t)product < threshold)
            product = (u128)numpy_rng_next64(rng) * bound;
    }
    return (uint64_t)(product >> 64);
}

void
numpy_rng_integers(uint64_t seed, uint64_t bound, int n, uint64_t *ret_values)
{
    struct numpy_rng rng;
    numpy_rng_init(&rng, seed);
    for (int i = 0; i < n; i++)
        ret_values[i] = numpy_rng_bounded(&rng, bound);
}
