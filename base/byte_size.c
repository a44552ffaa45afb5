/* byte_size: see byte_size.h. Decimal arithmetic in 128-bit integers: no value is ever rounded. */
#include "base/byte_size.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

typedef unsigned __int128 u128;

enum { BYTE_SIZE_DIGITS = 26 }; /* 10^26 * 2^40 < 2^127 */

static const struct {
    const char *name;
    uint64_t bytes;
} byte_size_units[] = {
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

static int
byte_size_refuse(struct err *err, const char *text)
{
    return err_set(err, EINVAL,
                   "'%.64s' is not a size: expected a number and B, KiB, MiB, GiB or TiB", text);
}

int
byte_size_parse(const char *text, uint64_t *ret_bytes, struct err *err)
{
    u128 number = 0, denominator = 1;
    int digits = 0;
    const char *at = text;
    if (*at < '0' || *at > '9')
        return byte_size_refuse(err, text);
    for (; *at >= '0' && *at <= '9'; at++) {
        if (number > 0 && ++digits > BYTE_SIZE_DIGITS - 1)
            return err_set(err, EINVAL, "'%.64s' has too many digits for a size", text);
        number = number * 10 + (unsigned)(*at - '0');
    }
    if (*at == '.') {
        const char *first = ++at, *last = at;
        for (; *at >= '0' && *at <= '9'; at++)
            if (*at != '0')
                last = at + 1; /* trailing zeros mean nothing */
        if (at == first)
            return byte_size_refuse(err, text);
        for (const char *digit = first; digit < last; digit++) {
            if (++digits > BYTE_SIZE_DIGITS - 1)
                return err_set(err, EINVAL, "'%.64s' has too many digits for a size", text);
            number = number * 10 + (unsigned)(*digit - '0');
            denominator *= 10;
        }
    }
    if (*at == ' ' && at[1] != '\0')
        at++;
    for (size_t i = 0; i < sizeof byte_size_units / sizeof *byte_size_units; i++) {
        if (strcasecmp(at, byte_size_units[i].name) != 0)
            continue;
        u128 product = number * byte_size_units[i].bytes;
        if (product % denominator)
            return err_set(err, EINVAL, "'%.64s' is not a whole number of bytes", text);
        if (product / denominator > INT64_MAX)
            return err_set(err, EINVAL, "'%.64s' is too large: sizes end below 8388608TiB", text);
        *ret_bytes = (uint64_t)(product / denominator);
        return 0;
    }
    return byte_size_refuse(err, text);
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
