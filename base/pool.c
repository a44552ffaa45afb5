/* pool: see pool.h.
 *
 *   caller:  fn, arg, remaining = n, turn = (generation + 1, part 0), generation + 1
 *            ... takes parts ... waits for remaining 0
 *   worker:  waits for a new generation, takes parts of it while there are any; remaining - 1 after each
 *
 * A part is taken, not dealt: when a worker sleeps, or its CPU is busy with another thread, the caller
 * does its part too instead of waiting for it. Which thread runs a part changes nothing: the part says
 * what is computed.
 *
 * P1  fn and arg change only while remaining is 0; who took a part of this generation reads those of this
 *     one, as turn carries the generation.
 * P2  a worker sleeps only after it counted itself in sleepers and saw generation unchanged; the caller
 *     changes generation before it reads sleepers. Both sequentially consistent, so one sees the other.
 * P3  the same between remaining and caller_waits.                                                      */
#include "base/pool.h"

#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/cpu_count.h"
#include "base/futex.h"

enum {
    POOL_MAX_THREADS = 4096,
    POOL_SPIN_NS = 40000, /* a layer's next loop usually starts within this time */
    /* More threads than CPUs: spinning takes time from those who work. */
    POOL_CROWDED_SPIN_NS = 2000,
    POOL_PAUSES_PER_LOOK = 16,
};

struct pool_worker {
    struct pool *pool;
    pthread_t thread;
};

struct pool {
    int n_threads;
    uint64_t spin_ns;
    /* Written by the caller before generation (P1). */
    pool_fn fn;
    void *arg;
    _Atomic bool
        stopping; /* a worker that was late for a loop looks at any time; set by pool_free */
    _Alignas(64) _Atomic uint32_t generation; /* pairs with pool_await_work */
    _Atomic uint32_t sleepers;                /* pairs with pool_dispatch */
    _Atomic uint64_t turn; /* generation << 32 | next part; pairs with pool_take */
    _Alignas(64) _Atomic uint32_t remaining; /* pairs with pool_await_done */
    _Atomic uint32_t caller_waits;           /* pairs with pool_part_done */
    struct pool_worker *workers;             /* [n_threads]; 0 is the caller and has no thread */
};

/* Looks at *word until it is (or is not) `value`, for spin_ns at most; true when it came about. */
static bool
pool_spin(_Atomic uint32_t *word, uint32_t value, bool wanted_equal, uint64_t spin_ns)
{
    uint64_t start_ns = 0;
    for (;;) {
        for (int i = 0; i < POOL_PAUSES_PER_LOOK; i++) {
            if ((atomic_load_explicit(word, memory_order_acquire) == value) == wanted_equal)
                return true;
            futex_pause();
        }
        uint64_t now_ns = clock_now_ns();
        if (start_ns == 0)
            start_ns = now_ns;
        else if (now_ns - start_ns >= spin_ns)
            return false;
    }
}

static uint32_t
pool_await_work(struct pool *pool, uint32_t seen)
{
    if (!pool_spin(&pool->generation, seen, false, pool->spin_ns)) {
        atomic_fetch_add(&pool->sleepers, 1);
        while (atomic_load(&pool->generation) == seen)
            futex_wait(&pool->generation, seen, UINT64_MAX);
        atomic_fetch_sub(&pool->sleepers, 1);
    }
    return atomic_load_explicit(&pool->generation, memory_order_acquire);
}

static void
pool_part_done(struct pool *pool)
{
    if (atomic_fetch_sub(&pool->remaining, 1) == 1 && atomic_load(&pool->caller_waits))
        futex_wake_all(&pool->remaining);
}

/* Runs parts of this generation until all are taken. */
static void
pool_take(struct pool *pool, uint32_t generation)
{
    uint64_t turn = atomic_load(&pool->turn);

    while ((uint32_t)(turn >> 32) == generation && (uint32_t)turn < (uint32_t)pool->n_threads) {
        if (!atomic_compare_exchange_weak(&pool->turn, &turn, turn + 1))
            continue;
        pool->fn(pool->arg, (int)(uint32_t)turn, pool->n_threads);
        pool_part_done(pool);
        turn = atomic_load(&pool->turn);
    }
}

