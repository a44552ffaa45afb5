#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include <jansson.h>

#include "proto/api_json.h"

static struct buf out;

static const char *
written(void)
{
    json_t *parsed;

    assert_false(out.failed);
    parsed = json_loadb(out.data, out.size_bytes, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(parsed);
    json_decref(parsed);
    buf_append(&out, "", 1);
    out.size_bytes = 0;
    return out.data;
}

static int
drop_out(void **state)
{
    buf_free(&out);
    return 0;
}

static void
models_are_listed_as_openai_does(void **state)
{
    const struct api_model models[] = {{.id = "demo",
                                        .created = 17,
                                        .max_model_len = 4096,
                                        .n_params = 9,
                                        .size_bytes = 18,
                                        .vocab = 5},
                                       {.id = "a\"b"}};

    api_models_write(&out, models, 2);
    assert_string_equal(
        written(),
        "{\"object\":\"list\",\"data\":[{\"id\":\"demo\",\"object\":\"model\",\"created\":17,"
        "\"owned_by\":\"engramd\",\"max_model_len\":4096,\"meta\":{\"n_ctx_train\":4096,"
        "\"n_params\":9,\"size\":18,\"n_vocab\":5}},{\"id\":\"a\\\"b\",\"object\":\"model\","
        "\"created\":0,\"owned_by\":\"engramd\",\"max_model_len\":0,\"meta\":{"
        "\"n_ctx_train\":0,\"n_params\":0,\"size\":0,\"n_vocab\":0}}]}");
    api_models_write(&out, NULL, 0);
    assert_string_equal(written(), "{\"object\":\"list\",\"data\":[]}");
}

static void
readiness_lists_its_checks(void **state)
{
    const struct api_check checks[] = {{"model", 1, "loaded"}, {"device", 0, NULL}};

    api_ready_write(&out, "loading", checks, 2);
    assert_string_equal(written(),
                        "{\"status\":\"loading\",\"checks\":[{\"name\":\"model\",\"ok\":true,"
                        "\"detail\":\"loaded\"},{\"name\":\"device\",\"ok\":false,"
                        "\"detail\":null}]}");
    api_ready_write(&out, "ok", NULL, 0);
    assert_string_equal(written(), "{\"status\":\"ok\",\"checks\":[]}");
}

static void
tiers_are_written_with_their_rates(void **state)
{
    const struct api_tier_set set = {.layer = 1,
                                     .order = 3,
                                     .hits = 3,
                                     .misses = 1,
                                     .bytes = 40,
                                     .evictions = 5,
                                     .promotions = 6,
                                     .used_bytes = 7};
    const struct api_tier tier[] = {{.name = "hbm",
                                     .budget_bytes = 100,
                                     .used_bytes = 50,
                                     .hits = 1,
                                     .misses = 3,
                                     .bytes = 9,
                                     .evictions = 2,
                                     .n_sets = 1,
                                     .sets = &set},
                                    {.name = "ram"}};
    const struct api_tiers tiers = {.n_tiers = 2,
                                    .tiers = tier,
                                    .staging_bytes = 11,
                                    .prefetched = 8,
                                    .prefetch_used = 6,
                                    .prefetch_late = 1,
                                    .resident_bytes = 12,
                                    .nvme = {.reads = 2,
                                             .bytes = 8192,
                                             .useful_bytes = 2048,
                                             .merged = 3,
                                             .errors = 4,
                                             .retries = 5,
                                             .in_flight = 6,
                                             .latency_mean_us = 30.5,
                                             .latency_p50_us = 28,
                                             .latency_p99_us = 90}};

    api_tiers_write(&out, &tiers);
    assert_string_equal(
        written(),
        "{\"tiers\":[{\"name\":\"hbm\",\"budget_bytes\":100,\"used_bytes\":50,\"hits\":1,"
        "\"misses\":3,"
        "\"hit_rate\":0.25,\"bytes\":9,\"evictions\":2,\"sets\":[{\"layer\":1,\"order\":3,"
        "\"used_bytes\":7,\"hits\":3,\"misses\":1,\"hit_rate\":0.75,\"bytes\":40,\"evictions\":5,"
        "\"promotions\":6}]},{\"name\":\"ram\",\"budget_bytes\":0,\"used_bytes\":0,\"hits\":0,"
        "\"misses\":0,\"hit_rate\":null,\"bytes\":0,\"evictions\":0,\"sets\":[]}],\"nvme\":{"
        "\"reads\":2,"
        "\"bytes\":8192,\"useful_bytes\":2048,\"page_amplification\":4.0,\"merged\":3,\"errors\":4,"
        "\"retries\":5,\"in_flight\":6,\"latency_us\":{\"mean\":30.5,\"p50\":28.0,\"p99\":90.0}},"
        "\"staging_bytes\":11,\"resident_bytes\":12,\"prefetch\":{\"issued\":8,\"used\":6,\"late\":"
        "1,"
        "\"used_rate\":0.75}}");
}

static void
rates_of_nothing_are_null(void **state)
{
    const struct api_tiers tiers = {0};

    api_tiers_write(&out, &tiers);
    assert_non_null(strstr(written(), "\"page_amplification\":null"));
    assert_non_null(strstr(out.data, "\"used_rate\":null"));
    assert_non_null(strstr(out.data, "{\"tiers\":[],"));
}

static void
assert_sizes(const char *body, uint64_t hbm, uint64_t ram)
{
    struct api_tier_sizes sizes = {1, 1};
    struct api_error error = {0};

    if (api_tier_sizes_parse(body, strlen(body), &sizes, &error) < 0)
        fail_msg("%s: %s", body, error.message);
    assert_true(sizes.hbm_bytes == hbm && sizes.ram_bytes == ram);
}

static void
sizes_are_read_as_text_or_bytes(void **state)
{
    assert_sizes("{\"tiers\":{\"ram\":\"8GiB\",\"hbm\":1048576}}", 1 << 20, 8ull << 30);
    assert_sizes("{\"tiers\":{\"ram\":\"8 GiB\"}}", UINT64_MAX, 8ull << 30);
    assert_sizes("{\"tiers\":{\"hbm\":0}}", 0, UINT64_MAX);
    assert_sizes("{\"tiers\":{\"hbm\":\"1.5MiB\",\"ram\":null}}", 3 << 19, UINT64_MAX);
    assert_sizes("{\"tiers\":{\"hbm\":9223372036854775807}}", INT64_MAX, UINT64_MAX);
    assert_sizes("{\"tiers\":{}}", UINT64_MAX, UINT64_MAX);
}

static void
a_bad_size_is_refused_by_name_and_changes_nothing(void **state)
{
    static const struct {
        const char *body, *code, *param;
    } rows[] = {
        {"", "invalid_json", ""},
        {"[]", "invalid_json", ""},
        {"{\"tiers\":{\"ram\":1,\"ram\":2}}", "invalid_json", ""},
        {"{}", "missing_required_parameter", "tiers"},
        {"{\"tiers\":null}", "missing_required_parameter", "tiers"},
        {"{\"tiers\":[]}", "invalid_type", "tiers"},
        {"{\"tiers\":{},\"x\":1}", "unknown_parameter", "x"},
        {"{\"ram\":\"8GiB\"}", "unknown_parameter", "ram"},
        {"{\"tiers\":{\"ssd\":1}}", "unknown_parameter", "tiers.ssd"},
        {"{\"tiers\":{\"nvme\":1}}", "unsupported_parameter", "tiers.nvme"},
        {"{\"tiers\":{\"ram\":1,\"nvme\":null}}", "unsupported_parameter", "tiers.nvme"},
        {"{\"tiers\":{\"ram\":-1}}", "invalid_value", "tiers.ram"},
        {"{\"tiers\":{\"ram\":\"-1\"}}", "invalid_value", "tiers.ram"},
        {"{\"tiers\":{\"ram\":\"lots\"}}", "invalid_value", "tiers.ram"},
        {"{\"tiers\":{\"ram\":\"\"}}", "invalid_value", "tiers.ram"},
        {"{\"tiers\":{\"ram\":\"8GiB\\u0000x\"}}", "invalid_value", "tiers.ram"},
        {"{\"tiers\":{\"ram\":\"99999999TiB\"}}", "invalid_value", "tiers.ram"},
        {"{\"tiers\":{\"ram\":9223372036854775808}}", "invalid_value", "tiers.ram"},
        {"{\"tiers\":{\"ram\":1.0}}", "invalid_type", "tiers.ram"},
        {"{\"tiers\":{\"ram\":true}}", "invalid_type", "tiers.ram"},
        {"{\"tiers\":{\"hbm\":{}}}", "invalid_type", "tiers.hbm"},
    };

    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct api_tier_sizes sizes = {1, 2};
        struct api_error error = {0};
        int status = api_tier_sizes_parse(rows[i].body, strlen(rows[i].body), &sizes, &error);

        if (status != -400 || strcmp(error.code, rows[i].code) != 0 ||
            strcmp(error.param, rows[i].param) != 0)
            fail_msg("%s gave %d %s '%s': %s", rows[i].body, status, error.code, error.param,
                     error.message);
        assert_true(sizes.hbm_bytes == 1 && sizes.ram_bytes == 2);
    }
}

static void
a_flood_of_tiers_is_refused(void **state)
{
    struct api_tier_sizes sizes;
    struct api_error error = {0};
    struct buf body = {0};

    buf_text(&body, "{\"tiers\":[");
    for (int i = 0; i < 10000; i++)
        buf_text(&body, "1,");
    buf_text(&body, "1]}");
    assert_int_equal(api_tier_sizes_parse(body.data, body.size_bytes, &sizes, &error), -413);
    buf_free(&body);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(models_are_listed_as_openai_does),
        cmocka_unit_test(readiness_lists_its_checks),
        cmocka_unit_test(tiers_are_written_with_their_rates),
        cmocka_unit_test(rates_of_nothing_are_null),
        cmocka_unit_test(sizes_are_read_as_text_or_bytes),
        cmocka_unit_test(a_bad_size_is_refused_by_name_and_changes_nothing),
        cmocka_unit_test(a_flood_of_tiers_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, drop_out);
}
