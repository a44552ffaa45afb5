/* engram_fuse: steps 2 to 6 of the fusion of an Engram layer's rows into the residual stream, and what is kept
 * of them for later steps. The formulas are those of gpu/host/engram_layer.c.
 *
 * gate_kernel takes a row per block: one pass over key, value and x gives all four sums (the norms of key and
 * x fold into the dot product's factor; the length of u = gate * value is gate times that of value), a second one,
 * out of registers, the results. A decoding row goes on to its convolution at once: all its taps but
 * the present are in the ring. Rows of prefill segments look at u of rows before them, which other blocks
 * write: convolve_kernel does those. */
#include "gpu/cuda/cuda_state.h"
#include "gpu/cuda/row_load.h"

static const float CONV_NORM_EPS = 1e-5f;

enum {
    MOST_THREADS = 512,
    VECTOR = 8,          /* elements of a thread at a time in gate_kernel */
    CONVOLVE_VECTOR = 4, /* and in convolve_kernel */
    CONVOLVE_THREADS = 256,
    KEEP_THREADS = 256,
};

struct fuse_args {
    float *x;
    const __nv_bfloat16 *key, *value;
    float *u;
    const float *state;
    const float *key_norm, *query_norm, *conv_norm, *conv;
    const int32_t *row_seq;
    const struct batch_seq *seq;
    int32_t n_rows, n_decode, dim, kernel, dilation;
    float eps;
};

/* VECTOR elements in a row, or `n` single ones at its end. */
struct vector8 {
    float v[VECTOR];
};

