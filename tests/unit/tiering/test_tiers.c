/* One behaviour of the tiers at a time; test_tiers_model.c mixes them all. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/tiering/tiers_fixture.h"

enum { ROWS = 64, READS_PER_BUNDLE = 8 };

static struct tiers_options options;
static struct counted_memory hbm, ram;
static struct tiers *tiers;
static uint64_t mix[ROWS * MAX_ORDERS];
static struct bundle_address address[ROWS * MAX_ORDERS];
static uint8_t failed[ROWS];

static void
open_tiers_with_rows(uint64_t hbm_budget, uint64_t ram_budget, double row_share)
{
    hbm = ram = (struct counted_memory){0};
    rng = 1;
    options = (struct tiers_options){.cold = held_open(),
                                     .hbm_memory = {.alloc = counted_alloc, .free = counted_free, .arg = &hbm},
                                     .ram_memory = {.alloc = counted_alloc, .free = counted_free, .arg = &ram},
                                     .hbm_budget_bytes = hbm_budget,
                                     .ram_budget_bytes = ram_budget,
                                     .max_step_rows = ROWS,
                                     .steps_in_flight = 3,
                                     .row_share = row_share};
    shape_options(&options, 0);
    tiers = new_tiers(&options);
}

static void
open_tiers(uint64_t hbm_budget, uint64_t ram_budget)
{
    open_tiers_with_rows(hbm_budget, ram_budget, 0);
}

static void
close_tiers(void)
{
    let_back(HELD_MAX);
    tiers = tiers_free(tiers);
    assert_int_equal(hbm.bytes, 0);
    assert_int_equal(ram.bytes, 0);
}

/* Rows of mixes first, first + 1, ... for both orders. */
static void
rows(uint64_t first, int n)
{
    for (int i = 0; i < n * MAX_ORDERS; i++)
        mix[i] = first + (uint64_t)(i / MAX_ORDERS);
    memset(address, 0xFF, sizeof address);
    memset(failed, 0, sizeof failed);
}

static struct tiers_request
request_of(uint64_t step, int n, struct flag *flag)
{
    return (struct tiers_request){.step = step,
                                  .table = 1,
                                  .n_rows = n,
                                  .mix = mix,
                                  .address = address,
                                  .failed = failed,
                                  .ready = flag,
                                  .ready_value = step};
}

static void
resolve(uint64_t step, int n, struct flag *flag)
{
    struct tiers_request request = request_of(step, n, flag);
    tiers_resolve(tiers, &request);
}

static struct tier_set_stats
stats_of(int tier, int order)
{
    struct tiers_stats stats;
    tiers_stats(tiers, &stats);
    return stats.tier[tier].set[1][order - 2];
}

/* A whole step: resolve, land, gather, done. */
static void
run_step(uint64_t step, int n)
{
    struct flag flag = {0};
    resolve(step, n, &flag);
    land_all(tiers);
    assert_int_equal(flag_read(&flag), step);
    for (int i = 0; i < n * MAX_ORDERS; i++) {
        assert_non_null(address[i].source);
        expect_bundle(&options, 1, i % MAX_ORDERS, mix[i], address[i].source);
        if (address[i].promote)
            memcpy(address[i].promote, address[i].source,
                   (size_t)engram_bundle_bytes(&options.engram));
    }
    tiers_step_done(tiers, step);
}

static void
equal_ngrams_of_a_step_share_one_read_and_each_counts(void **state)
{
    open_tiers(0, 1 << 20);
    rows(5, ROWS);
    for (int i = 0; i < ROWS * MAX_ORDERS; i++)
        mix[i] = 5;
    struct flag flag = {0};
    resolve(1, ROWS, &flag);
    assert_int_equal(held()->n_held, MAX_ORDERS * READS_PER_BUNDLE);
    assert_int_equal(flag_read(&flag), 0);
    land_all(tiers);
    assert_int_equal(flag_read(&flag), 1);
    for (int i = MAX_ORDERS; i < ROWS * MAX_ORDERS; i++)
        assert_ptr_equal(address[i].source, address[i % MAX_ORDERS].source);
    assert_int_equal(stats_of(TIER_HBM, 2).misses, ROWS);
    assert_int_equal(stats_of(TIER_RAM, 2).misses, ROWS);
    assert_int_equal(stats_of(TIER_NVME, 2).hits, ROWS);
    assert_int_equal(stats_of(TIER_NVME, 2).bytes, engram_bundle_bytes(&options.engram));
    close_tiers();
}

