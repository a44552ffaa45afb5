#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "tests/unit/tiering/cold_fixture.h"
#include "tiering/nvme_store.h"

enum { FILE_BYTES = 64 * 4096 + 123 };

static char path[64];
static struct bell bell;

static int
make_file(void **state)
{
    (void)snprintf(path, sizeof path, "/tmp/engramd-nvme-XXXXXX");
    write_pattern_file(path, 0, FILE_BYTES);
    bell_init(&bell);
    return 0;
}

static int
drop_file(void **state)
{
    (void)unlink(path);
    return 0;
}

static int
try_open(struct cold_store **ret_store, const char *name, uint64_t size, bool uring,
         struct err *err)
{
    struct nvme_file file = {name, size};
    struct nvme_options options = {
        .depth = 16, .direct = 1, .retries = 2, .notify = bell_ring, .notify_arg = &bell};
    return nvme_store_open_with(ret_store, &file, 1, &options, uring, err);
}

static struct cold_store *
open_it(bool uring)
{
    struct cold_store *store;
    struct err err = ERR_INIT;
    if (try_open(&store, path, FILE_BYTES, uring, &err) < 0)
        fail_msg("%s", err.text);
    return store;
}

static void
run_reads(struct cold_store *store, struct cold_read *reads, int n)
{
    struct cold_read *list[64], *back[64];
    for (int i = 0; i < n; i++)
        list[i] = &reads[i];
    store->ops->submit(store, list, n);
    for (int left = n; left > 0;) {
        int got = store->ops->reap(store, back, 64);
        left -= got;
        if (got == 0)
            assert_true(bell_wait(&bell));
    }
}

static int
read_at(struct cold_store *store, uint64_t offset, uint32_t size, uint8_t *dst)
{
    struct cold_read read = {.offset_bytes = offset, .size_bytes = size, .dst = dst};
    run_reads(store, &read, 1);
    return read.result;
}

static void
what_is_no_file_of_the_stated_size_is_refused_by_name(void **state)
{
    struct cold_store *store = NULL;
    struct err err = ERR_INIT;
    assert_int_equal(try_open(&store, "/tmp/engramd-no-such-file", 1, true, &err), -ENOENT);
    assert_non_null(strstr(err.text, "/tmp/engramd-no-such-file"));
    err = ERR_INIT;
    assert_int_equal(try_open(&store, "/tmp", 4096, true, &err), -EINVAL);
    assert_non_null(strstr(err.text, "regular"));
    err = ERR_INIT;
    assert_int_equal(try_open(&store, path, FILE_BYTES + 1, true, &err), -EINVAL);
    assert_non_null(strstr(err.text, path));
    err = ERR_INIT;
    assert_int_equal(try_open(&store, path, FILE_BYTES - 1, true, &err), -EINVAL);
    char fifo[80];
    (void)snprintf(fifo, sizeof fifo, "%s-fifo", path);
    assert_int_equal(mkfifo(fifo, 0600), 0);
    err = ERR_INIT;
    assert_int_equal(try_open(&store, fifo, 0, true, &err), -EINVAL); /* and does not wait */
    (void)unlink(fifo);
    assert_null(store);
}

static void
options_out_of_range_are_refused(void **state)
{
    struct nvme_file file = {path, FILE_BYTES};
    struct cold_store *store;
    const struct nvme_options bad[] = {{.depth = 0}, {.depth = 4097}, {.depth = 1, .retries = -1}};
    for (int i = 0; i < 3; i++) {
        struct err err = ERR_INIT;
        assert_int_equal(nvme_store_open(&store, &file, 1, &bad[i], &err), -EINVAL);
    }
    struct nvme_options good = {.depth = 1};
    assert_int_equal(nvme_store_open(&store, &file, 0, &good, NULL), -EINVAL);
}

static void
the_description_says_how_the_file_is_read(void **state)
{
    struct cold_store *store = open_it(false);
    assert_non_null(strstr(nvme_store_describe(store), "pread"));
    store->ops->close(store);
    store = open_it(true);
    print_message("%s\n", nvme_store_describe(store));
    store->ops->close(store);
}

