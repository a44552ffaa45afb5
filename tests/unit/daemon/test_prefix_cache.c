/* prefix_cache: what is found, what is evicted, and who owns the pages. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/prefix_cache.h"

enum { SPAN = 4, PER_SPAN = 2, PAGES = 16, STATES = 3, FIRST_STATE = 10 };

struct bench {
    struct kv_pages *pages;
    struct prefix_cache *cache;
};

static const struct prefix_ref no_ref = {.entry = -1};
static const int32_t text[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};

static int
set_up(void **state)
{
    struct bench *b = calloc(1, sizeof *b);

    b->pages = kv_pages_new(PAGES);
    struct prefix_options options = {.pages = b->pages,
                                     .span_tokens = SPAN,
                                     .span_pages = PER_SPAN,
                                     .first_state = FIRST_STATE,
                                     .n_states = STATES};
    b->cache = prefix_cache_new(&options);
    assert_non_null(b->cache);
    *state = b;
    return 0;
}

/* All pages come back. */
static int
tear_down(void **state)
{
    struct bench *b = *state;

    while (prefix_cache_evict(b->cache))
        ;
    assert_int_equal(kv_pages_n_free(b->pages), PAGES);
    prefix_cache_free(b->cache);
    kv_pages_free(b->pages);
    free(b);
    return 0;
}

/* Adds a span with new pages, which are left to the caller as their other owner. */
static struct prefix_ref
add(struct bench *b, struct prefix_ref parent, const int32_t *tokens, uint64_t step, bool state,
    int32_t *ret_pages)
{
    struct prefix_ref ref;

    assert_int_equal(kv_pages_take(b->pages, PER_SPAN, ret_pages), 0);
    assert_true(prefix_cache_add(b->cache, parent, tokens, false, ret_pages, step, state, &ref));
    return ref;
}

static void
give(struct bench *b, const int32_t *pages)
{
    for (int i = 0; i < PER_SPAN; i++)
        kv_pages_give(b->pages, pages[i]);
}

static int
find(struct bench *b, const int32_t *tokens, int n, bool off, uint64_t done)
{
    struct prefix_ref ref;

    return prefix_cache_find(b->cache, tokens, n, off, done, &ref);
}

static void
prompts_that_begin_alike_find_whole_spans_of_ended_steps(void **state)
{
    struct bench *b = *state;
    int32_t pages[2][PER_SPAN], found[2 * PER_SPAN], other[8];
    struct prefix_ref first = add(b, no_ref, text, 5, true, pages[0]), last;

    (void)add(b, first, text + SPAN, 6, true, pages[1]);
    assert_int_equal(find(b, text, 16, false, 4), 0);
    assert_int_equal(find(b, text, 16, false, 5), 1);
    assert_int_equal(find(b, text, 16, false, 6), 2);
    assert_int_equal(find(b, text, 7, false, 6), 1);
    assert_int_equal(find(b, text, 3, false, 6), 0);
    assert_int_equal(find(b, text, 16, true, 6), 0);
    memcpy(other, text, sizeof other);
    other[7]++;
    assert_int_equal(find(b, other, 8, false, 6), 1);
    other[0]++;
    assert_int_equal(find(b, other, 8, false, 6), 0);
    /* The second span alone is nobody's beginning. */
    assert_int_equal(find(b, text + SPAN, 8, false, 6), 0);
    assert_int_equal(prefix_cache_find(b->cache, text, 8, false, 6, &last), 2);
    prefix_cache_share(b->cache, last, 2, found);
    assert_memory_equal(found, pages, sizeof found);
    assert_int_equal(kv_pages_owners(b->pages, found[3]), 3);
    assert_in_range(prefix_cache_state(b->cache, last), FIRST_STATE, FIRST_STATE + STATES - 1);
    for (int i = 0; i < 2; i++) {
        give(b, found + (size_t)i * PER_SPAN);
        give(b, pages[i]);
    }
    assert_int_equal(prefix_cache_idle_pages(b->cache), 2 * PER_SPAN);
}

