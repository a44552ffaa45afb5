#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include <math.h>
#include <pthread.h>
#include <stdio.h>

#include "base/metric.h"

static char rendered[1 << 18];

static const char *
render(struct metrics *metrics)
{
    struct buf out = {.limit_bytes = sizeof rendered - 1};
    metrics_render(metrics, &out);
    assert_false(out.failed);
    memcpy(rendered, out.data, out.size_bytes);
    rendered[out.size_bytes] = '\0';
    buf_free(&out);
    return rendered;
}

static void
a_row_nobody_registered_has_one_series_without_labels(void **state)
{
    struct metrics *metrics = metrics_new();
    metrics_add(metrics, METRIC_ID_engine_steps_total, 0, 3);
    assert_non_null(strstr(render(metrics), "\n# HELP engramd_engine_steps_total Forward"));
    assert_non_null(strstr(rendered, "\n# TYPE engramd_engine_steps_total counter\n"
                                     "engramd_engine_steps_total 3\n"));
    assert_true(metrics_read(metrics, METRIC_ID_engine_steps_total, 0) == 3);
    assert_null(metrics_free(metrics));
    assert_null(metrics_free(NULL));
}

static void
series_are_told_apart_by_their_labels(void **state)
{
    struct metrics *metrics = metrics_new();
    enum metric_id id = METRIC_ID_tier_hits_total;
    assert_int_equal(metrics_series(metrics, id, "tier=\"hbm\",layer=\"1\""), 0);
    assert_int_equal(metrics_series(metrics, id, "tier=\"ram\",layer=\"1\""), 1);
    assert_int_equal(metrics_series(metrics, id, "tier=\"hbm\",layer=\"1\""), 0);
    metrics_add(metrics, id, 0, 5);
    metrics_add(metrics, id, 1, 18446744073709551610u);
    render(metrics);
    assert_non_null(strstr(rendered, "engramd_tier_hits_total{tier=\"hbm\",layer=\"1\"} 5\n"));
    assert_non_null(strstr(
        rendered, "engramd_tier_hits_total{tier=\"ram\",layer=\"1\"} 18446744073709551610\n"));
    assert_null(strstr(rendered, "engramd_tier_hits_total 0"));
    metrics_free(metrics);
}

static void
a_row_has_room_for_256_series_and_no_more(void **state)
{
    struct metrics *metrics = metrics_new();
    char labels[32];
    for (int i = 0; i < 257; i++) {
        (void)snprintf(labels, sizeof labels, "n=\"%d\"", i);
        assert_int_equal(metrics_series(metrics, METRIC_ID_tier_used_bytes, labels),
                         i < 256 ? i : -ENOSPC);
    }
    metrics_set(metrics, METRIC_ID_tier_used_bytes, 255, 1.5);
    assert_non_null(strstr(render(metrics), "engramd_tier_used_bytes{n=\"255\"} 1.5\n"));
    metrics_free(metrics);
}

static void
gauges_take_any_number_and_counters_whole_ones(void **state)
{
    struct metrics *metrics = metrics_new();
    static const struct {
        double value;
        const char *text;
    } rows[] = {{17592186044416, "17592186044416"},
                {0.25, "0.25"},
                {-3, "-3"},
                {1e300, "1e+300"},
                {(double)NAN, "NaN"},
                {(double)INFINITY, "+Inf"}};
    char line[100];
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        metrics_set(metrics, METRIC_ID_kv_cache_usage_ratio, 0, rows[i].value);
        (void)snprintf(line, sizeof line, "\nengramd_kv_cache_usage_ratio %s\n", rows[i].text);
        assert_non_null(strstr(render(metrics), line));
    }
    metrics_set(metrics, METRIC_ID_nvme_reads_total, 0, 12.9);
    assert_true(metrics_read(metrics, METRIC_ID_nvme_reads_total, 0) == 12);
    metrics_set(metrics, METRIC_ID_nvme_reads_total, 0, -1);
    assert_true(metrics_read(metrics, METRIC_ID_nvme_reads_total, 0) == 0);
    metrics_set(metrics, METRIC_ID_num_requests_running, 0, 2);
    metrics_add(metrics, METRIC_ID_num_requests_running, 0, 3);
    assert_true(metrics_read(metrics, METRIC_ID_num_requests_running, 0) == 5);
    metrics_free(metrics);
}

