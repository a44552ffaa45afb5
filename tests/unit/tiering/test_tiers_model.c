/* The tiers against a naive model: random requests, plans, budgets, faults, failed allocations and
 * aborted steps, with several steps in flight and reads that come back in any order. Every byte of
 * every delivered bundle is compared with what the files hold at the time the step's gather would
 * read it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/tiering/tiers_fixture.h"

enum { MAX_ROWS = 12, STEPS = 3 };

struct run_step {
    bool used, resolved;
    uint64_t id;
    int n_rows;
    uint64_t mix[MAX_TABLES][MAX_ROWS * MAX_ORDERS];
    struct bundle_address address[MAX_TABLES][MAX_ROWS * MAX_ORDERS];
    uint8_t failed[MAX_TABLES][MAX_ROWS];
    uint8_t skip[MAX_ROWS];
    struct flag ready[MAX_TABLES];
    bool abandoned;
};

struct world {
    struct tiers_options options;
    struct tiers *tiers;
    struct counted_memory hbm, ram;
    struct run_step step[STEPS];
    uint64_t next_id, next_gather;     /* ids */
    uint64_t hbm_ceiling, ram_ceiling; /* the larger of the old and the new budget */
    uint64_t look_ups, delivered, promoted, failures, row_failures, in_place;
    uint64_t known[300];
    bool hot; /* half of all look-ups are for six N-grams */
};

static uint64_t
draw_mix(struct world *w)
{
    if (w->hot && draw(2))
        return w->known[draw(6)];
    if (draw(4) == 0)
        return next_random(&rng);
    uint32_t a = draw(300), b = draw(300);
    return w->known[a < b ? a : b]; /* some more often than others */
}

static void
check_stats(struct world *w)
{
    struct tiers_stats s;
    tiers_stats(w->tiers, &s);
    assert_true(s.tier[TIER_HBM].used_bytes <= w->hbm_ceiling); /* T6 */
    assert_true(s.tier[TIER_RAM].used_bytes <= w->ram_ceiling);
    assert_true(w->hbm.bytes <= s.tier[TIER_HBM].used_bytes);
    assert_true(w->ram.bytes <= s.tier[TIER_RAM].used_bytes + s.staging_bytes);
    if (s.tier[TIER_HBM].used_bytes <= s.tier[TIER_HBM].budget_bytes)
        w->hbm_ceiling = s.tier[TIER_HBM].budget_bytes;
    if (s.tier[TIER_RAM].used_bytes <= s.tier[TIER_RAM].budget_bytes)
        w->ram_ceiling = s.tier[TIER_RAM].budget_bytes;
    uint64_t hits[3] = {0}, misses[3] = {0}, used[3] = {0};
    for (int tier = 0; tier < 3; tier++)
        for (int t = 0; t < s.n_tables; t++)
            for (int o = 0; o < s.n_orders; o++) {
                hits[tier] += s.tier[tier].set[t][o].hits;
                misses[tier] += s.tier[tier].set[t][o].misses;
                used[tier] += s.tier[tier].set[t][o].used_bytes;
            }
    uint64_t waiting = 0;
    for (int i = 0; i < STEPS; i++)
        for (int t = 0; w->step[i].used && t < MAX_TABLES; t++)
            if (flag_read(&w->step[i].ready[t]) < w->step[i].id)
                waiting += (uint64_t)(w->step[i].n_rows * MAX_ORDERS);
    assert_int_equal(hits[0] + misses[0], w->look_ups);
    assert_int_equal(hits[1] + misses[1], misses[0]);
    assert_true(hits[2] + misses[2] <= misses[1]);
    assert_true(hits[2] + misses[2] + waiting >= misses[1]);
    assert_true(used[0] <= s.tier[TIER_HBM].used_bytes);
    assert_true(used[1] <= s.tier[TIER_RAM].used_bytes);
}

