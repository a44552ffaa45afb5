/* nvme_store: table rows from files, by one thread that issues and completes.
 *
 *     resolver                        ring thread                          kernel
 *     submit --> [submitted list] --> nvme_queue (pages, deadlines) --> nvme_ring --> device
 *     reap   <-- [done list]      <-- copies rows to their dst      <-- page buffers
 *
 * N1  a read is in exactly one place: submitted list, an extent of the queue, done list, or reaped.
 * N2  a slot of the ring is busy iff slot_extent names the extent it reads for.
 * N3  dst is written before the read is pushed to the done list, which is the release.
 *
 * A device read that comes back short is continued from where it ended; what makes no progress is
 * the end of the file and an error. A failing extent is tried again, then read page by page, so
 * that only the reads that need the bad page fail. */
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "tiering/cold_store.h"
#include "tiering/nvme_files.h"
#include "tiering/nvme_queue.h"
#include "tiering/nvme_ring.h"
#include "tiering/nvme_store.h"
#include "tiering/read_list.h"

enum { DEPTH_MAX = 4096, REAP_MAX = 64, TRANSIENT_MAX = 100 };

struct nvme_store {
    struct cold_store base;
    struct nvme_options options;
    struct nvme_files files;
    char describe[256];

    /* Resolver. */
    struct read_chain reaped;
    uint64_t outstanding;

    /* Between the two. */
    struct read_list submitted, done;
    _Atomic bool asleep; /* ring thread is, or is about to be, in a blocking wait */
    _Atomic bool stop;
    int wake_fd;
    pthread_t thread;

    /* Ring thread. */
    struct nvme_queue *queue;
    struct nvme_ring *ring;
    bool use_uring;
    struct extent **slot_extent; /* [depth] */
    int *free_slot, n_free;      /* stack of idle slots */
    int n_busy;
    uint32_t buffer_bytes;
    struct read_chain finished; /* not yet pushed */
    sem_t started;
    int start_code;
    struct err start_err;

    /* Written by the ring thread, read by any. */
    struct {
        _Atomic uint64_t reads, bytes, useful_bytes, merged, errors, retries, in_flight;
        _Atomic uint64_t latency_ns_total, latency_bucket[24];
    } count;
};

/* One writer: no locked instruction needed. */
static void
count_up(_Atomic uint64_t *counter, uint64_t by)
{
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + by,
                          memory_order_relaxed);
}

static void
finish(struct nvme_store *store, struct cold_read *read, int result)
{
    read->result = result;
    read_chain_add(&store->finished, read);
}

static void
take_submitted(struct nvme_store *store)
{
    struct read_chain chain = {0};
    read_list_take(&store->submitted, &chain);
    struct cold_read *read;
    while ((read = read_chain_pop(&chain))) {
        if (read->file < 0 || read->file >= store->files.n || read->size_bytes > COLD_READ_MAX) {
            finish(store, read, -EBADF);
        } else if (read->offset_bytes > store->files.size_bytes[read->file] ||
                   read->size_bytes > store->files.size_bytes[read->file] - read->offset_bytes) {
            finish(store, read, -EIO);
        } else if (read->size_bytes == 0) {
            finish(store, read, 0);
        } else {
            int joined = nvme_queue_add(store->queue, read);
            if (joined < 0)
                finish(store, read, joined);
            else
                count_up(&store->count.merged, (uint64_t)joined);
        }
    }
}

static uint64_t
extent_end(const struct nvme_store *store, const struct extent *extent)
{
    return (extent->first_page + extent->n_pages) * store->files.page_bytes;
}

/* Reads on from where the extent has been served. */
static void
issue(struct nvme_store *store, int slot)
{
    struct extent *extent = store->slot_extent[slot];
    uint64_t size = extent_end(store, extent) - extent->served_bytes;
    uint64_t most = extent->careful ? store->files.page_bytes : store->buffer_bytes;
    nvme_ring_read(store->ring, slot, extent->file, extent->served_bytes,
                   (uint32_t)(size < most ? size : most));
}