static void
the_least_recent_is_evicted_children_before_parents_and_nothing_in_use(void **state)
{
    struct bench *b = *state;
    int32_t pages[4][PER_SPAN];
    struct prefix_ref a = add(b, no_ref, text, 1, false, pages[0]);
    struct prefix_ref child = add(b, a, text + 4, 1, false, pages[1]);

    (void)add(b, no_ref, text + 12, 1, false, pages[2]);
    (void)add(b, child, text + 8, 1, false, pages[3]);
    assert_false(prefix_cache_evict(b->cache));
    give(b, pages[3]);
    give(b, pages[2]);
    assert_int_equal(find(b, text, 4, false, 1), 1);
    assert_true(prefix_cache_evict(b->cache)); /* of text + 12: the others are more recent */
    assert_int_equal(find(b, text + 12, 4, false, 1), 0);
    assert_int_equal(find(b, text, 16, false, 1), 3);
    assert_true(prefix_cache_evict(b->cache));
    assert_int_equal(find(b, text, 16, false, 1), 2);
    assert_false(prefix_cache_evict(b->cache));
    give(b, pages[0]);
    give(b, pages[1]);
    assert_true(prefix_cache_evict(b->cache));
    assert_int_equal(find(b, text, 16, false, 1), 1);
}

static void
a_state_is_had_from_an_idle_entry_or_not_at_all(void **state)
{
    struct bench *b = *state;
    int32_t pages[5][PER_SPAN], tokens[SPAN] = {0};
    struct prefix_ref ref;

    for (int i = 0; i < STATES; i++) {
        tokens[0] = i;
        (void)add(b, no_ref, tokens, 1, true, pages[i]);
    }
    assert_int_equal(kv_pages_take(b->pages, PER_SPAN, pages[3]), 0);
    tokens[0] = 3;
    assert_false(prefix_cache_add(b->cache, no_ref, tokens, false, pages[3], 1, true, &ref));
    give(b, pages[1]);
    assert_true(prefix_cache_add(b->cache, no_ref, tokens, false, pages[3], 1, true, &ref));
    /* A second time: it is there. */
    assert_false(prefix_cache_add(b->cache, no_ref, tokens, false, pages[3], 1, true, &ref));
    tokens[0] = 1;
    assert_int_equal(find(b, tokens, SPAN, false, 1), 0);
    give(b, pages[0]);
    give(b, pages[2]);
    give(b, pages[3]);
}

static void
what_a_failed_step_was_to_compute_is_forgotten_and_its_references_fail(void **state)
{
    struct bench *b = *state;
    int32_t pages[4][PER_SPAN];
    struct prefix_ref a = add(b, no_ref, text, 3, true, pages[0]), ref;
    struct prefix_ref child = add(b, a, text + 4, 4, true, pages[1]);

    (void)add(b, child, text + 8, 5, true, pages[2]);
    prefix_cache_forget(b->cache, 4);
    assert_int_equal(find(b, text, 16, false, 9), 1);
    assert_int_equal(kv_pages_take(b->pages, PER_SPAN, pages[3]), 0);
    assert_false(prefix_cache_add(b->cache, child, text + 8, false, pages[3], 6, true, &ref));
    assert_true(prefix_cache_add(b->cache, a, text + 4, false, pages[3], 6, true, &ref));
    assert_false(prefix_cache_add(b->cache, child, text + 8, false, pages[2], 6, true, &ref));
    assert_int_equal(kv_pages_owners(b->pages, pages[1][0]), 1);
    for (int i = 0; i < 4; i++)
        give(b, pages[i]);
}

int
main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(prompts_that_begin_alike_find_whole_spans_of_ended_steps),
        TEST(the_least_recent_is_evicted_children_before_parents_and_nothing_in_use),
        TEST(a_state_is_had_from_an_idle_entry_or_not_at_all),
        TEST(what_a_failed_step_was_to_compute_is_forgotten_and_its_references_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
