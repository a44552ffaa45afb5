#include "tests/unit/daemon/behind_device.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/check.h"
#include "gpu/forward_state.h"

enum { QUEUE = 256 };

enum item_kind { ITEM_STEP, ITEM_PROBE, ITEM_COPY, ITEM_PAGE };

struct item {
    enum item_kind kind;
    struct forward_step step; /* STEP: outputs and their lists are copies; PROBE: zeros */
    void *dst;                /* COPY */
    const void *src;
    size_t size_bytes;
    int dst_page, src_page; /* PAGE */
};

struct behind {
    struct device device; /* first: a struct device is cast back */
    struct device_ops ops;
    struct device *below;
    struct forward *on_below, *on_top;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    /* Guarded by lock. */
    struct item *queue[QUEUE];
    unsigned first, count;
    bool closing, failed, working;
    uint64_t hold_from, time_out, fail_from; /* UINT64_MAX: none */
    unsigned slow_us;
    struct behind_counts counts;
};

static struct behind *
behind_of(const struct device *device)
{
    return (struct behind *)(void *)(uintptr_t)device;
}

static void *
copy_list(const void *from, size_t size_bytes)
{
    if (size_bytes == 0)
        return NULL;
    void *to = malloc(size_bytes);
    ASSERT(to);
    return memcpy(to, from, size_bytes);
}

static void
put(struct behind *b, struct item *item)
{
    (void)pthread_mutex_lock(&b->lock);
    ASSERT(b->count < QUEUE);
    b->queue[(b->first + b->count++) % QUEUE] = item;
    if (item->kind == ITEM_STEP) {
        b->counts.issued = item->step.step;
        for (int i = 0; i < item->step.batch.n_rows; i++)
            b->counts.remembered += item->step.batch.token[i] == TOKEN_OF_SLOT;
    }
    b->counts.probes += item->kind == ITEM_PROBE;
    (void)pthread_cond_broadcast(&b->changed);
    (void)pthread_mutex_unlock(&b->lock);
}

static struct item *
new_item(enum item_kind kind)
{
    struct item *item = calloc(1, sizeof *item);

    ASSERT(item);
    item->kind = kind;
    return item;
}

static void
free_item(struct item *item)
{
    for (int i = 0; i < item->step.n_outputs; i++) {
        const struct sample_params *p = &item->step.outputs[i].params;

        free((void *)(uintptr_t)p->bias);
        free((void *)(uintptr_t)p->counts);
        free((void *)(uintptr_t)p->banned);
    }
    free((void *)(uintptr_t)item->step.outputs);
    free(item);
}

/* ------------------------------------------------------------------ the thread */

static void
run_step(struct behind *b, struct item *item)
{
    struct forward_step *step = &item->step;
    struct err err = ERR_INIT;

    (void)pthread_mutex_lock(&b->lock);
    while (step->step >= b->hold_from && !b->closing)
        (void)pthread_cond_wait(&b->changed, &b->lock);
    b->failed |= step->step >= b->fail_from;
    bool failed = b->failed, late = step->step == b->time_out;
    unsigned slow_us = b->slow_us;
    if (item->kind == ITEM_STEP)
        b->counts.begun = step->step;
    b->counts.probes_begun += item->kind == ITEM_PROBE;
    (void)pthread_mutex_unlock(&b->lock);
    if (failed || item->kind == ITEM_PROBE)
        return;
    if (slow_us)
        usleep(slow_us);
    if (late) {
        for (int i = 0; i < step->n_outputs; i++)
            step->results[i].token = -1;
        step->report->status = -ETIMEDOUT;
        __atomic_store_n(&step->report->done, step->step, __ATOMIC_RELEASE);
        return;
    }
    int status = forward_run(b->on_below, step, &err);
    ASSERT(status == 0 || status == -ETIMEDOUT);
}

static void *
behind_main(void *arg)
{
    struct behind *b = arg;

    for (;;) {
        (void)pthread_mutex_lock(&b->lock);
        b->working = false;
        (void)pthread_cond_broadcast(&b->changed);
        while (b->count == 0 && !b->closing)
            (void)pthread_cond_wait(&b->changed, &b->lock);
        if (b->count == 0) {
            (void)pthread_mutex_unlock(&b->lock);
            return NULL;
        }
        struct item *item = b->queue[b->first];
        b->first = (b->first + 1) % QUEUE;
        b->count--;
        b->working = true;
        (void)pthread_mutex_unlock(&b->lock);
        if (item->kind == ITEM_STEP || item->kind == ITEM_PROBE)
            run_step(b, item);
        else if (item->kind == ITEM_COPY)
            memcpy(item->dst, item->src, item->size_bytes);
        else
            ASSERT(forward_copy_page(b->on_below, item->dst_page, item->src_page) == 0);
        free_item(item);
    }
}

/* ------------------------------------------------------------------ operations */

static void *
behind_alloc(struct device *dev, size_t size_bytes)
{
    struct device *below = behind_of(dev)->below;

    return below->ops->alloc(below, size_bytes);
}

static void
behind_free(struct device *dev, void *memory, size_t size_bytes)
{
    struct device *below = behind_of(dev)->below;

    below->ops->free(below, memory, size_bytes);
}

static size_t
behind_page_bytes(const struct device *dev, const struct model_shape *shape, int page_tokens)
{
    const struct device *below = behind_of(dev)->below;

    return below->ops->kv_page_bytes(below, shape, page_tokens);
}

static int
behind_reserve(struct device *dev, const struct model_shape *shape,
               const struct device_limits *limits)
{
    return 0; /* the forward pass below has done it */
}

