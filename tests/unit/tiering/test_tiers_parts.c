/* Steps that come in parts: requests that share a flag, requests large enough for several threads, and
 * memory that comes later. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/flag.h"
#include "base/pool.h"
#include "tests/unit/tiering/tiers_fixture.h"

enum { ROWS = 3000, CELLS = ROWS * MAX_ORDERS };

static struct tiers_options options;
static struct counted_memory hbm, ram;
static struct tiers *tiers;
static uint64_t mix[CELLS];
static struct bundle_address address[CELLS];
static uint8_t failed[ROWS], skip[ROWS];

/* Memory that knows what it gave, and is refused until it has been asked for as often as `patience`
 * says. */
static struct late_memory {
    struct counted_memory *memory;
    int patience, asked;
    bool later;
    struct {
        const uint8_t *begin;
        size_t size;
    } given[256];
    int n_given;
} late_hbm, late_ram;

static void *
late_alloc(void *arg, size_t size)
{
    struct late_memory *late = arg;

    if (late->later && ++late->asked % (late->patience + 1))
        return NULL;
    uint8_t *chunk = counted_alloc(late->memory, size);
    if (chunk) {
        assert_true(late->n_given < 256);
        late->given[late->n_given].begin = chunk;
        late->given[late->n_given++].size = size;
    }
    return chunk;
}

/* As long as nothing was given back. */
static bool
is_given(const struct late_memory *late, const void *at)
{
    for (int i = 0; i < late->n_given; i++)
        if ((uintptr_t)at - (uintptr_t)late->given[i].begin < late->given[i].size)
            return true;
    return false;
}

static void
late_free(void *arg, void *chunk, size_t size)
{
    struct late_memory *late = arg;

    counted_free(late->memory, chunk, size);
}

static bool
late_later(void *arg)
{
    return true;
}

static void
prepare(uint64_t hbm_budget, uint64_t ram_budget)
{
    hbm = ram = (struct counted_memory){0};
    late_hbm = (struct late_memory){.memory = &hbm};
    late_ram = (struct late_memory){.memory = &ram};
    rng = 1;
    options = (struct tiers_options){
        .cold = held_open(),
        .hbm_memory = {.alloc = late_alloc, .free = late_free, .arg = &late_hbm},
        .ram_memory = {.alloc = late_alloc, .free = late_free, .arg = &late_ram},
        .hbm_budget_bytes = hbm_budget,
        .ram_budget_bytes = ram_budget,
        .max_step_rows = ROWS,
        .steps_in_flight = 2,
        .gather_threads = 4,
    };
    shape_options(&options, 0);
}

static void
close_tiers(void)
{
    let_back(HELD_MAX);
    tiers = tiers_free(tiers);
    assert_int_equal(hbm.bytes + ram.bytes, 0);
    free_resident(&options);
}

/* Cells draw from `different` N-grams. */
static void
draw_rows(int n, uint32_t different)
{
    for (int i = 0; i < n * MAX_ORDERS; i++)
        mix[i] = draw(different);
    memset(address, 0xFF, sizeof address);
    memset(failed, 0, sizeof failed);
}

/* rows_from, ready_value: as in struct tiers_request. */
static void
resolve_to(uint64_t step, int first, int end, struct flag *flag, uint64_t rows_from,
           uint64_t ready_value, uint32_t *unfinished)
{
    struct tiers_request request = {.step = step,
                                    .table = 1,
                                    .n_rows = end - first,
                                    .resident = options.resident[1].weights,
                                    .mix = mix + first * MAX_ORDERS,
                                    .address = address + first * MAX_ORDERS,
                                    .failed = failed + first,
                                    .skip = skip + first,
                                    .ready = flag,
                                    .ready_value = ready_value,
                                    .rows_from = rows_from,
                                    .unfinished = unfinished};

    tiers_resolve(tiers, &request);
}

static void
resolve(uint64_t step, int first, int end, struct flag *flag, uint32_t *unfinished)
{
    resolve_to(step, first, end, flag, 0, step, unfinished);
}

