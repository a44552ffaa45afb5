/* slot_store: bundles in fixed slots of memory given in chunks; the HBM and the RAM store are one
 * each.
 *
 *             take                settle
 *     FREE ----------> FILLING ----------> RESIDENT
 *       ^                 |                   |
 *       +-----drop--------+                   |
 *       +--evicted by take, or with its chunk-+
 *
 * S1  a RESIDENT slot is in the index; a FILLING one is iff `listed` when it was taken (HBM: the
 * gather of a step fills it, and nobody may promote it twice; RAM: the fetch in flight stands for
 * it). S2  the policy knows a slot iff it is RESIDENT and its chunk stays. S3  a slot whose last
 * step is in the range a caller keeps is neither evicted nor freed. S4  used <= max(budget, what
 * was used when the budget shrank), after every operation; bytes of chunks, slot records, index and
 * tables all count. S5  a leaving chunk gives out no slot; it is freed once none of its slots is
 * FILLING or kept.
 *
 * A chunk is about an eighth of the budget, 2 MiB at most, and is allocated when the slots run out,
 * so a budget larger than the tables costs nothing. A shrinking store lets its newest chunks go,
 * with what is in them: refused was moving bundles to other chunks, which would have to move them
 * under a running step. Thread: resolver; counters: any. */
#ifndef TIERING_SLOT_STORE_H
#define TIERING_SLOT_STORE_H

#include <stdatomic.h>

#include "tiering/policy.h"
#include "tiering/tiers.h"

enum slot_state { SLOT_FREE, SLOT_FILLING, SLOT_RESIDENT };
enum { SLOT_STORE_MAX_SETS = SHAPE_MAX_ENGRAM_LAYERS * SHAPE_MAX_ORDERS };

struct slot_chunk {
    uint8_t *memory; /* NULL: this place in the table is unused */
    uint32_t n_slots, bytes;
    uint32_t n_taken; /* slots not FREE */
    bool leaving;
};

struct slot_store {
    struct chunk_ops memory;
    uint32_t slot_bytes; /* bundle, rounded up to 8 */
    uint64_t budget_bytes;
    uint64_t memory_bytes, record_bytes; /* of chunks and of their slots' records */

    struct node_space slots;           /* records: block[chunk] */
    struct slot_chunk *chunk;          /* [chunk_capacity], beside slots.block */
    uint32_t n_chunks, chunk_capacity; /* places used at some time; places */
    uint32_t n_leaving;
    uint32_t n_slots, n_free; /* in chunks that stay */
    uint32_t free_slots;      /* list */
    bool full;                /* the budget has no room for another chunk */
    uint32_t grow_pause;      /* takes to wait before memory that was refused is asked for again */

    struct bundle_index index;
    struct policy *policy;

    /* One writer; read by tiers_stats. */
    _Atomic uint64_t used_shown, budget_shown;
    _Atomic uint64_t taken[SLOT_STORE_MAX_SETS];     /* slots, by set */
    _Atomic uint64_t evictions[SLOT_STORE_MAX_SETS]; /* bundles, by set */
};

int slot_store_init(struct slot_store *store, uint32_t bundle_bytes, const struct chunk_ops *memory,
                    uint64_t budget_bytes, struct err *err);
/* Frees everything, whoever uses it. */
void slot_store_free(struct slot_store *store);

static inline struct slot *
slot_store_slot(const struct slot_store *store, uint32_t slot)
{
    return node_at(&store->slots, slot);
}
static inline void *
slot_store_address(const struct slot_store *store, uint32_t slot)
{
    uint32_t in_chunk = slot & ((1u << store->slots.shift) - 1);
    return store->chunk[slot >> store->slots.shift].memory + (size_t)in_chunk * store->slot_bytes;
}
static inline uint32_t
slot_store_find(const struct slot_store *store, uint32_t hash, uint8_t set, uint64_t mix)
{
    return bundle_index_find(&store->index, hash, set, mix);
}

/* A slot for this bundle, FILLING: a free one, one of a new chunk, or a victim that no step of
 * `keep` uses. NODE_NONE: no room. */
uint32_t slot_store_take(struct slot_store *store, uint8_t set, uint64_t mix,
                         struct step_range keep, enum arrival arrival, bool listed);
/* There is no room but that of a victim, and slot_store_make_room would not change it. */
static inline bool
slot_store_is_full(const struct slot_store *store)
{
    return store->n_free == 0 && store->full;
}
/* Whether take needs no victim; grows to find out. */
bool slot_store_make_room(struct slot_store *store);
/* The bundle is in the slot. */
void slot_store_settle(struct slot_store *store, uint32_t slot, enum arrival arrival);
/* The bundle will not come: FILLING to FREE. */
void slot_store_drop(struct slot_store *store, uint32_t slot);

void slot_store_resize(struct slot_store *store, uint64_t budget_bytes, struct step_range keep);
/* Frees what has become free of leaving chunks; cheap when there are none. */
void slot_store_tidy(struct slot_store *store, struct step_range keep);
uint64_t slot_store_used(const struct slot_store *store);

#endif
