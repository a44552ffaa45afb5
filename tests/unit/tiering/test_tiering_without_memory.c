/* Every allocation failed in turn: creation says so and leaks nothing; a running system answers
 * with failed rows at worst, and with right ones as soon as there is memory again. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/failing_malloc.h"
#include "tests/unit/tiering/tiers_fixture.h"
#include "tiering/nvme_queue.h"
#include "tiering/nvme_store.h"

enum { ROWS = 48, FILE_BYTES = 200000 };

static void *
plain_alloc(void *arg, size_t size)
{
    return malloc(size);
}
static void
plain_free(void *arg, void *chunk, size_t size)
{
    free(chunk);
}

static void
run_step(struct tiers *tiers, const struct tiers_options *options, uint64_t step, bool must_work)
{
    static struct bundle_address address[ROWS * MAX_ORDERS];
    uint64_t mix[ROWS * MAX_ORDERS];
    uint8_t failed[ROWS] = {0};
    struct flag flag = {0};
    for (uint64_t i = 0; i < ROWS * MAX_ORDERS; i++)
        mix[i] = step * 40 + i;
    struct tiers_request request = {.step = step,
                                    .resident = options->resident[0].weights,
                                    .n_rows = ROWS,
                                    .mix = mix,
                                    .address = address,
                                    .failed = failed,
                                    .ready = &flag,
                                    .ready_value = 1};
    tiers_resolve(tiers, &request);
    assert_int_equal(flag_read(&flag), 1);
    for (int i = 0; i < ROWS * MAX_ORDERS; i++) {
        if (!address[i].source) {
            assert_false(must_work);
            assert_int_equal(failed[i / MAX_ORDERS], 1);
            continue;
        }
        uint8_t got[4096];
        read_source(options, 0, i % MAX_ORDERS, mix[i], address[i].source, got);
        expect_bundle(options, 0, i % MAX_ORDERS, mix[i], got);
        if (address[i].promote)
            memcpy(address[i].promote, got, (size_t)engram_bundle_bytes(&options->engram));
    }
    tiers_step_done(tiers, step);
}

static void
fail_each_allocation(bool resident)
{
    for (long n = 0;; n++) {
        assert_true(n < 1000);
        struct cold_store *cold;
        assert_int_equal(null_store_open(&cold, NULL, NULL), 0);
        struct tiers_options options = {.cold = cold,
                                        .hbm_memory = {.alloc = plain_alloc, .free = plain_free, .arg = NULL},
                                        .ram_memory = {.alloc = plain_alloc, .free = plain_free, .arg = NULL},
                                        .hbm_budget_bytes = 20000,
                                        .ram_budget_bytes = 60000,
                                        .row_share = 0.1,
                                        .max_step_rows = ROWS,
                                        .steps_in_flight = 2,
                                        .in_place_below = 8,
                                        .gather_threads = 2};
        shape_options(&options, 0);
        if (resident)
            make_resident(&options, 0, false);
        struct tiers *tiers = NULL;
        struct err err = ERR_INIT;
        failing_malloc_arm(n);
        int code = tiers_new(&tiers, &options, &err);
        assert_true(code == 0 || code == -ENOMEM);
        if (code == 0) {
            for (uint64_t step = 1; step < 20; step++)
                run_step(tiers, &options, step, false);
            tiers_resize(tiers, 10000, 20000);
            for (uint64_t step = 20; step < 30; step++)
                run_step(tiers, &options, step, false);
        }
        bool failed = failing_malloc_disarm();
        if (code == 0)
            for (uint64_t step = 30; step < 60; step++)
                run_step(tiers, &options, step, step > 30);
        else
            assert_true(failed && err.code == -ENOMEM && !tiers);
        tiers_free(tiers);
        cold->ops->close(cold);
        free_resident(&options);
        if (!failed) {
            assert_true(n > 20);
            return;
        }
    }
}

static void
tiers_work_on_when_any_allocation_fails(void **state)
{
    fail_each_allocation(false);
    fail_each_allocation(true);
}

static void
stores_say_that_they_cannot_open(void **state)
{
    struct cold_store *null, *store = NULL;
    struct fault_plan plan = {.bad_file = -1};
    failing_malloc_arm(0);
    assert_int_equal(null_store_open(&null, NULL, NULL), -ENOMEM);
    failing_malloc_disarm();
    assert_int_equal(null_store_open(&null, NULL, NULL), 0);
    failing_malloc_arm(0);
    assert_int_equal(fault_store_open(&store, null, &plan), -ENOMEM);
    assert_int_equal(delay_store_open(&store, null, 1, NULL, NULL), -ENOMEM);
    failing_malloc_disarm();
    assert_null(store);
    null->ops->close(null);
}

static void
the_nvme_store_opens_whole_or_not_at_all(void **state)
{
    char path[64] = "/tmp/engramd-memory-XXXXXX";
    write_pattern_file(path, 0, FILE_BYTES);
    struct nvme_file file = {path, FILE_BYTES};
    static struct bell bell;
    bell_init(&bell);
    struct nvme_options options = {
        .depth = 8, .direct = 1, .notify = bell_ring, .notify_arg = &bell};
    for (long n = 0;; n++) {
        assert_true(n < 200);
        struct cold_store *store = NULL;
        struct err err = ERR_INIT;
        failing_malloc_arm(n);
        failing_malloc_alone = true;
        int code = nvme_store_open(&store, &file, 1, &options, &err);
        bool failed = failing_malloc_disarm();
        if (code < 0) {
            assert_int_equal(code, -ENOMEM);
            assert_null(store);
            continue;
        }
        store->ops->close(store);
        if (!failed) {
            assert_true(n > 5);
            break;
        }
    }
    (void)unlink(path);
}

static void
a_queue_without_memory_refuses_reads_and_loses_none(void **state)
{
    enum { N = 3000 };
    struct cold_read *reads = calloc(N, sizeof *reads);
    failing_malloc_alone = true;
    for (long n = 0;; n++) {
        failing_malloc_arm(n);
        struct nvme_queue *queue = nvme_queue_new(4096, 4);
        int taken = 0, popped = 0, refused = 0;
        for (int i = 0; queue && i < N; i++) {
            reads[i] = (struct cold_read){.offset_bytes = (uint64_t)i * 8192, .size_bytes = 16};
            int code = nvme_queue_add(queue, &reads[i]);
            assert_true(code == 0 || code == -ENOMEM);
            taken += code == 0;
            refused += code < 0;
        }
        bool failed = failing_malloc_disarm();
        struct extent *extent;
        while (queue && (extent = nvme_queue_pop(queue))) {
            popped++;
            assert_non_null(read_chain_pop(&extent->reads));
            nvme_queue_remove(queue, extent);
        }
        assert_int_equal(popped, taken);
        if (queue)
            assert_int_equal(taken + refused, N);
        assert_int_equal(queue && !refused, !failed);
        nvme_queue_free(queue);
        if (!failed)
            break;
    }
    failing_malloc_alone = false;
    free(reads);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tiers_work_on_when_any_allocation_fails),
        cmocka_unit_test(stores_say_that_they_cannot_open),
        cmocka_unit_test(the_nvme_store_opens_whole_or_not_at_all),
        cmocka_unit_test(a_queue_without_memory_refuses_reads_and_loses_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