static void
a_second_step_finds_in_ram_what_the_first_read(void **state)
{
    open_tiers(0, 1 << 20);
    rows(0, 10);
    run_step(1, 10);
    rows(0, 10);
    struct flag flag = {0};
    resolve(2, 10, &flag);
    assert_int_equal(flag_read(&flag), 2); /* before it returned */
    assert_int_equal(held()->n_held, 0);
    assert_int_equal(stats_of(TIER_RAM, 3).hits, 10);
    assert_int_equal(stats_of(TIER_RAM, 3).bytes, 10 * engram_bundle_bytes(&options.engram));
    assert_int_equal(stats_of(TIER_RAM, 3).promotions, 10);
    tiers_step_done(tiers, 2);
    close_tiers();
}

static void
a_request_without_rows_is_ready_at_once(void **state)
{
    open_tiers(0, 0);
    struct flag flag = {0};
    resolve(1, 0, &flag);
    assert_int_equal(flag_read(&flag), 1);
    tiers_step_done(tiers, 1);
    close_tiers();
}

static void
a_bundle_becomes_hot_only_after_its_step_is_done(void **state)
{
    open_tiers(1 << 20, 1 << 20);
    rows(0, 4);
    struct flag flag = {0};
    resolve(1, 4, &flag);
    land_all(tiers);
    void *slot = address[0].promote;
    assert_non_null(slot);
    rows(0, 4);
    struct flag again = {0};
    resolve(2, 4, &again); /* step 1 still runs */
    assert_int_equal(flag_read(&again), 2);
    assert_ptr_not_equal(address[0].source, slot);
    assert_null(address[0].promote);
    tiers_step_done(tiers, 1);
    tiers_step_done(tiers, 2);
    rows(0, 4);
    resolve(3, 4, &flag);
    assert_ptr_equal(address[0].source, slot);
    assert_int_equal(stats_of(TIER_HBM, 2).hits, 4);
    assert_int_equal(stats_of(TIER_HBM, 2).promotions, 4);
    tiers_step_done(tiers, 3);
    close_tiers();
}

static void
an_aborted_step_leaves_nothing_in_hbm(void **state)
{
    open_tiers(1 << 20, 1 << 20);
    rows(0, 4);
    struct flag flag = {0};
    resolve(1, 4, &flag);
    land_all(tiers);
    assert_non_null(address[0].promote);
    tiers_step_abort(tiers, 1);
    assert_int_equal(stats_of(TIER_HBM, 2).used_bytes, 0);
    rows(0, 4);
    run_step(2, 4);
    assert_int_equal(stats_of(TIER_HBM, 2).hits, 0);
    rows(0, 4);
    run_step(3, 4);
    assert_int_equal(stats_of(TIER_HBM, 2).hits, 4);
    close_tiers();
}

static void
a_step_that_is_never_reported_takes_its_promotions_back(void **state)
{
    open_tiers(1 << 20, 1 << 20);
    for (uint64_t step = 1; step < 20; step++) {
        rows(step * 10, 2);
        struct flag flag = {0};
        resolve(step, 2, &flag);
        land_all(tiers);
        if (step % 3 == 0) /* says that the two before are over, not that they ran */
            tiers_step_done(tiers, step);
        if (step % 3 == 0)
            assert_int_equal(stats_of(TIER_HBM, 2).used_bytes <= 8 * 2 * 72, 1);
    }
    close_tiers();
}

/* The step that is older fills no slot, since a newer one may have been given it, or its own
 * look-ups read it. */
static void
a_late_landing_of_an_older_step_promotes_nothing(void **state)
{
    open_tiers(1 << 20, 1 << 20);
    rows(0, 2);
    static struct bundle_address later_address[2 * MAX_ORDERS];
    struct flag flag = {0}, later = {0};
    resolve(1, 2, &flag);
    static uint64_t later_mix[2 * MAX_ORDERS] = {100, 100, 101, 101};
    struct tiers_request second = request_of(2, 2, &later);
    second.mix = later_mix;
    second.address = later_address;
    tiers_resolve(tiers, &second);
    land_all(tiers);
    assert_int_equal(flag_read(&flag), 1);
    assert_int_equal(flag_read(&later), 2);
    for (int i = 0; i < 2 * MAX_ORDERS; i++) {
        assert_null(address[i].promote);
        assert_non_null(later_address[i].promote);
    }
    tiers_step_done(tiers, 1);
    tiers_step_done(tiers, 2);
    close_tiers();
}

