/* kv_cache: writing keys and values to their pages.
 *
 * qkv_finish stands between the projections and attention of every layer: at one row its time is that
 * of its loads, one behind the other (row -> sequence -> page -> store), so everything that does not
 * hang on them is asked for first; at thousands of rows it is the bytes of qkv, read and written once. */
#include "gpu/cuda/mma.h"
#include "gpu/cuda/qkv_finish.h"

static struct kv_layer
layer_of(const struct kv_cache *kv, int layer)
{
    struct kv_layer result = {
        .data = (__nv_bfloat16 *)kv->data + cuda_kv_offset(kv, layer, 0, 0, 0),
        .page_stride = (int64_t)2 * kv->kv_heads * kv->page_tokens * kv->head_dim,
        .v_offset = (int64_t)kv->kv_heads * kv->page_tokens * kv->head_dim,
        .kv_heads = kv->kv_heads,
        .head_dim = kv->head_dim,
        .page_tokens = kv->page_tokens,
    };

    return result;
}

enum { QKV_THREADS = 128 };

__device__ static inline void
load_8_floats(float *out, const float *from)
{
    float4 a = ((const float4 *)from)[0], b = ((const float4 *)from)[1];

    out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w;
    out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
}

/* A lane's part of a head: 8 elements of the first half, and the 8 they are rotated with. */
__device__ static inline void
unpack(float (*x)[8], const uint4 *raw)
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const uint32_t pairs[4] = {raw[h].x, raw[h].y, raw[h].z, raw[h].w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            x[h][2 * i] = low_bf16(pairs[i]);
            x[h][2 * i + 1] = high_bf16(pairs[i]);
        }
    }
}

__device__ static inline uint4
pack_8(const float *x)
{
    return make_uint4(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]),
                      pack_bf16(x[6], x[7]));
}

/* A block is some heads of one row: LANES lanes a head, AT_ONCE heads of each lane asked for together;
 * gridDim.y blocks share a row. NORM: there are head norms; their weights are loaded while the
 * projections still run. */
template <int LANES, bool NORM>
__global__ void
__launch_bounds__(QKV_THREADS) qkv_finish(struct qkv_args a)
{
    constexpr int DIM = 16 * LANES, HEADS = QKV_THREADS / LANES, AT_ONCE = 3;
    int row = (int)blockIdx.x, first = (int)threadIdx.x % LANES * 8;
    int heads = a.heads, all = heads + 2 * a.kv.kv_heads;
    const __nv_bfloat16 *from = a.qkv + (int64_t)row * all * DIM + first;
    float q_norm[2][8], k_norm[2][8], cosine[8], sine[8];

#pragma unroll
    for (int h = 0; h < 2 && NORM; h++) {
        load_8_floats(q_norm[h], a.q_norm + h * DIM / 2 + first);
        load_8_floats(k_norm[h], a.k_norm + h * DIM / 2 + first);
    }
    dependency_wait();
    /* The bounds do not depend on the thread: whole warps meet in the shuffles. */
    for (int base = (int)blockIdx.y * HEADS * AT_ONCE; base < all;
         base += (int)gridDim.y * HEADS * AT_ONCE) {
        uint4 raw[AT_ONCE][2];
        __nv_bfloat16 *cache = NULL;
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            int head = base + i * HEADS + (int)threadIdx.x / LANES;
            const __nv_bfloat16 *x = from + (head < all ? head : 0) * DIM;
            raw[i][0] = *(const uint4 *)x;
            raw[i][1] = *(const uint4 *)(x + DIM / 2);
        }
        load_8_floats(cosine, a.angles + (int64_t)row * DIM + first);
        load_8_floats(sine, a.angles + (int64_t)row * DIM + DIM / 2 + first);
        if (base + HEADS * AT_ONCE > heads)
            cache = row_in_cache(&a.kv, &a.batch, row);
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            int head = base + i * HEADS + (int)threadIdx.x / LANES;
            struct qkv_head h = head_of(&a, cache, row, head);
            float x[2][8];
            unpack(x, raw[i]);
#pragma unroll
            for (int half = 0; half < 2 && h.bias; half++) {
                float bias[8];
                load_8_floats(bias, h.bias + half * DIM / 2 + first);
#pragma unroll
                for (int j = 0; j < 8; j++)
                    x[half][j] += bias[j];
            }
            if (NORM) {
                float squares = 0;
#pragma unroll
                for (int j = 0; j < 8; j++)
                    squares += x[0][j] * x[0][j] + x[1][j] * x[1][j];
#pragma unroll
                for (int lanes = LANES / 2; lanes > 0; lanes /= 2)
                    squares += __shfl_xor_sync(0xffffffffu, squares, lanes);
                float factor = h.is_v ? 1 : rsqrtf(squares / DIM + a.eps);
#pragma unroll
                for (int half = 0; half < 2; half++)
#pragma unroll
                    for (int j = 0; j < 8; j++) {
                        float weight = head < heads ? q_norm[half][j] : k_norm[half][j];
                        x[half][j] *= h.is_v ? 1 : factor * weight;
                    }
            }
#pragma unroll
            for (int j = 0; j < 8; j++) {
                float low = x[0][j] * cosine[j] - x[1][j] * sine[j];
                float high = x[1][j] * cosine[j] + x[0][j] * sine[j];
                x[0][j] = h.is_v ? x[0][j] : low;
                x[1][j] = h.is_v ? x[1][j] : high;
            }
            if (h.to) {
                *(uint4 *)(h.to + first) = pack_8(x[0]);
                *(uint4 *)(h.to + DIM / 2 + first) = pack_8(x[1]);
            }
        }
    }
}

