#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/tiering/cold_fixture.h"
#include "tiering/nvme_queue.h"

enum { PAGE = 4096 };

static struct cold_read
read_of(int file_number, uint64_t offset, uint32_t size, uint64_t deadline)
{
    return (struct cold_read){
        .file = file_number, .offset_bytes = offset, .size_bytes = size, .deadline_ns = deadline};
}

static void
drop(struct nvme_queue *queue, struct extent *extent)
{
    while (read_chain_pop(&extent->reads))
        ;
    nvme_queue_remove(queue, extent);
}

static void
reads_of_one_page_become_one_extent(void **state)
{
    struct nvme_queue *queue = nvme_queue_new(PAGE, 4);
    struct cold_read a = read_of(0, 100, 50, 5), b = read_of(0, 3000, 50, 5),
                     other = read_of(1, 100, 50, 5);
    assert_int_equal(nvme_queue_add(queue, &a), 0);
    assert_int_equal(nvme_queue_add(queue, &b), 1);
    assert_int_equal(nvme_queue_add(queue, &other), 0); /* the same page of another file */
    struct extent *extent = nvme_queue_pop(queue);
    assert_int_equal(extent->first_page, 0);
    assert_int_equal(extent->n_pages, 1);
    assert_ptr_equal(extent->reads.first, &a);
    assert_ptr_equal(extent->reads.last, &b);
    struct extent *second = nvme_queue_pop(queue);
    assert_ptr_equal(second->reads.first, &other);
    assert_null(nvme_queue_pop(queue));
    drop(queue, extent);
    drop(queue, second);
    assert_null(nvme_queue_free(queue));
}

static void
neighbouring_pages_are_read_together_up_to_the_bound(void **state)
{
    struct nvme_queue *queue = nvme_queue_new(PAGE, 4);
    struct cold_read reads[6];
    int order[6] = {5, 4, 6, 7, 8, 3}; /* pages; 4 5 6 7 fit one extent, 8 and 3 do not */
    const int joined[6] = {0, 1, 1, 1, 0, 0};
    for (int i = 0; i < 6; i++) {
        reads[i] = read_of(0, (uint64_t)order[i] * PAGE + 10, 20, 1);
        assert_int_equal(nvme_queue_add(queue, &reads[i]), joined[i]);
    }
    struct extent *extent = nvme_queue_pop(queue);
    assert_int_equal(extent->first_page, 4);
    assert_int_equal(extent->n_pages, 4);
    drop(queue, extent);
    extent = nvme_queue_pop(queue);
    assert_int_equal(extent->first_page, 8);
    drop(queue, extent);
    extent = nvme_queue_pop(queue);
    assert_int_equal(extent->first_page, 3);
    drop(queue, extent);
    nvme_queue_free(queue);
}

static void
a_read_across_a_page_boundary_widens_its_extent(void **state)
{
    struct nvme_queue *queue = nvme_queue_new(PAGE, 4);
    struct cold_read a = read_of(0, 9 * PAGE + 1, 10, 1),
                     b = read_of(0, 9 * PAGE + PAGE - 5, 10, 1),
                     c = read_of(0, 9 * PAGE - 5, 10, 1);
    assert_int_equal(nvme_queue_add(queue, &a), 0);
    assert_int_equal(nvme_queue_add(queue, &b), 1);
    assert_int_equal(nvme_queue_add(queue, &c), 1);
    struct extent *extent = nvme_queue_pop(queue);
    assert_int_equal(extent->first_page, 8);
    assert_int_equal(extent->n_pages, 3);
    drop(queue, extent);
    nvme_queue_free(queue);
}

static void
the_earliest_deadline_goes_first_and_a_merged_read_brings_its_own(void **state)
{
    struct nvme_queue *queue = nvme_queue_new(PAGE, 4);
    struct cold_read reads[5] = {
        read_of(0, 10 * PAGE, 8, 300),
        read_of(0, 20 * PAGE, 8, 200),
        read_of(0, 30 * PAGE, 8, 100),
        read_of(0, 40 * PAGE, 8, 200), /* equal deadlines: in order of arrival */
        read_of(0, 10 * PAGE + 8, 8, 50),
    };
    for (int i = 0; i < 5; i++)
        (void)nvme_queue_add(queue, &reads[i]);
    const uint64_t page[4] = {10, 30, 20, 40};
    for (int i = 0; i < 4; i++) {
        struct extent *extent = nvme_queue_pop(queue);
        assert_int_equal(extent->first_page, page[i]);
        drop(queue, extent);
    }
    nvme_queue_free(queue);
}