static void
a_row_that_cannot_be_read_fails_alone_and_is_tried_again(void **state)
{
    open_tiers(1 << 20, 1 << 20);
    rows(0, 8);
    struct flag flag = {0};
    resolve(1, 8, &flag);
    /* The first read of the fourth row's first bundle fails. */
    struct held_store *store = held();
    struct cold_read *bad = store->held[3 * MAX_ORDERS * READS_PER_BUNDLE];
    for (int i = 0; i < store->n_held; i++) {
        struct cold_read *read = store->held[i];
        read->result = read == bad ? -EIO : 0;
        for (uint32_t k = 0; k < read->size_bytes; k++)
            ((uint8_t *)read->dst)[k] = null_store_byte(read->file, read->offset_bytes + k);
        store->done[store->n_done++] = read;
    }
    store->n_held = 0;
    (void)tiers_poll(tiers);
    assert_int_equal(flag_read(&flag), 1);
    for (int r = 0; r < 8; r++) {
        assert_int_equal(failed[r], r == 3);
        assert_int_equal(address[r * MAX_ORDERS].source == NULL, r == 3);
        assert_int_equal(address[r * MAX_ORDERS].promote == NULL, r == 3);
        assert_non_null(address[r * MAX_ORDERS + 1].source);
    }
    assert_int_equal(stats_of(TIER_NVME, 2).misses, 1);
    assert_int_equal(stats_of(TIER_NVME, 2).hits, 7);
    tiers_step_abort(tiers, 1);
    rows(0, 8);
    resolve(2, 8, &flag);
    assert_int_equal(store->n_held, READS_PER_BUNDLE); /* that bundle alone */
    land_all(tiers);
    assert_int_equal(failed[3], 0);
    expect_bundle(&options, 1, 0, mix[3 * MAX_ORDERS], address[3 * MAX_ORDERS].source);
    tiers_step_done(tiers, 2);
    close_tiers();
}

static void
without_budgets_everything_passes_through_staging(void **state)
{
    open_tiers(0, 0);
    uint64_t staging = 0;
    for (uint64_t step = 1; step <= 50; step++) {
        rows(step * 1000, ROWS);
        run_step(step, ROWS);
        struct tiers_stats stats;
        tiers_stats(tiers, &stats);
        assert_int_equal(stats.tier[TIER_RAM].used_bytes, 0);
        assert_int_equal(stats.tier[TIER_HBM].used_bytes, 0);
        if (step == 1)
            staging = stats.staging_bytes;
        assert_int_equal(stats.staging_bytes, staging); /* each step gives its slots back */
    }
    assert_int_equal(stats_of(TIER_NVME, 2).hits, 50 * ROWS);
    close_tiers();
}

static void
steps_in_flight_share_what_is_staged_until_the_last_is_done(void **state)
{
    open_tiers(0, 0);
    rows(7, 1);
    struct flag flag = {0};
    resolve(1, 1, &flag);
    land_all(tiers);
    const void *source = address[0].source;
    resolve(2, 1, &flag);
    assert_int_equal(flag_read(&flag), 2);
    assert_int_equal(held()->n_held, 0);
    assert_ptr_equal(address[0].source, source);
    tiers_step_done(tiers, 1);
    for (int i = 0; i < ROWS * MAX_ORDERS; i++)
        mix[i] = 1000 + (uint64_t)i;
    struct flag third = {0};
    static struct bundle_address other[ROWS * MAX_ORDERS];
    struct tiers_request request = request_of(3, ROWS, &third);
    request.address = other;
    tiers_resolve(tiers, &request);
    land_all(tiers);
    for (int i = 0; i < ROWS * MAX_ORDERS; i++)
        assert_ptr_not_equal(other[i].source, source);
    expect_bundle(&options, 1, 0, 7, source); /* step 2 still reads it */
    tiers_step_done(tiers, 2);
    tiers_step_done(tiers, 3);
    close_tiers();
}

static void
rows_that_are_skipped_cost_nothing(void **state)
{
    open_tiers(1 << 20, 1 << 20);
    rows(0, 4);
    uint8_t skip[4] = {0, 1, 1, 0};
    struct flag flag = {0};
    struct tiers_request request = request_of(1, 4, &flag);
    request.skip = skip;
    tiers_resolve(tiers, &request);
    assert_int_equal(held()->n_held, 2 * MAX_ORDERS * READS_PER_BUNDLE);
    land_all(tiers);
    for (int r = 0; r < 4; r++)
        for (int o = 0; o < MAX_ORDERS; o++) {
            assert_int_equal(address[r * MAX_ORDERS + o].source == NULL, skip[r]);
            assert_int_equal(address[r * MAX_ORDERS + o].promote == NULL, skip[r]);
        }
    assert_int_equal(failed[1], 0);
    assert_int_equal(stats_of(TIER_HBM, 2).misses, 2);
    tiers_step_done(tiers, 1);
    close_tiers();
}

