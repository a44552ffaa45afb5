/* engram_layer: gathering the rows of N-gram bundles and fusing them into the hidden state, on the
 * CPU. Source: arXiv 2601.07372 section 2 as restated in the paper's notes, "Fusion" steps 2 to 6.
 */
#include <math.h>
#include <string.h>

#include "base/check.h"
#include "gpu/host/host_state.h"

static const float CONV_NORM_EPS = 1e-5f;

struct gather_args {
    float *out;
    const struct bundle_source *source;
    const struct engram_table_shape *table;
    const struct engram_shape *shape;
    const struct batch *batch;
    const struct host_kernels *kernels;
};

/* The rows of one head of a cell: of a bundle, or where the resident table has them. */
static void
find_row(const struct gather_args *a, const struct bundle_address *at, size_t cell, int head,
         const uint8_t **ret_weight, const uint8_t **ret_scale)
{
    const struct engram_shape *e = a->shape;
    size_t row_bytes = (size_t)engram_row_weight_bytes(e);
    size_t scale_bytes = (size_t)engram_row_scale_bytes(e);

    if (at->source == BUNDLE_IN_PLACE) {
        int order = (int)(cell % (size_t)(e->max_order - 1));
        uint64_t row = (uint64_t)a->table->row_base[order][head] +
                       a->source->mix[cell] % (uint64_t)a->table->prime[order][head];
        *ret_weight = (const uint8_t *)a->source->weights + row * row_bytes;
        *ret_scale =
            a->source->scales ? (const uint8_t *)a->source->scales + row * scale_bytes : NULL;
        return;
    }
    *ret_weight = (const uint8_t *)at->source + (size_t)head * row_bytes;
    *ret_scale =
        (const uint8_t *)at->source + (size_t)e->heads * row_bytes + (size_t)head * scale_bytes;
}

/* Writes the bundle of a cell in the layout of base/shape.h. */
static void
promote(const struct gather_args *a, const struct bundle_address *at, size_t cell)
{
    const struct engram_shape *e = a->shape;
    size_t row_bytes = (size_t)engram_row_weight_bytes(e);
    size_t scale_bytes = (size_t)engram_row_scale_bytes(e);
    uint8_t *to = at->promote;

    for (int h = 0; h < e->heads; h++) {
        const uint8_t *weight, *scale;

        find_row(a, at, cell, h, &weight, &scale);
        memcpy(to + (size_t)h * row_bytes, weight, row_bytes);
        if (scale_bytes)
            memcpy(to + (size_t)e->heads * row_bytes + (size_t)h * scale_bytes, scale, scale_bytes);
    }
}

/* One row of head_dim elements with its scales to F32. */
static void
dequantise(float *out, const uint8_t *weight, const uint8_t *scale, const struct engram_shape *e,
           const struct host_kernels *kernels)
{
    int dim = e->head_dim;

    if (e->table_dtype == DTYPE_F32) {
        memcpy(out, weight, (size_t)dim * sizeof *out);
    } else if (e->table_dtype == DTYPE_BF16) {
        uint16_t half[64];
        for (int d = 0; d < dim; d += 64) {
            int n = dim - d < 64 ? dim - d : 64;
            memcpy(half, weight + 2 * d, (size_t)n * sizeof *half);
            kernels->widen_bf16(out + d, half, (size_t)n);
        }
    } else {
        for (int d = 0; d < dim; d++)
            out[d] = dtype_e4m3_table[weight[d]];
    }
    if (e->scale_group)
        for (int g = 0; g < dim / e->scale_group; g++) {
            float factor = dtype_e8m0(scale[g]);
            for (int d = 0; d < e->scale_group; d++)
                out[g * e->scale_group + d] *= factor;
        }
}

/* Rows are split over the pool; copies to promote addresses by address, since several rows may name
 * the same one and two threads must not write it. */
