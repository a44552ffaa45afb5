/* Gathering bundles and fusing them: every table type, addresses that are missing, shared or
 * promoted, sequences that skip, restart and are redone. (The arithmetic of the fusion:
 * test_golden_forward.) */
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

static struct device *
open_device(int i)
{
    struct host_device_options options = {.n_threads = 1 + i % 3, .isa = isas[i % 3]};
    struct device *dev = NULL;

    (void)host_device_open(&dev, &options, NULL);
    return dev;
}

enum {
    ROWS = 9,
    ORDERS = 2,
    HEADS = 3,
    MAX_DIM = 80,
    BUNDLES = 6,
    MAX_BUNDLE = HEADS * MAX_DIM * 5
};
static uint8_t bundles[BUNDLES][MAX_BUNDLE], slots[BUNDLES][MAX_BUNDLE];
static float values[BUNDLES][HEADS * MAX_DIM], gathered[ROWS * ORDERS * HEADS * MAX_DIM];
static int32_t row_seq[ROWS], token[ROWS], position[ROWS];

static void
make_bundles(const struct engram_shape *e)
{
    for (int b = 0; b < BUNDLES; b++)
        for (int h = 0; h < HEADS; h++)
            for (int d = 0; d < e->head_dim; d++) {
                uint8_t *weight = bundles[b] + h * engram_row_weight_bytes(e);
                float value = noise();
                if (e->table_dtype == DTYPE_F32) {
                    memcpy(weight + 4 * d, &value, 4);
                } else if (e->table_dtype == DTYPE_BF16) {
                    uint16_t bits = dtype_to_bf16(value);
                    memcpy(weight + 2 * d, &bits, 2);
                    value = dtype_bf16(bits);
                } else {
                    weight[d] = (uint8_t)(fabsf(value) * 126) | (value < 0 ? 0x80 : 0);
                    value = dtype_e4m3_table[weight[d]];
                }
                if (e->scale_group > 0) {
                    uint8_t *scale = bundles[b] + HEADS * engram_row_weight_bytes(e) +
                                     h * engram_row_scale_bytes(e) + d / e->scale_group;
                    if (d % e->scale_group == 0)
                        *scale = (uint8_t)(120 + (b + h + d) % 12);
                    value = ldexpf(value, *scale - 127);
                }
                values[b][h * e->head_dim + d] = value;
            }
}

static void
every_table_type_is_dequantised_exactly(void **state)
{
    static const struct {
        enum dtype dtype;
        int dim, group;
    } kinds[] = {{DTYPE_F8_E4M3, 16, 16}, {DTYPE_F8_E4M3, 80, 8}, {DTYPE_F8_E4M3, 10, 0},
                 {DTYPE_BF16, 16, 0},     {DTYPE_BF16, 77, 0},    {DTYPE_F32, 33, 0},
                 {DTYPE_F32, 8, 4}};
    struct batch_seq seq = {.n_rows = ROWS};
    struct batch batch = {ROWS, 1, 0, token, position, row_seq, &seq};

    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
        for (int i = 0; i < 3; i++) {
            struct engram_shape e = {.max_order = ORDERS + 1,
                                     .heads = HEADS,
                                     .head_dim = kinds[k].dim,
                                     .table_dtype = kinds[k].dtype,
                                     .scale_group = kinds[k].group};
            struct bundle_address address[ROWS * ORDERS] = {{0}};
        struct bundle_source source = {.address = address};
            struct device *dev = open_device(i);
            int width = HEADS * e.head_dim;
            if (!dev)
                continue;
            make_bundles(&e);
            for (int c = 0; c < ROWS * ORDERS; c++)
                address[c].source = c == 5 ? NULL : bundles[c % BUNDLES];
            memset(gathered, 0xff, sizeof gathered);
            assert_int_equal(dev->ops->engram_gather(dev, gathered, &source, 0, &e, &batch, NULL), 0);
            for (int c = 0; c < ROWS * ORDERS; c++)
                for (int d = 0; d < width; d++)
                    assert_true(gathered[c * width + d] == (c == 5 ? 0 : values[c % BUNDLES][d]));
            (void)dev->ops->close(dev);
        }
}

