/* api_json: the small JSON documents: model list, health, tiers, and the body of PATCH /v1/tiers. Pure. */
#ifndef PROTO_API_JSON_H
#define PROTO_API_JSON_H

#include <stdint.h>

#include "base/buf.h"
#include "proto/api_error.h"

struct api_model {
    const char *id;
    int64_t created, max_model_len, n_params, size_bytes, vocab;
};
void api_models_write(struct buf *out, const struct api_model *models, int n_models); /* the list */
void api_model_write(struct buf *out, const struct api_model *model);                 /* one */

struct api_check { /* one line of /readyz?verbose */
    const char *name;
    int ok;
    const char *detail;
};
void api_ready_write(struct buf *out, const char *status, const struct api_check *checks, int n_checks);

struct api_tier_set {
    int layer, order;
    uint64_t hits, misses, bytes, evictions, promotions, used_bytes;
};
struct api_tier {
    const char *name; /* "hbm", "ram", "nvme" */
    uint64_t budget_bytes, used_bytes, hits, misses, bytes, evictions;
    int n_sets;
    const struct api_tier_set *sets;
};
struct api_nvme {
    uint64_t reads, bytes, useful_bytes, merged, errors, retries, in_flight;
    double latency_mean_us, latency_p50_us, latency_p99_us;
    /* page amplification bytes / useful_bytes is written too */
};
struct api_tiers {
    int n_tiers;
    const struct api_tier *tiers;
    struct api_nvme nvme;
    uint64_t staging_bytes, prefetched, prefetch_used, prefetch_late, resident_bytes;
};
/* {"tiers":[{"name","budget_bytes","used_bytes","hits","misses","hit_rate",...,"sets":[...]}],"nvme":{...},...} */
void api_tiers_write(struct buf *out, const struct api_tiers *tiers);

/* PATCH body {"tiers":{"ram":"8GiB","hbm":1048576}}: sizes as text or whole bytes. Absent: UINT64_MAX. An unknown
 * tier, nvme (which has no budget) or a bad size is a 400 that names it. */
struct api_tier_sizes {
    uint64_t hbm_bytes, ram_bytes;
};
int api_tier_sizes_parse(const char *body, size_t size, struct api_tier_sizes *ret_sizes,
                         struct api_error *error);

#endif
