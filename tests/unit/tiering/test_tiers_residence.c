/* Tables that become resident while steps run, and stop being it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/tiering/tiers_fixture.h"

enum { ROWS = 24, STEPS = 3, BUNDLE_MAX = 4096 };

/* A step, with what it was told when it was described. */
struct run {
    uint64_t step;
    int table;
    struct tier_resident told;
    struct flag flag;
    uint64_t mix[ROWS * MAX_ORDERS];
    struct bundle_address address[ROWS * MAX_ORDERS];
    uint8_t failed[ROWS];
};

static struct tiers_options options; /* resident: where the tables are now */
static struct counted_memory hbm, ram;
static struct tiers *tiers;
static uint64_t bytes_of[MAX_TABLES];

static void
open_tiers(int variant, uint64_t hbm_budget, uint64_t ram_budget, double row_share, int in_place)
{
    hbm = ram = (struct counted_memory){0};
    rng = 1;
    options = (struct tiers_options){
        .cold = held_open(),
        .hbm_memory = {.alloc = counted_alloc, .free = counted_free, .arg = &hbm},
        .ram_memory = {.alloc = counted_alloc, .free = counted_free, .arg = &ram},
        .hbm_budget_bytes = hbm_budget,
        .ram_budget_bytes = ram_budget,
        .row_share = row_share,
        .max_step_rows = ROWS,
        .steps_in_flight = STEPS,
        .may_become_resident = true,
        .in_place_below = in_place,
        .gather_threads = 2};
    shape_options(&options, variant);
    for (int t = 0; t < MAX_TABLES; t++)
        bytes_of[t] = (uint64_t)options.engram.table[t].rows *
                      (uint64_t)(engram_row_weight_bytes(&options.engram) +
                                 engram_row_scale_bytes(&options.engram));
    tiers = new_tiers(&options);
}

static void
close_tiers(void)
{
    let_back(HELD_MAX);
    tiers = tiers_free(tiers);
    assert_int_equal(hbm.bytes, 0);
    assert_int_equal(ram.bytes, 0);
    free_resident(&options);
}

/* Whoever still reads it will be found out. */
static void
spoil(struct tier_resident *memory, int table)
{
    size_t rows = (size_t)options.engram.table[table].rows;
    int scale = engram_row_scale_bytes(&options.engram);

    memset((void *)(uintptr_t)memory->weights, 0xDD,
           rows * (size_t)engram_row_weight_bytes(&options.engram));
    if (scale)
        memset((void *)(uintptr_t)memory->scales, 0xDD, rows * (size_t)scale);
    free((void *)(uintptr_t)memory->weights);
    free((void *)(uintptr_t)memory->scales);
    *memory = (struct tier_resident){0};
}

static void
describe(struct run *run, uint64_t step, int table, uint64_t first)
{
    *run = (struct run){.step = step, .table = table, .told = options.resident[table]};
    for (int i = 0; i < ROWS * MAX_ORDERS; i++)
        run->mix[i] = (first + (uint64_t)(i / MAX_ORDERS)) * 0xd1342543de82ef95u;
}

static void
resolve(struct run *run)
{
    tiers_resolve(tiers, &(struct tiers_request){.step = run->step,
                                                 .table = run->table,
                                                 .n_rows = ROWS,
                                                 .resident = run->told.weights,
                                                 .mix = run->mix,
                                                 .address = run->address,
                                                 .failed = run->failed,
                                                 .ready = &run->flag,
                                                 .ready_value = run->step});
}

/* What the step's gather does, with the addresses that the step was told. */
static void
gather(struct run *run)
{
    struct tiers_options told = options;
    uint8_t got[BUNDLE_MAX];

    assert_int_equal(flag_read(&run->flag), run->step);
    told.resident[run->table] = run->told;
    for (int i = 0; i < ROWS * MAX_ORDERS; i++) {
        assert_non_null(run->address[i].source);
        read_source(&told, run->table, i % MAX_ORDERS, run->mix[i], run->address[i].source, got);
        expect_bundle(&told, run->table, i % MAX_ORDERS, run->mix[i], got);
        if (run->address[i].promote)
            memcpy(run->address[i].promote, got, (size_t)engram_bundle_bytes(&told.engram));
    }
}

static void
end(struct run *run)
{
    gather(run);
    tiers_step_done(tiers, run->step);
}

static struct tiers_stats
stats_now(void)
{
    struct tiers_stats stats;

    tiers_stats(tiers, &stats);
    return stats;
}

static void
set(int table)
{
    make_resident(&options, table, false);
    (void)tiers_set_resident(tiers, table, &options.resident[table]);
}