static void
a_full_hbm_takes_what_was_found_in_ram_twice(void **state)
{
    open_tiers(8192, 1 << 20); /* HBM for some 60 bundles */
    uint64_t step = 1;
    for (; step < 8; step++) {
        rows(step * 1000, ROWS);
        run_step(step, ROWS);
    }
    uint64_t before = stats_of(TIER_HBM, 2).promotions;
    for (int turn = 0; turn < 4; turn++, step++) { /* read; found; found again; hot */
        rows(50000, 4);
        run_step(step, 4);
        for (int i = 0; i < 4 * MAX_ORDERS; i++)
            assert_int_equal(address[i].promote != NULL, turn == 2);
    }
    assert_int_equal(stats_of(TIER_HBM, 2).promotions, before + 4);
    assert_int_equal(stats_of(TIER_HBM, 2).hits, 4);
    close_tiers();
}

static void
resident_rows_answer_without_a_read(void **state)
{
    open_tiers_with_rows(0, 1 << 20, 1);
    land_all(tiers);
    rows(12345, ROWS);
    struct flag flag = {0};
    resolve(1, ROWS, &flag);
    assert_int_equal(flag_read(&flag), 1);
    assert_int_equal(held()->n_held, 0);
    for (int i = 0; i < ROWS * MAX_ORDERS; i++)
        expect_bundle(&options, 1, i % MAX_ORDERS, mix[i], address[i].source);
    assert_int_equal(stats_of(TIER_RAM, 2).hits, ROWS);
    assert_int_equal(stats_of(TIER_RAM, 2).misses, 0);
    assert_int_equal(tiers_prefetch(tiers, 1, 2, mix, 4, 1), 0);
    /* Source addresses are copies: a step that runs does not mind the slice going. */
    tiers_resize(tiers, 0, 0);
    for (int i = 0; i < ROWS * MAX_ORDERS; i++)
        expect_bundle(&options, 1, i % MAX_ORDERS, mix[i], address[i].source);
    tiers_step_done(tiers, 1);
    struct tiers_stats stats;
    tiers_stats(tiers, &stats);
    assert_int_equal(stats.tier[TIER_RAM].used_bytes, 0);
    rows(12345, ROWS);
    run_step(2, ROWS);
    assert_int_equal(stats_of(TIER_NVME, 2).hits, ROWS);
    close_tiers();
}

static void
some_resident_rows_save_some_reads_of_a_bundle(void **state)
{
    open_tiers_with_rows(0, 2000, 1); /* the scales alone: 2 x some 900 bytes */
    land_all(tiers);
    struct tiers_stats stats;
    tiers_stats(tiers, &stats);
    assert_true(stats.slice_bytes > 0 && stats.slice_bytes <= 2000);
    rows(7, 2);
    struct flag flag = {0};
    resolve(1, 2, &flag);
    assert_int_equal(held()->n_held, 2 * MAX_ORDERS * READS_PER_BUNDLE / 2);
    land_all(tiers);
    for (int i = 0; i < 2 * MAX_ORDERS; i++)
        expect_bundle(&options, 1, i % MAX_ORDERS, mix[i], address[i].source);
    assert_int_equal(stats_of(TIER_RAM, 2).misses, 2);
    tiers_step_done(tiers, 1);
    close_tiers();
}

static void
a_plan_is_read_ahead_and_its_use_is_counted(void **state)
{
    open_tiers(0, 4 << 20);
    uint64_t plan[10];
    for (uint64_t i = 0; i < 10; i++)
        plan[i] = i;
    assert_int_equal(tiers_prefetch(tiers, 1, 2, plan, 10, 1000), 10);
    assert_int_equal(tiers_prefetch(tiers, 1, 2, plan, 10, 1000), 0); /* on their way */
    land_all(tiers);
    assert_int_equal(tiers_prefetch(tiers, 1, 2, plan, 10, 1000), 0); /* here */
    assert_int_equal(tiers_prefetch(tiers, 1, 3, plan, 5, 1000), 5);  /* another order */
    rows(0, 10);
    struct flag flag = {0};
    resolve(1, 10, &flag);
    land_all(tiers);
    struct tiers_stats stats;
    tiers_stats(tiers, &stats);
    assert_int_equal(stats.prefetched, 15);
    assert_int_equal(stats.prefetch_used, 10);
    assert_int_equal(stats.prefetch_late, 5);
    assert_int_equal(stats_of(TIER_RAM, 2).hits, 10);
    assert_int_equal(stats_of(TIER_RAM, 3).hits, 0);
    tiers_step_done(tiers, 1);
    close_tiers();
}

