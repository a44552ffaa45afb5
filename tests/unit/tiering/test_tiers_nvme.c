/* The tiers on a real disk, with the daemon's threads: engine (here), resolver, ring, and somebody
 * who reads the counters. Meant for the thread sanitizer as much as for the bytes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include <pthread.h>

#include "base/mailbox.h"
#include "tests/unit/tiering/tiers_fixture.h"

enum { ROWS = 24, N_FILES = 7, FILE_BYTES = 60001 };

enum message_kind { RESOLVE, DONE, ABORT, PLAN, RESIZE, STOP };
struct message {
    enum message_kind kind;
    struct tiers_request request;
    uint64_t plan[40];
    uint64_t hbm, ram;
};

struct world {
    char path[N_FILES][64];
    struct nvme_file file[N_FILES];
    struct cold_store *cold;
    struct tiers_options options;
    struct tiers *tiers;
    struct mailbox *mailbox;
    pthread_t resolver, reader;
    _Atomic bool stop;
};

static void *
chunk_alloc(void *arg, size_t size)
{
    return malloc(size);
}
static void
chunk_free(void *arg, void *chunk, size_t size)
{
    free(chunk);
}

static void
wake(void *arg)
{
    struct world *w = arg;
    mailbox_wake(w->mailbox);
}

static void *
resolver_main(void *arg)
{
    struct world *w = arg;
    thread_enter(THREAD_RESOLVER);
    for (;;) {
        struct message *m = mailbox_receive(w->mailbox, UINT64_MAX);
        (void)tiers_poll(w->tiers);
        if (!m)
            continue;
        enum message_kind kind = m->kind;
        if (kind == RESOLVE)
            tiers_resolve(w->tiers, &m->request);
        else if (kind == DONE)
            tiers_step_done(w->tiers, m->request.step);
        else if (kind == ABORT)
            tiers_step_abort(w->tiers, m->request.step);
        else if (kind == PLAN)
            (void)tiers_prefetch(w->tiers, 0, 2, m->plan, 40, UINT64_MAX);
        else if (kind == RESIZE)
            tiers_resize(w->tiers, m->hbm, m->ram);
        free(m);
        if (kind == STOP)
            return NULL;
    }
}

static void *
reader_main(void *arg)
{
    struct world *w = arg;
    while (!atomic_load(&w->stop)) {
        struct tiers_stats stats;
        tiers_stats(w->tiers, &stats);
        struct timespec pause = {.tv_nsec = 300000};
        (void)nanosleep(&pause, NULL);
    }
    return NULL;
}

static void
post(struct world *w, struct message message)
{
    struct message *m = malloc(sizeof *m);
    *m = message;
    while (mailbox_send(w->mailbox, m) < 0)
        sched_yield();
}

static void
open_world(struct world *w, const struct fault_plan *plan, uint64_t delay_ns)
{
    memset(w, 0, sizeof *w);
    for (int i = 0; i < N_FILES; i++) {
        (void)snprintf(w->path[i], sizeof w->path[i], "/tmp/engramd-tiers-XXXXXX");
        write_pattern_file(w->path[i], i, FILE_BYTES);
        w->file[i] = (struct nvme_file){w->path[i], FILE_BYTES};
    }
    w->mailbox = mailbox_new(64);
    struct nvme_options options = {
        .depth = 32, .direct = 1, .retries = 1, .notify = wake, .notify_arg = w};
    struct err err = ERR_INIT;
    assert_int_equal(nvme_store_open(&w->cold, w->file, N_FILES, &options, &err), 0);
    if (plan)
        assert_int_equal(fault_store_open(&w->cold, w->cold, plan), 0);
    if (delay_ns)
        assert_int_equal(delay_store_open(&w->cold, w->cold, delay_ns, wake, w), 0);
    w->options = (struct tiers_options){.cold = w->cold,
                                        .hbm_memory = {.alloc = chunk_alloc, .free = chunk_free, .arg = NULL},
                                        .ram_memory = {.alloc = chunk_alloc, .free = chunk_free, .arg = NULL},
                                        .hbm_budget_bytes = 20000,
                                        .ram_budget_bytes = 60000,
                                        .max_step_rows = ROWS,
                                        .steps_in_flight = 2};
    shape_options(&w->options, 0);
    assert_int_equal(tiers_new(&w->tiers, &w->options, &err), 0);
    assert_int_equal(pthread_create(&w->resolver, NULL, resolver_main, w), 0);
    assert_int_equal(pthread_create(&w->reader, NULL, reader_main, w), 0);
}

static void
close_world(struct world *w)
{
    post(w, (struct message){.kind = STOP});
    pthread_join(w->resolver, NULL);
    atomic_store(&w->stop, true);
    pthread_join(w->reader, NULL);
    tiers_free(w->tiers);
    w->cold->ops->close(w->cold);
    mailbox_free(w->mailbox);
    for (int i = 0; i < N_FILES; i++)
        (void)unlink(w->path[i]);
}

/* Runs steps; returns how many rows failed. Every delivered byte is compared. */
static uint64_t
run_steps(struct world *w, int n_steps, uint64_t first_step, uint64_t distinct)
{
    static struct bundle_address address[MAX_TABLES][ROWS * MAX_ORDERS];
    static uint64_t mix[MAX_TABLES][ROWS * MAX_ORDERS];
    static uint8_t failed[MAX_TABLES][ROWS];
    static struct flag flag[MAX_TABLES];
    memset(flag, 0, sizeof flag);
    uint64_t n_failed = 0;
    for (uint64_t step = first_step; step < first_step + (uint64_t)n_steps; step++) {
        for (int t = 0; t < MAX_TABLES; t++) {
            memset(failed[t], 0, sizeof failed[t]);
            for (int i = 0; i < ROWS * MAX_ORDERS; i++)
                mix[t][i] = next_random(&rng) % distinct;
            post(w, (struct message){.request = {.step = step,
                                                 .table = t,
                                                 .n_rows = ROWS,
                                                 .mix = mix[t],
                                                 .address = address[t],
                                                 .failed = failed[t],
                                                 .ready = &flag[t],
                                                 .ready_value = step,
                                                 .deadline_ns = step * 2 + (uint64_t)t}});
        }
        for (int t = 0; t < MAX_TABLES; t++) {
            assert_int_equal(flag_wait(&flag[t], step, 1000, 20000000000u), 0);
            for (int i = 0; i < ROWS * MAX_ORDERS; i++) {
                if (!address[t][i].source) {
                    assert_int_equal(failed[t][i / MAX_ORDERS], 1);
                    continue;
                }
                expect_bundle(&w->options, t, i % MAX_ORDERS, mix[t][i], address[t][i].source);
                if (address[t][i].promote)
                    memcpy(address[t][i].promote, address[t][i].source,
                           (size_t)engram_bundle_bytes(&w->options.engram));
            }
            for (int r = 0; r < ROWS; r++)
                n_failed += failed[t][r];
        }
        post(w, (struct message){.kind = next_random(&rng) % 5 ? DONE : ABORT,
                                 .request = {.step = step}});
        if (step % 7 == 0) {
            struct message plan = {.kind = PLAN};
            for (int i = 0; i < 40; i++)
                plan.plan[i] = next_random(&rng) % distinct;
            post(w, plan);
        }
        if (step % 11 == 0)
            post(w, (struct message){.kind = RESIZE,
                                     .hbm = next_random(&rng) % 50000,
                                     .ram = next_random(&rng) % 100000});
    }
    return n_failed;
}

