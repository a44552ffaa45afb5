/* tiers: where every N-gram's bundle lives, and how it gets to a step in time.
 *
 * The unit is the bundle of one set (one Engram layer and order): the rows of all H heads. Its key
 * is the 64-bit mix of the N-gram hash, from which all H rows follow, so equal keys mean equal
 * rows. Lookup order: HBM store, RAM store, reads in flight, resident rows of the RAM store
 * (row_slice.h), cold store. What fits neither store passes through staging, which belongs to the
 * steps that read it. A table that is in memory as a whole is looked up in the HBM store alone, or
 * not at all (struct tier_resident).
 *
 *     ABSENT --fetch--> READING --landed--> WARM (RAM slot) -------promote----+
 *       ^                  |  |                 |                              v
 *       |                  |  +--landed--> STAGED (staging slot) --promote--> FILLING --done--> HOT
 *       |                  |                    |                              |         (HBM slot)
 *       +------failed------+                    |                              |              |
 *       +-- evicted, or its steps are over -----+------step aborted------------+----evicted---+
 *
 * fetch: tiers_resolve and tiers_prefetch. landed, failed: tiers_poll. promote: a copy, made by the
 * gather of the step; tiers_resolve and tiers_poll choose it. What is read for nobody but a plan
 * goes to RAM only.
 *
 * T1  bytes of a source address do not change while a step it was given to runs: its RAM slot is
 *     pinned, its staging slot kept, its HBM slot written by no gather but of a later step.
 * T2  an HBM slot is a source only after the step that filled it is done, so a step that fails
 *     takes back its promotions and nobody has read them.
 * T3  one (row, order) is given an HBM slot to fill, always of the newest step, and the slot is no
 *     source of that step.
 * T4  a bundle has one read in flight, whatever number of look-ups, steps and plans want it.
 * T5  a request's flag is raised once, when none of its look-ups waits any more.
 * T6  used <= budget of each store, after every call (slot_store.h, S4); the RAM budget pays for
 *     reserved tables first (tiers_reserve_table).
 * T7  a request is answered from a resident table only if its step was given the address at which
 *     the table is (tiers_request.resident); else from stores and disk. The bytes of a table that is
 *     taken away stay until the steps begun by then are over.
 *
 * Life of a step (ids rise, from 1 on): tiers_resolve for each Engram layer, in order of layer; the
 * engine computes; tiers_step_done or tiers_step_abort once nothing on the device reads its bundles
 * any more. Between, every bundle of the step is pinned. The bundles of one step are gathered after
 * those of the steps before it. Thread: resolver, for all but tiers_stats. The cold store's notify
 * may be called from inside a call to tiers_*: it may wake this thread, not call back. */
#ifndef TIERING_TIERS_H
#define TIERING_TIERS_H

#include <stdbool.h>
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

/* Memory of a store, in chunks; given by the daemon: device memory for HBM, (pinned) RAM for RAM.
 * */
struct chunk_ops {
    void *(*alloc)(void *arg, size_t size_bytes); /* NULL: none left, or none now (later) */
    void (*free)(void *arg, void *chunk, size_t size_bytes);
    /* Whether it pays to ask again for what was refused, once tiers_poll is called; NULL: no. */
    bool (*later)(void *arg);
    /* A step begins, the newest so far; NULL: of no interest. */
    void (*begin)(void *arg, uint64_t step);
    void *arg;
};

/* The whole table of one Engram layer in memory, [rows, head_dim] and [rows, head_dim /
 * scale_group]; scales NULL without scales. Borrowed, and nobody writes it. */
struct tier_resident {
    const void *weights, *scales; /* weights NULL: the table is not resident */
    bool device; /* device memory, which only the device can read; else host memory, which both can
                  * (pinned) */
};

/* From this many bundles on a quarter is left to the device: it reads them row by row while the host
 * is at the next request. */
enum { TIERS_IN_PLACE_BELOW = 192, TIERS_SHARED_FROM = 2048, TIERS_IN_PLACE_SHARE = 4 };

