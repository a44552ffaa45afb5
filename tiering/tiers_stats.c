/* tiers_stats: the counters of the tiers, gathered. Any thread. */
#include <string.h>

#include "tiering/tiers_state.h"

static uint64_t
get(const _Atomic uint64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

static void
store_stats(const struct slot_store *store, int set, struct tier_set_stats *ret)
{
    ret->evictions = get(&store->evictions[set]);
    ret->used_bytes = get(&store->taken[set]) * store->slot_bytes;
}

void
tiers_stats(const struct tiers *tiers, struct tiers_stats *ret)
{
    memset(ret, 0, sizeof *ret);
    ret->n_tables = tiers->options.engram.n_layers;
    ret->n_orders = tiers->n_orders;
    ret->tier[TIER_HBM].budget_bytes = get(&tiers->hbm.budget_shown);
    ret->tier[TIER_HBM].used_bytes = get(&tiers->hbm.used_shown);
    ret->tier[TIER_RAM].budget_bytes = get(&tiers->ram_budget_shown);
    ret->slice_bytes = get(&tiers->slice.used_shown);
    ret->reserved_bytes = get(&tiers->reserved_shown);
    ret->tier[TIER_RAM].used_bytes = get(&tiers->ram.used_shown) + ret->slice_bytes;
    ret->tier[TIER_NVME].budget_bytes = ret->tier[TIER_NVME].used_bytes = tiers->table_bytes;
    for (int set = 0; set < tiers->n_sets; set++) {
        int t = set / tiers->n_orders, o = set % tiers->n_orders;
        for (int tier = 0; tier < TIER_COUNT; tier++) {
            const struct set_counts *count = &tiers->count[tier][set];
            struct tier_set_stats *to = &ret->tier[tier].set[t][o];
            to->hits = get(&count->hits);
            to->misses = get(&count->misses);
            to->bytes = get(&count->bytes);
            to->promotions = get(&count->promotions);
        }
        store_stats(&tiers->hbm, set, &ret->tier[TIER_HBM].set[t][o]);
        store_stats(&tiers->ram, set, &ret->tier[TIER_RAM].set[t][o]);
    }
    ret->staging_bytes = get(&tiers->staging.bytes);
    ret->prefetched = get(&tiers->prefetched);
    ret->prefetch_used = get(&tiers->prefetch_used);
    ret->prefetch_late = get(&tiers->prefetch_late);
    tiers->options.cold->ops->counters(tiers->options.cold, &ret->nvme);
}
