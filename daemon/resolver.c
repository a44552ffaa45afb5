#include "daemon/resolver.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/mailbox.h"
#include "base/pool.h"
#include "model/ngram_hash.h"

enum message_kind {
    MESSAGE_STEP,
    MESSAGE_DONE,
    MESSAGE_PREFETCH,
    MESSAGE_RESIZE,
    MESSAGE_TABLE,
    MESSAGE_STOP
};

/* How long behind the steps a prompt's planned reads may come. */
static const uint64_t prefetch_slack_ns = 1000 * 1000 * 1000ull;
/* Bundles planned between two looks at the mailbox: a step never waits behind a long prompt's plan.
 */
/* Rows from which on several threads hash. */
enum { HASH_TOGETHER = 1024 };
enum { PREFETCH_SLICE = 64, MAILBOX_CAPACITY = 4096, STEP_MESSAGES = 16 };

/* How the end of a step is waited for, whose tokens the next one needs: looking all the time at
 * first, then now and then. Disk reads that land are seen to in either. */
static const uint64_t look_ns = 500 * 1000, pause_ns = 20 * 1000;

struct message {
    enum message_kind kind;
    struct step_buffer *buffer;    /* STEP */
    uint64_t step;                 /* DONE */
    bool ok;                       /* DONE */
    uint64_t hbm_bytes, ram_bytes; /* RESIZE */
    uint64_t resize;               /* RESIZE: its number */
    struct resolver_table table;   /* TABLE */
    int n_ids, next;               /* PREFETCH */
    int32_t *ids;                  /* PREFETCH: behind the message, in its memory */
};

struct resolver {
    /* Set before the thread starts. */
    const struct model_shape *shape;
    const int32_t *compressed; /* [vocab] */
    struct mailbox *mailbox;
    struct tiers *tiers;
    pthread_t thread;
    bool started;
    /* Resizes are numbered in the order in which they are sent. Whoever raises a flag looks at it once
     * more afterwards, so that it may not lie on the stack of whom it wakes. */
    pthread_mutex_t resize_lock;
    uint64_t n_resizes; /* under resize_lock */
    struct flag resized;
    pthread_mutex_t resident_lock;
    struct tier_resident resident[SHAPE_MAX_ENGRAM_LAYERS]; /* under resident_lock */
    /* Resolver thread. */
    struct leaving {
        struct resolver_table table; /* done NULL: nobody waits */
        uint64_t step;
    } leaving[SHAPE_MAX_ENGRAM_LAYERS];
    struct message *plan; /* prompt being planned; later ones wait in plan_queue */
    struct message *plan_queue[64];
    int n_plans;
    uint64_t *plan_mix;                      /* [PREFETCH_SLICE] per order */
    struct step_buffer *step[STEP_MESSAGES]; /* [n_steps] posted, not resolved yet, oldest first */
    int n_steps;
    uint64_t look_until_ns; /* of step[0] */
    /* Engine: its messages are recycled, one per step kind in turn. */
    struct message step_message[STEP_MESSAGES];
    unsigned next_step_message;
};

int
resolver_new(struct resolver **ret_resolver, const struct model_shape *shape,
             const int32_t *compressed, struct err *err)
{
    struct resolver *r = calloc(1, sizeof *r);

    if (r == NULL)
        return err_set(err, ENOMEM, "no memory for the resolver");
    r->shape = shape;
    r->compressed = compressed;
    (void)pthread_mutex_init(&r->resize_lock, NULL);
    (void)pthread_mutex_init(&r->resident_lock, NULL);
    r->mailbox = mailbox_new(MAILBOX_CAPACITY);
    r->plan_mix = calloc((size_t)PREFETCH_SLICE * SHAPE_MAX_ORDERS, sizeof *r->plan_mix);
    if (r->mailbox == NULL || r->plan_mix == NULL) {
        resolver_free(r);
        return err_set(err, ENOMEM, "no memory for the resolver");
    }
    *ret_resolver = r;
    return 0;
}

void
resolver_notify(void *resolver)
{
    mailbox_wake(((struct resolver *)resolver)->mailbox);
}

/* The step before has ended, or is taken to never end. */
static bool
tokens_known(const struct step_buffer *b)
{
    return b->before == NULL || step_report_done(b->before->report, b->before_step);
}

/* Fills in the ids of the tokens that the step before has sampled. A row whose token it did not give
 * fails; its sequence has failed with that step, so that nobody will ask for the row's result. */
