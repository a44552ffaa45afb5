/* kv_pages: taking, sharing and giving back. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>

#include "gpu/kv_pages.h"

static void
pages_are_taken_all_or_none(void **state)
{
    struct kv_pages *pages = kv_pages_new(5);
    int32_t taken[6];
    bool seen[5] = {false};

    assert_non_null(pages);
    assert_int_equal(kv_pages_n(pages), 5);
    assert_int_equal(kv_pages_take(pages, 6, taken), -ENOSPC);
    assert_int_equal(kv_pages_n_free(pages), 5);
    assert_int_equal(kv_pages_take(pages, 3, taken), 0);
    assert_int_equal(kv_pages_take(pages, 3, taken + 3), -ENOSPC);
    assert_int_equal(kv_pages_take(pages, 2, taken + 3), 0);
    assert_int_equal(kv_pages_take(pages, 0, taken), 0);
    for (int i = 0; i < 5; i++) {
        assert_in_range(taken[i], 0, 4);
        assert_false(seen[taken[i]]);
        seen[taken[i]] = true;
    }
    kv_pages_free(pages);
}

static void
a_shared_page_is_free_only_when_every_owner_gave_it_back(void **state)
{
    struct kv_pages *pages = kv_pages_new(2);
    int32_t page;

    assert_non_null(pages);
    assert_int_equal(kv_pages_take(pages, 1, &page), 0);
    kv_pages_share(pages, page);
    kv_pages_share(pages, page);
    assert_int_equal(kv_pages_owners(pages, page), 3);
    kv_pages_give(pages, page);
    kv_pages_give(pages, page);
    assert_int_equal(kv_pages_n_free(pages), 1);
    assert_int_equal(kv_pages_owners(pages, page), 1);
    kv_pages_give(pages, page);
    assert_int_equal(kv_pages_n_free(pages), 2);
    assert_int_equal(kv_pages_owners(pages, page), 0);
    kv_pages_free(pages);
}

static void
no_pages_at_all_is_a_valid_size_and_a_negative_one_is_not(void **state)
{
    struct kv_pages *pages = kv_pages_new(0);
    int32_t page;

    assert_non_null(pages);
    assert_int_equal(kv_pages_take(pages, 1, &page), -ENOSPC);
    assert_null(kv_pages_free(pages));
    assert_null(kv_pages_new(-1));
    assert_null(kv_pages_free(NULL));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pages_are_taken_all_or_none),
        cmocka_unit_test(a_shared_page_is_free_only_when_every_owner_gave_it_back),
        cmocka_unit_test(no_pages_at_all_is_a_valid_size_and_a_negative_one_is_not),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
