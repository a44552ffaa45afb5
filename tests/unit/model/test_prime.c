#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "model/prime.h"

static void
small_numbers_agree_with_a_sieve(void **state)
{
    enum { N = 100000 };
    static uint8_t composite[N];
    for (unsigned i = 2; i * i < N; i++) {
        for (unsigned j = i * i; !composite[i] && j < N; j += i)
            composite[j] = 1;
    }
    uint64_t next = 2;
    for (unsigned i = 0; i < N; i++) {
        int prime = i >= 2 && !composite[i];
        assert_int_equal(prime_is(i), prime);
        if (prime) {
            assert_int_equal(i, next);
            next = prime_after(i);
        }
    }
}

static void
strong_pseudoprimes_do_not_pass(void **state)
{
    /* The least composites that fool Miller-Rabin with the first 1, 2, ... 9 and 12 prime bases
     * (OEIS A014233), and squares of primes. */
    static const uint64_t composite[] = {2047,
                                         1373653,
                                         25326001,
                                         3215031751,
                                         2152302898747,
                                         3474749660383,
                                         341550071728321,
                                         3825123056546413051,
                                         (uint64_t)4294967291 * 4294967291,
                                         (uint64_t)4294967291 * 4294967279,
                                         UINT64_MAX};
    for (size_t i = 0; i < sizeof composite / sizeof composite[0]; i++)
        assert_false(prime_is(composite[i]));
}

static void
large_primes_pass(void **state)
{
    static const uint64_t prime[] = {4294967291, 1099511627791, ((uint64_t)1 << 61) - 1,
                                     9223372036854775783u, 18446744073709551557u};
    for (size_t i = 0; i < sizeof prime / sizeof prime[0]; i++)
        assert_true(prime_is(prime[i]));
}

static void
the_next_prime_ends_below_63_bits(void **state)
{
    assert_int_equal(prime_after(0), 2);
    assert_int_equal(prime_after(2), 3);
    assert_int_equal(prime_after((uint64_t)1 << 40), 1099511627791);
    assert_true(prime_after(9223372036854775782u) == 9223372036854775783u);
    assert_true(prime_after(9223372036854775783u) == 0);
    assert_true(prime_after(UINT64_MAX) == 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(small_numbers_agree_with_a_sieve),
        cmocka_unit_test(strong_pseudoprimes_do_not_pass),
        cmocka_unit_test(large_primes_pass),
        cmocka_unit_test(the_next_prime_ends_below_63_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
