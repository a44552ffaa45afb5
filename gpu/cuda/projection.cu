/* projection: everything that multiplies by a weight matrix: skinny or gemv for a few rows, GEMM for more.
 *
 * Matrices of a group lie one behind the other (bf16_matrices), so q, k and v are one product, and gate and up.
 * activations: the normalised rows, then what the widest product leaves. */
#include "gpu/cuda/cuda_state.h"
#include "gpu/cuda/qkv_finish.h"
#include "gpu/cuda/skinny.h"

enum { THREADS = 256 };

static size_t
align256(size_t bytes)
{
    return (bytes + 255) / 256 * 256;
}

static size_t
widest(const struct model_shape *s)
{
    size_t qkv = (size_t)(s->heads + 2 * s->kv_heads) * (size_t)s->head_dim;
    size_t gate_up = 2 * (size_t)s->intermediate;

    return qkv > gate_up ? qkv : gate_up;
}

size_t
cuda_activation_bytes(const struct model_shape *s, const struct device_limits *limits)
{
    size_t rows =
        (size_t)(limits->max_rows > limits->max_outputs ? limits->max_rows : limits->max_outputs);

    return align256(rows * (size_t)s->hidden * 2) +
           2 * align256((size_t)limits->max_rows * widest(s) * 2);
}

static __nv_bfloat16 *
normalised(struct cuda_device *cuda)
{
    return (__nv_bfloat16 *)cuda->activations;
}

static __nv_bfloat16 *
wide(struct cuda_device *cuda)
{
    size_t rows =
        (size_t)(cuda->limits.max_rows > cuda->limits.max_outputs ? cuda->limits.max_rows
                                                                  : cuda->limits.max_outputs);

    return (__nv_bfloat16 *)((char *)cuda->activations +
                             align256(rows * (size_t)cuda->shape.hidden * 2));
}

__global__ static void
bias_bf16_kernel(__nv_bfloat16 *out, int64_t ld_out, const float *bias, int n)
{
    int c = (int)(blockIdx.x * blockDim.x + threadIdx.x);

    dependency_wait();
    if (c < n) {
        __nv_bfloat16 *at = out + (size_t)blockIdx.y * (size_t)ld_out + (size_t)c;
        *at = __float2bfloat16(__bfloat162float(*at) + bias[c]);
    }
}

__global__ static void
bias_f32_kernel(float *out, int64_t ld_out, const float *bias, int n)
{
    int c = (int)(blockIdx.x * blockDim.x + threadIdx.x);

    dependency_wait();
    if (c < n)
        out[(size_t)blockIdx.y * (size_t)ld_out + (size_t)c] += bias[c];
}

static int
add_bias(struct cuda_device *cuda, const struct gemv *g)
{
    dim3 grid((unsigned)((g->n + THREADS - 1) / THREADS), (unsigned)g->m);

    if (!g->bias)
        return 0;
    if (g->end != GEMV_BF16)
        return LAUNCH(bias_f32_kernel, grid, THREADS, 0, cuda->stream, (float *)g->out, g->ld_out,
                      g->bias, g->n);
    return LAUNCH(bias_bf16_kernel, grid, THREADS, 0, cuda->stream, (__nv_bfloat16 *)g->out,
                  g->ld_out, g->bias, g->n);
}

/* A product of few rows, already normalised if that is wanted; 1: not few, or another shape. */
static int
multiply_few(struct cuda_device *cuda, const struct gemv *g)
{
    if (!g->row && cuda_skinny_fits(cuda, g))
        return cuda_skinny(cuda, g);
    return cuda_gemv_fits(cuda, g->m, g->k) ? cuda_gemv(cuda, g) : 1;
}

/* Any product but SwiGLU, of any number of rows, already normalised. */
static int
multiply(struct cuda_device *cuda, const struct gemv *g)
{
    int result = multiply_few(cuda, g);

    if (result <= 0)
        return result;
    result = cuda_gemm(cuda, g->out, g->ld_out, g->end != GEMV_BF16, g->end == GEMV_ADD, g->x, g->w,
                       g->m, g->n, g->k);
    return result < 0 ? result : add_bias(cuda, g);
}

/* Whether gemv is the one, which normalises and picks rows on the way. */
static bool
for_gemv(const struct cuda_device *cuda, const struct gemv *g)
{
    return cuda_gemv_fits(cuda, g->m, g->k) && !cuda_skinny_fits(cuda, g);
}

static struct gemv
plain_product(enum gemv_end end, void *out, const void *x, struct weight w, struct weight bias,
              int n_rows)
{
    return {.end = end,
            .out = out,
            .ld_out = w.rows,
            .x = x,
            .w = w.data,
            .bias = (const float *)bias.data,
            .m = n_rows,
            .n = w.rows,
            .k = w.cols};
}

