/* One suite over every cold store and every way the NVMe store can read. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "tests/unit/tiering/cold_fixture.h"
#include "tiering/nvme_store.h"

enum { FILE_BYTES = 300007, N_FILES = 2 }; /* no multiple of any page */

static char path[N_FILES][64];
static struct nvme_file file[N_FILES];
static struct bell bell;

static struct cold_store *
open_nvme(int depth, bool direct, bool uring)
{
    struct nvme_options options = {
        .depth = depth, .direct = direct, .retries = 2, .notify = bell_ring, .notify_arg = &bell};
    struct cold_store *store;
    struct err err = ERR_INIT;
    int code = nvme_store_open_with(&store, file, N_FILES, &options, uring, &err);
    if (code < 0)
        fail_msg("%s", err.text);
    return store;
}
static struct cold_store *
open_null(void)
{
    struct cold_store *store;
    assert_int_equal(null_store_open(&store, bell_ring, &bell), 0);
    return store;
}
static struct cold_store *
open_delay(void)
{
    struct cold_store *store;
    assert_int_equal(delay_store_open(&store, open_null(), 300000, bell_ring, &bell), 0);
    return store;
}
static struct cold_store *
open_fault(void)
{
    struct cold_store *store;
    struct fault_plan plan = {.bad_file = -1};
    assert_int_equal(fault_store_open(&store, open_null(), &plan), 0);
    return store;
}
static struct cold_store *
open_uring_direct(void)
{
    return open_nvme(32, true, true);
}
static struct cold_store *
open_uring_deep(void)
{
    return open_nvme(1024, true, true);
}
static struct cold_store *
open_uring_buffered(void)
{
    return open_nvme(32, false, true);
}
static struct cold_store *
open_uring_single(void)
{
    return open_nvme(1, true, true);
}
static struct cold_store *
open_pread_direct(void)
{
    return open_nvme(32, true, false);
}
static struct cold_store *
open_pread_buffered(void)
{
    return open_nvme(32, false, false);
}
static struct cold_store *
open_stack(void)
{
    struct cold_store *fault, *delay;
    struct fault_plan plan = {.bad_file = -1};
    assert_int_equal(fault_store_open(&fault, open_nvme(64, true, true), &plan), 0);
    assert_int_equal(delay_store_open(&delay, fault, 100000, bell_ring, &bell), 0);
    return delay;
}

struct subject {
    const char *name;
    struct cold_store *(*open)(void);
};

/* Reaps until n reads are back, sleeping only on notify: a lost wake-up fails the test. */
static void
reap_all(struct cold_store *store, int n, int *times, const struct cold_read *reads)
{
    struct cold_read *batch[7];
    while (n > 0) {
        int got = store->ops->reap(store, batch, 7);
        for (int i = 0; i < got; i++)
            times[batch[i] - reads]++;
        n -= got;
        if (got == 0)
            assert_true(bell_wait(&bell));
    }
}

static void
check_bytes(const struct cold_read *read)
{
    const uint8_t *got = read->dst;
    for (uint32_t i = 0; i < read->size_bytes; i++)
        if (got[i] != null_store_byte(read->file, read->offset_bytes + i))
            fail_msg("file %d offset %llu + %u is wrong", read->file,
                     (unsigned long long)read->offset_bytes, i);
}

static void
every_read_comes_back_once_with_the_bytes_of_its_file(void **state)
{
    const struct subject *subject = *state;
    struct cold_store *store = subject->open();
    enum { N = 700 };
    struct cold_read *reads = calloc(N, sizeof *reads), **list = calloc(N, sizeof *list);
    int *times = calloc(N, sizeof *times);
    uint64_t random = 1;
    for (int round = 0; round < 4; round++) {
        memset(times, 0, N * sizeof *times);
        for (int i = 0; i < N; i++) {
            uint32_t size = 1 + (uint32_t)(next_random(&random) % 600);
            if (i % 97 == 0)
                size = COLD_READ_MAX;
            uint64_t offset = next_random(&random) % (FILE_BYTES - size + 1);
            if (i % 31 == 0)
                offset = FILE_BYTES - size; /* the last byte of the file */
            reads[i] = (struct cold_read){.file = (int)(next_random(&random) % N_FILES),
                                          .offset_bytes = offset,
                                          .size_bytes = size,
                                          .dst = malloc(size),
                                          .deadline_ns = next_random(&random) % 1000,
                                          .result = 1,
                                          .owner = &reads[i]};
            list[i] = &reads[i];
        }
        for (int sent = 0; sent < N;) { /* in bursts, some of one */
            int burst = 1 + (int)(next_random(&random) % (round == 0 ? 1 : 200));
            burst = burst < N - sent ? burst : N - sent;
            store->ops->submit(store, list + sent, burst);
            sent += burst;
        }
        reap_all(store, N, times, reads);
        for (int i = 0; i < N; i++) {
            assert_int_equal(times[i], 1);
            assert_int_equal(reads[i].result, 0);
            assert_ptr_equal(reads[i].owner, &reads[i]);
            check_bytes(&reads[i]);
            free(reads[i].dst);
        }
    }
    struct cold_counters count;
    store->ops->counters(store, &count);
    uint64_t in_buckets = 0;
    for (int i = 0; i < 24; i++)
        in_buckets += count.latency_bucket[i];
    assert_int_equal(in_buckets, count.reads);
    assert_int_equal(count.errors, 0);
    assert_true(count.reads > 0 && count.useful_bytes > 0);
    free(reads);
    free(list);
    free(times);
    assert_null(store->ops->close(store));
}