static void
start_step(struct world *w)
{
    struct run_step *step = NULL;
    for (int i = 0; i < STEPS; i++)
        if (!w->step[i].used)
            step = &w->step[i];
    if (!step)
        return;
    memset(step, 0, sizeof *step);
    step->used = true;
    step->id = w->next_id++;
    step->n_rows = (int)draw(MAX_ROWS + 1);
    bool skips = draw(4) == 0;
    for (int r = 0; r < step->n_rows; r++)
        step->skip[r] = skips && draw(3) == 0;
    for (int t = 0; t < MAX_TABLES; t++) {
        for (int i = 0; i < step->n_rows * MAX_ORDERS; i++) {
            step->mix[t][i] = draw_mix(w);
            w->look_ups += !step->skip[i / MAX_ORDERS];
        }
        struct tiers_request request = {
            .step = step->id,
            .table = t,
            .resident = w->options.resident[t].weights,
            .n_rows = step->n_rows,
            .mix = step->mix[t],
            .address = step->address[t],
            .failed = step->failed[t],
            .skip = skips ? step->skip : NULL,
            .ready = &step->ready[t],
            .ready_value = step->id,
            .deadline_ns = step->id,
        };
        tiers_resolve(w->tiers, &request);
        if (draw(3) == 0) { /* reads come back between the layers of a step */
            let_back((int)draw(200));
            (void)tiers_poll(w->tiers);
        }
    }
}

static bool
is_ready(const struct world *w, struct run_step *step)
{
    for (int t = 0; t < MAX_TABLES; t++) {
        assert_true(flag_read(&step->ready[t]) <= step->id);
        if (flag_read(&step->ready[t]) < step->id)
            return false;
    }
    return true;
}

/* T3: what the step is to fill is filled once and read by nobody in it. */
static void
check_promotions(const struct world *w, const struct run_step *step)
{
    for (int i = 0; i < MAX_TABLES * step->n_rows * MAX_ORDERS; i++) {
        int n = step->n_rows * MAX_ORDERS, t = i / n, cell = i % n;
        if (!step->address[t][cell].promote)
            continue;
        for (int k = 0; k < MAX_TABLES * n; k++) {
            int ot = k / n, other = k % n;
            assert_ptr_not_equal(step->address[t][cell].promote, step->address[ot][other].source);
            assert_false(w->options.resident[t].weights && w->options.resident[t].device);
            if (k == i || !step->address[ot][other].promote)
                continue;
            assert_ptr_not_equal(step->address[t][cell].promote, step->address[ot][other].promote);
            assert_false(t == ot && cell % MAX_ORDERS == other % MAX_ORDERS &&
                         step->mix[t][cell] == step->mix[ot][other]);
        }
    }
}

/* What the device does, cell by cell in any order, as blocks of a kernel would. */
static void
gather(struct world *w, struct run_step *step, bool complete)
{
    int bundle = engram_bundle_bytes(&w->options.engram);
    check_promotions(w, step);
    for (int t = 0; t < MAX_TABLES; t++) {
        int n = step->n_rows * MAX_ORDERS, order[MAX_ROWS * MAX_ORDERS];
        for (int i = 0; i < n; i++)
            order[i] = i;
        for (int i = n; i > 1; i--) {
            int k = (int)draw((uint32_t)i), swap = order[i - 1];
            order[i - 1] = order[k];
            order[k] = swap;
        }
        for (int i = 0; i < n; i++) {
            int cell = order[i], row = cell / MAX_ORDERS;
            const struct bundle_address *at = &step->address[t][cell];
            if (!at->source) {
                assert_null(at->promote);
                assert_true(step->skip[row] || step->failed[t][row]);
                w->failures += !step->skip[row];
                continue;
            }
            assert_false(step->skip[row]);
            uint8_t got[4096];
            ASSERT((size_t)bundle <= sizeof got);
            read_source(&w->options, t, cell % MAX_ORDERS, step->mix[t][cell], at->source, got);
            expect_bundle(&w->options, t, cell % MAX_ORDERS, step->mix[t][cell], got);
            w->delivered++;
            w->in_place += at->source == BUNDLE_IN_PLACE;
            if (at->promote && complete) {
                memcpy(at->promote, got, (size_t)bundle);
                w->promoted++;
            } else if (at->promote && draw(2)) {
                memset(at->promote, 0x55, (size_t)bundle / 2); /* cut short in the middle */
            }
        }
        for (int r = 0; r < step->n_rows; r++) {
            bool any = false;
            for (int o = 0; o < MAX_ORDERS; o++)
                any |= !step->address[t][r * MAX_ORDERS + o].source;
            assert_int_equal(step->failed[t][r], any && !step->skip[r]);
            w->row_failures += step->failed[t][r];
        }
    }
}

