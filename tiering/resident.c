/* resident: see resident.h. */
#include "tiering/resident.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/cpu_count.h"
#include "tiering/bundle_index.h"
#include "tiering/cache_hint.h"

enum {
    DEFAULT_THREADS = 16,
    OTHER_THREADS = 2, /* CPUs that the default leaves to the engine and the ring */
    /* Bundles whose rows are on their way into the cache while one is copied; with 8 heads more
     * than a core has misses in flight. */
    AHEAD = 4,
    TOGETHER = 64, /* bundles: fewer are copied sooner than the other threads are awake */
    GRAIN = 8, /* bundles: no two threads work on one before they are that many */
    LINE_BYTES = 64,
};

static int
default_threads(void)
{
    int n = cpu_count() - OTHER_THREADS;

    return n < 1 ? 1 : n < DEFAULT_THREADS ? n : DEFAULT_THREADS;
}

int
resident_init(struct resident *resident, const struct engram_shape *engram,
              const struct tier_resident *table, bool may_come, int max_step_rows, int threads,
              struct err *err)
{
    bool any_host = may_come;

    memset(resident, 0, sizeof *resident);
    resident->n_orders = engram->max_order - 1;
    resident->heads = engram->heads;
    resident->weight_bytes = (uint32_t)engram_row_weight_bytes(engram);
    resident->scale_bytes = (uint32_t)engram_row_scale_bytes(engram);
    for (int t = 0; t < engram->n_layers; t++) {
        const struct engram_table_shape *shape = &engram->table[t];

        resident->table[t] = table[t];
        any_host = any_host || (table[t].weights && !table[t].device);
        for (int o = 0; o < resident->n_orders; o++)
            for (int j = 0; j < engram->heads; j++)
                resident->column[t][o][j] = (struct resident_column){
                    fast_mod_of((uint64_t)shape->prime[o][j]), (uint64_t)shape->row_base[o][j]};
    }
    if (!any_host)
        return 0;
    if (threads < 0 || threads > RESIDENT_THREADS_MAX)
        return err_set(err, EINVAL, "%d threads to gather rows are not from 1 to %d", threads,
                       RESIDENT_THREADS_MAX);
    resident->max_bundles = (uint32_t)(max_step_rows * resident->n_orders);
    uint32_t places = 2;
    while (places < 2 * resident->max_bundles)
        places *= 2;
    resident->bundle = calloc(resident->max_bundles, sizeof *resident->bundle);
    resident->bundle_of = calloc(resident->max_bundles, sizeof *resident->bundle_of);
    resident->place = calloc(places, sizeof *resident->place);
    if (!resident->bundle || !resident->bundle_of || !resident->place)
        return err_set(err, ENOMEM, "no memory for the look-ups of resident tables");
    return pool_new(&resident->pool, threads ? threads : default_threads(), err);
}

void
resident_free(struct resident *resident)
{
    (void)pool_free(resident->pool);
    free(resident->bundle);
    free(resident->bundle_of);
    free(resident->place);
    memset(resident, 0, sizeof *resident);
}

void
resident_begin(struct resident *resident, uint32_t n_cells)
{
    uint32_t places = 2;

    ASSERT(n_cells <= resident->max_bundles);
    while (places < 2 * n_cells)
        places *= 2;
    memset(resident->place, 0xff, places * sizeof *resident->place); /* NODE_NONE */
    resident->place_mask = places - 1;
    resident->n_bundles = 0;
}

uint32_t
resident_bundle(struct resident *resident, uint32_t hash, uint32_t order, uint64_t mix)
{
    for (uint32_t at = hash;; at++) {
        uint32_t *place = &resident->place[at & resident->place_mask];

        if (*place == NODE_NONE) {
            resident->bundle[resident->n_bundles] =
                (struct resident_bundle){.mix = mix, .order = order};
            return *place = resident->n_bundles++;
        }
        if (resident->bundle[*place].mix == mix && resident->bundle[*place].order == order)
            return *place;
    }
}

static void
prefetch(const uint8_t *from, uint32_t bytes)
{
    for (uint32_t i = 0; i < bytes; i += LINE_BYTES)
        cache_hint(from + i);
    cache_hint(from + bytes - 1);
}

/* The rows of a bundle, and their bytes asked for. */
static void
find_rows(const struct resident *resident, uint32_t number, uint64_t *row)
{
    const struct tier_resident *table = &resident->table[resident->gathered_table];
    const struct resident_bundle *bundle = &resident->bundle[number];

    if (!bundle->dst)
        return;
    for (int j = 0; j < resident->heads; j++) {
        const struct resident_column *column =
            &resident->column[resident->gathered_table][bundle->order][j];

        row[j] = column->row_base + fast_mod(column->prime, bundle->mix);
        prefetch((const uint8_t *)table->weights + row[j] * resident->weight_bytes,
                 resident->weight_bytes);
        if (resident->scale_bytes)
            prefetch((const uint8_t *)table->scales + row[j] * resident->scale_bytes,
                     resident->scale_bytes);
    }
}

static void
copy_rows(const struct resident *resident, uint32_t number, const uint64_t *row)
{
    const struct tier_resident *table = &resident->table[resident->gathered_table];
    size_t weight = resident->weight_bytes, scale = resident->scale_bytes;
    uint8_t *weights = resident->bundle[number].dst;

    if (!weights)
        return;
    uint8_t *scales = weights + (size_t)resident->heads * weight;
    for (int j = 0; j < resident->heads; j++)
        memcpy(weights + (size_t)j * weight, (const uint8_t *)table->weights + row[j] * weight,
               weight);
    for (int j = 0; scale && j < resident->heads; j++)
        memcpy(scales + (size_t)j * scale, (const uint8_t *)table->scales + row[j] * scale, scale);
}

static void
gather_part(void *arg, int part, int n_parts)
{
    const struct resident *resident = arg;
    uint64_t row[AHEAD + 1][SHAPE_MAX_HEADS_PER_NGRAM];
    long begin, end;

    pool_slice((long)resident->n_bundles, GRAIN, part, n_parts, &begin, &end);
    for (long i = begin - AHEAD; i < end; i++) {
        if (i + AHEAD < end)
            find_rows(resident, (uint32_t)(i + AHEAD), row[(i + AHEAD) % (AHEAD + 1)]);
        if (i >= begin)
            copy_rows(resident, (uint32_t)i, row[i % (AHEAD + 1)]);
    }
}

void
resident_gather_begin(struct resident *resident, int table)
{
    resident->gathered_table = table;
    if (resident->n_bundles >= TOGETHER)
        pool_begin(resident->pool, gather_part, resident);
}

void
resident_gather_end(struct resident *resident)
{
    if (resident->n_bundles >= TOGETHER)
        pool_end(resident->pool);
    else
        gather_part(resident, 0, 1);
}