static void
one_read_at_a_time_is_never_forgotten(void **state)
{
    const struct subject *subject = *state;
    struct cold_store *store = subject->open();
    uint8_t bytes[16];
    for (int i = 0; i < 300; i++) {
        struct cold_read read = {.file = 1,
                                 .offset_bytes = (uint64_t)i * 997,
                                 .size_bytes = sizeof bytes,
                                 .dst = bytes},
                         *one = &read;
        int times = 0;
        store->ops->submit(store, &one, 1);
        reap_all(store, 1, &times, &read);
        assert_int_equal(read.result, 0);
        check_bytes(&read);
    }
    store->ops->close(store);
}

static void
a_file_number_that_does_not_exist_is_an_error_of_that_read(void **state)
{
    const struct subject *subject = *state;
    struct cold_store *store = subject->open();
    if (strstr(subject->name, "fault") || strstr(subject->name, "stack")) {
        store->ops->close(store); /* those assert on it: they count on the number themselves */
        return;
    }
    uint8_t bytes[2][16];
    struct cold_read reads[2] = {
        {.file = -1, .size_bytes = 16, .dst = bytes[0]},
        {.file = 0, .size_bytes = 16, .dst = bytes[1]},
    };
    struct cold_read *list[2] = {&reads[0], &reads[1]};
    int times[2] = {0};
    store->ops->submit(store, list, 2);
    reap_all(store, 2, times, reads);
    assert_true(reads[0].result < 0);
    assert_int_equal(reads[1].result, 0);
    struct cold_counters count;
    store->ops->counters(store, &count);
    assert_int_equal(count.errors, 1);
    store->ops->close(store);
}

static void
opening_and_closing_unused_leaves_nothing(void **state)
{
    const struct subject *subject = *state;
    for (int i = 0; i < 5; i++) {
        struct cold_store *store = subject->open();
        assert_null(store->ops->close(store));
    }
}

static int
set_up(void **state)
{
    for (int i = 0; i < N_FILES; i++) {
        (void)snprintf(path[i], sizeof path[i], "/tmp/engramd-cold-XXXXXX");
        write_pattern_file(path[i], i, FILE_BYTES);
        file[i] = (struct nvme_file){path[i], FILE_BYTES};
    }
    bell_init(&bell);
    return 0;
}

static int
tear_down(void **state)
{
    for (int i = 0; i < N_FILES; i++)
        (void)unlink(path[i]);
    return 0;
}

int
main(void)
{
    static struct subject subjects[] = {
        {"null", open_null},
        {"delay", open_delay},
        {"fault", open_fault},
        {"nvme, io_uring, direct", open_uring_direct},
        {"nvme, io_uring, direct, deep", open_uring_deep},
        {"nvme, io_uring, buffered", open_uring_buffered},
        {"nvme, io_uring, one at a time", open_uring_single},
        {"nvme, pread, direct", open_pread_direct},
        {"nvme, pread, buffered", open_pread_buffered},
        {"stack of delay, fault and nvme", open_stack},
    };
    static struct CMUnitTest tests[64];
    static char names[64][160];
    size_t n = 0;
    for (size_t i = 0; i < sizeof subjects / sizeof subjects[0]; i++) {
#define ADD(test)                                                                                  \
    do {                                                                                           \
        (void)snprintf(names[n], sizeof names[n], "%s: %s", subjects[i].name, #test);              \
        tests[n] = (struct CMUnitTest){names[n], test, NULL, NULL, &subjects[i]};                  \
        n++;                                                                                       \
    } while (0)
        ADD(every_read_comes_back_once_with_the_bytes_of_its_file);
        ADD(one_read_at_a_time_is_never_forgotten);
        ADD(a_file_number_that_does_not_exist_is_an_error_of_that_read);
        ADD(opening_and_closing_unused_leaves_nothing);
#undef ADD
    }
    return _cmocka_run_group_tests("every cold store", tests, n, set_up, tear_down);
}
