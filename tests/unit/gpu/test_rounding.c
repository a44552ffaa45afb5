/* round_activations: what is rounded to BF16, what is not, and that nothing else changes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "gpu/host/host_device.h"

enum { ROWS = 3, WIDTH = 16, HEADS = 2, DIM = 8, COUNT = ROWS * WIDTH };
static float x[COUNT], y[COUNT], norm[WIDTH], angles[ROWS * DIM];
static float plain[2][COUNT], rounded[2][COUNT];
static uint16_t matrix_bits[WIDTH * WIDTH];
static int32_t token[ROWS], position[ROWS] = {0, 1, 2}, row_seq[ROWS];
static const int32_t page = 0;
static struct batch_seq seq = {.n_rows = ROWS, .n_pages = 1, .pages = &page};
static const struct batch batch = {ROWS, 1, 0, token, position, row_seq, &seq};
static const struct model_shape shape = {
    .layers = 1, .heads = HEADS, .kv_heads = HEADS, .head_dim = DIM, .hidden = WIDTH};

static uint64_t seed = 1;
static float
noise(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(seed >> 32) / 2147483648.0f;
}

static int
setup(void **state)
{
    for (int i = 0; i < COUNT; i++) {
        x[i] = noise();
        y[i] = noise();
    }
    for (int i = 0; i < WIDTH * WIDTH; i++)
        matrix_bits[i] = dtype_to_bf16(noise());
    for (int i = 0; i < WIDTH; i++)
        norm[i] = 1 + noise();
    for (int i = 0; i < ROWS * DIM; i++)
        angles[i] = noise();
    return 0;
}

static struct device *
open_device(bool round)
{
    struct host_device_options options = {
        .n_threads = 2, .isa = "auto", .round_activations = round};
    struct device *dev;

    assert_int_equal(host_device_open(&dev, &options, NULL), 0);
    return dev;
}

/* Runs an operation on both devices, on the same values of out[0] and out[1] before. */
static void
run_both(int (*operation)(struct device *dev, float (*out)[COUNT]))
{
    for (int round = 0; round < 2; round++) {
        struct device *dev = open_device(round);
        float(*out)[COUNT] = round ? rounded : plain;
        memcpy(out[0], y, sizeof y);
        memcpy(out[1], x, sizeof x);
        assert_int_equal(operation(dev, out), 0);
        (void)dev->ops->close(dev);
    }
}

static void
assert_rounded(int which)
{
    bool some = false;

    for (int i = 0; i < COUNT; i++) {
        float want = dtype_bf16(dtype_to_bf16(plain[which][i]));
        some |= want != plain[which][i];
        assert_true(rounded[which][i] == want);
    }
    assert_true(some);
}

static const struct weight weights = {matrix_bits, DTYPE_BF16, WIDTH, WIDTH};
static const struct weight none = {NULL, DTYPE_F32, 0, 0};

static int
run_norm(struct device *dev, float (*out)[COUNT])
{
    return dev->ops->rms_norm(dev, out[0], x, (struct weight){norm, DTYPE_F32, 1, WIDTH}, ROWS,
                              WIDTH, 1e-6f, NULL);
}

static int
run_norm_in_place(struct device *dev, float (*out)[COUNT])
{
    return dev->ops->rms_norm(dev, out[0], out[0], (struct weight){norm, DTYPE_F32, 1, DIM},
                              ROWS * HEADS, DIM, 1e-6f, NULL);
}

static int
run_matmul(struct device *dev, float (*out)[COUNT])
{
    return dev->ops->matmul(dev, out[0], x, weights, none, false, &batch, NULL);
}

static int
run_accumulate(struct device *dev, float (*out)[COUNT])
{
    return dev->ops->matmul(dev, out[0], x, weights, none, true, &batch, NULL);
}

static int
run_group(struct device *dev, float (*out)[COUNT])
{
    struct matmul_part parts[2] = {{out[0], weights, none}, {out[1], weights, none}};

    return dev->ops->matmul_group(dev, parts, 2, x, &batch, NULL);
}

static int
run_logits(struct device *dev, float (*out)[COUNT])
{
    static const int32_t rows[ROWS] = {0, 1, 2};

    return dev->ops->matmul_rows(dev, out[0], x, rows, ROWS, weights, NULL);
}

static int
run_rope(struct device *dev, float (*out)[COUNT])
{
    return dev->ops->rope(dev, out[0], out[1], &shape, angles, &batch, NULL);
}

static int
run_attention(struct device *dev, float (*out)[COUNT])
{
    static float cache[2 * HEADS * DIM * ROWS];
    struct kv_cache kv = {cache, 1, ROWS, 1, HEADS, DIM};
    int result = dev->ops->kv_write(dev, &kv, 0, x, y, &batch, NULL);

    return result < 0 ? result : dev->ops->attention(dev, out[0], x, &kv, 0, &shape, &batch, NULL);
}

static int
run_silu(struct device *dev, float (*out)[COUNT])
{
    return dev->ops->silu_mul(dev, out[0], x, y, COUNT, NULL);
}

static int
run_gather(struct device *dev, float (*out)[COUNT])
{
    struct engram_shape e = {
        .max_order = 2, .heads = HEADS, .head_dim = DIM, .table_dtype = DTYPE_F32};
    struct bundle_address address[ROWS] = {{NULL, NULL}};
    struct bundle_source source = {.address = address};

    for (int r = 0; r < ROWS; r++)
        address[r].source = x + r * WIDTH;
    return dev->ops->engram_gather(dev, out[0], &source, 0, &e, &batch, NULL);
}

static void
what_a_gpu_keeps_as_bf16_is_the_plain_result_rounded(void **state)
{
    static int (*const operations[])(struct device *, float(*)[COUNT]) = {
        run_norm, run_matmul, run_group, run_rope, run_attention, run_silu, run_gather};

    for (size_t i = 0; i < sizeof operations / sizeof *operations; i++) {
        run_both(operations[i]);
        assert_rounded(0);
        if (operations[i] == run_group || operations[i] == run_rope)
            assert_rounded(1);
    }
}

static void
the_residual_stream_head_norms_and_logits_are_left_alone(void **state)
{
    static int (*const operations[])(struct device *, float(*)[COUNT]) = {
        run_norm_in_place, run_accumulate, run_logits};

    for (size_t i = 0; i < sizeof operations / sizeof *operations; i++) {
        run_both(operations[i]);
        assert_memory_equal(plain[0], rounded[0], sizeof plain[0]);
    }
}

static void
matrices_are_bf16_only_where_activations_are(void **state)
{
    for (int round = 0; round < 2; round++) {
        struct device *dev = open_device(round);
        assert_int_equal(dev->ops->bf16_matrices, round);
        (void)dev->ops->close(dev);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_a_gpu_keeps_as_bf16_is_the_plain_result_rounded),
        cmocka_unit_test(the_residual_stream_head_norms_and_logits_are_left_alone),
        cmocka_unit_test(matrices_are_bf16_only_where_activations_are),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
