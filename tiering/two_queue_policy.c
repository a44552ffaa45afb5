/* two_queue_policy: a probation queue in front of a main queue.
 *
 *     arrival --> PROBATION --touched again--> MAIN <--touched: goes round again--+
 *                     |                          |                                |
 *                     +--else: evicted           +--------------------------------+--else: evicted
 *
 * Both are first in, first out. While probation holds more than its share of the store, victims
 * come from there, so a long prefill, whose bundles nobody asks for twice, flows through that share
 * and leaves main alone. A planned bundle that was not used yet goes round probation once more.
 *
 * The idea is that of S3-FIFO without its memory of evicted keys: in a replay it brought a point at
 * best, and it would cost a tenth of the budget at 136-byte bundles. Hit rates of decode in per
 * cent, stores of 2,000, 16,000 and 128,000 bundles (orders 2 and 3 of English prose by words; 16
 * streams of 200 tokens, each after a prefill of 300, from random places of 10.7 million tokens):
 *
 *     LRU               11.2  25.5  43.1      two queues, share 10 %   20.1  34.7  50.7
 *     clock             12.7  27.4  45.6                  share 25 %   19.4  34.3  50.8
 *     SIEVE             19.3  34.1  50.5                  share 50 %   17.9  32.3  49.3
 *     S3-FIFO, 10 %     19.8  34.4  51.8                  share 75 %   15.3  29.1  45.8 */
#include <stdlib.h>

#include "base/check.h"
#include "tiering/policy.h"

enum { QUEUE_NONE, QUEUE_PROBATION, QUEUE_MAIN };
enum { PLANNED = 0x80 };
enum { PROBATION_SHARE = 8 }; /* one part in so many */
/* Slots looked at for one victim, per queue. In probation most of those that do not leave go to
 * main, which each does once, so the larger number is rare. */
enum { EFFORT_PROBATION = 128, EFFORT_MAIN = 32 };

struct fifo {
    uint32_t oldest, newest, count;
};

struct two_queue {
    struct policy base;
    const struct node_space *slots;
    struct fifo probation, main;
    uint32_t planned;
};

static struct slot *
slot_of(const struct two_queue *policy, uint32_t slot)
{
    return node_at(policy->slots, slot);
}

static void
fifo_push(struct two_queue *policy, struct fifo *fifo, uint32_t at)
{
    struct slot *slot = slot_of(policy, at);
    slot->next = NODE_NONE;
    slot->bundle.queue = fifo == &policy->main ? QUEUE_MAIN : QUEUE_PROBATION;
    if (fifo->count++)
        slot_of(policy, fifo->newest)->next = at;
    else
        fifo->oldest = at;
    fifo->newest = at;
}

static uint32_t
fifo_pop(struct two_queue *policy, struct fifo *fifo)
{
    uint32_t at = fifo->oldest;
    ASSERT(fifo->count > 0);
    fifo->count--;
    struct slot *slot = slot_of(policy, at);
    fifo->oldest = slot->next;
    slot->bundle.queue = QUEUE_NONE;
    return at;
}

static void
two_queue_insert(struct policy *base, uint32_t at, enum arrival arrival)
{
    struct two_queue *policy = (struct two_queue *)base;
    struct slot *slot = slot_of(policy, at);
    slot->bundle.visits = 0;
    if (arrival == ARRIVAL_PLANNED) {
        slot->bundle.visits = PLANNED;
        policy->planned++;
    }
    fifo_push(policy, &policy->probation, at);
}

static bool
two_queue_touch(struct policy *base, struct slot *slot)
{
    struct two_queue *policy = (struct two_queue *)base;
    uint8_t visits = __atomic_load_n(&slot->bundle.visits, __ATOMIC_RELAXED);

    if (visits & PLANNED) {
        slot->bundle.visits =
            0; /* the use it was read for: what a demanded bundle had at arrival */
        policy->planned--;
        return true;
    }
    if (visits < POLICY_VISITS_MAX)
        __atomic_store_n(&slot->bundle.visits, (uint8_t)(visits + 1), __ATOMIC_RELAXED);
    return false;
}