/* As the gather of the step: every bundle is right, promotions are written after all is read. */
static void
gather(int n)
{
    uint8_t bundle[4096];

    for (int i = 0; i < n * MAX_ORDERS; i++) {
        if (skip[i / MAX_ORDERS]) {
            assert_null(address[i].source);
            continue;
        }
        assert_non_null(address[i].source);
        read_source(&options, 1, i % MAX_ORDERS, mix[i], address[i].source, bundle);
        expect_bundle(&options, 1, i % MAX_ORDERS, mix[i], bundle);
    }
    for (int i = 0; i < n * MAX_ORDERS; i++)
        if (!skip[i / MAX_ORDERS] && address[i].promote) {
            read_source(&options, 1, i % MAX_ORDERS, mix[i], address[i].source, bundle);
            memcpy(address[i].promote, bundle, (size_t)engram_bundle_bytes(&options.engram));
        }
}

static void
requests_that_share_a_flag_raise_it_together(void **state)
{
    for (int first_lands = 0; first_lands < 2; first_lands++) {
        struct flag flag = {0};
        uint32_t unfinished = 2;

        prepare(0, 0);
        tiers = new_tiers(&options);
        for (int i = 0; i < 20 * MAX_ORDERS; i++)
            mix[i] = (uint64_t)i;
        resolve(1, 10, 20, &flag, &unfinished); /* the rows behind, as the resolver does */
        assert_int_equal(unfinished, 2);
        if (first_lands)
            land_all(tiers);
        assert_int_equal(unfinished, first_lands ? 1 : 2);
        assert_int_equal(flag_read(&flag), 0);
        resolve(1, 0, 10, &flag, &unfinished);
        assert_int_equal(flag_read(&flag), 0);
        land_all(tiers);
        assert_int_equal(unfinished, 0);
        assert_int_equal(flag_read(&flag), 1);
        gather(20);
        tiers_step_done(tiers, 1);
        close_tiers();
    }
}

static void
a_resident_table_shares_flags_too(void **state)
{
    struct flag flag = {0};
    uint32_t unfinished = 2;

    prepare(0, 0);
    make_resident(&options, 1, false);
    tiers = new_tiers(&options);
    draw_rows(200, 1000);
    resolve(1, 50, 200, &flag, &unfinished);
    assert_int_equal(flag_read(&flag), 0);
    resolve(1, 0, 50, &flag, &unfinished);
    assert_int_equal(flag_read(&flag), 1);
    gather(200);
    tiers_step_done(tiers, 1);
    close_tiers();
}

/* A device that takes rows as they come. */
struct row_reader {
    struct flag *flag;
    uint64_t rows_from;
    int n, n_bad;
};

static void *
read_rows_as_they_come(void *arg)
{
    struct row_reader *reader = arg;

    for (int r = 0; r < reader->n; r++) {
        if (flag_wait(reader->flag, reader->rows_from + (uint64_t)r + 1, 0, UINT64_MAX) < 0)
            reader->n_bad++;
        for (int o = 0; o < MAX_ORDERS; o++) {
            const struct bundle_address *at = &address[r * MAX_ORDERS + o];

            reader->n_bad += skip[r] ? at->source || at->promote
                                     : !at->source || at->source == (void *)UINTPTR_MAX ||
                                           at->promote == (void *)UINTPTR_MAX;
        }
    }
    return NULL;
}

