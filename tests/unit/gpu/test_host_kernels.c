/* The vector kernels of every instruction set against double precision, and their promise that a
 * result depends on its own inputs alone. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/dtype.h"
#include "gpu/host/host_device.h"
#include "gpu/host/host_kernels.h"
#include "gpu/host/host_state.h"

static const char *const isas[] = {"portable", "avx2", "avx512"};

/* The table of kernels i, or NULL on a CPU without them. */
static const struct host_kernels *
kernels_of(int i)
{
    struct host_device_options options = {.n_threads = 1, .isa = isas[i]};
    struct device *dev;

    if (host_device_open(&dev, &options, NULL) < 0)
        return NULL;
    const struct host_kernels *k = host_of(dev)->kernels;
    assert_string_equal(host_device_isa(dev), isas[i]);
    (void)dev->ops->close(dev);
    return k;
}

static uint64_t seed = 1;
static float
noise(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(seed >> 32) / 2147483648.0f;
}

enum { MAX_K = 333, MAX_ROWS = 40, MAX_COLS = 40 };
static float x[MAX_ROWS * MAX_K], out[MAX_ROWS * MAX_COLS], w_f32[MAX_COLS * MAX_K], bias[MAX_COLS];
static uint16_t w_bf16[MAX_COLS * MAX_K];

static void
fill(void)
{
    for (int i = 0; i < MAX_ROWS * MAX_K; i++)
        x[i] = noise();
    for (int i = 0; i < MAX_COLS * MAX_K; i++) {
        w_bf16[i] = dtype_to_bf16(noise());
        w_f32[i] = dtype_bf16(w_bf16[i]);
    }
    for (int i = 0; i < MAX_COLS; i++)
        bias[i] = noise();
}

static void
a_dot_product_of_any_size_matches_double_precision(void **state)
{
    static const int sizes[][3] = {{1, 1, 1},   {1, 9, 16},    {2, 4, 17},  {3, 3, 31},
                                   {4, 5, 33},  {5, 7, 64},    {6, 8, 100}, {7, 13, 255},
                                   {13, 1, 15}, {40, 40, 333}, {11, 6, 48}, {1, 40, 333}};
    fill();
    for (int i = 0; i < 3; i++) {
        const struct host_kernels *kernels = kernels_of(i);
        for (size_t s = 0; kernels && s < sizeof sizes / sizeof *sizes * 4; s++) {
            int rows = sizes[s / 4][0], cols = sizes[s / 4][1], k = sizes[s / 4][2];
            bool bf16 = s & 1, extra = s & 2;
            struct dot_args a = {.out = out,
                                 .out_stride = MAX_COLS,
                                 .x = x,
                                 .x_stride = MAX_K,
                                 .n_rows = rows,
                                 .w = bf16 ? (void *)w_bf16 : w_f32,
                                 .w_stride = MAX_K,
                                 .n_cols = cols,
                                 .k = k,
                                 .bias = extra ? bias : NULL,
                                 .accumulate = extra};
            for (int j = 0; j < MAX_ROWS * MAX_COLS; j++)
                out[j] = 0.5f;
            if (bf16)
                kernels->dot_bf16(&a);
            else
                kernels->dot_f32(&a);
            for (int r = 0; r < MAX_ROWS; r++)
                for (int c = 0; c < MAX_COLS; c++) {
                    double want = extra ? (double)bias[c] + 0.5 : 0;
                    for (int j = 0; j < k; j++)
                        want += (double)x[r * MAX_K + j] * (double)w_f32[c * MAX_K + j];
                    if (r >= rows || c >= cols)
                        want = 0.5; /* untouched */
                    assert_true(fabs((double)out[r * MAX_COLS + c] - want) < 1e-5);
                }
        }
    }
}

static void
a_dot_product_has_the_same_bits_in_every_tile(void **state)
{
    static float one[MAX_ROWS * MAX_COLS];
    static const int32_t reversed[] = {39, 38, 37, 36, 35, 34, 33, 32, 31, 30};
    fill();
    for (int i = 0; i < 3; i++) {
        const struct host_kernels *kernels = kernels_of(i);
        for (int k = 1; kernels && k <= MAX_K; k += k < 40 ? 1 : 73) {
            struct dot_args a = {.out_stride = MAX_COLS,
                                 .x_stride = MAX_K,
                                 .w_stride = MAX_K,
                                 .k = k,
                                 .accumulate = true};
            memset(one, 0, sizeof one);
            for (int r = 0; r < MAX_ROWS; r++)
                for (int c = 0; c < MAX_COLS; c++) {
                    a.out = one + r * MAX_COLS + c;
                    a.x = x + r * MAX_K;
                    a.w = w_bf16 + c * MAX_K;
                    a.n_rows = a.n_cols = 1;
                    kernels->dot_bf16(&a);
                }
            for (int rows = 1; rows <= MAX_ROWS; rows += rows < 8 ? 1 : 16) {
                memset(out, 0, sizeof out);
                a.out = out;
                a.x = x;
                a.w = w_bf16;
                a.n_rows = rows;
                a.n_cols = MAX_COLS - rows % 5;
                kernels->dot_bf16(&a);
                for (int r = 0; r < rows; r++)
                    assert_memory_equal(out + r * MAX_COLS, one + r * MAX_COLS,
                                        (size_t)a.n_cols * sizeof *out);
            }
            memset(out, 0, sizeof out);
            a.row = reversed;
            a.n_rows = 10;
            a.n_cols = MAX_COLS;
            kernels->dot_bf16(&a);
            for (int r = 0; r < 10; r++)
                assert_memory_equal(out + r * MAX_COLS, one + reversed[r] * MAX_COLS,
                                    MAX_COLS * sizeof *out);
        }
    }
}

