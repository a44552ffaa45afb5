/* tiers_resident: look-ups of tables that are resident as a whole; nothing is read from disk for
 * them, and their answers are complete when tiers_resolve returns. Thread: resolver. */
#include "base/check.h"
#include "tiering/cache_hint.h"
#include "tiering/tiers_state.h"

/* The whole table is in device memory: where it is, is known without a look. */
static void
answer_in_place(struct tiers *tiers, const struct tiers_request *request)
{
    const struct bundle_address in_place = {BUNDLE_IN_PLACE, NULL}, none = {NULL, NULL};
    struct bundle_address *address = request->address;
    uint64_t n_rows = 0;

    for (int row = 0; row < request->n_rows; row++) {
        bool skipped = request->skip && request->skip[row];

        for (int o = 0; o < tiers->n_orders; o++)
            *address++ = skipped ? none : in_place;
        n_rows += !skipped;
    }
    for (int o = 0; o < tiers->n_orders; o++) {
        struct set_counts *count = &tiers->count[TIER_HBM][request->table * tiers->n_orders + o];

        tiers_count(&count->hits, n_rows);
        tiers_count(&count->bytes, n_rows * tiers->bundle_bytes);
    }
}

/* A staging slot for each bundle that is not left to the device, as long as there are any; the others
 * are read in place. */
static void
take_staging(struct tiers *tiers, uint64_t step)
{
    struct resident *resident = &tiers->resident;
    struct open_step *open = tiers_find_step(tiers, step);

    bool shared = resident->n_bundles >= TIERS_SHARED_FROM;

    ASSERT(open);
    for (uint32_t i = 0; i < resident->n_bundles; i++) {
        if (shared && i % TIERS_IN_PLACE_SHARE == 0)
            continue;
        uint32_t slot = staging_take(&tiers->staging);

        if (slot == NODE_NONE)
            return;
        tiers->staging.next[slot] = open->staged;
        open->staged = slot;
        resident->bundle[i].dst = staging_address(&tiers->staging, slot);
    }
}

static void
answer_from_host(struct tiers *tiers, const struct tiers_request *request)
{
    struct resident *resident = &tiers->resident;
    const struct look_up *look_up = tiers->look_up;
    uint32_t n = (uint32_t)tiers_look_up_hbm(tiers, request), misses[SHAPE_MAX_ORDERS] = {0};
    uint8_t first_set = (uint8_t)(request->table * tiers->n_orders);

    resident_begin(resident, n);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t order = (uint32_t)(look_up[i].set - first_set);

        resident->bundle_of[i] =
            resident_bundle(resident, look_up[i].hash, order, request->mix[look_up[i].cell]);
        misses[order]++;
        cache_hint(&tiers->seen[look_up[i].hash % TIERS_SEEN_TAGS]); /* tiers_visits, below */
    }
    bool gathered = resident->n_bundles >= (uint32_t)tiers->options.in_place_below;
    if (gathered) {
        take_staging(tiers, request->step);
        resident_gather_begin(resident, request->table);
    }
    for (uint32_t i = 0; i < n; i++) {
        struct resident_bundle *bundle = &resident->bundle[resident->bundle_of[i]];
        struct bundle_address *address = &request->address[look_up[i].cell];
        int visits = tiers_visits(tiers, look_up[i].hash);

        address->source = bundle->dst ? bundle->dst : BUNDLE_IN_PLACE;
        address->promote = bundle->promoted ? NULL
                                            : tiers_promote(tiers, request->step, &look_up[i],
                                                            bundle->mix, visits);
        bundle->promoted = bundle->promoted || address->promote;
    }
    if (gathered)
        resident_gather_end(resident);
    for (int o = 0; o < tiers->n_orders; o++) {
        struct set_counts *count = &tiers->count[TIER_RAM][first_set + o];

        tiers_count(&count->hits, misses[o]);
        tiers_count(&count->bytes, (uint64_t)misses[o] * tiers->bundle_bytes);
    }
}

bool
tiers_is_resident(const struct tiers *tiers, int table)
{
    ASSERT(table >= 0 && table < tiers->options.engram.n_layers);
    return tiers->options.resident[table].weights != NULL;
}

static bool
check_table(const struct tiers *tiers, int table)
{
    ASSERT_THREAD(THREAD_RESOLVER);
    return table >= 0 && table < tiers->options.engram.n_layers;
}

static void
reserve(struct tiers *tiers, int table, uint64_t size_bytes)
{
    uint64_t sum = 0;

    tiers->reserved_bytes[table] = size_bytes;
    for (int t = 0; t < tiers->options.engram.n_layers; t++)
        sum += tiers->reserved_bytes[t];
    atomic_store_explicit(&tiers->reserved_shown, sum, memory_order_relaxed);
}

void
tiers_reserve_table(struct tiers *tiers, int table, uint64_t size_bytes)
{
    ASSERT(check_table(tiers, table));
    ASSERT(size_bytes > 0 && tiers->reserved_bytes[table] == 0);
    ASSERT(!tiers_is_resident(tiers, table));
    reserve(tiers, table, size_bytes);
    row_slice_leave_out(&tiers->slice, table, true);
    tiers_balance_ram(tiers);
}

uint64_t
tiers_set_resident(struct tiers *tiers, int table, const struct tier_resident *resident)
{
    ASSERT(check_table(tiers, table));
    ASSERT(tiers->options.may_become_resident && tiers->reserved_bytes[table] > 0);
    ASSERT(!resident->device && (resident->weights != NULL) != tiers_is_resident(tiers, table));
    ASSERT(!resident->weights ||
           (resident->scales != NULL) == (tiers->options.engram.scale_group != 0));
    tiers->options.resident[table] = tiers->resident.table[table] = *resident;
    return tiers->begun_step;
}

bool
tiers_steps_over(const struct tiers *tiers, uint64_t step)
{
    return tiers->done_step >= step;
}

void
tiers_release_table(struct tiers *tiers, int table)
{
    ASSERT(check_table(tiers, table));
    ASSERT(tiers->reserved_bytes[table] > 0 && !tiers_is_resident(tiers, table));
    reserve(tiers, table, 0);
    row_slice_leave_out(&tiers->slice, table, false);
    tiers_balance_ram(tiers);
    row_slice_pump(&tiers->slice);
}

void
tiers_resolve_resident(struct tiers *tiers, const struct tiers_request *request)
{
    if (tiers->options.resident[request->table].device)
        answer_in_place(tiers, request);
    else
        answer_from_host(tiers, request);
    tiers_raise(request);
}