/* Runs the oldest step that was not run if its rows are there; or gives up waiting. */
static void
run_oldest(struct world *w)
{
    struct run_step *oldest = NULL;
    for (int i = 0; i < STEPS; i++)
        if (w->step[i].used && !w->step[i].abandoned && (!oldest || w->step[i].id < oldest->id))
            oldest = &w->step[i];
    if (!oldest)
        return;
    if (!is_ready(w, oldest)) {
        oldest->abandoned = draw(20) == 0;
    } else if (draw(8) == 0) {
        gather(w, oldest, false);
        tiers_step_abort(w->tiers, oldest->id);
        oldest->used = false;
    } else {
        gather(w, oldest, true);
        tiers_step_done(w->tiers, oldest->id);
        oldest->used = false;
    }
}

static void
sweep_abandoned(struct world *w)
{
    for (int i = 0; i < STEPS; i++)
        if (w->step[i].used && w->step[i].abandoned && is_ready(w, &w->step[i])) {
            tiers_step_abort(w->tiers, w->step[i].id);
            w->step[i].used = false;
        }
}

static void
plan(struct world *w)
{
    uint64_t mix[30];
    for (int i = 0; i < 30; i++)
        mix[i] = draw_mix(w);
    int table = (int)draw(MAX_TABLES), order = 2 + (int)draw(MAX_ORDERS);
    int started = tiers_prefetch(w->tiers, table, order, mix, 30, UINT64_MAX);
    assert_true(started >= 0 && started <= 30);
}

static void
resize(struct world *w)
{
    static const uint64_t size[] = {0,       4096,    20000,   65536,     100000,
                                    1 << 18, 1 << 20, 3 << 20, 1ull << 40};
    uint64_t hbm = size[draw(9)], ram = size[draw(9)];
    tiers_resize(w->tiers, hbm, ram);
    w->hbm_ceiling = w->hbm_ceiling > hbm ? w->hbm_ceiling : hbm;
    w->ram_ceiling = w->ram_ceiling > ram ? w->ram_ceiling : ram;
}

static void
settle(struct world *w)
{
    held()->fail_percent = 0;
    for (int turn = 0; turn < 100; turn++) {
        let_back(HELD_MAX);
        (void)tiers_poll(w->tiers);
        for (int i = 0; i < STEPS; i++) {
            run_oldest(w);
            sweep_abandoned(w);
        }
    }
    for (int i = 0; i < STEPS; i++)
        assert_false(w->step[i].used); /* T5: every flag was raised in the end */
}

enum { ON_DISK, IN_HOST, IN_DEVICE };
struct residence {
    int resident[MAX_TABLES];
    int in_place_below;
};

static void
run_with(int variant, uint64_t seed, int turns, uint64_t hbm, uint64_t ram, bool wild, bool hot,
         const struct residence *residence)
{
    static struct world w;
    memset(&w, 0, sizeof w);
    rng = seed;
    w.hot = hot;
    w.next_id = 1 + draw(5);
    shape_options(&w.options, variant);
    w.options.cold = held_open();
    w.options.hbm_memory = (struct chunk_ops){.alloc = counted_alloc, .free = counted_free, .arg = &w.hbm};
    w.options.ram_memory = (struct chunk_ops){.alloc = counted_alloc, .free = counted_free, .arg = &w.ram};
    w.options.hbm_budget_bytes = w.hbm_ceiling = hbm;
    w.options.ram_budget_bytes = w.ram_ceiling = ram;
    w.options.row_share = (double)(seed % 4) / 3; /* none, some, most, all of it for rows */
    w.options.max_step_rows = MAX_ROWS;
    w.options.steps_in_flight = STEPS;
    w.options.in_place_below = residence->in_place_below;
    w.options.gather_threads = 2;
    for (int t = 0; t < MAX_TABLES; t++)
        if (residence->resident[t])
            make_resident(&w.options, t, residence->resident[t] == IN_DEVICE);
    for (int i = 0; i < 300; i++)
        w.known[i] = next_random(&rng);
    w.tiers = new_tiers(&w.options);
    for (int turn = 0; turn < turns; turn++) {
        uint32_t what = draw(100);
        if (what < 30) {
            start_step(&w);
        } else if (what < 60) {
            let_back((int)draw(600));
            (void)tiers_poll(w.tiers);
        } else if (what < 90) {
            struct run_step *any = &w.step[draw(STEPS)];
            if (any->used && draw(30) == 0)
                any->abandoned = true; /* never run, whatever runs before and behind it */
            run_oldest(&w);
            sweep_abandoned(&w);
        } else if (what < 95) {
            plan(&w);
        } else if (wild && what < 97) {
            resize(&w);
        } else if (wild && what == 97) {
            held()->fail_percent = draw(2) ? 0 : draw(10);
        } else if (wild && what == 98) {
            w.hbm.fail_percent = draw(3) ? 0 : draw(101);
            w.ram.fail_percent = draw(3) ? 0 : draw(101);
        }
        check_stats(&w);
    }
    settle(&w);
    check_stats(&w);
    struct tiers_stats s;
    tiers_stats(w.tiers, &s);
    assert_true(s.tier[TIER_HBM].used_bytes <= s.tier[TIER_HBM].budget_bytes);
    assert_true(s.tier[TIER_RAM].used_bytes <= s.tier[TIER_RAM].budget_bytes);
    assert_true(w.delivered > 0);
    if (!wild) {
        assert_int_equal(w.row_failures, 0);
        if (hbm >= 65536 && ram >= 65536)
            assert_true(w.promoted > 0);
    }
    if (residence->resident[0] == IN_DEVICE ||
        (residence->resident[0] && !residence->in_place_below))
        assert_true(w.in_place > 0);
    if (draw(2)) { /* freeing with reads in flight is allowed */
        held()->fail_percent = 0;
        plan(&w);
        let_back(HELD_MAX);
    }
    assert_null(tiers_free(w.tiers));
    assert_int_equal(w.hbm.bytes, 0);
    assert_int_equal(w.ram.bytes, 0);
    free_resident(&w.options);
}