static void
a_few_rows_are_told_as_they_are_answered(void **state)
{
    enum { N = 90, ROUNDS = 200, PART = 16 };

    for (uint64_t hbm_budget = 0; hbm_budget <= 1 << 16; hbm_budget += 1 << 16) {
        prepare(hbm_budget, 0);
        make_resident(&options, 1, false);
        options.in_place_below = N * MAX_ORDERS + 1;
        tiers = new_tiers(&options);
        for (uint64_t step = 1; step <= ROUNDS; step++) {
            struct flag flag = {0};
            uint64_t rows_from = step << 20;
            uint32_t unfinished = step % 2 + 1; /* another request of the flag is not over */
            struct row_reader reader = {&flag, rows_from, unfinished == 1 ? N : N - N % PART, 0};
            pthread_t thread;

            draw_rows(N, step < ROUNDS / 2 ? 100 : 100000);
            memset(skip, 0, sizeof skip);
            skip[step % N] = 1;
            assert_int_equal(pthread_create(&thread, NULL, read_rows_as_they_come, &reader), 0);
            resolve_to(step, 0, N, &flag, rows_from, rows_from + (uint64_t)N, &unfinished);
            assert_int_equal(flag_read(&flag), rows_from + (uint64_t)reader.n);
            assert_int_equal(pthread_join(thread, NULL), 0);
            assert_int_equal(reader.n_bad, 0);
            gather(N);
            tiers_step_done(tiers, step);
        }
        struct tiers_stats stats;
        tiers_stats(tiers, &stats);
        for (int o = 0; o < MAX_ORDERS; o++) {
            const struct tier_set_stats *set = &stats.tier[TIER_HBM].set[1][o];

            assert_int_equal(set->hits + set->misses, ROUNDS * (N - 1));
            assert_int_equal(stats.tier[TIER_RAM].set[1][o].hits, set->misses);
            assert_true(hbm_budget == 0 ? set->hits == 0 : set->hits > 0 && set->evictions > 0);
        }
        close_tiers();
    }
}

/* From the tables' size on everything is a hit; large steps take the way of several threads. */
static void
large_steps_are_right(void **state)
{
    for (int resident = 0; resident < 2; resident++) {
        prepare(1 << 20, 1 << 20);
        if (resident)
            make_resident(&options, 1, false);
        tiers = new_tiers(&options);
        assert_int_equal(tiers_pool(tiers) != NULL, resident);
        for (uint64_t step = 1; step <= 12; step++) {
            int n = step % 3 == 0 ? 70 : step % 3 == 1 ? ROWS : 1024;
            struct flag flag = {0};

            draw_rows(n, 5000);
            for (int row = 0; row < n; row++)
                skip[row] = draw(10) == 0;
            resolve(step, 0, n, &flag, NULL);
            land_all(tiers);
            assert_int_equal(flag_read(&flag), step);
            gather(n);
            tiers_step_done(tiers, step);
        }
        memset(skip, 0, sizeof skip);
        close_tiers();
    }
}

static void
one_request_displaces_a_bounded_part(void **state)
{
    struct tiers_stats before, after;

    prepare(200 * 1000, 0);
    make_resident(&options, 1, false);
    tiers = new_tiers(&options);
    for (uint64_t step = 1; step <= 4; step++) {
        struct flag flag = {0};

        for (int i = 0; i < 2 * 2000; i++) /* twice the same, so that every miss is a second one */
            mix[i] = step <= 2 ? (uint64_t)(i / 2) : 100000 + (uint64_t)(i / 2);
        tiers_stats(tiers, &before);
        resolve(step, 0, 2000, &flag, NULL);
        tiers_stats(tiers, &after);
        gather(2000);
        tiers_step_done(tiers, step);
    }
    uint64_t displaced = 0;
    for (int o = 0; o < MAX_ORDERS; o++)
        displaced += after.tier[TIER_HBM].set[1][o].evictions -
                     before.tier[TIER_HBM].set[1][o].evictions;
    assert_true(displaced > 0 && displaced <= 8 + 2 * 2000 / 64);
    close_tiers();
}

static int
count_in_place(int n)
{
    int found = 0;

    for (int i = 0; i < n * MAX_ORDERS; i++)
        found += address[i].source == BUNDLE_IN_PLACE;
    return found;
}

/* There is staging for one large step, and a second one is in flight. */
static void
a_large_step_without_staging_left_reads_the_rest_in_place(void **state)
{
    static struct bundle_address before[CELLS];
    static uint64_t mix_before[CELLS];
    struct flag flag = {0};

    prepare(0, 0);
    make_resident(&options, 1, false);
    tiers = new_tiers(&options);
    ram.fail_percent = 100;
    draw_rows(ROWS, UINT32_MAX);
    resolve(1, 0, ROWS, &flag, NULL);
    int share = count_in_place(ROWS);
    assert_int_equal(share, CELLS / TIERS_IN_PLACE_SHARE); /* all that are left to the device */
    gather(ROWS);
    memcpy(before, address, sizeof before);
    memcpy(mix_before, mix, sizeof mix_before);
    draw_rows(ROWS, UINT32_MAX);
    resolve(2, 0, ROWS, &flag, NULL);
    assert_true(count_in_place(ROWS) > share && count_in_place(ROWS) < CELLS);
    gather(ROWS);
    memcpy(address, before, sizeof before); /* untouched by the second */
    memcpy(mix, mix_before, sizeof mix_before);
    gather(ROWS);
    tiers_step_done(tiers, 2);
    close_tiers();
}