static void
reads_outside_the_file_are_errors_and_touch_nothing(void **state)
{
    struct cold_store *store = open_it(true);
    uint8_t byte = 77;
    assert_int_equal(read_at(store, FILE_BYTES, 1, &byte), -EIO);
    assert_int_equal(read_at(store, UINT64_MAX, 1, &byte), -EIO);
    assert_int_equal(read_at(store, UINT64_MAX - 4096, COLD_READ_MAX, &byte), -EIO);
    assert_int_equal(byte, 77);
    assert_int_equal(read_at(store, FILE_BYTES - 1, 1, &byte), 0);
    assert_int_equal(byte, null_store_byte(0, FILE_BYTES - 1));
    store->ops->close(store);
}

static void
a_file_truncated_while_serving_gives_errors_for_what_it_lost(void **state)
{
    for (int uring = 0; uring < 2; uring++) {
        write_pattern_file(strcpy(path, "/tmp/engramd-nvme-XXXXXX"), 0, FILE_BYTES);
        struct cold_store *store = open_it(uring);
        assert_int_equal(truncate(path, 10 * 4096 + 5), 0);
        uint8_t bytes[4][300];
        struct cold_read reads[4] = {
            {.offset_bytes = 9 * 4096, .size_bytes = 300, .dst = bytes[0]},
            {.offset_bytes = 10 * 4096, .size_bytes = 5, .dst = bytes[1]},
            {.offset_bytes = 10 * 4096, .size_bytes = 6, .dst = bytes[2]}, /* one byte too far */
            {.offset_bytes = 11 * 4096, .size_bytes = 300, .dst = bytes[3]},
        };
        run_reads(store, reads, 4);
        assert_int_equal(reads[0].result, 0);
        assert_int_equal(reads[1].result, 0);
        assert_int_equal(reads[2].result, -EIO);
        assert_int_equal(reads[3].result, -EIO);
        assert_int_equal(bytes[1][4], null_store_byte(0, 10 * 4096 + 4));
        struct cold_counters count;
        store->ops->counters(store, &count);
        assert_int_equal(count.errors, 2);
        store->ops->close(store);
        (void)unlink(path);
    }
    (void)make_file(NULL);
}

static void
a_file_replaced_while_serving_is_still_read_as_it_was(void **state)
{
    struct cold_store *store = open_it(true);
    char other[64] = "/tmp/engramd-nvme-XXXXXX";
    write_pattern_file(other, 1, FILE_BYTES);
    assert_int_equal(rename(other, path), 0);
    uint8_t bytes[100];
    assert_int_equal(read_at(store, 5000, 100, bytes), 0);
    for (uint64_t i = 0; i < 100; i++)
        assert_int_equal(bytes[i], null_store_byte(0, 5000 + i));
    store->ops->close(store);
}

static void
reads_of_shared_pages_cost_one_device_read(void **state)
{
    struct cold_store *store = open_it(true);
    static uint8_t bytes[40][100];
    struct cold_read reads[40];
    for (int i = 0; i < 40; i++) /* pages 3 and 4, each page many times */
        reads[i] = (struct cold_read){
            .offset_bytes = 3 * 4096 + (uint64_t)i * 200, .size_bytes = 100, .dst = bytes[i]};
    run_reads(store, reads, 40);
    struct cold_counters count;
    store->ops->counters(store, &count);
    assert_int_equal(count.reads, 1);
    assert_int_equal(count.bytes, 2 * 4096);
    assert_int_equal(count.useful_bytes, 40 * 100);
    assert_int_equal(count.merged, 39);
    store->ops->close(store);
}

/* The descriptor of the store's file, found by what it points at. */
static int
descriptor_of(const char *name)
{
    char link[64], target[128];
    for (int fd = 3; fd < 256; fd++) {
        (void)snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t n = readlink(link, target, sizeof target - 1);
        if (n > 0 && (target[n] = 0, strcmp(target, name) == 0))
            return fd;
    }
    return -1;
}

