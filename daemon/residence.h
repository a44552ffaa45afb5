/* residence: which tables are in host memory as a whole, and how they get there and back while the
 * daemon serves.
 *
 * In order of layer a table gets memory as long as tier.ram.size has room for all of it: an early
 * layer waits longest for the disk. Its bytes are reserved with the tiers, taken once their stores have
 * left the room, and read while steps are answered from disk. A budget that shrinks takes tables away
 * from the last on, one that grows brings them back.
 *
 *     ABSENT --reserve, allocate--> LOADING --all read, set--> RESIDENT --taken, steps over--+
 *       ^                              |                                                     |
 *       +---- failed or not wanted: memory freed, release ------<-----------------------------+
 *
 * P1  memory that the resolver was told of is freed only when it says that no step reads it, or when
 *     engine and resolver have stopped (residence_free).
 * P2  memory of tables + what the stores use <= the larger of the old and the new RAM budget.
 * P3  a table that could not be read stays on disk until the sizes change.
 *
 * Thread: one of its own does all of it, with a few more that read; the functions here any. */
#ifndef DAEMON_RESIDENCE_H
#define DAEMON_RESIDENCE_H

#include "daemon/resolver.h"
#include "gpu/device.h"

struct residence_table {
    uint64_t weight_bytes, scale_bytes; /* scale_bytes 0: without */
};

/* Where the bytes come from. Any thread, several at a time. */
struct residence_source {
    int (*read)(void *arg, int table, bool scales, uint64_t offset_bytes, void *dst,
                size_t size_bytes, void *buffer, struct err *err);
    void *arg;
};

enum { RESIDENCE_THREADS = 8, RESIDENCE_PIECE_BYTES = 8 << 20 };

struct residence_options {
    struct resolver *resolver; /* borrowed; must outlive the residence's thread */
    struct device *device;     /* gives the memory: alloc_shared; must outlive the residence */
    int n_tables;
    struct residence_table table[SHAPE_MAX_ENGRAM_LAYERS];
    struct residence_source source;
    uint64_t ram_bytes; /* the budget of the RAM tier */
    size_t piece_bytes; /* of a read; 0: RESIDENCE_PIECE_BYTES, which is the most */
    int n_threads;      /* that read; 0: as many as there are CPUs, at most RESIDENCE_THREADS */
};

struct residence;

/* Which tables fit: bytes [n_tables], want [n_tables]. Pure. */
void residence_plan(const uint64_t *bytes, int n_tables, uint64_t ram_bytes, bool *ret_want);

int residence_new(struct residence **ret_residence, const struct residence_options *options,
                  struct err *err);
/* For the tiers at start: may_become_resident and reserved_bytes. */
void residence_reserve(const struct residence *residence, struct tiers_options *options);
/* Once the resolver runs. Returns at once. */
int residence_start(struct residence *residence, struct err *err);
/* Before the resolver stops. Reads under way end first, of at most a piece per thread. */
void residence_stop(struct residence *residence);
/* After the resolver and the engine have stopped. Accepts NULL, returns NULL. */
struct residence *residence_free(struct residence *residence);

/* In place of resolver_resize. Blocks until the budgets are in force and tables that no longer fit are
 * gone; for a while, should a step not end. Tables that fit again come later. */
int residence_resize(struct residence *residence, uint64_t hbm_bytes, uint64_t ram_bytes);
/* Memory of tables, there or on their way; they are part of the RAM budget. 0 for NULL. */
uint64_t residence_bytes(const struct residence *residence);

#endif