static void
exp_is_within_three_ulp_and_zero_far_below(void **state)
{
    for (int i = 0; i < 3; i++) {
        const struct host_kernels *kernels = kernels_of(i);
        for (double at = -86.9; kernels && at <= 87.9; at += 0.00731) {
            float in = (float)at, got;
            (void)kernels->exp_sum(&got, &in, 1, 0, 1);
            double want = exp((double)in);
            assert_true(fabs((double)got - want) < 3.5e-7 * want);
        }
        float edge[4] = {-INFINITY, -1e30f, -88, 0}, got[4];
        if (!kernels)
            continue;
        double sum = kernels->exp_sum(got, edge, 4, 0, 1);
        assert_true(got[0] == 0 && got[1] == 0 && got[2] == 0 && got[3] == 1 && sum == 1);
    }
}

static void
an_exp_sum_counts_every_element_once(void **state)
{
    enum { N = 10007 };
    static float in[N], got[N];
    for (int i = 0; i < N; i++)
        in[i] = 10 * noise();
    for (int i = 0; i < 3; i++) {
        const struct host_kernels *kernels = kernels_of(i);
        for (int n = 1; kernels && n <= N; n = n * 3 + 1) {
            double want = 0;
            for (int j = 0; j < n; j++)
                want += exp(((double)in[j] - 10) * 0.5);
            assert_true(fabs(kernels->exp_sum(got, in, (size_t)n, 10, 0.5f) - want) < 1e-5 * want);
            assert_true(kernels->exp_sum(NULL, in, (size_t)n, 10, 0.5f) ==
                        kernels->exp_sum(got, in, (size_t)n, 10, 0.5f));
        }
    }
}

static void
norm_silu_and_scaling_match_double_precision_at_any_length(void **state)
{
    enum { N = 70 };
    float a[N], b[N], got[N];
    for (int i = 0; i < N; i++) {
        a[i] = 8 * noise();
        b[i] = noise();
    }
    for (int i = 0; i < 3; i++) {
        const struct host_kernels *kernels = kernels_of(i);
        for (int n = 1; kernels && n <= N; n++) {
            double sum = 0, dot = 0;
            for (int j = 0; j < n; j++) {
                sum += (double)a[j] * (double)a[j];
                dot += (double)a[j] * (double)b[j];
            }
            assert_true(fabs((double)kernels->dot(a, b, n) - dot) < 1e-4);
            (void)kernels->rms_norm(got, a, b, n, 1e-6f);
            for (int j = 0; j < n; j++)
                assert_true(fabs((double)got[j] -
                                 (double)a[j] / sqrt(sum / n + 1e-6) * (double)b[j]) < 1e-6);
            kernels->silu_mul(got, a, b, (size_t)n);
            for (int j = 0; j < n; j++)
                assert_true(fabs((double)got[j] -
                                 (double)a[j] / (1 + exp(-(double)a[j])) * (double)b[j]) < 1e-6);
            memcpy(got, b, sizeof got);
            kernels->silu_add(got, a, (size_t)n);
            for (int j = 0; j < n; j++)
                assert_true(fabs((double)got[j] - (double)b[j] -
                                 (double)a[j] / (1 + exp(-(double)a[j]))) < 1e-6);
            memcpy(got, b, sizeof got);
            kernels->mul_add(got, a, b, (size_t)n);
            for (int j = 0; j < n; j++)
                assert_true(fabs((double)got[j] - (double)b[j] - (double)a[j] * (double)b[j]) <
                            2e-6);
            kernels->scale(got, a, 0.25f, (size_t)n);
            for (int j = 0; j < n; j++)
                assert_true(got[j] == a[j] * 0.25f);
        }
    }
}

