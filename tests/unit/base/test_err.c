#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/err.h"
#include "base/escape.h"

static void
the_first_error_wins(void **state)
{
    struct err err = ERR_INIT;
    assert_int_equal(err_set(&err, ENOENT, "no %s", "shard"), -ENOENT);
    assert_int_equal(err_set(&err, EIO, "second"), -EIO);
    assert_int_equal(err_errno(&err, EIO, "third"), -EIO);
    assert_int_equal(err.code, -ENOENT);
    assert_string_equal(err.text, "no shard");
}

static void
the_reason_stands_behind_and_context_in_front(void **state)
{
    struct err err = ERR_INIT;
    assert_int_equal(err_errno(&err, ENOENT, "open %s", "a.safetensors"), -ENOENT);
    assert_string_equal(err.text, "open a.safetensors: No such file or directory");
    assert_int_equal(err_context(&err, "model %d", 7), -ENOENT);
    assert_string_equal(err.text, "model 7: open a.safetensors: No such file or directory");
}

static void
nobody_has_to_care_for_the_text(void **state)
{
    assert_int_equal(err_set(NULL, EINVAL, "%s", "x"), -EINVAL);
    assert_int_equal(err_errno(NULL, EINVAL, "x"), -EINVAL);
    assert_true(err_context(NULL, "x") < 0);
}

static void
a_failure_without_errno_is_still_a_failure(void **state)
{
    struct err err = ERR_INIT;
    assert_int_equal(err_set(&err, 0, "library said no"), -EIO);
    assert_int_equal(err.code, -EIO);
    assert_int_equal(err_errno(NULL, -5, "x"), -EIO);
}

static void
text_from_outside_cannot_make_a_second_line(void **state)
{
    struct err err = ERR_INIT;
    err_set(&err, EINVAL, "key '%s'", "a\nb\033[31m\x7f\xff\xc2\x85");
    assert_string_equal(err.text, "key 'a\\nb\\x1b[31m\\x7f\\xff\\xc2\\x85'");
    err_context(&err, "file '%s'", "x\ny");
    assert_string_equal(err.text, "file 'x\\ny': key 'a\\nb\\x1b[31m\\x7f\\xff\\xc2\\x85'");
}

static void
a_long_text_is_cut_between_characters_and_keeps_its_reason(void **state)
{
    char many[3000];
    for (int lead = 0; lead < 4; lead++) {
        struct err err = ERR_INIT;
        memset(many, 'x', sizeof many);
        for (size_t i = (size_t)lead; i + 4 < sizeof many; i += 3)
            memcpy(many + i, "\xE2\x82\xAC", 3);
        many[sizeof many - 1] = '\0';
        err_errno(&err, EACCES, "%s", many);
        size_t length = strlen(err.text);
        assert_true(length >= sizeof err.text - 4 && length < sizeof err.text);
        assert_string_equal(err.text + length - 19, ": Permission denied");
        err_context(&err, "%s", many);
        length = strlen(err.text);
        assert_true(length < sizeof err.text);
        for (size_t i = 0, taken; i < length; i += taken) {
            taken = escape_utf8_length(err.text + i, length - i);
            assert_true(taken > 0);
        }
    }
}

static void
a_long_context_does_not_push_out_the_first_error(void **state)
{
    char many[600];
    memset(many, 'c', sizeof many - 1);
    many[sizeof many - 1] = '\0';
    struct err err = ERR_INIT;
    err_set(&err, EINVAL, "truncated header");
    err_context(&err, "%s", many);
    assert_non_null(strstr(err.text, ": truncated header"));
    assert_int_equal(strlen(err.text), sizeof err.text - 1);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_first_error_wins),
        cmocka_unit_test(the_reason_stands_behind_and_context_in_front),
        cmocka_unit_test(nobody_has_to_care_for_the_text),
        cmocka_unit_test(a_failure_without_errno_is_still_a_failure),
        cmocka_unit_test(text_from_outside_cannot_make_a_second_line),
        cmocka_unit_test(a_long_text_is_cut_between_characters_and_keeps_its_reason),
        cmocka_unit_test(a_long_context_does_not_push_out_the_first_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
