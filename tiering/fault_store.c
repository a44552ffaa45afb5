/* fault_store: fails chosen reads of the store below it.
 *
 * A read that is to fail is passed down with its file number complemented: no store has such a
 * file, so it comes back as an error, in its turn among the others and counted as one. Going up the
 * number is put right and the result becomes -EIO. Nothing is allocated or kept per read. */
#include <stdbool.h>
#include <stdlib.h>

#include "base/check.h"
#include "tiering/cold_store.h"

struct fault_store {
    struct cold_store base;
    struct cold_store *below;
    struct fault_plan plan;
    uint64_t next_number;
};

static bool
fault_wanted(const struct fault_plan *plan, const struct cold_read *read, uint64_t number)
{
    if (plan->every_nth && number >= plan->fail_from && number % plan->every_nth == 0)
        return true;
    return read->file == plan->bad_file && read->offset_bytes < plan->bad_end &&
           plan->bad_begin < read->offset_bytes + read->size_bytes;
}

static void
fault_submit(struct cold_store *base, struct cold_read **reads, int n)
{
    struct fault_store *store = (struct fault_store *)base;
    for (int i = 0; i < n; i++) {
        ASSERT(reads[i]->file >= 0);
        if (fault_wanted(&store->plan, reads[i], store->next_number++))
            reads[i]->file = ~reads[i]->file;
    }
    store->below->ops->submit(store->below, reads, n);
}

static int
fault_reap(struct cold_store *base, struct cold_read **ret_reads, int max)
{
    struct fault_store *store = (struct fault_store *)base;
    int n = store->below->ops->reap(store->below, ret_reads, max);
    for (int i = 0; i < n; i++) {
        if (ret_reads[i]->file < 0) {
            ASSERT(ret_reads[i]->result < 0);
            ret_reads[i]->file = ~ret_reads[i]->file;
            ret_reads[i]->result = -EIO;
        }
    }
    return n;
}

static void
fault_counters(const struct cold_store *base, struct cold_counters *ret_counters)
{
    const struct fault_store *store = (const struct fault_store *)base;
    store->below->ops->counters(store->below, ret_counters);
}

static struct cold_store *
fault_close(struct cold_store *base)
{
    struct fault_store *store = (struct fault_store *)base;
    if (store) {
        store->below->ops->close(store->below);
        free(store);
    }
    return NULL;
}

static const struct cold_store_ops fault_ops = {
    .name = "fault",
    .submit = fault_submit,
    .reap = fault_reap,
    .counters = fault_counters,
    .close = fault_close,
};

int
fault_store_open(struct cold_store **ret_store, struct cold_store *below,
                 const struct fault_plan *plan)
{
    struct fault_store *store = calloc(1, sizeof *store);
    if (!store)
        return -ENOMEM;
    store->base.ops = &fault_ops;
    store->below = below;
    store->plan = *plan;
    *ret_store = &store->base;
    return 0;
}