static void
silu_of_huge_values_stays_finite(void **state)
{
    float in[4] = {-1e30f, -200, 200, 1e30f}, one[4] = {1, 1, 1, 1}, got[4];
    for (int i = 0; i < 3; i++) {
        const struct host_kernels *kernels = kernels_of(i);
        if (!kernels)
            continue;
        kernels->silu_mul(got, in, one, 4);
        assert_true(fabsf(got[1]) < 1e-30f && got[2] == 200 && got[3] == 1e30f);
        assert_true(isfinite(got[0]));
    }
}

static void
max_sees_every_element_and_everything_not_finite(void **state)
{
    float in[70];
    for (int i = 0; i < 3; i++) {
        const struct host_kernels *kernels = kernels_of(i);
        for (int n = 1; kernels && n <= 70; n++)
            for (int at = 0; at < n; at++) {
                static const float bad[] = {NAN, -NAN, INFINITY, -INFINITY};
                bool finite;
                for (int j = 0; j < n; j++)
                    in[j] = -5 - noise();
                in[at] = -3;
                assert_true(kernels->max(in, (size_t)n, &finite) == -3 && finite);
                in[at] = 3.4e38f;
                assert_true(kernels->max(in, (size_t)n, &finite) == 3.4e38f && finite);
                for (int b = 0; b < 4; b++) {
                    in[at] = bad[b];
                    (void)kernels->max(in, (size_t)n, &finite);
                    assert_false(finite);
                }
            }
    }
}

static void
mix_matches_double_precision_and_has_the_same_bits_alone(void **state)
{
    enum { KEYS = 64, Q = 9 };
    static float acc[Q * 150], start[Q * 150], p[Q * KEYS], v[KEYS * 150], keep[Q], alone[150];
    for (int i = 0; i < Q * 150; i++)
        start[i] = noise();
    for (int i = 0; i < Q * KEYS; i++)
        p[i] = noise();
    for (int i = 0; i < KEYS * 150; i++)
        v[i] = noise();
    for (int i = 0; i < Q; i++)
        keep[i] = noise();
    for (int i = 0; i < 3; i++) {
        const struct host_kernels *kernels = kernels_of(i);
        for (int dim = 1; kernels && dim <= 150; dim += dim < 70 ? 1 : 16)
            for (int n_q = 1; n_q <= Q; n_q += 2) {
                int n = 1 + dim * 7 % KEYS;
                memcpy(acc, start, sizeof acc);
                kernels->mix(acc, 150, keep, n_q, p, KEYS, v, 150, n, dim);
                for (int q = 0; q < Q; q++) {
                    for (int d = 0; d < 150; d++) {
                        double want = (double)start[q * 150 + d];
                        if (q < n_q && d < dim) {
                            want *= (double)keep[q];
                            for (int j = 0; j < n; j++)
                                want += (double)p[q * KEYS + j] * (double)v[j * 150 + d];
                        }
                        assert_true(fabs((double)acc[q * 150 + d] - want) < 1e-5);
                    }
                    if (q >= n_q)
                        continue;
                    memcpy(alone, start + q * 150, sizeof alone);
                    kernels->mix(alone, 150, keep + q, 1, p + q * KEYS, KEYS, v, 150, n, dim);
                    assert_memory_equal(alone, acc + q * 150, sizeof alone);
                }
            }
    }
}

static void
widening_keeps_every_bf16_value(void **state)
{
    static uint16_t bits[65536];
    static float got[65536];
    for (int i = 0; i < 65536; i++)
        bits[i] = (uint16_t)i;
    for (int i = 0; i < 3; i++) {
        const struct host_kernels *kernels = kernels_of(i);
        if (!kernels)
            continue;
        kernels->widen_bf16(got, bits, 65535);
        for (uint32_t j = 0; j < 65535; j++) {
            uint32_t wide;
            memcpy(&wide, &got[j], sizeof wide);
            assert_int_equal(wide, j << 16);
        }
    }
}

static void
an_unknown_instruction_set_is_refused_by_name(void **state)
{
    struct host_device_options options = {.n_threads = 1, .isa = "mmx"};
    struct device *dev = NULL;
    struct err err = ERR_INIT;

    assert_int_equal(host_device_open(&dev, &options, &err), -EINVAL);
    assert_non_null(strstr(err.text, "mmx"));
    assert_null(dev);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_dot_product_of_any_size_matches_double_precision),
        cmocka_unit_test(a_dot_product_has_the_same_bits_in_every_tile),
        cmocka_unit_test(exp_is_within_three_ulp_and_zero_far_below),
        cmocka_unit_test(an_exp_sum_counts_every_element_once),
        cmocka_unit_test(norm_silu_and_scaling_match_double_precision_at_any_length),
        cmocka_unit_test(silu_of_huge_values_stays_finite),
        cmocka_unit_test(max_sees_every_element_and_everything_not_finite),
        cmocka_unit_test(mix_matches_double_precision_and_has_the_same_bits_alone),
        cmocka_unit_test(widening_keeps_every_bf16_value),
        cmocka_unit_test(an_unknown_instruction_set_is_refused_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
