/* gemv: see gemv.h.
 *
 * The weights are read once and nothing else is large, so what counts is bytes in flight. One block
 * of 16 warps on each multiprocessor; a warp makes one column at a time (SwiGLU: a column of gate
 * and the same of up), its lanes 16 bytes beside each other, LOADS of them outstanding per lane: 48
 * KiB in flight on each multiprocessor, where 25 KiB would cover the latency. As a register's weights
 * are used up the load that follows goes into it. Columns are dealt to multiprocessors first, warps
 * second: 4,096 columns are 31 or 32 for each.
 *
 * Weights are written by nobody while a step runs, so the first loads are issued before the kernel
 * before this one has ended (dependency_wait), and half of the registers are left to the next kernel for
 * the same purpose. The rows, normalised or not, are in shared memory as BF16, as they are for
 * cuda_gemm. A sum is made per lane in rising order of k, then by the tree of warp_sum. */
#include "gpu/cuda/bf16_pair.h"
#include "gpu/cuda/block_sum.h"
#include "gpu/cuda/gemv.h"

enum { WARPS = 16, THREADS = 32 * WARPS, LOADS = 6 };

__device__ static inline uint4
load_weights(const uint4 *from)
{
#ifdef ENGRAM_EMULATED
    return *from;
#else
    uint4 v;

    asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from));
    return v;
#endif
}

__device__ static inline void
add_products(float *sum, uint4 w, uint4 x)
{
    float s = *sum;

    s += low_bf16(w.x) * low_bf16(x.x);
    s += high_bf16(w.x) * high_bf16(x.x);
    s += low_bf16(w.y) * low_bf16(x.y);
    s += high_bf16(w.y) * high_bf16(x.y);
    s += low_bf16(w.z) * low_bf16(x.z);
    s += high_bf16(w.z) * high_bf16(x.z);
    s += low_bf16(w.w) * low_bf16(x.w);
    s += high_bf16(w.w) * high_bf16(x.w);
    *sum = s;
}

/* The rows to shared memory. */
template <bool NORM>
__device__ static void
stage_rows(const struct gemv &a, __nv_bfloat16 *rows, float *part)
{
    for (int r = 0; r < a.m; r++) {
        size_t from = (size_t)(a.row ? a.row[r] : r) * (size_t)a.k;
        __nv_bfloat16 *to = rows + (size_t)r * (size_t)a.k;

        if (!NORM) {
            const uint4 *x = (const uint4 *)((const __nv_bfloat16 *)a.x + from);
            for (int i = (int)threadIdx.x; i < a.k / 8; i += THREADS)
                ((uint4 *)to)[i] = x[i];
            continue;
        }
        const float4 *x = (const float4 *)((const float *)a.x + from);
        float sum = 0;
        for (int i = (int)threadIdx.x; i < a.k / 4; i += THREADS) {
            float4 v = x[i];
            sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
        }
        float inverse = rsqrtf(block_sum(sum, part) / (float)a.k + a.eps);
        for (int i = (int)threadIdx.x; i < a.k / 4; i += THREADS) {
            float4 v = x[i], w = ((const float4 *)a.norm)[i];
            __nv_bfloat162 *pair = (__nv_bfloat162 *)to + 2 * i;

            pair[0] = __floats2bfloat162_rn(v.x * inverse * w.x, v.y * inverse * w.y);
            pair[1] = __floats2bfloat162_rn(v.z * inverse * w.z, v.w * inverse * w.w);
        }
        __syncthreads();
    }
    __syncthreads();
}

template <int END>
__device__ static void
put(const struct gemv &a, int row, int column, float sum, float sum_up)
{
    size_t at = (size_t)row * (size_t)a.ld_out + (size_t)column;

    if (a.bias)
        sum += a.bias[column];
    if (END == GEMV_BF16) {
        ((__nv_bfloat16 *)a.out)[at] = __float2bfloat16(sum);
    } else if (END == GEMV_F32) {
        ((float *)a.out)[at] = sum;
    } else if (END == GEMV_ADD) {
        ((float *)a.out)[at] += sum;
    } else {
        if (a.bias_up)
            sum_up += a.bias_up[column];
        ((__nv_bfloat16 *)a.out)[at] = __float2bfloat16(sum / (1.0f + __expf(-sum)) * sum_up);
    }
}

template <int M, bool NORM, int END>
__global__ static void
__launch_bounds__(THREADS, 2) gemv_kernel(const struct gemv a)
{
    enum { COLUMNS = END == GEMV_SWIGLU ? 2 : 1, DEPTH = LOADS / COLUMNS };
    DYNAMIC_SHARED(__nv_bfloat16, rows);
    __shared__ float part[32];
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    int chunks = a.k / 8, batches = (chunks + 32 * DEPTH - 1) / (32 * DEPTH);
    int column = warp * (int)gridDim.x + (int)blockIdx.x, batch = 0;
    const int stride = (int)gridDim.x * WARPS;
    const uint4 *w = (const uint4 *)a.w;
    uint4 buffer[COLUMNS][DEPTH];
    float sum[COLUMNS][M];

#pragma unroll
    for (int u = 0; u < DEPTH; u++) {
        int i = u * 32 + lane;
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            buffer[c][u] = make_uint4(0, 0, 0, 0);
            if (column < a.n && i < chunks)
                buffer[c][u] = load_weights(w + (size_t)(c * a.n + column) * (size_t)chunks + i);
        }
    }
    dependency_launch();
    dependency_wait();
    stage_rows<NORM>(a, rows, part);