/* The same for any even head_dim: a warp a head. */
__global__ void
__launch_bounds__(QKV_THREADS) qkv_finish_any(struct qkv_args a)
{
    int dim = a.kv.head_dim, half = dim / 2, lane = (int)threadIdx.x % 32;
    int row = (int)blockIdx.x, all = a.heads + 2 * a.kv.kv_heads;
    int head = (int)(blockIdx.y * QKV_THREADS + threadIdx.x) / 32;
    const __nv_bfloat16 *from = a.qkv + ((int64_t)row * all + head) * dim;
    const float *cosine = a.angles + (int64_t)row * dim, *sine = cosine + half;
    float factor = 1;

    dependency_wait();
    if (head >= all)
        return;
    struct qkv_head h = head_of(&a, row_in_cache(&a.kv, &a.batch, row), row, head);
    const float *norm = h.is_v ? NULL : head < a.heads ? a.q_norm : a.k_norm;
    if (norm) {
        float squares = 0;
        for (int i = lane; i < dim; i += 32) {
            float x = __bfloat162float(from[i]) + (h.bias ? h.bias[i] : 0);
            squares += x * x;
        }
        for (int lanes = 16; lanes > 0; lanes /= 2)
            squares += __shfl_xor_sync(0xffffffffu, squares, lanes);
        factor = rsqrtf(squares / (float)dim + a.eps);
    }
    for (int i = lane; i < half && h.to; i += 32) {
        float x = __bfloat162float(from[i]) + (h.bias ? h.bias[i] : 0);
        float y = __bfloat162float(from[i + half]) + (h.bias ? h.bias[i + half] : 0);
        if (norm) {
            x *= factor * norm[i];
            y *= factor * norm[i + half];
        }
        h.to[i] = __float2bfloat16(h.is_v ? x : x * cosine[i] - y * sine[i]);
        h.to[i + half] = __float2bfloat16(h.is_v ? y : y * cosine[i] + x * sine[i]);
    }
}

template <int LANES>
static int
launch_finish(const struct qkv_args *a, cudaStream_t stream)
{
    constexpr int HEADS = 3 * QKV_THREADS / LANES;
    int all = a->heads + 2 * a->kv.kv_heads;
    dim3 grid((unsigned)a->batch.n_rows, (unsigned)((all + HEADS - 1) / HEADS));

    if (a->q_norm)
        return LAUNCH((qkv_finish<LANES, true>), grid, dim3(QKV_THREADS), 0, stream, *a);
    return LAUNCH((qkv_finish<LANES, false>), grid, dim3(QKV_THREADS), 0, stream, *a);
}

struct qkv_args
cuda_qkv_args(void *q, const void *qkv, const struct qkv_weights *w, const float *angles,
              const struct kv_cache *kv, int layer, const struct model_shape *shape,
              const struct batch *batch)
{
    return {
        .q = (__nv_bfloat16 *)q,
        .qkv = (const __nv_bfloat16 *)qkv,
        .q_bias = (const float *)w->q_bias.data,
        .k_bias = (const float *)w->k_bias.data,
        .v_bias = (const float *)w->v_bias.data,
        .q_norm = (const float *)w->q_norm.data,
        .k_norm = (const float *)w->k_norm.data,
        .angles = angles,
        .kv = layer_of(kv, layer),
        .batch = *batch,
        .heads = shape->heads,
        .eps = shape->norm_eps,
    };
}