static void
run(int variant, uint64_t seed, int turns, uint64_t hbm, uint64_t ram, bool wild, bool hot)
{
    run_with(variant, seed, turns, hbm, ram, wild, hot, &(struct residence){0});
}

static void
every_bundle_is_right_whatever_the_budgets(void **state)
{
    static const uint64_t size[] = {0, 8192, 65536, 1 << 20, 1ull << 40};
    for (int variant = 0; variant < 3; variant++)
        for (int h = 0; h < 5; h++)
            for (int r = 0; r < 5; r++)
                run(variant, (uint64_t)(variant * 100 + h * 10 + r), 200, size[h], size[r], false,
                    h == r);
}

static void
an_hbm_of_a_few_slots_is_fought_over_without_mixing_bundles_up(void **state)
{
    for (int variant = 0; variant < 3; variant++)
        for (uint64_t seed = 0; seed < 5; seed++)
            run(variant, 500 + seed, 700, 8192, 1 << 20, false, true);
}

static void
every_bundle_is_right_while_everything_changes_and_fails(void **state)
{
    const char *more = state ? (const char *)*state : NULL;
    int seeds = more ? atoi(more) : 9;
    for (int seed = 0; seed < seeds; seed++)
        run(seed % 3, 1000 + (uint64_t)seed, 1500, 1 << 17, 1 << 18, true, false);
}

static void
resident_tables_beside_others_are_right_while_everything_changes(void **state)
{
    static const struct residence residence[] = {
        {{IN_HOST, ON_DISK}, 0},   {{IN_HOST, ON_DISK}, 1},   {{IN_HOST, IN_HOST}, 6},
        {{IN_DEVICE, IN_HOST}, 1}, {{IN_DEVICE, ON_DISK}, 1}, {{IN_HOST, IN_DEVICE}, 4},
    };
    for (int variant = 0; variant < 3; variant++)
        for (size_t i = 0; i < sizeof residence / sizeof *residence; i++) {
            run_with(variant, 2000 + i, 300, i % 2 ? 8192 : 1 << 20, 1 << 18, false, i % 3 == 0,
                     &residence[i]);
            run_with(variant, 3000 + i, 700, 1 << 17, 1 << 18, true, i % 3 == 0, &residence[i]);
        }
}

int
main(int argc, char **argv)
{
    /* An argument is a number of seeds, for a longer look by hand. */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_bundle_is_right_whatever_the_budgets),
        cmocka_unit_test(an_hbm_of_a_few_slots_is_fought_over_without_mixing_bundles_up),
        cmocka_unit_test(resident_tables_beside_others_are_right_while_everything_changes),
        cmocka_unit_test_prestate(every_bundle_is_right_while_everything_changes_and_fails,
                                  argc > 1 ? argv[1] : NULL),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
