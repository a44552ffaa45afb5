/* Products with weights: against double precision, grouped and alone, on every instruction set; the
 * portable one sends long segments through BLAS, panel by panel. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "gpu/host/host_device.h"

static const char *const isas[] = {"portable", "avx2", "avx512"};

static uint64_t seed = 1;
static float
noise(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(seed >> 32) / 2147483648.0f;
}

enum { K = 1100, N1 = 70, N2 = 9, N3 = 129, ROWS = 30 }; /* K is deeper than a BLAS panel */
static float x[ROWS * K], wide[(N1 + N2 + N3) * K], bias[N1 + N2 + N3];
static uint16_t half[(N1 + N2 + N3) * K];
static float grouped[3][ROWS * N3], single[ROWS * N3];
static int32_t zeros[ROWS];
static const int widths[3] = {N1, N2, N3};

/* Decoded rows 0 and 1, segments of 20, 3 and 5 rows. */
static struct batch_seq seqs[5] = {{.first_row = 0, .n_rows = 1},
                                   {.first_row = 1, .n_rows = 1},
                                   {.first_row = 2, .n_rows = 20},
                                   {.first_row = 22, .n_rows = 3},
                                   {.first_row = 25, .n_rows = 5}};
static const struct batch batch = {ROWS, 5, 2, zeros, zeros, zeros, seqs};

static void
fill(void)
{
    for (int i = 0; i < ROWS * K; i++)
        x[i] = noise();
    for (int i = 0; i < (N1 + N2 + N3) * K; i++) {
        half[i] = dtype_to_bf16(noise());
        wide[i] = dtype_bf16(half[i]);
    }
    for (int i = 0; i < N1 + N2 + N3; i++)
        bias[i] = noise();
}

static void
make_parts(struct matmul_part parts[3], bool bf16)
{
    for (int p = 0, at = 0; p < 3; at += widths[p++])
        parts[p] = (struct matmul_part){
            grouped[p],
            {bf16 ? (void *)(half + at * K) : wide + at * K, bf16 ? DTYPE_BF16 : DTYPE_F32,
             widths[p], K},
            {p == 1 ? NULL : bias + at, DTYPE_F32, 1, widths[p]},
        };
}

static void
products_match_double_precision_grouped_and_accumulated(void **state)
{
    fill();
    for (int i = 0; i < 3 * 2 * 3; i++) {
        struct host_device_options options = {.n_threads = 1 + i % 3, .isa = isas[i / 6]};
        struct matmul_part parts[3];
        struct device *dev;
        if (host_device_open(&dev, &options, NULL) < 0)
            continue;
        make_parts(parts, i / 3 % 2);
        assert_int_equal(dev->ops->matmul_group(dev, parts, 3, x, &batch, NULL), 0);
        for (int p = 0, at = 0; p < 3; at += widths[p++]) {
            for (int r = 0; r < ROWS; r++)
                for (int c = 0; c < widths[p]; c++) {
                    double want = p == 1 ? 0 : (double)bias[at + c];
                    for (int j = 0; j < K; j++)
                        want += (double)x[r * K + j] * (double)wide[(at + c) * K + j];
                    assert_true(fabs((double)grouped[p][r * widths[p] + c] - want) < 1e-4);
                }
            size_t count = (size_t)(ROWS * widths[p]);
            assert_int_equal(
                dev->ops->matmul(dev, single, x, parts[p].w, parts[p].bias, false, &batch, NULL),
                0);
            assert_memory_equal(single, grouped[p], count * sizeof *single);
            for (size_t j = 0; j < count; j++)
                single[j] = 3;
            assert_int_equal(
                dev->ops->matmul(dev, single, x, parts[p].w, parts[p].bias, true, &batch, NULL), 0);
            for (size_t j = 0; j < count; j++)
                assert_true(fabs((double)single[j] - 3 - (double)grouped[p][j]) < 1e-4);
        }
        (void)dev->ops->close(dev);
    }
}

static void
threads_and_neighbours_change_no_bit_of_a_row(void **state)
{
    fill();
    for (int i = 0; i < 3; i++) {
        struct matmul_part parts[3];
        make_parts(parts, true);
        for (int n_threads = 1; n_threads <= 5; n_threads++) {
            struct host_device_options options = {.n_threads = n_threads, .isa = isas[i]};
            struct device *dev;
            if (host_device_open(&dev, &options, NULL) < 0)
                continue;
            assert_int_equal(dev->ops->matmul_group(dev, parts, 3, x, &batch, NULL), 0);
            if (n_threads == 1)
                memcpy(single, grouped[2], sizeof single);
            assert_memory_equal(grouped[2], single, sizeof single);
            for (int s = 0; s < 5; s++) {
                struct batch_seq seq = {.n_rows = seqs[s].n_rows};
                struct batch alone = {seq.n_rows, 1, seq.n_rows == 1, zeros, zeros, zeros, &seq};
                assert_int_equal(
                    dev->ops->matmul_group(dev, parts, 3, x + seqs[s].first_row * K, &alone, NULL),
                    0);
                assert_memory_equal(grouped[2], single + seqs[s].first_row * N3,
                                    (size_t)(seq.n_rows * N3) * sizeof *single);
            }
            (void)dev->ops->close(dev);
        }
    }
}

static void
head_rows_are_picked_by_index_and_equal_a_decoded_row(void **state)
{
    static const int32_t row[] = {29, 0, 7, 7, 12};
    fill();
    for (int i = 0; i < 3; i++) {
        struct host_device_options options = {.n_threads = 2, .isa = isas[i]};
        struct matmul_part parts[3];
        struct device *dev;
        if (host_device_open(&dev, &options, NULL) < 0)
            continue;
        make_parts(parts, true);
        for (int p = 0; p < 2; p++) {
            struct weight none = {0};
            assert_int_equal(dev->ops->matmul_rows(dev, single, x, row, 5, parts[p].w, NULL), 0);
            for (int r = 0; r < 5; r++) {
                struct batch_seq seq = {.n_rows = 1};
                struct batch one = {1, 1, 1, zeros, zeros, zeros, &seq};
                assert_int_equal(dev->ops->matmul(dev, grouped[2], x + row[r] * K, parts[p].w, none,
                                                  false, &one, NULL),
                                 0);
                assert_memory_equal(single + r * widths[p], grouped[2],
                                    (size_t)widths[p] * sizeof *single);
            }
        }
        (void)dev->ops->close(dev);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_match_double_precision_grouped_and_accumulated),
        cmocka_unit_test(threads_and_neighbours_change_no_bit_of_a_row),
        cmocka_unit_test(head_rows_are_picked_by_index_and_equal_a_decoded_row),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
