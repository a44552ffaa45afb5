#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/tiering/cold_fixture.h"
#include "tiering/slot_store.h"

static const struct step_range nothing = {1, 0};

static uint64_t given_bytes, refuse_from;
static int n_given;

static void *
give(void *arg, size_t size)
{
    if ((uint64_t)n_given++ >= refuse_from)
        return NULL;
    given_bytes += size;
    return malloc(size);
}

static void
take_back(void *arg, void *chunk, size_t size)
{
    given_bytes -= size;
    free(chunk);
}

static const struct chunk_ops memory = {.alloc = give, .free = take_back, .arg = NULL};

static void
open_store(struct slot_store *store, uint32_t bundle, uint64_t budget)
{
    given_bytes = 0;
    n_given = 0;
    refuse_from = UINT64_MAX;
    struct err err = ERR_INIT;
    assert_int_equal(slot_store_init(store, bundle, &memory, budget, &err), 0);
}

/* Fills the store with bundles 0, 1, ... until one has to leave; returns how many fit. */
static uint32_t
fill(struct slot_store *store)
{
    uint32_t n = 0;
    for (;; n++) {
        uint32_t at = slot_store_take(store, 0, n, nothing, ARRIVAL_DEMAND, false);
        if (at == NODE_NONE)
            return n;
        memset(slot_store_address(store, at), (int)n, store->slot_bytes);
        slot_store_settle(store, at, ARRIVAL_DEMAND);
        assert_true(slot_store_used(store) <= store->budget_bytes);
        assert_true(given_bytes <= slot_store_used(store));
        if (store->evictions[0])
            return n;
    }
}

static uint32_t
find(const struct slot_store *store, uint64_t mix)
{
    return slot_store_find(store, bundle_hash(0, mix), 0, mix);
}

static void
a_budget_is_never_exceeded_and_well_used(void **state)
{
    static const uint32_t bundle[] = {136, 1280, 2112, 2560, 200};
    static const uint64_t budget[] = {1 << 20, 3000000, 8 << 20, 50000000};
    for (int b = 0; b < 5; b++)
        for (int i = 0; i < 4; i++) {
            struct slot_store store;
            open_store(&store, bundle[b], budget[i]);
            uint64_t slots = fill(&store) * (uint64_t)store.slot_bytes;
            if (slots * 100 < budget[i] * 80)
                fail_msg("%u-byte bundles: %llu of %llu bytes hold bundles", bundle[b],
                         (unsigned long long)slots, (unsigned long long)budget[i]);
            slot_store_free(&store);
            assert_int_equal(given_bytes, 0);
        }
}

static void
small_budgets_work_down_to_nothing(void **state)
{
    for (uint64_t budget = 0; budget < 70000; budget += 1237) {
        struct slot_store store;
        open_store(&store, 136, budget);
        uint32_t n = fill(&store);
        if (budget >= 65536)
            assert_true(n * 136 > budget / 2);
        if (budget < 4096)
            assert_int_equal(n, 0);
        slot_store_free(&store);
    }
}

static void
a_huge_budget_costs_what_is_used(void **state)
{
    struct slot_store store;
    open_store(&store, 136, UINT64_MAX / 2);
    for (uint32_t i = 0; i < 1000; i++) {
        uint32_t at = slot_store_take(&store, 0, i, nothing, ARRIVAL_DEMAND, false);
        slot_store_settle(&store, at, ARRIVAL_DEMAND);
    }
    assert_true(slot_store_used(&store) < 4 << 20);
    slot_store_free(&store);
}

static void
a_store_grown_from_nothing_by_resize_uses_its_new_budget(void **state)
{
    struct slot_store store;
    open_store(&store, 136, 0);
    assert_int_equal(fill(&store), 0);
    slot_store_resize(&store, 65536, nothing);
    uint32_t small = fill(&store);
    slot_store_resize(&store, 32 << 20, nothing);
    store.evictions[0] = 0;
    uint32_t large = 0;
    for (uint64_t mix = 1000000; !store.evictions[0]; mix++, large++) {
        uint32_t at = slot_store_take(&store, 0, mix, nothing, ARRIVAL_DEMAND, false);
        slot_store_settle(&store, at, ARRIVAL_DEMAND);
        assert_true(slot_store_used(&store) <= 32 << 20);
    }
    assert_true((small + large) * 136ull > (32 << 20) * 8ull / 10);
    slot_store_free(&store);
}

static void
a_shrunk_store_is_below_its_budget_and_finds_what_stayed(void **state)
{
    static const uint64_t target[] = {6 << 20, 4 << 20, 100000, 4096, 0};
    struct slot_store store;
    open_store(&store, 136, 8 << 20);
    uint32_t n = fill(&store);
    for (int i = 0; i < 5; i++) {
        slot_store_resize(&store, target[i], nothing);
        assert_true(slot_store_used(&store) <= target[i]);
        uint32_t found = 0;
        for (uint32_t mix = 0; mix <= n; mix++) {
            uint32_t at = find(&store, mix);
            if (at == NODE_NONE)
                continue;
            found++;
            const uint8_t *bytes = slot_store_address(&store, at);
            assert_int_equal(bytes[0], (uint8_t)mix);
            assert_int_equal(bytes[135], (uint8_t)mix);
        }
        assert_int_equal(found, store.taken[0]);
        if (target[i] >= 1 << 20) /* chunks here are of 1 MiB */
            assert_true(found * 136ull > target[i] * 6 / 10);
    }
    assert_int_equal(store.taken[0], 0);
    slot_store_free(&store);
}

