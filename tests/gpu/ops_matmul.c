/* Products with weights: matmul, matmul_group, matmul_rows. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/gpu/ops_rig.h"

static const struct device_limits limits = {.max_rows = 320,
                                            .max_sequences = 320,
                                            .max_outputs = 320,
                                            .n_states = 4,
                                            .max_step_pages = 4,
                                            .page_tokens = 16};

struct size {
    int rows, cols; /* of the weight */
};

static void
open_rig(struct rig *rig, const struct size *size)
{
    struct model_shape shape = {.vocab = 1009,
                                .hidden = size->cols,
                                .layers = 1,
                                .heads = 1,
                                .kv_heads = 1,
                                .head_dim = 64,
                                .intermediate = size->rows};

    rig_open(rig, &shape, &limits);
}

static void
check_matmul(struct rig *rig, const struct twin *w, int n, const struct size *size, bool accumulate,
             bool bias)
{
    struct twin *x = rig_twin(rig, CONTENT_ACTIVATION, n, size->cols, 1, 0);
    struct twin *b = bias ? rig_twin(rig, CONTENT_VECTOR, 1, size->rows, 1, 0) : NULL;
    struct twin *out = rig_twin(rig, accumulate ? CONTENT_F32 : CONTENT_ACTIVATION, n, size->rows,
                                accumulate ? 1 : 0, 0);

    rig_plain_batch(rig, n, n <= 4);
    rig_begin(rig, NULL, 0);
    for (int s = 0; s < SIDES; s++) {
        struct ops_side *side = &rig->side[s];
        rig_did(rig, s,
                side->dev->ops->matmul(side->dev, out->at[s], x->at[s],
                                       twin_rows(w, s, 0, size->rows), twin_weight(b, s),
                                       accumulate, &side->view.batch, NULL));
    }
    rig_end(rig);
    ops_report(rig, "matmul", twin_error(rig, out),
               accumulate ? BOUND_F32
               : bias     ? BOUND_BF16_TWO
                          : BOUND_BF16,
               "%d rows, weight %d x %d%s%s", n, size->rows, size->cols,
               accumulate ? ", accumulate" : "", bias ? ", bias" : "");
    rig_drop(rig, 1);
}

/* Against the host, and the same bits as one matmul after the other. */
static void
check_group(struct rig *rig, const struct twin *w, int n, const struct size *size, int n_parts,
            bool bias)
{
    struct twin *x = rig_twin(rig, CONTENT_ACTIVATION, n, size->cols, 1, 0);
    struct twin *b = rig_twin(rig, CONTENT_VECTOR, n_parts, size->rows, 1, 0);
    struct twin *out[3], *single[3];
    bool same = true;

    for (int p = 0; p < n_parts; p++) {
        out[p] = rig_twin(rig, CONTENT_ACTIVATION, n, size->rows, 0, 0);
        single[p] = rig_twin(rig, CONTENT_ACTIVATION, n, size->rows, 0, 0);
    }
    rig_plain_batch(rig, n, n <= 4);
    rig_begin(rig, NULL, 0);
    for (int s = 0; s < SIDES; s++) {
        struct ops_side *side = &rig->side[s];
        struct matmul_part parts[3];

        for (int p = 0; p < n_parts; p++) {
            parts[p] = (struct matmul_part){
                out[p]->at[s], twin_rows(w, s, p * size->rows, size->rows), {0}};
            if (bias)
                parts[p].bias = twin_rows(b, s, p, 1);
            rig_did(rig, s,
                    side->dev->ops->matmul(side->dev, single[p]->at[s], x->at[s], parts[p].w,
                                           parts[p].bias, false, &side->view.batch, NULL));
        }
        rig_did(rig, s,
                side->dev->ops->matmul_group(side->dev, parts, n_parts, x->at[s], &side->view.batch,
                                             NULL));
    }
    rig_end(rig);
    struct ops_error worst = {0, 0};
    for (int p = 0; p < n_parts; p++) {
        struct ops_error error = twin_error(rig, out[p]);
        float *a = twin_values(rig, out[p], CUDA), *c = twin_values(rig, single[p], CUDA);

        worst.abs = fmax(worst.abs, error.abs);
        worst.rel = fmax(worst.rel, error.rel);
        same = same && memcmp(a, c, (size_t)n * (size_t)size->rows * sizeof *a) == 0;
        free(a);
        free(c);
    }
    ops_report(rig, "matmul_group", worst, bias ? BOUND_BF16_TWO : BOUND_BF16,
               "%d rows, %d of %d x %d%s", n, n_parts, size->rows, size->cols,
               bias ? ", bias" : "");
    ops_report_fact(rig, "matmul_group", same,
                    "%d rows, %d of %d x %d: the bits of single products", n, n_parts, size->rows,
                    size->cols);
    rig_drop(rig, 1);
}

