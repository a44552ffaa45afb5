#include "proto/api_json.h"

#include <string.h>

#include "base/byte_size.h"
#include "proto/json_body.h"
#include "proto/json_writer.h"

/* The body of PATCH /v1/tiers has one object with a handful of members. */
enum { SIZES_MAX_SCALARS = 256, SIZES_MAX_CONTAINERS = 16 };

static void
write_member(struct buf *out, const char *name, uint64_t value)
{
    buf_printf(out, ",\"%s\":", name);
    json_write_uint(out, value);
}

/* part / whole; null where there is no whole yet, since 0 would be a claim. */
static void
write_ratio(struct buf *out, const char *name, uint64_t part, uint64_t whole)
{
    buf_printf(out, ",\"%s\":", name);
    if (whole)
        json_write_double(out, (double)part / (double)whole);
    else
        buf_text(out, "null");
}

void
api_model_write(struct buf *out, const struct api_model *model)
{
    buf_text(out, "{\"id\":");
    json_write_text(out, model->id);
    buf_text(out, ",\"object\":\"model\",\"created\":");
    json_write_int(out, model->created);
    buf_text(out, ",\"owned_by\":\"engramd\",\"max_model_len\":");
    json_write_int(out, model->max_model_len);
    buf_text(out, ",\"meta\":{\"n_ctx_train\":");
    json_write_int(out, model->max_model_len);
    buf_text(out, ",\"n_params\":");
    json_write_int(out, model->n_params);
    buf_text(out, ",\"size\":");
    json_write_int(out, model->size_bytes);
    buf_text(out, ",\"n_vocab\":");
    json_write_int(out, model->vocab);
    buf_text(out, "}}");
}

void
api_models_write(struct buf *out, const struct api_model *models, int n_models)
{
    buf_text(out, "{\"object\":\"list\",\"data\":[");
    for (int i = 0; i < n_models; i++) {
        if (i)
            buf_text(out, ",");
        api_model_write(out, &models[i]);
    }
    buf_text(out, "]}");
}

void
api_ready_write(struct buf *out, const char *status, const struct api_check *checks, int n_checks)
{
    buf_text(out, "{\"status\":");
    json_write_text(out, status);
    buf_text(out, ",\"checks\":[");
    for (int i = 0; i < n_checks; i++) {
        buf_text(out, i ? ",{\"name\":" : "{\"name\":");
        json_write_text(out, checks[i].name);
        buf_text(out, checks[i].ok ? ",\"ok\":true,\"detail\":" : ",\"ok\":false,\"detail\":");
        json_write_text(out, checks[i].detail);
        buf_text(out, "}");
    }
    buf_text(out, "]}");
}

static void
write_tier_set(struct buf *out, const struct api_tier_set *set)
{
    buf_printf(out, "{\"layer\":%d,\"order\":%d", set->layer, set->order);
    write_member(out, "used_bytes", set->used_bytes);
    write_member(out, "hits", set->hits);
    write_member(out, "misses", set->misses);
    write_ratio(out, "hit_rate", set->hits, set->hits + set->misses);
    write_member(out, "bytes", set->bytes);
    write_member(out, "evictions", set->evictions);
    write_member(out, "promotions", set->promotions);
    buf_text(out, "}");
}

static void
write_tier(struct buf *out, const struct api_tier *tier)
{
    buf_text(out, "{\"name\":");
    json_write_text(out, tier->name);
    write_member(out, "budget_bytes", tier->budget_bytes);
    write_member(out, "used_bytes", tier->used_bytes);
    write_member(out, "hits", tier->hits);
    write_member(out, "misses", tier->misses);
    write_ratio(out, "hit_rate", tier->hits, tier->hits + tier->misses);
    write_member(out, "bytes", tier->bytes);
    write_member(out, "evictions", tier->evictions);
    buf_text(out, ",\"sets\":[");
    for (int i = 0; i < tier->n_sets; i++) {
        if (i)
            buf_text(out, ",");
        write_tier_set(out, &tier->sets[i]);
    }
    buf_text(out, "]}");
}

static void
write_nvme(struct buf *out, const struct api_nvme *nvme)
{
    buf_text(out, "{\"reads\":");
    json_write_uint(out, nvme->reads);
    write_member(out, "bytes", nvme->bytes);
    write_member(out, "useful_bytes", nvme->useful_bytes);
    write_ratio(out, "page_amplification", nvme->bytes, nvme->useful_bytes);
    write_member(out, "merged", nvme->merged);
    write_member(out, "errors", nvme->errors);
    write_member(out, "retries", nvme->retries);
    write_member(out, "in_flight", nvme->in_flight);
    buf_text(out, ",\"latency_us\":{\"mean\":");
    json_write_double(out, nvme->latency_mean_us);
    buf_text(out, ",\"p50\":");
    json_write_double(out, nvme->latency_p50_us);
    buf_text(out, ",\"p99\":");
    json_write_double(out, nvme->latency_p99_us);
    buf_text(out, "}}");
}

