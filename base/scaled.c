/* scaled: see scaled.h. */
#include "base/scaled.h"

#include <errno.h>
#include <strings.h>

typedef unsigned __int128 u128;

enum { SCALED_MOST_DIGITS = 24 }; /* 10^24 * 2^47 < 2^127 */

int
scaled_parse(const char *text, const struct scaled_unit *units, size_t n_units, uint64_t *ret_value)
{
    u128 number = 0, denominator = 1;
    int digits = 0, result = 0;
    const char *at = text;
    if (*at < '0' || *at > '9')
        return -EINVAL;
    for (; *at >= '0' && *at <= '9'; at++) {
        if (number > 0 || *at != '0')
            digits++;
        if (digits > SCALED_MOST_DIGITS)
            result = -ERANGE; /* known, but the rest decides whether it reads as a number at all */
        else
            number = number * 10 + (unsigned)(*at - '0');
    }
    if (*at == '.') {
        const char *first = ++at, *last = at;
        for (; *at >= '0' && *at <= '9'; at++)
            if (*at != '0')
                last = at + 1; /* trailing zeros mean nothing */
        if (at == first)
            return -EINVAL;
        for (const char *digit = first; digit < last && result == 0; digit++) {
            if (++digits > SCALED_MOST_DIGITS) {
                result = -ERANGE;
            } else {
                number = number * 10 + (unsigned)(*digit - '0');
                denominator *= 10;
            }
        }
    }
    if (*at == ' ' && at[1] != '\0')
        at++;
    for (size_t i = 0; i < n_units; i++) {
        if (strcasecmp(at, units[i].name) != 0)
            continue;
        if (result)
            return result;
        u128 product = number * units[i].factor;
        if (product % denominator)
            return -EDOM;
        if (product / denominator > INT64_MAX)
            return -ERANGE;
        *ret_value = (uint64_t)(product / denominator);
        return 0;
    }
    return -EINVAL;
}