static void
a_histogram_counts_each_observation_in_its_bucket_and_all_above(void **state)
{
    struct metrics *metrics = metrics_new();
    enum metric_id id = METRIC_ID_inter_token_latency_seconds;
    static const double seconds[] = {0.00003, 0.001, 0.0011, 59, 61, -1, (double)NAN};
    for (size_t i = 0; i < sizeof seconds / sizeof *seconds; i++)
        metrics_observe(metrics, id, 0, seconds[i]);
    render(metrics);
    assert_non_null(
        strstr(rendered, "engramd_inter_token_latency_seconds_bucket{le=\"2e-05\"} 2\n"));
    assert_non_null(
        strstr(rendered, "engramd_inter_token_latency_seconds_bucket{le=\"5e-05\"} 3\n"));
    assert_non_null(
        strstr(rendered, "engramd_inter_token_latency_seconds_bucket{le=\"0.001\"} 4\n"));
    assert_non_null(
        strstr(rendered, "engramd_inter_token_latency_seconds_bucket{le=\"0.002\"} 5\n"));
    assert_non_null(strstr(rendered, "engramd_inter_token_latency_seconds_bucket{le=\"60\"} 6\n"));
    assert_non_null(
        strstr(rendered, "engramd_inter_token_latency_seconds_bucket{le=\"+Inf\"} 7\n"));
    assert_non_null(strstr(rendered, "engramd_inter_token_latency_seconds_sum 120.002130000\n"));
    assert_non_null(strstr(rendered, "engramd_inter_token_latency_seconds_count 7\n"));
    assert_true(metrics_read(metrics, id, 0) == 7);
    metrics_free(metrics);
}

static void
labels_of_a_histogram_stand_before_its_bound(void **state)
{
    struct metrics *metrics = metrics_new();
    metrics_series(metrics, METRIC_ID_inter_token_latency_seconds, "disk=\"a\"");
    render(metrics);
    assert_non_null(strstr(rendered, "_seconds_bucket{disk=\"a\",le=\"60\"} 0\n"));
    assert_non_null(strstr(rendered, "engramd_inter_token_latency_seconds_sum{disk=\"a\"} 0"));
    metrics_free(metrics);
}

static void *
count_up(void *arg)
{
    for (int i = 0; i < 50000; i++) {
        metrics_add(arg, METRIC_ID_engine_steps_total, 0, 1);
        metrics_add(arg, METRIC_ID_num_requests_running, 0, 1);
        metrics_observe(arg, METRIC_ID_inter_token_latency_seconds, 0, 0.001);
    }
    return NULL;
}

static void
no_update_is_lost_between_threads(void **state)
{
    struct metrics *metrics = metrics_new();
    pthread_t thread[3];
    for (int i = 0; i < 3; i++)
        assert_int_equal(pthread_create(&thread[i], NULL, count_up, metrics), 0);
    for (int i = 0; i < 3; i++)
        assert_int_equal(pthread_join(thread[i], NULL), 0);
    assert_true(metrics_read(metrics, METRIC_ID_engine_steps_total, 0) == 150000);
    assert_true(metrics_read(metrics, METRIC_ID_num_requests_running, 0) == 150000);
    assert_true(metrics_read(metrics, METRIC_ID_inter_token_latency_seconds, 0) == 150000);
    assert_non_null(
        strstr(render(metrics), "engramd_inter_token_latency_seconds_sum 150.000000000\n"));
    metrics_free(metrics);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_row_nobody_registered_has_one_series_without_labels),
        cmocka_unit_test(series_are_told_apart_by_their_labels),
        cmocka_unit_test(a_row_has_room_for_256_series_and_no_more),
        cmocka_unit_test(gauges_take_any_number_and_counters_whole_ones),
        cmocka_unit_test(a_histogram_counts_each_observation_in_its_bucket_and_all_above),
        cmocka_unit_test(labels_of_a_histogram_stand_before_its_bound),
        cmocka_unit_test(no_update_is_lost_between_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