static void
check_rows(struct rig *rig, const struct twin *w, int n, const struct size *size)
{
    struct twin *x = rig_twin(rig, CONTENT_ACTIVATION, limits.max_rows, size->cols, 1, 0);
    struct twin *out = rig_twin(rig, CONTENT_F32, n, size->rows, 0, 0);
    struct forward_output *outputs = calloc((size_t)n, sizeof *outputs);

    if (!outputs)
        return;
    for (int i = 0; i < n; i++)
        outputs[i] = (struct forward_output){.row = (int32_t)(rig_bits(rig) % 320),
                                             .params = {.forced = -1, .slot = -1}};
    rig_plain_batch(rig, limits.max_rows, false);
    rig_begin(rig, outputs, n);
    for (int s = 0; s < SIDES; s++) {
        struct ops_side *side = &rig->side[s];
        rig_did(rig, s,
                side->dev->ops->matmul_rows(side->dev, out->at[s], x->at[s], side->view.output_row,
                                            n, twin_rows(w, s, 0, size->rows), NULL));
    }
    rig_end(rig);
    ops_report(rig, "matmul_rows", twin_error(rig, out), BOUND_F32, "%d of %d rows, weight %d x %d",
               n, limits.max_rows, size->rows, size->cols);
    free(outputs);
    rig_drop(rig, 1);
}

/* The first row of a product of n rows on CUDA, as F32; the rows behind it are those of `others`. */
static float *
first_row(struct rig *rig, const struct twin *w, const struct twin *first,
          const struct twin *others, int n, bool accumulate)
{
    struct ops_side *side = &rig->side[CUDA];
    int twins = rig->n_twins, rows = (int)w->rows;
    struct twin *x = rig_twin(rig, CONTENT_ACTIVATION, n, w->cols, 0, 0);
    struct twin *out = rig_twin(rig, accumulate ? CONTENT_F32 : CONTENT_ACTIVATION, n, rows, 0, 0);
    size_t row_bytes = first->bytes[HOST] / (size_t)first->rows;

    memcpy(x->at[HOST], others->at[HOST], (size_t)n * row_bytes);
    memcpy(x->at[HOST], first->at[HOST], row_bytes);
    twin_upload(rig, x);
    rig_plain_batch(rig, n, false);
    rig_begin(rig, NULL, 0);
    rig_did(rig, CUDA,
            side->dev->ops->matmul(side->dev, out->at[CUDA], x->at[CUDA],
                                   twin_rows(w, CUDA, 0, rows), (struct weight){0}, accumulate,
                                   &side->view.batch, NULL));
    rig_end(rig);
    float *values = twin_values(rig, out, CUDA);
    rig_drop(rig, twins);
    return values;
}

/* Numbers of rows that share an algorithm (gpu/cuda/gemm.cu): the products of each are right, and a row's bits are
 * the same for one number whatever the others hold. Whether they are for all numbers of a bucket is a note: the
 * library says nothing of it. */
