#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/token_table.h"

static int
add(struct token_table *table, int64_t id, const char *text, struct err *err)
{
    return token_table_add(table, id, text, strlen(text), TOKEN_MODEL, 1000, err);
}

static void
many_tokens_are_found_by_string_and_by_id(void **state)
{
    struct token_table table = {0};
    char text[20];
    for (int i = 0; i < 50000; i++) {
        /* Ids in another order than they come in. */
        (void)snprintf(text, sizeof text, "t%d", i);
        assert_int_equal(token_table_add(&table, (int64_t)i * 7919 % 50000, text, strlen(text),
                                         TOKEN_MODEL, 50000, NULL),
                         0);
    }
    assert_int_equal(token_table_freeze(&table, NULL), 0);
    assert_int_equal(table.size, 50000);
    for (int i = 0; i < 50000; i++) {
        (void)snprintf(text, sizeof text, "t%d", i);
        int id = (int)((int64_t)i * 7919 % 50000);
        size_t size;
        assert_int_equal(token_table_find(&table, text, strlen(text)), id);
        const char *bytes = token_table_bytes(&table, id, &size);
        assert_int_equal(size, strlen(text));
        assert_memory_equal(bytes, text, size);
    }
    assert_int_equal(token_table_find(&table, "t50000", 6), -1);
    assert_int_equal(token_table_find(&table, "", 0), -1);
    token_table_release(&table);
}

static void
alphabet_and_raw_strings_are_kept_apart(void **state)
{
    struct token_table table = {0};
    size_t size;
    assert_int_equal(add(&table, 0, "\xc4\xa0", NULL), 0); /* U+0120 stands for a space */
    assert_int_equal(add(&table, 1, " ", NULL), 0); /* a space itself is outside the alphabet */
    assert_int_equal(add(&table, 2, "\xc3\xa9", NULL), 0); /* U+00E9 stands for byte E9 */
    assert_int_equal(add(&table, 3, "\xe4\xb8\xad", NULL), 0);
    assert_int_equal(token_table_find(&table, "\xc4\xa0", 2), 0);
    assert_int_equal(token_table_find(&table, " ", 1), 1);
    assert_int_equal(token_table_find_bytes(&table, " ", 1, false), 0);
    assert_int_equal(token_table_find_bytes(&table, " ", 1, true), 1);
    const char *bytes = token_table_bytes(&table, 2, &size);
    assert_int_equal(size, 1);
    assert_int_equal((uint8_t)bytes[0], 0xE9);
    bytes = token_table_bytes(&table, 3, &size);
    assert_int_equal(size, 3);
    assert_int_equal(token_table_find(&table, "\xe4\xb8\xad", 3), 3);
    token_table_release(&table);
}

static void
two_ids_for_a_string_and_two_strings_for_an_id_are_refused(void **state)
{
    struct token_table table = {0};
    struct err err = ERR_INIT;
    assert_int_equal(add(&table, 5, "x", NULL), 0);
    assert_int_equal(add(&table, 5, "x", NULL), 0); /* the same again adds nothing */
    assert_int_equal(table.count, 1);
    assert_int_equal(add(&table, 6, "x", &err), -EBADMSG);
    assert_non_null(strstr(err.text, "\"x\" has two ids, 5 and 6"));
    err = ERR_INIT;
    assert_int_equal(add(&table, 5, "y", &err), -EBADMSG);
    assert_non_null(strstr(err.text, "id 5 has two tokens"));
    assert_int_equal(table.count, 1);
    token_table_release(&table);
}

static void
ids_out_of_range_are_refused_with_the_token_named(void **state)
{
    struct token_table table = {0};
    static const int64_t bad[] = {-1, 1000, INT32_MAX, (int64_t)1 << 40, INT64_MAX, INT64_MIN};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct err err = ERR_INIT;
        assert_int_equal(add(&table, bad[i], "tok", &err), -EBADMSG);
        assert_non_null(strstr(err.text, "\"tok\""));
    }
    assert_int_equal(add(&table, 999, "tok", NULL), 0);
    assert_int_equal(token_table_add(&table, TOKEN_MAX_ID + 1, "u", 1, 0, INT64_MAX, NULL),
                     -EBADMSG);
    assert_false(token_table_has(&table, 998));
    assert_true(token_table_has(&table, 999));
    assert_false(token_table_has(&table, 1000));
    token_table_release(&table);
}

static void
lengths_have_both_limits(void **state)
{
    struct token_table table = {0};
    char *text = malloc(TOKEN_MAX_BYTES + 1);
    size_t size;
    assert_non_null(text);
    memset(text, 'x', TOKEN_MAX_BYTES + 1);
    assert_int_equal(token_table_add(&table, 0, text, 0, 0, 10, NULL), -EBADMSG);
    assert_int_equal(token_table_add(&table, 0, text, TOKEN_MAX_BYTES + 1, 0, 10, NULL), -EBADMSG);
    assert_int_equal(token_table_add(&table, 0, text, TOKEN_MAX_BYTES, 0, 10, NULL), 0);
    assert_non_null(token_table_bytes(&table, 0, &size));
    assert_int_equal(size, TOKEN_MAX_BYTES);
    assert_int_equal(token_table_find(&table, text, TOKEN_MAX_BYTES), 0);
    assert_int_equal(token_table_find(&table, text, TOKEN_MAX_BYTES + 1), -1);
    free(text);
    token_table_release(&table);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(many_tokens_are_found_by_string_and_by_id),
        cmocka_unit_test(alphabet_and_raw_strings_are_kept_apart),
        cmocka_unit_test(two_ids_for_a_string_and_two_strings_for_an_id_are_refused),
        cmocka_unit_test(ids_out_of_range_are_refused_with_the_token_named),
        cmocka_unit_test(lengths_have_both_limits),
    };
    return cmocka_run_group_tests_name("token_table", tests, NULL, NULL);
}