void
api_tiers_write(struct buf *out, const struct api_tiers *tiers)
{
    buf_text(out, "{\"tiers\":[");
    for (int i = 0; i < tiers->n_tiers; i++) {
        if (i)
            buf_text(out, ",");
        write_tier(out, &tiers->tiers[i]);
    }
    buf_text(out, "],\"nvme\":");
    write_nvme(out, &tiers->nvme);
    write_member(out, "staging_bytes", tiers->staging_bytes);
    write_member(out, "resident_bytes", tiers->resident_bytes);
    buf_text(out, ",\"prefetch\":{\"issued\":");
    json_write_uint(out, tiers->prefetched);
    write_member(out, "used", tiers->prefetch_used);
    write_member(out, "late", tiers->prefetch_late);
    write_ratio(out, "used_rate", tiers->prefetch_used, tiers->prefetched);
    buf_text(out, "}}");
}

/* "8GiB" or a whole number of bytes. */
static int
read_size(const char *path, const json_t *value, uint64_t *ret_bytes, struct api_error *error)
{
    struct err err = ERR_INIT;

    if (json_is_integer(value)) {
        if (json_integer_value(value) < 0)
            return api_error_set(error, 400, "invalid_value", path,
                                 "Invalid value for '%.60s': a size is not negative.", path);
        *ret_bytes = (uint64_t)json_integer_value(value);
        return 0;
    }
    if (!json_is_string(value))
        return api_error_set(
            error, 400, "invalid_type", path,
            "Invalid type for '%.60s': expected a size such as \"8GiB\" or a whole "
            "number of bytes, but got %s instead.",
            path, json_body_kind(value));
    if (strlen(json_string_value(value)) != json_string_length(value) ||
        byte_size_parse(json_string_value(value), ret_bytes, &err) < 0)
        return api_error_set(error, 400, "invalid_value", path,
                             "Invalid value for '%.60s': '%.60s' is not a size such as \"8GiB\".",
                             path, json_string_value(value));
    return 0;
}

static int
read_sizes(json_t *object, struct api_tier_sizes *sizes, struct api_error *error)
{
    json_t *tiers = NULL, *value;
    const char *name;
    int bad = 0;

    json_object_foreach(object, name, value)
    {
        if (strcmp(name, "tiers") != 0)
            return api_error_set(error, 400, "unknown_parameter", name,
                                 "Unknown parameter: '%.60s'.", name);
        tiers = value;
    }
    if (!tiers || json_is_null(tiers))
        return api_error_set(error, 400, "missing_required_parameter", "tiers",
                             "Missing required parameter: 'tiers'.");
    if (!json_is_object(tiers))
        return api_error_set(error, 400, "invalid_type", "tiers",
                             "Invalid type for 'tiers': expected an object, but got %s instead.",
                             json_body_kind(tiers));
    json_object_foreach(tiers, name, value)
    {
        char path[JSON_PATH_BYTES];

        snprintf(path, sizeof path, "tiers.%.80s", name);
        if (strcmp(name, "nvme") == 0)
            return api_error_set(error, 400, "unsupported_parameter", path,
                                 "The nvme tier is the checkpoint itself and has no budget.");
        if (strcmp(name, "hbm") != 0 && strcmp(name, "ram") != 0)
            return api_error_set(error, 400, "unknown_parameter", path,
                                 "Unknown tier: '%.60s'; the tiers with a budget are hbm and ram.",
                                 name);
        if (json_is_null(value))
            continue;
        bad = read_size(path, value, name[0] == 'h' ? &sizes->hbm_bytes : &sizes->ram_bytes, error);
        if (bad < 0)
            return bad;
    }
    return 0;
}

int
api_tier_sizes_parse(const char *body, size_t size, struct api_tier_sizes *ret_sizes,
                     struct api_error *error)
{
    struct api_tier_sizes sizes = {UINT64_MAX, UINT64_MAX};
    json_t *object;
    int bad = json_body_load(body, size, SIZES_MAX_SCALARS, SIZES_MAX_CONTAINERS, &object, error);

    if (bad < 0)
        return bad;
    bad = read_sizes(object, &sizes, error);
    json_decref(object);
    if (bad < 0)
        return bad;
    *ret_sizes = sizes;
    return 0;
}
