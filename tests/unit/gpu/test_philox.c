/* Philox4x32-10 against the known answers that come with Random123 (kat_vectors). */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "gpu/philox.h"

static void
the_known_answers_of_random123_come_out(void **state)
{
    static const struct {
        uint32_t counter[4], key[2], words[4];
    } known[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        uint32_t words[4];
        philox4x32_10(known[i].counter, known[i].key, words);
        assert_memory_equal(words, known[i].words, sizeof words);
    }
}

static void
uniform_numbers_fill_the_unit_interval_and_depend_on_all_bits(void **state)
{
    int bins[16] = {0};
    double sum = 0;

    for (uint64_t draw = 0; draw < 16000; draw++) {
        double u = philox_uniform(42, draw);
        assert_true(u >= 0 && u < 1);
        bins[(int)(u * 16)]++;
        sum += u;
    }
    assert_true(fabs(sum / 16000 - 0.5) < 0.01);
    for (int i = 0; i < 16; i++)
        assert_true(bins[i] > 850 && bins[i] < 1150);
    assert_true(philox_uniform(1, 5) == philox_uniform(1, 5));
    for (int bit = 0; bit < 64; bit++) {
        assert_true(philox_uniform(1, 5) != philox_uniform(1 ^ 1ull << bit, 5));
        assert_true(philox_uniform(1, 5) != philox_uniform(1, 5 ^ 1ull << bit));
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_known_answers_of_random123_come_out),
        cmocka_unit_test(uniform_numbers_fill_the_unit_interval_and_depend_on_all_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
