#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/arena.h"

static void
memory_is_zeroed_aligned_and_apart(void **state)
{
    struct arena *arena = arena_new(0);
    unsigned char *before = NULL;
    for (size_t size = 0; size < 3000; size += 7) {
        unsigned char *memory = arena_alloc(arena, size);
        assert_non_null(memory);
        assert_int_equal((uintptr_t)memory % 16, 0);
        assert_ptr_not_equal(memory, before);
        for (size_t i = 0; i < size; i++)
            assert_int_equal(memory[i], 0);
        memset(memory, 0xA5, size);
        before = memory;
    }
    assert_null(arena_free(arena));
}

static void
the_limit_is_reached_exactly_and_not_passed(void **state)
{
    struct arena *arena = arena_new(1024);
    assert_null(arena_alloc(arena, 1025));
    assert_non_null(arena_alloc(arena, 1000)); /* rounded to 1008 */
    assert_null(arena_alloc(arena, 17));
    assert_non_null(arena_alloc(arena, 16));
    assert_int_equal(arena_used_bytes(arena), 1024);
    assert_null(arena_alloc(arena, 0));
    arena_free(arena);
}

static void
a_large_request_leaves_the_rest_of_the_small_block_in_use(void **state)
{
    struct arena *arena = arena_new(0);
    assert_non_null(arena_alloc(arena, 100));
    char *large = arena_alloc(arena, 10u << 20);
    assert_non_null(large);
    memset(large, 1, 10u << 20);
    assert_non_null(arena_alloc(arena, 100));
    assert_int_equal(arena_used_bytes(arena), 112 + (10u << 20) + 112);
    arena_free(arena);
}

static void
sizes_that_overflow_are_refused(void **state)
{
    struct arena *arena = arena_new(0);
    assert_null(arena_array(arena, SIZE_MAX / 2, 3));
    assert_null(arena_alloc(arena, SIZE_MAX));
    assert_null(arena_alloc(arena, SIZE_MAX - 14));
    assert_null(arena_strndup(arena, "x", SIZE_MAX));
    assert_int_equal(arena_used_bytes(arena), 0);
    uint32_t *numbers = arena_array(arena, 3, sizeof *numbers);
    assert_non_null(numbers);
    numbers[2] = 7;
    arena_free(arena);
}

static void
a_copied_text_ends_in_nul(void **state)
{
    struct arena *arena = arena_new(0);
    assert_string_equal(arena_strndup(arena, "engram memory", 6), "engram");
    assert_string_equal(arena_strndup(arena, NULL, 0), "");
    arena_free(arena);
    assert_null(arena_free(NULL));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_is_zeroed_aligned_and_apart),
        cmocka_unit_test(the_limit_is_reached_exactly_and_not_passed),
        cmocka_unit_test(a_large_request_leaves_the_rest_of_the_small_block_in_use),
        cmocka_unit_test(sizes_that_overflow_are_refused),
        cmocka_unit_test(a_copied_text_ends_in_nul),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
