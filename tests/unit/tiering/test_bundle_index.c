#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/tiering/cold_fixture.h"
#include "tiering/bundle_index.h"

enum { N = 5000 };

static struct bundle_node node[N];
static uint8_t *block = (uint8_t *)node;
static const struct node_space space = {&block, 31, sizeof node[0]};

static uint32_t
find(const struct bundle_index *index, uint8_t set, uint64_t mix)
{
    return bundle_index_find(index, bundle_hash(set, mix), set, mix);
}

static void
fill_nodes(uint64_t seed)
{
    for (int i = 0; i < N; i++)
        node[i] = (struct bundle_node){.mix = next_random(&seed) >> 1, .set = (uint8_t)(i % 40)};
}

static void
an_empty_index_finds_nothing_and_costs_nothing(void **state)
{
    struct bundle_index index;
    bundle_index_init(&index, &space);
    assert_int_equal(find(&index, 0, 0), NODE_NONE);
    assert_int_equal(bundle_index_bytes(&index), 0);
    bundle_index_trim(&index, 0);
    bundle_index_free(&index);
}

static void
equal_mixes_of_different_sets_are_different_bundles(void **state)
{
    struct bundle_index index;
    bundle_index_init(&index, &space);
    assert_int_equal(bundle_index_reserve(&index, 1), 0);
    for (uint32_t i = 0; i < 40; i++) {
        node[i] = (struct bundle_node){.mix = 12345, .set = (uint8_t)i};
        bundle_index_insert(&index, i);
    }
    for (uint32_t i = 0; i < 40; i++)
        assert_int_equal(find(&index, (uint8_t)i, 12345), i);
    assert_int_equal(find(&index, 40, 12345), NODE_NONE);
    assert_int_equal(find(&index, 0, 12346), NODE_NONE);
    bundle_index_free(&index);
}

static void
everything_is_found_at_every_size_on_the_way_up_and_down(void **state)
{
    struct bundle_index index;
    bundle_index_init(&index, &space);
    fill_nodes(1);
    for (uint32_t n = 0; n < N; n++) {
        if (n % 7 == 0)
            assert_int_equal(bundle_index_reserve(&index, n + 7), 0);
        bundle_index_insert(&index, n);
        assert_true(index.buckets <= index.count && index.buckets <= index.n_segments * 256);
        if (n % 251 == 0)
            for (uint32_t i = 0; i < N; i++)
                assert_int_equal(find(&index, node[i].set, node[i].mix), i <= n ? i : NODE_NONE);
    }
    uint64_t full = bundle_index_bytes(&index);
    for (uint32_t n = N; n-- > 0;) {
        bundle_index_remove(&index, n);
        if (n % 3 == 0)
            bundle_index_trim(&index, n);
        if (n % 251 == 0)
            for (uint32_t i = 0; i < N; i++)
                assert_int_equal(find(&index, node[i].set, node[i].mix), i < n ? i : NODE_NONE);
    }
    assert_true(full >= N * 4 && full < N * 4 * 2);
    assert_int_equal(bundle_index_bytes(&index), 0);
    bundle_index_free(&index);
}

static void
more_bundles_than_reserved_heads_only_lengthen_chains(void **state)
{
    struct bundle_index index;
    bundle_index_init(&index, &space);
    fill_nodes(2);
    assert_int_equal(bundle_index_reserve(&index, 1), 0);
    uint64_t bytes = bundle_index_bytes(&index);
    for (uint32_t n = 0; n < 2000; n++)
        bundle_index_insert(&index, n);
    assert_int_equal(bundle_index_bytes(&index), bytes);
    bundle_index_trim(&index, 0); /* not below what it holds: one segment stays */
    for (uint32_t n = 0; n < 2000; n++)
        assert_int_equal(find(&index, node[n].set, node[n].mix), n);
    bundle_index_free(&index);
}

static void
the_bytes_foretold_are_the_bytes_taken(void **state)
{
    struct bundle_index index;
    bundle_index_init(&index, &space);
    uint64_t random = 3;
    for (uint32_t heads = 0; heads < 100000;) {
        heads += (uint32_t)(next_random(&random) % 5000);
        uint64_t foretold = bundle_index_bytes_for(&index, heads);
        assert_int_equal(bundle_index_reserve(&index, heads), 0);
        assert_int_equal(bundle_index_bytes(&index), foretold);
    }
    for (uint32_t heads = 90000; heads > 0; heads /= 2) {
        bundle_index_trim(&index, heads);
        assert_int_equal(bundle_index_bytes(&index), bundle_index_bytes_trimmed(heads));
    }
    bundle_index_free(&index);
}

static void
random_inserts_and_removals_agree_with_a_plain_array(void **state)
{
    struct bundle_index index;
    static bool in[N];
    bundle_index_init(&index, &space);
    fill_nodes(4);
    memset(in, 0, sizeof in);
    uint64_t random = 5;
    uint32_t count = 0;
    assert_int_equal(bundle_index_reserve(&index, 10), 0);
    for (int turn = 0; turn < 100000; turn++) {
        uint32_t i = (uint32_t)(next_random(&random) % N);
        assert_int_equal(find(&index, node[i].set, node[i].mix), in[i] ? i : NODE_NONE);
        if (in[i])
            bundle_index_remove(&index, i);
        else
            bundle_index_insert(&index, i);
        count += in[i] ? -1u : 1;
        in[i] = !in[i];
        assert_int_equal(index.count, count);
        if (turn % 1000 == 0)
            assert_int_equal(bundle_index_reserve(&index, count), 0);
        if (turn % 1700 == 0)
            bundle_index_trim(&index, count / 2);
    }
    bundle_index_free(&index);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_empty_index_finds_nothing_and_costs_nothing),
        cmocka_unit_test(equal_mixes_of_different_sets_are_different_bundles),
        cmocka_unit_test(everything_is_found_at_every_size_on_the_way_up_and_down),
        cmocka_unit_test(more_bundles_than_reserved_heads_only_lengthen_chains),
        cmocka_unit_test(the_bytes_foretold_are_the_bytes_taken),
        cmocka_unit_test(random_inserts_and_removals_agree_with_a_plain_array),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
