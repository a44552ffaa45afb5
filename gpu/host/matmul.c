/* matmul: products with weights on the CPU.
 *
 * Rows go through the dot product kernels: one sum per (row, column), always in the same order, so
 * the bits of a row are the same alone, in a batch, and in a prefill chunk of any length. Weights
 * are read once for all rows of a step. Measured (2 cores with AVX-512, one thread, GFLOP/s):
 * kernels 97-112 from 8 rows on, OpenBLAS 0.3.21 on widened panels 70-95; hence BLAS is used only
 * with the portable kernels (17 to BLAS' 60 and more), for prefill segments of kernels->blas_rows
 * rows and more. There the choice depends on the segment's length alone. The pool splits columns,
 * at panel boundaries where BLAS is used, never the depth: the number of threads changes no bit. */
#include <cblas.h>

#include "base/check.h"
#include "gpu/host/host_state.h"

enum { GRAIN = 8 }; /* columns of the widest dot product tile */

struct matmul_args {
    const struct matmul_part *parts;
    int n_parts;
    const float *x;
    bool accumulate;
    const struct batch *batch;
    struct host_device *host;
    long grain;
};

static bool
is_for_blas(const struct host_kernels *kernels, const struct batch_seq *seq)
{
    return kernels->blas_rows > 0 && seq->n_rows >= kernels->blas_rows;
}

static void
rows_by_kernel(const struct matmul_args *a, const struct matmul_part *part, int first_row,
               int n_rows, long col, long n_cols)
{
    int k = part->w.cols;
    bool bf16 = part->w.dtype == DTYPE_BF16;
    size_t at = (size_t)col * (size_t)k;
    struct dot_args args = {
        .out = (float *)part->out + (size_t)first_row * (size_t)part->w.rows + col,
        .out_stride = part->w.rows,
        .x = a->x + (size_t)first_row * (size_t)k,
        .x_stride = k,
        .n_rows = n_rows,
        .w = bf16 ? (const void *)((const uint16_t *)part->w.data + at)
                  : (const void *)((const float *)part->w.data + at),
        .w_stride = k,
        .n_cols = (int)n_cols,
        .k = k,
        .bias = part->bias.data ? (const float *)part->bias.data + col : NULL,
        .accumulate = a->accumulate,
    };
    if (bf16)
        a->host->kernels->dot_bf16(&args);
    else
        a->host->kernels->dot_f32(&args);
}

/* One panel for every long segment: the weights are widened once. */
static void
panel_by_blas(const struct matmul_args *a, const struct matmul_part *part, long col, long n_cols,
              float *panel)
{
    const struct batch *b = a->batch;
    int k = part->w.cols, n_out = part->w.rows;
    float *out = part->out;

    for (int depth = 0; depth < k; depth += HOST_PANEL_DEPTH) {
        int n = k - depth < HOST_PANEL_DEPTH ? k - depth : HOST_PANEL_DEPTH;
        const float *w = panel;
        int w_stride = n;
        if (part->w.dtype == DTYPE_BF16) {
            const uint16_t *from = (const uint16_t *)part->w.data + (size_t)col * (size_t)k + depth;
            for (long c = 0; c < n_cols; c++)
                a->host->kernels->widen_bf16(panel + c * n, from + c * k, (size_t)n);
        } else {
            w = (const float *)part->w.data + (size_t)col * (size_t)k + depth;
            w_stride = k;
        }
        for (int s = b->n_decode; s < b->n_seqs; s++) {
            const struct batch_seq *seq = &b->seq[s];
            if (!is_for_blas(a->host->kernels, seq))
                continue;
            float *to = out + (size_t)seq->first_row * (size_t)n_out + col;
            cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, seq->n_rows, (int)n_cols, n, 1.0f,
                        a->x + (size_t)seq->first_row * (size_t)k + depth, k, w, w_stride,
                        depth > 0 || a->accumulate ? 1.0f : 0.0f, to, n_out);
            if (part->bias.data && depth + n == k)
                for (int r = 0; r < seq->n_rows; r++)
                    for (long c = 0; c < n_cols; c++)
                        to[(size_t)r * (size_t)n_out + (size_t)c] +=
                            ((const float *)part->bias.data)[col + c];
        }
    }
}

static bool
has_long_segment(const struct host_kernels *kernels, const struct batch *b)
{
    for (int s = b->n_decode; s < b->n_seqs; s++)
        if (is_for_blas(kernels, &b->seq[s]))
            return true;
    return false;
}

