/* byte_size: see byte_size.h. */
#include "base/byte_size.h"

#include <inttypes.h>
#include <stdio.h>

#include "base/scaled.h"

typedef unsigned __int128 u128;

static const struct scaled_unit byte_size_units[] = {
    {"", 1},
    {"B", 1},
    {"K", 1ull << 10},
    {"KiB", 1ull << 10},
    {"KB", 1000ull},
    {"M", 1ull << 20},
    {"MiB", 1ull << 20},
    {"MB", 1000000ull},
    {"G", 1ull << 30},
    {"GiB", 1ull << 30},
    {"GB", 1000000000ull},
    {"T", 1ull << 40},
    {"TiB", 1ull << 40},
    {"TB", 1000000000000ull},
};

int
byte_size_parse(const char *text, uint64_t *ret_bytes, struct err *err)
{
    switch (scaled_parse(text, byte_size_units, sizeof byte_size_units / sizeof *byte_size_units,
                         ret_bytes)) {
    case 0:
        return 0;
    case -EDOM:
        return err_set(err, EINVAL, "'%.64s' is not a whole number of bytes", text);
    case -ERANGE:
        return err_set(err, EINVAL, "'%.64s' is too large or too long for a size", text);
    default:
        return err_set(err, EINVAL, "'%.64s' is not a size such as 512MiB or 8GiB", text);
    }
}

const char *
byte_size_format(uint64_t bytes, char *out, size_t out_size)
{
    static const char *const names[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    int unit = 0;
    while (unit < 4 && bytes >> (10 * (unit + 1)))
        unit++;
    uint64_t one = 1ull << (10 * unit);
    uint64_t whole = bytes / one;
    u128 thousandths = (u128)(bytes % one) * 1000;
    if (thousandths % one == 0) { /* exact with three decimals or fewer */
        unsigned fraction = (unsigned)(thousandths / one);
        int decimals = 3;
        while (decimals > 0 && fraction % 10 == 0) {
            fraction /= 10;
            decimals--;
        }
        if (decimals == 0)
            (void)snprintf(out, out_size, "%" PRIu64 "%s", whole, names[unit]);
        else
            (void)snprintf(out, out_size, "%" PRIu64 ".%0*u%s", whole, decimals, fraction,
                           names[unit]);
        return out;
    }
    double value = (double)bytes / (double)one;
    if (value >= 1023.5 && unit < 4) {
        value /= 1024;
        unit++;
    }
    int decimals = value < 9.995 ? 2 : value < 99.95 ? 1 : 0;
    (void)snprintf(out, out_size, "%.*f%s", decimals, value, names[unit]);
    return out;
}
