/* resident: tables that are in memory as a whole. What a table in device memory needs is nothing;
 * of one in host memory that the device reads (pinned), bundles are put together for a step by
 * several threads, since the device reads many whole bundles much faster than many single rows.
 *
 * One request: resident_begin, resident_bundle for each cell that HBM lacks (equal N-grams share
 * one bundle), then resident_gather for bundles that have a destination.
 *
 * Thread: resolver; resident_bundle and resident_gather: any thread of the pool, several at a time, each
 * with numbers of its own. Who is first of equal N-grams is open, how many different ones there are is
 * not.
 *
 *   finder:  bundle[number] = key, then place = request, number          (release)
 *   others:  place is of this request: bundle[its number] may be read    (acquire)             */
#ifndef TIERING_RESIDENT_H
#define TIERING_RESIDENT_H

#include <stdatomic.h>

#include "base/pool.h"
#include "tiering/fast_mod.h"
#include "tiering/tiers.h"

/* A bundle some cells of the request want. */
struct resident_bundle {
    uint64_t mix;
    uint8_t *dst; /* the owner's: where to gather it; NULL: nowhere */
    uint32_t order;
};

enum { RESIDENT_THREADS_MAX = 64 };

struct resident_column {
    struct fast_mod prime;
    uint64_t row_base;
};

struct resident {
    int n_orders, heads;
    uint32_t weight_bytes, scale_bytes; /* of one row */
    struct tier_resident table[SHAPE_MAX_ENGRAM_LAYERS];
    struct resident_column column[SHAPE_MAX_ENGRAM_LAYERS][SHAPE_MAX_ORDERS]
                                 [SHAPE_MAX_HEADS_PER_NGRAM];
    struct pool *pool; /* NULL: no table will be in host memory; nothing below is used */
    uint32_t max_bundles;
    struct resident_bundle *bundle; /* [max_bundles] */
    /* Open addressing, at most half full: request << 32 | bundle. One of another request is free, so that
     * nobody has to clear them. */
    _Atomic uint64_t *place; /* [places] */
    uint32_t places, place_mask;
    uint32_t request; /* the one that is resolved, modulo 2^32, never 0 */
};

/* may_come: tables in host memory, later. threads: of the gather, 0 for the default. */
int resident_init(struct resident *resident, const struct engram_shape *engram,
                  const struct tier_resident *table, bool may_come, int max_step_rows, int threads,
                  struct err *err);
void resident_free(struct resident *resident);

void resident_begin(struct resident *resident, uint32_t n_cells);
/* Asks for what resident_bundle will look at. */
void resident_ask(const struct resident *resident, uint32_t hash);
/* The number of the bundle: `number`, which is the caller's and unused, when it is the first of its
 * kind. */
uint32_t resident_bundle(struct resident *resident, uint32_t hash, uint32_t order, uint64_t mix,
                         uint32_t number);
/* Fills dst of each bundle first .. end - 1 that has one from the rows of this table: layout as in
 * base/shape.h. */
void resident_gather(const struct resident *resident, int table, uint32_t first, uint32_t end);

#endif
