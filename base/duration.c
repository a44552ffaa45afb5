/* duration: see duration.h. */
#include "base/duration.h"

#include <inttypes.h>
#include <stdio.h>

#include "base/scaled.h"

/* In rising order; the first of two equal ones is the one that is written. */
static const struct scaled_unit duration_units[] = {
    {"ns", 1},
    {"us", 1000},
    {"ms", 1000000},
    {"s", 1000000000},
    {"m", 60 * 1000000000ull},
    {"min", 60 * 1000000000ull},
    {"h", 3600 * 1000000000ull},
    {"d", 86400 * 1000000000ull},
};
enum { DURATION_UNITS = sizeof duration_units / sizeof *duration_units };

int
duration_parse(const char *text, uint64_t *ret_ns, struct err *err)
{
    if (text[0] == '0' && text[1] == '\0') {
        *ret_ns = 0;
        return 0;
    }
    switch (scaled_parse(text, duration_units, DURATION_UNITS, ret_ns)) {
    case 0:
        return 0;
    case -EDOM:
        return err_set(err, EINVAL, "'%.64s' is not a whole number of nanoseconds", text);
    case -ERANGE:
        return err_set(err, EINVAL, "'%.64s' is too large or too long for a time", text);
    default:
        return err_set(err, EINVAL, "'%.64s' is not a time with a unit such as 250ms or 30s", text);
    }
}

const char *
duration_format(uint64_t ns, char *out, size_t out_size)
{
    const struct scaled_unit *unit = &duration_units[0];
    for (int i = 1; i < DURATION_UNITS && ns > 0; i++)
        if (duration_units[i].factor > unit->factor && ns % duration_units[i].factor == 0)
            unit = &duration_units[i];
    (void)snprintf(out, out_size, "%" PRIu64 "%s", ns / unit->factor, ns ? unit->name : "s");
    return out;
}