int
cuda_matmul(struct device *dev, void *out, const void *x, struct weight w, struct weight bias,
            bool accumulate, const struct batch *b, struct stream *stream)
{
    struct gemv g =
        plain_product(accumulate ? GEMV_ADD : GEMV_BF16, out, x, w, bias, b->n_rows);

    return multiply(cuda_of(dev), &g);
}

int
cuda_matmul_group(struct device *dev, const struct matmul_part *parts, int n_parts, const void *x,
                  const struct batch *b, struct stream *stream)
{
    int result = 0;

    for (int i = 0; i < n_parts && result >= 0; i++)
        result = cuda_matmul(dev, parts[i].out, x, parts[i].w, parts[i].bias, false, b, stream);
    return result;
}

__global__ static void
gather_rows_kernel(__nv_bfloat16 *out, const __nv_bfloat16 *x, const int32_t *row, int k)
{
    const __nv_bfloat16 *from;

    dependency_wait();
    from = x + (size_t)row[blockIdx.x] * (size_t)k;
    out += (size_t)blockIdx.x * (size_t)k;
    if (k % 8 == 0) {
        for (int i = (int)threadIdx.x; i < k / 8; i += (int)blockDim.x)
            ((uint4 *)out)[i] = ((const uint4 *)from)[i];
        return;
    }
    for (int i = (int)threadIdx.x; i < k; i += (int)blockDim.x)
        out[i] = from[i];
}

int
cuda_matmul_rows(struct device *dev, float *out, const void *x, const int32_t *row, int n,
                 struct weight w, struct stream *stream)
{
    struct cuda_device *cuda = cuda_of(dev);
    __nv_bfloat16 *rows = normalised(cuda);
    struct gemv g = plain_product(GEMV_F32, out, x, w, {}, n);

    g.row = row;
    if (for_gemv(cuda, &g))
        return cuda_gemv(cuda, &g);
    int result = LAUNCH(gather_rows_kernel, (unsigned)n, THREADS, 0, cuda->stream, rows,
                        (const __nv_bfloat16 *)x, row, w.cols);
    if (result < 0)
        return result;
    g.x = rows;
    g.row = NULL;
    return multiply(cuda, &g);
}

/* Whether b lies behind a, so that both are one matrix. */
static bool
follows(struct weight a, struct weight b)
{
    return a.cols == b.cols &&
           (const char *)b.data == (const char *)a.data + (size_t)a.rows * (size_t)a.cols * 2;
}

/* out [rows, ld_out] from column `at` on = x w^T for each of n matrices, in as few products as their
 * places allow. */
static int
products(struct cuda_device *cuda, __nv_bfloat16 *out, int64_t ld_out, const __nv_bfloat16 *x,
         const struct weight *w, int n, int64_t rows)
{
    int result = 0;

    for (int i = 0; i < n && result >= 0;) {
        int64_t columns = w[i].rows;
        int last = i;

        while (last + 1 < n && follows(w[last], w[last + 1]))
            columns += w[++last].rows;
        result = cuda_gemm(cuda, out, ld_out, false, false, x, w[i].data, rows, columns, w[i].cols);
        out += columns;
        i = last + 1;
    }
    return result;
}

size_t
cuda_squares_bytes(const struct cuda_device *cuda)
{
    return cuda->encode_tensor_map ? sizeof(float) * SKINNY_MOST_ROWS * SKINNY_MOST_SQUARES : 0;
}

/* x [rows, w.rows] += in w^T + bias. Where few rows allow it, the norm that comes next, if one does, is begun on the
 * way: what begin_norm finds. */
static int
add_product(struct cuda_device *cuda, float *x, const void *in, struct weight w, struct weight bias,
            struct weight next_norm, int n_rows)
{
    struct gemv plain = plain_product(GEMV_ADD, x, in, w, bias, n_rows), g = plain;

    g.carried = normalised(cuda);
    g.carried_norm = (const float *)next_norm.data;
    g.squares = cuda->squares;
    g.n_squares = next_norm.data ? cuda_skinny_squares(cuda, &g) : 0;
    cuda->carried_norm = g.n_squares > 0 ? next_norm.data : NULL;
    cuda->n_squares = g.n_squares;
    return g.n_squares > 0 ? cuda_skinny(cuda, &g) : multiply(cuda, &plain);
}

