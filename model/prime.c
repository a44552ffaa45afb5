#include "model/prime.h"

static const uint8_t bases[] = {2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37};
enum { N_BASES = sizeof bases };

static uint64_t
multiply_mod(uint64_t a, uint64_t b, uint64_t n)
{
    return (uint64_t)((unsigned __int128)a * b % n);
}

static uint64_t
power_mod(uint64_t base, uint64_t exponent, uint64_t n)
{
    uint64_t result = 1;
    for (base %= n; exponent; exponent >>= 1) {
        if (exponent & 1)
            result = multiply_mod(result, base, n);
        base = multiply_mod(base, base, n);
    }
    return result;
}

/* Does `base` prove the odd number n = odd * 2^twos + 1 composite? */
static bool
is_witness(uint64_t base, uint64_t n, uint64_t odd, int twos)
{
    uint64_t x = power_mod(base, odd, n);
    if (x == 1 || x == n - 1)
        return false;
    for (int i = 1; i < twos; i++) {
        x = multiply_mod(x, x, n);
        if (x == n - 1)
            return false;
    }
    return true;
}

bool
prime_is(uint64_t n)
{
    if (n < 2)
        return false;
    for (int i = 0; i < N_BASES; i++) {
        if (n % bases[i] == 0)
            return n == bases[i];
    }
    uint64_t odd = n - 1;
    int twos = __builtin_ctzll(odd);
    odd >>= twos;
    for (int i = 0; i < N_BASES; i++) {
        if (is_witness(bases[i], n, odd, twos))
            return false;
    }
    return true;
}

uint64_t
prime_after(uint64_t n)
{
    if (n < 2)
        return 2;
    if (n > INT64_MAX)
        return 0;
    /* Gaps between primes below 2^63 are under 1,600, so this ends soon or at the top. */
    for (uint64_t candidate = (n + 1) | 1; candidate <= INT64_MAX; candidate += 2) {
        if (prime_is(candidate))
            return candidate;
    }
    return 0;
}
