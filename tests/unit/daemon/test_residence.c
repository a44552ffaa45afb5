/* Tables that get into host memory while jobs run: nobody can tell from the tokens. The engine's own
 * residence has no room; the one under test is given what it is to see. */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/log.h"
#include "tests/unit/daemon/engine_rig.h"

enum { N_JOBS = 12, PIECE = 4096, BIG = 8 << 20, SMALL = 64 << 10 };

/* Memory that is poisoned when it is given back, and a source that can be slow or fail. */
struct place_to_be {
    struct device device;
    struct device_ops ops;
    _Atomic uint64_t bytes;
    _Atomic bool refuse;
    struct serving *serving;
    _Atomic int n_reads;
    _Atomic int fail_at;   /* the read that fails, from 1 on; 0: none */
    _Atomic bool shut;     /* reads wait */
    _Atomic unsigned delay_us;
};

static struct place_to_be here;

static void *
take_memory(struct device *dev, size_t size_bytes)
{
    void *memory = atomic_load(&here.refuse) ? NULL : aligned_alloc(4096, size_bytes);

    if (memory) {
        memset(memory, 0xAA, size_bytes);
        atomic_fetch_add(&here.bytes, size_bytes);
    }
    return memory;
}

static void
give_memory(struct device *dev, void *memory, size_t size_bytes)
{
    memset(memory, 0xDD, size_bytes);
    atomic_fetch_sub(&here.bytes, size_bytes);
    free(memory);
}

static int
read_some(void *arg, int table, bool scales, uint64_t offset_bytes, void *dst, size_t size_bytes,
          void *buffer, struct err *err)
{
    const struct serving *s = arg;

    assert_true(size_bytes <= PIECE);
    while (atomic_load(&here.shut))
        usleep(100);
    usleep(atomic_load(&here.delay_us));
    if (atomic_fetch_add(&here.n_reads, 1) + 1 == atomic_load(&here.fail_at))
        return err_set(err, EIO, "a read fails on purpose");
    return table_reader_read(s->table_reader,
                             scales ? s->plan.scale[table] : s->plan.table[table], offset_bytes,
                             dst, size_bytes, buffer, err);
}

static struct residence *
open_residence(struct rig *r, uint64_t ram_bytes)
{
    struct serving *s = r->serving;
    struct residence *residence;
    struct err err = ERR_INIT;
    struct residence_options options = {.resolver = s->resolver,
                                        .device = &here.device,
                                        .n_tables = s->config.shape.engram.n_layers,
                                        .source = {read_some, s},
                                        .ram_bytes = 0,
                                        .piece_bytes = PIECE,
                                        .n_threads = 3};

    here.ops = (struct device_ops){.alloc_shared = take_memory, .free_shared = give_memory};
    here.device.ops = &here.ops;
    for (int t = 0; t < options.n_tables; t++)
        options.table[t] = (struct residence_table){
            s->plan.table[t]->size_bytes, s->plan.scale[t] ? s->plan.scale[t]->size_bytes : 0};
    assert_int_equal(residence_new(&residence, &options, &err), 0);
    assert_int_equal(residence_start(residence, &err), 0);
    assert_int_equal(residence_resize(residence, UINT64_MAX, ram_bytes), 0);
    return residence;
}

/* In the order of serving_free. */
static void
close_all(struct rig *r, struct residence *residence)
{
    residence_stop(residence);
    close_rig(r);
    residence_free(residence);
    assert_int_equal(atomic_load(&here.bytes), 0);
    atomic_store(&here.fail_at, 0);
    atomic_store(&here.n_reads, 0);
    atomic_store(&here.delay_us, 0);
}

static int
n_resident(const struct rig *r)
{
    int n = 0;

    for (int t = 0; t < r->serving->config.shape.engram.n_layers; t++)
        n += resolver_resident(r->serving->resolver, t).weights != NULL;
    return n;
}

static void
wait_resident(const struct rig *r, int n)
{
    for (int i = 0; n_resident(r) != n; i++) {
        if (i == 20000)
            fail_msg("%d tables are resident, not %d", n_resident(r), n);
        usleep(1000);
    }
}

static int
n_tables(const struct rig *r)
{
    return r->serving->config.shape.engram.n_layers;
}

/* used <= budget */
static void
expect_within(const struct rig *r, const struct residence *residence)
{
    struct tiers_stats stats;

    resolver_stats(r->serving->resolver, &stats);
    assert_true(stats.tier[TIER_RAM].used_bytes + residence_bytes(residence) <=
                stats.tier[TIER_RAM].budget_bytes);
}

