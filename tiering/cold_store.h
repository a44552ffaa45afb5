/* cold_store: the disk tier as a table of operations. Real: nvme_store (io_uring). For tests and
 * faults: null_store (a byte pattern computed from file and offset), delay_store and fault_store,
 * which stack on another.
 *
 * submit hands over reads; each comes back through reap exactly once, in any order, with `result`
 * set. A read belongs to the store between the two. The store calls notify(arg), from any of its
 * threads or from inside submit, when reap has something after having had nothing; notify wakes the
 * reaping thread and calls nothing of the store. Thread: submit and reap by one thread (resolver).
 */
#ifndef TIERING_COLD_STORE_H
#define TIERING_COLD_STORE_H

#include <stdint.h>

#include "base/err.h"

struct cold_read {
    /* Filled by the submitter. */
    int file;
    uint64_t offset_bytes;
    uint32_t size_bytes; /* at most COLD_READ_MAX */
    void *dst;
    uint64_t deadline_ns; /* earlier goes first; CLOCK_MONOTONIC */
    void *owner;          /* the submitter's own */
    /* Filled by the store. */
    int result;             /* 0, or -errno */
    struct cold_read *next; /* the store's own list while it holds the read */
};

enum { COLD_READ_MAX = 1 << 16 };

struct cold_counters { /* totals since start */
    uint64_t reads;        /* device reads completed */
    uint64_t bytes;        /* bytes of those, whole pages */
    uint64_t useful_bytes; /* bytes handed to submitters */
    uint64_t merged;       /* reads answered by another read's pages */
    uint64_t errors, retries;
    uint64_t in_flight;
    uint64_t latency_ns_total; /* sum over reads */
    uint64_t latency_bucket[24]; /* bucket i: below 2^i * 1 us (not cumulative) */
};

struct cold_store;
struct cold_store_ops {
    const char *name;
    /* Takes all n reads. Never fails: an error is each read's result. Does not block. */
    void (*submit)(struct cold_store *store, struct cold_read **reads, int n);
    /* Up to max finished reads; returns how many. Does not block. */
    int (*reap)(struct cold_store *store, struct cold_read **ret_reads, int max);
    /* Any thread. */
    void (*counters)(const struct cold_store *store, struct cold_counters *ret_counters);
    /* All reads must have been reaped. Closes the stacked store too. Accepts NULL, returns NULL. */
    struct cold_store *(*close)(struct cold_store *store);
};
struct cold_store {
    const struct cold_store_ops *ops;
};
typedef void (*cold_notify_fn)(void *arg);

struct nvme_file {
    const char *path;
    uint64_t size_bytes; /* what the file must have: refused at open when it differs */
};
struct nvme_options {
    int depth;      /* reads in flight */
    int direct;     /* O_DIRECT where the file system takes it */
    int retries;
    cold_notify_fn notify;
    void *notify_arg;
};
int nvme_store_open(struct cold_store **ret_store, const struct nvme_file *files, int n_files,
                    const struct nvme_options *options, struct err *err);
/* "io_uring, O_DIRECT, registered buffers" or what it fell back to, for the log. */
const char *nvme_store_describe(const struct cold_store *store);

int null_store_open(struct cold_store **ret_store, cold_notify_fn notify, void *arg);
/* The byte null_store delivers at an offset of a file. */
uint8_t null_store_byte(int file, uint64_t offset_bytes);
/* Hands on what below finishes delay_ns later. below's notify must reach the thread that reaps this
 * one. While a read is in the store its deadline_ns may be overwritten. */
int delay_store_open(struct cold_store **ret_store, struct cold_store *below, uint64_t delay_ns,
                     cold_notify_fn notify, void *arg);
/* Fails a read with -EIO when its number (in order of submission, from 0) is at least fail_from and
 * divisible by every_nth (every_nth 0: none by number), or when its byte range meets [bad_begin,
 * bad_end) of bad_file. */
struct fault_plan {
    uint64_t fail_from, every_nth;
    int bad_file;
    uint64_t bad_begin, bad_end;
};
int fault_store_open(struct cold_store **ret_store, struct cold_store *below,
                     const struct fault_plan *plan);

#endif