template <bool WHOLE>
__device__ static inline struct vector8
load_floats(const float *from, int n)
{
    struct vector8 out;

    if (WHOLE) {
        float4 low = *(const float4 *)from, high = *(const float4 *)(from + 4);
        out = {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
    } else {
#pragma unroll
        for (int i = 0; i < VECTOR; i++)
            out.v[i] = i < n ? from[i] : 0.0f;
    }
    return out;
}

template <bool WHOLE>
__device__ static inline void
store_floats(float *to, const struct vector8 &x, int n)
{
    if (WHOLE) {
        *(float4 *)to = make_float4(x.v[0], x.v[1], x.v[2], x.v[3]);
        *(float4 *)(to + 4) = make_float4(x.v[4], x.v[5], x.v[6], x.v[7]);
    } else {
#pragma unroll
        for (int i = 0; i < VECTOR; i++)
            if (i < n)
                to[i] = x.v[i];
    }
}

template <bool WHOLE>
__device__ static inline struct vector8
load_bf16(const __nv_bfloat16 *from, int n)
{
    struct vector8 out;

    if (WHOLE) {
        uint4 bits = *(const uint4 *)from;
        out = {{low_bf16(bits.x), high_bf16(bits.x), low_bf16(bits.y), high_bf16(bits.y),
                low_bf16(bits.z), high_bf16(bits.z), low_bf16(bits.w), high_bf16(bits.w)}};
    } else {
#pragma unroll
        for (int i = 0; i < VECTOR; i++)
            out.v[i] = i < n ? __bfloat162float(from[i]) : 0.0f;
    }
    return out;
}

__device__ static inline float
silu(float y)
{
    return y / (1.0f + __expf(-y));
}

/* Sums of the four over the block, the same in every thread: lanes by halves, then warps in order. */
__device__ static float4
block_sum(float4 sum)
{
    __shared__ float4 of_warp[MOST_THREADS / 32];

#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        sum.x += __shfl_xor_sync(0xffffffffu, sum.x, lanes);
        sum.y += __shfl_xor_sync(0xffffffffu, sum.y, lanes);
        sum.z += __shfl_xor_sync(0xffffffffu, sum.z, lanes);
        sum.w += __shfl_xor_sync(0xffffffffu, sum.w, lanes);
    }
    if (threadIdx.x % 32 == 0)
        of_warp[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = of_warp[0];
    for (unsigned w = 1; w < blockDim.x / 32; w++) {
        sum.x += of_warp[w].x;
        sum.y += of_warp[w].y;
        sum.z += of_warp[w].z;
        sum.w += of_warp[w].w;
    }
    return sum;
}

/* Of a decoding row: its taps but the present one, which lie in the ring. */
template <bool WHOLE>
__device__ static inline struct vector8
past_taps(const struct fuse_args &a, const struct batch_seq *seq, int d, int n)
{
    int ring = (a.kernel - 1) * a.dilation, position = seq->context;
    const float *state = a.state + (size_t)seq->state_slot * (size_t)ring * (size_t)a.dim;
    struct vector8 sum = {};

    for (int j = 0; j < a.kernel - 1; j++) {
        int back = (a.kernel - 1 - j) * a.dilation;

        if (position < back)
            continue;
        int slot = (position - back) % ring;
        struct vector8 w = load_floats<WHOLE>(a.conv + (size_t)j * (size_t)a.dim + d, n);
        struct vector8 tap = load_floats<WHOLE>(state + (size_t)slot * (size_t)a.dim + d, n);
#pragma unroll
        for (int i = 0; i < VECTOR; i++)
            sum.v[i] = fmaf(w.v[i], tap.v[i], sum.v[i]);
    }
    return sum;
}

/* KEPT: vectors of a thread that stay in registers from one pass to the next; 0: any number, read twice. */
template <int KEPT, bool WHOLE>
__global__ static void
__launch_bounds__(MOST_THREADS) gate_kernel(const struct fuse_args a)
{
    enum { HELD = KEPT ? KEPT : 1 };
    int row = (int)blockIdx.x, dim = a.dim, stride = (int)blockDim.x * VECTOR;
    int first = (int)threadIdx.x * VECTOR;
    size_t at = (size_t)row * (size_t)dim;
    struct vector8 x[HELD], value[HELD], past[HELD];
    float4 sum = make_float4(0, 0, 0, 0); /* key^2, x^2, key w1 x w2, value^2 */

    dependency_wait();
    int32_t n_seq = a.row_seq[row];
    if (n_seq < 0 || a.seq[n_seq].engram_off)
        return;
    const struct batch_seq *seq = &a.seq[n_seq];
    bool decodes = row < a.n_decode;

#pragma unroll(HELD)
    for (int c = 0; c < (KEPT ? KEPT : INT32_MAX); c++) {
        int d = first + c * stride, n = dim - d, held = KEPT ? c : 0;
        if (n <= 0)
            break;
        struct vector8 key = load_bf16<WHOLE>(a.key + at + d, n);
        struct vector8 key_norm = load_floats<WHOLE>(a.key_norm + d, n);
        struct vector8 query_norm = load_floats<WHOLE>(a.query_norm + d, n);

        x[held] = load_floats<WHOLE>(a.x + at + d, n);
        value[held] = load_bf16<WHOLE>(a.value + at + d, n);
        if (KEPT && decodes)
            past[held] = past_taps<WHOLE>(a, seq, d, n);
#pragma unroll
        for (int i = 0; i < VECTOR; i++) {
            sum.x = fmaf(key.v[i], key.v[i], sum.x);
            sum.y = fmaf(x[held].v[i], x[held].v[i], sum.y);
            sum.z = fmaf(key.v[i] * key_norm.v[i], x[held].v[i] * query_norm.v[i], sum.z);
            sum.w = fmaf(value[held].v[i], value[held].v[i], sum.w);
        }
    }
    sum = block_sum(sum);

    float inverse_key = 1.0f / sqrtf(sum.x / (float)dim + a.eps);
    float inverse_x = 1.0f / sqrtf(sum.y / (float)dim + a.eps);
    float dot = sum.z * inverse_key * inverse_x / sqrtf((float)dim);
    float root = sqrtf(fmaxf(fabsf(dot), 1e-6f));
    float sign = (float)((dot > 0) - (dot < 0));
    float gate = 1.0f / (1.0f + expf(-sign * root));
    float inverse_u = 1.0f / sqrtf(gate * gate * (sum.w / (float)dim) + CONV_NORM_EPS);

#pragma unroll(HELD)
    for (int c = 0; c < (KEPT ? KEPT : INT32_MAX); c++) {
        int d = first + c * stride, n = dim - d, held = KEPT ? c : 0;
        if (n <= 0)
            break;
        struct vector8 conv_norm = load_floats<WHOLE>(a.conv_norm + d, n), u;

        if (!KEPT) {
            x[held] = load_floats<WHOLE>(a.x + at + d, n);
            value[held] = load_bf16<WHOLE>(a.value + at + d, n);
            if (decodes)
                past[held] = past_taps<WHOLE>(a, seq, d, n);
        }
#pragma unroll
        for (int i = 0; i < VECTOR; i++) {
            float gated = value[held].v[i] * gate;
            x[held].v[i] += gated;
            u.v[i] = gated * inverse_u * conv_norm.v[i];
        }
        if (decodes) {
            struct vector8 w =
                load_floats<WHOLE>(a.conv + (size_t)(a.kernel - 1) * (size_t)dim + d, n);
#pragma unroll
            for (int i = 0; i < VECTOR; i++)
                x[held].v[i] += silu(fmaf(w.v[i], u.v[i], past[held].v[i]));
        }
        store_floats<WHOLE>(a.u + at + d, u, n);
        store_floats<WHOLE>(a.x + at + d, x[held], n);
    }
}

/* x += silu(convolution of u) of the rows of prefill segments. Blocks: channels, then rows. */
template <bool WHOLE>
__global__ static void
__launch_bounds__(CONVOLVE_THREADS) convolve_kernel(const struct fuse_args a)
{
    enum { N = WHOLE ? CONVOLVE_VECTOR : 1 };
    int d = (int)(blockIdx.x * blockDim.x + threadIdx.x) * N, dim = a.dim;
    int ring = (a.kernel - 1) * a.dilation;
    float sum[N] = {};

    dependency_wait();
    int row = a.n_decode + (int)blockIdx.y;
    for (; row < a.n_rows; row += (int)gridDim.y) {
        int32_t n_seq = a.row_seq[row];
        if (d >= dim || n_seq < 0 || a.seq[n_seq].engram_off)
            continue;
        const struct batch_seq *seq = &a.seq[n_seq];
        int in_segment = row - seq->first_row, position = seq->context + in_segment;
        const float *state = a.state + (size_t)seq->state_slot * (size_t)ring * (size_t)dim + d;

#pragma unroll
        for (int i = 0; i < N; i++)
            sum[i] = 0;
#pragma unroll 4
        for (int j = 0; j < a.kernel; j++) {
            int back = (a.kernel - 1 - j) * a.dilation;

            if (position < back)
                continue;
            const float *w = a.conv + (size_t)j * (size_t)dim + d;
            const float *tap = in_segment >= back
                                   ? a.u + (size_t)(row - back) * (size_t)dim + d
                                   : state + (size_t)((position - back) % ring) * (size_t)dim;
            if (WHOLE) {
                float4 w4 = *(const float4 *)w, tap4 = *(const float4 *)tap;
                sum[0] = fmaf(w4.x, tap4.x, sum[0]);
                sum[1 % N] = fmaf(w4.y, tap4.y, sum[1 % N]);
                sum[2 % N] = fmaf(w4.z, tap4.z, sum[2 % N]);
                sum[3 % N] = fmaf(w4.w, tap4.w, sum[3 % N]);
            } else {
                sum[0] = fmaf(*w, *tap, sum[0]);
            }
        }
        float *x = a.x + (size_t)row * (size_t)dim + d;
        if (WHOLE) {
            float4 x4 = *(float4 *)x;
            x4.x += silu(sum[0]);
            x4.y += silu(sum[1 % N]);
            x4.z += silu(sum[2 % N]);
            x4.w += silu(sum[3 % N]);
            *(float4 *)x = x4;
        } else {
            *x += silu(sum[0]);
        }
    }
}

typedef void fuse_function(const struct fuse_args);

/* Width alone chooses the kernel and its threads, hence the order of the sums. */
static fuse_function *
gate_of(int dim, unsigned *ret_threads)
{
    int n_vectors = (dim + VECTOR - 1) / VECTOR;
    int per_thread = (n_vectors + MOST_THREADS - 1) / MOST_THREADS;
    int threads = (n_vectors + per_thread - 1) / per_thread;

    *ret_threads = (unsigned)(threads + 31) / 32 * 32;
    if (dim % VECTOR != 0)
        return per_thread == 1 ? gate_kernel<1, false> : gate_kernel<0, false>;
    return per_thread == 1   ? gate_kernel<1, true>
           : per_thread == 2 ? gate_kernel<2, true>
                             : gate_kernel<0, true>;
}

int
cuda_engram_fuse(struct device *dev, void *x, const void *key, const void *value, float *u,
                 const float *state, const struct engram_weights *w, const struct engram_shape *e,
                 int hidden, const struct batch *batch, struct stream *stream)
{
    enum { MOST_GRID_ROWS = 65535 };
    struct cuda_device *cuda = cuda_of(dev);
    struct fuse_args a = {
        .x = (float *)x,
        .key = (const __nv_bfloat16 *)key,
        .value = (const __nv_bfloat16 *)value,
        .u = u,
        .state = state,
        .key_norm = (const float *)w->key_norm.data,
        .query_norm = (const float *)w->query_norm.data,
        .conv_norm = (const float *)w->conv_norm.data,
        .conv = (const float *)w->conv.data,
        .row_seq = batch->row_seq,
        .seq = batch->seq,
        .n_rows = batch->n_rows,
        .n_decode = batch->n_decode < batch->n_rows ? batch->n_decode : batch->n_rows,
        .dim = hidden,
        .kernel = e->conv_kernel,
        .dilation = e->max_order,
        .eps = e->norm_eps,
    };
    unsigned threads;
    fuse_function *gate = gate_of(hidden, &threads);
    int result = LAUNCH(gate, dim3((unsigned)a.n_rows), dim3(threads), 0, cuda->stream, a);
    int n_prefill = a.n_rows - a.n_decode;

    if (result < 0 || n_prefill == 0)
        return result;
    int vector = hidden % CONVOLVE_VECTOR == 0 ? CONVOLVE_VECTOR : 1;
    int per_block = CONVOLVE_THREADS * vector;
    dim3 grid((unsigned)((hidden + per_block - 1) / per_block),
              (unsigned)(n_prefill < MOST_GRID_ROWS ? n_prefill : MOST_GRID_ROWS));
    fuse_function *convolve = vector > 1 ? convolve_kernel<true> : convolve_kernel<false>;
    return LAUNCH(convolve, grid, dim3(CONVOLVE_THREADS), 0, cuda->stream, a);
}

struct keep_args {
    float *state;
    const float *u;
    const struct cuda_block *block;
    const int32_t *row_seq;
    const struct batch_seq *seq;
    int32_t n_decode, dim, ring;
};

/* A block for each decoding row, and for each of the last `ring` rows that a prefill segment may have. */
template <bool WHOLE>
__global__ static void
__launch_bounds__(KEEP_THREADS) keep_kernel(const struct keep_args a)
{
    int block = (int)blockIdx.x, n_seq, row = block;

    dependency_wait();
    if (a.block->status != 0)
        return;
    if (block < a.n_decode) {
        n_seq = a.row_seq[row];
        if (n_seq < 0)
            return;
    } else {
        n_seq = a.n_decode + (block - a.n_decode) / a.ring;
        int from_end = (block - a.n_decode) % a.ring;
        if (from_end >= a.seq[n_seq].n_rows)
            return;
        row = a.seq[n_seq].first_row + a.seq[n_seq].n_rows - 1 - from_end;
    }
    const struct batch_seq *seq = &a.seq[n_seq];
    if (seq->engram_off)
        return;
    int slot = (seq->context + (row - seq->first_row)) % a.ring;
    const float *from = a.u + (size_t)row * (size_t)a.dim;
    float *to = a.state + ((size_t)seq->state_slot * (size_t)a.ring + (size_t)slot) * (size_t)a.dim;

    if (WHOLE)
        for (int d = (int)threadIdx.x; d < a.dim / 4; d += KEEP_THREADS)
            ((float4 *)to)[d] = ((const float4 *)from)[d];
    else
        for (int d = (int)threadIdx.x; d < a.dim; d += KEEP_THREADS)
            to[d] = from[d];
}

int
cuda_engram_keep(struct device *dev, float *state, const float *u, const struct engram_shape *e,
                 int hidden, const struct batch *batch, struct stream *stream)
{
    struct cuda_device *cuda = cuda_of(dev);
    struct keep_args a = {
        .state = state,
        .u = u,
        .block = cuda->block,
        .row_seq = batch->row_seq,
        .seq = batch->seq,
        .n_decode = batch->n_decode < batch->n_rows ? batch->n_decode : batch->n_rows,
        .dim = hidden,
        .ring = (e->conv_kernel - 1) * e->max_order,
    };
    unsigned blocks = (unsigned)(a.n_decode + (batch->n_seqs - a.n_decode) * a.ring);

    if (hidden % 4 == 0)
        return LAUNCH(keep_kernel<true>, dim3(blocks), dim3(KEEP_THREADS), 0, cuda->stream, a);
    return LAUNCH(keep_kernel<false>, dim3(blocks), dim3(KEEP_THREADS), 0, cuda->stream, a);
}

int
cuda_engram_open(struct cuda_device *cuda)
{
    fuse_function *const kernels[] = {
        gate_kernel<1, true>,  gate_kernel<2, true>,   gate_kernel<0, true>,  gate_kernel<1, false>,
        gate_kernel<0, false>, convolve_kernel<false>, convolve_kernel<true>,
    };
    int result = load_kernel(keep_kernel<false>);

    if (result >= 0)
        result = load_kernel(keep_kernel<true>);
    for (size_t i = 0; i < sizeof kernels / sizeof *kernels && result >= 0; i++)
        result = load_kernel(kernels[i]);
    return result < 0 ? result : cuda_engram_gather_open(cuda);
}
