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
    resident->places = 2;
    while (resident->places < 2 * resident->max_bundles)
        resident->places *= 2;
    resident->bundle = calloc(resident->max_bundles, sizeof *resident->bundle);
    resident->place = calloc(resident->places, sizeof *resident->place);
    if (!resident->bundle || !resident->place)
        return err_set(err, ENOMEM, "no memory for the look-ups of resident tables");
    return pool_new(&resident->pool, threads ? threads : default_threads(), err);
}

void
resident_free(struct resident *resident)
{
    (void)pool_free(resident->pool);
    free(resident->bundle);
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
    resident->place_mask = places - 1;
    if (++resident->request == 0) { /* numbers come again */
        memset(resident->place, 0, resident->places * sizeof *resident->place);
        resident->request = 1;
    }
}

void
resident_ask(const struct resident *resident, uint32_t hash)
{
    cache_hint(&resident->place[hash & resident->place_mask]);
}

uint32_t
resident_bundle(struct resident *resident, uint32_t hash, uint32_t order, uint64_t mix,
                uint32_t number)
{
    uint64_t mine = (uint64_t)resident->request << 32 | number;

    resident->bundle[number] = (struct resident_bundle){.mix = mix, .order = order};
    for (uint32_t at = hash;; at++) {
        _Atomic uint64_t *place = &resident->place[at & resident->place_mask];
        uint64_t there = atomic_load_explicit(place, memory_order_acquire);

        if ((uint32_t)(there >> 32) != resident->request &&
            atomic_compare_exchange_strong_explicit(place, &there, mine, memory_order_acq_rel,
                                                    memory_order_acquire))
            return number;
        const struct resident_bundle *other = &resident->bundle[(uint32_t)there];
        if (other->mix == mix && other->order == order)
            return (uint32_t)there;
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
find_rows(const struct resident *resident, int table, uint32_t number, uint64_t *row)
{
    const struct tier_resident *from = &resident->table[table];
    const struct resident_bundle *bundle = &resident->bundle[number];

    if (!bundle->dst)
        return;
    for (int j = 0; j < resident->heads; j++) {
        const struct resident_column *column = &resident->column[table][bundle->order][j];

        row[j] = column->row_base + fast_mod(column->prime, bundle->mix);
        prefetch((const uint8_t *)from->weights + row[j] * resident->weight_bytes,
                 resident->weight_bytes);
        if (resident->scale_bytes)
            prefetch((const uint8_t *)from->scales + row[j] * resident->scale_bytes,
                     resident->scale_bytes);
    }
}

static void
copy_rows(const struct resident *resident, int table, uint32_t number, const uint64_t *row)
{
    const struct tier_resident *from = &resident->table[table];
    size_t weight = resident->weight_bytes, scale = resident->scale_bytes;
    uint8_t *weights = resident->bundle[number].dst;

    if (!weights)
        return;
    uint8_t *scales = weights + (size_t)resident->heads * weight;
    for (int j = 0; j < resident->heads; j++)
        memcpy(weights + (size_t)j * weight, (const uint8_t *)from->weights + row[j] * weight,
               weight);
    for (int j = 0; scale && j < resident->heads; j++)
        memcpy(scales + (size_t)j * scale, (const uint8_t *)from->scales + row[j] * scale, scale);
}

void
resident_gather(const struct resident *resident, int table, uint32_t first, uint32_t end)
{
    uint64_t row[AHEAD + 1][SHAPE_MAX_HEADS_PER_NGRAM];

    for (int64_t i = (int64_t)first - AHEAD; i < end; i++) {
        if (i + AHEAD < end)
            find_rows(resident, table, (uint32_t)(i + AHEAD), row[(i + AHEAD) % (AHEAD + 1)]);
        if (i >= first)
            copy_rows(resident, table, (uint32_t)i, row[i % (AHEAD + 1)]);
    }
}