static void
pool_await_done(struct pool *pool)
{
    if (pool_spin(&pool->remaining, 0, true, pool->spin_ns))
        return;
    atomic_store(&pool->caller_waits, 1);
    for (uint32_t left; (left = atomic_load(&pool->remaining)) != 0;)
        futex_wait(&pool->remaining, left, UINT64_MAX);
    atomic_store_explicit(&pool->caller_waits, 0, memory_order_relaxed);
}

static void
pool_dispatch(struct pool *pool)
{
    uint32_t generation = atomic_load_explicit(&pool->generation, memory_order_relaxed) + 1;

    atomic_store_explicit(&pool->remaining, (uint32_t)pool->n_threads, memory_order_relaxed);
    atomic_store(&pool->turn, (uint64_t)generation << 32);
    atomic_store(&pool->generation, generation);
    if (atomic_load(&pool->sleepers))
        futex_wake_all(&pool->generation);
}

static void *
pool_worker_main(void *arg)
{
    struct pool_worker *worker = arg;
    struct pool *pool = worker->pool;
    thread_enter(THREAD_WORKER);
    for (uint32_t seen = 0;;) {
        seen = pool_await_work(pool, seen);
        if (pool->stopping)
            return NULL;
        pool_take(pool, seen);
    }
}

int
pool_new(struct pool **ret_pool, int n_threads, struct err *err)
{
    int cpus = cpu_count();
    if (n_threads == 0)
        n_threads = cpus;
    if (n_threads < 0 || n_threads > POOL_MAX_THREADS)
        return err_set(err, EINVAL, "a pool has 1 to %d threads, not %d", POOL_MAX_THREADS,
                       n_threads);
    struct pool *pool = aligned_alloc(64, sizeof *pool);
    if (!pool)
        return err_errno(err, ENOMEM, "thread pool");
    *pool = (struct pool){.spin_ns = n_threads > cpus ? POOL_CROWDED_SPIN_NS : POOL_SPIN_NS};
    pool->n_threads = 1; /* those that exist: pool_free joins that many */
    pool->workers = calloc((size_t)n_threads, sizeof *pool->workers);
    if (!pool->workers) {
        (void)pool_free(pool);
        return err_errno(err, ENOMEM, "thread pool");
    }
    /* Signals are for the threads that handle them. */
    sigset_t all, before;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    int code = 0;
    for (int part = 1; part < n_threads && code == 0; part++) {
        struct pool_worker *worker = &pool->workers[part];
        *worker = (struct pool_worker){.pool = pool};
        code = pthread_create(&worker->thread, NULL, pool_worker_main, worker);
        if (code == 0)
            pool->n_threads++;
    }
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (code != 0) {
        int made = pool->n_threads;
        (void)pool_free(pool);
        return err_errno(err, code, "thread %d of %d of the pool", made + 1, n_threads);
    }
    *ret_pool = pool;
    return 0;
}

int
pool_threads(const struct pool *pool)
{
    return pool->n_threads;
}

void
pool_begin(struct pool *pool, pool_fn fn, void *arg)
{
    ASSERT(atomic_load_explicit(&pool->remaining, memory_order_relaxed) == 0);
    pool->fn = fn;
    pool->arg = arg;
    if (pool->n_threads > 1)
        pool_dispatch(pool);
}

void
pool_end(struct pool *pool)
{
    if (pool->n_threads > 1) {
        pool_take(pool, atomic_load_explicit(&pool->generation, memory_order_relaxed));
        pool_await_done(pool);
    } else {
        pool->fn(pool->arg, 0, 1);
    }
}

void
pool_run(struct pool *pool, pool_fn fn, void *arg)
{
    pool_begin(pool, fn, arg);
    pool_end(pool);
}

struct pool *
pool_free(struct pool *pool)
{
    if (!pool)
        return NULL;
    if (pool->n_threads > 1) {
        pool->stopping = true;
        pool_dispatch(pool);
        for (int part = 1; part < pool->n_threads; part++)
            (void)pthread_join(pool->workers[part].thread, NULL);
    }
    free(pool->workers);
    free(pool);
    return NULL;
}