/* The memory, to be spoiled later. */
static struct tier_resident
take(int table, uint64_t *ret_step)
{
    struct tier_resident memory = options.resident[table];

    options.resident[table] = (struct tier_resident){0};
    *ret_step = tiers_set_resident(tiers, table, &options.resident[table]);
    return memory;
}

static void
a_table_comes_and_is_taken_away(void **state)
{
    for (int in_place = 1; in_place <= 1000; in_place += 999) {
        struct run run;
        uint64_t step;

        open_tiers(in_place == 1 ? 2 : 0, 0, 1 << 20, 0, in_place);
        tiers_reserve_table(tiers, 1, bytes_of[1]);
        describe(&run, 1, 1, 0);
        resolve(&run);
        assert_true(held()->n_held > 0);
        land_all(tiers);
        end(&run);
        set(1);
        assert_true(tiers_is_resident(tiers, 1));
        describe(&run, 2, 1, 500);
        resolve(&run);
        assert_int_equal(held()->n_held, 0);
        end(&run);
        struct tier_resident memory = take(1, &step);
        assert_true(tiers_steps_over(tiers, step));
        spoil(&memory, 1);
        tiers_release_table(tiers, 1);
        describe(&run, 3, 1, 1000);
        resolve(&run);
        assert_true(held()->n_held > 0);
        land_all(tiers);
        end(&run);
        close_tiers();
    }
}

/* T7 */
static void
a_step_that_was_told_nothing_or_another_address_is_answered_from_disk(void **state)
{
    struct run before, after;
    uint64_t step;

    open_tiers(0, 0, 1 << 20, 0, 1000);
    tiers_reserve_table(tiers, 1, bytes_of[1]);
    describe(&before, 1, 1, 0);
    set(1);
    resolve(&before);
    assert_true(held()->n_held > 0);
    land_all(tiers);
    end(&before);

    describe(&before, 2, 1, 100);
    struct tier_resident memory = take(1, &step);
    set(1); /* elsewhere */
    spoil(&memory, 1);
    resolve(&before);
    assert_true(held()->n_held > 0);
    describe(&after, 3, 1, 200);
    int n_held = held()->n_held;
    resolve(&after);
    assert_int_equal(held()->n_held, n_held);
    land_all(tiers);
    end(&before);
    end(&after);
    close_tiers();
}

static void
reads_under_way_when_a_table_comes_answer_their_steps(void **state)
{
    struct run run[2];

    open_tiers(0, 64 << 10, 1 << 20, 0, 1000);
    describe(&run[0], 1, 1, 0);
    resolve(&run[0]);
    assert_true(held()->n_held > 0 && flag_read(&run[0].flag) == 0);
    tiers_reserve_table(tiers, 1, bytes_of[1]);
    set(1);
    describe(&run[1], 2, 1, 0);
    resolve(&run[1]);
    gather(&run[1]);
    assert_int_equal(flag_read(&run[0].flag), 0);
    land_all(tiers);
    end(&run[0]);
    tiers_step_done(tiers, 2);
    /* What the first step promoted answers the next one. */
    describe(&run[0], 3, 1, 0);
    resolve(&run[0]);
    assert_true(stats_now().tier[TIER_HBM].set[1][0].hits > 0);
    end(&run[0]);
    close_tiers();
}

static void
memory_is_read_until_the_steps_begun_are_over(void **state)
{
    struct run run[STEPS];
    uint64_t step;

    open_tiers(0, 0, 1 << 20, 0, 1000);
    tiers_reserve_table(tiers, 1, bytes_of[1]);
    set(1);
    for (int i = 0; i < 2; i++) {
        describe(&run[i], (uint64_t)i + 1, 1, (uint64_t)i * 100);
        resolve(&run[i]);
    }
    struct tier_resident memory = take(1, &step);
    assert_int_equal(step, 2);
    describe(&run[2], 3, 1, 7000);
    resolve(&run[2]);
    assert_false(tiers_steps_over(tiers, step));
    gather(&run[0]);
    tiers_step_abort(tiers, 1);
    assert_false(tiers_steps_over(tiers, step));
    end(&run[1]);
    assert_true(tiers_steps_over(tiers, step));
    spoil(&memory, 1);
    tiers_release_table(tiers, 1);
    land_all(tiers);
    end(&run[2]);
    close_tiers();
}

