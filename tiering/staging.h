/* staging: slots for bundles that pass through: no store had room for them, and they live as long
 * as the steps that read them. As many slots as all steps in flight can want, so taking one fails
 * only when there is no memory; that comes in chunks, as needed, and is kept. Thread: resolver;
 * bytes: any.                                                                    */
#ifndef TIERING_STAGING_H
#define TIERING_STAGING_H

#include <stdatomic.h>
#include <stdbool.h>

#include "tiering/tiers.h"

struct staging {
    struct chunk_ops memory;
    uint32_t slot_bytes, chunk_bytes, chunk_slots;
    uint8_t **chunk; /* [max_chunks] */
    uint32_t n_chunks, max_chunks;
    uint32_t *free_slot; /* stack [max_chunks * chunk_slots] */
    uint32_t n_free;
    _Atomic uint64_t bytes;
};

int staging_init(struct staging *staging, uint32_t slot_bytes, uint32_t max_slots,
                 const struct chunk_ops *memory, struct err *err);
void staging_free(struct staging *staging);
/* Allocates so many slots beforehand, as far as there is memory. */
void staging_reserve(struct staging *staging, uint32_t slots);
uint32_t staging_take(struct staging *staging); /* NODE_NONE: no memory */
void staging_give(struct staging *staging, uint32_t slot);
/* Up to n at once; returns how many there was memory for. */
uint32_t staging_take_many(struct staging *staging, uint32_t n, uint32_t *ret_slots);
void staging_give_many(struct staging *staging, const uint32_t *slots, uint32_t n);
void *staging_address(const struct staging *staging, uint32_t slot);

#endif
