/* tiers_fixture: small Engrams and what their bundles must hold; a cold store that gives reads back
 * when and in the order the test says; memory that counts, sometimes fails, and spoils what is
 * given back. */
#ifndef TESTS_TIERS_FIXTURE_H
#define TESTS_TIERS_FIXTURE_H

#include <string.h>

#include "tests/unit/tiering/cold_fixture.h"
#include "tiering/tiers.h"

enum { HELD_MAX = 100000, MAX_TABLES = 2, MAX_ORDERS = 2 };

static uint64_t rng; /* what draw draws from */

static inline uint32_t
draw(uint32_t below)
{
    return (uint32_t)(next_random(&rng) % below);
}

struct held_store {
    struct cold_store base;
    struct cold_read *held[HELD_MAX], *done[HELD_MAX];
    int n_held, n_done;
    uint32_t fail_percent;
    uint64_t errors;
};

static inline void
held_submit(struct cold_store *base, struct cold_read **reads, int n)
{
    struct held_store *store = (struct held_store *)base;
    for (int i = 0; i < n; i++) {
        ASSERT(store->n_held < HELD_MAX);
        memset(reads[i]->dst, 0xEE, reads[i]->size_bytes); /* undefined until it is reaped */
        store->held[store->n_held++] = reads[i];
    }
}
static inline int
held_reap(struct cold_store *base, struct cold_read **ret, int max)
{
    struct held_store *store = (struct held_store *)base;
    int n = 0;
    while (n < max && store->n_done)
        ret[n++] = store->done[--store->n_done];
    return n;
}
static inline void
held_counters(const struct cold_store *base, struct cold_counters *ret)
{
    memset(ret, 0, sizeof *ret);
}
static inline struct cold_store *
held_close(struct cold_store *base)
{
    return NULL;
}
static const struct cold_store_ops held_ops = {"held", held_submit, held_reap, held_counters,
                                               held_close};

static inline struct held_store *
held(void)
{
    static struct held_store store;
    return &store;
}

/* With nothing in it. */
static inline struct cold_store *
held_open(void)
{
    memset(held(), 0, sizeof *held());
    held()->base.ops = &held_ops;
    return &held()->base;
}

static inline void
let_back(int n)
{
    struct held_store *store = held();
    while (n-- > 0 && store->n_held) {
        uint32_t i = draw((uint32_t)store->n_held);
        struct cold_read *read = store->held[i];
        store->held[i] = store->held[--store->n_held];
        if (draw(1000) < store->fail_percent * 10) {
            read->result = -EIO;
            store->errors++;
        } else {
            uint8_t *dst = read->dst;
            for (uint32_t k = 0; k < read->size_bytes; k++)
                dst[k] = null_store_byte(read->file, read->offset_bytes + k);
            read->result = 0;
        }
        store->done[store->n_done++] = read;
    }
}

/* Until no read is under way. */
static inline void
land_all(struct tiers *tiers)
{
    while (held()->n_held) {
        let_back(HELD_MAX);
        (void)tiers_poll(tiers);
    }
}

static inline struct tiers *
new_tiers(const struct tiers_options *options)
{
    struct tiers *tiers = NULL;
    struct err err = ERR_INIT;
    if (tiers_new(&tiers, options, &err) < 0)
        fail_msg("%s", err.text);
    return tiers;
}

struct counted_memory {
    uint64_t bytes;
    uint32_t fail_percent;
};

static inline void *
counted_alloc(void *arg, size_t size)
{
    struct counted_memory *memory = arg;
    if (draw(100) < memory->fail_percent)
        return NULL;
    memory->bytes += size;
    void *chunk = malloc(size);
    ASSERT(chunk);
    memset(chunk, 0xAA, size);
    return chunk;
}
static inline void
counted_free(void *arg, void *chunk, size_t size)
{
    struct counted_memory *memory = arg;
    ASSERT(memory->bytes >= size);
    memory->bytes -= size;
    memset(chunk, 0xDD, size);
    free(chunk);
}

/* Options but for the cold store, the memory and the budgets. Files: tables 0 and 1, scales 5
 * and 6. */
