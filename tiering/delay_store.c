/* delay_store: what the store below finishes is handed on delay_ns later.
 *
 * The caller's own reap takes finished reads from below and gives each a time; a timer thread calls
 * notify when the first of them is due. So below keeps its one submitting and reaping thread, and
 * below's notify must reach the thread that reaps this store. */
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <time.h>

#include "base/check.h"
#include "base/clock.h"
#include "tiering/cold_store.h"
#include "tiering/read_list.h"

struct delay_store {
    struct cold_store base;
    struct cold_store *below;
    uint64_t delay_ns;
    cold_notify_fn notify;
    void *notify_arg;

    /* Reaper's thread: finished below, by time due (the delay is the same for all, so first in is
     * first out). While a read waits here its deadline_ns holds the time it is due. */
    struct read_chain waiting;

    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint64_t alarm_ns; /* 0: none; pairs reap with the timer thread */
    bool stop;
    pthread_t thread;
};

static void *
delay_thread(void *arg)
{
    struct delay_store *store = arg;
    thread_enter(THREAD_BACKGROUND);
    pthread_mutex_lock(&store->lock);
    while (!store->stop) {
        if (!store->alarm_ns) {
            pthread_cond_wait(&store->changed, &store->lock);
        } else if (clock_now_ns() < store->alarm_ns) {
            struct timespec until = {.tv_sec = (time_t)(store->alarm_ns / 1000000000u),
                                     .tv_nsec = (long)(store->alarm_ns % 1000000000u)};
            pthread_cond_timedwait(&store->changed, &store->lock, &until);
        } else {
            store->alarm_ns = 0;
            pthread_mutex_unlock(&store->lock);
            if (store->notify)
                store->notify(store->notify_arg);
            pthread_mutex_lock(&store->lock);
        }
    }
    pthread_mutex_unlock(&store->lock);
    return NULL;
}

static void
delay_submit(struct cold_store *base, struct cold_read **reads, int n)
{
    struct delay_store *store = (struct delay_store *)base;
    store->below->ops->submit(store->below, reads, n);
}

static int
delay_reap(struct cold_store *base, struct cold_read **ret_reads, int max)
{
    struct delay_store *store = (struct delay_store *)base;
    struct cold_read *batch[64];
    int got;
    uint64_t now = clock_now_ns();
    do {
        got = store->below->ops->reap(store->below, batch, 64);
        for (int i = 0; i < got; i++) {
            batch[i]->deadline_ns = now + store->delay_ns;
            read_chain_add(&store->waiting, batch[i]);
        }
    } while (got == 64);
    int n = 0;
    while (n < max && store->waiting.first && store->waiting.first->deadline_ns <= now)
        ret_reads[n++] = read_chain_pop(&store->waiting);
    if (store->waiting.first && n < max) {
        pthread_mutex_lock(&store->lock);
        store->alarm_ns = store->waiting.first->deadline_ns;
        pthread_cond_signal(&store->changed);
        pthread_mutex_unlock(&store->lock);
    }
    return n;
}

static void
delay_counters(const struct cold_store *base, struct cold_counters *ret_counters)
{
    const struct delay_store *store = (const struct delay_store *)base;
    store->below->ops->counters(store->below, ret_counters);
}

static struct cold_store *
delay_close(struct cold_store *base)
{
    struct delay_store *store = (struct delay_store *)base;
    if (!store)
        return NULL;
    ASSERT(store->waiting.first == NULL);
    pthread_mutex_lock(&store->lock);
    store->stop = true;
    pthread_cond_signal(&store->changed);
    pthread_mutex_unlock(&store->lock);
    pthread_join(store->thread, NULL);
    pthread_cond_destroy(&store->changed);
    pthread_mutex_destroy(&store->lock);
    store->below->ops->close(store->below);
    free(store);
    return NULL;
}

static const struct cold_store_ops delay_ops = {
    .name = "delay",
    .submit = delay_submit,
    .reap = delay_reap,
    .counters = delay_counters,
    .close = delay_close,
};

int
delay_store_open(struct cold_store **ret_store, struct cold_store *below, uint64_t delay_ns,
                 cold_notify_fn notify, void *arg)
{
    struct delay_store *store = calloc(1, sizeof *store);
    if (!store)
        return -ENOMEM;
    store->base.ops = &delay_ops;
    store->below = below;
    store->delay_ns = delay_ns;
    store->notify = notify;
    store->notify_arg = arg;

    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&store->lock, NULL);
    pthread_cond_init(&store->changed, &attr);
    pthread_condattr_destroy(&attr);

    /* Signals are the main thread's business: the new thread starts with all of them blocked. */
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int code = pthread_create(&store->thread, NULL, delay_thread, store);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (code) {
        pthread_cond_destroy(&store->changed);
        pthread_mutex_destroy(&store->lock);
        free(store);
        return -code;
    }
    *ret_store = &store->base;
    return 0;
}
