#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/utf8_scan.h"
#include "proto/api_error.h"

static void
assert_body(const struct api_error *error, const char *want)
{
    struct buf out = {0};

    api_error_body(&out, error);
    buf_append(&out, "", 1);
    assert_string_equal(out.data, want);
    buf_free(&out);
}

static void
an_error_is_written_with_all_four_keys(void **state)
{
    struct api_error error = {0};

    assert_int_equal(api_error_set(&error, 400, "invalid_value", "logit_bias.7", "bad %d", 7),
                     -400);
    assert_body(&error, "{\"error\":{\"message\":\"bad 7\",\"type\":\"invalid_request_error\","
                        "\"param\":\"logit_bias.7\",\"code\":\"invalid_value\"}}");
    error = (struct api_error){0};
    api_error_set(&error, 500, NULL, NULL, "oh");
    assert_body(&error, "{\"error\":{\"message\":\"oh\",\"type\":\"server_error\",\"param\":null,"
                        "\"code\":null}}");
}

static void
the_first_error_wins(void **state)
{
    struct api_error error = {0};

    api_error_set(&error, 404, "model_not_found", "model", "first");
    assert_int_equal(api_error_set(&error, 500, "internal_error", NULL, "second"), -404);
    assert_int_equal(error.status, 404);
    assert_string_equal(error.message, "first");
}

static void
the_type_follows_from_the_status(void **state)
{
    static const struct {
        int status;
        const char *type;
    } rows[] = {{400, "invalid_request_error"}, {401, "invalid_request_error"},
                {403, "permission_error"},      {404, "invalid_request_error"},
                {405, "invalid_request_error"}, {408, "invalid_request_error"},
                {413, "invalid_request_error"}, {429, "rate_limit_error"},
                {431, "invalid_request_error"}, {500, "server_error"},
                {501, "server_error"},          {503, "server_error"}};

    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct api_error error = {0};

        api_error_set(&error, rows[i].status, "x", NULL, "x");
        assert_string_equal(error.type, rows[i].type);
    }
}

/* openai's libraries try 429 and every 5xx again: they are told when, or not to. */
static void
clients_are_told_whether_to_try_again(void **state)
{
    struct api_error busy = {0}, draining = {0}, missing = {0}, bad = {0};

    api_error_set(&busy, 429, "queue_full", NULL, "x");
    api_error_set(&draining, 503, "draining", NULL, "x");
    api_error_set(&missing, 501, "not_supported", NULL, "x");
    api_error_set(&bad, 400, "invalid_value", NULL, "x");
    assert_true(busy.retry_after_s > 0 && draining.retry_after_s > 0);
    assert_true(missing.no_retry && missing.retry_after_s == 0);
    assert_true(!bad.no_retry && bad.retry_after_s == 0);
}

static void
a_message_is_bounded_printable_utf_8(void **state)
{
    struct api_error error = {0};
    char text[2000];

    api_error_set(&error, 400, "x", "p\n\xff", "a\r\nb\x1b\x7f\xff\xc3\xa9\xe2\x82");
    assert_string_equal(error.message, "a??b???\xc3\xa9??");
    assert_string_equal(error.param, "p??");
    /* Cut at every place within a character. */
    for (size_t pad = 0; pad < 4; pad++) {
        memset(text, 'x', pad);
        for (size_t i = pad; i + 4 < sizeof text; i += 4)
            memcpy(text + i, "\xf0\x9f\x98\x80", 5);
        error = (struct api_error){0};
        api_error_set(&error, 400, "x", text, "%s", text);
        assert_int_equal(strlen(error.message), sizeof error.message - 1);
        assert_int_equal(strlen(error.param), sizeof error.param - 1);
        assert_true(utf8_valid(error.message, strlen(error.message)));
        assert_true(utf8_valid(error.param, strlen(error.param)));
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_error_is_written_with_all_four_keys),
        cmocka_unit_test(the_first_error_wins),
        cmocka_unit_test(the_type_follows_from_the_status),
        cmocka_unit_test(clients_are_told_whether_to_try_again),
        cmocka_unit_test(a_message_is_bounded_printable_utf_8),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