static void
check_bucket(struct rig *rig, const struct twin *w, const struct size *size, int low, int high)
{
    const int rows[] = {low, low + 1, (low + high) / 2, high - 1, high};
    struct twin *a = rig_twin(rig, CONTENT_ACTIVATION, high, size->cols, 1, 0);
    struct twin *b = rig_twin(rig, CONTENT_ACTIVATION, high, size->cols, 8, 0);
    size_t bytes = (size_t)size->rows * sizeof(float);

    for (int accumulate = 0; accumulate < 2; accumulate++) {
        float *of_first = NULL;
        bool alike = true;

        for (int i = 0; i < 5; i++) {
            float *beside_a = first_row(rig, w, a, a, rows[i], accumulate);
            float *beside_b = first_row(rig, w, a, b, rows[i], accumulate);

            ops_report_fact(rig, "matmul", memcmp(beside_a, beside_b, bytes) == 0,
                            "%d rows, weight %d x %d%s: a row's bits beside others", rows[i],
                            size->rows, size->cols, accumulate ? ", accumulate" : "");
            alike = alike && (!of_first || memcmp(of_first, beside_a, bytes) == 0);
            if (of_first)
                free(beside_a);
            else
                of_first = beside_a;
            free(beside_b);
        }
        free(of_first);
        printf("%-14s a row in products of %d to %d rows, weight %d x %d%s: note: %s bits\n",
               "matmul", low, high, size->rows, size->cols, accumulate ? ", accumulate" : "",
               alike ? "the same" : "not the same");
    }
    rig_drop(rig, 1);
    for (int i = 0; i < 5; i++) {
        check_matmul(rig, w, rows[i], size, false, false);
        check_matmul(rig, w, rows[i], size, true, false);
        check_rows(rig, w, rows[i], size);
    }
}

static void
check_buckets(void)
{
    static const struct size sizes[] = {{640, 1024}, {6144, 4096}};
    static const int bucket[][2] = {{65, 72}, {73, 80}, {129, 144}, {289, 320}};

    for (int i = 0; i < (ops_options.quick ? 1 : 2); i++) {
        struct rig rig;

        open_rig(&rig, &sizes[i]);
        struct twin *w = rig_twin(&rig, CONTENT_MATRIX, sizes[i].rows, sizes[i].cols,
                                  2 / sqrtf((float)sizes[i].cols), 0);
        for (int k = 0; k < (ops_options.quick ? 1 : 4); k++)
            check_bucket(&rig, w, &sizes[i], bucket[k][0], bucket[k][1]);
        rig_close(&rig);
    }
}

void
ops_matmul(void)
{
    /* The last but two: k beyond what gemv takes at 4 rows; rows whose outputs are not aligned; k
     * that no vector load takes. On Hopper skinny takes k that are multiples of 64, and cuts the second, the third
     * and the fifth between blocks. */
    static const struct size sizes[] = {{96, 64},     {640, 1024},   {4096, 4096}, {1024, 1000},
                                        {6144, 4096}, {2560, 9728},  {520, 20480}, {1001, 1024},
                                        {333, 50},    {20000, 1024}};
    static const int rows[] = {1, 2, 3, 4, 5, 17, 33, 64, 65, 300};
    int n_sizes = ops_options.quick ? 2 : (int)(sizeof sizes / sizeof *sizes);

    for (int i = 0; i < n_sizes; i++) {
        struct rig rig;

        open_rig(&rig, &sizes[i]);
        /* The one twin that stays: as many weights as a group has. */
        bool large = (int64_t)sizes[i].rows * sizes[i].cols > 2 << 20;
        struct twin *w = rig_twin(&rig, CONTENT_MATRIX, (int64_t)sizes[i].rows * (large ? 1 : 3),
                                  sizes[i].cols, 2 / sqrtf((float)sizes[i].cols), 0);
        for (int r = 0; r < (int)(sizeof rows / sizeof *rows); r++) {
            int n = rows[r];

            if (ops_options.quick && n != 1 && n != 3 && n != 17)
                continue;
            for (int how = 0; how < 4 && ops_wanted("matmul"); how++)
                if (!large || how == 0 || how == 3)
                    check_matmul(&rig, w, n, &sizes[i], how % 2, how / 2);
            if (ops_wanted("matmul_group") && !large) {
                check_group(&rig, w, n, &sizes[i], 3, false);
                check_group(&rig, w, n, &sizes[i], 2, true);
            }
            if (ops_wanted("matmul_rows"))
                check_rows(&rig, w, n, &sizes[i]);
        }
        rig_close(&rig);
    }
    if (ops_wanted("matmul"))
        check_buckets();
}
