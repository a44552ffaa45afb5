#include "daemon/tier_report.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/check.h"
#include "proto/api_json.h"

static const char *const tier_name[TIER_COUNT] = {
    [TIER_HBM] = "hbm", [TIER_RAM] = "ram", [TIER_NVME] = "nvme"};

/* Series of one tier, table and order, in the order tier_report_register makes them. */
static int
series_of(const struct engram_shape *engram, int tier, int table, int order)
{
    int n_orders = engram->max_order - 1;

    return (tier * engram->n_layers + table) * n_orders + order;
}

void
tier_report_register(struct metrics *m, const struct model_shape *shape)
{
    const struct engram_shape *engram = &shape->engram;
    static const enum metric_id per_set[] = {METRIC_ID_tier_hits_total, METRIC_ID_tier_misses_total,
                                             METRIC_ID_tier_bytes_total,
                                             METRIC_ID_tier_evictions_total};
    char labels[96];

    for (int tier = 0; tier < TIER_COUNT; tier++) {
        snprintf(labels, sizeof labels, "tier=\"%s\"", tier_name[tier]);
        (void)metrics_series(m, METRIC_ID_tier_budget_bytes, labels);
        (void)metrics_series(m, METRIC_ID_tier_used_bytes, labels);
        for (int t = 0; t < engram->n_layers; t++)
            for (int o = 0; o < engram->max_order - 1; o++) {
                snprintf(labels, sizeof labels, "tier=\"%s\",layer=\"%d\",order=\"%d\"",
                         tier_name[tier], engram->table[t].layer, o + 2);
                for (size_t i = 0; i < sizeof per_set / sizeof *per_set; i++) {
                    int series = metrics_series(m, per_set[i], labels);

                    ASSERT(series == series_of(engram, tier, t, o));
                }
            }
    }
    for (int t = 0; t < engram->n_layers; t++) {
        snprintf(labels, sizeof labels, "layer=\"%d\"", engram->table[t].layer);
        (void)metrics_series(m, METRIC_ID_stall_nanoseconds_total, labels);
    }
}

/* Middle of bucket i of cold_counters.latency_bucket in seconds: it ends at 2^i us. */
static double
bucket_seconds(int i)
{
    return i ? 0.75e-6 * (double)(1ull << i) : 0.5e-6;
}

/* Whole tables are part of the RAM tier: its budget pays for them. */
static void
get_stats(const struct serving *serving, struct tiers_stats *ret_stats)
{
    resolver_stats(serving->resolver, ret_stats);
    ret_stats->tier[TIER_RAM].used_bytes += residence_bytes(serving->residence);
}

void
tier_report_update(struct metrics *m, const struct serving *serving)
{
    const struct engram_shape *engram = &serving->config.shape.engram;
    struct tiers_stats stats;

    if (serving->resolver == NULL)
        return;
    get_stats(serving, &stats);
    for (int tier = 0; tier < TIER_COUNT; tier++) {
        metrics_set(m, METRIC_ID_tier_budget_bytes, tier, (double)stats.tier[tier].budget_bytes);
        metrics_set(m, METRIC_ID_tier_used_bytes, tier, (double)stats.tier[tier].used_bytes);
        for (int t = 0; t < stats.n_tables; t++)
            for (int o = 0; o < stats.n_orders; o++) {
                const struct tier_set_stats *set = &stats.tier[tier].set[t][o];
                int series = series_of(engram, tier, t, o);

                metrics_set(m, METRIC_ID_tier_hits_total, series, (double)set->hits);
                metrics_set(m, METRIC_ID_tier_misses_total, series, (double)set->misses);
                metrics_set(m, METRIC_ID_tier_bytes_total, series, (double)set->bytes);
                metrics_set(m, METRIC_ID_tier_evictions_total, series, (double)set->evictions);
            }
    }
    metrics_set(m, METRIC_ID_nvme_reads_total, 0, (double)stats.nvme.reads);
    metrics_set(m, METRIC_ID_nvme_read_bytes_total, 0, (double)stats.nvme.bytes);
    metrics_set(m, METRIC_ID_nvme_useful_bytes_total, 0, (double)stats.nvme.useful_bytes);
    metrics_set(m, METRIC_ID_nvme_errors_total, 0, (double)stats.nvme.errors);
    metrics_set(m, METRIC_ID_nvme_retries_total, 0, (double)stats.nvme.retries);
    metrics_set(m, METRIC_ID_nvme_queue_depth, 0, (double)stats.nvme.in_flight);
    metrics_set(m, METRIC_ID_nvme_latency_microseconds_total, 0,
                (double)stats.nvme.latency_ns_total * 1e-3);
}

