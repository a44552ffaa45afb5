/* slot: what a store knows of one of its slots, 24 bytes, and which steps keep a slot where it is.
 */
#ifndef TIERING_SLOT_H
#define TIERING_SLOT_H

#include <stdbool.h>
#include <stdint.h>

#include "tiering/bundle_index.h"

struct slot {
    struct bundle_node bundle; /* state: enum slot_state; visits, queue: the policy's */
    uint32_t last_step;        /* low 32 bits of the last step that was given this slot's address */
    uint32_t next;             /* free list, the policy's queue, or a step's promotions, by state */
};
_Static_assert(sizeof(struct slot) == 24, "the budget counts 24 bytes for each slot");

/* Steps first .. first + count - 1, modulo 2^32. A slot last used by one of them stays. Steps are
 * compared by their low 32 bits: a slot that nobody touched for four billion steps looks used for
 * the few steps of one range, and is then left alone that long. */
struct step_range {
    uint32_t first, count;
};

static inline bool
step_range_has(struct step_range range, uint32_t step)
{
    return step - range.first < range.count;
}

#endif
