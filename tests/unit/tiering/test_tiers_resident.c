/* Tables that are resident as a whole: one behaviour at a time; test_tiers_model.c mixes them with
 * tables on disk. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/tiering/tiers_fixture.h"

enum { ROWS = 96, BUNDLE_MAX = 4096 };

static struct tiers_options options;
static struct counted_memory hbm, ram;
static struct tiers *tiers;
static uint64_t mix[ROWS * MAX_ORDERS];
static struct bundle_address address[ROWS * MAX_ORDERS];
static uint8_t failed[ROWS], skip[ROWS];

static struct cold_store *cold;
static struct cold_store_ops refusing_ops;

/* The null store, for tables that must not be read. */
static void
refuse_submit(struct cold_store *store, struct cold_read **reads, int n)
{
    fail_msg("%d reads of a resident table, the first of file %d", n, reads[0]->file);
}

static void
open_with(int variant, bool device, uint64_t hbm_budget, int in_place_below, int threads)
{
    ASSERT(null_store_open(&cold, NULL, NULL) == 0);
    refusing_ops = *cold->ops;
    refusing_ops.submit = refuse_submit;
    cold->ops = &refusing_ops;
    hbm = ram = (struct counted_memory){0};
    rng = 1;
    options = (struct tiers_options){.cold = cold,
                                     .hbm_memory = {.alloc = counted_alloc, .free = counted_free, .arg = &hbm},
                                     .ram_memory = {.alloc = counted_alloc, .free = counted_free, .arg = &ram},
                                     .hbm_budget_bytes = hbm_budget,
                                     .ram_budget_bytes = 1 << 20,
                                     .row_share = 0.5, /* of nothing: no table is on disk */
                                     .max_step_rows = ROWS,
                                     .steps_in_flight = 3,
                                     .in_place_below = in_place_below,
                                     .gather_threads = threads};
    shape_options(&options, variant);
    for (int t = 0; t < MAX_TABLES; t++)
        make_resident(&options, t, device);
    tiers = new_tiers(&options);
}

static void
close_tiers(void)
{
    tiers = tiers_free(tiers);
    assert_int_equal(hbm.bytes, 0);
    assert_int_equal(ram.bytes, 0);
    cold->ops->close(cold);
    free_resident(&options);
}

static void
rows(uint64_t first, int n)
{
    for (int i = 0; i < n * MAX_ORDERS; i++)
        mix[i] = (first + (uint64_t)(i / MAX_ORDERS)) * 0xd1342543de82ef95u;
    memset(address, 0xFF, sizeof address);
    memset(failed, 0, sizeof failed);
    memset(skip, 0, sizeof skip);
}

static void
resolve(uint64_t step, int n)
{
    struct flag flag = {0};
    struct tiers_request request = {.step = step,
                                    .table = 1,
                                    .resident = options.resident[1].weights,
                                    .n_rows = n,
                                    .mix = mix,
                                    .address = address,
                                    .failed = failed,
                                    .skip = skip,
                                    .ready = &flag,
                                    .ready_value = step};
    tiers_resolve(tiers, &request);
    assert_int_equal(flag_read(&flag), step); /* before it returns */
    for (int r = 0; r < n; r++)
        assert_int_equal(failed[r], 0);
}

/* What the step's gather does with the n rows. */
static void
gather(int n)
{
    uint8_t got[BUNDLE_MAX];
    for (int i = 0; i < n * MAX_ORDERS; i++) {
        if (skip[i / MAX_ORDERS]) {
            assert_null(address[i].source);
            assert_null(address[i].promote);
            continue;
        }
        assert_non_null(address[i].source);
        read_source(&options, 1, i % MAX_ORDERS, mix[i], address[i].source, got);
        expect_bundle(&options, 1, i % MAX_ORDERS, mix[i], got);
        if (address[i].promote)
            memcpy(address[i].promote, got, (size_t)engram_bundle_bytes(&options.engram));
    }
}

