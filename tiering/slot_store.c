/* slot_store: see slot_store.h. */
#include "tiering/slot_store.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"

enum { PAGE_BYTES = 4096, CHUNK_BYTES_MAX = 2 << 20, GROW_PAUSE = 512, GROW_PAUSE_LATER = 32 };
enum { EXPECTED = 6 }; /* victims asked for ahead */

static void
count_up(_Atomic uint64_t *counter, uint64_t by)
{
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + by,
                          memory_order_relaxed);
}

static uint32_t
chunk_of(const struct slot_store *store, uint32_t slot)
{
    return slot >> store->slots.shift;
}

static uint64_t
chunk_bytes(const struct slot_chunk *chunk)
{
    return chunk->bytes + (uint64_t)chunk->n_slots * sizeof(struct slot);
}

static uint64_t
table_bytes(uint32_t capacity)
{
    return (uint64_t)capacity * (sizeof(struct slot_chunk) + sizeof(uint8_t *));
}

uint64_t
slot_store_used(const struct slot_store *store)
{
    return store->memory_bytes + store->record_bytes + table_bytes(store->chunk_capacity) +
           bundle_index_bytes(&store->index);
}

static void
show_used(struct slot_store *store)
{
    atomic_store_explicit(&store->used_shown, slot_store_used(store), memory_order_relaxed);
    atomic_store_explicit(&store->budget_shown, store->budget_bytes, memory_order_relaxed);
}

int
slot_store_init(struct slot_store *store, uint32_t bundle_bytes, const struct chunk_ops *memory,
                uint64_t budget_bytes, struct err *err)
{
    ASSERT(bundle_bytes > 0);
    memset(store, 0, sizeof *store);
    store->memory = *memory;
    store->slot_bytes = (bundle_bytes + 7) / 8 * 8;
    store->budget_bytes = budget_bytes;
    store->free_slots = NODE_NONE;
    store->slots.node_bytes = sizeof(struct slot);
    while ((uint64_t)store->slot_bytes << store->slots.shift < CHUNK_BYTES_MAX)
        store->slots.shift++;
    bundle_index_init(&store->index, &store->slots);
    store->policy = two_queue_policy_new(&store->slots);
    if (!store->policy)
        return err_set(err, ENOMEM, "no memory for a store of N-gram bundles");
    show_used(store);
    return 0;
}

static void
free_chunk(struct slot_store *store, uint32_t number)
{
    struct slot_chunk *chunk = &store->chunk[number];
    store->memory_bytes -= chunk->bytes;
    store->record_bytes -= (uint64_t)chunk->n_slots * sizeof(struct slot);
    store->memory.free(store->memory.arg, chunk->memory, chunk->bytes);
    free(store->slots.block[number]);
    store->slots.block[number] = NULL;
    store->full = false;
    if (chunk->leaving)
        store->n_leaving--;
    *chunk = (struct slot_chunk){0};
}

void
slot_store_free(struct slot_store *store)
{
    for (uint32_t i = 0; i < store->n_chunks; i++)
        if (store->chunk[i].memory)
            free_chunk(store, i);
    free(store->chunk);
    free(store->slots.block);
    bundle_index_free(&store->index);
    if (store->policy)
        store->policy->ops->free(store->policy);
    memset(store, 0, sizeof *store);
}

/* Bytes that a chunk of this size, its records, and the index and table it needs would add. */
static uint64_t
chunk_cost(const struct slot_store *store, uint32_t bytes, uint32_t table_capacity)
{
    uint32_t n_slots = bytes / store->slot_bytes;
    return bytes + (uint64_t)n_slots * sizeof(struct slot) +
           bundle_index_bytes_for(&store->index, store->n_slots + n_slots) -
           bundle_index_bytes(&store->index) + table_bytes(table_capacity) -
           table_bytes(store->chunk_capacity);
}

