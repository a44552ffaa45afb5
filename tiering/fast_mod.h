/* fast_mod: n mod d for a d known beforehand, exact for all 64-bit n, without a division.
 *
 * With inverse = floor((2^64 - 1) / d) the quotient floor(n * inverse / 2^64) is at most one too
 * small: n / d - n * inverse / 2^64 = n * (1 + r) / (d * 2^64) <= n / 2^64 < 1, where r < d is the
 * rest of the division that gave the inverse. gpu/ computes the same way. Pure. */
#ifndef TIERING_FAST_MOD_H
#define TIERING_FAST_MOD_H

#include <stdint.h>

struct fast_mod {
    uint64_t divisor, inverse;
};

/* divisor is not 0. */
static inline struct fast_mod
fast_mod_of(uint64_t divisor)
{
    return (struct fast_mod){divisor, UINT64_MAX / divisor};
}

static inline uint64_t
fast_mod(struct fast_mod by, uint64_t n)
{
    uint64_t quotient = (uint64_t)((unsigned __int128)n * by.inverse >> 64);
    uint64_t rest = n - quotient * by.divisor;

    return rest >= by.divisor ? rest - by.divisor : rest;
}

#endif
