/* resident: tables that are in memory as a whole. What a table in device memory needs is nothing;
 * of one in host memory that the device reads (pinned), bundles are put together for a step by
 * several threads, since the device reads many whole bundles much faster than many single rows.
 *
 * One request: resident_begin, resident_bundle for each cell that HBM lacks (equal N-grams share
 * one bundle), then resident_gather_begin .. end fill those that were given a destination, while the
 * resolver does something else. Thread: resolver;
 * resident_gather_end returns when the pool's threads are done. */
#ifndef TIERING_RESIDENT_H
#define TIERING_RESIDENT_H

#include "base/pool.h"
#include "tiering/fast_mod.h"
#include "tiering/tiers.h"

/* A bundle some cells of the request want. */
struct resident_bundle {
    uint64_t mix;
    uint8_t *dst; /* the owner's: where to gather it; NULL: nowhere */
    uint32_t order;
    bool promoted; /* the owner's */
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
    /* Of the request that is resolved. */
    int gathered_table;
    uint32_t n_bundles, max_bundles;
    struct resident_bundle *bundle; /* [max_bundles] */
    uint32_t *bundle_of;            /* [max_bundles] of a cell: the owner's */
    uint32_t *place, place_mask;    /* open addressing: bundle or NODE_NONE, at most half full */
};

/* may_come: tables in host memory, later. threads: of the gather, 0 for the default. */
int resident_init(struct resident *resident, const struct engram_shape *engram,
                  const struct tier_resident *table, bool may_come, int max_step_rows, int threads,
                  struct err *err);
void resident_free(struct resident *resident);

void resident_begin(struct resident *resident, uint32_t n_cells);
/* The number of the bundle, a new one with dst NULL when it is the first of its kind. */
uint32_t resident_bundle(struct resident *resident, uint32_t hash, uint32_t order, uint64_t mix);
/* Fill dst of each bundle that has one from the rows of this table: layout as in base/shape.h. */
void resident_gather_begin(struct resident *resident, int table);
void resident_gather_end(struct resident *resident);

#endif
