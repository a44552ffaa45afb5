/* philox: Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as
 * easy as 1, 2, 3" (SC 2011). The same key and counter give the same four words anywhere. Thread:
 * none; a pure function.                                                                  */
#ifndef GPU_HOST_PHILOX_H
#define GPU_HOST_PHILOX_H

#include <stdint.h>

void philox4x32_10(const uint32_t counter[4], const uint32_t key[2], uint32_t ret_words[4]);
/* A number in [0, 1), a multiple of 2^-53: key = seed, counter = (draw, 0), low words first; the 27
 * high bits of word 0 and the 26 high bits of word 1 make the mantissa. */
double philox_uniform(uint64_t seed, uint64_t draw);

#endif