static void
a_large_step_of_skipped_rows_is_ready_and_counts_nothing(void **state)
{
    struct tiers_stats stats;
    struct flag flag = {0};

    prepare(1 << 20, 0);
    make_resident(&options, 1, false);
    tiers = new_tiers(&options);
    draw_rows(ROWS, 5000);
    memset(skip, 1, sizeof skip);
    resolve(1, 0, ROWS, &flag, NULL);
    assert_int_equal(flag_read(&flag), 1);
    for (int i = 0; i < CELLS; i++) {
        assert_null(address[i].source);
        assert_null(address[i].promote);
    }
    tiers_stats(tiers, &stats);
    for (int o = 0; o < MAX_ORDERS; o++) {
        assert_int_equal(stats.tier[TIER_HBM].set[1][o].misses, 0);
        assert_int_equal(stats.tier[TIER_HBM].set[1][o].promotions, 0);
        assert_int_equal(stats.tier[TIER_RAM].set[1][o].hits, 0);
    }
    tiers_step_done(tiers, 1);
    memset(skip, 0, sizeof skip);
    resolve(2, 0, ROWS, &flag, NULL);
    gather(ROWS);
    tiers_step_done(tiers, 2);
    close_tiers();
}

/* All threads find the same one at once. */
static void
a_large_step_of_one_ngram_has_one_bundle_and_one_promotion(void **state)
{
    for (int below = 1; below <= 1000; below += 999) {
        struct tiers_stats stats;
        struct flag flag = {0};

        prepare(1 << 20, 0);
        options.in_place_below = below;
        make_resident(&options, 1, false);
        tiers = new_tiers(&options);
        draw_rows(ROWS, 1);
        resolve(1, 0, ROWS, &flag, NULL);
        for (int i = 0; i < CELLS; i++) {
            assert_ptr_equal(address[i].source, address[i % MAX_ORDERS].source);
            assert_int_equal(address[i].promote != NULL, i < MAX_ORDERS);
        }
        assert_int_equal(count_in_place(ROWS), below == 1 ? 0 : CELLS);
        if (below == 1)
            assert_ptr_not_equal(address[0].source, address[1].source);
        gather(ROWS);
        tiers_step_done(tiers, 1);
        draw_rows(ROWS, 1);
        resolve(2, 0, ROWS, &flag, NULL);
        gather(ROWS);
        tiers_step_done(tiers, 2);
        tiers_stats(tiers, &stats);
        for (int o = 0; o < MAX_ORDERS; o++) {
            assert_int_equal(stats.tier[TIER_RAM].set[1][o].hits, ROWS);
            assert_int_equal(stats.tier[TIER_HBM].set[1][o].hits, ROWS);
            assert_int_equal(stats.tier[TIER_HBM].set[1][o].promotions, 1);
        }
        close_tiers();
    }
}

enum { COMPARED_STEPS = 60, COMPARED_ROWS = 1000 }; /* fewer cells than TIERS_SHARED_FROM */
enum { AT_NONE, AT_TABLE, AT_HBM, AT_STAGING, PROMOTED = 8 };

static uint8_t
answer_of(const struct bundle_address *cell)
{
    int at = AT_STAGING;

    if (cell->source == NULL)
        at = AT_NONE;
    else if (cell->source == BUNDLE_IN_PLACE)
        at = AT_TABLE;
    else if (is_given(&late_hbm, cell->source))
        at = AT_HBM;
    else
        assert_true(is_given(&late_ram, cell->source));
    return (uint8_t)(at | (cell->promote ? PROMOTED : 0));
}

