#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include <stdio.h>

#include "tests/unit/failing_malloc.h"

#include "conf/conf.h"

static const char text[] = "device = cpu\n[model]\npath = ../m\nname = x\n[log]\nlevel = debug\n";

/* Every step succeeds whole or says so; nothing is lost or freed twice (the sanitizer build sees
 * that). */
static void
every_allocation_may_fail(void **state)
{
    for (long n = 0;; n++) {
        struct conf *conf = NULL;
        struct buf mistakes = {0};
        struct err err = ERR_INIT;
        assert_true(n < 10000);
        failing_malloc_arm(n);
        int result = conf_new(&conf, &err);
        if (result == 0) {
            result = conf_read_text(conf, "a/b.conf", text, sizeof text - 1, &mistakes);
            assert_true(result == 0 || result == -ENOMEM);
            if (result == 0)
                result = conf_set(conf, "model.name=y", &err);
            assert_true(result == 0 || result == -ENOMEM);
            /* A text that could not be replaced is still the one before. */
            assert_true(strcmp(conf->model_name, "") == 0 || strcmp(conf->model_name, "x") == 0 ||
                        strcmp(conf->model_name, "y") == 0);
        } else {
            assert_null(conf);
            assert_int_equal(result, -ENOMEM);
            assert_int_equal(err.code, -ENOMEM);
        }
        bool failed = failing_malloc_disarm();
        assert_int_equal(result == 0, !failed);
        conf_free(conf);
        buf_free(&mistakes);
        if (!failed) {
            assert_true(n > 20);
            return;
        }
    }
}

static void
a_mistake_that_cannot_be_written_down_still_counts(void **state)
{
    struct conf *conf = NULL;
    struct buf mistakes = {0};
    assert_int_equal(conf_new(&conf, NULL), 0);
    failing_malloc_arm(0);
    int result = conf_read_text(conf, "c", "[zzzz]\n", 7, &mistakes);
    assert_true(failing_malloc_disarm());
    assert_int_equal(result, 1);
    assert_true(mistakes.failed);
    buf_free(&mistakes);
    conf_free(conf);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(a_mistake_that_cannot_be_written_down_still_counts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
