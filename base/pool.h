/* pool: a fixed set of threads that split one loop at a time.
 *
 * pool_run calls fn(arg, part, n_parts) once for every part in 0..n_parts-1 (n_parts = pool_threads), each
 * on whichever thread takes it first, the caller among them, and returns when all are done. Dispatch is a
 * few hundred nanoseconds while workers are hot: they spin for a short while after each run, then sleep on
 * a futex, so an idle pool costs no CPU. Thread: one caller at a time (the engine).                      */
#ifndef BASE_POOL_H
#define BASE_POOL_H

#include "base/err.h"

struct pool;
typedef void (*pool_fn)(void *arg, int part, int n_parts);

/* n_threads counts the caller; 0 means cpu_count(). */
int pool_new(struct pool **ret_pool, int n_threads, struct err *err);
int pool_threads(const struct pool *pool);
void pool_run(struct pool *pool, pool_fn fn, void *arg);
/* pool_run in two: between them the workers run parts while the caller does something else. */
void pool_begin(struct pool *pool, pool_fn fn, void *arg);
void pool_end(struct pool *pool);
struct pool *pool_free(struct pool *pool); /* accepts NULL, returns NULL */

/* The slice of [0, n) that belongs to a part, in multiples of `grain` (the last may be short). */
static inline void
pool_slice(long n, long grain, int part, int n_parts, long *ret_begin, long *ret_end)
{
    long blocks = (n + grain - 1) / grain;
    long begin = blocks * part / n_parts * grain, end = blocks * (part + 1) / n_parts * grain;
    *ret_begin = begin < n ? begin : n;
    *ret_end = end < n ? end : n;
}

#endif
