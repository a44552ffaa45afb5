#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/unit/tiering/cold_fixture.h"
#include "tiering/fast_mod.h"

static void
check(uint64_t n, uint64_t d)
{
    if (fast_mod(fast_mod_of(d), n) != n % d)
        fail_msg("%llu mod %llu is wrong", (unsigned long long)n, (unsigned long long)d);
}

static void
every_small_divisor_and_number_is_right(void **state)
{
    for (uint64_t d = 1; d < 300; d++)
        for (uint64_t n = 0; n < 1000; n++) {
            check(n, d);
            check(UINT64_MAX - n, d);
            check(UINT64_MAX / d * d - n, d);
        }
}

static void
edges_of_every_size_are_right(void **state)
{
    for (int bit = 0; bit < 64; bit++)
        for (int64_t by = -3; by <= 3; by++) {
            uint64_t d = ((uint64_t)1 << bit) + (uint64_t)by;
            if (d == 0)
                continue;
            for (int of = 0; of < 64; of++)
                for (int64_t off = -3; off <= 3; off++) {
                    check(((uint64_t)1 << of) + (uint64_t)off, d);
                    check(UINT64_MAX / d * d + (uint64_t)off, d);
                    check(d * ((uint64_t)1 << of) + (uint64_t)off, d);
                }
        }
}

static void
random_numbers_are_right(void **state)
{
    uint64_t seed = 7;
    for (int i = 0; i < 2000000; i++) {
        uint64_t d = next_random(&seed) >> (next_random(&seed) % 64), n = next_random(&seed);
        check(n, d ? d : 1);
        check(n >> (next_random(&seed) % 64), d ? d : 1);
        check(n - n % (d ? d : 1), d ? d : 1);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_small_divisor_and_number_is_right),
        cmocka_unit_test(edges_of_every_size_are_right),
        cmocka_unit_test(random_numbers_are_right),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
