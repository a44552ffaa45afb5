/* metric: counters, gauges and histograms, one row each in base/metric_rows.h.
 *
 * A row has one or more series; a series is told apart by a label text that is registered at start
 * (`tier="hbm",layer="1",order="2"`). Updates are relaxed atomics: any thread, no lock, no allocation.
 * Reading never resets anything.                                                                     */
#ifndef BASE_METRIC_H
#define BASE_METRIC_H

#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"

enum metric_kind { METRIC_COUNTER, METRIC_GAUGE, METRIC_HISTOGRAM };

#define METRIC(kind, id, help) METRIC_ID_##id,
enum metric_id {
#include "base/metric_rows.h"
    METRIC_ID_COUNT
};
#undef METRIC

struct metrics;

struct metrics *metrics_new(void);
struct metrics *metrics_free(struct metrics *metrics);
/* Adds a series with these labels (without braces; "" for none) and returns its number, from 0 in the
 * order of registration; -ENOSPC past 256 series per row. A row nobody registered has series 0 with no
 * labels. Not thread-safe: before the threads start.                                                */
int metrics_series(struct metrics *metrics, enum metric_id id, const char *labels);
void metrics_add(struct metrics *metrics, enum metric_id id, int series, uint64_t by);
/* Counter mirrored from a total that is counted elsewhere; gauge value. */
void metrics_set(struct metrics *metrics, enum metric_id id, int series, double value);
/* Histogram: seconds, buckets 1 ms .. 60 s roughly doubling (100 us .. for I/O is included). */
void metrics_observe(struct metrics *metrics, enum metric_id id, int series, double seconds);
double metrics_read(const struct metrics *metrics, enum metric_id id, int series);
/* Prometheus text format 0.0.4: HELP, TYPE, samples, every name prefixed "engramd_". */
void metrics_render(const struct metrics *metrics, struct buf *out);

#endif