/* Steps of all sizes, two in flight, through a store that is soon full. Their answers, cell by cell. */
static struct tiers_stats
run_compared(int threads, uint8_t answer[COMPARED_STEPS][COMPARED_ROWS * MAX_ORDERS])
{
    struct tiers_stats stats;

    prepare(1 << 17, 0);
    options.gather_threads = threads;
    make_resident(&options, 1, false);
    tiers = new_tiers(&options);
    for (uint64_t step = 1; step <= COMPARED_STEPS; step++) {
        struct flag flag = {0};

        rng = step;
        int n = draw(3) ? COMPARED_ROWS - (int)draw(300) : (int)draw(COMPARED_ROWS);
        draw_rows(n, 4000);
        for (int row = 0; row < n; row++)
            skip[row] = draw(10) == 0;
        resolve(step, 0, n, &flag, NULL);
        gather(n);
        for (int i = 0; i < n * MAX_ORDERS; i++)
            answer[step - 1][i] = answer_of(&address[i]);
        if (step > 1)
            tiers_step_done(tiers, step - 1);
    }
    memset(skip, 0, sizeof skip);
    tiers_stats(tiers, &stats);
    tiers_step_done(tiers, COMPARED_STEPS);
    close_tiers();
    return stats;
}

static void
one_thread_and_four_give_the_same_answers(void **state)
{
    static uint8_t one[COMPARED_STEPS][COMPARED_ROWS * MAX_ORDERS];
    static uint8_t four[COMPARED_STEPS][COMPARED_ROWS * MAX_ORDERS];
    struct tiers_stats stats = run_compared(1, one), stats_four = run_compared(4, four);
    int found[2 * PROMOTED] = {0};

    assert_memory_equal(one, four, sizeof one);
    for (int o = 0; o < MAX_ORDERS; o++)
        for (int tier = 0; tier < TIER_NVME; tier++)
            assert_memory_equal(&stats.tier[tier].set[1][o], &stats_four.tier[tier].set[1][o],
                                sizeof stats.tier[tier].set[1][o]);
    for (int step = 0; step < COMPARED_STEPS; step++)
        for (int i = 0; i < COMPARED_ROWS * MAX_ORDERS; i++)
            found[one[step][i]]++;
    assert_true(found[AT_HBM] > 0 && found[AT_STAGING] > 0 && found[AT_STAGING | PROMOTED] > 0);
    assert_true(stats.tier[TIER_HBM].set[1][0].evictions > 0);
}

/* With memory that is there only when asked for the third time: steps are right at once, and in the end
 * the stores are as full as they would be. */
static void
memory_that_comes_later_is_waited_for(void **state)
{
    struct tiers_stats stats;

    prepare(1 << 17, 1 << 17);
    options.row_share = 0.5;
    options.ram_memory.later = options.hbm_memory.later = late_later;
    options.max_step_rows = 64;
    tiers = new_tiers(&options);
    late_hbm.later = late_ram.later = true;
    late_hbm.patience = late_ram.patience = 2;
    for (uint64_t step = 1; step <= 400; step++) {
        struct flag flag = {0};

        draw_rows(20, 3000);
        resolve(step, 0, 20, &flag, NULL);
        land_all(tiers);
        assert_int_equal(flag_read(&flag), step);
        gather(20);
        tiers_step_done(tiers, step);
        (void)tiers_poll(tiers);
    }
    tiers_stats(tiers, &stats);
    assert_true(stats.tier[TIER_HBM].used_bytes > (1 << 17) * 3 / 4);
    assert_true(stats.slice_bytes > 0);
    assert_true(stats.tier[TIER_RAM].used_bytes <= 1 << 17);
    close_tiers();
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(requests_that_share_a_flag_raise_it_together),
        cmocka_unit_test(a_few_rows_are_told_as_they_are_answered),
        cmocka_unit_test(a_resident_table_shares_flags_too),
        cmocka_unit_test(large_steps_are_right),
        cmocka_unit_test(one_request_displaces_a_bounded_part),
        cmocka_unit_test(a_large_step_without_staging_left_reads_the_rest_in_place),
        cmocka_unit_test(a_large_step_of_skipped_rows_is_ready_and_counts_nothing),
        cmocka_unit_test(a_large_step_of_one_ngram_has_one_bundle_and_one_promotion),
        cmocka_unit_test(one_thread_and_four_give_the_same_answers),
        cmocka_unit_test(memory_that_comes_later_is_waited_for),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
