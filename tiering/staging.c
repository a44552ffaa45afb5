/* staging: see staging.h. */
#include "tiering/staging.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "tiering/bundle_index.h"

enum { PAGE_BYTES = 4096, CHUNK_BYTES_MIN = 64 << 10, CHUNK_BYTES_MAX = 2 << 20, CHUNKS = 64 };

/* About a 64th of all: few allocations, and little beyond what a small step needs. */
static uint32_t
chunk_bytes_for(uint32_t slot_bytes, uint32_t max_slots)
{
    uint64_t bytes = (uint64_t)slot_bytes * max_slots / CHUNKS;

    bytes = bytes < CHUNK_BYTES_MIN ? CHUNK_BYTES_MIN : bytes;
    bytes = bytes > CHUNK_BYTES_MAX ? CHUNK_BYTES_MAX : bytes;
    bytes = bytes < slot_bytes ? slot_bytes : bytes;
    return (uint32_t)((bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES);
}

int
staging_init(struct staging *staging, uint32_t slot_bytes, uint32_t max_slots,
             const struct chunk_ops *memory, struct err *err)
{
    memset(staging, 0, sizeof *staging);
    staging->memory = *memory;
    staging->slot_bytes = slot_bytes;
    staging->chunk_bytes = chunk_bytes_for(slot_bytes, max_slots);
    staging->chunk_slots = staging->chunk_bytes / slot_bytes;
    staging->max_chunks = (max_slots + staging->chunk_slots - 1) / staging->chunk_slots;
    staging->chunk = calloc(staging->max_chunks, sizeof *staging->chunk);
    staging->free_slot =
        calloc((size_t)staging->max_chunks * staging->chunk_slots, sizeof *staging->free_slot);
    if (!staging->chunk || !staging->free_slot) {
        staging_free(staging);
        return err_set(err, ENOMEM, "no memory for staging");
    }
    return 0;
}

void
staging_free(struct staging *staging)
{
    for (uint32_t i = 0; i < staging->n_chunks; i++)
        staging->memory.free(staging->memory.arg, staging->chunk[i], staging->chunk_bytes);
    free(staging->chunk);
    free(staging->free_slot);
    memset(staging, 0, sizeof *staging);
}

static bool
grow(struct staging *staging)
{
    if (staging->n_chunks == staging->max_chunks)
        return false;
    uint8_t *chunk = staging->memory.alloc(staging->memory.arg, staging->chunk_bytes);
    if (!chunk)
        return false;
    uint32_t first = staging->n_chunks * staging->chunk_slots;
    staging->chunk[staging->n_chunks++] = chunk;
    for (uint32_t i = staging->chunk_slots; i-- > 0;)
        staging->free_slot[staging->n_free++] = first + i;
    atomic_store_explicit(&staging->bytes, (uint64_t)staging->n_chunks * staging->chunk_bytes,
                          memory_order_relaxed);
    return true;
}

void
staging_reserve(struct staging *staging, uint32_t slots)
{
    while (staging->n_free < slots && grow(staging))
        ;
}

uint32_t
staging_take(struct staging *staging)
{
    if (staging->n_free == 0 && !grow(staging))
        return NODE_NONE;
    return staging->free_slot[--staging->n_free];
}

void
staging_give(struct staging *staging, uint32_t slot)
{
    ASSERT(staging->n_free < staging->n_chunks * staging->chunk_slots);
    staging->free_slot[staging->n_free++] = slot;
}

uint32_t
staging_take_many(struct staging *staging, uint32_t n, uint32_t *ret_slots)
{
    staging_reserve(staging, n);
    n = n < staging->n_free ? n : staging->n_free;
    for (uint32_t i = 0; i < n; i++)
        ret_slots[i] = staging->free_slot[--staging->n_free];
    return n;
}

/* Backwards, so that whoever takes them next has them in the same order: one behind the other. */
void
staging_give_many(struct staging *staging, const uint32_t *slots, uint32_t n)
{
    ASSERT(staging->n_free + n <= staging->n_chunks * staging->chunk_slots);
    while (n-- > 0)
        staging->free_slot[staging->n_free++] = slots[n];
}

void *
staging_address(const struct staging *staging, uint32_t slot)
{
    return staging->chunk[slot / staging->chunk_slots] +
           (size_t)(slot % staging->chunk_slots) * staging->slot_bytes;
}
