/* tiers: where every N-gram's bundle lives, and how it gets to a step in time.
 *
 * The unit is the bundle of one set (one Engram layer and order): the rows of all H heads. Its key
 * is the 64-bit mix of the N-gram hash, from which all H rows follow, so equal keys mean equal rows.
 * Lookup order: HBM store, RAM store, reads in flight, cold store. What fits neither store passes
 * through staging, which belongs to a step.
 *
 * Life of a step (ids rise by one): tiers_resolve for each Engram layer, in order of layer; the engine computes;
 * tiers_step_done(id) once nothing on the device reads its bundles any more. Between, every bundle
 * of the step is pinned. Thread: resolver, for all but tiers_stats.                                 */
#ifndef TIERING_TIERS_H
#define TIERING_TIERS_H

#include <stddef.h>
#include <stdint.h>

#include "base/bundle.h"
#include "base/err.h"
#include "base/flag.h"
#include "base/shape.h"
#include "tiering/cold_store.h"

/* Where the rows of one Engram layer are on disk. */
struct tier_table {
    int weight_file, scale_file;
    uint64_t weight_offset_bytes, scale_offset_bytes; /* of row 0; scale unused without scales */
};

/* Memory of a store, in chunks; given by the daemon: device memory for HBM, (pinned) RAM for RAM. */
struct chunk_ops {
    void *(*alloc)(void *arg, size_t size_bytes); /* NULL: none left */
    void (*free)(void *arg, void *chunk, size_t size_bytes);
    void *arg;
};

struct tiers_options {
    struct engram_shape engram;
    struct tier_table table[SHAPE_MAX_ENGRAM_LAYERS];
    struct cold_store *cold; /* borrowed; must outlive the tiers */
    struct chunk_ops hbm_memory, ram_memory;
    uint64_t hbm_budget_bytes, ram_budget_bytes;
    int max_step_rows;  /* rows of one step */
    int steps_in_flight; /* steps begun and not done, at most */
};

struct tiers;

int tiers_new(struct tiers **ret_tiers, const struct tiers_options *options, struct err *err);
/* No step may be in flight; reads in flight are waited for. Accepts NULL, returns NULL. */
struct tiers *tiers_free(struct tiers *tiers);

/* Where are the bundles of n_rows tokens for one Engram layer? mix and address are [n_rows, orders].
 * Fills address, starts reads for what no store has, and raises ready to ready_value once all bundles are
 * there (possibly before it returns). failed[row] is set to 1 before that for every row one of whose
 * bundles could not be read: its address is {NULL, NULL}. Arrays stay the caller's and must live until then. */
struct tiers_request {
    uint64_t step;
    int table; /* index into engram.table */
    int n_rows;
    const uint64_t *mix;
    struct bundle_address *address;
    uint8_t *failed; /* [n_rows] */
    struct flag *ready;
    uint64_t ready_value;
    uint64_t deadline_ns; /* when the layer will want them */
};
void tiers_resolve(struct tiers *tiers, const struct tiers_request *request);
/* Steps up to and including this one no longer read anything. */
void tiers_step_done(struct tiers *tiers, uint64_t step);
/* The step was given up after its flags were raised: nothing reads its bundles, and what it was to promote
 * may not have been: those slots are empty again. */
void tiers_step_abort(struct tiers *tiers, uint64_t step);

/* Plan at admission: start reading what the stores lack of these mixes ([n]) of one table and order, with a
 * later deadline than any step. Takes only RAM store room that pinned and hotter bundles leave; returns
 * how many bundles were started. */
int tiers_prefetch(struct tiers *tiers, int table, int order, const uint64_t *mix, int n,
                   uint64_t deadline_ns);

/* Handles finished reads. Call when the cold store notifies. Returns the number handled. */
int tiers_poll(struct tiers *tiers);

/* New budgets. Growth is at once; of a shrinking store what is pinned goes as its steps end.
 * used_bytes never exceeds the larger of the old and the new budget, and the new one once settled. */
void tiers_resize(struct tiers *tiers, uint64_t hbm_budget_bytes, uint64_t ram_budget_bytes);

enum { TIER_HBM, TIER_RAM, TIER_NVME, TIER_COUNT };
struct tier_set_stats { /* one layer and order in one tier; counters since start */
    uint64_t hits, misses, bytes, evictions, promotions;
    uint64_t used_bytes;
};
struct tiers_stats {
    int n_tables, n_orders;
    struct {
        uint64_t budget_bytes, used_bytes;
        struct tier_set_stats set[SHAPE_MAX_ENGRAM_LAYERS][SHAPE_MAX_ORDERS];
    } tier[TIER_COUNT];
    uint64_t staging_bytes;      /* memory of the staging area */
    uint64_t prefetched, prefetch_used, prefetch_late; /* bundles */
    struct cold_counters nvme;
};
/* Any thread; each number is exact, together they are nearly of one moment. */
void tiers_stats(const struct tiers *tiers, struct tiers_stats *ret_stats);

#endif
