/* Every allocation of loading a model fails in turn, ours and jansson's: the answer is an error,
 * never a crash, a leak (seen by the sanitizer) or a half-made result. Linked with --wrap=malloc
 * and friends.  */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/model_config.h"
#include "model/tensor_plan.h"
#include "tests/unit/failing_malloc.h"

static int
load(const char *folder, struct err *err)
{
    struct model_config config;
    struct checkpoint *checkpoint = NULL;
    struct tensor_plan plan;
    int r = model_config_read(&config, folder, err);
    if (r >= 0)
        r = checkpoint_open(&checkpoint, folder, err);
    if (r >= 0)
        r = tensor_plan_make(&plan, &config.shape, checkpoint, err);
    if (r >= 0)
        tensor_plan_free(&plan);
    (void)checkpoint_close(checkpoint);
    return r;
}

static void
fail_each(const char *folder)
{
    long n = 0;
    for (;; n++) {
        struct err err = ERR_INIT;
        failing_malloc_arm(n);
        int r = load(folder, &err);
        if (!failing_malloc_disarm()) {
            assert_int_equal(r, 0);
            break;
        }
        assert_int_equal(err.code, r);
        if (r != -ENOMEM || !strstr(err.text, "memory"))
            fail_msg("allocation %ld: %d, %s", n, r, err.text);
    }
    print_message("%s: %ld allocations\n", folder, n);
    assert_true(n > 50);
}

static void
all_allocations_from_the_nth_on_may_fail(void **state)
{
    failing_malloc_alone = false;
    fail_each("tests/golden/engram_tiny");
    fail_each("tests/golden/qwen3_tiny"); /* sharded */
}

static void
the_nth_allocation_alone_may_fail(void **state)
{
    failing_malloc_alone = true;
    fail_each("tests/golden/engram_tiny");
    fail_each("tests/golden/qwen3_tiny");
}

int
main(void)
{
    if (access("tests/golden/engram_tiny/config.json", R_OK) != 0) {
        print_message("skipped: no tests/golden here\n");
        return 77;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_allocations_from_the_nth_on_may_fail),
        cmocka_unit_test(the_nth_allocation_alone_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