static void
take_tokens(struct resolver *r, struct step_buffer *b)
{
    const struct engram_shape *engram = &r->shape->engram;
    bool ended = tokens_known(b) && b->before && b->before->report->status == 0;

    for (int row = 0; row < b->forward.batch.n_rows && b->n_awaits; row++) {
        if (b->awaits[row] < 0)
            continue;
        int32_t token = ended ? b->before->results[b->awaits[row]].token : -1;

        if (token >= 0 && token < r->shape->vocab) {
            b->ngram_ids[(size_t)row * (size_t)engram->max_order] = r->compressed[token];
            continue;
        }
        b->skip[row] = 1;
        for (int t = 0; t < engram->n_layers; t++)
            b->failed[t][row] = 1;
    }
}

struct hashing {
    const struct engram_shape *engram;
    struct step_buffer *b;
    int table, first_row, n_rows;
};

/* The mixes of a part of the step's rows. */
static void
hash_part(void *arg, int part, int n_parts)
{
    const struct hashing *h = arg;
    size_t max_order = (size_t)h->engram->max_order, n_orders = max_order - 1;
    long begin, end;

    pool_slice(h->n_rows, HASH_TOGETHER / 16, part, n_parts, &begin, &end);
    begin += h->first_row;
    end += h->first_row;
    for (size_t row = (size_t)begin; row < (size_t)end; row++)
        ngram_hash_mix(h->engram, h->table, h->b->ngram_ids + row * max_order,
                       h->b->mix[h->table] + row * n_orders);
}

/* Rows first .. end - 1, whose ids are complete. */
static void
resolve_rows(struct resolver *r, struct step_buffer *b, int first, int end)
{
    const struct engram_shape *engram = &r->shape->engram;
    size_t at = (size_t)first * (size_t)(engram->max_order - 1);
    struct pool *pool = end - first >= HASH_TOGETHER ? tiers_pool(r->tiers) : NULL;

    for (int t = 0; t < engram->n_layers; t++) {
        struct hashing hashing = {engram, b, t, first, end - first};

        if (pool)
            pool_run(pool, hash_part, &hashing);
        else
            hash_part(&hashing, 0, 1);
        struct tiers_request request = {
            .step = b->step,
            .table = t,
            .n_rows = end - first,
            .resident = b->forward.engram[t].weights,
            .mix = b->mix[t] + at,
            .address = b->address[t] + at,
            .failed = b->failed[t] + first,
            .skip = b->skip + first,
            .ready = &b->ready[t],
            .ready_value = b->forward.engram[t].ready_value,
            .rows_from = first == 0 ? b->forward.engram[t].rows_from : 0,
            .unfinished = &b->unfinished[t],
            /* A later layer can wait longer; the unit only orders layers of a step. */
            .deadline_ns = b->posted_ns + (uint64_t)engram->table[t].layer * 1000,
        };
        tiers_resolve(r->tiers, &request);
    }
}

/* The rows behind the decoding ones, when those await their tokens: all that is known already, so
 * that what is left to do once the tokens are there is little. */
static void
resolve_early(struct resolver *r, struct step_buffer *b)
{
    const struct batch *batch = &b->forward.batch;
    bool split = b->n_awaits > 0 && batch->n_decode < batch->n_rows;

    for (int t = 0; t < r->shape->engram.n_layers; t++) {
        memset(b->failed[t], 0, (size_t)batch->n_rows);
        b->unfinished[t] = split ? 2 : 1;
    }
    b->n_late = split ? batch->n_decode : batch->n_rows;
    if (split)
        resolve_rows(r, b, b->n_late, batch->n_rows);
}

static void
resolve_late(struct resolver *r, struct step_buffer *b)
{
    take_tokens(r, b);
    resolve_rows(r, b, 0, b->n_late);
}

/* Starts reads for the next few tokens of the prompt being planned. */
static void
plan_slice(struct resolver *r)
{
    const struct engram_shape *engram = &r->shape->engram;
    struct message *m = r->plan;
    int n_orders = engram->max_order - 1;
    int n = m->n_ids - m->next < PREFETCH_SLICE ? m->n_ids - m->next : PREFETCH_SLICE;

    for (int t = 0; t < engram->n_layers; t++) {
        if (tiers_is_resident(r->tiers, t))
            continue;
        for (int i = 0; i < n; i++) {
            int32_t ids[SHAPE_MAX_ORDER];
            uint64_t mix[SHAPE_MAX_ORDERS];

            for (int k = 0; k < engram->max_order; k++)
                ids[k] = m->next + i - k >= 0 ? m->ids[m->next + i - k] : engram->pad_id;
            ngram_hash_mix(engram, t, ids, mix);
            for (int o = 0; o < n_orders; o++)
                r->plan_mix[o * PREFETCH_SLICE + i] = mix[o];
        }
        for (int o = 0; o < n_orders; o++)
            tiers_prefetch(r->tiers, t, o + 2, r->plan_mix + o * PREFETCH_SLICE, n,
                           clock_now_ns() + prefetch_slack_ns);
    }
    m->next += n;
    if (m->next == m->n_ids) {
        free(m);
        r->plan = NULL;
    }
}

