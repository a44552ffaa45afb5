#include "daemon/chunk_pool.h"

#include <pthread.h>
#include <search.h>
#include <stdlib.h>

#include "base/check.h"
#include "daemon/engine.h"

enum {
    SLAB_BYTES = 2 << 20,
    SMALL_BYTES = 256 << 10,
    ALIGNMENT = 4096,
    MAX_WANTED = 8, /* sizes at a time */
    READY_MOST = 8, /* slabs of one size that nobody has taken anything of */
    PATIENCE_STEPS = 1024, /* then they go back */
};

/* Memory of the device: one chunk, or small ones of one size. */
struct slab {
    struct slab *next, *before; /* in the list of those with a free chunk, or of those that leave */
    uint8_t *memory;
    size_t size_bytes, chunk_bytes;
    uint64_t first_step; /* that may be given its chunks */
    uint32_t n_chunks, n_taken, n_free;
    uint32_t *free_chunk; /* [n_chunks] stack */
};

struct chunk_pool {
    /* Set at creation. */
    struct device *device;
    bool shared;
    void (*ready)(void *arg);
    void *arg;
    pthread_t thread;
    bool started;

    pthread_mutex_t lock; /* of all below */
    pthread_cond_t work;
    bool stopping, waits;
    void *tree;           /* of all slabs, by address */
    struct slab *partial; /* with a free chunk */
    struct slab *leaving; /* with nothing taken: the thread gives them back */
    uint64_t step;         /* the newest that has begun */
    size_t wanted[MAX_WANTED]; /* sizes refused and not ready yet */
    int n_wanted;
};

