#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/tiering/cold_fixture.h"
#include "tiering/policy.h"

enum { N = 400 };

static struct slot slot[N];
static uint8_t *block = (uint8_t *)slot;
static const struct node_space space = {&block, 31, sizeof slot[0]};
static const struct step_range nothing = {0, 0};
static struct policy *policy;

static int
set_up(void **state)
{
    memset(slot, 0, sizeof slot);
    policy = two_queue_policy_new(&space);
    return policy ? 0 : -1;
}

static int
tear_down(void **state)
{
    policy = policy->ops->free(policy);
    return policy != NULL;
}

static void
arrive(uint32_t at, enum arrival arrival)
{
    policy->ops->insert(policy, at, arrival);
}

static bool
touch(uint32_t at)
{
    return policy->ops->touch(policy, &slot[at]);
}

static uint32_t
victim(struct step_range keep, enum arrival arrival)
{
    return policy->ops->victim(policy, keep, arrival);
}

static void
an_empty_policy_has_no_victim(void **state)
{
    assert_int_equal(victim(nothing, ARRIVAL_DEMAND), NODE_NONE);
    assert_int_equal(victim(nothing, ARRIVAL_PLANNED), NODE_NONE);
}

static void
what_nobody_touched_leaves_in_order_of_arrival(void **state)
{
    for (uint32_t i = 0; i < 50; i++)
        arrive(i, ARRIVAL_DEMAND);
    for (uint32_t i = 0; i < 50; i++)
        assert_int_equal(victim(nothing, ARRIVAL_DEMAND), i);
    assert_int_equal(victim(nothing, ARRIVAL_DEMAND), NODE_NONE);
}

static void
what_was_touched_outlives_what_was_not(void **state)
{
    for (uint32_t i = 0; i < 40; i++)
        arrive(i, ARRIVAL_DEMAND);
    for (uint32_t i = 0; i < 10; i++)
        assert_false(touch(i));
    for (uint32_t i = 10; i < 36; i++) /* until probation is down to its share */
        assert_int_equal(victim(nothing, ARRIVAL_DEMAND), i);
    bool gone[40] = {0};
    for (int i = 0; i < 14; i++) { /* all leave in the end: nothing is immortal */
        uint32_t at = victim(nothing, ARRIVAL_DEMAND);
        assert_true(at < 40 && !gone[at]);
        gone[at] = true;
    }
    assert_int_equal(victim(nothing, ARRIVAL_DEMAND), NODE_NONE);
}

/* The promise to decode: a prefill of any length takes a share of the store and no more. */
static void
a_long_scan_does_not_flush_what_was_used_twice(void **state)
{
    for (uint32_t i = 0; i < 100; i++)
        arrive(i, ARRIVAL_DEMAND);
    for (uint32_t i = 0; i < 70; i++) /* the working set of decode */
        (void)touch(i);
    bool working[N] = {0};
    memset(working, 1, 70);
    uint32_t lost = 0;
    for (int i = 0; i < 10000; i++) { /* a store of 100 slots: each arrival has a victim */
        uint32_t at = victim(nothing, ARRIVAL_DEMAND);
        assert_int_not_equal(at, NODE_NONE);
        lost += working[at];
        working[at] = false;
        arrive(at, ARRIVAL_DEMAND);
    }
    assert_int_equal(lost, 0);
}

static void
a_slot_of_a_running_step_is_never_the_victim(void **state)
{
    struct step_range keep = {7, 2};
    for (uint32_t i = 0; i < 30; i++) {
        arrive(i, ARRIVAL_DEMAND);
        slot[i].last_step = i % 3 == 0 ? 7 : i % 3 == 1 ? 8 : 6;
    }
    for (int i = 0; i < 10; i++)
        assert_int_equal(slot[victim(keep, ARRIVAL_DEMAND)].last_step, 6);
    assert_int_equal(victim(keep, ARRIVAL_DEMAND), NODE_NONE);
    assert_int_not_equal(victim(nothing, ARRIVAL_DEMAND), NODE_NONE);
}