static void
what_a_step_uses_survives_a_shrink_until_the_step_is_over(void **state)
{
    struct slot_store store;
    struct step_range keep = {10, 1};
    open_store(&store, 136, 1 << 20);
    uint32_t n = fill(&store), used = n - 1, filling;
    uint32_t at = find(&store, used);
    slot_store_slot(&store, at)->last_step = 10;
    slot_store_resize(&store, 0, keep);
    assert_int_equal(find(&store, used), at);
    const uint8_t *bytes = slot_store_address(&store, at);
    assert_int_equal(bytes[100], (uint8_t)used);
    assert_int_equal(slot_store_take(&store, 0, 999999, keep, ARRIVAL_DEMAND, false), NODE_NONE);
    slot_store_tidy(&store, keep);
    assert_int_equal(find(&store, used), at);
    slot_store_tidy(&store, nothing);
    assert_int_equal(find(&store, used), NODE_NONE);
    assert_int_equal(slot_store_used(&store), 0);
    assert_int_equal(given_bytes, 0);

    /* So does a slot that is being filled; what lands in a leaving chunk goes with it. */
    slot_store_resize(&store, 1 << 20, nothing);
    filling = slot_store_take(&store, 0, 5, nothing, ARRIVAL_DEMAND, false);
    slot_store_resize(&store, 0, nothing);
    assert_true(given_bytes > 0);
    slot_store_settle(&store, filling, ARRIVAL_DEMAND);
    assert_int_equal(find(&store, 5), filling);
    slot_store_tidy(&store, nothing);
    assert_int_equal(find(&store, 5), NODE_NONE);
    assert_int_equal(given_bytes, 0);
    slot_store_free(&store);
}

static void
memory_that_is_refused_is_asked_for_again_later(void **state)
{
    struct slot_store store;
    open_store(&store, 136, 1 << 20);
    refuse_from = 0;
    assert_int_equal(slot_store_take(&store, 0, 1, nothing, ARRIVAL_DEMAND, false), NODE_NONE);
    refuse_from = UINT64_MAX;
    uint32_t at = NODE_NONE;
    int tries = 0;
    while (at == NODE_NONE && tries++ < 10000)
        at = slot_store_take(&store, 0, 1, nothing, ARRIVAL_DEMAND, false);
    assert_int_not_equal(at, NODE_NONE);
    assert_true(tries > 1); /* not hammered in between */
    slot_store_drop(&store, at);
    assert_int_equal(find(&store, 1), NODE_NONE);
    slot_store_free(&store);
}

static void
a_listed_slot_is_found_while_it_is_filled_and_gone_when_dropped(void **state)
{
    struct slot_store store;
    open_store(&store, 136, 1 << 20);
    uint32_t at = slot_store_take(&store, 3, 77, nothing, ARRIVAL_DEMAND, true);
    assert_int_equal(slot_store_find(&store, bundle_hash(3, 77), 3, 77), at);
    assert_int_equal(store.taken[3], 1);
    slot_store_drop(&store, at);
    assert_int_equal(slot_store_find(&store, bundle_hash(3, 77), 3, 77), NODE_NONE);
    assert_int_equal(store.taken[3], 0);
    slot_store_free(&store);
}

static void
budgets_that_change_at_random_hold_at_every_moment(void **state)
{
    struct slot_store store;
    uint64_t random = 1;
    open_store(&store, 1280, 1 << 20);
    for (int turn = 0; turn < 300; turn++) {
        uint64_t budget = next_random(&random) % (1u << (10 + next_random(&random) % 15));
        refuse_from = next_random(&random) % 4 ? UINT64_MAX : (uint64_t)n_given + 3;
        slot_store_resize(&store, budget, nothing);
        assert_true(slot_store_used(&store) <= budget);
        for (int i = 0; i < 400; i++) {
            uint64_t mix = next_random(&random) % 3000;
            if (find(&store, mix) != NODE_NONE)
                continue;
            if (slot_store_is_full(&store))
                assert_false(slot_store_make_room(&store));
            uint32_t at = slot_store_take(&store, 0, mix, nothing, ARRIVAL_DEMAND, false);
            if (at == NODE_NONE)
                continue;
            memset(slot_store_address(&store, at), 1, store.slot_bytes);
            slot_store_settle(&store, at, ARRIVAL_DEMAND);
            assert_true(slot_store_used(&store) <= budget);
        }
    }
    slot_store_free(&store);
    assert_int_equal(given_bytes, 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_budget_is_never_exceeded_and_well_used),
        cmocka_unit_test(small_budgets_work_down_to_nothing),
        cmocka_unit_test(a_huge_budget_costs_what_is_used),
        cmocka_unit_test(a_store_grown_from_nothing_by_resize_uses_its_new_budget),
        cmocka_unit_test(a_shrunk_store_is_below_its_budget_and_finds_what_stayed),
        cmocka_unit_test(what_a_step_uses_survives_a_shrink_until_the_step_is_over),
        cmocka_unit_test(memory_that_is_refused_is_asked_for_again_later),
        cmocka_unit_test(a_listed_slot_is_found_while_it_is_filled_and_gone_when_dropped),
        cmocka_unit_test(budgets_that_change_at_random_hold_at_every_moment),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
