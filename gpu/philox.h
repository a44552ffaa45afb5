/* philox: Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as
 * easy as 1, 2, 3" (SC 2011). The same key and counter give the same four words anywhere. One text for the host and for CUDA. Thread:
 * none; a pure function.                                                                  */
#ifndef GPU_PHILOX_H
#define GPU_PHILOX_H

#include <stdint.h>

#ifdef __CUDACC__
#define PHILOX_INLINE __host__ __device__ static inline
#else
#define PHILOX_INLINE static inline
#endif

PHILOX_INLINE void
philox4x32_10(const uint32_t counter[4], const uint32_t key[2], uint32_t ret_words[4])
{
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];

    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xD2511F53u * c0, b = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)b;
        c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)a;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    ret_words[0] = c0;
    ret_words[1] = c1;
    ret_words[2] = c2;
    ret_words[3] = c3;
}

/* A number in [0, 1), a multiple of 2^-53: key = seed, counter = (draw, 0), low words first; the 27
 * high bits of word 0 and the 26 high bits of word 1 make the mantissa. */
PHILOX_INLINE double
philox_uniform(uint64_t seed, uint64_t draw)
{
    uint32_t counter[4] = {(uint32_t)draw, (uint32_t)(draw >> 32), 0, 0};
    uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)}, word[4];

    philox4x32_10(counter, key, word);
    return ((double)(word[0] >> 5) * 67108864.0 + (double)(word[1] >> 6)) / 9007199254740992.0;
}

#endif
