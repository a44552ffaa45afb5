/* null_store: a cold store without a disk. Its bytes are a function of file and offset, so a test
 * can check any delivered bundle, and a benchmark sees the cost of everything but the device. */
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "tiering/cold_store.h"
#include "tiering/read_list.h"

struct null_store {
    struct cold_store base;
    cold_notify_fn notify;
    void *notify_arg;
    struct read_chain done; /* submitter's thread only: a read is finished as it is submitted */
    _Atomic uint64_t reads, bytes, errors;
};

static uint64_t
null_word(int file, uint64_t word)
{
    uint64_t x = word + ((uint64_t)(uint32_t)file << 48) + 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

uint8_t
null_store_byte(int file, uint64_t offset_bytes)
{
    return (uint8_t)(null_word(file, offset_bytes / 8) >> (offset_bytes % 8 * 8));
}

static void
null_submit(struct cold_store *base, struct cold_read **reads, int n)
{
    struct null_store *store = (struct null_store *)base;
    bool was_empty = store->done.first == NULL;
    for (int i = 0; i < n; i++) {
        struct cold_read *read = reads[i];
        if (read->file < 0 || read->size_bytes > COLD_READ_MAX) {
            read->result = -EBADF;
            atomic_fetch_add_explicit(&store->errors, 1, memory_order_relaxed);
        } else {
            uint8_t *dst = read->dst;
            for (uint32_t k = 0; k < read->size_bytes; k++)
                dst[k] = null_store_byte(read->file, read->offset_bytes + k);
            read->result = 0;
            atomic_fetch_add_explicit(&store->reads, 1, memory_order_relaxed);
            atomic_fetch_add_explicit(&store->bytes, read->size_bytes, memory_order_relaxed);
        }
        read_chain_add(&store->done, read);
    }
    if (n > 0 && was_empty && store->notify)
        store->notify(store->notify_arg);
}

static int
null_reap(struct cold_store *base, struct cold_read **ret_reads, int max)
{
    struct null_store *store = (struct null_store *)base;
    int n = 0;
    while (n < max && store->done.first)
        ret_reads[n++] = read_chain_pop(&store->done);
    return n;
}

static void
null_counters(const struct cold_store *base, struct cold_counters *ret_counters)
{
    const struct null_store *store = (const struct null_store *)base;
    memset(ret_counters, 0, sizeof *ret_counters);
    ret_counters->reads = atomic_load_explicit(&store->reads, memory_order_relaxed);
    ret_counters->bytes = atomic_load_explicit(&store->bytes, memory_order_relaxed);
    ret_counters->useful_bytes = ret_counters->bytes;
    ret_counters->errors = atomic_load_explicit(&store->errors, memory_order_relaxed);
    ret_counters->latency_bucket[0] = ret_counters->reads;
}

static struct cold_store *
null_close(struct cold_store *base)
{
    struct null_store *store = (struct null_store *)base;
    if (store) {
        ASSERT(store->done.first == NULL);
        free(store);
    }
    return NULL;
}

static const struct cold_store_ops null_ops = {
    .name = "null",
    .submit = null_submit,
    .reap = null_reap,
    .counters = null_counters,
    .close = null_close,
};

int
null_store_open(struct cold_store **ret_store, cold_notify_fn notify, void *arg)
{
    struct null_store *store = calloc(1, sizeof *store);
    if (!store)
        return -ENOMEM;
    store->base.ops = &null_ops;
    store->notify = notify;
    store->notify_arg = arg;
    *ret_store = &store->base;
    return 0;
}