static void
every_byte_is_right_between_real_threads(void **state)
{
    struct world w;
    rng = 1;
    open_world(&w, NULL, 0);
    assert_int_equal(run_steps(&w, 150, 1, 2000), 0);
    struct tiers_stats stats;
    tiers_stats(w.tiers, &stats);
    assert_int_equal(stats.nvme.errors, 0);
    assert_true(stats.nvme.reads > 0 && stats.nvme.merged > 0);
    close_world(&w);
}

static void
faults_fail_rows_and_the_rest_goes_on(void **state)
{
    struct world w;
    struct fault_plan plan = {.fail_from = 1000, .every_nth = 50, .bad_file = -1};
    rng = 2;
    open_world(&w, &plan, 200000);
    uint64_t failed = run_steps(&w, 40, 1, 100000);
    assert_true(failed > 0 && failed < 40 * MAX_TABLES * ROWS / 2);
    close_world(&w);
}

static void
a_bad_range_fails_the_rows_that_need_it_and_no_others(void **state)
{
    struct world w;
    /* One row of the first head of order 2 of table 0: row 17 of 101. */
    struct fault_plan plan = {
        .bad_file = 0, .bad_begin = 1000 + 17 * 16, .bad_end = 1000 + 17 * 16 + 1};
    rng = 3;
    open_world(&w, &plan, 0);
    static struct bundle_address address[ROWS * MAX_ORDERS];
    uint64_t mix[ROWS * MAX_ORDERS];
    uint8_t failed[ROWS] = {0};
    struct flag flag = {0};
    for (uint64_t i = 0; i < ROWS * MAX_ORDERS; i++)
        mix[i] = i % MAX_ORDERS ? 500 + i : i / MAX_ORDERS + 10; /* order 2: 10 .. 33 */
    post(&w, (struct message){.request = {.step = 1,
                                          .n_rows = ROWS,
                                          .mix = mix,
                                          .address = address,
                                          .failed = failed,
                                          .ready = &flag,
                                          .ready_value = 1}});
    assert_int_equal(flag_wait(&flag, 1, 0, 20000000000u), 0);
    for (int r = 0; r < ROWS; r++)
        assert_int_equal(failed[r], r == 7);
    close_world(&w);
}

static void
a_table_truncated_under_load_fails_rows_without_a_crash(void **state)
{
    struct world w;
    rng = 4;
    open_world(&w, NULL, 0);
    assert_int_equal(run_steps(&w, 20, 1, 100000), 0);
    assert_int_equal(truncate(w.path[0], 4096), 0);
    assert_int_equal(truncate(w.path[6], 0), 0);
    assert_true(run_steps(&w, 20, 21, 100000) > 0);
    close_world(&w);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_byte_is_right_between_real_threads),
        cmocka_unit_test(faults_fail_rows_and_the_rest_goes_on),
        cmocka_unit_test(a_bad_range_fails_the_rows_that_need_it_and_no_others),
        cmocka_unit_test(a_table_truncated_under_load_fails_rows_without_a_crash),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