static void
run_step(uint64_t step, int n)
{
    resolve(step, n);
    gather(n);
    tiers_step_done(tiers, step);
}

static struct tier_set_stats
stats_of(int tier, int order)
{
    struct tiers_stats stats;
    tiers_stats(tiers, &stats);
    assert_int_equal(stats.slice_bytes, 0);
    return stats.tier[tier].set[1][order - 2];
}

static int
count_sources(const void *source, int n)
{
    int found = 0;
    for (int i = 0; i < n * MAX_ORDERS; i++)
        found += address[i].source == source;
    return found;
}

static int
count_promotions(int n)
{
    int found = 0;
    for (int i = 0; i < n * MAX_ORDERS; i++)
        found += address[i].promote && !skip[i / MAX_ORDERS];
    return found;
}

static void
a_table_in_device_memory_is_read_where_it_is(void **state)
{
    for (int variant = 0; variant < 3; variant++) {
        open_with(variant, true, 1 << 20, 0, 0);
        for (uint64_t step = 1; step <= 3; step++) {
            rows(0, ROWS);
            skip[3] = 1;
            run_step(step, ROWS);
            assert_int_equal(count_sources(BUNDLE_IN_PLACE, ROWS), (ROWS - 1) * MAX_ORDERS);
            assert_int_equal(count_promotions(ROWS), 0);
        }
        assert_int_equal(stats_of(TIER_HBM, 3).hits, 3 * (ROWS - 1));
        assert_int_equal(stats_of(TIER_HBM, 3).bytes,
                         3 * (ROWS - 1) * engram_bundle_bytes(&options.engram));
        assert_int_equal(stats_of(TIER_HBM, 3).misses, 0);
        assert_int_equal(stats_of(TIER_RAM, 3).hits + stats_of(TIER_RAM, 3).misses, 0);
        assert_int_equal(hbm.bytes + ram.bytes, 0);
        close_tiers();
    }
}

static void
few_bundles_in_host_memory_are_read_in_place(void **state)
{
    for (int variant = 0; variant < 3; variant++) {
        open_with(variant, false, 1 << 20, 1 << 20, 0);
        rows(0, ROWS);
        run_step(1, ROWS);
        assert_int_equal(count_sources(BUNDLE_IN_PLACE, ROWS), ROWS * MAX_ORDERS);
        assert_int_equal(count_promotions(ROWS), ROWS * MAX_ORDERS);
        assert_int_equal(stats_of(TIER_HBM, 2).misses, ROWS);
        assert_int_equal(stats_of(TIER_RAM, 2).hits, ROWS);
        assert_int_equal(stats_of(TIER_RAM, 2).bytes, ROWS * engram_bundle_bytes(&options.engram));
        rows(0, ROWS);
        run_step(2, ROWS);
        assert_int_equal(count_sources(BUNDLE_IN_PLACE, ROWS), 0); /* HBM has them all */
        assert_int_equal(stats_of(TIER_HBM, 2).hits, ROWS);
        assert_int_equal(stats_of(TIER_RAM, 2).hits, ROWS);
        assert_int_equal(ram.bytes, 0); /* neither staging nor a RAM slot */
        close_tiers();
    }
}

static void
many_bundles_in_host_memory_are_gathered(void **state)
{
    for (int variant = 0; variant < 3; variant++)
        for (int threads = 1; threads <= 4; threads++) {
            open_with(variant, false, 1 << 20, ROWS * MAX_ORDERS, threads);
            rows(0, ROWS - 1);
            run_step(1, ROWS - 1); /* just too few */
            assert_int_equal(count_sources(BUNDLE_IN_PLACE, ROWS - 1), (ROWS - 1) * MAX_ORDERS);
            rows(1000, ROWS);
            run_step(2, ROWS);
            assert_int_equal(count_sources(BUNDLE_IN_PLACE, ROWS), 0);
            assert_int_equal(count_promotions(ROWS), ROWS * MAX_ORDERS);
            assert_int_equal(stats_of(TIER_RAM, 3).hits, 2 * ROWS - 1);
            close_tiers();
        }
}

