/* nvme_queue: see nvme_queue.h. A binary heap by deadline and an open-addressing map from page to
 * extent; both and the pool of extents grow by doubling and never shrink: their size is that of the
 * deepest queue there ever was, which the submitter bounds. */
#include "tiering/nvme_queue.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"

enum { EXTENTS_PER_BLOCK = 128 };

struct extent_block {
    struct extent_block *next;
    struct extent extent[EXTENTS_PER_BLOCK];
};

struct page_entry {
    uint64_t key; /* page_key(); 0: empty */
    struct extent *extent;
};

struct nvme_queue {
    uint32_t page_shift, max_pages;
    uint64_t next_order;

    struct extent **heap;
    uint32_t heap_count, heap_capacity;

    struct page_entry *map;
    uint32_t map_count, map_mask; /* capacity - 1 */

    struct extent_block *blocks;
    struct extent *free_extents;
    uint32_t n_extents; /* in use */
};

/* File numbers are below 2^15 and pages below 2^48 (2^60 bytes of 4 KiB pages); 1 sets it off from
 * an empty entry. */
static uint64_t
page_key(int file, uint64_t page)
{
    return (page << 16 | (uint64_t)(uint32_t)file << 1) | 1;
}

static uint32_t
map_home(const struct nvme_queue *queue, uint64_t key)
{
    key *= 0x9e3779b97f4a7c15u;
    return (uint32_t)(key >> 32) & queue->map_mask;
}

static struct extent *
map_find(const struct nvme_queue *queue, int file, uint64_t page)
{
    uint64_t key = page_key(file, page);
    for (uint32_t i = map_home(queue, key);; i = (i + 1) & queue->map_mask) {
        if (queue->map[i].key == key)
            return queue->map[i].extent;
        if (!queue->map[i].key)
            return NULL;
    }
}

static void
map_put(struct nvme_queue *queue, uint64_t key, struct extent *extent)
{
    uint32_t i = map_home(queue, key);
    while (queue->map[i].key && queue->map[i].key != key)
        i = (i + 1) & queue->map_mask;
    if (queue->map[i].key) {
        /* Q3: of two extents that cover the page, name the one that can still be joined longest. */
        if (queue->map[i].extent->heap_place < 0)
            queue->map[i].extent = extent;
        return;
    }
    queue->map[i] = (struct page_entry){key, extent};
    queue->map_count++;
}

static void
map_drop(struct nvme_queue *queue, uint64_t key, const struct extent *extent)
{
    uint32_t i = map_home(queue, key);
    while (queue->map[i].key && queue->map[i].key != key)
        i = (i + 1) & queue->map_mask;
    if (!queue->map[i].key || queue->map[i].extent != extent)
        return;
    /* Close the gap: an entry further on moves up unless its home lies behind the gap. */
    for (uint32_t gap = i, k = (i + 1) & queue->map_mask;; k = (k + 1) & queue->map_mask) {
        if (!queue->map[k].key) {
            queue->map[gap] = (struct page_entry){0};
            break;
        }
        uint32_t home = map_home(queue, queue->map[k].key);
        if (((k - home) & queue->map_mask) >= ((k - gap) & queue->map_mask)) {
            queue->map[gap] = queue->map[k];
            gap = k;
        }
    }
    queue->map_count--;
}

/* Room for n more pages at a load of at most one half. */
static int
map_reserve(struct nvme_queue *queue, uint32_t n)
{
    uint64_t capacity = (uint64_t)queue->map_mask + 1;
    if (2 * ((uint64_t)queue->map_count + n) <= capacity)
        return 0;
    while (2 * ((uint64_t)queue->map_count + n) > capacity)
        capacity *= 2;
    if (capacity > (1u << 31))
        return -ENOMEM;
    struct page_entry *old = queue->map, *map = calloc(capacity, sizeof *map);
    if (!map)
        return -ENOMEM;
    uint32_t old_mask = queue->map_mask;
    queue->map = map;
    queue->map_mask = (uint32_t)capacity - 1;
    queue->map_count = 0;
    for (uint32_t i = 0; i <= old_mask; i++)
        if (old[i].key)
            map_put(queue, old[i].key, old[i].extent);
    free(old);
    return 0;
}

static bool
before(const struct extent *a, const struct extent *b)
{
    return a->deadline_ns != b->deadline_ns ? a->deadline_ns < b->deadline_ns : a->order < b->order;
}

