/* resolver: the thread that owns the tiers. Hashes N-grams, finds or fetches their bundles, raises
 * the flags the Engram layers wait for. Messages come from the engine (steps) and the loop
 * (prefetch, resize); each function below says whose. */
#ifndef DAEMON_RESOLVER_H
#define DAEMON_RESOLVER_H

#include "base/err.h"
#include "daemon/step_buffer.h"
#include "tiering/tiers.h"

struct resolver;

struct resolver_options {
    const struct model_shape *shape;
    struct tiers_options
        tiers; /* cold is opened with resolver_notify / the resolver as its argument */
};

/* The mailbox must exist before the cold store is opened, the tiers after: hence two calls. */
int resolver_new(struct resolver **ret_resolver, const struct model_shape *shape,
                 const int32_t *compressed, struct err *err); /* both borrowed */
void resolver_notify(void *resolver);                         /* cold_notify_fn: any thread */
int resolver_start(struct resolver *resolver, const struct tiers_options *options, struct err *err);
/* Stops the thread, waits for reads in flight, frees the tiers: nothing writes to a step buffer any
 * more. */
void resolver_stop(struct resolver *resolver);
/* After the cold store is closed: until then its threads may notify. Accepts NULL, returns NULL. */
struct resolver *resolver_free(struct resolver *resolver);

/* Engine. The buffer's ids and rows are filled, but for the ids that rows await: the resolver sees
 * the tokens of the step before as soon as it has ended, and goes on with what else there is to do
 * until then. Returns at once. Every flag of the step is raised in the end, also when the step
 * before fails or does not end by give_up_ns: its rows are marked failed then. */
void resolver_post_step(struct resolver *resolver, struct step_buffer *buffer);
/* Engine. Nothing reads the step's bundles any more; ok false: the device did not run it to its
 * end, so that promotions may not have happened. */
void resolver_step_done(struct resolver *resolver, uint64_t step, bool ok);

/* Any thread. ids: compressed ids of a prompt; copied. Dropped silently when the resolver is busy:
 * it is only a hint. */
void resolver_prefetch(struct resolver *resolver, const int32_t *ids, int n_ids);
/* Any thread, once started: where a table is resident as a whole; weights NULL: it is not. What it
 * says may be out of date at once, so that a step carries what it was told, and is answered in place
 * only if that is where the table is when the step is resolved (T7). */
struct tier_resident resolver_resident(struct resolver *resolver, int table);

/* One step of a table's way into host memory and back (tiers_reserve_table ..): takes effect between
 * two messages, and then `done`, which must live until then or until resolver_stop, is raised. TAKE
 * is over once no step reads the table any more. */
struct resolver_table {
    enum {
        RESOLVER_TABLE_RESERVE,
        RESOLVER_TABLE_SET,
        RESOLVER_TABLE_TAKE,
        RESOLVER_TABLE_RELEASE
    } op;
    int table;
    uint64_t size_bytes;           /* RESERVE */
    struct tier_resident resident; /* SET */
    struct flag *done;
    uint64_t done_value;
};
/* One thread at a time. -EAGAIN when the mailbox is full, -ENOMEM. */
int resolver_change_table(struct resolver *resolver, const struct resolver_table *change);
/* Any thread. UINT64_MAX leaves a budget as it is. -EAGAIN when the mailbox is full. Blocks until
 * the budgets are in force. */
int resolver_resize(struct resolver *resolver, uint64_t hbm_bytes, uint64_t ram_bytes);
/* Any thread. */
void resolver_stats(const struct resolver *resolver, struct tiers_stats *ret_stats);

#endif