static void
start_extents(struct nvme_store *store)
{
    struct extent *extent;
    while (store->n_free > 0 && (extent = nvme_queue_pop(store->queue))) {
        int slot = store->free_slot[--store->n_free];
        ASSERT(store->slot_extent[slot] == NULL); /* N2 */
        store->slot_extent[slot] = extent;
        store->n_busy++;
        extent->started_ns = clock_now_ns();
        issue(store, slot);
    }
    atomic_store_explicit(&store->count.in_flight, (uint64_t)store->n_busy, memory_order_relaxed);
}

static void
count_latency(struct nvme_store *store, const struct extent *extent, uint64_t bytes)
{
    uint64_t ns = clock_now_ns() - extent->started_ns;
    int bucket = 0;
    while (bucket < 23 && ns >= UINT64_C(1000) << bucket)
        bucket++;
    count_up(&store->count.reads, 1);
    count_up(&store->count.bytes, bytes);
    count_up(&store->count.latency_ns_total, ns);
    count_up(&store->count.latency_bucket[bucket], 1);
}

/* A device read failed. True: the extent has something left to read. */
static bool
extent_failed(struct nvme_store *store, struct extent *extent, int result)
{
    bool transient = result == -EAGAIN || result == -EINTR;
    if (extent->tries++ < (transient ? TRANSIENT_MAX : store->options.retries)) {
        count_up(&store->count.retries, 1);
        return true;
    }
    uint64_t end = extent_end(store, extent);
    if (end - extent->served_bytes <= store->files.page_bytes || extent->careful) {
        uint64_t bad_end =
            extent->served_bytes / store->files.page_bytes * store->files.page_bytes +
            store->files.page_bytes;
        extent_fail(extent, bad_end, -EIO, &store->finished);
        extent->served_bytes = bad_end;
    }
    extent->careful = true;
    extent->tries = 0;
    return extent->reads.first && extent->served_bytes < end;
}

/* True: the extent has something left to read. */
static bool
extent_progress(struct nvme_store *store, struct extent *extent, const uint8_t *buffer, int result)
{
    if (result < 0)
        return extent_failed(store, extent, result);
    uint64_t page_bytes = store->files.page_bytes;
    count_latency(store, extent, (uint64_t)result);
    extent_deliver(extent, buffer, (uint64_t)result, &store->finished);
    /* Direct reads begin at whole pages; a short one goes on from the page it ended in. */
    uint64_t served = (extent->served_bytes + (uint64_t)result) / page_bytes * page_bytes;
    if (served == extent->served_bytes) { /* the end of the file, which was longer once */
        extent_fail(extent, UINT64_MAX, -EIO, &store->finished);
        return false;
    }
    extent->served_bytes = served;
    extent->started_ns = clock_now_ns();
    extent->tries = 0;
    return extent->reads.first && served < extent_end(store, extent);
}

static void
take_done(struct nvme_store *store)
{
    struct nvme_done done[REAP_MAX];
    int n;
    do {
        n = nvme_ring_reap(store->ring, done, REAP_MAX);
        for (int i = 0; i < n; i++) {
            int slot = done[i].slot;
            struct extent *extent = store->slot_extent[slot];
            ASSERT(extent); /* N2 */
            if (extent_progress(store, extent, nvme_ring_buffer(store->ring, slot),
                                done[i].result)) {
                issue(store, slot);
                continue;
            }
            nvme_queue_remove(store->queue, extent);
            store->slot_extent[slot] = NULL;
            store->free_slot[store->n_free++] = slot;
            store->n_busy--;
        }
    } while (n == REAP_MAX);
}

