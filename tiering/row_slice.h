/* row_slice: the part of RAM that holds table rows rather than bundles: a resident prefix of all
 * tables in order of need, addresses computed, no index, no warm-up.
 *
 * Most look-ups of an order-3 N-gram are of one never seen before: no cache of bundles helps there.
 * What helps is the share of the table's rows that is resident. Order of need: scales first (few
 * bytes, one read each), then the weights of the layer that runs first, since a late layer can wait
 * for the disk behind the blocks before it and an early one cannot.
 *
 *     beyond the target --resize--> LOADING --landed--> READY --resize--> freed
 *                                      +--failed--> ABSENT: its rows come from the disk, errors too
 *
 * L1  a block's bytes are written once, by the cold store, before it is READY.
 * L2  rows are copied out by the caller at once: nothing points into a block, so a shrinking slice
 *     frees at once. A block still LOADING is freed when its read lands.
 *     So for the blocks of a table that is left out.
 * L3  used <= budget, after every call but while blocks that were given up are still LOADING.
 *
 * Thread: resolver; used_shown: any. */
#ifndef TIERING_ROW_SLICE_H
#define TIERING_ROW_SLICE_H

#include <stdatomic.h>
#include <stdbool.h>

#include "tiering/tiers.h"

enum { SLICE_BLOCK_BYTES = COLD_READ_MAX, SLICE_LOADS = 4 };

/* One tensor on disk, cut into blocks of whole rows. */
struct slice_region {
    int file;
    uint32_t row_bytes, rows_per_block;
    uint64_t offset_bytes, rows, first_block, n_blocks;
    bool left_out; /* its blocks are never loaded and need no room */
};

struct slice_load {
    struct cold_read read;
    uint64_t block;
    uint32_t bytes;
    bool busy;
};

struct row_slice {
    struct cold_store *cold;
    struct chunk_ops memory;
    int n_tables;
    bool has_scales;
    struct slice_region region[2 * SHAPE_MAX_ENGRAM_LAYERS]; /* in order of need */
    int n_regions;
    int weight_region[SHAPE_MAX_ENGRAM_LAYERS],
        scale_region[SHAPE_MAX_ENGRAM_LAYERS]; /* by table */
    uint64_t n_blocks;                         /* of all regions */

    uint8_t **block;            /* [n_target]; NULL: not allocated, or given up */
    uint8_t *ready;             /* [n_target] */
    uint64_t n_target, n_asked; /* blocks the budget has room for; blocks whose load has begun */
    uint64_t used_bytes;        /* of blocks */
    uint64_t need_bytes; /* of the blocks below n_target, with their records, once all are there */
    struct slice_load load[SLICE_LOADS];
    int n_loading;
    _Atomic uint64_t used_shown;
};

/* The tables that are resident anyway are left out: their rows must not be asked for. */
void row_slice_init(struct row_slice *slice, const struct engram_shape *engram,
                    const struct tier_table *table, const struct tier_resident *resident,
                    struct cold_store *cold, const struct chunk_ops *memory);
/* Nothing may be loading. */
void row_slice_free(struct row_slice *slice);
/* What of a budget the slice uses at most: less than it once everything is resident. */
uint64_t row_slice_need(const struct row_slice *slice, uint64_t budget_bytes);
uint64_t row_slice_used(const struct row_slice *slice);
void row_slice_resize(struct row_slice *slice, uint64_t budget_bytes);
/* A table whose rows are, or will be, elsewhere; false: it comes back. The caller resizes next, from
 * row_slice_need on: what the blocks below the target need has changed. */
void row_slice_leave_out(struct row_slice *slice, int table, bool left_out);
/* Starts loads as far as there is room for them. */
void row_slice_pump(struct row_slice *slice);
/* Whether the read is one of the slice's, and takes it back if so. */
bool row_slice_landed(struct row_slice *slice, struct cold_read *read);

/* Where the row of a table is now, or NULL; valid until the next call that may free (L2). */
static inline const uint8_t *
row_slice_find(const struct row_slice *slice, int region, uint64_t row)
{
    const struct slice_region *r = &slice->region[region];
    uint64_t block = r->first_block + row / r->rows_per_block;

    if (block >= slice->n_target || !slice->ready[block])
        return NULL;
    return slice->block[block] + row % r->rows_per_block * r->row_bytes;
}

#endif
