/* host_memory: zeroed, aligned, apart, and given back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "gpu/host/host_memory.h"

static const size_t sizes[] = {
    0, 1, 63, 64, 65, 100000, 2000000, (2 << 20) - 1, 2 << 20, (2 << 20) + 1, 9 << 20, 12};
enum { N_SIZES = sizeof sizes / sizeof *sizes };

static void
blocks_are_zeroed_aligned_and_apart_however_often_they_come_and_go(void **state)
{
    struct host_memory memory;
    unsigned char *block[N_SIZES];

    host_memory_init(&memory);
    for (int round = 0; round < 5; round++) {
        for (int i = 0; i < N_SIZES; i++) {
            block[i] = host_memory_alloc(&memory, sizes[i]);
            assert_non_null(block[i]);
            assert_int_equal((uintptr_t)block[i] % 64, 0);
            for (size_t j = 0; j < sizes[i]; j++)
                assert_int_equal(block[i][j], 0);
            memset(block[i], i + 1, sizes[i]);
        }
        for (int i = 0; i < N_SIZES; i++)
            for (size_t j = 0; j < sizes[i]; j++)
                assert_int_equal(block[i][j], i + 1);
        for (int i = 0; i < N_SIZES; i++) {
            int which = round % 2 ? i : N_SIZES - 1 - i;
            host_memory_free(&memory, block[which], sizes[which]);
        }
        assert_null(memory.slabs);
    }
    host_memory_free(&memory, NULL, 5);
    host_memory_close(&memory);
}

static void
a_size_no_machine_has_is_refused(void **state)
{
    struct host_memory memory;

    host_memory_init(&memory);
    assert_null(host_memory_alloc(&memory, SIZE_MAX));
    assert_null(host_memory_alloc(&memory, SIZE_MAX - (1 << 20)));
    assert_null(host_memory_alloc(&memory, SIZE_MAX / 2));
    assert_null(host_memory_alloc(&memory, (size_t)1 << 60));
    host_memory_close(&memory);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_are_zeroed_aligned_and_apart_however_often_they_come_and_go),
        cmocka_unit_test(a_size_no_machine_has_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
