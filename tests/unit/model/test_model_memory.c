/* Every allocation of loading a model fails in turn, ours and jansson's: the answer is an error,
 * never a crash, a leak (seen by the sanitizer) or a half-made result. Linked with --wrap=malloc
 * and friends.  */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/model_config.h"
#include "model/tensor_plan.h"

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *old, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *old, size_t size);

static long at = LONG_MAX, asked; /* the allocation that fails, and how many were asked for */
static bool from_then_on;         /* and all behind it */

static bool
fails(void)
{
    long number = asked++;
    return from_then_on ? number >= at : number == at;
}

void *
__wrap_malloc(size_t size)
{
    return fails() ? NULL : __real_malloc(size);
}

void *
__wrap_calloc(size_t n, size_t size)
{
    return fails() ? NULL : __real_calloc(n, size);
}

void *
__wrap_realloc(void *old, size_t size)
{
    return fails() ? NULL : __real_realloc(old, size);
}

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
    asked = 0;
    at = LONG_MAX;
    assert_int_equal(load(folder, NULL), 0);
    long total = asked;
    print_message("%s: %ld allocations\n", folder, total);
    assert_true(total > 50);
    for (long n = 0; n < total; n++) {
        struct err err = ERR_INIT;
        asked = 0;
        at = n;
        int r = load(folder, &err);
        at = LONG_MAX;
        assert_int_equal(err.code, r);
        if (r != -ENOMEM || !strstr(err.text, "memory"))
            fail_msg("allocation %ld: %d, %s", n, r, err.text);
    }
}

static void
all_allocations_from_the_nth_on_may_fail(void **state)
{
    from_then_on = true;
    fail_each("tests/golden/engram_tiny");
    fail_each("tests/golden/qwen3_tiny"); /* sharded */
}

static void
the_nth_allocation_alone_may_fail(void **state)
{
    from_then_on = false;
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
