/* bench_place: a random model served from one placement of its table after another: resolver, tiers
 * and engine over a forward pass that stays. */
#ifndef TOOLS_BENCH_PLACE_H
#define TOOLS_BENCH_PLACE_H

#include "daemon/chunk_pool.h"
#include "daemon/engine.h"
#include "tools/bench_table.h"

/* "none" (no Engram layer runs), "device" (the table in device memory), "host" (in pinned host
 * memory), "disk"; the last two with ",hbm=SIZE", and disk with ",ram=SIZE". */
struct placement_spec {
    const char *text;
    enum { PLACE_NONE, PLACE_DEVICE, PLACE_HOST, PLACE_DISK } kind;
    uint64_t hbm_bytes, ram_bytes;
};
int placement_parse(const char *text, struct placement_spec *ret_spec, struct err *err);

/* Everything but the placement. */
struct place_options {
    const struct model_shape *shape;
    struct device *device;
    struct forward *forward;
    struct forward_limits limits;
    const int32_t *compressed; /* [vocab] */
    int prefill_chunk, max_queue, max_sequence_pages;
    struct bench_table *table;
    const char *table_path; /* of the file that PLACE_DISK reads */
    struct metrics *metrics;
};

struct place {
    const struct place_options *options;
    struct placement_spec spec;
    struct model_shape shape; /* as the engine sees it: without Engram in PLACE_NONE */
    struct resolver *resolver;
    struct cold_store *cold;
    struct chunk_pool *hbm_pool, *ram_pool;
    struct engine *engine;
};

/* Exits on failure. */
void place_open(struct place *place, const struct place_options *options,
                const struct placement_spec *spec);
void place_close(struct place *place);

#endif
