/* elementwise: operations that work row by row: embedding, norms, rotation, gate.
 *
 * One block a row where a row is long, one warp a group where it is a head. Sums are made per thread
 * in rising order of the index, then by a tree over the threads of a warp and over the warps. */
#include "gpu/cuda/block_sum.h"
#include "gpu/cuda/cuda_state.h"

enum { ROW_THREADS = 256, GROUP_WARPS = 8, MAX_HALF_DIM = 256 };

__global__ static void
embed_kernel(float *out, const __nv_bfloat16 *table, int hidden, int vocab, struct batch b,
             const int32_t *slot_token)
{
    dependency_wait();
    int row = (int)blockIdx.x, token = b.token[row], seq = b.row_seq[row];

    if (token == TOKEN_OF_SLOT && seq >= 0)
        token = slot_token[b.seq[seq].state_slot];
    if (token < 0 || token >= vocab)
        token = 0;
    const __nv_bfloat16 *from = table + (size_t)token * (size_t)hidden;
    for (int i = (int)threadIdx.x; i < hidden; i += (int)blockDim.x)
        out[(size_t)row * (size_t)hidden + (size_t)i] = __bfloat162float(from[i]);
}

int
cuda_embed(struct device *dev, void *out, struct weight table, const struct batch *b,
           struct stream *stream)
{
    struct cuda_device *cuda = cuda_of(dev);

    return LAUNCH(embed_kernel, (unsigned)b->n_rows, ROW_THREADS, 0, cuda->stream, (float *)out,
                  (const __nv_bfloat16 *)table.data, table.cols, table.rows, *b, cuda->slot_token);
}

/* x F32 to BF16. Rows of a multiple of 4 elements are read 16 bytes at a time. */
__global__ static void
norm_kernel(__nv_bfloat16 *out, const float *x, const float *weight, int dim, float eps)
{
    __shared__ float part[32];
    size_t at = (size_t)blockIdx.x * (size_t)dim;
    float sum = 0;

    dependency_wait();
    if (dim % 4 == 0) {
        const float4 *from = (const float4 *)(x + at);

        for (int i = (int)threadIdx.x; i < dim / 4; i += (int)blockDim.x) {
            float4 v = from[i];
            sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
        }
        float inverse = rsqrtf(block_sum(sum, part) / (float)dim + eps);
        for (int i = (int)threadIdx.x; i < dim / 4; i += (int)blockDim.x) {
            float4 v = from[i], w = ((const float4 *)weight)[i];
            __nv_bfloat162 *to = (__nv_bfloat162 *)(out + at) + 2 * i;

            to[0] = __floats2bfloat162_rn(v.x * inverse * w.x, v.y * inverse * w.y);
            to[1] = __floats2bfloat162_rn(v.z * inverse * w.z, v.w * inverse * w.w);
        }
        return;
    }
    for (int i = (int)threadIdx.x; i < dim; i += (int)blockDim.x)
        sum += x[at + (size_t)i] * x[at + (size_t)i];
    float inverse = rsqrtf(block_sum(sum, part) / (float)dim + eps);
    for (int i = (int)threadIdx.x; i < dim; i += (int)blockDim.x)
        out[at + (size_t)i] = __float2bfloat16(x[at + (size_t)i] * inverse * weight[i]);
}

/* Groups of BF16 in place, a warp each. */
__global__ static void
group_norm_kernel(__nv_bfloat16 *x, const float *weight, int64_t groups, int dim, float eps)
{
    int lane = (int)threadIdx.x % 32;
    int64_t group = (int64_t)blockIdx.x * GROUP_WARPS + (int)threadIdx.x / 32;
    float sum = 0;

    dependency_wait();
    if (group >= groups)
        return;
    x += (size_t)group * (size_t)dim;
    for (int i = lane; i < dim; i += 32) {
        float v = __bfloat162float(x[i]);
        sum += v * v;
    }
    float inverse = rsqrtf(warp_sum(sum) / (float)dim + eps);
    for (int i = lane; i < dim; i += 32)
        x[i] = __float2bfloat16(__bfloat162float(x[i]) * inverse * weight[i]);
}

