/* tiers_state: what tiers.c, tiers_new.c and tiers_stats.c share. Thread: resolver, but for what is
 * atomic. */
#ifndef TIERING_TIERS_STATE_H
#define TIERING_TIERS_STATE_H

#include <stdatomic.h>

#include "tiering/fetch.h"
#include "tiering/slot_store.h"
#include "tiering/staging.h"
#include "tiering/tiers.h"

enum {
    TIERS_PLANNED_FETCHES = 8192, /* bundles planned and not yet read, at most */
    TIERS_SEEN_TAGS = 1 << 16,
};

struct set_counts { /* one writer */
    _Atomic uint64_t hits, misses, bytes, promotions;
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
};

struct tiers {
    struct tiers_options options;
    int n_orders, n_sets;
    uint32_t bundle_bytes;

    struct slot_store hbm, ram;
    struct staging staging;
    struct row_slice slice;
    struct fetches fetches;
    uint16_t *seen; /* [TIERS_SEEN_TAGS] tags of sliced bundles looked up lately: what counts as a
                       second visit */
    uint64_t ram_budget_bytes; /* of bundles and rows together */
    bool ram_unsettled;        /* one of them waits for what the other is to give up */
    _Atomic uint64_t ram_budget_shown;

    /* Steps done_step + 1 .. begun_step pin what they were given. */
    bool any_step;
    uint64_t begun_step, done_step;
    struct open_step *open; /* [steps_in_flight] */

    struct pending_request *requests; /* [n_requests] */
    uint32_t n_requests;
    bool closing; /* waiters are forgotten */

    struct set_counts count[TIER_COUNT][SLOT_STORE_MAX_SETS];
    _Atomic uint64_t prefetched, prefetch_used, prefetch_late;
    uint64_t table_bytes;
};

/* fetch_landed_fn */
void tiers_fetch_landed(void *tiers, uint32_t fetch, int result);

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
