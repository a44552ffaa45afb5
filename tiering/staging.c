/* staging: see staging.h. */
#include "tiering/staging.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "tiering/bundle_index.h"

enum { PAGE_BYTES = 4096, CHUNK_BYTES = 64 << 10 };

int
staging_init(struct staging *staging, uint32_t slot_bytes, uint32_t max_slots,
             const struct chunk_ops *memory, struct err *err)
{
    memset(staging, 0, sizeof *staging);
    staging->memory = *memory;
    staging->slot_bytes = slot_bytes;
    staging->chunk_bytes = slot_bytes > CHUNK_BYTES
                               ? (slot_bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES
                               : CHUNK_BYTES;
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

uint32_t
staging_take(struct staging *staging)
{
    if (staging->n_free == 0) {
        if (staging->n_chunks == staging->max_chunks)
            return NODE_NONE;
        uint8_t *chunk = staging->memory.alloc(staging->memory.arg, staging->chunk_bytes);
        if (!chunk)
            return NODE_NONE;
        uint32_t first = staging->n_chunks * staging->chunk_slots;
        staging->chunk[staging->n_chunks++] = chunk;
        for (uint32_t i = staging->chunk_slots; i-- > 0;)
            staging->free_slot[staging->n_free++] = first + i;
        atomic_store_explicit(&staging->bytes, (uint64_t)staging->n_chunks * staging->chunk_bytes,
                              memory_order_relaxed);
    }
    return staging->free_slot[--staging->n_free];
}

void
staging_give(struct staging *staging, uint32_t slot)
{
    ASSERT(staging->n_free < staging->n_chunks * staging->chunk_slots);
    staging->free_slot[staging->n_free++] = slot;
}

void *
staging_address(const struct staging *staging, uint32_t slot)
{
    return staging->chunk[slot / staging->chunk_slots] +
           (size_t)(slot % staging->chunk_slots) * staging->slot_bytes;
}