static void
promoted_bundles_are_copied_whole_even_when_shared(void **state)
{
    struct engram_shape e = {.max_order = ORDERS + 1,
                             .heads = HEADS,
                             .head_dim = 16,
                             .table_dtype = DTYPE_F8_E4M3,
                             .scale_group = 8};
    /* The second sequence skips: its addresses are poison. */
    struct batch_seq seq[2] = {{.n_rows = 6}, {.first_row = 6, .n_rows = 3, .engram_off = 1}};
    struct batch batch = {ROWS, 2, 0, token, position, row_seq, seq};
    size_t bytes = (size_t)engram_bundle_bytes(&e);

    make_bundles(&e);
    for (int i = 0; i < ROWS; i++)
        row_seq[i] = i >= 6;
    for (int i = 0; i < 3; i++) {
        struct bundle_address address[ROWS * ORDERS] = {{0}};
        struct bundle_source source = {.address = address};
        struct device *dev = open_device(i);
        if (!dev)
            continue;
        memset(slots, 0x55, sizeof slots);
        for (int c = 0; c < 6 * ORDERS; c++)
            address[c] = (struct bundle_address){bundles[c % 4], c % 4 < 2 ? slots[c % 4] : NULL};
        address[3] = (struct bundle_address){NULL, slots[3]}; /* a failed read promotes nothing */
        for (int c = 6 * ORDERS; c < ROWS * ORDERS; c++)
            address[c] = (struct bundle_address){(void *)1, (void *)1};
        memset(gathered, 0xff, sizeof gathered);
        assert_int_equal(dev->ops->engram_gather(dev, gathered, &source, 0, &e, &batch, NULL), 0);
        for (int b = 0; b < BUNDLES; b++)
            for (size_t j = 0; j < MAX_BUNDLE; j++)
                assert_int_equal(slots[b][j], b < 2 && j < bytes ? bundles[b][j] : 0x55);
        for (int c = 6 * ORDERS; c < ROWS * ORDERS; c++)
            for (int d = 0; d < HEADS * 16; d++)
                assert_true(gathered[c * HEADS * 16 + d] == 0);
        (void)dev->ops->close(dev);
    }
    memset(row_seq, 0, sizeof row_seq);
}

/* --- fusion: one sequence of N positions, cut in ways that must not show */

enum { N = 40, D = 37, KERNEL = 4, ORDER = 3, RING = (KERNEL - 1) * ORDER, SLOTS = 3 };
static float x0[N * D], key[N * D], value[N * D], u[N * D], state_memory[SLOTS * RING * D];
static float norms[3][D], conv[KERNEL * D];
static const struct engram_shape fuse_shape = {
    .max_order = ORDER, .conv_kernel = KERNEL, .norm_eps = 1e-6f};
static struct engram_weights weights;

static void
make_fusion(void)
{
    for (int i = 0; i < N * D; i++) {
        x0[i] = noise();
        key[i] = noise();
        value[i] = noise();
    }
    for (int i = 0; i < 3 * D; i++)
        norms[i / D][i % D] = 1 + noise() / 4;
    for (int i = 0; i < KERNEL * D; i++)
        conv[i] = noise();
    weights = (struct engram_weights){.key_norm = {norms[0], DTYPE_F32, 1, D},
                                      .query_norm = {norms[1], DTYPE_F32, 1, D},
                                      .conv_norm = {norms[2], DTYPE_F32, 1, D},
                                      .conv = {conv, DTYPE_F32, KERNEL, D}};
}

static void
fuse(struct device *dev, float *x, int at, int n, int slot, bool off, bool keep)
{
    static int32_t seq_of[N], tokens[N], positions[N];
    struct batch_seq seq = {.n_rows = n, .context = at, .state_slot = slot, .engram_off = off};
    struct batch batch = {n, 1, n == 1, tokens, positions, seq_of, &seq};

    for (int i = 0; i < n; i++)
        positions[i] = at + i;
    assert_int_equal(dev->ops->engram_fuse(dev, x + at * D, key + at * D, value + at * D, u,
                                           state_memory, &weights, &fuse_shape, D, &batch, NULL),
                     0);
    if (keep)
        assert_int_equal(dev->ops->engram_keep(dev, state_memory, u, &fuse_shape, D, &batch, NULL),
                         0);
}