struct tiers_options {
    struct engram_shape engram;
    struct tier_table table[SHAPE_MAX_ENGRAM_LAYERS];
    /* Nothing is read from the cold store for a resident table, its look-ups are answered before
     * tiers_resolve returns, and they never fail. In device memory: BUNDLE_IN_PLACE for each, and
     * no promotion. In host memory: the HBM store's slot, or, of what that lacks,
     *   - of fewer than in_place_below bundles: BUNDLE_IN_PLACE, the device reads row by row;
     *   - of more: the address of a staging slot, to which gather_threads threads copied the rows;
     *     of very many a part is BUNDLE_IN_PLACE all the same (TIERS_SHARED_FROM).
     * Both may promote. */
    struct tier_resident resident[SHAPE_MAX_ENGRAM_LAYERS];
    bool may_become_resident; /* tables in host memory may come later (tiers_set_resident) */
    /* As tiers_reserve_table from the start; 0: not. Needs may_become_resident. */
    uint64_t reserved_bytes[SHAPE_MAX_ENGRAM_LAYERS];
    int in_place_below; /* different bundles of one request; 0: TIERS_IN_PLACE_BELOW; 1: always
                         * staging */
    int gather_threads; /* with the resolver; 0: 16 or as many as there are CPUs beside two, at least
                         * 1 */
    struct cold_store *cold; /* borrowed; must outlive the tiers */
    struct chunk_ops hbm_memory, ram_memory;
    uint64_t hbm_budget_bytes, ram_budget_bytes;
    /* Share of the RAM budget, 0 to 1, for rows rather than bundles (row_slice.h). What the slice
     * does not need once all rows are resident goes to bundles. */
    double row_share;
    int max_step_rows;   /* rows of one step */
    int steps_in_flight; /* steps begun and not done or aborted, at most; 1..64 */
};

struct tiers;
struct pool;

int tiers_new(struct tiers **ret_tiers, const struct tiers_options *options, struct err *err);
/* No step may run; reads in flight are waited for. Requests whose flag was not raised are
 * forgotten: their arrays are not touched any more. Accepts NULL, returns NULL. */
struct tiers *tiers_free(struct tiers *tiers);

/* Where are the bundles of n_rows tokens for one Engram layer? mix and address are [n_rows,
 * orders]. Fills address, starts reads for what no store has, and raises ready to ready_value once
 * all bundles are there (possibly before it returns). Before that failed[row] is set to 1 for every
 * row one of whose bundles could not be read (it is never set to 0 here); the address of that
 * bundle is {NULL, NULL}. Arrays stay the caller's and must live until then, even when the step is
 * aborted; 2 * steps_in_flight requests of one table may wait at a time. A step that is reported done
 * has written every promote address it was given: rows that are not gathered must be named in skip.
 * */
struct tiers_request {
    uint64_t step;
    int table; /* index into engram.table */
    int n_rows;
    /* T7: weights of the resident table as the step was told them; NULL: it was told nothing. */
    const void *resident;
    const uint64_t *mix;
    struct bundle_address *address;
    uint8_t *failed;     /* [n_rows] */
    const uint8_t *skip; /* NULL, or [n_rows]: 1 = nothing is wanted, addresses are {NULL, NULL} */
    struct flag *ready;
    uint64_t ready_value;
    /* 0, or what ready may rise from, by one for each row whose bundles are there, before it rises to
     * ready_value: these are the first rows of those that share the flag. */
    uint64_t rows_from;
    /* NULL, or how many requests there are of one layer and step, which share a flag: counted down as
     * each is over, and the last one raises it. Resolver thread. */
    uint32_t *unfinished;
    uint64_t deadline_ns; /* when the layer will want them */
};
void tiers_resolve(struct tiers *tiers, const struct tiers_request *request);
/* The threads that gather rows, for the resolver's own use between two calls; NULL: there are none. */
struct pool *tiers_pool(const struct tiers *tiers);
/* Whether plans for this table are of no use. */
bool tiers_is_resident(const struct tiers *tiers, int table);