static void
steps_are_compared_across_the_wrap_of_their_numbers(void **state)
{
    struct step_range keep = {UINT32_MAX - 1, 4}; /* .. UINT32_MAX, 0, 1 */
    assert_true(step_range_has(keep, UINT32_MAX - 1));
    assert_true(step_range_has(keep, 1));
    assert_false(step_range_has(keep, 2));
    assert_false(step_range_has(keep, UINT32_MAX - 2));
    assert_false(step_range_has(nothing, 0));
}

static void
a_plan_takes_nothing_that_is_planned_or_was_used_twice(void **state)
{
    for (uint32_t i = 0; i < 10; i++)
        arrive(i, ARRIVAL_PLANNED);
    arrive(10, ARRIVAL_DEMAND);
    (void)touch(10);
    arrive(11, ARRIVAL_DEMAND);
    assert_int_equal(policy->ops->planned(policy), 10);
    assert_int_equal(victim(nothing, ARRIVAL_PLANNED), 11);
    assert_int_equal(victim(nothing, ARRIVAL_PLANNED), NODE_NONE);
    assert_int_equal(policy->ops->planned(policy), 10);
}

static void
a_planned_bundle_counts_as_new_after_its_first_use(void **state)
{
    arrive(0, ARRIVAL_PLANNED);
    arrive(1, ARRIVAL_DEMAND);
    assert_true(touch(0)); /* its use, not evidence of another */
    assert_int_equal(policy->ops->planned(policy), 0);
    assert_int_equal(victim(nothing, ARRIVAL_DEMAND), 0);
    arrive(2, ARRIVAL_PLANNED);
    (void)touch(2);
    assert_false(touch(2));
    assert_int_equal(victim(nothing, ARRIVAL_DEMAND), 1);
    assert_int_equal(victim(nothing, ARRIVAL_DEMAND), 2);
}

static void
a_planned_bundle_goes_round_once_more_before_demand_takes_it(void **state)
{
    arrive(0, ARRIVAL_PLANNED);
    arrive(1, ARRIVAL_DEMAND);
    assert_int_equal(victim(nothing, ARRIVAL_DEMAND), 1);
    assert_int_equal(victim(nothing, ARRIVAL_DEMAND), 0);
    assert_int_equal(policy->ops->planned(policy), 0);
}

static bool
drop_even(void *arg, uint32_t at)
{
    return at % 2 == 0;
}

static void
dropped_slots_are_forgotten_and_the_others_keep_their_order(void **state)
{
    for (uint32_t i = 0; i < 20; i++)
        arrive(i, i % 4 == 0 ? ARRIVAL_PLANNED : ARRIVAL_DEMAND);
    policy->ops->remove_if(policy, drop_even, NULL);
    assert_int_equal(policy->ops->planned(policy), 0);
    for (uint32_t i = 1; i < 20; i += 2)
        assert_int_equal(victim(nothing, ARRIVAL_DEMAND), i);
    assert_int_equal(victim(nothing, ARRIVAL_DEMAND), NODE_NONE);
}

/* What leaves are those that were named, in their order: first .. end - 1 of a queue that goes to last. */
static void
expect_named(uint32_t first, uint32_t end, uint32_t last)
{
    uint32_t named[6];

    for (uint32_t i = first; i < end; i++) {
        int n = policy->ops->next(policy, named, 6);
        assert_int_equal(n, last + 1 - i < 6 ? last + 1 - i : 6);
        for (int k = 0; k < n; k++)
            assert_int_equal(named[k], i + (uint32_t)k);
        assert_int_equal(victim(nothing, ARRIVAL_DEMAND), named[0]);
    }
}

