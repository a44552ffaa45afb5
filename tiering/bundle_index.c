/* bundle_index: see bundle_index.h. */
#include "tiering/bundle_index.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"

enum { SEGMENT_SHIFT = BUNDLE_SEGMENT_SHIFT, SEGMENT_HEADS = BUNDLE_SEGMENT_HEADS };

static uint32_t *
head_at(const struct bundle_index *index, uint32_t bucket)
{
    return &index->segment[bucket >> SEGMENT_SHIFT][bucket & (SEGMENT_HEADS - 1)];
}

static struct bundle_node *
node_of(const struct bundle_index *index, uint32_t node)
{
    return node_at(index->space, node);
}

static uint32_t
hash_of(const struct bundle_node *node)
{
    return bundle_hash(node->set, node->mix);
}

void
bundle_index_init(struct bundle_index *index, const struct node_space *space)
{
    *index = (struct bundle_index){.space = space};
}

void
bundle_index_free(struct bundle_index *index)
{
    for (uint32_t i = 0; i < index->n_segments; i++)
        free(index->segment[i]);
    free(index->segment);
    *index = (struct bundle_index){0};
}

static uint32_t
segments_for(uint32_t heads)
{
    return heads / SEGMENT_HEADS + (heads % SEGMENT_HEADS != 0);
}

static uint32_t
directory_for(const struct bundle_index *index, uint32_t segments)
{
    uint32_t capacity = index->segment_capacity ? index->segment_capacity : 4;
    while (capacity < segments)
        capacity += capacity / 2 + 1;
    return capacity;
}

uint64_t
bundle_index_bytes_for(const struct bundle_index *index, uint32_t heads)
{
    uint32_t segments = segments_for(heads);
    if (segments < index->n_segments)
        segments = index->n_segments;
    if (segments == 0)
        return 0;
    return (uint64_t)segments * SEGMENT_HEADS * sizeof(uint32_t) +
           (uint64_t)directory_for(index, segments) * sizeof *index->segment;
}

uint64_t
bundle_index_bytes(const struct bundle_index *index)
{
    return (uint64_t)index->n_segments * SEGMENT_HEADS * sizeof(uint32_t) +
           (uint64_t)index->segment_capacity * sizeof *index->segment;
}

uint64_t
bundle_index_bytes_trimmed(uint32_t heads)
{
    uint32_t segments = segments_for(heads);
    return (uint64_t)segments * (SEGMENT_HEADS * sizeof(uint32_t) + sizeof(uint32_t *));
}

int
bundle_index_reserve(struct bundle_index *index, uint32_t heads)
{
    uint32_t segments = segments_for(heads);
    if (segments <= index->n_segments)
        return 0;
    uint32_t capacity = directory_for(index, segments);
    if (capacity > index->segment_capacity) {
        uint32_t **directory = realloc(index->segment, (size_t)capacity * sizeof *directory);
        if (!directory)
            return -ENOMEM;
        index->segment = directory;
        index->segment_capacity = capacity;
    }
    while (index->n_segments < segments) {
        uint32_t *segment = malloc(SEGMENT_HEADS * sizeof *segment);
        if (!segment)
            return -ENOMEM;
        memset(segment, 0xff, SEGMENT_HEADS * sizeof *segment); /* NODE_NONE */
        index->segment[index->n_segments++] = segment;
    }
    if (index->buckets == 0)
        index->buckets = 1;
    return 0;
}

/* Adds bucket number `buckets` and moves into it what belongs there from the one it splits. */
static void
split(struct bundle_index *index)
{
    uint32_t fresh = index->buckets, old = fresh & index->low_mask;
    uint32_t *from = head_at(index, old), *to = head_at(index, fresh);
    uint32_t wide_mask = 2 * index->low_mask + 1;
    while (*from != NODE_NONE) {
        struct bundle_node *node = node_of(index, *from);
        if ((hash_of(node) & wide_mask) == fresh) {
            uint32_t moved = *from;
            *from = node->chain;
            node->chain = NODE_NONE;
            *to = moved;
            to = &node->chain;
        } else {
            from = &node->chain;
        }
    }
    index->buckets++;
    if (index->buckets > wide_mask)
        index->low_mask = wide_mask;
}

/* The reverse: the last bucket joins the one it was split from. */
static void
join(struct bundle_index *index)
{
    uint32_t last = index->buckets - 1;
    if (last == index->low_mask && last > 0)
        index->low_mask /= 2;
    uint32_t *into = head_at(index, last & index->low_mask), *gone = head_at(index, last);
    while (*into != NODE_NONE)
        into = &node_of(index, *into)->chain;
    *into = *gone;
    *gone = NODE_NONE;
    index->buckets--;
}

void
bundle_index_trim(struct bundle_index *index, uint32_t heads)
{
    uint32_t segments = segments_for(heads);
    if (index->count > 0 && segments == 0)
        segments = 1;
    if (segments >= index->n_segments)
        return;
    while (index->buckets > 1 && index->buckets > segments * SEGMENT_HEADS)
        join(index);
    while (index->n_segments > segments)
        free(index->segment[--index->n_segments]);
    if (segments == 0) {
        free(index->segment);
        index->segment = NULL;
        index->segment_capacity = index->buckets = index->low_mask = 0;
        return;
    }
    uint32_t capacity = segments;
    uint32_t **directory = capacity < index->segment_capacity
                               ? realloc(index->segment, (size_t)capacity * sizeof *directory)
                               : NULL;
    if (directory) {
        index->segment = directory;
        index->segment_capacity = capacity;
    }
}

void
bundle_index_insert(struct bundle_index *index, uint32_t at)
{
    ASSERT(index->buckets > 0);
    struct bundle_node *node = node_of(index, at);
    uint32_t *head = bundle_index_head(index, hash_of(node));
    node->chain = *head;
    *head = at;
    index->count++;
    if (index->count > index->buckets && index->buckets < index->n_segments * SEGMENT_HEADS)
        split(index);
}

void
bundle_index_remove(struct bundle_index *index, uint32_t at)
{
    struct bundle_node *node = node_of(index, at);
    uint32_t *link = bundle_index_head(index, hash_of(node));
    while (*link != at) {
        ASSERT(*link != NODE_NONE); /* I1 */
        link = &node_of(index, *link)->chain;
    }
    *link = node->chain;
    index->count--;
}
