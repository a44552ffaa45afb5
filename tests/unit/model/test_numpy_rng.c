/* Vectors: numpy's own test data (numpy/random/tests: test_seed_sequence.py,
 * data/pcg64-testset-1.csv) and draws of default_rng that numpy prints. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "model/ngram_hash.h"
#include "model/numpy_rng.h"

static void
the_seed_sequence_equals_its_reference(void **state)
{
    static const struct {
        uint32_t entropy[4];
        uint64_t first[2];
    } row[] = {
        {{3735928559, 195939070, 229505742, 305419896},
         {2477551240072187391u, 9577394838764454085u}},
        {{3668361503, 4165561550, 1661411377, 3634257570},
         {15854241394484835714u, 11398914698975566411u}},
        {{164546577, 4166754639, 1765190214, 1303880213},
         {13708282465491374871u, 16007308345579681096u}},
        {{2766103236, 2883057919, 4029656435, 862374500},
         {18305404959516669237u, 14103312907920476776u}},
    };
    for (size_t i = 0; i < sizeof row / sizeof row[0]; i++) {
        uint64_t got[4];
        numpy_rng_seed_state(row[i].entropy, got);
        assert_true(got[0] == row[i].first[0] && got[1] == row[i].first[1]);
    }
}

static void
the_raw_stream_equals_numpy(void **state)
{
    static const uint64_t want[] = {0x60d24054e17a0698, 0xd5e79d89856e4f12, 0xd254972fe64bd782,
                                    0xf1e3072a53c72571};
    struct numpy_rng rng;
    numpy_rng_init(&rng, 0xdeadbeaf);
    for (size_t i = 0; i < sizeof want / sizeof want[0]; i++)
        assert_true(numpy_rng_next64(&rng) == want[i]);
    numpy_rng_init(&rng, 0);
    assert_true(numpy_rng_next64(&rng) == 0xa30febcfd9c2825f);
}

static void
halves_are_drawn_low_first(void **state)
{
    struct numpy_rng rng;
    numpy_rng_init(&rng, 0xdeadbeaf);
    assert_int_equal(numpy_rng_next32(&rng), 0xe17a0698);
    assert_int_equal(numpy_rng_next32(&rng), 0x60d24054);
    assert_int_equal(numpy_rng_next32(&rng), 0x856e4f12);
}

static void
small_bounds_are_drawn_from_32_bits(void **state)
{
    static const uint64_t of_42[] = {0, 7, 6, 4, 4, 8, 0, 6, 2, 0};
    static const uint64_t of_0[] = {85, 63, 51, 26, 30};
    static const uint64_t of_12345[] = {6, 2, 7};
    uint64_t got[10];
    numpy_rng_integers(42, 10, 10, got);
    assert_memory_equal(got, of_42, sizeof of_42);
    numpy_rng_integers(0, 100, 5, got);
    assert_memory_equal(got, of_0, sizeof of_0);
    numpy_rng_integers(12345, 10, 3, got);
    assert_memory_equal(got, of_12345, sizeof of_12345);
}

/* 2^32 and 2^64 do not fit the bounded draw and are taken raw; one past 2^32 takes 64-bit outputs.
 */
static void
bounds_at_the_word_size_are_exact(void **state)
{
    uint64_t got;
    numpy_rng_integers(0xdeadbeaf, (uint64_t)1 << 32, 1, &got);
    assert_true(got == 0xe17a0698);
    numpy_rng_integers(0xdeadbeaf, 0, 1, &got);
    assert_true(got == 0x60d24054e17a0698);
    numpy_rng_integers(0xdeadbeaf, ((uint64_t)1 << 32) - 1, 1, &got);
    assert_true(got == 0xe17a0698 - 1);
    numpy_rng_integers(0xdeadbeaf, ((uint64_t)1 << 32) + 1, 1, &got);
    assert_true(got == 0x60d24055);
    numpy_rng_integers(7, 1, 1, &got);
    assert_true(got == 0);
}

static void
rejected_draws_are_skipped(void **state)
{
    /* With bound 3 * 2^62 a quarter of the outputs is refused: the low word of the product, output
     * * 3 * 2^62 mod 2^64, is below the threshold 2^62 when the output is a multiple of 4. */
    struct numpy_rng raw, bounded;
    numpy_rng_init(&raw, 99);
    numpy_rng_init(&bounded, 99);
    int skipped = 0;
    for (int i = 0; i < 200; i++) {
        uint64_t output = numpy_rng_next64(&raw);
        for (; output % 4 == 0; skipped++)
            output = numpy_rng_next64(&raw);
        uint64_t want = (uint64_t)((unsigned __int128)output * 3 >> 2);
        assert_true(numpy_rng_bounded(&bounded, (uint64_t)3 << 62) == want);
    }
    assert_in_range(skipped, 20, 150);
}

static void
both_words_of_a_seed_count(void **state)
{
    struct numpy_rng low, high;
    numpy_rng_init(&low, 5);
    numpy_rng_init(&high, 5 | (uint64_t)1 << 32);
    assert_true(numpy_rng_next64(&low) != numpy_rng_next64(&high));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_seed_sequence_equals_its_reference),
        cmocka_unit_test(the_raw_stream_equals_numpy),
        cmocka_unit_test(halves_are_drawn_low_first),
        cmocka_unit_test(small_bounds_are_drawn_from_32_bits),
        cmocka_unit_test(bounds_at_the_word_size_are_exact),
        cmocka_unit_test(rejected_draws_are_skipped),
        cmocka_unit_test(both_words_of_a_seed_count),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