static void
the_next_ones_leave_in_the_order_they_are_named(void **state)
{
    uint32_t none;

    for (uint32_t i = 0; i < 50; i++)
        arrive(i, ARRIVAL_DEMAND);
    expect_named(0, 50, 49);
    assert_int_equal(policy->ops->next(policy, &none, 1), 0);
}

static void
the_next_ones_are_those_of_main_while_probation_has_its_share(void **state)
{
    for (uint32_t i = 0; i < 40; i++) {
        arrive(i, ARRIVAL_DEMAND);
        (void)touch(i);
    }
    /* Looking for one has taken all but the share to main, and once more when that became smaller. */
    assert_int_equal(victim(nothing, ARRIVAL_DEMAND), 0);
    assert_int_equal(victim(nothing, ARRIVAL_DEMAND), 1);
    expect_named(2, 9, 35);
}

/* In any state: n at most, each known and no two the same; and the first one leaves if nothing keeps it. */
static void
the_next_ones_are_known_and_the_first_leaves_unless_kept(void **state)
{
    uint64_t random = 7;
    bool known[N] = {0};
    int left_at_once = 0;

    for (int turn = 0; turn < 20000; turn++) {
        uint32_t at = (uint32_t)(next_random(&random) % N), named[10];
        int n = (int)(next_random(&random) % 9), what = (int)(next_random(&random) % 8);
        enum arrival arrival = next_random(&random) % 4 ? ARRIVAL_DEMAND : ARRIVAL_PLANNED;
        struct step_range keep = {(uint32_t)turn, 1};

        if (!known[at] && what < 5) {
            arrive(at, arrival);
            known[at] = true;
        } else if (known[at] && what < 5) {
            (void)touch(at);
            slot[at].last_step = (uint32_t)(turn + what % 2);
        }
        if (turn % 2000 == 1999) {
            policy->ops->remove_if(policy, drop_even, NULL);
            for (uint32_t i = 0; i < N; i += 2)
                known[i] = false;
        }
        memset(named, 0xFF, sizeof named);
        int found = policy->ops->next(policy, named, n);
        assert_in_range(found, 0, n);
        for (int i = 0; i < found; i++) {
            assert_true(named[i] < N && known[named[i]]);
            for (int k = 0; k < i; k++)
                assert_int_not_equal(named[i], named[k]);
        }
        for (int i = found; i < 10; i++)
            assert_int_equal(named[i], UINT32_MAX);
        if (what < 4)
            continue;
        const struct slot *first = found ? &slot[named[0]] : NULL;
        bool leaves = first && first->bundle.visits == 0 && !step_range_has(keep, first->last_step);
        uint32_t gone = victim(keep, ARRIVAL_DEMAND);
        if (leaves)
            assert_int_equal(gone, named[0]);
        left_at_once += leaves;
        if (gone != NODE_NONE)
            known[gone] = false;
    }
    assert_true(left_at_once > 100);
}

int
main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(an_empty_policy_has_no_victim),
        TEST(what_nobody_touched_leaves_in_order_of_arrival),
        TEST(what_was_touched_outlives_what_was_not),
        TEST(a_long_scan_does_not_flush_what_was_used_twice),
        TEST(a_slot_of_a_running_step_is_never_the_victim),
        TEST(steps_are_compared_across_the_wrap_of_their_numbers),
        TEST(a_plan_takes_nothing_that_is_planned_or_was_used_twice),
        TEST(a_planned_bundle_counts_as_new_after_its_first_use),
        TEST(a_planned_bundle_goes_round_once_more_before_demand_takes_it),
        TEST(dropped_slots_are_forgotten_and_the_others_keep_their_order),
        TEST(the_next_ones_leave_in_the_order_they_are_named),
        TEST(the_next_ones_are_those_of_main_while_probation_has_its_share),
        TEST(the_next_ones_are_known_and_the_first_leaves_unless_kept),
    };
#undef TEST
    return cmocka_run_group_tests(tests, NULL, NULL);
}