static void
heap_up(struct nvme_queue *queue, uint32_t place)
{
    struct extent *extent = queue->heap[place];
    while (place > 0 && before(extent, queue->heap[(place - 1) / 2])) {
        queue->heap[place] = queue->heap[(place - 1) / 2];
        queue->heap[place]->heap_place = (int)place;
        place = (place - 1) / 2;
    }
    queue->heap[place] = extent;
    extent->heap_place = (int)place;
}

static void
heap_down(struct nvme_queue *queue, uint32_t place)
{
    struct extent *extent = queue->heap[place];
    for (;;) {
        uint32_t child = 2 * place + 1;
        if (child >= queue->heap_count)
            break;
        if (child + 1 < queue->heap_count && before(queue->heap[child + 1], queue->heap[child]))
            child++;
        if (!before(queue->heap[child], extent))
            break;
        queue->heap[place] = queue->heap[child];
        queue->heap[place]->heap_place = (int)place;
        place = child;
    }
    queue->heap[place] = extent;
    extent->heap_place = (int)place;
}

static int
heap_reserve(struct nvme_queue *queue)
{
    if (queue->heap_count < queue->heap_capacity)
        return 0;
    uint32_t capacity = queue->heap_capacity ? 2 * queue->heap_capacity : 256;
    struct extent **heap = realloc(queue->heap, (size_t)capacity * sizeof *heap);
    if (!heap)
        return -ENOMEM;
    queue->heap = heap;
    queue->heap_capacity = capacity;
    return 0;
}

static struct extent *
extent_take(struct nvme_queue *queue)
{
    if (!queue->free_extents) {
        struct extent_block *block = calloc(1, sizeof *block);
        if (!block)
            return NULL;
        block->next = queue->blocks;
        queue->blocks = block;
        for (int i = 0; i < EXTENTS_PER_BLOCK; i++) {
            block->extent[i].next_free = queue->free_extents;
            queue->free_extents = &block->extent[i];
        }
    }
    struct extent *extent = queue->free_extents;
    queue->free_extents = extent->next_free;
    *extent = (struct extent){0};
    queue->n_extents++;
    return extent;
}

struct nvme_queue *
nvme_queue_new(uint32_t page_bytes, uint32_t max_pages)
{
    ASSERT(page_bytes && (page_bytes & (page_bytes - 1)) == 0 && max_pages > 0);
    struct nvme_queue *queue = calloc(1, sizeof *queue);
    if (!queue)
        return NULL;
    queue->page_shift = (uint32_t)__builtin_ctz(page_bytes);
    queue->max_pages = max_pages;
    queue->map_mask = 255;
    queue->map = calloc(256, sizeof *queue->map);
    if (!queue->map) {
        free(queue);
        return NULL;
    }
    return queue;
}

struct nvme_queue *
nvme_queue_free(struct nvme_queue *queue)
{
    if (!queue)
        return NULL;
    ASSERT(queue->n_extents == 0 && queue->map_count == 0);
    while (queue->blocks) {
        struct extent_block *next = queue->blocks->next;
        free(queue->blocks);
        queue->blocks = next;
    }
    free(queue->map);
    free(queue->heap);
    free(queue);
    return NULL;
}

bool
nvme_queue_waiting(const struct nvme_queue *queue)
{
    return queue->heap_count > 0;
}

static uint64_t
last_page(const struct extent *extent)
{
    return extent->first_page + extent->n_pages - 1;
}

/* Q1 and Q4. */
static bool
covers(const struct nvme_queue *queue, const struct extent *extent, const struct cold_read *read,
       uint64_t last)
{
    return last <= last_page(extent) &&
           (extent->heap_place >= 0 || read->offset_bytes >= extent->served_bytes);
}

/* The extent that [first, last] may join by making it cover that too: one that holds the first or
 * the last page, or ends right before, or begins right behind. */
static struct extent *
neighbour(const struct nvme_queue *queue, int file, uint64_t first, uint64_t last)
{
    const uint64_t page[4] = {first, last, first - 1, last + 1};
    for (int i = 0; i < 4; i++) {
        if (i == 2 && first == 0)
            continue;
        struct extent *extent = map_find(queue, file, page[i]);
        if (!extent || extent->heap_place < 0)
            continue;
        uint64_t from = first < extent->first_page ? first : extent->first_page;
        uint64_t to = last > last_page(extent) ? last : last_page(extent);
        if (to - from < queue->max_pages)
            return extent;
    }
    return NULL;
}

