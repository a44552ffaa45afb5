/* prime: exact primality of 64-bit integers, for the moduli of the hash heads. Pure. */
#ifndef MODEL_PRIME_H
#define MODEL_PRIME_H

#include <stdbool.h>
#include <stdint.h>

/* Deterministic for every 64-bit n (Miller-Rabin with the first twelve primes as bases, which
 * Sorenson and Webster, "Strong pseudoprimes to twelve prime bases", 2015, prove enough below
 * 3.18 * 10^23). About 1 us for a prime near 2^40. */
bool prime_is(uint64_t n);

/* The least prime greater than n, or 0 when none is below 2^63. */
uint64_t prime_after(uint64_t n);

#endif