static int
behind_begin_step(struct device *dev, const struct forward_step *step, struct step_view *ret_view,
                  struct stream *stream)
{
    struct item *item = new_item(ITEM_STEP);

    item->step = *step;
    struct forward_output *outputs =
        copy_list(step->outputs, (size_t)step->n_outputs * sizeof *outputs);
    for (int i = 0; i < step->n_outputs; i++) {
        struct sample_params *p = &outputs[i].params;

        p->bias = copy_list(p->bias, (size_t)p->n_bias * sizeof *p->bias);
        p->counts = copy_list(p->counts, (size_t)p->n_counts * sizeof *p->counts);
        p->banned = copy_list(p->banned, (size_t)p->n_banned * sizeof *p->banned);
    }
    item->step.outputs = outputs;
    put(behind_of(dev), item);
    return STEP_REPLAYED;
}

/* A state of the forward pass on top stands for the same one of that below. */
static char *
state_below(const struct behind *b, const char *at)
{
    for (int i = 0; i < b->on_top->shape.engram.n_layers; i++) {
        const char *base = (const char *)b->on_top->state[i];

        if (at >= base && at < base + b->on_top->state_bytes)
            return (char *)b->on_below->state[i] + (at - base);
    }
    ASSERT(!"not a state");
    return NULL;
}

static int
behind_copy(struct device *dev, void *dst, const void *src, size_t size_bytes,
            struct stream *stream)
{
    struct behind *b = behind_of(dev);
    struct item *item = new_item(ITEM_COPY);

    item->dst = state_below(b, dst);
    item->src = state_below(b, src);
    item->size_bytes = size_bytes;
    put(b, item);
    return 0;
}

static int
behind_copy_page(struct device *dev, const struct kv_cache *cache, int dst_page, int src_page,
                 struct stream *stream)
{
    struct item *item = new_item(ITEM_PAGE);

    item->dst_page = dst_page;
    item->src_page = src_page;
    put(behind_of(dev), item);
    return 0;
}

static int
behind_poll(struct device *dev, struct stream *stream)
{
    struct behind *b = behind_of(dev);

    (void)pthread_mutex_lock(&b->lock);
    int result = b->failed ? -EIO : b->count == 0 && !b->working;
    (void)pthread_mutex_unlock(&b->lock);
    return result;
}

static int
behind_probe(struct device *dev, struct stream *stream)
{
    put(behind_of(dev), new_item(ITEM_PROBE));
    return 0;
}

/* ------------------------------------------------------------------ tests */

struct behind *
behind_open(struct device *below, struct forward *on_below)
{
    struct behind *b = calloc(1, sizeof *b);

    ASSERT(b);
    b->below = below;
    b->on_below = on_below;
    b->hold_from = b->time_out = b->fail_from = UINT64_MAX;
    b->ops = (struct device_ops){.name = "behind",
                                 .activation = below->ops->activation,
                                 .logit_block_bytes = below->ops->logit_block_bytes,
                                 .alloc = behind_alloc,
                                 .free = behind_free,
                                 .alloc_shared = behind_alloc,
                                 .free_shared = behind_free,
                                 .host_addressable = true,
                                 .reserve = behind_reserve,
                                 .kv_page_bytes = behind_page_bytes,
                                 .begin_step = behind_begin_step,
                                 .copy = behind_copy,
                                 .kv_copy_page = behind_copy_page,
                                 .poll = behind_poll,
                                 .probe = behind_probe};
    b->device.ops = &b->ops;
    ASSERT(pthread_mutex_init(&b->lock, NULL) == 0);
    ASSERT(pthread_cond_init(&b->changed, NULL) == 0);
    ASSERT(pthread_create(&b->thread, NULL, behind_main, b) == 0);
    return b;
}

void
behind_stop(struct behind *b)
{
    if (b == NULL)
        return;
    (void)pthread_mutex_lock(&b->lock);
    b->closing = true;
    (void)pthread_cond_broadcast(&b->changed);
    (void)pthread_mutex_unlock(&b->lock);
    (void)pthread_join(b->thread, NULL);
}

struct behind *
behind_close(struct behind *b)
{
    if (b == NULL)
        return NULL;
    (void)pthread_cond_destroy(&b->changed);
    (void)pthread_mutex_destroy(&b->lock);
    free(b);
    return NULL;
}

struct device *
behind_device(struct behind *b)
{
    return &b->device;
}

void
behind_bind(struct behind *b, struct forward *forward)
{
    b->on_top = forward;
}

#define SET(b, statement)                                                                          \
    do {                                                                                           \
        (void)pthread_mutex_lock(&(b)->lock);                                                      \
        statement;                                                                                 \
        (void)pthread_cond_broadcast(&(b)->changed);                                               \
        (void)pthread_mutex_unlock(&(b)->lock);                                                    \
    } while (0)

void
behind_hold(struct behind *b, uint64_t step)
{
    SET(b, b->hold_from = step);
}

void
behind_release(struct behind *b)
{
    SET(b, b->hold_from = UINT64_MAX);
}

void
behind_time_out(struct behind *b, uint64_t step)
{
    SET(b, b->time_out = step);
}

void
behind_fail(struct behind *b, uint64_t step)
{
    SET(b, b->fail_from = step);
}

void
behind_slow(struct behind *b, unsigned microseconds)
{
    SET(b, b->slow_us = microseconds);
}

struct behind_counts
behind_counts(struct behind *b)
{
    (void)pthread_mutex_lock(&b->lock);
    struct behind_counts counts = b->counts;
    (void)pthread_mutex_unlock(&b->lock);
    return counts;
}
