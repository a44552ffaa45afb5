/* fetch: bundles on their way from the cold store, one fetch each however many look-ups wait for
 * it.
 *
 *     FREE --new--> QUEUED --issue--> READING --landed--> (owner decides) --release--> FREE
 *                                                              |
 *           |                                                  +--stay--> STAGED --release--> FREE
 *           +--copy, when the row slice has all rows-------------------------^
 *
 * F1  a fetch is in the index from new to release, so a second look-up of its bundle finds it.
 * F2  waiters only in QUEUED and READING.
 * F3  a READING fetch has one fetch_io, whose reads the cold store holds; the last to come back
 * lands it. F4  QUEUED fetches are in one of two lists: demanded by a step, which goes first, or
 * planned; of planned ones only a few are READING at a time, since what the cold store has cannot
 * be hurried.
 *
 * All records are allocated at the start; a step allocates nothing here. Thread: resolver. */
#ifndef TIERING_FETCH_H
#define TIERING_FETCH_H

#include <stdbool.h>

#include "tiering/bundle_index.h"
#include "tiering/row_slice.h"
#include "tiering/tiers.h"

enum fetch_state { FETCH_FREE, FETCH_QUEUED, FETCH_READING, FETCH_STAGED };
/* FETCH_FROM_SLICE: to staging, copied out of the row slice and never read from the cold store. */
enum fetch_kind { FETCH_TO_RAM, FETCH_TO_STAGING, FETCH_FROM_SLICE };

struct fetch {
    struct bundle_node
        bundle; /* state: enum fetch_state; visits: enum fetch_kind; queue: planned */
    void *dst;
    uint64_t last_step; /* of those that want it; 0 while only planned */
    uint64_t deadline_ns;
    uint32_t slot;       /* of dst, in the store of its kind */
    uint32_t waiters;    /* list, newest first; NODE_NONE */
    uint32_t prev, next; /* in the list of its state */
};

struct fetch_waiter {
    uint32_t request, cell, next;
};

struct fetch_io {
    uint32_t fetch, pending, next_free;
    int result; /* first error */
    struct cold_read read[];
};

struct fetch_list {
    uint32_t first, last, count;
};

struct fetches {
    const struct engram_shape *engram;
    const struct tier_table *table;
    struct cold_store *cold;
    struct row_slice *slice;
    int n_orders;
    uint32_t weight_bytes, scale_bytes; /* of one row */

    struct node_space space;
    uint8_t *block;
    struct bundle_index index;
    uint32_t n_fetches;
    struct fetch_list free, demanded, planned, staged;
    uint32_t n_reading, n_planned_reading;
    uint32_t n_planned; /* QUEUED or READING for a plan alone */

    struct fetch_waiter *waiter;
    uint32_t n_waiters, free_waiters;

    uint8_t *io;
    size_t io_bytes;
    uint32_t n_io, free_io, whole_io; /* list: fetches whose last rows the slice gave */
    struct cold_read **batch;         /* reads to be submitted together */
    int n_batch, max_batch;
};

typedef void (*fetch_landed_fn)(void *arg, uint32_t fetch, int result);

/* engram, table, cold and slice are borrowed. n_planned_max: fetches beyond what steps can demand.
 */
int fetches_init(struct fetches *fetches, const struct engram_shape *engram,
                 const struct tier_table *table, struct cold_store *cold, struct row_slice *slice,
                 uint32_t n_demand_max, uint32_t n_planned_max, struct err *err);
/* Nothing may be READING. */
void fetches_free(struct fetches *fetches);

static inline struct fetch *
fetches_at(const struct fetches *fetches, uint32_t fetch)
{
    return node_at(&fetches->space, fetch);
}
/* QUEUED; NODE_NONE: no record left. planned: for a plan alone. */
uint32_t fetches_new(struct fetches *fetches, uint8_t set, uint64_t mix, enum fetch_kind kind,
                     uint32_t slot, void *dst, uint64_t deadline_ns, bool planned);
/* A step wants a planned bundle by this time: it is demanded from now on. */
void fetches_demand(struct fetches *fetches, uint32_t fetch, uint64_t deadline_ns);
/* One more look-up waits for it. */
void fetches_wait(struct fetches *fetches, uint32_t fetch, uint32_t request, uint32_t cell);
bool fetches_next_waiter(struct fetches *fetches, uint32_t fetch, uint32_t *ret_request,
                         uint32_t *ret_cell);
/* Hands queued fetches to the cold store as far as there are records for their reads. */
void fetches_issue(struct fetches *fetches);
/* Takes finished reads, up to 256, and calls landed for each fetch they complete, which must end in
 * fetches_stay or fetches_release. Returns the number of reads. */
int fetches_reap(struct fetches *fetches, fetch_landed_fn landed, void *arg);
/* Whether the row slice has every row of the bundle. */
bool fetches_sliced(const struct fetches *fetches, uint8_t set, uint64_t mix);
/* QUEUED, of a bundle that is sliced: its rows are copied and it is STAGED. */
void fetches_copy(struct fetches *fetches, uint32_t fetch);
void fetches_stay(struct fetches *fetches, uint32_t fetch);
/* QUEUED, landed or STAGED, without waiters. */
void fetches_release(struct fetches *fetches, uint32_t fetch);

#endif
