#include "daemon/weight_loader.h"

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "base/check.h"

enum { TICK_NS = 100000000 };

struct load_item {
    const struct tensor_use *use;
    struct forward_loading loading; /* from begin to end */
    int64_t left;                   /* elements not loaded yet */
    bool ended;
};

struct load_piece {
    struct load_item *item; /* NULL: there is none */
    int64_t first, n;       /* elements */
};

struct weight_loader {
    const struct weight_loader_options *options;
    struct load_item *items; /* [n_uses] by place in the files */
    uint64_t total_bytes;

    pthread_mutex_t lock; /* of all below, and of the items' left and ended */
    pthread_cond_t begun; /* n_begun rose, or status is set */
    pthread_cond_t moved; /* a thread has ended */
    int n_begun;          /* items [0, n_begun) have device memory */
    int next;             /* item of the next piece, */
    int64_t next_first;   /* which starts here */
    int n_working;
    uint64_t done_bytes;
    int status; /* of the first error */
    struct err err;
};

struct load_worker {
    struct weight_loader *loader;
    struct forward_staging staging;
    pthread_t thread;
};

static int
by_place(const void *left, const void *right)
{
    const struct tensor *a = ((const struct load_item *)left)->use->tensor;
    const struct tensor *b = ((const struct load_item *)right)->use->tensor;

    if (a->file != b->file)
        return a->file < b->file ? -1 : 1;
    return (a->offset_bytes > b->offset_bytes) - (a->offset_bytes < b->offset_bytes);
}

static uint64_t
element_bytes(const struct load_item *item)
{
    return dtype_size_bytes(item->use->tensor->dtype);
}

/* The first error wins, and everybody ends. */
static void
fail(struct weight_loader *l, int status, const struct err *err)
{
    (void)pthread_mutex_lock(&l->lock);
    if (l->status == 0) {
        l->status = status;
        l->err = *err;
    }
    (void)pthread_cond_broadcast(&l->begun);
    (void)pthread_mutex_unlock(&l->lock);
}

/* The next piece, of an item that has device memory. Waits for one until there are no more. */
static struct load_piece
take_piece(struct weight_loader *l)
{
    struct load_piece piece = {NULL, 0, 0};
    size_t bytes = l->options->piece_bytes ? l->options->piece_bytes : WEIGHT_LOADER_PIECE_BYTES;

    (void)pthread_mutex_lock(&l->lock);
    while (l->status == 0 && l->next == l->n_begun && l->next < l->options->n_uses)
        (void)pthread_cond_wait(&l->begun, &l->lock);
    if (l->status == 0 && l->next < l->n_begun) {
        struct load_item *item = &l->items[l->next];
        int64_t rest = item->loading.n_elements - l->next_first;
        int64_t most = (int64_t)(bytes / element_bytes(item));

        piece = (struct load_piece){item, l->next_first, rest};
        if (!item->loading.whole && rest > most)
            piece.n = most > 0 ? most : 1;
        l->next_first += piece.n;
        if (piece.n == rest) {
            l->next++;
            l->next_first = 0;
        }
    }
    (void)pthread_mutex_unlock(&l->lock);
    return piece;
}

struct tensor_reader {
    const struct weight_source *source;
    const struct tensor *tensor;
};

static int
read_tensor(void *arg, uint64_t offset_bytes, void *dst, size_t size_bytes, struct err *err)
{
    const struct tensor_reader *r = arg;

    return r->source->read(r->source->arg, r->tensor, offset_bytes, dst, size_bytes, err);
}

/* False: there is nothing more to do. */
static bool
load_next(struct weight_loader *l, const struct forward_staging *staging)
{
    const struct weight_source *source = &l->options->source;
    struct load_piece piece = take_piece(l);
    struct err err = ERR_INIT;

    if (!piece.item)
        return false;
    struct load_item *item = piece.item;
    struct tensor_reader reader = {source, item->use->tensor};
    uint64_t bytes = (uint64_t)piece.n * element_bytes(item);

    if (source->will_read)
        source->will_read(source->arg, reader.tensor, (uint64_t)piece.first * element_bytes(item),
                          bytes);
    int status = forward_load_part(l->options->forward, &item->loading, piece.first, piece.n,
                                   staging->memory ? staging : NULL, read_tensor, &reader, &err);
    if (status < 0) {
        (void)err_context(&err, "%s", reader.tensor->name);
        fail(l, status, &err);
        return false;
    }
    (void)pthread_mutex_lock(&l->lock);
    l->done_bytes += bytes;
    item->left -= piece.n;
    bool last = item->left == 0;
    (void)pthread_mutex_unlock(&l->lock);
    if (last) {
        forward_load_end(l->options->forward, &item->loading, true);
        item->ended = true; /* read by the caller, after this thread */
    }
    return true;
}

static void *
worker_main(void *arg)
{
    struct load_worker *w = arg;
    struct weight_loader *l = w->loader;

    thread_enter(THREAD_WORKER);
    while (load_next(l, &w->staging))
        ;
    (void)pthread_mutex_lock(&l->lock);
    l->n_working--;
    (void)pthread_cond_signal(&l->moved);
    (void)pthread_mutex_unlock(&l->lock);
    return NULL;
}