/* A free place in the chunk table; its index, or the table's length when it must grow. */
static uint32_t
chunk_place(const struct slot_store *store)
{
    if (store->n_chunks < store->chunk_capacity)
        return store->n_chunks;
    for (uint32_t i = 0; i < store->n_chunks; i++)
        if (!store->chunk[i].memory)
            return i;
    return store->n_chunks;
}

/* Size of the next chunk within the budget; 0: there is no room for one. */
static uint32_t
next_chunk_bytes(const struct slot_store *store, uint32_t table_capacity)
{
    uint64_t used = slot_store_used(store);
    uint32_t least = (store->slot_bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
    if (used >= store->budget_bytes || store->budget_bytes - used <= least)
        return 0;
    uint64_t left = store->budget_bytes - used, bytes = store->budget_bytes / 8;
    bytes = bytes < CHUNK_BYTES_MAX ? bytes : CHUNK_BYTES_MAX;
    bytes = bytes < left ? bytes : left;
    bytes = bytes / PAGE_BYTES * PAGE_BYTES;
    if (bytes < least)
        bytes = least;
    /* What a rest of the budget holds is found by trying: records and index come on top. */
    while (bytes > least && chunk_cost(store, (uint32_t)bytes, table_capacity) > left) {
        uint64_t over = chunk_cost(store, (uint32_t)bytes, table_capacity) - left;
        uint64_t less = over / 2 / PAGE_BYTES * PAGE_BYTES + PAGE_BYTES;
        bytes = bytes > less + least ? bytes - less : least;
    }
    return chunk_cost(store, (uint32_t)bytes, table_capacity) <= left ? (uint32_t)bytes : 0;
}

static int
grow_table(struct slot_store *store, uint32_t capacity)
{
    if (capacity <= store->chunk_capacity)
        return 0;
    uint8_t **block = realloc(store->slots.block, (size_t)capacity * sizeof *block);
    if (!block)
        return -ENOMEM;
    store->slots.block = block;
    struct slot_chunk *chunk = realloc(store->chunk, (size_t)capacity * sizeof *chunk);
    if (!chunk)
        return -ENOMEM;
    store->chunk = chunk;
    store->chunk_capacity = capacity;
    return 0;
}

static bool
grow(struct slot_store *store)
{
    if (store->full)
        return false;
    if (store->grow_pause > 0) {
        store->grow_pause--;
        return false;
    }
    uint32_t place = chunk_place(store);
    uint32_t capacity = store->chunk_capacity;
    if (place == capacity)
        capacity = capacity ? capacity + capacity / 2 + 1 : 8;
    if (capacity > (NODE_NONE >> store->slots.shift))
        return false;
    uint32_t bytes = next_chunk_bytes(store, capacity);
    if (bytes == 0) {
        store->full = true;
        return false;
    }
    uint32_t n_slots = bytes / store->slot_bytes;
    struct slot *records = malloc((size_t)n_slots * sizeof *records);
    uint8_t *memory = records ? store->memory.alloc(store->memory.arg, bytes) : NULL;
    if (!memory || grow_table(store, capacity) < 0 ||
        bundle_index_reserve(&store->index, store->n_slots + n_slots) < 0) {
        if (memory)
            store->memory.free(store->memory.arg, memory, bytes);
        free(records);
        bool later = store->memory.later && store->memory.later(store->memory.arg);

        store->grow_pause = later ? GROW_PAUSE_LATER : GROW_PAUSE;
        return false;
    }
    store->slots.block[place] = (uint8_t *)records;
    store->chunk[place] = (struct slot_chunk){.memory = memory, .n_slots = n_slots, .bytes = bytes};
    if (place == store->n_chunks)
        store->n_chunks++;
    store->memory_bytes += bytes;
    store->record_bytes += (uint64_t)n_slots * sizeof *records;
    store->n_slots += n_slots;
    store->n_free += n_slots;
    for (uint32_t i = n_slots; i-- > 0;) {
        records[i] = (struct slot){.next = store->free_slots};
        store->free_slots = place << store->slots.shift | i;
    }
    ASSERT(slot_store_used(store) <= store->budget_bytes); /* S4 */
    show_used(store);
    return true;
}

/* Back to FREE, whatever it was. */
static void
release(struct slot_store *store, uint32_t at)
{
    struct slot *slot = slot_store_slot(store, at);
    struct slot_chunk *chunk = &store->chunk[chunk_of(store, at)];
    slot->bundle.state = SLOT_FREE;
    chunk->n_taken--;
    count_up(&store->taken[slot->bundle.set], UINT64_MAX); /* minus one */
    if (!chunk->leaving) {                                 /* S5 */
        slot->next = store->free_slots;
        store->free_slots = at;
        store->n_free++;
    }
}

static void
evict(struct slot_store *store, uint32_t at)
{
    struct slot *slot = slot_store_slot(store, at);
    ASSERT(slot->bundle.state == SLOT_RESIDENT); /* S2 */
    bundle_index_remove(&store->index, at);
    count_up(&store->evictions[slot->bundle.set], 1);
    release(store, at);
}

/* What it takes to evict the next few, each time one step further for each: the record, the index's head
 * for it, the first node there. Without it, each cache miss of a displacement waits for the one before. */
static void
expect_victims(const struct slot_store *store)
{
    uint32_t slot[EXPECTED];
    int n = store->policy->ops->next(store->policy, slot, EXPECTED);

    if (n > 0)
        cache_hint(slot_store_slot(store, slot[n - 1]));
    for (int i = 0; i + 1 < n; i++) {
        const struct bundle_node *bundle = &slot_store_slot(store, slot[i])->bundle;
        uint32_t hash = bundle_hash(bundle->set, bundle->mix);

        if (i < EXPECTED / 2)
            (void)bundle_index_first(&store->index, hash);
        else
            bundle_index_ask(&store->index, hash);
    }
}

bool
slot_store_make_room(struct slot_store *store)
{
    return store->n_free > 0 || grow(store);
}

uint32_t
slot_store_take(struct slot_store *store, uint8_t set, uint64_t mix, struct step_range keep,
                enum arrival arrival, bool listed)
{
    if (store->n_free == 0 && !grow(store)) {
        uint32_t victim = store->policy->ops->victim(store->policy, keep, arrival);
        if (victim == NODE_NONE)
            return NODE_NONE;
        evict(store, victim);
        expect_victims(store);
    }
    uint32_t at = store->free_slots;
    struct slot *slot = slot_store_slot(store, at);
    struct slot_chunk *chunk = &store->chunk[chunk_of(store, at)];
    ASSERT(slot->bundle.state == SLOT_FREE && !chunk->leaving);
    store->free_slots = slot->next;
    store->n_free--;
    chunk->n_taken++;
    slot->bundle = (struct bundle_node){.mix = mix, .set = set, .state = SLOT_FILLING};
    slot->bundle.queue = listed;
    slot->last_step = keep.first - 1; /* a step that is over */
    slot->next = NODE_NONE;
    count_up(&store->taken[set], 1);
    if (listed)
        bundle_index_insert(&store->index, at);
    return at;
}

void
slot_store_settle(struct slot_store *store, uint32_t at, enum arrival arrival)
{
    struct slot *slot = slot_store_slot(store, at);
    ASSERT(slot->bundle.state == SLOT_FILLING);
    if (!slot->bundle.queue)
        bundle_index_insert(&store->index, at);
    slot->bundle.queue = 0;
    slot->bundle.state = SLOT_RESIDENT;
    if (!store->chunk[chunk_of(store, at)].leaving) /* S2 */
        store->policy->ops->insert(store->policy, at, arrival);
}

void
slot_store_drop(struct slot_store *store, uint32_t at)
{
    struct slot *slot = slot_store_slot(store, at);
    ASSERT(slot->bundle.state == SLOT_FILLING);
    if (slot->bundle.queue)
        bundle_index_remove(&store->index, at);
    release(store, at);
}

static bool
in_leaving_chunk(void *arg, uint32_t slot)
{
    const struct slot_store *store = arg;
    return store->chunk[chunk_of(store, slot)].leaving;
}

/* Slots of leaving chunks leave the free list. */
static void
filter_free(struct slot_store *store)
{
    uint32_t at = store->free_slots, *link = &store->free_slots;
    store->n_free = 0;
    while (at != NODE_NONE) {
        struct slot *slot = slot_store_slot(store, at);
        if (!in_leaving_chunk(store, at)) {
            *link = at;
            link = &slot->next;
            store->n_free++;
        }
        at = slot->next;
    }
    *link = NODE_NONE;
}

static void
trim_tables(struct slot_store *store)
{
    while (store->n_chunks > 0 && !store->chunk[store->n_chunks - 1].memory)
        store->n_chunks--;
    uint32_t heads = store->n_slots > store->index.count ? store->n_slots : store->index.count;
    if (heads == 0 && store->n_chunks > 0)
        heads = 1; /* a bundle may still be on its way into a leaving chunk */
    bundle_index_trim(&store->index, heads);
    if (store->n_chunks == 0) {
        free(store->chunk);
        free(store->slots.block);
        store->chunk = NULL;
        store->slots.block = NULL;
        store->chunk_capacity = 0;
    } else if (store->chunk_capacity > store->n_chunks) {
        /* Shorter tables: a failure leaves the longer ones, which are counted as they are. */
        uint32_t capacity = store->n_chunks;
        struct slot_chunk *chunk = realloc(store->chunk, (size_t)capacity * sizeof *chunk);
        uint8_t **block = realloc(store->slots.block, (size_t)capacity * sizeof *block);
        store->chunk = chunk ? chunk : store->chunk;
        store->slots.block = block ? block : store->slots.block;
        if (chunk && block)
            store->chunk_capacity = capacity;
    }
}

void
slot_store_tidy(struct slot_store *store, struct step_range keep)
{
    if (store->n_leaving == 0)
        return;
    for (uint32_t i = 0; i < store->n_chunks; i++) {
        struct slot_chunk *chunk = &store->chunk[i];
        if (!chunk->memory || !chunk->leaving)
            continue;
        for (uint32_t k = 0; k < chunk->n_slots && chunk->n_taken > 0; k++) {
            uint32_t at = i << store->slots.shift | k;
            struct slot *slot = slot_store_slot(store, at);
            if (slot->bundle.state == SLOT_RESIDENT && !step_range_has(keep, slot->last_step))
                evict(store, at); /* S3 */
        }
        if (chunk->n_taken == 0)
            free_chunk(store, i); /* S5 */
    }
    trim_tables(store);
    show_used(store);
}

void
slot_store_resize(struct slot_store *store, uint64_t budget_bytes, struct step_range keep)
{
    store->budget_bytes = budget_bytes;
    store->grow_pause = 0;
    store->full = false;
    /* What is left when the leaving chunks are gone; the newest go first. */
    uint64_t left = store->memory_bytes + store->record_bytes;
    for (uint32_t i = 0; i < store->n_chunks; i++)
        if (store->chunk[i].leaving)
            left -= chunk_bytes(&store->chunk[i]);
    bool shrinks = false;
    for (uint32_t i = store->n_chunks; i-- > 0;) {
        struct slot_chunk *chunk = &store->chunk[i];
        if (left + table_bytes(i + 1) + bundle_index_bytes_trimmed(store->n_slots) <= budget_bytes)
            break;
        if (!chunk->memory || chunk->leaving)
            continue;
        chunk->leaving = true;
        store->n_leaving++;
        store->n_slots -= chunk->n_slots;
        left -= chunk_bytes(chunk);
        shrinks = true;
    }
    if (shrinks) {
        store->policy->ops->remove_if(store->policy, in_leaving_chunk, store);
        filter_free(store);
    }
    slot_store_tidy(store, keep);
    show_used(store);
}