static double
percentile_us(const struct cold_counters *nvme, double share)
{
    int n = (int)(sizeof nvme->latency_bucket / sizeof *nvme->latency_bucket);
    uint64_t total = 0, seen = 0;

    for (int i = 0; i < n; i++)
        total += nvme->latency_bucket[i];
    for (int i = 0; i < n && total; i++) {
        seen += nvme->latency_bucket[i];
        if ((double)seen >= share * (double)total)
            return bucket_seconds(i) * 1e6;
    }
    return 0;
}

/* Resident set of the process; 0 when the kernel does not say. */
static uint64_t
resident_bytes(void)
{
    unsigned long long pages = 0;
    FILE *file = fopen("/proc/self/statm", "re");

    if (file == NULL)
        return 0;
    if (fscanf(file, "%*u %llu", &pages) != 1)
        pages = 0;
    fclose(file);
    return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

void
tier_report_json(struct buf *out, const struct serving *serving)
{
    const struct engram_shape *engram = &serving->config.shape.engram;
    struct api_tier_set sets[TIER_COUNT][SHAPE_MAX_ENGRAM_LAYERS * SHAPE_MAX_ORDERS];
    struct api_tier tiers[TIER_COUNT] = {0};
    struct tiers_stats stats = {0};

    if (serving->resolver)
        get_stats(serving, &stats);
    stats.tier[TIER_NVME].budget_bytes = stats.tier[TIER_NVME].used_bytes = serving->table_bytes;
    for (int tier = 0; tier < TIER_COUNT; tier++) {
        struct api_tier *a = &tiers[tier];

        *a = (struct api_tier){.name = tier_name[tier],
                               .budget_bytes = stats.tier[tier].budget_bytes,
                               .used_bytes = stats.tier[tier].used_bytes,
                               .sets = sets[tier]};
        for (int t = 0; t < stats.n_tables; t++)
            for (int o = 0; o < stats.n_orders; o++) {
                const struct tier_set_stats *set = &stats.tier[tier].set[t][o];

                sets[tier][a->n_sets++] = (struct api_tier_set){
                    .layer = engram->table[t].layer,
                    .order = o + 2,
                    .hits = set->hits,
                    .misses = set->misses,
                    .bytes = set->bytes,
                    .evictions = set->evictions,
                    .promotions = set->promotions,
                    .used_bytes = set->used_bytes,
                };
                a->hits += set->hits;
                a->misses += set->misses;
                a->bytes += set->bytes;
                a->evictions += set->evictions;
            }
    }
    uint64_t finished = stats.nvme.reads ? stats.nvme.reads : 1;
    struct api_tiers document = {
        .n_tiers = TIER_COUNT,
        .tiers = tiers,
        .nvme = {.reads = stats.nvme.reads,
                 .bytes = stats.nvme.bytes,
                 .useful_bytes = stats.nvme.useful_bytes,
                 .merged = stats.nvme.merged,
                 .errors = stats.nvme.errors,
                 .retries = stats.nvme.retries,
                 .in_flight = stats.nvme.in_flight,
                 .latency_mean_us = (double)stats.nvme.latency_ns_total * 1e-3 / (double)finished,
                 .latency_p50_us = percentile_us(&stats.nvme, 0.50),
                 .latency_p99_us = percentile_us(&stats.nvme, 0.99)},
        .staging_bytes = stats.staging_bytes,
        .prefetched = stats.prefetched,
        .prefetch_used = stats.prefetch_used,
        .prefetch_late = stats.prefetch_late,
        .resident_bytes = resident_bytes(),
    };

    api_tiers_write(out, &document);
}