/* The next prompt's plan begins, or the one at hand goes on. */
static void
plan_some(struct resolver *r)
{
    if (r->plan == NULL && r->n_plans > 0) {
        r->plan = r->plan_queue[0];
        memmove(r->plan_queue, r->plan_queue + 1, (size_t)--r->n_plans * sizeof *r->plan_queue);
    }
    if (r->plan)
        plan_slice(r);
}

/* Resolves the posted steps whose tokens are known, in their order. */
static void
resolve_known(struct resolver *r)
{
    while (r->n_steps) {
        struct step_buffer *b = r->step[0];

        if (b->n_late < 0)
            resolve_early(r, b);
        if (!tokens_known(b) && clock_now_ns() < b->give_up_ns)
            return;
        resolve_late(r, b);
        memmove(r->step, r->step + 1, (size_t)--r->n_steps * sizeof *r->step);
        r->look_until_ns = clock_now_ns() + look_ns;
    }
}

static void
add_step(struct resolver *r, struct step_buffer *b)
{
    ASSERT(r->n_steps < STEP_MESSAGES);
    if (r->n_steps == 0)
        r->look_until_ns = clock_now_ns() + look_ns;
    b->n_late = -1;
    r->step[r->n_steps++] = b;
}

/* How long the mailbox may be waited for. */
static uint64_t
patience_ns(const struct resolver *r)
{
    if (r->plan != NULL || r->n_plans > 0)
        return 0;
    if (r->n_steps)
        return clock_now_ns() < r->look_until_ns ? 0 : pause_ns;
    return UINT64_MAX;
}

/* Who takes a table away is told once no step reads it. */
static void
tell_leaving(struct resolver *r)
{
    for (int t = 0; t < r->shape->engram.n_layers; t++) {
        struct leaving *l = &r->leaving[t];

        if (l->table.done == NULL || !tiers_steps_over(r->tiers, l->step))
            continue;
        flag_raise(l->table.done, l->table.done_value);
        l->table.done = NULL;
    }
}

static void
show_resident(struct resolver *r, int table, const struct tier_resident *resident)
{
    pthread_mutex_lock(&r->resident_lock);
    r->resident[table] = *resident;
    pthread_mutex_unlock(&r->resident_lock);
}

static void
change_table(struct resolver *r, const struct resolver_table *change)
{
    const struct tier_resident none = {0};
    int t = change->table;

    switch (change->op) {
    case RESOLVER_TABLE_RESERVE:
        tiers_reserve_table(r->tiers, t, change->size_bytes);
        break;
    case RESOLVER_TABLE_SET:
        (void)tiers_set_resident(r->tiers, t, &change->resident);
        show_resident(r, t, &change->resident);
        break;
    case RESOLVER_TABLE_TAKE:
        show_resident(r, t, &none);
        r->leaving[t] = (struct leaving){*change, tiers_set_resident(r->tiers, t, &none)};
        tell_leaving(r);
        return;
    case RESOLVER_TABLE_RELEASE:
        tiers_release_table(r->tiers, t);
        break;
    }
    flag_raise(change->done, change->done_value);
}

static void *
resolver_main(void *arg)
{
    struct resolver *r = arg;

    thread_enter(THREAD_RESOLVER);
    for (;;) {
        struct message *m = mailbox_receive(r->mailbox, patience_ns(r));

        tiers_poll(r->tiers);
        resolve_known(r);
        if (m == NULL) {
            plan_some(r);
            continue;
        }
        switch (m->kind) {
        case MESSAGE_STEP:
            add_step(r, m->buffer);
            resolve_known(r);
            break;
        case MESSAGE_DONE:
            if (m->ok)
                tiers_step_done(r->tiers, m->step);
            else
                tiers_step_abort(r->tiers, m->step);
            tell_leaving(r);
            break;
        case MESSAGE_PREFETCH:
            if (r->n_plans < (int)(sizeof r->plan_queue / sizeof *r->plan_queue))
                r->plan_queue[r->n_plans++] = m;
            else
                free(m);
            break;
        case MESSAGE_RESIZE: {
            struct tiers_stats now;

            tiers_stats(r->tiers, &now);
            tiers_resize(
                r->tiers,
                m->hbm_bytes == UINT64_MAX ? now.tier[TIER_HBM].budget_bytes : m->hbm_bytes,
                m->ram_bytes == UINT64_MAX ? now.tier[TIER_RAM].budget_bytes : m->ram_bytes);
            flag_raise(&r->resized, m->resize);
            free(m);
            break;
        }
        case MESSAGE_TABLE:
            change_table(r, &m->table);
            free(m);
            break;
        case MESSAGE_STOP:
            return NULL;
        }
    }
}

