#include "tools/admin_text.h"

#include <errno.h>
#include <jansson.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "base/byte_size.h"
#include "base/escape.h"

enum { CELL_BYTES = 32, NAME_BYTES = 64 };

static json_t *
load_object(const char *json, size_t size_bytes, struct err *err)
{
    json_error_t error;
    json_t *object =
        json_loadb(json ? json : "", json ? size_bytes : 0, JSON_REJECT_DUPLICATES, &error);
    if (!json_is_object(object)) {
        json_decref(object);
        (void)err_set(err, EPROTO, "the answer is not a JSON object");
        return NULL;
    }
    return object;
}

static const char *
text_of(const json_t *object, const char *key, char *out, size_t size)
{
    const json_t *value = json_object_get(object, key);
    (void)snprintf(out, size, "-");
    if (json_is_string(value))
        (void)escape_text(out, size, json_string_value(value), json_string_length(value));
    return out;
}

/* 1,234,567 */
static const char *
count_of(const json_t *object, const char *key, char *out)
{
    const json_t *value = json_object_get(object, key);
    char digits[CELL_BYTES];
    if (!json_is_integer(value) || json_integer_value(value) < 0) {
        (void)snprintf(out, CELL_BYTES, "-");
        return out;
    }
    int n = snprintf(digits, sizeof digits, "%lld", (long long)json_integer_value(value));
    char *at = out;
    for (int i = 0; i < n; i++) {
        if (i && (n - i) % 3 == 0)
            *at++ = ',';
        *at++ = digits[i];
    }
    *at = '\0';
    return out;
}

static const char *
bytes_of(const json_t *object, const char *key, char *out)
{
    const json_t *value = json_object_get(object, key);
    if (json_is_integer(value) && json_integer_value(value) >= 0)
        return byte_size_format((uint64_t)json_integer_value(value), out, CELL_BYTES);
    (void)snprintf(out, CELL_BYTES, "-");
    return out;
}

static const char *
number_of(const json_t *object, const char *key, const char *format, double scale, char *out)
{
    const json_t *value = json_object_get(object, key);
    (void)snprintf(out, CELL_BYTES, "-");
    if (!json_is_number(value))
        return out;
    /* One of the two formats below, both for one double. */
    if (strcmp(format, "%") == 0)
        (void)snprintf(out, CELL_BYTES, "%.1f %%", json_number_value(value) * scale);
    else
        (void)snprintf(out, CELL_BYTES, "%.4g", json_number_value(value) * scale);
    return out;
}

static void
write_row(struct buf *out, const char *name, const char *budget, const json_t *object)
{
    char used[CELL_BYTES], hits[CELL_BYTES], misses[CELL_BYTES], rate[CELL_BYTES],
        bytes[CELL_BYTES], evictions[CELL_BYTES];
    buf_printf(out, "%-20s %10s %10s %15s %15s %9s %10s %13s\n", name, budget,
               bytes_of(object, "used_bytes", used), count_of(object, "hits", hits),
               count_of(object, "misses", misses), number_of(object, "hit_rate", "%", 100, rate),
               bytes_of(object, "bytes", bytes), count_of(object, "evictions", evictions));
}

static void
write_tier(struct buf *out, const json_t *tier)
{
    char name[NAME_BYTES], budget[CELL_BYTES];
    (void)text_of(tier, "name", name, sizeof name);
    /* The disk holds everything; it has no budget. */
    int nvme = strcmp(name, "nvme") == 0;
    write_row(out, name, nvme ? "-" : bytes_of(tier, "budget_bytes", budget), tier);
    const json_t *sets = json_object_get(tier, "sets");
    for (size_t i = 0; i < json_array_size(sets); i++) {
        const json_t *set = json_array_get(sets, i);
        char layer[CELL_BYTES], order[CELL_BYTES], label[2 * CELL_BYTES + 20];
        (void)snprintf(label, sizeof label, "  layer %s order %s", count_of(set, "layer", layer),
                       count_of(set, "order", order));
        write_row(out, label, "", set);
    }
}

