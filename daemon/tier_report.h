/* tier_report: the tiers' numbers for GET /v1/tiers and /metrics. Thread: loop. */
#ifndef DAEMON_TIER_REPORT_H
#define DAEMON_TIER_REPORT_H

#include "base/metric.h"
#include "daemon/serving.h"

/* Labels of all tier and table series; before the engine starts counting. */
void tier_report_register(struct metrics *metrics, const struct model_shape *shape);
/* Copies the present totals into the metrics. */
void tier_report_update(struct metrics *metrics, const struct serving *serving);
void tier_report_json(struct buf *out, const struct serving *serving);

#endif
