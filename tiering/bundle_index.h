/* bundle_index: from (set, mix) to the number of the node that holds the bundle.
 *
 * Linear hashing with chains: the table of heads grows and shrinks by one bucket at a time, so
 * there is never a second table beside the first (a budget is obeyed while growing, too) and no
 * operation waits for a rehash. Open addressing was refused for those two. A bundle costs 16 bytes:
 * 8 for the mix and 4 for the chain in its node, 4 for a head. Nodes belong to the caller, who
 * keeps them in blocks.
 *
 * I1  every node in the table is in the chain of the bucket its hash names, once.
 * I2  buckets <= reserved heads; count may exceed it (chains get longer, nothing fails).
 *
 * Thread: one (resolver). */
#ifndef TIERING_BUNDLE_INDEX_H
#define TIERING_BUNDLE_INDEX_H

#include <stddef.h>
#include <stdint.h>

#include "tiering/cache_hint.h"

enum { NODE_NONE = UINT32_MAX };
enum { BUNDLE_SEGMENT_SHIFT = 8, BUNDLE_SEGMENT_HEADS = 1 << BUNDLE_SEGMENT_SHIFT };

struct bundle_node {
    uint64_t mix;
    uint32_t chain;               /* the index's */
    uint8_t set;                  /* table * n_orders + order */
    uint8_t state, visits, queue; /* the owner's: they fill the space the key leaves */
};

/* Where nodes are: node n is number n & mask of block n >> shift. Each begins with a bundle_node.
 */
struct node_space {
    uint8_t **block;
    uint32_t shift;
    size_t node_bytes;
};

static inline void *
node_at(const struct node_space *space, uint32_t node)
{
    return space->block[node >> space->shift] +
           (node & ((1u << space->shift) - 1)) * space->node_bytes;
}

struct bundle_index {
    const struct node_space *space;
    uint32_t **segment;
    uint32_t n_segments, segment_capacity;
    uint32_t buckets;  /* in use: at least 1 when n_segments > 0 */
    uint32_t low_mask; /* 2^k - 1 with 2^k <= buckets < 2^(k+1) */
    uint32_t count;
};

static inline uint32_t
bundle_hash(uint8_t set, uint64_t mix)
{
    uint64_t x = mix + (set + UINT64_C(1)) * 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93u;
    x = (x ^ (x >> 29)) * 0xd6e8feb86659fd93u;
    return (uint32_t)(x >> 32);
}

/* The head of the chain a hash belongs to. Needs buckets > 0, as all that follows. */
static inline uint32_t *
bundle_index_head(const struct bundle_index *index, uint32_t hash)
{
    uint32_t bucket = hash & (2 * index->low_mask + 1);
    bucket = bucket < index->buckets ? bucket : hash & index->low_mask;
    return &index->segment[bucket >> BUNDLE_SEGMENT_SHIFT][bucket & (BUNDLE_SEGMENT_HEADS - 1)];
}

/* One of many look-ups in stages: each brings what the next one reads into the cache, and comes some
 * look-ups after it, so that the cache misses of many are under way at once. In `at` is the node to
 * look at next, which the caller keeps; the index may not change while it does. */
static inline void
bundle_index_ask(const struct bundle_index *index, uint32_t hash)
{
    cache_hint(bundle_index_head(index, hash));
}
static inline void
bundle_index_prefetch(const struct bundle_index *index, uint32_t at)
{
    if (at != NODE_NONE)
        cache_hint(node_at(index->space, at));
}
static inline uint32_t
bundle_index_first(const struct bundle_index *index, uint32_t hash)
{
    uint32_t at = *bundle_index_head(index, hash);
    bundle_index_prefetch(index, at);
    return at;
}
/* The same node when it is the one. */
static inline uint32_t
bundle_index_next(const struct bundle_index *index, uint32_t at, uint8_t set, uint64_t mix)
{
    if (at == NODE_NONE)
        return NODE_NONE;
    const struct bundle_node *node = (const struct bundle_node *)node_at(index->space, at);
    /* No branch: whether the first is the one is a coin toss, and the processor would guess. */
    uint32_t same = -(uint32_t)((node->mix == mix) & (node->set == set));
    at = (at & same) | (node->chain & ~same);
    bundle_index_prefetch(index, at);
    return at;
}
static inline uint32_t
bundle_index_find_from(const struct bundle_index *index, uint32_t at, uint8_t set, uint64_t mix)
{
    while (at != NODE_NONE) {
        const struct bundle_node *node = (const struct bundle_node *)node_at(index->space, at);
        if (node->mix == mix && node->set == set)
            break;
        at = node->chain;
    }
    return at;
}

/* NODE_NONE: no such bundle. */
static inline uint32_t
bundle_index_find(const struct bundle_index *index, uint32_t hash, uint8_t set, uint64_t mix)
{
    if (index->count == 0)
        return NODE_NONE;
    return bundle_index_find_from(index, *bundle_index_head(index, hash), set, mix);
}

void bundle_index_init(struct bundle_index *index, const struct node_space *space);
void bundle_index_free(struct bundle_index *index);
/* Heads for so many bundles; -ENOMEM leaves what there was. */
int bundle_index_reserve(struct bundle_index *index, uint32_t heads);
/* Gives heads beyond this many back. */
void bundle_index_trim(struct bundle_index *index, uint32_t heads);
/* Bytes an index with so many heads takes. */
uint64_t bundle_index_bytes_for(const struct bundle_index *index, uint32_t heads);
uint64_t bundle_index_bytes(const struct bundle_index *index);
uint64_t bundle_index_bytes_trimmed(uint32_t heads); /* after bundle_index_trim to so many */

/* mix and set of the node are filled; no equal one may be in the index. Needs reserved heads. */
void bundle_index_insert(struct bundle_index *index, uint32_t node);
void bundle_index_remove(struct bundle_index *index, uint32_t node);

#endif
