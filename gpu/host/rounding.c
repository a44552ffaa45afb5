/* rounding: the CPU backend with the activations of a BF16 device, for tests (host_device.h).
 *
 * Operations whose results gpu/cuda keeps as BF16 are followed by a pass that rounds them, in F32
 * memory: products that are not added to the residual stream, norms, rotated q and k, attention,
 * silu(gate) * up, gathered rows. v is a product and k is rotated before kv_write, so the KV cache
 * holds BF16 values too. What gpu/cuda keeps as F32 is left alone: the residual stream, sums, the
 * weights of attention, Engram's u and ring, logits. Head norms work in place and have the rotation
 * behind them, and a GPU does both in one kernel that rounds once: the rotation rounds for both.
 * Entries of the table of operations are replaced, so a device without this pays nothing for it. */
#include "gpu/host/host_state.h"

struct round_args {
    float *x;
    size_t n;
};

static void
round_part(void *arg, int part, int n_parts)
{
    struct round_args *a = arg;
    long begin, end;

    pool_slice((long)a->n, 64, part, n_parts, &begin, &end);
    for (long i = begin; i < end; i++)
        a->x[i] = dtype_bf16(dtype_to_bf16(a->x[i]));
}

static int
round_values(struct device *dev, void *x, int64_t rows, int width)
{
    struct round_args a = {x, (size_t)rows * (size_t)width};

    host_run(host_of(dev), round_part, &a, (double)a.n);
    return 0;
}

static int
rounded_rms_norm(struct device *dev, void *out, const void *x, struct weight weight, int64_t rows,
                 int dim, float eps, struct stream *stream)
{
    int result = host_rms_norm(dev, out, x, weight, rows, dim, eps, stream);

    return result < 0 || out == x ? result : round_values(dev, out, rows, dim);
}

static int
rounded_matmul(struct device *dev, void *out, const void *x, struct weight w, struct weight bias,
               bool accumulate, const struct batch *batch, struct stream *stream)
{
    int result = host_matmul(dev, out, x, w, bias, accumulate, batch, stream);

    return result < 0 || accumulate ? result : round_values(dev, out, batch->n_rows, w.rows);
}

static int
rounded_matmul_group(struct device *dev, const struct matmul_part *parts, int n_parts,
                     const void *x, const struct batch *batch, struct stream *stream)
{
    int result = host_matmul_group(dev, parts, n_parts, x, batch, stream);

    for (int i = 0; i < n_parts && result >= 0; i++)
        result = round_values(dev, parts[i].out, batch->n_rows, parts[i].w.rows);
    return result;
}

static int
rounded_rope(struct device *dev, void *q, void *k, const struct model_shape *shape,
             const float *angles, const struct batch *batch, struct stream *stream)
{
    int result = host_rope(dev, q, k, shape, angles, batch, stream);

    if (result >= 0)
        result = round_values(dev, q, batch->n_rows, shape->heads * shape->head_dim);
    return result < 0 ? result
                      : round_values(dev, k, batch->n_rows, shape->kv_heads * shape->head_dim);
}

static int
rounded_attention(struct device *dev, void *out, const void *q, const struct kv_cache *kv,
                  int layer, const struct model_shape *shape, const struct batch *batch,
                  struct stream *stream)
{
    int result = host_attention(dev, out, q, kv, layer, shape, batch, stream);

    return result < 0 ? result
                      : round_values(dev, out, batch->n_rows, shape->heads * shape->head_dim);
}

static int
rounded_silu_mul(struct device *dev, void *out, const void *gate, const void *up, int64_t count,
                 struct stream *stream)
{
    int result = host_silu_mul(dev, out, gate, up, count, stream);

    return result < 0 ? result : round_values(dev, out, count, 1);
}

static int
rounded_engram_gather(struct device *dev, void *out, const struct bundle_source *source, int index,
                      const struct engram_shape *shape, const struct batch *batch,
                      struct stream *stream)
{
    int result = host_engram_gather(dev, out, source, index, shape, batch, stream);

    return result < 0 ? result
                      : round_values(dev, out, batch->n_rows,
                                     (shape->max_order - 1) * shape->heads * shape->head_dim);
}

void
host_round_activations(struct device_ops *ops)
{
    ops->bf16_matrices = true;
    ops->rms_norm = rounded_rms_norm;
    ops->matmul = rounded_matmul;
    ops->matmul_group = rounded_matmul_group;
    ops->rope = rounded_rope;
    ops->attention = rounded_attention;
    ops->silu_mul = rounded_silu_mul;
    ops->engram_gather = rounded_engram_gather;
}
