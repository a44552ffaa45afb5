#include "gpu/host/host_memory.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/check.h"

enum { LINE_BYTES = 64, HUGE_BYTES = 2 << 20, SLAB_BYTES = 2 * HUGE_BYTES };
static const size_t MOST_BYTES = (size_t)1
                                 << 46; /* more than any machine has; sums below stay exact */

/* AddressSanitizer sees one byte past the end only in memory of the heap. */
#ifdef __has_feature
#if __has_feature(address_sanitizer)
#define ON_HEAP 1
#endif
#endif
#if defined __SANITIZE_ADDRESS__
#define ON_HEAP 1
#endif
#ifndef ON_HEAP
#define ON_HEAP 0
#endif

struct host_slab {
    struct host_slab *next;
    char *start;
    size_t used_bytes;
    int n_live;
};

static size_t
whole_pages(size_t size_bytes)
{
    return (size_bytes + HUGE_BYTES - 1) / HUGE_BYTES * HUGE_BYTES;
}

/* Zeroed memory at a huge page's boundary. */
static void *
map_pages(size_t size_bytes)
{
    size_t whole = whole_pages(size_bytes);
    char *map =
        mmap(NULL, whole + HUGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED)
        return NULL;
    size_t head = (HUGE_BYTES - (uintptr_t)map % HUGE_BYTES) % HUGE_BYTES;
    if (head > 0)
        (void)munmap(map, head);
    if (head < HUGE_BYTES)
        (void)munmap(map + head + whole, HUGE_BYTES - head);
    (void)madvise(map + head, whole, MADV_HUGEPAGE);
    return map + head;
}

void
host_memory_init(struct host_memory *memory)
{
    *memory = (struct host_memory){.slabs = NULL};
    (void)pthread_mutex_init(&memory->lock, NULL);
}

void
host_memory_close(struct host_memory *memory)
{
    ASSERT(!memory->slabs);
    (void)pthread_mutex_destroy(&memory->lock);
}

/* Rounded to lines; nothing at all takes a line, so that every block has an address of its own. */
static size_t
whole_lines(size_t size_bytes)
{
    return size_bytes == 0 ? LINE_BYTES : (size_bytes + LINE_BYTES - 1) / LINE_BYTES * LINE_BYTES;
}

static void *
alloc_in_slab(struct host_memory *memory, size_t lines_bytes)
{
    struct host_slab *slab = memory->slabs;

    if (!slab || SLAB_BYTES - slab->used_bytes < lines_bytes) {
        slab = malloc(sizeof *slab);
        char *start = slab ? map_pages(SLAB_BYTES) : NULL;
        if (!start) {
            free(slab);
            return NULL;
        }
        *slab = (struct host_slab){memory->slabs, start, 0, 0};
        memory->slabs = slab;
    }
    void *block = slab->start + slab->used_bytes;
    slab->used_bytes += lines_bytes;
    slab->n_live++;
    return block;
}

void *
host_memory_alloc(struct host_memory *memory, size_t size_bytes)
{
    if (size_bytes > MOST_BYTES)
        return NULL;
    if (ON_HEAP) {
        void *heap = aligned_alloc(LINE_BYTES, whole_lines(size_bytes));
        return heap ? memset(heap, 0, size_bytes) : NULL;
    }
    if (size_bytes >= HUGE_BYTES)
        return map_pages(size_bytes);
    (void)pthread_mutex_lock(&memory->lock);
    void *block = alloc_in_slab(memory, whole_lines(size_bytes));
    (void)pthread_mutex_unlock(&memory->lock);
    return block;
}

void
host_memory_free(struct host_memory *memory, void *block, size_t size_bytes)
{
    if (!block)
        return;
    if (ON_HEAP) {
        free(block);
        return;
    }
    if (size_bytes >= HUGE_BYTES) {
        (void)munmap(block, whole_pages(size_bytes));
        return;
    }
    (void)pthread_mutex_lock(&memory->lock);
    struct host_slab **at = &memory->slabs;
    while (*at && ((char *)block < (*at)->start || (char *)block >= (*at)->start + SLAB_BYTES))
        at = &(*at)->next;
    struct host_slab *slab = *at;
    ASSERT(slab && slab->n_live > 0);
    if (--slab->n_live == 0) {
        *at = slab->next;
        (void)munmap(slab->start, SLAB_BYTES);
        free(slab);
    }
    (void)pthread_mutex_unlock(&memory->lock);
}