/* g->x = x [rows, k], normalised with g->eps, or as good as that for this product. */
static int
begin_norm(struct cuda_device *cuda, struct gemv *g, const float *x, struct weight norm)
{
    bool carried = cuda->carried_norm == norm.data;

    cuda->carried_norm = NULL;
    g->norm = NULL;
    g->x = normalised(cuda);
    if (carried && cuda_skinny_fits(cuda, g)) {
        g->squares = cuda->squares;
        g->n_squares = cuda->n_squares;
        return 0;
    }
    return cuda_rms_norm(&cuda->device, normalised(cuda), x, norm, g->m, g->k, g->eps, NULL);
}

static bool
qkv_whole(const struct qkv_weights *w)
{
    return follows(w->q, w->k) && follows(w->k, w->v);
}

/* q, k and v side by side, as one product. */
static struct gemv
qkv_product(__nv_bfloat16 *out, const void *x, const struct qkv_weights *w, int n_rows)
{
    int columns = w->q.rows + w->k.rows + w->v.rows;

    return {.end = GEMV_BF16,
            .out = out,
            .ld_out = columns,
            .x = x,
            .w = w->q.data,
            .m = n_rows,
            .n = columns,
            .k = w->q.cols};
}

/* g: qkv_product, with x normalised. */
static int
multiply_qkv(struct cuda_device *cuda, const struct gemv *g, const struct qkv_weights *w)
{
    const struct weight parts[3] = {w->q, w->k, w->v};

    return qkv_whole(w) ? multiply(cuda, g)
                        : products(cuda, (__nv_bfloat16 *)g->out, g->n,
                                   (const __nv_bfloat16 *)g->x, parts, 3, g->m);
}

int
cuda_project_qkv(struct device *dev, void *q, const float *x, const struct qkv_weights *w,
                 const float *angles, const struct kv_cache *kv, int layer,
                 const struct model_shape *s, const struct batch *b, struct stream *stream)
{
    struct cuda_device *cuda = cuda_of(dev);
    struct gemv g = qkv_product(wide(cuda), x, w, b->n_rows);
    struct qkv_args args = cuda_qkv_args(q, g.out, w, angles, kv, layer, s, b);
    int result;

    g.norm = (const float *)w->norm.data;
    g.eps = s->norm_eps;
    if (qkv_whole(w) && for_gemv(cuda, &g)) {
        result = cuda_gemv(cuda, &g);
    } else {
        result = begin_norm(cuda, &g, x, w->norm);
        if (result >= 0 && qkv_whole(w) && cuda_skinny_qkv_fits(cuda, &g, &args))
            return cuda_skinny_qkv(cuda, &g, &args);
        if (result >= 0)
            result = multiply_qkv(cuda, &g, w);
    }
    return result < 0 ? result : cuda_qkv_finish(cuda, &args);
}

/* gate_up [rows, 2 n], biases [n] or NULL: out [rows, n]. */
__global__ static void
swiglu_kernel(__nv_bfloat16 *out, const __nv_bfloat16 *gate_up, const float *gate_bias,
              const float *up_bias, int n)
{
    size_t row = blockIdx.y;
    const __nv_bfloat16 *gate = gate_up + row * 2 * (size_t)n, *up = gate + n;
    int stride = (int)(gridDim.x * blockDim.x),
        first = (int)(blockIdx.x * blockDim.x + threadIdx.x);

    dependency_wait();
    out += row * (size_t)n;
    if (n % 8 == 0 && !gate_bias && !up_bias) {
        for (int i = first; i < n / 8; i += stride) {
            uint4 g = ((const uint4 *)gate)[i], u = ((const uint4 *)up)[i], o;
            const __nv_bfloat162 *g2 = (const __nv_bfloat162 *)&g, *u2 = (const __nv_bfloat162 *)&u;
            __nv_bfloat162 *o2 = (__nv_bfloat162 *)&o;

#pragma unroll
            for (int j = 0; j < 4; j++) {
                float2 a = __bfloat1622float2(g2[j]), c = __bfloat1622float2(u2[j]);

                o2[j] = __floats2bfloat162_rn(a.x / (1.0f + __expf(-a.x)) * c.x,
                                              a.y / (1.0f + __expf(-a.y)) * c.y);
            }
            ((uint4 *)out)[i] = o;
        }
        return;
    }
    for (int i = first; i < n; i += stride) {
        float a = __bfloat162float(gate[i]) + (gate_bias ? gate_bias[i] : 0.0f);
        float c = __bfloat162float(up[i]) + (up_bias ? up_bias[i] : 0.0f);

        out[i] = __float2bfloat16(a / (1.0f + __expf(-a)) * c);
    }
}