static void
reserved_bytes_leave_the_stores_and_come_back(void **state)
{
    struct run run;

    open_tiers(0, 0, 1 << 20, 0.5, 1000);
    land_all(tiers);
    uint64_t rows_bytes = stats_now().slice_bytes;
    assert_true(rows_bytes > bytes_of[0] + bytes_of[1]);
    tiers_reserve_table(tiers, 0, bytes_of[0]);
    land_all(tiers);
    struct tiers_stats stats = stats_now();
    assert_int_equal(stats.reserved_bytes, bytes_of[0]);
    assert_true(stats.slice_bytes >= bytes_of[1] && stats.slice_bytes < rows_bytes - bytes_of[0] + 64);
    /* The other table's rows are all there, and none of this one's. */
    describe(&run, 1, 1, 0);
    resolve(&run);
    assert_int_equal(held()->n_held, 0);
    end(&run);
    describe(&run, 2, 0, 0);
    resolve(&run);
    assert_true(held()->n_held > 0);
    land_all(tiers);
    end(&run);
    tiers_release_table(tiers, 0);
    land_all(tiers);
    assert_int_equal(stats_now().slice_bytes, rows_bytes);
    describe(&run, 3, 0, 5000);
    resolve(&run);
    assert_int_equal(held()->n_held, 0);
    end(&run);
    /* More than there is: the stores have nothing. */
    tiers_reserve_table(tiers, 1, 2 << 20);
    land_all(tiers);
    assert_int_equal(stats_now().tier[TIER_RAM].used_bytes, 0);
    tiers_release_table(tiers, 1);
    close_tiers();
}

/* Tables come, go and come again, budgets change and reads are slow; every bundle is right, and
 * memory is spoiled the moment that it may be. */
static void
everything_changes_and_every_bundle_is_right(void **state)
{
    for (uint32_t seed = 1; seed <= 24; seed++) {
        static struct run run[STEPS];
        struct tier_resident leaving[MAX_TABLES] = {{0}};
        uint64_t until[MAX_TABLES] = {0};
        enum { ON_DISK, RESERVED, RESIDENT, LEAVING } at[MAX_TABLES] = {0};
        int n = 0;

        open_tiers((int)seed % 3, seed % 2 ? 30000 : 0, 60000, seed % 5 ? 0.6 : 0,
                   seed % 4 ? 1000 : 1);
        rng = seed;
        uint64_t step = 0;
        while (step < 150) {
            int t = (int)draw(MAX_TABLES);

            switch (at[t] + 4 * (int)draw(3)) {
            case ON_DISK:
                tiers_reserve_table(tiers, t, bytes_of[t]);
                at[t] = RESERVED;
                break;
            case RESERVED:
                set(t);
                at[t] = RESIDENT;
                break;
            case RESIDENT:
                leaving[t] = take(t, &until[t]);
                at[t] = LEAVING;
                break;
            default:
                break;
            }
            for (int k = 0; k < MAX_TABLES; k++)
                if (at[k] == LEAVING && tiers_steps_over(tiers, until[k])) {
                    spoil(&leaving[k], k);
                    tiers_release_table(tiers, k);
                    at[k] = ON_DISK;
                }
            if (draw(6) == 0)
                tiers_resize(tiers, draw(2) ? 30000 : 5000, draw(90000));
            let_back((int)draw(40));
            (void)tiers_poll(tiers);
            if (n < STEPS && draw(2)) {
                step++;
                describe(&run[n], step, (int)draw(MAX_TABLES), draw(3) * 10);
                resolve(&run[n++]);
            } else if (n > 0) {
                land_all(tiers);
                if (draw(8)) {
                    end(&run[0]);
                } else {
                    tiers_step_abort(tiers, run[0].step);
                }
                memmove(run, run + 1, (size_t)--n * sizeof *run);
            }
        }
        land_all(tiers);
        for (int i = 0; i < n; i++)
            end(&run[i]);
        struct tiers_stats stats = stats_now();
        for (int tier = 0; tier < TIER_NVME; tier++)
            assert_true(stats.tier[tier].used_bytes <= stats.tier[tier].budget_bytes);
        for (int t = 0; t < MAX_TABLES; t++)
            if (at[t] == LEAVING) {
                assert_true(tiers_steps_over(tiers, until[t]));
                spoil(&leaving[t], t);
            }
        close_tiers();
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_table_comes_and_is_taken_away),
        cmocka_unit_test(a_step_that_was_told_nothing_or_another_address_is_answered_from_disk),
        cmocka_unit_test(reads_under_way_when_a_table_comes_answer_their_steps),
        cmocka_unit_test(memory_is_read_until_the_steps_begun_are_over),
        cmocka_unit_test(reserved_bytes_leave_the_stores_and_come_back),
        cmocka_unit_test(everything_changes_and_every_bundle_is_right),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