/* A table's way into host memory and back; any time between two calls, also with reads of the table
 * in flight, which land and answer as ever. What HBM has of the table stays valid: the same bytes.
 *
 *     ON DISK --reserve--> RESERVED --set--> RESIDENT --set weights NULL--> LEAVING
 *        ^                    |                                                |
 *        +------release-------+------------------release, steps over-----------+
 *
 * reserve: size_bytes of the RAM budget are no longer the stores', and the table's rows leave the
 * slice. The stores are within what is left once tiers_stats says so: only then is the memory to be
 * taken. release: the memory was given back, and stores and slice may use the budget again. */
void tiers_reserve_table(struct tiers *tiers, int table, uint64_t size_bytes);
/* Host memory only; needs may_become_resident. Returns the newest step begun: with weights NULL the
 * memory is read until tiers_steps_over says that this step and all before it are over. */
uint64_t tiers_set_resident(struct tiers *tiers, int table, const struct tier_resident *resident);
bool tiers_steps_over(const struct tiers *tiers, uint64_t step);
void tiers_release_table(struct tiers *tiers, int table);
/* This step ran to its end: what it was to promote has been written. Earlier steps read nothing any
 * more either, but their promotions count only when they are reported themselves. */
void tiers_step_done(struct tiers *tiers, uint64_t step);
/* In place of tiers_step_done for a step that did not run to its end: its promotions are taken
 * back. It says nothing about other steps, and may come late, after later ones are done. */
void tiers_step_abort(struct tiers *tiers, uint64_t step);

/* Plan at admission: start reading what the stores lack of these mixes ([n]) of one table and order
 * (2 .. max_order), with a later deadline than any step. Takes only RAM store room that pinned and
 * hotter bundles leave, an eighth of it at most for bundles that no step has used yet; returns how
 * many bundles were started. What was not can be asked for again later. Nothing is started for a
 * resident table. */
int tiers_prefetch(struct tiers *tiers, int table, int order, const uint64_t *mix, int n,
                   uint64_t deadline_ns);

/* Handles finished reads. Call when the cold store notifies. Returns the number handled. */
int tiers_poll(struct tiers *tiers);

/* New budgets. Growth is at once; of a shrinking store what is pinned goes as its steps end.
 * used_bytes never exceeds the larger of the old and the new budget, and the new one once settled.
 * */
void tiers_resize(struct tiers *tiers, uint64_t hbm_budget_bytes, uint64_t ram_budget_bytes);

enum { TIER_HBM, TIER_RAM, TIER_NVME, TIER_COUNT };
/* One layer and order in one tier; counters since start. Each look-up counts, also of equal N-grams
 * in one call: it is a hit or a miss of HBM; a miss of HBM is a hit or a miss of RAM; a miss of RAM
 * is a hit of NVMe when its bundle has been read (for whomever) and a miss of NVMe when that
 * failed. A resident table answers as HBM or as RAM, by where it is. */
struct tier_set_stats {
    uint64_t hits, misses;
    uint64_t bytes; /* of bundles: hits for HBM and RAM; what was read, plans too, for NVMe */
    uint64_t evictions;
    uint64_t promotions; /* bundles that came into the store */
    uint64_t used_bytes; /* slots; the tier's used_bytes has records and index as well */
};
struct tiers_stats {
    int n_tables, n_orders;
    struct { /* NVMe: both are the size of the tables */
        uint64_t budget_bytes, used_bytes;
        struct tier_set_stats set[SHAPE_MAX_ENGRAM_LAYERS][SHAPE_MAX_ORDERS];
    } tier[TIER_COUNT];
    uint64_t staging_bytes;  /* memory of the staging area */
    uint64_t slice_bytes;    /* of the RAM store's used_bytes: resident rows */
    uint64_t reserved_bytes; /* of the RAM budget: for whole tables; not in used_bytes */
    uint64_t prefetched, prefetch_used, prefetch_late; /* bundles */
    struct cold_counters nvme;
};
/* Any thread; each number is exact, together they are nearly of one moment. */
void tiers_stats(const struct tiers *tiers, struct tiers_stats *ret_stats);

#endif