static int
gate_and_up(struct cuda_device *cuda, __nv_bfloat16 *out, __nv_bfloat16 *both, const float *x,
            const struct feed_forward_weights *w, const struct model_shape *s,
            const struct batch *b)
{
    const struct weight parts[2] = {w->gate, w->up};
    const float *gate_bias = (const float *)w->gate_bias.data;
    const float *up_bias = (const float *)w->up_bias.data;
    int n = s->intermediate;
    bool whole = follows(w->gate, w->up);
    struct gemv g = {.end = GEMV_SWIGLU,
                     .out = out,
                     .ld_out = n,
                     .x = x,
                     .norm = (const float *)w->norm.data,
                     .eps = s->norm_eps,
                     .w = w->gate.data,
                     .bias = gate_bias,
                     .bias_up = up_bias,
                     .m = b->n_rows,
                     .n = n,
                     .k = s->hidden};

    if (whole && for_gemv(cuda, &g))
        return cuda_gemv(cuda, &g);
    int result = begin_norm(cuda, &g, x, w->norm);
    if (result >= 0)
        result = whole ? multiply_few(cuda, &g) : 1;
    if (result <= 0)
        return result;
    result = products(cuda, both, 2 * (int64_t)n, (const __nv_bfloat16 *)g.x, parts, 2, b->n_rows);
    if (result < 0)
        return result;
    unsigned blocks = (unsigned)((n / 8 + THREADS - 1) / THREADS);
    dim3 grid(blocks > 0 ? blocks : 1, (unsigned)b->n_rows);
    return LAUNCH(swiglu_kernel, grid, THREADS, 0, cuda->stream, out, both, gate_bias, up_bias, n);
}

int
cuda_finish_layer(struct device *dev, float *x, const void *attended,
                  const struct layer_end_weights *w, const struct model_shape *s,
                  const struct batch *b, struct stream *stream)
{
    struct cuda_device *cuda = cuda_of(dev);
    const struct feed_forward_weights *f = &w->feed_forward;
    __nv_bfloat16 *both = wide(cuda);
    __nv_bfloat16 *gated = both + align256((size_t)cuda->limits.max_rows * widest(s) * 2) / 2;
    int result = add_product(cuda, x, attended, w->o, w->o_bias, f->norm, b->n_rows);

    if (result >= 0)
        result = gate_and_up(cuda, gated, both, x, f, s, b);
    if (result >= 0)
        result = add_product(cuda, x, gated, f->down, f->down_bias, w->next_norm, b->n_rows);
    return result;
}

/* The products of a step of so many rows, each by whatever takes it there. */
static int
warm_up_rows(struct cuda_device *cuda, const struct step_products *p, int n_rows)
{
    struct device *dev = &cuda->device;
    const struct batch b = {.n_rows = n_rows};
    const struct layer_end_weights end = {.o = p->o, .feed_forward = p->feed_forward};
    struct gemv qkv = qkv_product(wide(cuda), normalised(cuda), &p->qkv, n_rows);
    int result = multiply_qkv(cuda, &qkv, &p->qkv);

    if (result >= 0)
        result = cuda_finish_layer(dev, p->x, p->attended, &end, &cuda->shape, &b, NULL);
    if (result >= 0 && p->engram[0].w.data)
        result = cuda_matmul_group(dev, p->engram, 2, p->rows, &b, NULL);
    return result;
}

static int
warm_up_head(struct cuda_device *cuda, const struct step_products *p, int n_rows)
{
    struct gemv g = plain_product(GEMV_F32, p->logits, normalised(cuda), p->head, {}, n_rows);

    return multiply(cuda, &g);
}

/* Every bucket once. Their sizes grow with the number of rows, so that there are few: a model of 8 G parameters and
 * steps of 8,192 rows do 50 TFLOP. */
int
cuda_warm_up(struct device *dev, const struct step_products *p, struct stream *stream)
{
    struct cuda_device *cuda = cuda_of(dev);
    int max_rows = cuda->limits.max_rows, result = cuda_launch_status(cudaSetDevice(cuda->ordinal));
    int64_t most = max_rows > p->logit_rows ? max_rows : p->logit_rows;
    uint64_t before = cuda->plans_made;

    for (int64_t done = 0; done < most && result >= 0;) {
        int64_t m = cuda_gemm_bucket(done + 1);

        if (done < max_rows)
            result = warm_up_rows(cuda, p, (int)(m < max_rows ? m : max_rows));
        if (result >= 0 && done < p->logit_rows)
            result = warm_up_head(cuda, p, (int)(m < p->logit_rows ? m : p->logit_rows));
        done = m;
    }
    if (result >= 0)
        result = cuda_launch_status(cudaStreamSynchronize(cuda->stream));
    return result < 0 ? result : (int)(cuda->plans_made - before);
}

int
cuda_projection_open(struct cuda_device *cuda)
{
    int result = cuda_gemv_open(cuda);

    return result < 0 ? result : cuda_skinny_open(cuda);
}
