#include "daemon/residence.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/byte_size.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/cpu_count.h"
#include "base/log.h"

enum { ALIGN = 4096 };

/* How often a wait looks whether it is still wanted, how often progress is told, how long a resize
 * waits for tables to go. */
static const uint64_t look_ns = 5 * 1000 * 1000, tell_ns = 5ull * 1000 * 1000 * 1000,
                      patience_ns = 2ull * 1000 * 1000 * 1000;

struct place {
    uint64_t bytes;    /* weights, padding, scales */
    _Atomic bool want; /* written under lock; readers of a piece look without */
    bool failed;       /* under lock. P3 */
    /* The residence's own thread. */
    bool reserved, resident;
    uint8_t *memory;
};

struct residence {
    struct residence_options options;
    pthread_t thread;
    bool started;
    pthread_mutex_t resize_lock; /* one resize at a time: resolver and plan in one order */
    pthread_mutex_t lock;
    pthread_cond_t changed; /* on CLOCK_MONOTONIC: want, stop, held, n_running */
    _Atomic bool stop;
    uint64_t ram_bytes;    /* under lock */
    _Atomic uint64_t held; /* bytes of memory; written under lock */
    struct place place[SHAPE_MAX_ENGRAM_LAYERS];
    struct flag answer; /* of the resolver; its thread raises it */
    uint64_t asked;
    /* The table being read. */
    int table;
    _Atomic uint64_t next, done; /* pieces begun; bytes read */
    _Atomic int status;          /* of the first piece that failed */
    int n_running;               /* under lock */
    struct err err;              /* under lock; of that piece */
};

