/* duration: "30s" to nanoseconds and back.
 * Accepts a decimal number (a fraction is allowed) and a unit, which only 0 may lack: ns, us, ms,
 * s, m or min, h, d. One optional space, any case. Result must be a whole number of nanoseconds
 * below 2^63. */
#ifndef BASE_DURATION_H
#define BASE_DURATION_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

int duration_parse(const char *text, uint64_t *ret_ns, struct err *err); /* -EINVAL */
/* "30s", "1500us": exact, in the largest unit that needs no fraction. Returns out. */
const char *duration_format(uint64_t ns, char *out, size_t out_size);

#endif