int
cuda_rms_norm(struct device *dev, void *out, const void *x, struct weight weight, int64_t rows,
              int dim, float eps, struct stream *stream)
{
    struct cuda_device *cuda = cuda_of(dev);
    const float *w = (const float *)weight.data;

    if (out == x)
        return LAUNCH(group_norm_kernel, (unsigned)((rows + GROUP_WARPS - 1) / GROUP_WARPS),
                      32 * GROUP_WARPS, 0, cuda->stream, (__nv_bfloat16 *)out, w, rows, dim, eps);
    return LAUNCH(norm_kernel, (unsigned)rows, ROW_THREADS, 0, cuda->stream, (__nv_bfloat16 *)out,
                  (const float *)x, w, dim, eps);
}

struct frequencies {
    double inv_freq[MAX_HALF_DIM];
};

__global__ static void
angles_kernel(float *angles, struct frequencies f, double scale, int half, int n_rows,
              const int32_t *position)
{
    int at = (int)(blockIdx.x * blockDim.x + threadIdx.x), row = at / half, i = at % half;

    dependency_wait();
    if (row >= n_rows)
        return;
    double angle = f.inv_freq[i] * (double)position[row], sine, cosine;
    sincos(angle, &sine, &cosine);
    angles[(size_t)row * 2 * (size_t)half + (size_t)i] = (float)(cosine * scale);
    angles[((size_t)row * 2 + 1) * (size_t)half + (size_t)i] = (float)(sine * scale);
}

int
cuda_rope_angles(struct device *dev, float *angles, int head_dim, const double *inv_freq,
                 double attention_scale, const struct batch *b, struct stream *stream)
{
    struct cuda_device *cuda = cuda_of(dev);
    struct frequencies f;
    int half = head_dim / 2;

    if (half > MAX_HALF_DIM)
        return -EINVAL;
    for (int i = 0; i < MAX_HALF_DIM; i++)
        f.inv_freq[i] = i < half ? inv_freq[i] : 0;
    int64_t n = (int64_t)b->n_rows * half;
    return LAUNCH(angles_kernel, (unsigned)((n + 127) / 128), 128, 0, cuda->stream, angles, f,
                  attention_scale, half, b->n_rows, b->position);
}

__global__ static void
rope_kernel(__nv_bfloat16 *q, __nv_bfloat16 *k, int heads, int kv_heads, int half,
            const float *angles)
{
    size_t row = blockIdx.x;
    const float *cosine = angles + row * 2 * (size_t)half, *sine = cosine + half;

    dependency_wait();
    for (int at = (int)threadIdx.x; at < (heads + kv_heads) * half; at += (int)blockDim.x) {
        int head = at / half, i = at % half;
        __nv_bfloat16 *x =
            head < heads ? q + (row * (size_t)heads + (size_t)head) * 2 * (size_t)half
                         : k + (row * (size_t)kv_heads + (size_t)(head - heads)) * 2 * (size_t)half;
        float a = __bfloat162float(x[i]), b = __bfloat162float(x[half + i]);

        x[i] = __float2bfloat16(a * cosine[i] - b * sine[i]);
        x[half + i] = __float2bfloat16(b * cosine[i] + a * sine[i]);
    }
}

int
cuda_rope(struct device *dev, void *q, void *k, const struct model_shape *s, const float *angles,
          const struct batch *b, struct stream *stream)
{
    return LAUNCH(rope_kernel, (unsigned)b->n_rows, ROW_THREADS, 0, cuda_of(dev)->stream,
                  (__nv_bfloat16 *)q, (__nv_bfloat16 *)k, s->heads, s->kv_heads, s->head_dim / 2,
                  angles);
}

__global__ static void
silu_kernel(__nv_bfloat16 *out, const __nv_bfloat16 *gate, const __nv_bfloat16 *up, int64_t count)
{
    int64_t stride = (int64_t)gridDim.x * blockDim.x;

    dependency_wait();
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        float g = __bfloat162float(gate[i]);

        out[i] = __float2bfloat16(g / (1.0f + __expf(-g)) * __bfloat162float(up[i]));
    }
}

int
cuda_silu_mul(struct device *dev, void *out, const void *gate, const void *up, int64_t count,
              struct stream *stream)
{
    int64_t blocks = (count + ROW_THREADS - 1) / ROW_THREADS;

    return LAUNCH(silu_kernel, (unsigned)(blocks < 4096 ? blocks : 4096), ROW_THREADS, 0,
                  cuda_of(dev)->stream, (__nv_bfloat16 *)out, (const __nv_bfloat16 *)gate,
                  (const __nv_bfloat16 *)up, count);
}

void
cuda_elementwise_open(struct cuda_device *cuda)
{
    LOAD_KERNELS(cuda, embed_kernel);
}
