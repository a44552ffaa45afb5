#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/admin_text.h"

static const char tiers_json[] =
    "{\"tiers\":[{\"name\":\"hbm\",\"budget_bytes\":2097152,\"used_bytes\":1048576,\"hits\":"
    "1234567,"
    "\"misses\":0,\"hit_rate\":1.0,\"bytes\":8192,\"evictions\":7,\"sets\":[{\"layer\":1,\"order\":"
    "2,"
    "\"used_bytes\":1024,\"hits\":999,\"misses\":1,\"hit_rate\":0.999,\"bytes\":17,\"evictions\":0,"
    "\"promotions\":3}]},{\"name\":\"ram\",\"budget_bytes\":0,\"used_bytes\":0,\"hits\":0,"
    "\"misses\":1000,\"hit_rate\":0.0,\"bytes\":0,\"evictions\":0,\"sets\":[]},"
    "{\"name\":\"nvme\",\"budget_bytes\":0,\"used_bytes\":5242880,\"hits\":5,\"misses\":0,"
    "\"hit_rate\":null,\"bytes\":100,\"evictions\":0,\"sets\":[]}],\"nvme\":{\"reads\":1500,"
    "\"bytes\":6144000,\"useful_bytes\":1536000,\"page_amplification\":4.0,\"merged\":20,"
    "\"errors\":1,\"retries\":2,\"in_flight\":3,\"latency_us\":{\"mean\":120.5,\"p50\":96,"
    "\"p99\":768}},\"staging_bytes\":4096,\"resident_bytes\":123456789,\"prefetch\":{\"issued\":"
    "100,"
    "\"used\":98,\"late\":2,\"used_rate\":0.98}}";

static char text[4096];

static int
render(int (*fn)(const char *, size_t, struct buf *, struct err *), const char *json,
       struct err *err)
{
    struct buf out = {0};
    /* without the NUL, in memory of its own: reading past the end is seen by the sanitizer */
    size_t size = strlen(json);
    char *copy = malloc(size ? size : 1);
    memcpy(copy, json, size);
    int r = fn(copy, size, &out, err);
    (void)snprintf(text, sizeof text, "%.*s", (int)out.size_bytes, out.data ? out.data : "");
    free(copy);
    buf_free(&out);
    return r;
}

static void
tiers_are_a_table(void **state)
{
    assert_int_equal(render(admin_text_tiers, tiers_json, NULL), 0);
    assert_string_equal(
        text, "tier                     budget       used            hits          misses  hit rate"
              "  delivered     evictions\n"
              "hbm                        2MiB       1MiB       1,234,567               0   100.0 %"
              "       8KiB             7\n"
              "  layer 1 order 2                     1KiB             999               1    99.9 %"
              "        17B             0\n"
              "ram                          0B         0B               0           1,000     0.0 %"
              "         0B             0\n"
              "nvme                          -       5MiB               5               0         -"
              "       100B             0\n"
              "\n"
              "nvme      1,500 reads, 5.86MiB read for 1.46MiB asked for (x 4), 20 merged\n"
              "          1 errors, 2 retries, 3 in flight\n"
              "          latency in us: mean 120.5, p50 96, p99 768\n"
              "prefetch  100 bundles ahead of need, 98 used, 2 late\n"
              "memory    4KiB staging, 118MiB resident in all\n");
}

static void
missing_and_strange_fields_print_as_dashes(void **state)
{
    assert_int_equal(render(admin_text_tiers, "{\"tiers\":[{}]}", NULL), 0);
    assert_non_null(strstr(text, "\n-                             -          -               -"));
    assert_int_equal(
        render(admin_text_tiers,
               "{\"tiers\":[null,3,{\"name\":7,\"hits\":-1,\"misses\":\"x\",\"hit_rate\":[],"
               "\"sets\":[{},1]}],\"nvme\":[],\"prefetch\":0}",
               NULL),
        0);
    assert_non_null(strstr(text, "  layer - order -"));
    assert_int_equal(render(admin_text_tiers, "{\"tiers\":[{\"hits\":9223372036854775807}]}", NULL),
                     0);
    assert_non_null(strstr(text, " 9,223,372,036,854,775,807 "));
}

static void
status_lists_the_checks(void **state)
{
    assert_int_equal(
        render(admin_text_status,
               "{\"status\":\"model_loading\",\"checks\":[{\"name\":\"model\",\"ok\":false,"
               "\"detail\":\"weights 12.5%\"},{\"name\":\"device\",\"ok\":true,"
               "\"detail\":\"cpu\"}]}",
               NULL),
        0);
    assert_string_equal(text, "model_loading\n"
                              "  NO   model        weights 12.5%\n"
                              "  ok   device       cpu\n");
    assert_int_equal(render(admin_text_status, "{\"status\":\"ok\",\"checks\":[]}", NULL), 0);
    assert_string_equal(text, "ok\n");
}

static void
control_characters_do_not_reach_the_terminal(void **state)
{
    assert_int_equal(render(admin_text_status, "{\"status\":\"\\u001b[31mred\\n\"}", NULL), 0);
    assert_null(strchr(text, '\x1b'));
    assert_string_equal(text, "\\x1b[31mred\\n\n");
    assert_int_equal(render(admin_text_tiers, "{\"tiers\":[{\"name\":\"\\u0007\"}]}", NULL), 0);
    assert_null(strchr(text, '\a'));
}

static void
other_documents_are_refused(void **state)
{
    static const char *const bad[] = {"",  "[]", "nonsense",       "{\"a\":1",
                                      "3", "{}", "{\"tiers\":{}}", "{\"status\":1}"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct err err = ERR_INIT;
        assert_int_equal(render(admin_text_tiers, bad[i], &err), -EPROTO);
        assert_true(err.text[0] != '\0');
        assert_int_equal(render(admin_text_status, bad[i], NULL), -EPROTO);
    }
    struct buf out = {0};
    assert_int_equal(admin_text_tiers(NULL, 0, &out, NULL), -EPROTO);
    buf_free(&out);
}

static void
an_error_is_its_message_or_its_status(void **state)
{
    static const struct {
        const char *json, *text;
    } row[] = {
        {"{\"error\":{\"message\":\"Unknown tier: "
         "'x'\",\"type\":\"t\",\"param\":null,\"code\":null}}",
         "Unknown tier: 'x' (HTTP 400)"},
        {"{\"error\":{\"message\":\"a\\u001bb\"}}", "a\\x1bb (HTTP 400)"},
        {"{\"error\":{\"message\":null}}", "HTTP 400"},
        {"{\"error\":\"Unauthorized\"}", "HTTP 400"},
        {"<html>", "HTTP 400"},
        {"", "HTTP 400"},
    };
    for (size_t i = 0; i < sizeof row / sizeof row[0]; i++) {
        struct buf out = {0};
        admin_text_error(400, row[i].json, strlen(row[i].json), &out);
        buf_append(&out, "", 1);
        assert_string_equal(out.data, row[i].text);
        buf_free(&out);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tiers_are_a_table),
        cmocka_unit_test(missing_and_strange_fields_print_as_dashes),
        cmocka_unit_test(status_lists_the_checks),
        cmocka_unit_test(control_characters_do_not_reach_the_terminal),
        cmocka_unit_test(other_documents_are_refused),
        cmocka_unit_test(an_error_is_its_message_or_its_status),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