/* Tells how far it is, for the caller's thread. */
static void
report(struct weight_loader *l)
{
    const struct weight_loader_options *o = l->options;
    struct err err = ERR_INIT;

    (void)pthread_mutex_lock(&l->lock);
    uint64_t done_bytes = l->done_bytes;
    int status = l->status;
    (void)pthread_mutex_unlock(&l->lock);
    if (status < 0 || !o->progress)
        return;
    status = o->progress(o->progress_arg, done_bytes, l->total_bytes);
    if (status < 0) {
        (void)err_set(&err, -status, "loading was cancelled");
        fail(l, status, &err);
    }
}

/* Device memory for the items in their order. Not by the threads, as allocating does not get faster
 * with them, and an item's first piece must not be taken before. */
static bool
begin_item(struct weight_loader *l, struct load_item *item)
{
    const struct tensor_use *use = item->use;
    struct err err = ERR_INIT;
    int status = forward_load_begin(l->options->forward, use->role, use->layer, use->tensor->dtype,
                                    (int64_t)(use->tensor->size_bytes / element_bytes(item)),
                                    &item->loading, &err);

    if (status < 0) {
        (void)err_context(&err, "%s", use->tensor->name);
        fail(l, status, &err);
        return false;
    }
    (void)pthread_mutex_lock(&l->lock);
    item->left = item->loading.n_elements;
    l->n_begun++;
    bool go_on = l->status == 0;
    (void)pthread_cond_broadcast(&l->begun);
    (void)pthread_mutex_unlock(&l->lock);
    return go_on;
}

/* Until every thread has ended, or for a tick. True: they have. */
static bool
wait_for_workers(struct weight_loader *l)
{
    struct timespec until;

    (void)clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += TICK_NS;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    (void)pthread_mutex_lock(&l->lock);
    while (l->n_working > 0 && pthread_cond_timedwait(&l->moved, &l->lock, &until) == 0)
        ;
    bool ended = l->n_working == 0;
    (void)pthread_mutex_unlock(&l->lock);
    return ended;
}

static int
start_workers(struct weight_loader *l, struct load_worker *workers, int n)
{
    int started = 0;

    l->n_working = n;
    while (started < n &&
           pthread_create(&workers[started].thread, NULL, worker_main, &workers[started]) == 0)
        started++;
    (void)pthread_mutex_lock(&l->lock);
    l->n_working -= n - started;
    (void)pthread_mutex_unlock(&l->lock);
    return started;
}

static void
load_all(struct weight_loader *l, struct load_worker *workers, int n_workers)
{
    int started = start_workers(l, workers, n_workers);
    int n_uses = l->options->n_uses;

    report(l);
    for (int i = 0; i < n_uses && begin_item(l, &l->items[i]); i++)
        report(l);
    while (started == 0 && load_next(l, &workers[0].staging))
        report(l);
    while (!wait_for_workers(l))
        report(l);
    for (int i = 0; i < started; i++)
        (void)pthread_join(workers[i].thread, NULL);
    report(l);
    for (int i = 0; i < l->n_begun; i++)
        if (!l->items[i].ended)
            forward_load_end(l->options->forward, &l->items[i].loading, false);
}

static void
init_sync(struct weight_loader *l)
{
    pthread_condattr_t monotonic;

    (void)pthread_mutex_init(&l->lock, NULL);
    (void)pthread_cond_init(&l->begun, NULL);
    (void)pthread_condattr_init(&monotonic);
    (void)pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&l->moved, &monotonic);
    (void)pthread_condattr_destroy(&monotonic);
}

/* Memory to load through is a matter of speed: without, each piece takes its own. */
static void
take_staging(const struct weight_loader *l, struct load_worker *workers, int n)
{
    struct device *device = l->options->device;

    for (int i = 0; i < n; i++)
        workers[i].staging = (struct forward_staging){
            device->ops->alloc_shared(device, FORWARD_STAGING_BYTES), FORWARD_STAGING_BYTES};
}

int
weight_loader_run(const struct weight_loader_options *o, struct err *err)
{
    struct weight_loader l = {.options = o};
    struct load_worker workers[WEIGHT_LOADER_THREADS] = {0};
    int n_workers = o->n_threads < WEIGHT_LOADER_THREADS ? o->n_threads : WEIGHT_LOADER_THREADS;

    ASSERT(o->n_threads >= 0 && o->n_uses >= 0);
    l.items = calloc((size_t)o->n_uses + 1, sizeof *l.items);
    if (!l.items)
        return err_set(err, ENOMEM, "no memory to load weights");
    for (int i = 0; i < o->n_uses; i++) {
        l.items[i].use = &o->uses[i];
        l.total_bytes += o->uses[i].tensor->size_bytes;
    }
    qsort(l.items, (size_t)o->n_uses, sizeof *l.items, by_place);
    init_sync(&l);
    for (int i = 0; i < WEIGHT_LOADER_THREADS; i++)
        workers[i].loader = &l;
    take_staging(&l, workers, n_workers > 0 ? n_workers : 1);
    load_all(&l, workers, n_workers);
    for (int i = 0; i < WEIGHT_LOADER_THREADS; i++)
        o->device->ops->free_shared(o->device, workers[i].staging.memory, FORWARD_STAGING_BYTES);
    (void)pthread_cond_destroy(&l.begun);
    (void)pthread_cond_destroy(&l.moved);
    (void)pthread_mutex_destroy(&l.lock);
    free(l.items);
    if (l.status < 0 && err && err->code == 0)
        *err = l.err;
    return l.status;
}