/* The jobs, once more: their outcomes are those of an engine without all this. */
static void
run_jobs(struct rig *r, const struct rig *expected)
{
    memset(r->outcome, 0, sizeof r->outcome);
    r->n_ended = 0;
    for (int i = 0; i < N_JOBS; i++)
        submit(r, i, any_job((unsigned)i));
    assert_true(wait_ended(r, N_JOBS, PATIENCE_MS));
    for (int i = 0; i < N_JOBS; i++) {
        assert_int_equal(r->outcome[i].error, 0);
        compare(r, expected, i, true);
    }
}

static const char *const options[] = {"engine.kv_size=4MiB", "engine.prefix_cache=false", "tier.ram.size=0B",
                                      "tier.ram.tables=yes", NULL};

/* The disk answers long after a step has given up. */
static const char *const late_options[] = {"engine.kv_size=4MiB",       "engine.prefix_cache=false",
                                           "tier.ram.size=0B",          "tier.ram.tables=yes",
                                           "tier.hbm.size=0B",          "tier.nvme.timeout=10ms",
                                           "tier.nvme.fault=delay=1s", NULL};

static void
tables_fit_in_order_of_layer(void **state)
{
    const uint64_t bytes[3] = {100, 50, 200};
    bool want[3];

    residence_plan(bytes, 3, 350, want);
    assert_true(want[0] && want[1] && want[2]);
    residence_plan(bytes, 3, 349, want);
    assert_true(want[0] && want[1] && !want[2]);
    residence_plan(bytes, 3, 99, want); /* not the second in place of the first */
    assert_true(!want[0] && !want[1] && !want[2]);
    residence_plan(bytes, 3, UINT64_MAX, want);
    assert_true(want[0] && want[1] && want[2]);
}

static void
tokens_are_the_same_on_disk_while_loading_resident_and_after_each_resize(void **state)
{
    struct rig *expected = reference(any_job, N_JOBS);

    for (int behind = 0; behind < 2; behind++) {
        struct rig *r = open_rig(behind, options, 0);
        atomic_store(&here.shut, true);
        struct residence *residence = open_residence(r, BIG);

        run_jobs(r, expected);
        assert_int_equal(n_resident(r), 0);
        atomic_store(&here.shut, false);
        wait_resident(r, n_tables(r));
        expect_within(r, residence);
        run_jobs(r, expected);
        expect_within(r, residence);
        struct tiers_stats before, after;
        resolver_stats(r->serving->resolver, &before);
        run_jobs(r, expected);
        resolver_stats(r->serving->resolver, &after);
        assert_int_equal(before.nvme.reads, after.nvme.reads);

        uint64_t all = residence_bytes(residence);
        assert_int_equal(residence_resize(residence, UINT64_MAX, all - 1), 0);
        assert_int_equal(n_resident(r), n_tables(r) - 1);
        expect_within(r, residence);
        run_jobs(r, expected);
        assert_int_equal(residence_resize(residence, UINT64_MAX, 0), 0);
        assert_int_equal(n_resident(r), 0);
        assert_int_equal(atomic_load(&here.bytes), 0);
        expect_within(r, residence);
        run_jobs(r, expected);
        assert_int_equal(residence_resize(residence, UINT64_MAX, all), 0);
        wait_resident(r, n_tables(r));
        expect_within(r, residence);
        run_jobs(r, expected);
        close_all(r, residence);
    }
    close_rig(expected);
}

struct resizer {
    struct residence *residence;
    _Atomic bool stop;
    int n;
};

static void *
resize_main(void *arg)
{
    static const uint64_t size[] = {BIG, 0, SMALL, BIG, BIG - 1, 10000};
    struct resizer *z = arg;

    for (; !atomic_load(&z->stop); z->n++) {
        while (residence_resize(z->residence, UINT64_MAX, size[z->n % 6]) == -EAGAIN)
            usleep(100);
        usleep((unsigned)(z->n % 7) * 1000);
    }
    return NULL;
}

/* P1: what is given back is poisoned. */
static void
tokens_are_the_same_while_tables_come_and_go_under_running_steps(void **state)
{
    struct rig *expected = reference(any_job, N_JOBS);

    for (int behind = 0; behind < 2; behind++) {
        struct rig *r = open_rig(behind, options, 0);
        struct resizer z = {.residence = open_residence(r, BIG)};
        pthread_t thread;

        if (behind)
            behind_slow(r->behind, 200);
        atomic_store(&here.delay_us, 50);
        assert_int_equal(pthread_create(&thread, NULL, resize_main, &z), 0);
        for (int i = 0; i < 4; i++)
            run_jobs(r, expected);
        atomic_store(&z.stop, true);
        pthread_join(thread, NULL);
        assert_true(z.n > 6);
        close_all(r, z.residence);
    }
    close_rig(expected);
}