static uint64_t
padded(uint64_t bytes)
{
    return (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

void
residence_plan(const uint64_t *bytes, int n_tables, uint64_t ram_bytes, bool *ret_want)
{
    bool fits = true;

    for (int t = 0; t < n_tables; t++) {
        fits = fits && bytes[t] <= ram_bytes;
        ret_want[t] = fits;
        ram_bytes -= fits ? bytes[t] : 0;
    }
}

/* Under lock, or before the thread is there. */
static void
plan(struct residence *r)
{
    uint64_t bytes[SHAPE_MAX_ENGRAM_LAYERS];
    bool want[SHAPE_MAX_ENGRAM_LAYERS];

    for (int t = 0; t < r->options.n_tables; t++)
        bytes[t] = r->place[t].bytes;
    residence_plan(bytes, r->options.n_tables, r->ram_bytes, want);
    for (int t = 0; t < r->options.n_tables; t++) {
        atomic_store(&r->place[t].want, want[t]);
        r->place[t].failed = false;
    }
}

int
residence_new(struct residence **ret_residence, const struct residence_options *options,
              struct err *err)
{
    struct residence *r = calloc(1, sizeof *r);
    pthread_condattr_t monotonic;

    if (r == NULL || pthread_condattr_init(&monotonic) != 0) {
        free(r);
        return err_set(err, ENOMEM, "no memory for the tables' places");
    }
    ASSERT(pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC) == 0);
    ASSERT(pthread_cond_init(&r->changed, &monotonic) == 0);
    (void)pthread_condattr_destroy(&monotonic);
    (void)pthread_mutex_init(&r->lock, NULL);
    (void)pthread_mutex_init(&r->resize_lock, NULL);
    r->options = *options;
    if (r->options.piece_bytes == 0)
        r->options.piece_bytes = RESIDENCE_PIECE_BYTES;
    ASSERT(r->options.piece_bytes <= RESIDENCE_PIECE_BYTES);
    r->ram_bytes = options->ram_bytes;
    for (int t = 0; t < options->n_tables; t++)
        r->place[t].bytes =
            padded(options->table[t].weight_bytes) + padded(options->table[t].scale_bytes);
    plan(r);
    *ret_residence = r;
    return 0;
}

void
residence_reserve(const struct residence *r, struct tiers_options *options)
{
    options->may_become_resident = true;
    for (int t = 0; t < r->options.n_tables; t++)
        options->reserved_bytes[t] = atomic_load(&r->place[t].want) ? r->place[t].bytes : 0;
}

uint64_t
residence_bytes(const struct residence *r)
{
    return r ? atomic_load(&r->held) : 0;
}

static void
set_held(struct residence *r, int64_t by)
{
    pthread_mutex_lock(&r->lock);
    atomic_store(&r->held, atomic_load(&r->held) + (uint64_t)by);
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

/* Under lock. */
static void
wait_a_while(struct residence *r, uint64_t ns)
{
    struct timespec end;

    (void)clock_gettime(CLOCK_MONOTONIC, &end);
    uint64_t at = (uint64_t)end.tv_nsec + ns;
    end.tv_sec += (time_t)(at / 1000000000);
    end.tv_nsec = (long)(at % 1000000000);
    (void)pthread_cond_timedwait(&r->changed, &r->lock, &end);
}

/* Of the resolver, and waits until it is done; false: the residence is to stop first. */
static bool
change(struct residence *r, struct resolver_table what)
{
    int status;

    what.done = &r->answer;
    what.done_value = ++r->asked;
    while ((status = resolver_change_table(r->options.resolver, &what)) < 0) {
        if (atomic_load(&r->stop))
            return false;
        sched_yield();
    }
    while (flag_wait(&r->answer, what.done_value, 0, look_ns) < 0)
        if (atomic_load(&r->stop))
            return false;
    return true;
}

/* ------------------------------------------------------------------ reading */

static bool
wanted(const struct residence *r, int table)
{
    return atomic_load(&r->place[table].want) && !atomic_load(&r->stop);
}

static uint64_t
pieces(const struct residence *r, uint64_t bytes)
{
    return (bytes + r->options.piece_bytes - 1) / r->options.piece_bytes;
}

static void
read_pieces(struct residence *r)
{
    const struct residence_table *table = &r->options.table[r->table];
    uint64_t n_weights = pieces(r, table->weight_bytes),
             n = n_weights + pieces(r, table->scale_bytes), most = r->options.piece_bytes;
    /* Without it reads take another way. */
    void *buffer = aligned_alloc(ALIGN, RESIDENCE_PIECE_BYTES + 2 * ALIGN);
    struct err err = ERR_INIT;
    uint64_t piece;

    while (wanted(r, r->table) && atomic_load(&r->status) == 0 &&
           (piece = atomic_fetch_add(&r->next, 1)) < n) {
        bool scales = piece >= n_weights;
        uint64_t whole = scales ? table->scale_bytes : table->weight_bytes;
        uint64_t at = (piece - (scales ? n_weights : 0)) * most;
        uint64_t size = whole - at < most ? whole - at : most;
        uint8_t *base = r->place[r->table].memory + (scales ? padded(table->weight_bytes) : 0);
        int status = r->options.source.read(r->options.source.arg, r->table, scales, at, base + at,
                                            (size_t)size, buffer, &err);

        if (status < 0) {
            pthread_mutex_lock(&r->lock);
            if (atomic_load(&r->status) == 0) {
                r->err = err;
                atomic_store(&r->status, status);
            }
            pthread_mutex_unlock(&r->lock);
            break;
        }
        atomic_fetch_add(&r->done, size);
    }
    free(buffer);
}

static void *
reader_main(void *arg)
{
    struct residence *r = arg;

    read_pieces(r);
    pthread_mutex_lock(&r->lock);
    r->n_running--;
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
    return NULL;
}

static void
tell_progress(struct residence *r, uint64_t before, uint64_t total, uint64_t rate)
{
    char text[2][32];
    uint64_t done = before + atomic_load(&r->done);

    log_info("tables  %d %%  %s / %s  %s/s", (int)(100 * (double)done / (double)total),
             byte_size_format(done, text[0], sizeof text[0]),
             byte_size_format(total, text[1], sizeof text[1]),
             byte_size_format(rate, text[2], sizeof text[2]));
}

/* All of the table, by several threads; this one tells how far they are. 0, -errno, or -ECANCELED. */
static int
read_table(struct residence *r, int table)
{
    pthread_t thread[RESIDENCE_THREADS];
    int n = r->options.n_threads ? r->options.n_threads : cpu_count(), n_started = 0;
    uint64_t before = 0, total = 0, told_ns = clock_now_ns(), told_bytes = 0;

    for (int t = 0; t < r->options.n_tables; t++) {
        before += r->place[t].resident ? r->place[t].bytes : 0;
        total += atomic_load(&r->place[t].want) ? r->place[t].bytes : 0;
    }
    r->table = table;
    atomic_store(&r->next, 0);
    atomic_store(&r->done, 0);
    atomic_store(&r->status, 0);
    r->err = (struct err)ERR_INIT;
    r->n_running = n < RESIDENCE_THREADS ? n : RESIDENCE_THREADS;
    for (int i = 0, wish = r->n_running; i < wish; i++) {
        if (pthread_create(&thread[n_started], NULL, reader_main, r) == 0) {
            n_started++;
            continue;
        }
        pthread_mutex_lock(&r->lock);
        r->n_running--;
        pthread_mutex_unlock(&r->lock);
    }
    if (n_started == 0)
        read_pieces(r);
    pthread_mutex_lock(&r->lock);
    while (r->n_running) {
        uint64_t now_ns = clock_now_ns();

        if (now_ns - told_ns < tell_ns) {
            wait_a_while(r, tell_ns - (now_ns - told_ns));
            continue;
        }
        uint64_t done = atomic_load(&r->done);
        double seconds = (double)(now_ns - told_ns) * 1e-9;

        pthread_mutex_unlock(&r->lock);
        tell_progress(r, before, total, (uint64_t)((double)(done - told_bytes) / seconds));
        pthread_mutex_lock(&r->lock);
        told_ns = now_ns;
        told_bytes = done;
    }
    pthread_mutex_unlock(&r->lock);
    for (int i = 0; i < n_started; i++)
        (void)pthread_join(thread[i], NULL);
    if (atomic_load(&r->status) < 0)
        return atomic_load(&r->status);
    return wanted(r, table) ? 0 : -ECANCELED;
}

/* ------------------------------------------------------------------ a table comes and goes */

static void
free_memory(struct residence *r, int table)
{
    struct place *p = &r->place[table];

    if (p->memory == NULL)
        return;
    r->options.device->ops->free_shared(r->options.device, p->memory, p->bytes);
    p->memory = NULL;
    set_held(r, -(int64_t)p->bytes);
}

static void
take_away(struct residence *r, int table)
{
    struct place *p = &r->place[table];

    if (p->resident) {
        if (!change(r, (struct resolver_table){.op = RESOLVER_TABLE_TAKE, .table = table}))
            return; /* P1 */
        p->resident = false;
    }
    free_memory(r, table);
    if (p->reserved &&
        change(r, (struct resolver_table){.op = RESOLVER_TABLE_RELEASE, .table = table}))
        p->reserved = false;
}

/* P2 */
static bool
wait_for_room(struct residence *r, int table)
{
    while (wanted(r, table)) {
        struct tiers_stats stats;

        resolver_stats(r->options.resolver, &stats);
        if (stats.tier[TIER_RAM].used_bytes + stats.reserved_bytes <=
            stats.tier[TIER_RAM].budget_bytes)
            return true;
        pthread_mutex_lock(&r->lock);
        wait_a_while(r, look_ns);
        pthread_mutex_unlock(&r->lock);
    }
    return false;
}

/* 0, or why the table stays on disk. */
static int
bring(struct residence *r, int table)
{
    const struct residence_table *size = &r->options.table[table];
    struct place *p = &r->place[table];
    uint64_t begin_ns = clock_now_ns();
    char text[2][32];

    if (!p->reserved) {
        if (!change(r, (struct resolver_table){
                           .op = RESOLVER_TABLE_RESERVE, .table = table, .size_bytes = p->bytes}))
            return -ECANCELED;
        p->reserved = true;
    }
    if (!wait_for_room(r, table))
        return -ECANCELED;
    set_held(r, (int64_t)p->bytes);
    p->memory = r->options.device->ops->alloc_shared(r->options.device, p->bytes);
    if (p->memory == NULL) {
        set_held(r, -(int64_t)p->bytes);
        log_warning("table %d stays on disk: no memory of %s", table,
                    byte_size_format(p->bytes, text[0], sizeof text[0]));
        return -ENOMEM;
    }
    int status = read_table(r, table);

    if (status < 0) {
        if (status != -ECANCELED)
            log_warning("table %d stays on disk: %s", table, r->err.text);
        return status;
    }
    if (!change(
            r, (struct resolver_table){
                   .op = RESOLVER_TABLE_SET,
                   .table = table,
                   .resident = {.weights = p->memory,
                                .scales = size->scale_bytes ? p->memory + padded(size->weight_bytes)
                                                            : NULL}}))
        return -ECANCELED;
    p->resident = true;

    double seconds = (double)(clock_now_ns() - begin_ns) * 1e-9;

    log_info(
        "tables  table %d in memory: %s in %.1f s, %s/s", table,
        byte_size_format(p->bytes, text[0], sizeof text[0]), seconds,
        byte_size_format((uint64_t)((double)p->bytes / (seconds + 1e-9)), text[1], sizeof text[1]));
    return 0;
}

/* Under lock: what to do next. True: bring the table, or take it away. */
static bool
next_change(const struct residence *r, int *ret_table, bool *ret_bring)
{
    for (int t = r->options.n_tables - 1; t >= 0; t--) {
        const struct place *p = &r->place[t];

        if (p->reserved && (p->failed || !atomic_load(&p->want))) {
            *ret_table = t;
            *ret_bring = false;
            return true;
        }
    }
    for (int t = 0; t < r->options.n_tables; t++) {
        const struct place *p = &r->place[t];

        if (atomic_load(&p->want) && !p->resident && !p->failed) {
            *ret_table = t;
            *ret_bring = true;
            return true;
        }
    }
    return false;
}

static void *
residence_main(void *arg)
{
    struct residence *r = arg;
    int table, status;
    bool brings;

    pthread_mutex_lock(&r->lock);
    while (!atomic_load(&r->stop)) {
        if (!next_change(r, &table, &brings)) {
            pthread_cond_wait(&r->changed, &r->lock);
            continue;
        }
        pthread_mutex_unlock(&r->lock);
        status = 0;
        if (brings)
            status = bring(r, table);
        else
            take_away(r, table);
        pthread_mutex_lock(&r->lock);
        /* One that was cancelled goes as nobody wants it, or comes if it is wanted again. */
        if (status == -ECANCELED && !atomic_load(&r->stop)) {
            pthread_mutex_unlock(&r->lock);
            take_away(r, table);
            pthread_mutex_lock(&r->lock);
        } else if (status < 0) {
            r->place[table].failed = true;
        }
    }
    pthread_mutex_unlock(&r->lock);
    return NULL;
}

int
residence_start(struct residence *r, struct err *err)
{
    for (int t = 0; t < r->options.n_tables; t++)
        r->place[t].reserved = atomic_load(&r->place[t].want); /* residence_reserve */
    int status = pthread_create(&r->thread, NULL, residence_main, r);

    if (status != 0)
        return err_errno(err, status, "cannot start the thread that loads tables");
    r->started = true;
    return 0;
}

void
residence_stop(struct residence *r)
{
    if (r == NULL || !r->started)
        return;
    pthread_mutex_lock(&r->lock);
    atomic_store(&r->stop, true);
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
    pthread_join(r->thread, NULL);
    r->started = false;
}

struct residence *
residence_free(struct residence *r)
{
    if (r == NULL)
        return NULL;
    residence_stop(r);
    for (int t = 0; t < r->options.n_tables; t++)
        free_memory(r, t);
    (void)pthread_cond_destroy(&r->changed);
    (void)pthread_mutex_destroy(&r->lock);
    (void)pthread_mutex_destroy(&r->resize_lock);
    free(r);
    return NULL;
}

int
residence_resize(struct residence *r, uint64_t hbm_bytes, uint64_t ram_bytes)
{
    uint64_t until_ns = clock_now_ns() + patience_ns;

    pthread_mutex_lock(&r->resize_lock);
    int status = resolver_resize(r->options.resolver, hbm_bytes, ram_bytes);

    if (status == 0 && ram_bytes != UINT64_MAX) {
        pthread_mutex_lock(&r->lock);
        r->ram_bytes = ram_bytes;
        plan(r);
        pthread_cond_broadcast(&r->changed);
        while (atomic_load(&r->held) > ram_bytes && !atomic_load(&r->stop) &&
               clock_now_ns() < until_ns)
            wait_a_while(r, look_ns);
        pthread_mutex_unlock(&r->lock);
    }
    pthread_mutex_unlock(&r->resize_lock);
    return status;
}