static void
hand_back(struct nvme_store *store)
{
    uint64_t errors = 0, useful = 0;
    for (const struct cold_read *read = store->finished.first; read; read = read->next) {
        errors += read->result < 0;
        useful += read->result < 0 ? 0 : read->size_bytes;
    }
    count_up(&store->count.errors, errors);
    count_up(&store->count.useful_bytes, useful);
    if (store->finished.first && read_list_push(&store->done, &store->finished) &&
        store->options.notify)
        store->options.notify(store->options.notify_arg);
}

static int
ring_thread_start(struct nvme_store *store)
{
    int code =
        nvme_ring_open(&store->ring, store->files.fd, store->files.n, store->options.depth,
                       store->buffer_bytes, store->wake_fd, store->use_uring, &store->start_err);
    if (code < 0)
        return code;
    int depth = nvme_ring_depth(store->ring);
    store->slot_extent = calloc((size_t)depth, sizeof *store->slot_extent);
    store->free_slot = calloc((size_t)depth, sizeof *store->free_slot);
    store->queue =
        nvme_queue_new(store->files.page_bytes, store->buffer_bytes / store->files.page_bytes);
    if (!store->slot_extent || !store->free_slot || !store->queue)
        return err_set(&store->start_err, ENOMEM, "no memory for the NVMe store");
    for (int i = 0; i < depth; i++)
        store->free_slot[store->n_free++] = depth - 1 - i;
    return 0;
}

static void *
ring_thread(void *arg)
{
    struct nvme_store *store = arg;
    thread_enter(THREAD_RING);
    store->start_code = ring_thread_start(store);
    bool run = store->start_code == 0;
    (void)sem_post(&store->started);
    while (run) {
        take_submitted(store);
        start_extents(store);
        hand_back(store);
        /* A submitter pushes, then looks at asleep; here asleep is set, then the list is looked at:
         * one of the two sees the other. */
        atomic_store(&store->asleep, true);
        bool block = read_list_empty(&store->submitted);
        if (block && atomic_load(&store->stop)) {
            ASSERT(store->n_busy == 0 && !nvme_queue_waiting(store->queue)); /* N1: all reaped */
            run = false;
            break;
        }
        nvme_ring_wait(store->ring, block);
        atomic_store(&store->asleep, false);
        take_done(store);
    }
    store->ring = nvme_ring_close(store->ring);
    store->queue = nvme_queue_free(store->queue);
    free(store->slot_extent);
    free(store->free_slot);
    return NULL;
}

static void
wake_ring(struct nvme_store *store)
{
    if (atomic_exchange(&store->asleep, false)) {
        uint64_t one = 1;
        (void)!write(store->wake_fd, &one, sizeof one);
    }
}

static void
nvme_submit(struct cold_store *base, struct cold_read **reads, int n)
{
    struct nvme_store *store = (struct nvme_store *)base;
    struct read_chain chain = {0};
    for (int i = 0; i < n; i++)
        read_chain_add(&chain, reads[i]);
    store->outstanding += (uint64_t)n;
    (void)read_list_push(&store->submitted, &chain);
    wake_ring(store);
}

static int
nvme_reap(struct cold_store *base, struct cold_read **ret_reads, int max)
{
    struct nvme_store *store = (struct nvme_store *)base;
    int n = 0;
    while (n < max) {
        if (!store->reaped.first)
            read_list_take(&store->done, &store->reaped);
        struct cold_read *read = read_chain_pop(&store->reaped);
        if (!read)
            break;
        ret_reads[n++] = read;
    }
    ASSERT(store->outstanding >= (uint64_t)n);
    store->outstanding -= (uint64_t)n;
    return n;
}

