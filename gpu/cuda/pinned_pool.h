/* pinned_pool: host memory that the device reads at the same address, by the hundred GiB.
 *
 * Anonymous huge pages, touched by several threads, then registered: 9 to 19 times faster than
 * cudaHostAlloc, at the same speed of access. Two forms:
 *
 *   - pinned_map: one mapping of its own, for a whole table;
 *   - the pool: chunks of 64 KiB and more (the RAM tier's), cut out of slabs.
 *
 * A slab is 16 MiB at first and grows with what is in use (a sixteenth of it, 256 MiB at most, or the
 * chunk asked for), so that what is pinned stays within some 10 % of what was asked for, and so that
 * registering one, during which the driver serves nobody else, takes milliseconds. Slabs are
 * prepared by a thread of the pool's:
 *
 *     wanted --thread--> ready --all chunks back--> released by the thread (one empty slab stays)
 *
 * P1  The next slab is wanted once less than half of a slab is free, before a chunk needs it.
 * P2  pinned_pool_alloc waits for the slab that is on its way. A chunk of at most 4 MiB, asked for while
 *     64 MiB and more are in use, waits 100 ms at most and is then NULL: a running step may stand behind the
 *     caller. Everything else waits until memory is there or is refused: buffers made at
 *     start are there when the call returns.
 * P3  After a refusal (no memory) a slab is tried again by the first call a second later; until then NULL
 *     comes at once.
 *
 * Thread: any. Memory comes zeroed. Sizes are given back as they were asked for. */
#ifndef GPU_CUDA_PINNED_POOL_H
#define GPU_CUDA_PINNED_POOL_H

#include <stddef.h>
#include <stdint.h>

struct pinned_pool;

struct pinned_pool_stats {
    uint64_t pinned_bytes, used_bytes; /* of slabs; of chunks, rounded up to 4 KiB */
    uint32_t n_slabs;
};

/* numa_node: where the pages come from if it has them; -1: anywhere. 0, -ENOMEM, -EAGAIN. */
int pinned_pool_new(struct pinned_pool **ret_pool, int ordinal, int numa_node);
/* All chunks must be back. Accepts NULL, returns NULL. */
struct pinned_pool *pinned_pool_free(struct pinned_pool *pool);
void *pinned_pool_alloc(struct pinned_pool *pool, size_t size_bytes);
void pinned_pool_release(struct pinned_pool *pool, void *chunk, size_t size_bytes);
void pinned_pool_stats(struct pinned_pool *pool, struct pinned_pool_stats *ret_stats);

/* A mapping at a 2 MiB boundary, registered in pieces of piece_bytes (a multiple of 2 MiB; 0: in one).
 * NULL: no memory, or refused. The calling thread's device is the current one. */
void *pinned_map(size_t size_bytes, size_t piece_bytes, int numa_node);
void pinned_unmap(void *map, size_t size_bytes, size_t piece_bytes);
/* The NUMA node a device hangs on, or -1. */
int pinned_numa_node(int ordinal);

#endif