/* A disk with bad sectors: the store's descriptor is turned into this process's memory, whose pages
 * that are not mapped give EIO. Offsets of the file are addresses. */
static void
a_bad_page_fails_only_the_reads_that_need_it(void **state)
{
    enum { BASE = 1 << 20, SIZE = (1 << 20) + 16 * 4096 };
    char big[64] = "/tmp/engramd-nvme-XXXXXX";
    int fd = mkstemp(big);
    assert_int_equal(ftruncate(fd, SIZE), 0);
    (void)close(fd);
    uint8_t *memory = mmap((void *)(uintptr_t)BASE, 16 * 4096, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (memory != (void *)(uintptr_t)BASE)
        skip();
    for (int i = 0; i < 16 * 4096; i++)
        memory[i] = null_store_byte(0, (uint64_t)(BASE + i));
    assert_int_equal(munmap(memory + 5 * 4096, 4096), 0); /* the bad page */

    struct cold_store *store;
    struct err err = ERR_INIT;
    assert_int_equal(try_open(&store, big, SIZE, false, &err), 0);
    int mine = descriptor_of(big), mem = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
    assert_true(mine >= 0 && mem >= 0);
    assert_int_equal(dup3(mem, mine, O_CLOEXEC), mine);

    uint8_t bytes[6][64];
    struct cold_read reads[6];
    const uint64_t offset[6] = {4 * 4096 + 10, 5 * 4096 + 10, 6 * 4096 + 10,
                                7 * 4096 + 10, 5 * 4096 - 30, 6 * 4096 - 30};
    const int result[6] = {0, -EIO, 0, 0, -EIO, -EIO}; /* the last two lie across its borders */
    for (int i = 0; i < 6; i++)
        reads[i] =
            (struct cold_read){.offset_bytes = BASE + offset[i], .size_bytes = 64, .dst = bytes[i]};
    run_reads(store, reads, 6);
    for (int i = 0; i < 6; i++)
        assert_int_equal(reads[i].result, result[i]);
    for (uint64_t i = 0; i < 64; i++)
        assert_int_equal(bytes[2][i], null_store_byte(0, BASE + offset[2] + i));
    struct cold_counters count;
    store->ops->counters(store, &count);
    assert_int_equal(count.errors, 3);
    assert_true(count.retries >= 2);

    /* The sector is replaced: the next read works. */
    assert_ptr_not_equal(mmap(memory + 5 * 4096, 4096, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0),
                         MAP_FAILED);
    assert_int_equal(read_at(store, BASE + offset[1], 64, bytes[1]), 0);
    store->ops->close(store);
    (void)close(mem);
    (void)munmap(memory, 16 * 4096);
    (void)unlink(big);
}

static void
a_file_system_without_direct_reads_is_read_all_the_same(void **state)
{
    char shm[64] = "/dev/shm/engramd-nvme-XXXXXX";
    if (access("/dev/shm", W_OK) != 0)
        skip();
    write_pattern_file(shm, 0, 10001);
    struct cold_store *store;
    struct err err = ERR_INIT;
    assert_int_equal(try_open(&store, shm, 10001, true, &err), 0);
    print_message("%s\n", nvme_store_describe(store));
    uint8_t bytes[101];
    assert_int_equal(read_at(store, 9900, 101, bytes), 0);
    assert_int_equal(bytes[100], null_store_byte(0, 10000));
    store->ops->close(store);
    (void)unlink(shm);
}

/* As containers do: a system call filter under which io_uring_setup is not permitted. */
static int
deny_io_uring(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0), /* seccomp_data.nr */
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof code / sizeof code[0], code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return -1;
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

static void
a_kernel_that_denies_io_uring_is_served_by_pread(void **state)
{
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        struct cold_store *store;
        struct err err = ERR_INIT;
        if (deny_io_uring() < 0)
            _exit(77);
        if (try_open(&store, path, FILE_BYTES, true, &err) < 0)
            _exit(1);
        if (!strstr(nvme_store_describe(store), "pread") ||
            !strstr(nvme_store_describe(store), "not permitted"))
            _exit(2);
        uint8_t bytes[16];
        if (read_at(store, 4090, 16, bytes) < 0 || bytes[15] != null_store_byte(0, 4105))
            _exit(3);
        store->ops->close(store);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77)
        skip();
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void
the_fault_store_fails_what_its_plan_says_and_nothing_else(void **state)
{
    uint8_t bytes[64][8];
    struct cold_read reads[64];
    struct cold_store *store, *below;
    assert_int_equal(null_store_open(&below, bell_ring, &bell), 0);
    struct fault_plan plan = {
        .fail_from = 10, .every_nth = 4, .bad_file = 0, .bad_begin = 100, .bad_end = 108};
    assert_int_equal(fault_store_open(&store, below, &plan), 0);
    for (int i = 0; i < 64; i++)
        reads[i] = (struct cold_read){
            .offset_bytes = (uint64_t)i * 8, .size_bytes = 8, .dst = bytes[i], .file = i == 62};
    run_reads(store, reads, 64);
    for (int i = 0; i < 64; i++) { /* bytes 96..103 and 104..111 meet [100, 108) */
        bool bad = (i >= 10 && i % 4 == 0) || i == 12 || i == 13;
        assert_int_equal(reads[i].result, bad ? -EIO : 0);
        assert_int_equal(reads[i].file, i == 62);
    }
    store->ops->close(store);
}

static void
the_delay_store_keeps_reads_for_its_delay(void **state)
{
    struct cold_store *store, *below;
    assert_int_equal(null_store_open(&below, bell_ring, &bell), 0);
    assert_int_equal(delay_store_open(&store, below, 20000000, bell_ring, &bell), 0);
    uint8_t bytes[8];
    struct timespec a, b;
    (void)clock_gettime(CLOCK_MONOTONIC, &a);
    assert_int_equal(read_at(store, 0, 8, bytes), 0);
    (void)clock_gettime(CLOCK_MONOTONIC, &b);
    int64_t ns = (b.tv_sec - a.tv_sec) * 1000000000 + b.tv_nsec - a.tv_nsec;
    assert_true(ns >= 20000000);
    store->ops->close(store);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(what_is_no_file_of_the_stated_size_is_refused_by_name,
                                        make_file, drop_file),
        cmocka_unit_test_setup_teardown(options_out_of_range_are_refused, make_file, drop_file),
        cmocka_unit_test_setup_teardown(the_description_says_how_the_file_is_read, make_file,
                                        drop_file),
        cmocka_unit_test_setup_teardown(reads_outside_the_file_are_errors_and_touch_nothing,
                                        make_file, drop_file),
        cmocka_unit_test_setup_teardown(
            a_file_truncated_while_serving_gives_errors_for_what_it_lost, make_file, drop_file),
        cmocka_unit_test_setup_teardown(a_file_replaced_while_serving_is_still_read_as_it_was,
                                        make_file, drop_file),
        cmocka_unit_test_setup_teardown(reads_of_shared_pages_cost_one_device_read, make_file,
                                        drop_file),
        cmocka_unit_test_setup_teardown(a_bad_page_fails_only_the_reads_that_need_it, make_file,
                                        drop_file),
        cmocka_unit_test_setup_teardown(a_file_system_without_direct_reads_is_read_all_the_same,
                                        make_file, drop_file),
        cmocka_unit_test_setup_teardown(a_kernel_that_denies_io_uring_is_served_by_pread, make_file,
                                        drop_file),
        cmocka_unit_test_setup_teardown(the_fault_store_fails_what_its_plan_says_and_nothing_else,
                                        make_file, drop_file),
        cmocka_unit_test_setup_teardown(the_delay_store_keeps_reads_for_its_delay, make_file,
                                        drop_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