static struct slab *
slab_new(struct chunk_pool *p, size_t chunk_bytes)
{
    const struct device_ops *ops = p->device->ops;
    size_t stride = (chunk_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    uint32_t n = chunk_bytes <= SMALL_BYTES ? (uint32_t)(SLAB_BYTES / stride) : 1;
    struct slab *slab = calloc(1, sizeof *slab);

    if (slab == NULL)
        return NULL;
    *slab = (struct slab){.size_bytes = n * stride, .chunk_bytes = chunk_bytes, .n_chunks = n};
    slab->free_chunk = calloc(n, sizeof *slab->free_chunk);
    if (slab->free_chunk)
        slab->memory = p->shared ? ops->alloc_shared(p->device, slab->size_bytes)
                                 : ops->alloc(p->device, slab->size_bytes);
    if (slab->memory == NULL) {
        free(slab->free_chunk);
        free(slab);
        return NULL;
    }
    for (uint32_t i = 0; i < n; i++)
        slab->free_chunk[slab->n_free++] = n - 1 - i;
    return slab;
}

static void
slab_free(struct chunk_pool *p, struct slab *slab)
{
    const struct device_ops *ops = p->device->ops;

    if (p->shared)
        ops->free_shared(p->device, slab->memory, slab->size_bytes);
    else
        ops->free(p->device, slab->memory, slab->size_bytes);
    free(slab->free_chunk);
    free(slab);
}

/* Ranges of addresses: equal when they meet. */
static int
by_address(const void *left, const void *right)
{
    const struct slab *a = left, *b = right;

    return a->memory + a->size_bytes <= b->memory ? -1 : b->memory + b->size_bytes <= a->memory;
}

static void
link_partial(struct chunk_pool *p, struct slab *slab)
{
    slab->before = NULL;
    slab->next = p->partial;
    if (slab->next)
        slab->next->before = slab;
    p->partial = slab;
}

static void
unlink_partial(struct chunk_pool *p, struct slab *slab)
{
    if (slab->next)
        slab->next->before = slab->before;
    if (slab->before)
        slab->before->next = slab->next;
    else
        p->partial = slab->next;
}

/* Lock held. A slab that finds no place goes back. */
static void
add(struct chunk_pool *p, struct slab *slab)
{
    if (tsearch(slab, &p->tree, by_address)) {
        link_partial(p, slab);
    } else {
        slab->next = p->leaving;
        p->leaving = slab;
    }
}

/* Lock held. */
static void *
take(struct chunk_pool *p, size_t chunk_bytes)
{
    struct slab *slab = p->partial;

    while (slab && (slab->chunk_bytes != chunk_bytes || slab->first_step > p->step))
        slab = slab->next;
    if (slab == NULL)
        return NULL;
    slab->n_taken++;
    void *chunk = slab->memory +
                  (size_t)slab->free_chunk[--slab->n_free] * (slab->size_bytes / slab->n_chunks);
    if (slab->n_free == 0)
        unlink_partial(p, slab);
    return chunk;
}

/* Lock held. */
static int
n_ready(const struct chunk_pool *p, size_t chunk_bytes)
{
    int n = 0;

    for (const struct slab *slab = p->partial; slab; slab = slab->next)
        n += slab->chunk_bytes == chunk_bytes && slab->n_taken == 0;
    return n;
}

/* Lock held. */
static void
want(struct chunk_pool *p, size_t chunk_bytes)
{
    if (n_ready(p, chunk_bytes) >= READY_MOST)
        return; /* they are there, for a later step */
    for (int i = 0; i < p->n_wanted; i++)
        if (p->wanted[i] == chunk_bytes)
            return;
    if (p->n_wanted < MAX_WANTED)
        p->wanted[p->n_wanted++] = chunk_bytes;
    pthread_cond_signal(&p->work);
}

static void *
chunk_alloc(void *arg, size_t size_bytes)
{
    struct chunk_pool *p = arg;

    pthread_mutex_lock(&p->lock);
    void *chunk = take(p, size_bytes);
    bool waits = p->waits;
    if (chunk == NULL && !waits)
        want(p, size_bytes);
    pthread_mutex_unlock(&p->lock);
    if (chunk || !waits)
        return chunk;

    struct slab *slab = slab_new(p, size_bytes);
    pthread_mutex_lock(&p->lock);
    if (slab) {
        add(p, slab);
        chunk = take(p, size_bytes);
    }
    pthread_mutex_unlock(&p->lock);
    return chunk;
}

/* Lock held. The slab has nothing taken and is of no use. */
static void
let_go(struct chunk_pool *p, struct slab *slab)
{
    unlink_partial(p, slab);
    (void)tdelete(slab, &p->tree, by_address);
    slab->next = p->leaving;
    p->leaving = slab;
    pthread_cond_signal(&p->work);
}

static void
chunk_free(void *arg, void *chunk, size_t size_bytes)
{
    struct chunk_pool *p = arg;
    struct slab key = {.memory = chunk, .size_bytes = 1};

    pthread_mutex_lock(&p->lock);
    struct slab **found = tfind(&key, &p->tree, by_address);
    ASSERT(found);
    struct slab *slab = *found;
    ASSERT(slab->chunk_bytes == size_bytes && slab->n_taken > 0);
    slab->free_chunk[slab->n_free++] =
        (uint32_t)((size_t)((uint8_t *)chunk - slab->memory) / (slab->size_bytes / slab->n_chunks));
    if (slab->n_free == 1)
        link_partial(p, slab);
    if (--slab->n_taken == 0)
        let_go(p, slab);
    pthread_mutex_unlock(&p->lock);
}

/* A refusal is only for now. */
static bool
chunk_later(void *arg)
{
    return true;
}

static void
chunk_begin(void *arg, uint64_t step)
{
    struct chunk_pool *p = arg;

    pthread_mutex_lock(&p->lock);
    p->step = step;
    for (struct slab *slab = p->partial, *next; slab && step % 64 == 0; slab = next) {
        next = slab->next;
        if (slab->n_taken == 0 && slab->first_step + PATIENCE_STEPS < step)
            let_go(p, slab);
    }
    pthread_mutex_unlock(&p->lock);
}

/* Lock held, and given up while the driver is called. */
static void
do_some_work(struct chunk_pool *p)
{
    if (p->leaving) {
        struct slab *slab = p->leaving;

        p->leaving = slab->next;
        pthread_mutex_unlock(&p->lock);
        slab_free(p, slab);
        pthread_mutex_lock(&p->lock);
        return;
    }
    size_t size = p->wanted[0];
    pthread_mutex_unlock(&p->lock);
    struct slab *slab = slab_new(p, size);
    pthread_mutex_lock(&p->lock);
    if (slab) {
        /* Behind the newest step there may be others, launched and not begun here. */
        slab->first_step = p->step + ENGINE_STEPS_IN_FLIGHT;
        add(p, slab);
    }
    if (slab == NULL || n_ready(p, size) >= READY_MOST) {
        for (int i = 1; i < p->n_wanted; i++)
            p->wanted[i - 1] = p->wanted[i];
        p->n_wanted--; /* without memory it is wanted again by whoever asks again */
    }
    if (slab == NULL)
        return;
    pthread_mutex_unlock(&p->lock);
    p->ready(p->arg);
    pthread_mutex_lock(&p->lock);
}

static void *
pool_main(void *arg)
{
    struct chunk_pool *p = arg;

    thread_enter(THREAD_BACKGROUND);
    pthread_mutex_lock(&p->lock);
    while (!p->stopping) {
        if (p->leaving || p->n_wanted)
            do_some_work(p);
        else
            pthread_cond_wait(&p->work, &p->lock);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

int
chunk_pool_new(struct chunk_pool **ret_pool, struct device *device, bool shared,
               void (*ready)(void *arg), void *arg, struct err *err)
{
    struct chunk_pool *p = calloc(1, sizeof *p);

    if (p == NULL)
        return err_set(err, ENOMEM, "no memory for the chunks of the tiers");
    *p = (struct chunk_pool){
        .device = device, .shared = shared, .ready = ready, .arg = arg, .waits = true};
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->work, NULL);
    int status = pthread_create(&p->thread, NULL, pool_main, p);
    if (status != 0) {
        chunk_pool_free(p);
        return err_errno(err, status, "cannot start the thread for the chunks of the tiers");
    }
    p->started = true;
    *ret_pool = p;
    return 0;
}

struct chunk_pool *
chunk_pool_free(struct chunk_pool *p)
{
    if (p == NULL)
        return NULL;
    if (p->started) {
        pthread_mutex_lock(&p->lock);
        p->stopping = true;
        pthread_cond_signal(&p->work);
        pthread_mutex_unlock(&p->lock);
        pthread_join(p->thread, NULL);
    }
    /* What was made and not taken; everything else has been given back. */
    while (p->partial) {
        struct slab *slab = p->partial;

        ASSERT(slab->n_taken == 0);
        unlink_partial(p, slab);
        (void)tdelete(slab, &p->tree, by_address);
        slab_free(p, slab);
    }
    ASSERT(p->tree == NULL);
    while (p->leaving) {
        struct slab *slab = p->leaving;

        p->leaving = slab->next;
        slab_free(p, slab);
    }
    pthread_cond_destroy(&p->work);
    pthread_mutex_destroy(&p->lock);
    free(p);
    return NULL;
}

void
chunk_pool_wait(struct chunk_pool *p, bool waits)
{
    pthread_mutex_lock(&p->lock);
    p->waits = waits;
    pthread_mutex_unlock(&p->lock);
}

static void *
device_alloc(void *arg, size_t size_bytes)
{
    struct device *device = arg;

    return device->ops->alloc(device, size_bytes);
}

static void
device_free(void *arg, void *chunk, size_t size_bytes)
{
    struct device *device = arg;

    device->ops->free(device, chunk, size_bytes);
}

static void *
shared_alloc(void *arg, size_t size_bytes)
{
    struct device *device = arg;

    return device->ops->alloc_shared(device, size_bytes);
}

static void
shared_free(void *arg, void *chunk, size_t size_bytes)
{
    struct device *device = arg;

    device->ops->free_shared(device, chunk, size_bytes);
}

struct chunk_ops
chunk_ops_of_device(struct device *device, bool shared)
{
    return (struct chunk_ops){.alloc = shared ? shared_alloc : device_alloc,
                              .free = shared ? shared_free : device_free,
                              .arg = device};
}

struct chunk_ops
chunk_pool_ops(struct chunk_pool *p)
{
    return (struct chunk_ops){
        .alloc = chunk_alloc, .free = chunk_free, .later = chunk_later, .begin = chunk_begin, .arg = p};
}
