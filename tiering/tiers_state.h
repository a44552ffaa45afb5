/* tiers_state: what tiers.c, tiers_new.c and tiers_stats.c share. Thread: resolver, but for what is
 * atomic. */
#ifndef TIERING_TIERS_STATE_H
#define TIERING_TIERS_STATE_H

#include <stdatomic.h>

#include "tiering/fetch.h"
#include "tiering/resident.h"
#include "tiering/slot_store.h"
#include "tiering/staging.h"
#include "tiering/tiers.h"

enum { LOOK_UP_SKIPPED = UINT8_MAX };

enum {
    TIERS_AHEAD = 16, /* look-ups between two stages of a find: those whose cache misses overlap */
    TIERS_PLANNED_FETCHES = 8192, /* bundles planned and not yet read, at most */
    TIERS_SEEN_TAGS = 1 << 18,    /* a second visit is one within about so many look-ups */
    LOOK_UP_PARTS_MAX = 1024,
    TIERS_FIND_TOGETHER = 256, /* rows from which on several threads find */
    TIERS_PROMOTE_VISITS = 2, /* look-ups that found a bundle before it may displace one in HBM */
};

struct set_counts { /* one writer */
    _Atomic uint64_t hits, misses, bytes, promotions;
};

/* One cell of a request, while it is resolved. */
struct look_up {
    uint32_t cell, hash;
    uint32_t at; /* of the HBM store: the node to look at next; of a resident table's miss in the end
                  * the number of its bundle */
    uint8_t set; /* or LOOK_UP_SKIPPED */
};

/* Rows of a request that one thread looks up at a time. Those cells that HBM lacks are the first of the
 * part's in tiers->look_up, in order; the bundles it found first are numbered from its first cell on. */
struct look_up_part {
    uint32_t n_missed, n_bundles;
    uint32_t before; /* bundles of the parts before this one */
    uint32_t hits[SHAPE_MAX_ORDERS], misses[SHAPE_MAX_ORDERS];
};

struct pending_request {
    struct tiers_request request;
    uint32_t pending; /* look-ups that wait; 0: this place is free */
};

/* A step between its first resolve and its done or abort. */
struct open_step {
    bool open;
    uint64_t step;
    uint32_t promoted; /* HBM slots it is to fill: list through slot.next */
    uint32_t *staged;  /* [n_staged], room for max_staged: staging slots that only it reads */
    uint32_t n_staged;
};

struct tiers {
    struct tiers_options options;
    int n_orders, n_sets;
    uint32_t bundle_bytes;

    struct slot_store hbm, ram;
    struct staging staging;
    struct row_slice slice;
    struct resident resident;
    struct fetches fetches;
    uint16_t *seen; /* [TIERS_SEEN_TAGS] tags of sliced bundles looked up lately: what counts as a
                       second visit */
    uint64_t ram_budget_bytes; /* of bundles and rows together */
    bool ram_unsettled;        /* one of them waits for what the other is to give up */
    _Atomic uint64_t ram_budget_shown;
    uint64_t reserved_bytes[SHAPE_MAX_ENGRAM_LAYERS]; /* by table */
    _Atomic uint64_t reserved_shown;                  /* their sum */

    /* Steps done_step + 1 .. begun_step pin what they were given. */
    bool any_step;
    uint64_t begun_step, done_step;
    uint32_t displacements; /* of HBM's bundles that the latest request may still make */
    struct open_step *open; /* [steps_in_flight] */
    uint32_t max_staged;    /* of one step; 0: no table can be gathered from */

    struct pending_request *requests; /* [n_requests] */
    uint32_t n_requests;
    bool closing;            /* waiters are forgotten */
    /* Of the request that is being resolved. */
    struct look_up *look_up; /* [max_step_rows * orders] */
    struct look_up_part *part; /* [n_parts], room for LOOK_UP_PARTS_MAX */
    uint32_t n_parts, part_rows; /* rows of each part but the last */

    struct set_counts count[TIER_COUNT][SLOT_STORE_MAX_SETS];
    _Atomic uint64_t prefetched, prefetch_used, prefetch_late;
    uint64_t table_bytes;
};

/* Lists the cells of a request that is not skipped, part by part, and answers those that HBM has; the
 * others are BUNDLE_IN_PLACE. Returns how many those are. All hits are found before anybody promotes: a
 * promotion of this step displaces none of them. bundles: equal misses are found, if there are that many
 * at all; 0: not. */
uint32_t tiers_look_up_hbm(struct tiers *tiers, const struct tiers_request *request,
                           uint32_t bundles);
/* The same one part at a time, of fewer than TIERS_FIND_TOGETHER rows and without bundles: begin, then the parts in
 * their order, then the counts. Between two parts may be promotions, which displace no hit of the parts before. */
void tiers_begin_parts(struct tiers *tiers, const struct tiers_request *request);
void tiers_look_up_part(struct tiers *tiers, const struct tiers_request *request, uint32_t number);
uint32_t tiers_count_parts(struct tiers *tiers, const struct tiers_request *request);
/* Afterwards the misses are the first of tiers->look_up. */
void tiers_join_parts(struct tiers *tiers);
struct open_step *tiers_find_step(struct tiers *tiers, uint64_t step); /* NULL */
/* An HBM slot for the step to fill with a bundle; NULL: none. With free room every bundle gets in
 * that HBM does not have and nobody fills; else only one that has been found below before. T1, T3:
 * only for the newest step. Its gather, which writes the slot, runs after those of all steps that
 * may read what the slot holds now, but for its own look-ups, which are kept. */
void *tiers_promote(struct tiers *tiers, uint64_t step, const struct look_up *look_up, uint64_t mix,
                    int visits);
/* Where a bundle that has no record of its own leaves a tag when it is looked up. */
static inline uint16_t *
tiers_seen(const struct tiers *tiers, uint32_t hash)
{
    return &tiers->seen[hash % TIERS_SEEN_TAGS];
}
/* Visits of such a bundle: 0, or enough to displace one in HBM. */
static inline int
tiers_visits(struct tiers *tiers, uint32_t hash)
{
    uint16_t *tag = tiers_seen(tiers, hash), now = (uint16_t)(hash >> 16 | 1);
    bool again = *tag == now;

    *tag = now;
    return again ? TIERS_PROMOTE_VISITS : 0;
}

/* A request's look-ups are over: the flag, unless others share it that are not. */
void tiers_raise(const struct tiers_request *request);
/* Those of its first n rows are. */
void tiers_raise_rows(const struct tiers_request *request, uint32_t n);
/* tiers_resolve for a resident table, once the step has begun. */
void tiers_resolve_resident(struct tiers *tiers, const struct tiers_request *request);

/* fetch_landed_fn */
void tiers_fetch_landed(void *tiers, uint32_t fetch, int result);

/* After every change of what shares the RAM budget. */
void tiers_balance_ram(struct tiers *tiers);
/* tiers_resize for whoever creates the tiers, before the resolver has them. */
void tiers_set_budgets(struct tiers *tiers, uint64_t hbm_budget_bytes, uint64_t ram_budget_bytes);

/* One writer: no locked instruction needed. */
static inline void
tiers_count(_Atomic uint64_t *counter, uint64_t by)
{
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + by,
                          memory_order_relaxed);
}

#endif