static void
gather_part(void *arg, int part, int n_parts)
{
    struct gather_args *a = arg;
    const struct engram_shape *e = a->shape;
    int orders = e->max_order - 1;
    size_t width = (size_t)e->heads * (size_t)e->head_dim;
    long begin, end;

    pool_slice(a->batch->n_rows, 1, part, n_parts, &begin, &end);
    for (long r = 0; r < a->batch->n_rows; r++) {
        bool off = a->batch->seq[a->batch->row_seq[r]].engram_off != 0;
        for (int o = 0; o < orders; o++) {
            struct bundle_address at = {NULL, NULL};
            size_t cell = (size_t)r * (size_t)orders + (size_t)o;
            if (!off)
                at = a->source->address[cell];
            if (at.source && at.promote &&
                ((uintptr_t)at.promote >> 6) % (unsigned)n_parts == (unsigned)part)
                promote(a, &at, cell);
            if (r < begin || r >= end)
                continue;
            float *out = a->out + cell * width;
            if (!at.source) {
                memset(out, 0, width * sizeof *out);
                continue;
            }
            for (int h = 0; h < e->heads; h++) {
                const uint8_t *weight, *scale;

                find_row(a, &at, cell, h, &weight, &scale);
                dequantise(out + h * e->head_dim, weight, scale, e, a->kernels);
            }
        }
    }
}

int
host_engram_gather(struct device *dev, void *out, const struct bundle_source *source, int index,
                   const struct engram_shape *shape, const struct batch *batch,
                   struct stream *stream)
{
    struct host_device *host = host_of(dev);
    struct gather_args a = {out, source, &shape->table[index], shape, batch, host->kernels};

    host_run(host, gather_part, &a,
             1.0 * batch->n_rows * (shape->max_order - 1) * shape->heads * shape->head_dim);
    return 0;
}

struct fuse_args {
    float *x;
    const float *key, *value;
    float *u;
    const float *state;
    float *ring; /* engram_keep */
    const struct engram_weights *w;
    const struct engram_shape *shape;
    int hidden;
    const struct batch *batch;
    const struct host_kernels *kernels;
};

static bool
is_off(const struct batch *batch, long row)
{
    return batch->seq[batch->row_seq[row]].engram_off != 0;
}

/* Steps 2 to 4, the norm of step 5, and x += v. The norms are not stored: the dot product of two
 * normalised vectors is sum(key w1 x w2) times the two reciprocal lengths. u of this row serves as
 * working memory before it gets its value. */
static void
gate_part(void *arg, int part, int n_parts)
{
    struct fuse_args *a = arg;
    int dim = a->hidden;
    size_t stride = (size_t)dim;
    long begin, end;

    pool_slice(a->batch->n_rows, 1, part, n_parts, &begin, &end);
    for (long r = begin; r < end; r++) {
        if (is_off(a->batch, r))
            continue;
        float *x = a->x + (size_t)r * stride, *u = a->u + (size_t)r * stride;
        const float *query_norm = a->w->query_norm.data;
        float eps = a->shape->norm_eps;
        (void)a->kernels->rms_norm(u, a->key + (size_t)r * stride, a->w->key_norm.data, dim, eps);
        float inverse = 1.0f / sqrtf(a->kernels->dot(x, x, dim) / (float)dim + eps);
        for (int d = 0; d < dim; d++)
            u[d] *= x[d] * inverse * query_norm[d];
        float sum = 0, lane[16] = {0};
        for (int d = 0; d < dim; d++)
            lane[d % 16] += u[d];
        for (int i = 0; i < 16; i++)
            sum += lane[i];
        float dot = sum / sqrtf((float)dim);
        float root = sqrtf(fmaxf(fabsf(dot), 1e-6f));
        float sign = (float)((dot > 0) - (dot < 0));
        float gate = 1.0f / (1.0f + expf(-sign * root));
        a->kernels->scale(u, a->value + (size_t)r * stride, gate, stride);
        for (int d = 0; d < dim; d++)
            x[d] += u[d];
        (void)a->kernels->rms_norm(u, u, a->w->conv_norm.data, dim, CONV_NORM_EPS);
    }
}

