/* policy: which bundle leaves a full store. Pure code: no clock, no device, no allocation after
 * creation.
 *
 * The store tells it of arrivals and touches and asks it for victims; the policy links slots
 * through slot.next and keeps bundle.visits and bundle.queue. A slot is known to the policy from
 * insert until victim returned it or remove_if dropped it. Thread: resolver. */
#ifndef TIERING_POLICY_H
#define TIERING_POLICY_H

#include "tiering/slot.h"

enum arrival {
    ARRIVAL_DEMAND,  /* a step waits for it */
    ARRIVAL_PLANNED, /* a plan expects a step to want it: takes only what nobody is known to want */
};

enum { POLICY_VISITS_MAX = 3 }; /* in bundle.visits: a touch changes nothing any more */

struct policy;
struct policy_ops {
    const char *name;
    void (*insert)(struct policy *policy, uint32_t slot, enum arrival arrival);
    /* A look-up found the bundle. True: it was planned and this was its first use. Slots that were not
     * planned may be touched by several threads at a time; of two touches at once one may be lost. */
    bool (*touch)(struct policy *policy, struct slot *slot);
    /* A slot to evict for an arrival of this kind, forgotten by the policy; none that a step of
     * `keep` was given. NODE_NONE: none found with bounded effort. */
    uint32_t (*victim)(struct policy *policy, struct step_range keep, enum arrival arrival);
    /* The first of those that victim would look at for a step's own bundle, n at most; returns how many.
     * They are what the caller will read soon, no promise: which of them leaves, victim says. */
    int (*next)(const struct policy *policy, uint32_t *ret_slots, int n);
    /* Forgets all slots for which drop says so. */
    void (*remove_if)(struct policy *policy, bool (*drop)(void *arg, uint32_t slot), void *arg);
    /* Planned bundles nobody has used yet. */
    uint32_t (*planned)(const struct policy *policy);
    struct policy *(*free)(struct policy *policy); /* accepts NULL, returns NULL */
};
struct policy {
    const struct policy_ops *ops;
};

/* The policy in use (two_queue_policy.c). NULL: no memory. */
struct policy *two_queue_policy_new(const struct node_space *slots);

#endif
