/* numpy_rng: numpy's default_rng, bit for bit, as far as Engram checkpoints need it.
 *
 * SeedSequence(seed) -> PCG64 (XSL-RR 128/64) -> Generator.integers with Lemire's bounded draw.
 * Sources: O'Neill, "PCG: A Family of Simple Fast Space-Efficient Statistically Good Algorithms for
 * Random Number Generation" (2014); O'Neill's seed_seq_fe as documented by numpy's SeedSequence;
 * Lemire, "Fast Random Integer Generation in an Interval" (arXiv 1805.10941). Thread: none, plain
 * values.    */
#ifndef MODEL_NUMPY_RNG_H
#define MODEL_NUMPY_RNG_H

#include <stdbool.h>
#include <stdint.h>

struct numpy_rng {
    unsigned __int128 state, increment;
    bool has_half; /* the upper half of a 64-bit output waits to be the next 32-bit one */
    uint32_t half;
};

/* SeedSequence(entropy).generate_state(4, uint64): words of 32 bits, low first, the missing ones 0.
 */
void numpy_rng_seed_state(const uint32_t entropy[4], uint64_t ret_state[4]);

/* numpy.random.default_rng(seed) */
void numpy_rng_init(struct numpy_rng *rng, uint64_t seed);
uint64_t numpy_rng_next64(struct numpy_rng *rng);
uint32_t numpy_rng_next32(struct numpy_rng *rng);

/* One integer in [0, bound), as Generator.integers(0, bound) draws it; bound 0 stands for 2^64.
 * Bounds up to 2^32 are drawn from 32-bit outputs, larger ones from 64-bit outputs, as numpy does.
 */
uint64_t numpy_rng_bounded(struct numpy_rng *rng, uint64_t bound);

#endif
