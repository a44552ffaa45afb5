/* chunk_pool: memory of the tiers' stores on a device whose driver may hold a caller until kernels in
 * flight have ended.
 *
 * A step in flight may be standing before rows that only the resolver can bring, so the resolver calls
 * nothing of the driver: it takes chunks that are ready, and puts back those it needs no more; a
 * thread of the pool's own takes memory from the device and gives it back. What is asked for and not
 * ready is refused for now; the thread gets it, and some more, and then calls `ready`. At most eight slabs of a
 * size wait ready, and go back when nobody has wanted them for a thousand steps: that much may be taken beyond
 * the budgets for a moment.
 *
 * A step that was launched before memory was there does not touch it: a chunk that comes while steps
 * run is given out from the step on that is launched after it came.
 *
 * Small chunks are cut from slabs, since the driver's own calls take long and their memory comes in
 * pages of 2 MiB; a slab goes back when all of it is free. Thread: alloc and free any. */
#ifndef DAEMON_CHUNK_POOL_H
#define DAEMON_CHUNK_POOL_H

#include <stdbool.h>

#include "gpu/device.h"
#include "tiering/tiers.h"

struct chunk_pool;

/* shared: memory of alloc_shared, else of alloc. ready(arg): from the pool's thread; it may wake, not
 * call back. */
int chunk_pool_new(struct chunk_pool **ret_pool, struct device *device, bool shared,
                   void (*ready)(void *arg), void *arg, struct err *err);
/* Everything must have been given back. Accepts NULL, returns NULL. */
struct chunk_pool *chunk_pool_free(struct chunk_pool *pool);
/* Until it is called with false, alloc waits for the device itself: nothing is in flight at start. */
void chunk_pool_wait(struct chunk_pool *pool, bool waits);
/* Without a pool: straight from the device. For one whose memory is the host's. */
struct chunk_ops chunk_ops_of_device(struct device *device, bool shared);
/* For struct tiers_options. */
struct chunk_ops chunk_pool_ops(struct chunk_pool *pool);

#endif
