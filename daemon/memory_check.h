/* memory_check: do the budgets fit the machine? Asked at start and before a resize, against what is
 * there: physical memory, the cgroup's limit, and what tables there are to hold. */
#ifndef DAEMON_MEMORY_CHECK_H
#define DAEMON_MEMORY_CHECK_H

#include "daemon/serving.h"

/* Engram states of the prefix cache take no more than this part of engine.kv_size, beside it. */
enum { MEMORY_CHECK_STATE_SHARE = 16 };

/* Memory this process may use: the smaller of physical memory and memory.max of its cgroups. */
uint64_t memory_limit_bytes(void);
/* Weights, KV cache and both budgets against the limit; -EINVAL with the sum in err. A budget that
 * is the built-in one counts only as far as the tables can fill it: defaults start everywhere. */
int memory_check_start(const struct serving *serving, struct err *err);
/* UINT64_MAX: the budget stays, and counts as far as the tables can fill it. -EINVAL also for a
 * size beyond the bounds of its option. */
int memory_check_resize(const struct serving *serving, uint64_t hbm_bytes, uint64_t ram_bytes,
                        struct err *err);

#endif
