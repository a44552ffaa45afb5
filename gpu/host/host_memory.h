/* host_memory: the memory behind alloc and alloc_shared of the CPU backend: zeroed, aligned to a
 * cache line, on huge pages where the kernel has some.
 *
 * From two megabytes on an allocation has pages of its own, zeroed by the kernel when first
 * touched: a KV cache that is never filled costs nothing. Smaller ones share slabs, so that the
 * many middling matrices of a small model lie together on a few huge pages. A slab goes back to the
 * system when the last allocation in it does. Thread: any. */
#ifndef GPU_HOST_HOST_MEMORY_H
#define GPU_HOST_HOST_MEMORY_H

#include <pthread.h>
#include <stddef.h>

struct host_slab;
struct host_memory {
    pthread_mutex_t lock;
    struct host_slab *slabs; /* the first is the one that is filled */
};

void host_memory_init(struct host_memory *memory);
/* Everything must have been freed. */
void host_memory_close(struct host_memory *memory);
void *host_memory_alloc(struct host_memory *memory, size_t size_bytes); /* NULL: none left */
void host_memory_free(struct host_memory *memory, void *block, size_t size_bytes);

#endif