static inline void
shape_options(struct tiers_options *options, int variant)
{
    struct engram_shape *engram = &options->engram;
    *engram = (struct engram_shape){
        .n_layers = MAX_TABLES,
        .max_order = 3,
        .heads = variant == 1 ? 1 : 4,
        .head_dim = variant == 2 ? 200 : 16,
        .table_dtype = variant == 2 ? DTYPE_BF16 : DTYPE_F8_E4M3,
        .scale_group = variant == 2 ? 0 : 16,
    };
    for (int t = 0; t < MAX_TABLES; t++) {
        int64_t prime[8] = {101, 103, 107, 109, 113, 127, 131, 137}, base = 0;
        for (int o = 0; o < MAX_ORDERS; o++)
            for (int j = 0; j < engram->heads; j++) {
                engram->table[t].prime[o][j] = prime[o * 4 + j] + 2 * t;
                engram->table[t].row_base[o][j] = base;
                base += prime[o * 4 + j] + 2 * t;
            }
        engram->table[t].rows = base;
        options->table[t] = (struct tier_table){.weight_file = t,
                                                .scale_file = 5 + t,
                                                .weight_offset_bytes = 1000 + (uint64_t)t,
                                                .scale_offset_bytes = 77};
    }
}

/* A copy of the table in memory, as the files have it. */
static inline void
make_resident(struct tiers_options *options, int t, bool device)
{
    const struct engram_shape *engram = &options->engram;
    const struct tier_table *place = &options->table[t];
    size_t rows = (size_t)engram->table[t].rows;
    size_t weights = rows * (size_t)engram_row_weight_bytes(engram);
    size_t scales = rows * (size_t)engram_row_scale_bytes(engram);
    uint8_t *weight = malloc(weights), *scale = scales ? malloc(scales) : NULL;
    ASSERT(weight && (scale || !scales));
    for (size_t i = 0; i < weights; i++)
        weight[i] = null_store_byte(place->weight_file, place->weight_offset_bytes + i);
    for (size_t i = 0; i < scales; i++)
        scale[i] = null_store_byte(place->scale_file, place->scale_offset_bytes + i);
    options->resident[t] = (struct tier_resident){weight, scale, device};
}
static inline void
free_resident(struct tiers_options *options)
{
    for (int t = 0; t < MAX_TABLES; t++) {
        free((void *)(uintptr_t)options->resident[t].weights);
        free((void *)(uintptr_t)options->resident[t].scales);
        options->resident[t] = (struct tier_resident){0};
    }
}

/* What the gather of a step reads, as gpu/ does it: source, or row by row in place. */
static inline void
read_source(const struct tiers_options *options, int table, int order, uint64_t mix,
            const void *source, uint8_t *ret_bundle)
{
    const struct engram_shape *engram = &options->engram;
    const struct tier_resident *resident = &options->resident[table];
    size_t weight = (size_t)engram_row_weight_bytes(engram);
    size_t scale = (size_t)engram_row_scale_bytes(engram);
    if (source != BUNDLE_IN_PLACE) {
        memcpy(ret_bundle, source, (size_t)engram_bundle_bytes(engram));
        return;
    }
    ASSERT(resident->weights);
    for (int j = 0; j < engram->heads; j++) {
        uint64_t row = (uint64_t)engram->table[table].row_base[order][j] +
                       mix % (uint64_t)engram->table[table].prime[order][j];
        memcpy(ret_bundle + (size_t)j * weight, (const uint8_t *)resident->weights + row * weight,
               weight);
        if (scale)
            memcpy(ret_bundle + (size_t)engram->heads * weight + (size_t)j * scale,
                   (const uint8_t *)resident->scales + row * scale, scale);
    }
}

/* What the bundle must hold, from the definition alone. */
static inline void
expect_bundle(const struct tiers_options *options, int table, int order, uint64_t mix,
              const uint8_t *got)
{
    const struct engram_shape *engram = &options->engram;
    const struct tier_table *place = &options->table[table];
    int weight = engram_row_weight_bytes(engram), scale = engram_row_scale_bytes(engram);
    const uint8_t *scales = got + engram->heads * weight;
    for (int j = 0; j < engram->heads; j++) {
        uint64_t row = (uint64_t)engram->table[table].row_base[order][j] +
                       mix % (uint64_t)engram->table[table].prime[order][j];
        for (int i = 0; i < weight; i++)
            if (got[j * weight + i] !=
                null_store_byte(place->weight_file,
                                place->weight_offset_bytes + row * (uint64_t)weight + (uint64_t)i))
                fail_msg("weight byte %d of head %d is wrong", i, j);
        for (int i = 0; i < scale; i++)
            if (scales[j * scale + i] !=
                null_store_byte(place->scale_file,
                                place->scale_offset_bytes + row * (uint64_t)scale + (uint64_t)i))
                fail_msg("scale byte %d of head %d is wrong", i, j);
    }
}

#endif