static void
what_hbm_has_is_not_gathered_again(void **state)
{
    open_with(0, false, 1 << 20, 1, 2);
    rows(0, ROWS / 2);
    run_step(1, ROWS / 2);
    rows(0, ROWS); /* half of it is known */
    run_step(2, ROWS);
    assert_int_equal(count_promotions(ROWS), ROWS / 2 * MAX_ORDERS);
    for (int i = 0; i < ROWS * MAX_ORDERS; i++)
        assert_int_equal(address[i].promote == NULL, i < ROWS / 2 * MAX_ORDERS);
    assert_int_equal(stats_of(TIER_HBM, 2).hits, ROWS / 2);
    close_tiers();
}

static void
equal_ngrams_share_one_staging_slot_and_one_promotion(void **state)
{
    open_with(0, false, 1 << 20, 1, 2);
    rows(0, ROWS);
    for (int i = 0; i < ROWS * MAX_ORDERS; i++)
        mix[i] = 77; /* of both orders */
    run_step(1, ROWS);
    assert_ptr_not_equal(address[0].source, address[1].source);
    assert_int_equal(count_sources(address[0].source, ROWS), ROWS);
    assert_int_equal(count_sources(address[1].source, ROWS), ROWS);
    assert_int_equal(count_promotions(ROWS), MAX_ORDERS);
    assert_int_equal(stats_of(TIER_HBM, 2).promotions, 1);
    assert_int_equal(stats_of(TIER_RAM, 2).hits, ROWS);
    close_tiers();

    /* Fewer than in_place_below are different: in place, and one promotion again. */
    open_with(0, false, 1 << 20, MAX_ORDERS + 1, 2);
    for (int i = 0; i < ROWS * MAX_ORDERS; i++)
        mix[i] = UINT64_MAX;
    run_step(1, ROWS);
    assert_int_equal(count_sources(BUNDLE_IN_PLACE, ROWS), ROWS * MAX_ORDERS);
    assert_int_equal(count_promotions(ROWS), MAX_ORDERS);
    close_tiers();
}

static void
rows_that_are_skipped_are_not_gathered(void **state)
{
    for (int device = 0; device < 2; device++)
        for (int below = 1; below < 2000; below += 1000) {
            open_with(0, device, 1 << 20, below, 2);
            rows(0, ROWS);
            for (int r = 0; r < ROWS; r++)
                skip[r] = r % 3 != 0;
            run_step(1, ROWS);
            assert_int_equal(stats_of(TIER_HBM, 2).hits + stats_of(TIER_HBM, 2).misses, ROWS / 3);
            assert_int_equal(count_promotions(ROWS), device ? 0 : ROWS / 3 * MAX_ORDERS);
            rows(500, ROWS);
            memset(skip, 1, sizeof skip);
            run_step(2, ROWS);
            assert_int_equal(stats_of(TIER_HBM, 2).hits + stats_of(TIER_HBM, 2).misses, ROWS / 3);
            rows(0, 0);
            run_step(3, 0);
            rows(900, 1);
            run_step(4, 1);
            close_tiers();
        }
}

static void
an_aborted_step_takes_its_promotions_back(void **state)
{
    for (int below = 1; below < 2000; below += 1000) {
        open_with(0, false, 1 << 20, below, 2);
        rows(0, ROWS);
        resolve(1, ROWS);
        assert_int_equal(count_promotions(ROWS), ROWS * MAX_ORDERS);
        tiers_step_abort(tiers, 1);
        assert_int_equal(stats_of(TIER_HBM, 2).used_bytes, 0);
        rows(0, ROWS);
        run_step(2, ROWS);
        assert_int_equal(stats_of(TIER_HBM, 2).hits, 0);
        rows(0, ROWS);
        run_step(3, ROWS);
        assert_int_equal(stats_of(TIER_HBM, 2).hits, ROWS);
        close_tiers();
    }
}