int
resolver_start(struct resolver *r, const struct tiers_options *options, struct err *err)
{
    int status = tiers_new(&r->tiers, options, err);

    if (status < 0)
        return status;
    memcpy(r->resident, options->resident, sizeof r->resident);
    status = pthread_create(&r->thread, NULL, resolver_main, r);
    if (status != 0)
        return err_errno(err, status, "cannot start the resolver thread");
    r->started = true;
    return 0;
}

void
resolver_stop(struct resolver *r)
{
    if (r == NULL)
        return;
    if (r->started) {
        struct message stop = {.kind = MESSAGE_STOP};

        while (mailbox_send(r->mailbox, &stop) == -EAGAIN)
            sched_yield();
        pthread_join(r->thread, NULL);
        r->started = false;
    }
    r->tiers = tiers_free(r->tiers);
}

struct resolver *
resolver_free(struct resolver *r)
{
    if (r == NULL)
        return NULL;
    resolver_stop(r);
    for (int i = 0; i < r->n_plans; i++)
        free(r->plan_queue[i]);
    free(r->plan);
    if (r->mailbox) {
        struct message *m;

        while ((m = mailbox_receive(r->mailbox, 0)) != NULL)
            if (m->kind == MESSAGE_PREFETCH || m->kind == MESSAGE_TABLE ||
                m->kind == MESSAGE_RESIZE)
                free(m);
    }
    r->mailbox = mailbox_free(r->mailbox);
    free(r->plan_mix);
    (void)pthread_mutex_destroy(&r->resize_lock);
    (void)pthread_mutex_destroy(&r->resident_lock);
    free(r);
    return NULL;
}

/* A slot is free again long before the ring comes round: a step has two messages and the engine
 * keeps at most STEP_BUFFERS steps open. */
static struct message *
step_message(struct resolver *r)
{
    struct message *m = &r->step_message[r->next_step_message++ % STEP_MESSAGES];

    *m = (struct message){0};
    return m;
}

static void
post(struct resolver *r, struct message *m)
{
    /* The mailbox is far larger than what prefetches may take; waiting here is bounded by the
     * resolver's handling of one message. */
    while (mailbox_send(r->mailbox, m) == -EAGAIN)
        sched_yield();
}

void
resolver_post_step(struct resolver *r, struct step_buffer *buffer)
{
    struct message *m = step_message(r);

    m->kind = MESSAGE_STEP;
    m->buffer = buffer;
    post(r, m);
}

void
resolver_step_done(struct resolver *r, uint64_t step, bool ok)
{
    struct message *m = step_message(r);

    m->kind = MESSAGE_DONE;
    m->step = step;
    m->ok = ok;
    post(r, m);
}

void
resolver_prefetch(struct resolver *r, const int32_t *ids, int n_ids)
{
    struct message *m = malloc(sizeof *m + (size_t)n_ids * sizeof *ids);

    if (m == NULL)
        return;
    *m = (struct message){.kind = MESSAGE_PREFETCH, .n_ids = n_ids, .ids = (int32_t *)(m + 1)};
    memcpy(m->ids, ids, (size_t)n_ids * sizeof *ids);
    if (n_ids == 0 || mailbox_send(r->mailbox, m) < 0)
        free(m);
}

int
resolver_resize(struct resolver *r, uint64_t hbm_bytes, uint64_t ram_bytes)
{
    struct message *m = calloc(1, sizeof *m);

    if (m == NULL)
        return -ENOMEM;
    *m = (struct message){.kind = MESSAGE_RESIZE, .hbm_bytes = hbm_bytes, .ram_bytes = ram_bytes};
    pthread_mutex_lock(&r->resize_lock);
    uint64_t number = m->resize = r->n_resizes + 1;
    bool sent = mailbox_send(r->mailbox, m) >= 0;
    r->n_resizes += sent;
    pthread_mutex_unlock(&r->resize_lock);
    if (!sent) {
        free(m);
        return -EAGAIN;
    }
    (void)flag_wait(&r->resized, number, 0, UINT64_MAX);
    return 0;
}

int
resolver_change_table(struct resolver *r, const struct resolver_table *change)
{
    struct message *m = calloc(1, sizeof *m);

    if (m == NULL)
        return -ENOMEM;
    *m = (struct message){.kind = MESSAGE_TABLE, .table = *change};
    if (mailbox_send(r->mailbox, m) < 0) {
        free(m);
        return -EAGAIN;
    }
    return 0;
}

struct tier_resident
resolver_resident(struct resolver *r, int table)
{
    pthread_mutex_lock(&r->resident_lock);
    struct tier_resident resident = r->resident[table];
    pthread_mutex_unlock(&r->resident_lock);
    return resident;
}

void
resolver_stats(const struct resolver *r, struct tiers_stats *ret_stats)
{
    tiers_stats(r->tiers, ret_stats);
}
