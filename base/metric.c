/* metric: see metric.h. */
#include "base/metric.h"

#include <inttypes.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"

enum { METRIC_MAX_SERIES = 256 };

/* Upper bounds in seconds; one more bucket, +Inf, is behind them. */
static const double metric_bounds[] = {20e-6, 50e-6, 100e-6, 200e-6, 500e-6, 0.001, 0.002,
                                       0.005, 0.01,  0.02,   0.05,   0.1,    0.2,   0.5,
                                       1,     2,     5,      10,     20,     30,    60};
enum { METRIC_BOUNDS = sizeof metric_bounds / sizeof *metric_bounds };

struct metric_series {
    char *labels; /* "" when there are none */
    /* All relaxed: each value stands alone and orders nothing. */
    _Atomic uint64_t
        value; /* counter: the count; gauge: the bits of a double; histogram: sum in ns */
    _Atomic uint64_t bucket[]; /* histogram: [METRIC_BOUNDS + 1], not cumulative */
};

static const struct {
    enum metric_kind kind;
    const char *name, *help;
} metric_rows[METRIC_ID_COUNT] = {
#define METRIC(kind, id, help) {kind, #id, help},
#include "base/metric_rows.h"
#undef METRIC
};

struct metrics {
    struct {
        int n_series; /* registered; 0 still has series[0], without labels */
        struct metric_series *series[METRIC_MAX_SERIES];
    } row[METRIC_ID_COUNT];
};

static struct metric_series *
metric_series_new(enum metric_id id, const char *labels)
{
    size_t buckets = metric_rows[id].kind == METRIC_HISTOGRAM ? METRIC_BOUNDS + 1 : 0;
    struct metric_series *series = calloc(1, sizeof *series + buckets * sizeof(uint64_t));
    if (series && !(series->labels = strdup(labels))) {
        free(series);
        return NULL;
    }
    return series;
}

struct metrics *
metrics_new(void)
{
    struct metrics *metrics = calloc(1, sizeof *metrics);
    if (!metrics)
        return NULL;
    for (int id = 0; id < METRIC_ID_COUNT; id++) {
        metrics->row[id].series[0] = metric_series_new((enum metric_id)id, "");
        if (!metrics->row[id].series[0])
            return metrics_free(metrics);
    }
    return metrics;
}

struct metrics *
metrics_free(struct metrics *metrics)
{
    if (!metrics)
        return NULL;
    for (int id = 0; id < METRIC_ID_COUNT; id++) {
        for (int i = 0; i < METRIC_MAX_SERIES && metrics->row[id].series[i]; i++) {
            free(metrics->row[id].series[i]->labels);
            free(metrics->row[id].series[i]);
        }
    }
    free(metrics);
    return NULL;
}

int
metrics_series(struct metrics *metrics, enum metric_id id, const char *labels)
{
    ASSERT((unsigned)id < METRIC_ID_COUNT);
    int n = metrics->row[id].n_series;
    /* The same series twice would make the whole exposition invalid. */
    for (int i = 0; i < n; i++)
        if (strcmp(metrics->row[id].series[i]->labels, labels) == 0)
            return i;
    if (n == METRIC_MAX_SERIES)
        return -ENOSPC;
    if (n == 0) {
        char *copy = strdup(labels);
        if (!copy)
            return -ENOMEM;
        free(metrics->row[id].series[0]->labels);
        metrics->row[id].series[0]->labels = copy;
    } else {
        metrics->row[id].series[n] = metric_series_new(id, labels);
        if (!metrics->row[id].series[n])
            return -ENOMEM;
    }
    metrics->row[id].n_series = n + 1;
    return n;
}

static struct metric_series *
metric_find(const struct metrics *metrics, enum metric_id id, int series)
{
    ASSERT((unsigned)id < METRIC_ID_COUNT);
    ASSERT(series == 0 || (series > 0 && series < metrics->row[id].n_series));
    return metrics->row[id].series[series];
}

