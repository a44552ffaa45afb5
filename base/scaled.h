/* scaled: "1.5KiB", "30s": a decimal number with a unit, as a whole number of the smallest unit.
 * Exact: nothing is ever rounded. Pure. What byte_size and duration have in common. */
#ifndef BASE_SCALED_H
#define BASE_SCALED_H

#include <stddef.h>
#include <stdint.h>

struct scaled_unit {
    const char *name; /* compared without case; "" stands for no unit */
    uint64_t factor;  /* at most 2^47 */
};

/* A number without sign or exponent, a fraction allowed, one space allowed before the unit.
 * 0; -EINVAL when it does not read so, -EDOM when it is not a whole number of the smallest unit,
 * -ERANGE at 2^63 or above and for more significant digits than 128 bits hold. */
int scaled_parse(const char *text, const struct scaled_unit *units, size_t n_units,
                 uint64_t *ret_value);

#endif