/* A step reads nothing that a later one fills: neither while it runs beside it, nor after abort. */
static void
steps_in_flight_have_staging_slots_of_their_own(void **state)
{
    open_with(0, false, 0, 1, 2);
    static struct bundle_address first[ROWS * MAX_ORDERS];
    uint64_t staging = 0, step = 1;
    for (int turn = 0; turn < 20; turn++, step += 3) {
        static uint64_t first_mix[ROWS * MAX_ORDERS];
        rows(step * 1000, ROWS);
        resolve(step, ROWS);
        memcpy(first, address, sizeof first);
        memcpy(first_mix, mix, sizeof mix);
        rows(step * 1000 + 300, ROWS);
        resolve(step + 1, ROWS);
        tiers_step_abort(tiers, step + 1);
        rows(step * 1000 + 600, ROWS);
        resolve(step + 2, ROWS);
        gather(ROWS);
        for (int i = 0; i < ROWS * MAX_ORDERS; i++)
            expect_bundle(&options, 1, i % MAX_ORDERS, first_mix[i], first[i].source);
        /* The first is never reported in every other turn: it is over when a later one is done. */
        if (turn % 2)
            tiers_step_done(tiers, step);
        tiers_step_done(tiers, step + 2);
        struct tiers_stats stats;
        tiers_stats(tiers, &stats);
        if (turn == 0)
            staging = stats.staging_bytes;
        assert_int_equal(stats.staging_bytes, staging);
    }
    close_tiers();
}

static void
a_full_hbm_takes_a_bundle_at_its_second_look_up(void **state)
{
    for (int below = 1; below < 2000; below += 1000) {
        open_with(0, false, 8192, below, 2); /* room for some 60 bundles */
        uint64_t step = 1;
        for (; step < 8; step++) {
            rows(step * 1000, ROWS);
            run_step(step, ROWS);
        }
        uint64_t full = stats_of(TIER_HBM, 2).promotions + stats_of(TIER_HBM, 3).promotions;
        assert_true(full > 0 && full < ROWS * MAX_ORDERS);
        rows(50000, 4);
        run_step(step++, 4);
        assert_int_equal(count_promotions(4), 0);
        rows(50000, 4);
        run_step(step++, 4);
        assert_int_equal(count_promotions(4), 4 * MAX_ORDERS);
        rows(50000, 4);
        uint64_t hits = stats_of(TIER_HBM, 2).hits;
        run_step(step++, 4);
        assert_int_equal(stats_of(TIER_HBM, 2).hits, hits + 4);
        assert_true(stats_of(TIER_HBM, 2).evictions > 0);
        close_tiers();
    }
}

static void
budgets_change_while_steps_run(void **state)
{
    open_with(0, false, 1 << 20, 1, 2);
    for (uint64_t step = 1; step < 60; step++) {
        static const uint64_t size[] = {0, 1 << 20, 8192, 65536};
        rows(step / 2 * 40, ROWS);
        resolve(step, ROWS);
        tiers_resize(tiers, size[step % 4], size[(step + 1) % 4]);
        gather(ROWS);
        tiers_step_done(tiers, step);
        struct tiers_stats stats;
        tiers_stats(tiers, &stats);
        for (int tier = 0; tier < TIER_NVME; tier++)
            assert_true(stats.tier[tier].used_bytes <= stats.tier[tier].budget_bytes);
    }
    assert_true(stats_of(TIER_HBM, 2).hits > 0);
    close_tiers();
}

static void
without_staging_memory_rows_are_read_in_place(void **state)
{
    open_with(0, false, 1 << 20, 1, 2);
    close_tiers();
    for (uint32_t percent = 50; percent <= 100; percent += 50) {
        open_with(2, false, 0, 1, 2); /* slots of 1,600 bytes: several chunks */
        ram.fail_percent = percent;
        for (uint64_t step = 1; step < 4; step++) {
            /* Three steps in flight want more than was allocated at the start. */
            rows(step * 1000, ROWS);
            resolve(step, ROWS);
            gather(ROWS);
            if (step == 3 && percent == 100)
                assert_true(count_sources(BUNDLE_IN_PLACE, ROWS) > 0);
        }
        tiers_step_done(tiers, 3);
        close_tiers();
    }
}