/* Step 5's convolution and SiLU, and the rest of step 6. Tap j looks back (kernel - 1 - j) * N
 * positions: into this segment's rows of u, or into the ring. */
static void
convolve_part(void *arg, int part, int n_parts)
{
    struct fuse_args *a = arg;
    int dim = a->hidden, kernel = a->shape->conv_kernel, dilation = a->shape->max_order;
    size_t stride = (size_t)dim, ring = (size_t)(kernel - 1) * (size_t)dilation;
    const float *conv = a->w->conv.data;
    long begin, end;

    pool_slice(a->batch->n_rows, 1, part, n_parts, &begin, &end);
    for (long r = begin; r < end; r++) {
        if (is_off(a->batch, r))
            continue;
        const struct batch_seq *seq = &a->batch->seq[a->batch->row_seq[r]];
        long i = r - seq->first_row, position = seq->context + i;
        float *x = a->x + (size_t)r * stride;
        enum { BLOCK = 256 };
        for (int from = 0; from < dim; from += BLOCK) {
            int n = dim - from < BLOCK ? dim - from : BLOCK;
            float sum[BLOCK] = {0};
            for (int j = 0; j < kernel; j++) {
                long back = (long)(kernel - 1 - j) * dilation;
                const float *tap;
                if (position < back)
                    continue;
                if (i >= back)
                    tap = a->u + (size_t)(r - back) * stride;
                else
                    tap = a->state +
                          ((size_t)seq->state_slot * ring + (size_t)(position - back) % ring) *
                              stride;
                a->kernels->mul_add(sum, conv + (size_t)j * stride + from, tap + from, (size_t)n);
            }
            a->kernels->silu_add(x + from, sum, (size_t)n);
        }
    }
}

int
host_engram_fuse(struct device *dev, void *x, const void *key, const void *value, float *u,
                 const float *state, const struct engram_weights *w,
                 const struct engram_shape *shape, int hidden, const struct batch *batch,
                 struct stream *stream)
{
    struct host_device *host = host_of(dev);
    struct fuse_args a = {.x = x,
                          .key = key,
                          .value = value,
                          .u = u,
                          .state = state,
                          .w = w,
                          .shape = shape,
                          .hidden = hidden,
                          .batch = batch,
                          .kernels = host->kernels};
    double work = 1.0 * batch->n_rows * hidden;

    host_run(host, gate_part, &a, work);
    host_run(host, convolve_part, &a, 3 * work);
    return 0;
}

static void
keep_part(void *arg, int part, int n_parts)
{
    struct fuse_args *a = arg;
    size_t stride = (size_t)a->hidden;
    long ring = (long)(a->shape->conv_kernel - 1) * a->shape->max_order, begin, end;

    pool_slice(a->batch->n_rows, 1, part, n_parts, &begin, &end);
    for (long r = begin; r < end; r++) {
        const struct batch_seq *seq = &a->batch->seq[a->batch->row_seq[r]];
        if (seq->engram_off || r + ring < seq->first_row + seq->n_rows)
            continue;
        size_t slot = (size_t)((seq->context + (r - seq->first_row)) % ring);
        memcpy(a->ring + ((size_t)seq->state_slot * (size_t)ring + slot) * stride,
               a->u + (size_t)r * stride, stride * sizeof *a->u);
    }
}

int
host_engram_keep(struct device *dev, float *state, const float *u, const struct engram_shape *shape,
                 int hidden, const struct batch *batch, struct stream *stream)
{
    struct host_device *host = host_of(dev);
    struct fuse_args a = {
        .ring = state, .u = (float *)u, .shape = shape, .hidden = hidden, .batch = batch};

    host_run(host, keep_part, &a, 0.1 * batch->n_rows * hidden);
    return 0;
}