static void
a_plan_takes_a_bounded_share_and_nothing_without_ram(void **state)
{
    open_tiers(1 << 20, 0);
    uint64_t plan[4000];
    for (uint64_t i = 0; i < 4000; i++)
        plan[i] = i;
    assert_int_equal(tiers_prefetch(tiers, 0, 2, plan, 4000, 1000), 0);
    close_tiers();

    open_tiers(0, 1 << 20);
    rows(100000, ROWS);
    run_step(1, ROWS);
    int started = tiers_prefetch(tiers, 0, 2, plan, 4000, 1000);
    uint64_t slots = (1 << 20) / (72 + 28);
    assert_true(started > 0 && (uint64_t)started <= slots / 8);
    land_all(tiers);
    assert_int_equal(tiers_prefetch(tiers, 0, 2, plan, 4000, 1000), 0);
    rows(100000, ROWS);
    run_step(2, ROWS); /* all still there */
    assert_int_equal(stats_of(TIER_RAM, 2).hits, ROWS);
    close_tiers();
}

static void
a_step_overtakes_the_plans_before_it(void **state)
{
    open_tiers(0, 8 << 20);
    uint64_t plan[2000];
    for (uint64_t i = 0; i < 2000; i++)
        plan[i] = i;
    assert_true(tiers_prefetch(tiers, 1, 2, plan, 2000, 1000) > 1000);
    int planned = held()->n_held;
    assert_true(planned < 100 * READS_PER_BUNDLE); /* few at a time (F4) */
    rows(100000, 4);
    struct flag flag = {0};
    resolve(1, 4, &flag);
    assert_int_equal(held()->n_held, planned + 4 * MAX_ORDERS * READS_PER_BUNDLE);
    rows(1500, 4); /* planned, but not yet begun: read now, once */
    struct flag other = {0};
    static struct bundle_address other_address[4 * MAX_ORDERS];
    struct tiers_request request = request_of(2, 4, &other);
    request.address = other_address;
    tiers_resolve(tiers, &request);
    assert_int_equal(held()->n_held, planned + 2 * 4 * MAX_ORDERS * READS_PER_BUNDLE);
    land_all(tiers);
    assert_int_equal(flag_read(&other), 2);
    tiers_step_done(tiers, 2);
    close_tiers();
}

static void
a_prefill_does_not_flush_what_decode_uses(void **state)
{
    open_tiers(0, 256 << 10); /* about 2,400 bundles */
    uint64_t step = 1;
    for (int turn = 0; turn < 4; turn++) {
        rows(0, ROWS); /* decode: 128 bundles, again and again */
        run_step(step++, ROWS);
    }
    uint64_t before = stats_of(TIER_RAM, 2).hits;
    for (uint64_t chunk = 0; chunk < 200; chunk++) { /* a prompt of 25,600 bundles */
        rows(1000000 + chunk * ROWS, ROWS);
        run_step(step++, ROWS);
    }
    rows(0, ROWS);
    run_step(step++, ROWS);
    assert_int_equal(stats_of(TIER_RAM, 2).hits - before, ROWS);
    close_tiers();
}

static void
memory_that_is_refused_fails_rows_and_nothing_else(void **state)
{
    open_tiers(1 << 20, 1 << 20);
    hbm.fail_percent = ram.fail_percent = 100;
    rows(0, 4);
    struct flag flag = {0};
    resolve(1, 4, &flag);
    assert_int_equal(flag_read(&flag), 1);
    for (int r = 0; r < 4; r++)
        assert_int_equal(failed[r], 1);
    tiers_step_abort(tiers, 1);
    hbm.fail_percent = ram.fail_percent = 0;
    rows(0, 4);
    run_step(2, 4);
    close_tiers();
}