static void
a_plan_for_a_resident_table_starts_nothing(void **state)
{
    open_with(0, false, 1 << 20, 0, 0);
    rows(0, ROWS);
    assert_true(tiers_is_resident(tiers, 1));
    assert_int_equal(tiers_prefetch(tiers, 1, 2, mix, ROWS, 1), 0);
    close_tiers();
}

static void
resident_options_that_cannot_be_are_refused(void **state)
{
    open_with(0, false, 0, 0, 0);
    struct tiers_options good = options;
    for (int i = 0; i < 4; i++) {
        options = good;
        if (i == 0)
            options.resident[1].scales = NULL;
        else if (i == 1)
            options.in_place_below = -1;
        else if (i == 2)
            options.gather_threads = -1;
        else
            options.gather_threads = 1 << 20;
        struct tiers *none = NULL;
        struct err err = ERR_INIT;
        if (tiers_new(&none, &options, &err) != -EINVAL)
            fail_msg("case %d was accepted", i);
        assert_null(none);
    }
    options = good;
    close_tiers();
    open_with(2, false, 0, 0, 0); /* has no scales */
    options.resident[0].scales = options.resident[0].weights;
    struct tiers *none = NULL;
    struct err err = ERR_INIT;
    assert_int_equal(tiers_new(&none, &options, &err), -EINVAL);
    options.resident[0].scales = NULL;
    close_tiers();
}

/* Sizes, repeats, skips, aborts and steps in flight at random. */
static void
random_steps_are_right(void **state)
{
    for (int seed = 0; seed < 24; seed++) {
        open_with(seed % 3, seed % 8 == 7, seed % 2 ? 8192 : 1 << 18, 1 + seed % 4 * 40, 3);
        rng = (uint64_t)seed;
        for (uint64_t step = 1; step < 150; step++) {
            int n = draw(4) == 0 ? 1 : draw(4) == 0 ? ROWS : (int)draw(ROWS + 1);
            uint32_t different = 1 + draw(draw(2) ? 8 : 1000);
            rows(0, n);
            for (int i = 0; i < n * MAX_ORDERS; i++)
                mix[i] = draw(20) ? draw(different) * 0xd1342543de82ef95u : next_random(&rng);
            for (int r = 0; r < n; r++)
                skip[r] = draw(10) == 0;
            resolve(step, n);
            gather(n);
            if (step < 3)
                continue;
            uint64_t over = step - 2; /* two steps stay in flight */
            if (draw(5) == 0)
                tiers_step_abort(tiers, over);
            else if (draw(10))
                tiers_step_done(tiers, over);
            else
                tiers_step_done(tiers, over + 1);
        }
        close_tiers();
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_table_in_device_memory_is_read_where_it_is),
        cmocka_unit_test(few_bundles_in_host_memory_are_read_in_place),
        cmocka_unit_test(many_bundles_in_host_memory_are_gathered),
        cmocka_unit_test(what_hbm_has_is_not_gathered_again),
        cmocka_unit_test(equal_ngrams_share_one_staging_slot_and_one_promotion),
        cmocka_unit_test(rows_that_are_skipped_are_not_gathered),
        cmocka_unit_test(an_aborted_step_takes_its_promotions_back),
        cmocka_unit_test(steps_in_flight_have_staging_slots_of_their_own),
        cmocka_unit_test(a_full_hbm_takes_a_bundle_at_its_second_look_up),
        cmocka_unit_test(budgets_change_while_steps_run),
        cmocka_unit_test(without_staging_memory_rows_are_read_in_place),
        cmocka_unit_test(a_plan_for_a_resident_table_starts_nothing),
        cmocka_unit_test(resident_options_that_cannot_be_are_refused),
        cmocka_unit_test(random_steps_are_right),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
