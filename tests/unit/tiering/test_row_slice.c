#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/tiering/tiers_fixture.h"
#include "tiering/row_slice.h"

static struct tiers_options options;
static struct counted_memory memory;
static struct row_slice slice;

/* Tables large enough for many blocks: 16-byte rows, 4,096 of them in a block of 64 KiB. */
static int
set_up(void **state)
{
    memory = (struct counted_memory){0};
    rng = 1;
    memset(&options, 0, sizeof options);
    shape_options(&options, 0);
    for (int t = 0; t < MAX_TABLES; t++)
        options.engram.table[t].rows = 10000 + t;
    const struct chunk_ops ops = {.alloc = counted_alloc, .free = counted_free, .arg = &memory};
    row_slice_init(&slice, &options.engram, options.table, options.resident, held_open(), &ops);
    return 0;
}

static int
tear_down(void **state)
{
    if (slice.n_loading)
        return -1;
    row_slice_free(&slice);
    return memory.bytes != 0;
}

/* Takes back what the store has finished; all of it when n is HELD_MAX. */
static void
land(int n)
{
    struct cold_read *read[8];
    do {
        let_back(n);
        int got = held_reap(&held()->base, read, 8);
        for (int i = 0; i < got; i++)
            assert_true(row_slice_landed(&slice, read[i]));
    } while (n == HELD_MAX && held()->n_held);
}

/* Rows of a region that are resident; all of those must be right. */
static uint64_t
count_rows(int region)
{
    const struct slice_region *r = &slice.region[region];
    uint64_t n = 0;
    for (uint64_t row = 0; row < r->rows; row++) {
        const uint8_t *bytes = row_slice_find(&slice, region, row);
        if (!bytes)
            continue;
        n++;
        for (uint32_t i = 0; i < r->row_bytes; i++)
            assert_int_equal(bytes[i],
                             null_store_byte(r->file, r->offset_bytes + row * r->row_bytes + i));
    }
    return n;
}

static void
with_room_for_all_every_row_is_resident(void **state)
{
    assert_true(row_slice_need(&slice, UINT64_MAX) < 400000);
    row_slice_resize(&slice, UINT64_MAX);
    assert_int_equal(count_rows(0), 0);
    land(HELD_MAX);
    uint64_t bytes = 0;
    for (int i = 0; i < slice.n_regions; i++) {
        assert_int_equal(count_rows(i), slice.region[i].rows);
        bytes += slice.region[i].rows * slice.region[i].row_bytes;
    }
    assert_int_equal(memory.bytes, bytes);
    assert_int_equal(row_slice_used(&slice), slice.need_bytes);
}

static void
scales_come_first_then_the_first_layer(void **state)
{
    row_slice_resize(&slice, 100000); /* both scales of 10 kB, and one block of weights */
    land(HELD_MAX);
    assert_true(row_slice_used(&slice) <= 100000);
    for (int t = 0; t < MAX_TABLES; t++)
        assert_int_equal(count_rows(slice.scale_region[t]), options.engram.table[t].rows);
    assert_int_equal(count_rows(slice.weight_region[0]), 4096);
    assert_int_equal(count_rows(slice.weight_region[1]), 0);
}

static void
need_and_use_stay_within_every_budget(void **state)
{
    for (uint64_t budget = 0; budget < 500000; budget += 1777) {
        uint64_t need = row_slice_need(&slice, budget);
        assert_true(need <= budget);
        assert_true(need == row_slice_need(&slice, UINT64_MAX) || budget - need <= 65536 + 9);
        row_slice_resize(&slice, budget);
        assert_int_equal(slice.need_bytes, need);
        assert_true(row_slice_used(&slice) <= budget);
        if (budget % 3 == 0)
            land(HELD_MAX);
        assert_true(memory.bytes <= row_slice_used(&slice));
    }
    land(HELD_MAX);
}

static void
a_block_given_up_while_loading_is_freed_when_it_lands(void **state)
{
    row_slice_resize(&slice, UINT64_MAX);
    assert_int_equal(slice.n_loading, SLICE_LOADS);
    row_slice_resize(&slice, 0);
    assert_true(memory.bytes > 0);
    row_slice_resize(&slice, UINT64_MAX); /* wanted again before the old reads are back */
    land(HELD_MAX);
    for (int i = 0; i < slice.n_regions; i++)
        assert_int_equal(count_rows(i), slice.region[i].rows);
    row_slice_resize(&slice, 0);
    assert_int_equal(memory.bytes, 0);
    assert_int_equal(count_rows(0), 0);
}

static void
a_block_that_cannot_be_read_stays_absent_and_the_others_come(void **state)
{
    held()->fail_percent = 40;
    row_slice_resize(&slice, UINT64_MAX);
    land(HELD_MAX);
    uint64_t rows = 0, all = 0;
    for (int i = 0; i < slice.n_regions; i++) {
        rows += count_rows(i);
        all += slice.region[i].rows;
    }
    assert_true(held()->errors > 0 && rows > 0 && rows < all);
    assert_int_equal(slice.n_loading, 0);
}

static void
memory_that_is_refused_leaves_rows_on_disk(void **state)
{
    memory.fail_percent = 50;
    row_slice_resize(&slice, UINT64_MAX);
    land(HELD_MAX);
    uint64_t rows = 0;
    for (int i = 0; i < slice.n_regions; i++)
        rows += count_rows(i);
    assert_true(rows > 0);
    assert_int_equal(slice.n_asked, slice.n_target);
}

static void
a_read_of_somebody_else_is_not_taken(void **state)
{
    struct cold_read read = {.owner = &read};
    assert_false(row_slice_landed(&slice, &read));
    row_slice_resize(&slice, 0);
}

int
main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(with_room_for_all_every_row_is_resident),
        TEST(scales_come_first_then_the_first_layer),
        TEST(need_and_use_stay_within_every_budget),
        TEST(a_block_given_up_while_loading_is_freed_when_it_lands),
        TEST(a_block_that_cannot_be_read_stays_absent_and_the_others_come),
        TEST(memory_that_is_refused_leaves_rows_on_disk),
        TEST(a_read_of_somebody_else_is_not_taken),
    };
#undef TEST
    return cmocka_run_group_tests(tests, NULL, NULL);
}