static void
nvme_counters(const struct cold_store *base, struct cold_counters *ret)
{
    const struct nvme_store *store = (const struct nvme_store *)base;
    memset(ret, 0, sizeof *ret);
#define READ_COUNT(name) ret->name = atomic_load_explicit(&store->count.name, memory_order_relaxed)
    READ_COUNT(reads);
    READ_COUNT(bytes);
    READ_COUNT(useful_bytes);
    READ_COUNT(merged);
    READ_COUNT(errors);
    READ_COUNT(retries);
    READ_COUNT(in_flight);
    READ_COUNT(latency_ns_total);
    for (int i = 0; i < 24; i++)
        READ_COUNT(latency_bucket[i]);
#undef READ_COUNT
}

static struct cold_store *
nvme_close(struct cold_store *base)
{
    struct nvme_store *store = (struct nvme_store *)base;
    if (!store)
        return NULL;
    ASSERT(store->outstanding == 0); /* N1 */
    atomic_store(&store->stop, true);
    uint64_t one = 1;
    (void)!write(store->wake_fd, &one, sizeof one);
    pthread_join(store->thread, NULL);
    (void)close(store->wake_fd);
    nvme_files_close(&store->files);
    sem_destroy(&store->started);
    free(store);
    return NULL;
}

static const struct cold_store_ops nvme_ops = {
    .name = "nvme",
    .submit = nvme_submit,
    .reap = nvme_reap,
    .counters = nvme_counters,
    .close = nvme_close,
};

const char *
nvme_store_describe(const struct cold_store *base)
{
    ASSERT(base->ops == &nvme_ops);
    return ((const struct nvme_store *)base)->describe;
}

static int
start_thread(struct nvme_store *store, struct err *err)
{
    /* Signals are the main thread's business: the new thread starts with all of them blocked. */
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int code = pthread_create(&store->thread, NULL, ring_thread, store);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (code)
        return err_errno(err, code, "thread of the NVMe store");
    while (sem_wait(&store->started) < 0)
        ;
    if (store->start_code < 0) {
        pthread_join(store->thread, NULL);
        return err_set(err, -store->start_code, "%s", store->start_err.text);
    }
    return 0;
}

int
nvme_store_open_with(struct cold_store **ret_store, const struct nvme_file *files, int n_files,
                     const struct nvme_options *options, bool use_uring, struct err *err)
{
    if (options->depth < 1 || options->depth > DEPTH_MAX || options->retries < 0)
        return err_set(err, EINVAL, "depth %d, retries %d: out of range", options->depth,
                       options->retries);
    struct nvme_store *store = calloc(1, sizeof *store);
    if (!store)
        return err_set(err, ENOMEM, "no memory for the NVMe store");
    store->base.ops = &nvme_ops;
    store->options = *options;
    store->use_uring = use_uring;
    int code = nvme_files_open(&store->files, files, n_files, options->direct, err);
    if (code < 0) {
        free(store);
        return code;
    }
    /* Two pages, for rows that lie across a boundary; four where that stays below 8 MiB. */
    store->buffer_bytes = store->files.page_bytes * (options->depth <= 512 ? 4u : 2u);
    (void)sem_init(&store->started, 0, 0);
    store->wake_fd = eventfd(0, EFD_CLOEXEC);
    code = store->wake_fd < 0 ? err_errno(err, errno, "eventfd") : start_thread(store, err);
    if (code < 0) {
        if (store->wake_fd >= 0)
            (void)close(store->wake_fd);
        sem_destroy(&store->started);
        nvme_files_close(&store->files);
        free(store);
        return code;
    }
    (void)snprintf(store->describe, sizeof store->describe, "%s, %s, pages of %u bytes",
                   nvme_ring_describe(store->ring),
                   store->files.n_direct == n_files ? "O_DIRECT"
                   : store->files.n_direct == 0     ? "buffered"
                                                    : "O_DIRECT for some files",
                   store->files.page_bytes);
    *ret_store = &store->base;
    return 0;
}

int
nvme_store_open(struct cold_store **ret_store, const struct nvme_file *files, int n_files,
                const struct nvme_options *options, struct err *err)
{
    return nvme_store_open_with(ret_store, files, n_files, options, true, err);
}
