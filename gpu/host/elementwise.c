/* elementwise: operations of the CPU backend that work row by row: embedding, norm, gate, rotation.
 */
#include <math.h>
#include <string.h>

#include "gpu/host/host_state.h"

struct embed_args {
    float *out;
    struct weight table;
    const struct batch *batch;
    const int32_t *slot_token;
    const struct host_kernels *kernels;
};

static void
embed_part(void *arg, int part, int n_parts)
{
    struct embed_args *a = arg;
    size_t hidden = (size_t)a->table.cols;
    long begin, end;

    pool_slice(a->batch->n_rows, 1, part, n_parts, &begin, &end);
    for (long r = begin; r < end; r++) {
        int32_t token = a->batch->token[r];
        if (token == TOKEN_OF_SLOT)
            token = a->slot_token[a->batch->seq[a->batch->row_seq[r]].state_slot];
        size_t at = (size_t)token * hidden;
        float *out = a->out + (size_t)r * hidden;
        if (a->table.dtype == DTYPE_BF16)
            a->kernels->widen_bf16(out, (const uint16_t *)a->table.data + at, hidden);
        else
            memcpy(out, (const float *)a->table.data + at, hidden * sizeof *out);
    }
}

int
host_embed(struct device *dev, void *out, struct weight table, const struct batch *batch,
           struct stream *stream)
{
    struct host_device *host = host_of(dev);
    struct embed_args a = {out, table, batch, host->slot_token, host->kernels};

    host_run(host, embed_part, &a, 0.1 * batch->n_rows * table.cols);
    return 0;
}

struct norm_args {
    float *out;
    const float *x, *weight;
    int64_t rows;
    int dim;
    float eps;
    const struct host_kernels *kernels;
};

static void
norm_part(void *arg, int part, int n_parts)
{
    struct norm_args *a = arg;
    long begin, end;

    pool_slice((long)a->rows, 1, part, n_parts, &begin, &end);
    for (long r = begin; r < end; r++)
        (void)a->kernels->rms_norm(a->out + r * a->dim, a->x + r * a->dim, a->weight, a->dim,
                                   a->eps);
}

int
host_rms_norm(struct device *dev, void *out, const void *x, struct weight weight, int64_t rows,
              int dim, float eps, struct stream *stream)
{
    struct host_device *host = host_of(dev);
    struct norm_args a = {out, x, weight.data, rows, dim, eps, host->kernels};

    host_run(host, norm_part, &a, 0.1 * (double)rows * dim);
    return 0;
}

struct silu_args {
    float *out;
    const float *gate, *up;
    int64_t count;
    const struct host_kernels *kernels;
};

static void
silu_part(void *arg, int part, int n_parts)
{
    struct silu_args *a = arg;
    long begin, end;

    pool_slice((long)a->count, 64, part, n_parts, &begin, &end);
    a->kernels->silu_mul(a->out + begin, a->gate + begin, a->up + begin, (size_t)(end - begin));
}

int
host_silu_mul(struct device *dev, void *out, const void *gate, const void *up, int64_t count,
              struct stream *stream)
{
    struct host_device *host = host_of(dev);
    struct silu_args a = {out, gate, up, count, host->kernels};

    host_run(host, silu_part, &a, 0.7 * (double)count);
    return 0;
}

struct angle_args {
    float *angles;
    const double *inv_freq;
    double scale;
    int half;
    const struct batch *batch;
};

static void
angle_part(void *arg, int part, int n_parts)
{
    struct angle_args *a = arg;
    long begin, end;

    pool_slice(a->batch->n_rows, 1, part, n_parts, &begin, &end);
    for (long r = begin; r < end; r++) {
        float *cosine = a->angles + r * 2 * a->half, *sine = cosine + a->half;
        for (int i = 0; i < a->half; i++) {
            double angle = a->inv_freq[i] * a->batch->position[r];
            cosine[i] = (float)(cos(angle) * a->scale);
            sine[i] = (float)(sin(angle) * a->scale);
        }
    }
}

int
host_rope_angles(struct device *dev, float *angles, int head_dim, const double *inv_freq,
                 double attention_scale, const struct batch *batch, struct stream *stream)
{
    struct host_device *host = host_of(dev);
    struct angle_args a = {angles, inv_freq, attention_scale, head_dim / 2, batch};

    host_run(host, angle_part, &a, 15.0 * batch->n_rows * head_dim);
    return 0;
}

struct rope_args {
    float *q, *k;
    const float *angles;
    int heads, kv_heads, half, n_rows;
};

static void
rotate(float *vector, const float *cosine, const float *sine, int half)
{
    for (int i = 0; i < half; i++) {
        float low = vector[i], high = vector[half + i];
        vector[i] = low * cosine[i] - high * sine[i];
        vector[half + i] = high * cosine[i] + low * sine[i];
    }
}

static void
rope_part(void *arg, int part, int n_parts)
{
    struct rope_args *a = arg;
    int dim = 2 * a->half;
    long begin, end;

    pool_slice(a->n_rows, 1, part, n_parts, &begin, &end);
    for (long r = begin; r < end; r++) {
        const float *cosine = a->angles + r * dim, *sine = cosine + a->half;
        for (int h = 0; h < a->heads; h++)
            rotate(a->q + (r * a->heads + h) * dim, cosine, sine, a->half);
        for (int h = 0; h < a->kv_heads; h++)
            rotate(a->k + (r * a->kv_heads + h) * dim, cosine, sine, a->half);
    }
}

int
host_rope(struct device *dev, void *q, void *k, const struct model_shape *shape,
          const float *angles, const struct batch *batch, struct stream *stream)
{
    struct host_device *host = host_of(dev);
    struct rope_args a = {
        q, k, angles, shape->heads, shape->kv_heads, shape->head_dim / 2, batch->n_rows};

    host_run(host, rope_part, &a,
             0.3 * batch->n_rows * (shape->heads + shape->kv_heads) * shape->head_dim);
    return 0;
}