static uint64_t
bits_of_double(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static double
double_of_bits(uint64_t bits)
{
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

void
metrics_add(struct metrics *metrics, enum metric_id id, int series, uint64_t by)
{
    struct metric_series *at = metric_find(metrics, id, series);
    ASSERT(metric_rows[id].kind != METRIC_HISTOGRAM);
    if (metric_rows[id].kind == METRIC_COUNTER) {
        atomic_fetch_add_explicit(&at->value, by, memory_order_relaxed);
        return;
    }
    uint64_t old = atomic_load_explicit(&at->value, memory_order_relaxed);
    while (!atomic_compare_exchange_weak_explicit(&at->value, &old,
                                                  bits_of_double(double_of_bits(old) + (double)by),
                                                  memory_order_relaxed, memory_order_relaxed))
        continue;
}

/* Whole and at least 0: NaN and negative values become 0, huge ones the largest count. */
static uint64_t
whole_of_double(double value)
{
    return !(value > 0) ? 0 : value >= 0x1p64 ? UINT64_MAX : (uint64_t)value;
}

void
metrics_set(struct metrics *metrics, enum metric_id id, int series, double value)
{
    struct metric_series *at = metric_find(metrics, id, series);
    ASSERT(metric_rows[id].kind != METRIC_HISTOGRAM);
    uint64_t bits =
        metric_rows[id].kind == METRIC_COUNTER ? whole_of_double(value) : bits_of_double(value);
    atomic_store_explicit(&at->value, bits, memory_order_relaxed);
}

void
metrics_observe(struct metrics *metrics, enum metric_id id, int series, double seconds)
{
    struct metric_series *at = metric_find(metrics, id, series);
    ASSERT(metric_rows[id].kind == METRIC_HISTOGRAM);
    if (!(seconds > 0))
        seconds = 0;
    int bucket = 0;
    while (bucket < METRIC_BOUNDS && seconds > metric_bounds[bucket])
        bucket++;
    atomic_fetch_add_explicit(&at->bucket[bucket], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&at->value, whole_of_double(seconds * 1e9 + 0.5),
                              memory_order_relaxed);
}

double
metrics_read(const struct metrics *metrics, enum metric_id id, int series)
{
    struct metric_series *at = metric_find(metrics, id, series);
    uint64_t value = atomic_load_explicit(&at->value, memory_order_relaxed);
    if (metric_rows[id].kind == METRIC_COUNTER)
        return (double)value;
    if (metric_rows[id].kind == METRIC_GAUGE)
        return double_of_bits(value);
    uint64_t count = 0;
    for (int i = 0; i <= METRIC_BOUNDS; i++)
        count += atomic_load_explicit(&at->bucket[i], memory_order_relaxed);
    return (double)count;
}

static void
metric_render_double(struct buf *out, double value)
{
    if (isnan(value))
        buf_text(out, "NaN\n");
    else if (isinf(value))
        buf_text(out, value > 0 ? "+Inf\n" : "-Inf\n");
    else if (fabs(value) < 0x1p53 && value == floor(value))
        buf_printf(out, "%.0f\n", value);
    else
        buf_printf(out, "%.15g\n", value);
}

static void
metric_render_name(struct buf *out, enum metric_id id, const char *suffix, const char *labels)
{
    buf_printf(out, "engramd_%s%s", metric_rows[id].name, suffix);
    if (*labels) {
        buf_text(out, "{");
        buf_text(out, labels);
        buf_text(out, "}");
    }
    buf_text(out, " ");
}

static void
metric_render_histogram(const struct metric_series *at, enum metric_id id, struct buf *out)
{
    uint64_t count = 0;
    for (int i = 0; i <= METRIC_BOUNDS; i++) {
        /* The count is the sum of the buckets that were read, so that +Inf always equals it. */
        count += atomic_load_explicit(&at->bucket[i], memory_order_relaxed);
        buf_printf(out, "engramd_%s_bucket{", metric_rows[id].name);
        if (*at->labels) {
            buf_text(out, at->labels);
            buf_text(out, ",");
        }
        if (i < METRIC_BOUNDS)
            buf_printf(out, "le=\"%g\"} %" PRIu64 "\n", metric_bounds[i], count);
        else
            buf_printf(out, "le=\"+Inf\"} %" PRIu64 "\n", count);
    }
    metric_render_name(out, id, "_sum", at->labels);
    buf_printf(out, "%.9f\n", (double)atomic_load_explicit(&at->value, memory_order_relaxed) / 1e9);
    metric_render_name(out, id, "_count", at->labels);
    buf_printf(out, "%" PRIu64 "\n", count);
}

void
metrics_render(const struct metrics *metrics, struct buf *out)
{
    static const char *const kinds[] = {"counter", "gauge", "histogram"};
    for (int id = 0; id < METRIC_ID_COUNT; id++) {
        buf_printf(out, "# HELP engramd_%s %s\n", metric_rows[id].name, metric_rows[id].help);
        buf_printf(out, "# TYPE engramd_%s %s\n", metric_rows[id].name,
                   kinds[metric_rows[id].kind]);
        for (int i = 0; i < METRIC_MAX_SERIES && metrics->row[id].series[i]; i++) {
            const struct metric_series *at = metrics->row[id].series[i];
            if (metric_rows[id].kind == METRIC_HISTOGRAM) {
                metric_render_histogram(at, (enum metric_id)id, out);
                continue;
            }
            uint64_t value = atomic_load_explicit(&at->value, memory_order_relaxed);
            metric_render_name(out, (enum metric_id)id, "", at->labels);
            if (metric_rows[id].kind == METRIC_COUNTER)
                buf_printf(out, "%" PRIu64 "\n", value);
            else
                metric_render_double(out, double_of_bits(value));
        }
    }
}
