/* ngram_hash: from token ids to the N-gram mixes and rows of an Engram layer.
 * Source: specs, "Hash" (arXiv 2601.07372 and its public demonstration program). All integer
 * arithmetic is exact in 64 bits; nothing here passes through a double. */
#ifndef MODEL_NGRAM_HASH_H
#define MODEL_NGRAM_HASH_H

#include <stdint.h>

#include "base/err.h"
#include "base/shape.h"

/* Fills prime, row_base, multiplier and rows of every table of `engram` from n_layers, layer ids
 * (already set in table[i].layer), max_order, heads, compressed_vocab, seed and
 * size_per_order[max_order - 1] (vocab_size_per_ngram). -EINVAL when no prime or product fits in 63
 * bits.                        */
int ngram_hash_derive(struct engram_shape *engram, uint64_t seed, const int64_t *size_per_order,
                      struct err *err);

/* The mixes that end at one token: ids[0] is the token's compressed id, ids[k] the one k positions
 * back (pad id before the start of the sequence), k < max_order. ret_mix [max_order - 1]:
 * orders 2..N. Row of head j of order n: row_base[n-2][j] + mix % prime[n-2][j]. */
void ngram_hash_mix(const struct engram_shape *engram, int table, const int32_t *ids,
                    uint64_t *ret_mix);

/* The numpy draw behind the multipliers: n integers in [0, bound) of default_rng(seed). */
void numpy_rng_integers(uint64_t seed, uint64_t bound, int n, uint64_t *ret_values);

#endif