static void
columns_of_part(const struct matmul_args *a, const struct matmul_part *part, long begin, long end,
                float *panel)
{
    const struct batch *b = a->batch;
    bool long_segments = a->grain == HOST_PANEL_COLUMNS;

    if (!long_segments) {
        rows_by_kernel(a, part, 0, b->n_rows, begin, end - begin);
        return;
    }
    if (b->n_decode > 0)
        rows_by_kernel(a, part, 0, b->n_decode, begin, end - begin);
    for (int s = b->n_decode; s < b->n_seqs; s++)
        if (!is_for_blas(a->host->kernels, &b->seq[s]))
            rows_by_kernel(a, part, b->seq[s].first_row, b->seq[s].n_rows, begin, end - begin);
    for (long col = begin; col < end; col += HOST_PANEL_COLUMNS)
        panel_by_blas(a, part, col, end - col < HOST_PANEL_COLUMNS ? end - col : HOST_PANEL_COLUMNS,
                      panel);
}

/* The columns of all parts in a row, each part rounded up to whole grains, are cut into equal
 * slices. */
static void
matmul_slice(void *arg, int slice, int n_slices)
{
    struct matmul_args *a = arg;
    long total = 0, begin, end, at = 0;

    for (int p = 0; p < a->n_parts; p++)
        total += (a->parts[p].w.rows + a->grain - 1) / a->grain * a->grain;
    pool_slice(total, a->grain, slice, n_slices, &begin, &end);
    for (int p = 0; p < a->n_parts; p++) {
        long n = a->parts[p].w.rows;
        long from = begin > at ? begin - at : 0, to = end - at < n ? end - at : n;
        if (from < to)
            columns_of_part(a, &a->parts[p], from, to, a->host->scratch[slice].panel);
        at += (n + a->grain - 1) / a->grain * a->grain;
    }
}

static int
run_parts(struct host_device *host, const struct matmul_part *parts, int n_parts, const void *x,
          bool accumulate, const struct batch *batch)
{
    struct matmul_args a = {parts, n_parts, x, accumulate, batch, host, GRAIN};
    double work = 0;

    if (has_long_segment(host->kernels, batch))
        a.grain = HOST_PANEL_COLUMNS;
    for (int p = 0; p < n_parts; p++) {
        ASSERT(parts[p].w.dtype == DTYPE_BF16 || parts[p].w.dtype == DTYPE_F32);
        work += 0.05 * batch->n_rows * parts[p].w.rows * parts[p].w.cols;
    }
    host_run(host, matmul_slice, &a, work);
    return 0;
}

int
host_matmul(struct device *dev, void *out, const void *x, struct weight w, struct weight bias,
            bool accumulate, const struct batch *batch, struct stream *stream)
{
    struct matmul_part part = {out, w, bias};

    return run_parts(host_of(dev), &part, 1, x, accumulate, batch);
}

int
host_matmul_group(struct device *dev, const struct matmul_part *parts, int n_parts, const void *x,
                  const struct batch *batch, struct stream *stream)
{
    return run_parts(host_of(dev), parts, n_parts, x, false, batch);
}

struct rows_args {
    struct dot_args dot;
    bool bf16;
    const struct host_kernels *kernels;
};

static void
rows_slice(void *arg, int slice, int n_slices)
{
    struct rows_args *a = arg;
    struct dot_args mine = a->dot;
    long begin, end;

    pool_slice(a->dot.n_cols, GRAIN, slice, n_slices, &begin, &end);
    if (begin == end)
        return;
    size_t at = (size_t)begin * (size_t)mine.w_stride;
    mine.out += begin;
    mine.n_cols = (int)(end - begin);
    if (a->bf16) {
        mine.w = (const uint16_t *)mine.w + at;
        a->kernels->dot_bf16(&mine);
    } else {
        mine.w = (const float *)mine.w + at;
        a->kernels->dot_f32(&mine);
    }
}

int
host_matmul_rows(struct device *dev, float *out, const void *x, const int32_t *row, int n,
                 struct weight w, struct stream *stream)
{
    struct host_device *host = host_of(dev);
    struct rows_args a = {
        .dot = {.out = out,
                .out_stride = w.rows,
                .x = x,
                .x_stride = w.cols,
                .row = row,
                .n_rows = n,
                .w = w.data,
                .w_stride = w.cols,
                .n_cols = w.rows,
                .k = w.cols},
        .bf16 = w.dtype == DTYPE_BF16,
        .kernels = host->kernels,
    };
    host_run(host, rows_slice, &a, 0.05 * n * w.rows * w.cols);
    return 0;
}