int
cuda_qkv_finish(struct cuda_device *dev, const struct qkv_args *a)
{
    int all = a->heads + 2 * a->kv.kv_heads;

    /* The fast kernel takes both norms or none. */
    if (!a->q_norm == !a->k_norm)
        switch (a->kv.head_dim) {
        case 32:
            return launch_finish<2>(a, dev->stream);
        case 64:
            return launch_finish<4>(a, dev->stream);
        case 128:
            return launch_finish<8>(a, dev->stream);
        case 256:
            return launch_finish<16>(a, dev->stream);
        }
    dim3 grid((unsigned)a->batch.n_rows,
              (unsigned)((all + QKV_THREADS / 32 - 1) / (QKV_THREADS / 32)));
    return LAUNCH(qkv_finish_any, grid, dim3(QKV_THREADS), 0, dev->stream, *a);
}

/* Elements of type T: VECTOR of the cache's each. */
template <typename T>
__global__ void __launch_bounds__(256)
    write_rows(struct kv_layer kv, const T *k, const T *v, struct batch batch)
{
    constexpr int VECTOR = (int)(sizeof(T) / sizeof(__nv_bfloat16));
    int row = (int)blockIdx.x, per_head = kv.head_dim / VECTOR, n = kv.kv_heads * per_head;

    dependency_wait();
    __nv_bfloat16 *cache = row_in_cache(&kv, &batch, row);
    for (int i = (int)threadIdx.x; i < n && cache; i += (int)blockDim.x) {
        int head = i / per_head;
        __nv_bfloat16 *to =
            cache + (int64_t)head * kv.page_tokens * kv.head_dim + (i - head * per_head) * VECTOR;
        *(T *)to = k[(int64_t)row * n + i];
        *(T *)(to + kv.v_offset) = v[(int64_t)row * n + i];
    }
}

int
cuda_kv_write(struct device *device, const struct kv_cache *kv, int layer, const void *k,
              const void *v, const struct batch *batch, struct stream *stream)
{
    struct cuda_device *dev = cuda_of(device);
    struct kv_layer to = layer_of(kv, layer);
    dim3 grid((unsigned)batch->n_rows), block(256);

    (void)stream;
    if (kv->head_dim % 8 == 0)
        return LAUNCH(write_rows<uint4>, grid, block, 0, dev->stream, to, (const uint4 *)k,
                      (const uint4 *)v, *batch);
    return LAUNCH(write_rows<__nv_bfloat16>, grid, block, 0, dev->stream, to,
                  (const __nv_bfloat16 *)k, (const __nv_bfloat16 *)v, *batch);
}

/* A page lies in as many places as there are layers: blockIdx.y. */
template <typename T>
__global__ void __launch_bounds__(256)
    copy_page(T *data, int64_t layer_stride, int64_t page_stride, int dst_page, int src_page)
{
    const T *from = data + blockIdx.y * layer_stride + src_page * page_stride;
    T *to = data + blockIdx.y * layer_stride + dst_page * page_stride;

    dependency_wait();
    for (int64_t i = blockIdx.x * 256 + threadIdx.x; i < page_stride; i += gridDim.x * 256)
        to[i] = from[i];
}

template <typename T>
static int
launch_copy(const struct kv_cache *kv, int dst_page, int src_page, cudaStream_t stream)
{
    int64_t stride = (int64_t)2 * kv->kv_heads * kv->page_tokens * kv->head_dim *
                     (int64_t)sizeof(__nv_bfloat16) / (int64_t)sizeof(T);
    int64_t blocks = (stride + 1023) / 1024;
    dim3 grid((unsigned)(blocks < 1024 ? blocks : 1024), (unsigned)kv->layers);

    return LAUNCH(copy_page<T>, grid, dim3(256), 0, stream, (T *)kv->data, stride * kv->n_pages,
                  stride, dst_page, src_page);
}

int
cuda_kv_copy_page(struct device *device, const struct kv_cache *kv, int dst_page, int src_page,
                  struct stream *stream)
{
    struct cuda_device *dev = cuda_of(device);

    (void)stream;
    if (dst_page == src_page)
        return 0;
    if ((int64_t)kv->kv_heads * kv->page_tokens * kv->head_dim % 4 == 0)
        return launch_copy<uint4>(kv, dst_page, src_page, dev->stream);
    return launch_copy<uint32_t>(kv, dst_page, src_page, dev->stream);
}

size_t
cuda_kv_page_bytes(const struct device *dev, const struct model_shape *shape, int page_tokens)
{
    (void)dev;
    return (size_t)shape->layers * 2 * (size_t)shape->kv_heads * (size_t)shape->head_dim *
           (size_t)page_tokens * sizeof(__nv_bfloat16);
}

void
cuda_kv_cache_open(struct cuda_device *cuda)
{
    LOAD_KERNELS(cuda, qkv_finish_any);
}