static void
a_read_attaches_to_a_page_in_flight_until_that_has_been_served(void **state)
{
    struct nvme_queue *queue = nvme_queue_new(PAGE, 4);
    struct cold_read a = read_of(0, 0, 3 * PAGE, 1), b = read_of(0, PAGE + 7, 8, 1),
                     c = read_of(0, PAGE + 9, 8, 1), d = read_of(0, 2 * PAGE + 9, 8, 1),
                     wider = read_of(0, 3 * PAGE - 2, 8, 1);
    (void)nvme_queue_add(queue, &a);
    struct extent *extent = nvme_queue_pop(queue);
    assert_int_equal(nvme_queue_add(queue, &b), 1);
    extent->served_bytes = 2 * PAGE;
    assert_int_equal(nvme_queue_add(queue, &c), 0);     /* Q4 */
    assert_int_equal(nvme_queue_add(queue, &d), 1);     /* a waiting extent or the one in flight */
    assert_int_equal(nvme_queue_add(queue, &wider), 1); /* Q2: only the waiting one may widen */
    assert_int_equal(extent->n_pages, 3);
    struct extent *next = nvme_queue_pop(queue);
    assert_ptr_not_equal(next, extent);
    assert_null(nvme_queue_pop(queue));
    drop(queue, extent);
    drop(queue, next);
    nvme_queue_free(queue);
}

static void
a_read_larger_than_the_bound_gets_an_extent_of_its_own(void **state)
{
    struct nvme_queue *queue = nvme_queue_new(PAGE, 2);
    struct cold_read big = read_of(0, 100, COLD_READ_MAX, 1), inside = read_of(0, 9 * PAGE, 8, 1);
    assert_int_equal(nvme_queue_add(queue, &big), 0);
    assert_int_equal(nvme_queue_add(queue, &inside), 1);
    struct extent *extent = nvme_queue_pop(queue);
    assert_int_equal(extent->n_pages, 17);
    drop(queue, extent);
    nvme_queue_free(queue);
}

/* Q1 to Q3 under a random load, against what any correct queue must show from outside. */
static void
no_read_is_lost_and_none_is_outside_its_extent_in_a_random_load(void **state)
{
    enum { N = 20000, FLYING = 40 };
    struct nvme_queue *queue = nvme_queue_new(PAGE, 4);
    struct cold_read *reads = calloc(N, sizeof *reads);
    struct extent *flying[FLYING] = {0};
    uint64_t random = 7;
    int added = 0, back = 0;
    while (back < N) {
        int burst = (int)(next_random(&random) % 50);
        for (int i = 0; i < burst && added < N; i++, added++) {
            uint32_t size = 1 + (uint32_t)(next_random(&random) % (added % 50 ? 300 : 40000));
            reads[added] =
                read_of((int)(next_random(&random) % 3), next_random(&random) % (200 * PAGE), size,
                        next_random(&random) % 100);
            assert_true(nvme_queue_add(queue, &reads[added]) >= 0);
        }
        for (int i = 0; i < FLYING; i++) {
            if (next_random(&random) % 3 == 0)
                continue;
            if (flying[i]) {
                struct cold_read *read;
                uint64_t begin = flying[i]->first_page * PAGE,
                         end = begin + flying[i]->n_pages * (uint64_t)PAGE;
                while ((read = read_chain_pop(&flying[i]->reads))) {
                    assert_int_equal(read->file, flying[i]->file);
                    assert_true(read->offset_bytes >= begin);
                    assert_true(read->offset_bytes + read->size_bytes <= end);
                    assert_int_equal(read->result, 0);
                    read->result = 1;
                    back++;
                }
                nvme_queue_remove(queue, flying[i]);
                flying[i] = NULL;
            } else {
                flying[i] = nvme_queue_pop(queue);
            }
        }
    }
    for (int i = 0; i < FLYING; i++)
        if (flying[i])
            drop(queue, flying[i]);
    assert_false(nvme_queue_waiting(queue));
    nvme_queue_free(queue); /* asserts that nothing is left in the map */
    free(reads);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_of_one_page_become_one_extent),
        cmocka_unit_test(neighbouring_pages_are_read_together_up_to_the_bound),
        cmocka_unit_test(a_read_across_a_page_boundary_widens_its_extent),
        cmocka_unit_test(the_earliest_deadline_goes_first_and_a_merged_read_brings_its_own),
        cmocka_unit_test(a_read_attaches_to_a_page_in_flight_until_that_has_been_served),
        cmocka_unit_test(a_read_larger_than_the_bound_gets_an_extent_of_its_own),
        cmocka_unit_test(no_read_is_lost_and_none_is_outside_its_extent_in_a_random_load),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
