#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <sys/stat.h>

#include "model/json_field.h"
#include "tests/unit/model/scratch_folder.h"

static json_t *
object_of(const char *text)
{
    json_t *object = NULL;
    struct err err = ERR_INIT;
    if (json_field_parse(&object, text, strlen(text), 100, "f", &err) < 0)
        fail_msg("%s", err.text);
    return object;
}

static void
integers_keep_all_their_bits(void **state)
{
    json_auto_t *object = object_of("{\"a\":9007199254740993,\"b\":-9223372036854775808,\"n\":null,"
                                    "\"r\":3.0,\"t\":true}");
    static const int64_t fallback = 5;
    int64_t got = 0;
    struct err err = ERR_INIT;
    assert_int_equal(json_field_int(object, "", "a", 0, INT64_MAX, NULL, &got, &err), 0);
    assert_int_equal(got, 9007199254740993);
    assert_int_equal(json_field_int(object, "", "b", INT64_MIN, 0, NULL, &got, &err), 0);
    assert_true(got == INT64_MIN);
    assert_int_equal(json_field_int(object, "", "n", 7, 9, &fallback, &got, &err), 0);
    assert_int_equal(got, 5);
    assert_int_equal(json_field_int(object, "", "x", 7, 9, &fallback, &got, &err), 0);
    assert_int_equal(json_field_int(object, "f: o.", "n", 7, 9, NULL, &got, &err), -EBADMSG);
    assert_string_equal(err.text, "f: o.n is missing");
    err = ERR_INIT;
    assert_int_equal(json_field_int(object, "f: o.", "r", 0, 9, NULL, &got, &err), -EBADMSG);
    assert_string_equal(err.text, "f: o.r: expected an integer, found a real number");
    assert_int_equal(json_field_int(object, "", "t", 0, 9, NULL, &got, NULL), -EBADMSG);
    err = ERR_INIT;
    assert_int_equal(json_field_int(object, "", "a", 0, 9007199254740992, NULL, &got, &err),
                     -EBADMSG);
    assert_string_equal(err.text, "a: 9007199254740993 is not in 0..9007199254740992");
    assert_int_equal(json_field_int(object, "", "a", 9007199254740994, INT64_MAX, NULL, &got, NULL),
                     -EBADMSG);
    assert_int_equal(got, 5); /* untouched by what failed */
}

static void
reals_may_be_written_as_integers(void **state)
{
    json_auto_t *object = object_of("{\"i\":2,\"r\":0.5,\"s\":\"1\"}");
    static const double fallback = -1;
    double got = 0;
    assert_int_equal(json_field_real(object, "", "i", 0, 2, NULL, &got, NULL), 0);
    assert_true(got == 2);
    assert_int_equal(json_field_real(object, "", "r", 0.5, 2, NULL, &got, NULL), 0);
    assert_true(got == 0.5);
    assert_int_equal(json_field_real(object, "", "r", 0.6, 2, NULL, &got, NULL), -EBADMSG);
    assert_int_equal(json_field_real(object, "", "s", 0, 2, NULL, &got, NULL), -EBADMSG);
    assert_int_equal(json_field_real(object, "", "x", 0, 2, NULL, &got, NULL), -EBADMSG);
    assert_int_equal(json_field_real(object, "", "x", 0, 2, &fallback, &got, NULL), 0);
    assert_true(got == -1);
}

static void
booleans_and_texts_are_typed(void **state)
{
    json_auto_t *object = object_of("{\"t\":true,\"f\":false,\"n\":null,\"s\":\"x\",\"i\":1}");
    bool got;
    const char *text;
    assert_int_equal(json_field_bool(object, "", "t", false, &got, NULL), 0);
    assert_true(got);
    assert_int_equal(json_field_bool(object, "", "f", true, &got, NULL), 0);
    assert_false(got);
    assert_int_equal(json_field_bool(object, "", "n", true, &got, NULL), 0);
    assert_true(got);
    assert_int_equal(json_field_bool(object, "", "i", true, &got, NULL), -EBADMSG);
    assert_int_equal(json_field_bool(object, "", "s", true, &got, NULL), -EBADMSG);
    assert_int_equal(json_field_text(object, "", "s", &text, NULL), 0);
    assert_string_equal(text, "x");
    assert_int_equal(json_field_text(object, "", "n", &text, NULL), 0);
    assert_null(text);
    assert_int_equal(json_field_text(object, "", "i", &text, NULL), -EBADMSG);
}

/* An object is the first value, each of its members one more. */
static void
the_number_of_values_is_bounded(void **state)
{
    static const char text[] = "{\"a\":[1,2,{\"b\":\"},,[[\\\",,\"}],\"c\":3}";
    json_t *object = NULL;
    struct err err = ERR_INIT;
    assert_int_equal(json_field_parse(&object, text, sizeof text - 1, 7, "f", &err), 0);
    json_decref(object);
    object = NULL;
    assert_int_equal(json_field_parse(&object, text, sizeof text - 1, 6, "f", &err), -EBADMSG);
    assert_string_equal(err.text, "f: more than 6 JSON values");
    assert_null(object);
}

static void
mistakes_have_a_line_and_a_column(void **state)
{
    static const char text[] = "{\n  \"a\": 1,\n  \"a\": 2\n}";
    json_t *object = NULL;
    struct err err = ERR_INIT;
    assert_int_equal(json_field_parse(&object, text, sizeof text - 1, 9, "name", &err), -EBADMSG);
    assert_int_equal(strncmp(err.text, "name:3:", 7), 0);
    assert_int_equal(json_field_parse(&object, "[]", 2, 9, "name", NULL), -EBADMSG);
    assert_int_equal(json_field_parse(&object, "", 0, 9, "name", NULL), -EBADMSG);
    assert_null(object);
}

static void
files_are_bounded_and_regular(void **state)
{
    json_t *object = NULL;
    struct err err = ERR_INIT;
    const char *path = scratch_path("x.json");
    assert_int_equal(json_field_load(&object, path, 10, 9, &err), -ENOENT);
    assert_int_equal(scratch_write_text("x.json", "{\"a\":1234}"), 0);
    assert_int_equal(json_field_load(&object, path, 9, 9, NULL), -EBADMSG);
    assert_int_equal(json_field_load(&object, path, 10, 9, NULL), 0);
    json_decref(object);
    assert_int_equal(json_field_load(&object, scratch_folder, 9, 9, NULL), -EBADMSG);
    assert_int_equal(mkfifo(scratch_path("fifo"), 0600), 0);
    assert_int_equal(json_field_load(&object, scratch_path("fifo"), 9, 9, NULL), -EBADMSG);
    assert_int_equal(scratch_write_text("x.json", ""), 0);
    assert_int_equal(json_field_load(&object, path, 10, 9, NULL), -EBADMSG);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(integers_keep_all_their_bits),
        cmocka_unit_test(reals_may_be_written_as_integers),
        cmocka_unit_test(booleans_and_texts_are_typed),
        cmocka_unit_test(the_number_of_values_is_bounded),
        cmocka_unit_test(mistakes_have_a_line_and_a_column),
        cmocka_unit_test_setup_teardown(files_are_bounded_and_regular, scratch_make,
                                        scratch_remove),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