static void
write_nvme(struct buf *out, const json_t *nvme)
{
    char a[CELL_BYTES], b[CELL_BYTES], c[CELL_BYTES], d[CELL_BYTES];
    const json_t *latency = json_object_get(nvme, "latency_us");
    buf_printf(out, "\nnvme      %s reads, %s read for %s asked for (x %s), %s merged\n",
               count_of(nvme, "reads", a), bytes_of(nvme, "bytes", b),
               bytes_of(nvme, "useful_bytes", c), number_of(nvme, "page_amplification", "", 1, d),
               count_of(nvme, "merged", (char[CELL_BYTES]){0}));
    buf_printf(out, "          %s errors, %s retries, %s in flight\n", count_of(nvme, "errors", a),
               count_of(nvme, "retries", b), count_of(nvme, "in_flight", c));
    buf_printf(out, "          latency in us: mean %s, p50 %s, p99 %s\n",
               number_of(latency, "mean", "", 1, a), number_of(latency, "p50", "", 1, b),
               number_of(latency, "p99", "", 1, c));
}

int
admin_text_tiers(const char *json, size_t size_bytes, struct buf *out, struct err *err)
{
    json_auto_t *object = load_object(json, size_bytes, err);
    if (!object)
        return -EPROTO;
    const json_t *tiers = json_object_get(object, "tiers");
    if (!json_is_array(tiers))
        return err_set(err, EPROTO, "the answer has no tiers");
    buf_printf(out, "%-20s %10s %10s %15s %15s %9s %10s %13s\n", "tier", "budget", "used", "hits",
               "misses", "hit rate", "delivered", "evictions");
    for (size_t i = 0; i < json_array_size(tiers); i++)
        write_tier(out, json_array_get(tiers, i));
    if (json_object_get(object, "nvme"))
        write_nvme(out, json_object_get(object, "nvme"));
    const json_t *prefetch = json_object_get(object, "prefetch");
    char a[CELL_BYTES], b[CELL_BYTES], c[CELL_BYTES];
    if (prefetch)
        buf_printf(out, "prefetch  %s bundles ahead of need, %s used, %s late\n",
                   count_of(prefetch, "issued", a), count_of(prefetch, "used", b),
                   count_of(prefetch, "late", c));
    buf_printf(out, "memory    %s staging, %s resident in all\n",
               bytes_of(object, "staging_bytes", a), bytes_of(object, "resident_bytes", b));
    return 0;
}

int
admin_text_status(const char *json, size_t size_bytes, struct buf *out, struct err *err)
{
    json_auto_t *object = load_object(json, size_bytes, err);
    char name[NAME_BYTES], detail[500];
    if (!object)
        return -EPROTO;
    if (!json_is_string(json_object_get(object, "status")))
        return err_set(err, EPROTO, "the answer has no status");
    buf_printf(out, "%s\n", text_of(object, "status", detail, sizeof detail));
    const json_t *checks = json_object_get(object, "checks");
    for (size_t i = 0; i < json_array_size(checks); i++) {
        const json_t *check = json_array_get(checks, i);
        buf_printf(out, "  %-4s %-12s %s\n",
                   json_is_true(json_object_get(check, "ok")) ? "ok" : "NO",
                   text_of(check, "name", name, sizeof name),
                   text_of(check, "detail", detail, sizeof detail));
    }
    return 0;
}

void
admin_text_error(int status, const char *json, size_t size_bytes, struct buf *out)
{
    json_auto_t *object = load_object(json, size_bytes, NULL);
    const json_t *error = json_object_get(object, "error");
    char message[500];
    if (json_is_string(json_object_get(error, "message")))
        buf_printf(out, "%s (HTTP %d)", text_of(error, "message", message, sizeof message), status);
    else
        buf_printf(out, "HTTP %d", status);
}