static void
a_read_that_fails_leaves_the_table_on_disk(void **state)
{
    struct rig *expected = reference(any_job, N_JOBS);
    struct rig *r = open_rig(false, options, 0);

    atomic_store(&here.fail_at, 2); /* of the first table */
    struct residence *residence = open_residence(r, BIG);

    wait_resident(r, n_tables(r) - 1);
    assert_null(resolver_resident(r->serving->resolver, 0).weights);
    run_jobs(r, expected);
    expect_within(r, residence);
    for (int i = 0; atomic_load(&here.bytes) != residence_bytes(residence); i++) {
        assert_true(i < 1000);
        usleep(1000);
    }
    /* P3 */
    assert_int_equal(residence_resize(residence, UINT64_MAX, BIG + 1), 0);
    wait_resident(r, n_tables(r));
    run_jobs(r, expected);
    close_all(r, residence);
    close_rig(expected);
}

static void
without_memory_the_tables_stay_on_disk(void **state)
{
    struct rig *expected = reference(any_job, N_JOBS);
    struct rig *r = open_rig(false, options, 0);

    atomic_store(&here.refuse, true);
    struct residence *residence = open_residence(r, BIG);

    run_jobs(r, expected);
    assert_int_equal(n_resident(r), 0);
    assert_int_equal(residence_bytes(residence), 0);
    atomic_store(&here.refuse, false);
    close_all(r, residence);
    close_rig(expected);
}

static void
stopping_in_the_middle_takes_no_longer_than_a_piece(void **state)
{
    struct rig *r = open_rig(false, options, 0);
    struct residence *residence;

    atomic_store(&here.delay_us, 20000);
    residence = open_residence(r, BIG);
    while (atomic_load(&here.n_reads) < 3)
        usleep(100);
    uint64_t begin_ns = clock_now_ns();
    residence_stop(residence);
    assert_true(clock_now_ns() - begin_ns < 2000000000ull);
    assert_int_equal(n_resident(r), 0);
    close_all(r, residence);
}

static void
no_longer_wanted_while_it_loads_it_is_given_up(void **state)
{
    struct rig *r = open_rig(false, options, 0);
    struct residence *residence;

    atomic_store(&here.delay_us, 20000);
    residence = open_residence(r, BIG);
    while (atomic_load(&here.n_reads) < 3)
        usleep(100);
    assert_int_equal(residence_resize(residence, UINT64_MAX, 1000), 0);
    assert_int_equal(atomic_load(&here.bytes), 0);
    expect_within(r, residence);
    atomic_store(&here.delay_us, 0);
    assert_int_equal(residence_resize(residence, UINT64_MAX, BIG), 0);
    wait_resident(r, n_tables(r));
    close_all(r, residence);
}

/* That step's rows have landed, and nothing else would make the engine look. */
static void
a_table_goes_though_the_last_step_timed_out_and_no_other_comes(void **state)
{
    for (int behind = 0; behind < 2; behind++) {
        const char *const *const extra = behind ? options : late_options;
        struct rig *r = open_rig(behind, extra, 0);

        atomic_store(&here.shut, true);
        struct residence *residence = open_residence(r, BIG);
        if (behind)
            behind_time_out(r->behind, 2);
        submit(r, 0, make_job(1, 20, 10));
        assert_true(wait_ended(r, 1, PATIENCE_MS));
        assert_int_equal(r->outcome[0].error, -ETIMEDOUT);
        atomic_store(&here.shut, false);
        wait_resident(r, n_tables(r));
        assert_int_equal(residence_resize(residence, UINT64_MAX, 0), 0);
        assert_int_equal(atomic_load(&here.bytes), 0);
        close_all(r, residence);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tables_fit_in_order_of_layer),
        cmocka_unit_test(tokens_are_the_same_on_disk_while_loading_resident_and_after_each_resize),
        cmocka_unit_test(tokens_are_the_same_while_tables_come_and_go_under_running_steps),
        cmocka_unit_test(a_read_that_fails_leaves_the_table_on_disk),
        cmocka_unit_test(without_memory_the_tables_stay_on_disk),
        cmocka_unit_test(stopping_in_the_middle_takes_no_longer_than_a_piece),
        cmocka_unit_test(no_longer_wanted_while_it_loads_it_is_given_up),
        cmocka_unit_test(a_table_goes_though_the_last_step_timed_out_and_no_other_comes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
