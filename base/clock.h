/* clock: one monotonic clock in nanoseconds, and Unix seconds for timestamps people read. */
#ifndef BASE_CLOCK_H
#define BASE_CLOCK_H

#include <stdint.h>

uint64_t clock_now_ns(void);      /* CLOCK_MONOTONIC */
int64_t clock_unix_seconds(void); /* CLOCK_REALTIME */

#endif