static void
a_sequence_gives_the_same_bits_in_any_cut_and_in_a_used_slot(void **state)
{
    static float whole[N * D], cut[N * D];
    make_fusion();
    for (int i = 0; i < 3; i++) {
        struct device *dev = open_device(i);
        if (!dev)
            continue;
        for (int j = 0; j < SLOTS * RING * D; j++)
            state_memory[j] = NAN; /* what an earlier owner left */
        memcpy(whole, x0, sizeof whole);
        fuse(dev, whole, 0, N, 1, false, true);
        for (int size = 1; size <= 13; size++) {
            memcpy(cut, x0, sizeof cut);
            for (int at = 0; at < N; at += size)
                fuse(dev, cut, at, N - at < size ? N - at : size, 1, false, true);
            assert_memory_equal(cut, whole, sizeof cut);
        }
        assert_true(isnan(state_memory[0]) && isnan(state_memory[2 * RING * D]));
        (void)dev->ops->close(dev);
    }
}

static void
a_step_that_was_not_kept_can_be_redone(void **state)
{
    static float once[N * D], twice[N * D];
    make_fusion();
    for (int i = 0; i < 3; i++) {
        struct device *dev = open_device(i);
        if (!dev)
            continue;
        memcpy(once, x0, sizeof once);
        memcpy(twice, x0, sizeof twice);
        fuse(dev, once, 0, N, 0, false, true);
        fuse(dev, twice, 0, 15, 2, false, true);
        fuse(dev, twice, 15, 20, 2, false, false);
        memcpy(twice + 15 * D, x0 + 15 * D, 20 * D * sizeof *twice);
        fuse(dev, twice, 15, 20, 2, false, true);
        fuse(dev, twice, 35, 5, 2, false, true);
        assert_memory_equal(once, twice, sizeof once);
        (void)dev->ops->close(dev);
    }
}

static void
a_sequence_that_skips_keeps_its_stream_and_its_state(void **state)
{
    static float x[N * D], ring[sizeof state_memory / sizeof *state_memory];
    make_fusion();
    for (int i = 0; i < 3; i++) {
        struct device *dev = open_device(i);
        if (!dev)
            continue;
        memset(state_memory, 0x3f, sizeof state_memory);
        memcpy(ring, state_memory, sizeof ring);
        memcpy(x, x0, sizeof x);
        fuse(dev, x, 0, N, 1, true, true);
        assert_memory_equal(x, x0, sizeof x);
        assert_memory_equal(ring, state_memory, sizeof ring);
        (void)dev->ops->close(dev);
    }
}

/* The conv weights are zero here, so that x += gate * value. */
static void
a_gate_is_one_half_at_zero_and_never_closer_to_it_than_a_thousandth(void **state)
{
    make_fusion();
    memset(conv, 0, sizeof conv);
    for (int i = 0; i < 3 * D; i++)
        norms[i / D][i % D] = 1;
    for (int i = 0; i < 3; i++) {
        static int32_t seq_of[3], tokens[3], positions[3] = {0, 1, 2};
        float x[3 * D], k[3 * D], v[3 * D], open = 1 / (1 + expf(-1e-3f));
        struct batch_seq seq = {.n_rows = 3};
        struct batch batch = {3, 1, 0, tokens, positions, seq_of, &seq};
        struct device *dev = open_device(i);
        if (!dev)
            continue;
        for (int d = 0; d < 3 * D; d++) {
            x[d] = d < D ? 0 : d < 2 * D ? 1e-13f : -1e-13f; /* dot 0, 6e-10, -6e-10 */
            k[d] = v[d] = 1;
        }
        assert_int_equal(dev->ops->engram_fuse(dev, x, k, v, u, state_memory, &weights, &fuse_shape,
                                               D, &batch, NULL),
                         0);
        for (int d = 0; d < D; d++) {
            assert_true(x[d] == 0.5f);
            assert_true(fabsf(x[D + d] - open) < 1e-6f);
            assert_true(fabsf(x[2 * D + d] - (1 - open)) < 1e-6f);
        }
        (void)dev->ops->close(dev);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_table_type_is_dequantised_exactly),
        cmocka_unit_test(promoted_bundles_are_copied_whole_even_when_shared),
        cmocka_unit_test(a_sequence_gives_the_same_bits_in_any_cut_and_in_a_used_slot),
        cmocka_unit_test(a_step_that_was_not_kept_can_be_redone),
        cmocka_unit_test(a_sequence_that_skips_keeps_its_stream_and_its_state),
        cmocka_unit_test(a_gate_is_one_half_at_zero_and_never_closer_to_it_than_a_thousandth),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