static void
tiers_are_freed_with_steps_open_and_reads_under_way(void **state)
{
    open_tiers(1 << 20, 1 << 20);
    uint64_t plan[] = {1, 2, 3};
    rows(0, ROWS);
    struct flag flag = {0};
    resolve(1, ROWS, &flag);
    assert_int_equal(tiers_prefetch(tiers, 1, 2, plan, 3, 5), 0);
    memset(address, 0x11, sizeof address);
    close_tiers();
    assert_int_equal(flag_read(&flag), 0);
    for (size_t i = 0; i < sizeof address; i++)
        assert_int_equal(((uint8_t *)address)[i], 0x11); /* forgotten, not touched */
    assert_null(tiers_free(NULL));
}

static void
options_that_cannot_be_are_refused(void **state)
{
    open_tiers(0, 0);
    close_tiers();
    struct tiers_options good = options;
    for (int i = 0; i < 22; i++) {
        options = good;
        struct engram_table_shape *table = &options.engram.table[1];
        switch (i) {
        case 0:
            options.engram.n_layers = 0;
            break;
        case 1:
            options.engram.n_layers = SHAPE_MAX_ENGRAM_LAYERS + 1;
            break;
        case 2:
            options.engram.max_order = 1;
            break;
        case 3:
            options.engram.max_order = SHAPE_MAX_ORDER + 1;
            break;
        case 4:
            options.engram.heads = 0;
            break;
        case 5:
            options.engram.heads = SHAPE_MAX_HEADS_PER_NGRAM + 1;
            break;
        case 6:
            options.engram.head_dim = 0;
            break;
        case 7:
            options.engram.head_dim = COLD_READ_MAX + 1;
            break;
        case 8:
            options.engram.scale_group = -1;
            break;
        case 9:
            options.max_step_rows = 0;
            break;
        case 10:
            options.steps_in_flight = 0;
            break;
        case 11:
            options.steps_in_flight = 65;
            break;
        case 12:
            options.max_step_rows = INT32_MAX;
            break;
        case 13:
            table->prime[1][2] = 0;
            break;
        case 14:
            table->row_base[0][1] = -1;
            break;
        case 15:
            table->row_base[1][3] += 1;
            break; /* its last row is one too far */
        case 16:
            table->rows = INT64_MAX;
            break;
        case 17:
            options.table[0].weight_offset_bytes = UINT64_MAX;
            break;
        case 18:
            options.table[0].scale_offset_bytes = INT64_MAX;
            break;
        case 19:
            options.table[1].weight_file = -1;
            break;
        }
        if (i >= 20)
            options.row_share = i == 20 ? -0.1 : 1.1;
        struct tiers *none = NULL;
        struct err err = ERR_INIT;
        if (tiers_new(&none, &options, &err) != -EINVAL)
            fail_msg("case %d was accepted", i);
        assert_null(none);
        assert_true(strlen(err.text) > 10);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equal_ngrams_of_a_step_share_one_read_and_each_counts),
        cmocka_unit_test(a_second_step_finds_in_ram_what_the_first_read),
        cmocka_unit_test(a_request_without_rows_is_ready_at_once),
        cmocka_unit_test(a_bundle_becomes_hot_only_after_its_step_is_done),
        cmocka_unit_test(an_aborted_step_leaves_nothing_in_hbm),
        cmocka_unit_test(a_step_that_is_never_reported_takes_its_promotions_back),
        cmocka_unit_test(a_late_landing_of_an_older_step_promotes_nothing),
        cmocka_unit_test(a_row_that_cannot_be_read_fails_alone_and_is_tried_again),
        cmocka_unit_test(without_budgets_everything_passes_through_staging),
        cmocka_unit_test(steps_in_flight_share_what_is_staged_until_the_last_is_done),
        cmocka_unit_test(rows_that_are_skipped_cost_nothing),
        cmocka_unit_test(a_full_hbm_takes_what_was_found_in_ram_twice),
        cmocka_unit_test(resident_rows_answer_without_a_read),
        cmocka_unit_test(some_resident_rows_save_some_reads_of_a_bundle),
        cmocka_unit_test(a_plan_is_read_ahead_and_its_use_is_counted),
        cmocka_unit_test(a_plan_takes_a_bounded_share_and_nothing_without_ram),
        cmocka_unit_test(a_step_overtakes_the_plans_before_it),
        cmocka_unit_test(a_prefill_does_not_flush_what_decode_uses),
        cmocka_unit_test(memory_that_is_refused_fails_rows_and_nothing_else),
        cmocka_unit_test(tiers_are_freed_with_steps_open_and_reads_under_way),
        cmocka_unit_test(options_that_cannot_be_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