static void
map_extent(struct nvme_queue *queue, struct extent *extent)
{
    for (uint32_t i = 0; i < extent->n_pages; i++)
        map_put(queue, page_key(extent->file, extent->first_page + i), extent);
}

int
nvme_queue_add(struct nvme_queue *queue, struct cold_read *read)
{
    ASSERT(read->size_bytes > 0 && read->file >= 0 && read->file < 1 << 15);
    uint64_t first = read->offset_bytes >> queue->page_shift;
    uint64_t last = (read->offset_bytes + read->size_bytes - 1) >> queue->page_shift;
    struct extent *extent = map_find(queue, read->file, first);
    bool joined = true;
    if (!extent || !covers(queue, extent, read, last)) {
        if (map_reserve(queue, (uint32_t)(last - first + 1)) < 0)
            return -ENOMEM;
        extent = neighbour(queue, read->file, first, last);
        if (extent) {
            uint64_t from = first < extent->first_page ? first : extent->first_page;
            uint64_t to = last > last_page(extent) ? last : last_page(extent);
            extent->first_page = from;
            extent->n_pages = (uint32_t)(to - from + 1);
        } else {
            if (heap_reserve(queue) < 0 || !(extent = extent_take(queue)))
                return -ENOMEM;
            joined = false;
            extent->file = read->file;
            extent->first_page = first;
            extent->n_pages = (uint32_t)(last - first + 1);
            extent->deadline_ns = read->deadline_ns;
            extent->order = queue->next_order++;
            extent->heap_place = (int)queue->heap_count;
            queue->heap[queue->heap_count++] = extent;
            heap_up(queue, (uint32_t)extent->heap_place);
        }
        map_extent(queue, extent);
    }
    read_chain_add(&extent->reads, read);
    if (extent->heap_place >= 0 && read->deadline_ns < extent->deadline_ns) {
        extent->deadline_ns = read->deadline_ns;
        heap_up(queue, (uint32_t)extent->heap_place);
    }
    return joined;
}

struct extent *
nvme_queue_pop(struct nvme_queue *queue)
{
    if (queue->heap_count == 0)
        return NULL;
    struct extent *extent = queue->heap[0], *last = queue->heap[--queue->heap_count];
    if (last != extent) {
        queue->heap[0] = last;
        heap_down(queue, 0);
    }
    extent->heap_place = -1;
    extent->served_bytes = extent->first_page << queue->page_shift;
    return extent;
}

void
nvme_queue_remove(struct nvme_queue *queue, struct extent *extent)
{
    ASSERT(extent->heap_place < 0 && extent->reads.first == NULL); /* Q1, Q2 */
    for (uint32_t i = 0; i < extent->n_pages; i++)
        map_drop(queue, page_key(extent->file, extent->first_page + i), extent);
    extent->next_free = queue->free_extents;
    queue->free_extents = extent;
    ASSERT(queue->n_extents > 0);
    queue->n_extents--;
}

void
extent_deliver(struct extent *extent, const uint8_t *buffer, uint64_t size_bytes,
               struct read_chain *finished)
{
    uint64_t begin = extent->served_bytes, end = begin + size_bytes;
    struct read_chain left = {0};
    struct cold_read *read;
    while ((read = read_chain_pop(&extent->reads))) {
        uint64_t from = read->offset_bytes > begin ? read->offset_bytes : begin;
        uint64_t read_end = read->offset_bytes + read->size_bytes;
        uint64_t to = read_end < end ? read_end : end;
        if (from < to)
            memcpy((uint8_t *)read->dst + (from - read->offset_bytes), buffer + (from - begin),
                   to - from);
        read->result = 0;
        read_chain_add(read_end <= end ? finished : &left, read);
    }
    extent->reads = left;
}

void
extent_fail(struct extent *extent, uint64_t end, int result, struct read_chain *finished)
{
    struct read_chain left = {0};
    struct cold_read *read;
    while ((read = read_chain_pop(&extent->reads))) {
        if (read->offset_bytes < end)
            read->result = result;
        read_chain_add(read->offset_bytes < end ? finished : &left, read);
    }
    extent->reads = left;
}