/* The bundle in probation may leave, stays for another round, or has earned main. */
static bool
leaves_probation(struct two_queue *policy, uint32_t at, struct step_range keep,
                 enum arrival arrival)
{
    struct slot *slot = slot_of(policy, at);
    bool is_planned = slot->bundle.visits & PLANNED;
    if (step_range_has(keep, slot->last_step) || (is_planned && arrival == ARRIVAL_PLANNED)) {
        fifo_push(policy, &policy->probation, at); /* a plan must not undo another */
    } else if (is_planned) {
        slot->bundle.visits = 0;
        policy->planned--;
        fifo_push(policy, &policy->probation, at);
    } else if (slot->bundle.visits > 0) {
        slot->bundle.visits = 0;
        fifo_push(policy, &policy->main, at);
    } else {
        return true;
    }
    return false;
}

static bool
leaves_main(struct two_queue *policy, uint32_t at, struct step_range keep)
{
    struct slot *slot = slot_of(policy, at);
    if (!step_range_has(keep, slot->last_step)) {
        if (slot->bundle.visits == 0)
            return true;
        slot->bundle.visits--;
    }
    fifo_push(policy, &policy->main, at);
    return false;
}

static bool
over_its_share(const struct two_queue *policy)
{
    return policy->probation.count >
           (policy->probation.count + policy->main.count) / PROBATION_SHARE;
}

static uint32_t
two_queue_victim(struct policy *base, struct step_range keep, enum arrival arrival)
{
    struct two_queue *policy = (struct two_queue *)base;
    bool planned = arrival == ARRIVAL_PLANNED;
    for (int effort = 0; policy->probation.count && (planned || over_its_share(policy)); effort++) {
        /* Rather none than one from main while probation has more than its share. */
        if (effort == EFFORT_PROBATION)
            return NODE_NONE;
        uint32_t at = fifo_pop(policy, &policy->probation);
        if (leaves_probation(policy, at, keep, arrival))
            return at;
    }
    for (int effort = 0; !planned && effort < EFFORT_MAIN && policy->main.count; effort++) {
        uint32_t at = fifo_pop(policy, &policy->main);
        if (leaves_main(policy, at, keep))
            return at;
    }
    return NODE_NONE;
}

static int
two_queue_next(const struct policy *base, uint32_t *ret_slots, int n)
{
    const struct two_queue *policy = (const struct two_queue *)base;
    const struct fifo *fifo = over_its_share(policy) ? &policy->probation : &policy->main;
    uint32_t at = fifo->oldest;
    int found = 0;

    while (found < n && (uint32_t)found < fifo->count) {
        ret_slots[found++] = at;
        if (found < n) /* the record of the last is not read */
            at = slot_of(policy, at)->next;
    }
    return found;
}

static void
fifo_filter(struct two_queue *policy, struct fifo *fifo, bool (*drop)(void *arg, uint32_t slot),
            void *arg)
{
    uint32_t at = fifo->oldest, n = fifo->count;
    *fifo = (struct fifo){0};
    while (n-- > 0) {
        struct slot *slot = slot_of(policy, at);
        uint32_t next = slot->next;
        if (!drop(arg, at)) {
            fifo_push(policy, fifo, at);
        } else {
            if (slot->bundle.visits & PLANNED)
                policy->planned--;
            slot->bundle.visits = 0;
            slot->bundle.queue = QUEUE_NONE;
        }
        at = next;
    }
}

static void
two_queue_remove_if(struct policy *base, bool (*drop)(void *arg, uint32_t slot), void *arg)
{
    struct two_queue *policy = (struct two_queue *)base;
    fifo_filter(policy, &policy->probation, drop, arg);
    fifo_filter(policy, &policy->main, drop, arg);
}

static uint32_t
two_queue_planned(const struct policy *base)
{
    return ((const struct two_queue *)base)->planned;
}

static struct policy *
two_queue_free(struct policy *base)
{
    free(base);
    return NULL;
}

static const struct policy_ops two_queue_ops = {
    .name = "two queues",
    .insert = two_queue_insert,
    .touch = two_queue_touch,
    .victim = two_queue_victim,
    .next = two_queue_next,
    .remove_if = two_queue_remove_if,
    .planned = two_queue_planned,
    .free = two_queue_free,
};

struct policy *
two_queue_policy_new(const struct node_space *slots)
{
    struct two_queue *policy = calloc(1, sizeof *policy);
    if (!policy)
        return NULL;
    policy->base.ops = &two_queue_ops;
    policy->slots = slots;
    return &policy->base;
}