#pragma unroll
    for (int c = 0; c < COLUMNS; c++)
        for (int r = 0; r < M; r++)
            sum[c][r] = 0;
    while (column < a.n) {
        int next_column = batch + 1 < batches ? column : column + stride;
        int next_batch = batch + 1 < batches ? batch + 1 : 0;

#pragma unroll
        for (int u = 0; u < DEPTH; u++) {
            int i = (batch * DEPTH + u) * 32 + lane, next = (next_batch * DEPTH + u) * 32 + lane;
            bool in = i < chunks, wanted = next_column < a.n && next < chunks;

#pragma unroll
            for (int r = 0; r < M; r++) {
                if (in) {
                    uint4 x = ((const uint4 *)(rows + (size_t)r * (size_t)a.k))[i];
#pragma unroll
                    for (int c = 0; c < COLUMNS; c++)
                        add_products(&sum[c][r], buffer[c][u], x);
                }
            }
#pragma unroll
            for (int c = 0; c < COLUMNS; c++)
                if (wanted)
                    buffer[c][u] =
                        load_weights(w + (size_t)(c * a.n + next_column) * (size_t)chunks + next);
        }
        if (next_batch == 0) {
#pragma unroll
            for (int r = 0; r < M; r++) {
                float whole = warp_sum(sum[0][r]);
                float whole_up = COLUMNS == 2 ? warp_sum(sum[COLUMNS - 1][r]) : 0.0f;

                if (lane == 0 && r < a.m)
                    put<END>(a, r, column, whole, whole_up);
                for (int c = 0; c < COLUMNS; c++)
                    sum[c][r] = 0;
            }
        }
        column = next_column;
        batch = next_batch;
    }
}

bool
cuda_gemv_fits(int64_t m, int64_t k)
{
    return m <= GEMV_MOST_ROWS && k % 8 == 0 && (m == 3 ? 4 : m) * k * 2 <= GEMV_SHARED_BYTES;
}

template <int M, bool NORM, int END>
static int
launch(struct cuda_device *cuda, const struct gemv *a)
{
    int blocks = cuda->sm_count, columns = (a->n + WARPS - 1) / WARPS;
    size_t shared = (size_t)M * (size_t)a->k * sizeof(__nv_bfloat16);

    return LAUNCH((gemv_kernel<M, NORM, END>), (unsigned)(blocks < columns ? blocks : columns),
                  THREADS, shared, cuda->stream, *a);
}

template <int M, bool NORM>
static int
launch_end(struct cuda_device *cuda, const struct gemv *a)
{
    switch (a->end) {
    case GEMV_BF16:
        return launch<M, NORM, GEMV_BF16>(cuda, a);
    case GEMV_F32:
        return launch<M, NORM, GEMV_F32>(cuda, a);
    case GEMV_ADD:
        return launch<M, NORM, GEMV_ADD>(cuda, a);
    default:
        return launch<M, NORM, GEMV_SWIGLU>(cuda, a);
    }
}

int
cuda_gemv(struct cuda_device *cuda, const struct gemv *a)
{
    switch (a->m) {
    case 1:
        return a->norm ? launch_end<1, true>(cuda, a) : launch_end<1, false>(cuda, a);
    case 2:
        return a->norm ? launch_end<2, true>(cuda, a) : launch_end<2, false>(cuda, a);
    default:
        return a->norm ? launch_end<4, true>(cuda, a) : launch_end<4, false>(cuda, a);
    }
}

template <int M, bool NORM>
static int
allow(void)
{
    int result = ALLOW_SHARED((gemv_kernel<M, NORM, GEMV_BF16>), GEMV_SHARED_BYTES);

    result |= ALLOW_SHARED((gemv_kernel<M, NORM, GEMV_F32>), GEMV_SHARED_BYTES);
    result |= ALLOW_SHARED((gemv_kernel<M, NORM, GEMV_ADD>), GEMV_SHARED_BYTES);
    result |= ALLOW_SHARED((gemv_kernel<M, NORM, GEMV_SWIGLU>), GEMV_SHARED_BYTES);
    return result ? -EIO : 0;
}

int
cuda_gemv_open(struct cuda_device *cuda)
{
    int result = allow<1, false>() | allow<1, true>() | allow<2, false>() | allow<2, true>() |
                 allow<4, false>() | allow<4, true>();

    return result ? -EIO : 0;
}
