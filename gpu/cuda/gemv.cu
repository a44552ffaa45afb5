/* gemv: see gemv.h.
 *
 * The weights are read once and nothing else is large, so what counts is bytes in flight. One block of
 * 8 warps on each multiprocessor; a warp makes one column after the other (SwiGLU: a column of gate, then
 * the same of up). Weights go by asynchronous copies to a ring in shared memory, PIECES of 16 bytes for
 * each lane in a batch and BATCHES batches ahead: 80 KiB in flight on each multiprocessor, where 25 KiB
 * would cover the latency; the rest covers what happens between two kernels. A lane reads only what it has
 * copied itself, so no lane waits for another. Columns are dealt to multiprocessors first, warps second:
 * 4,096 columns are 31 or 32 for each.
 *
 * Weights are written by nobody while a step runs, so the ring is filled before the kernel before this
 * one has ended (dependency_wait), and half of the shared memory is left to the next kernel for the same
 * purpose. The rows, normalised or not, are in shared memory as BF16, as they are for cuda_gemm; behind
 * their end are zeros up to a whole batch. A sum is made per lane in rising order of k, in two parts, then
 * by the tree of warp_sum. */
#include "gpu/cuda/bf16_pair.h"
#include "gpu/cuda/block_sum.h"
#include "gpu/cuda/mma.h"
#include "gpu/cuda/product_end.h"

enum {
    WARPS = 8,
    THREADS = 32 * WARPS,
    PIECES = 4,  /* of 16 bytes: what a lane copies in one batch */
    BATCHES = 5, /* in the ring */
    BATCH_ELEMENTS = PIECES * 32 * 8,
    RING_BYTES = BATCHES * PIECES * THREADS * 16,
};

__device__ static inline void
add_products(float *even, float *odd, uint4 w, uint4 x)
{
    *even += low_bf16(w.x) * low_bf16(x.x);
    *odd += high_bf16(w.x) * high_bf16(x.x);
    *even += low_bf16(w.y) * low_bf16(x.y);
    *odd += high_bf16(w.y) * high_bf16(x.y);
    *even += low_bf16(w.z) * low_bf16(x.z);
    *odd += high_bf16(w.z) * high_bf16(x.z);
    *even += low_bf16(w.w) * low_bf16(x.w);
    *odd += high_bf16(w.w) * high_bf16(x.w);
}

/* The rows to shared memory. */
template <bool NORM>
__device__ static void
stage_rows(const struct gemv &a, __nv_bfloat16 *rows, int padded, float *part)
{
    for (int r = 0; r < a.m; r++) {
        size_t from = (size_t)(a.row ? a.row[r] : r) * (size_t)a.k;
        __nv_bfloat16 *to = rows + (size_t)r * (size_t)padded;

        for (int i = a.k / 8 + (int)threadIdx.x; i < padded / 8; i += THREADS)
            ((uint4 *)to)[i] = make_uint4(0, 0, 0, 0);
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

/* Where a warp's copies are: batch `batch` of column `column`. */
struct position {
    const char *from; /* this lane's first piece of the column's first batch */
    int column, batch;
};

template <bool TWO>
__device__ static inline void
go_to(struct position *p, const struct gemv &a, int column)
{
    /* SwiGLU: even columns are those of gate, odd ones those of up. */
    size_t at = TWO ? (size_t)(column >> 1) + (column & 1 ? (size_t)a.n : 0) : (size_t)column;

    p->from = (const char *)a.w + at * (size_t)a.k * 2 + threadIdx.x % 32 * 16;
    p->column = column;
    p->batch = 0;
}

/* The next column of this warp. */
template <bool TWO>
__device__ static inline int
next_column(int column)
{
    int stride = (int)gridDim.x * WARPS;

    if (TWO)
        return column & 1 ? column - 1 + 2 * stride : column + 1;
    return column + stride;
}

/* Starts the copies of one batch, or of none behind the last column; moves on. */
template <bool TWO>
__device__ static inline void
copy_batch(struct position *p, const struct gemv &a, int columns, int batches, uint4 *slot)
{
    if (p->column < columns) {
        const char *from = p->from + (size_t)p->batch * (BATCH_ELEMENTS * 2);
        int left = a.k * 2 - p->batch * (BATCH_ELEMENTS * 2) - (int)threadIdx.x % 32 * 16;

#pragma unroll
        for (int i = 0; i < PIECES; i++)
            cp_async_16_or_zero(shared_address_of(slot + i * THREADS),
                                i * 512 < left ? from + i * 512 : (const char *)a.w, i * 512 < left);
        if (++p->batch == batches)
            go_to<TWO>(p, a, next_column<TWO>(p->column));
    }
    cp_async_commit();
}

template <int M, bool NORM, int END>
__global__ static void
__launch_bounds__(THREADS, 2) gemv_kernel(const struct gemv a)
{
    enum { TWO = END == GEMV_SWIGLU };
    DYNAMIC_SHARED(uint4, shared);
    __shared__ float part[32];
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    int batches = (a.k + BATCH_ELEMENTS - 1) / BATCH_ELEMENTS, padded = batches * BATCH_ELEMENTS;
    int columns = TWO ? 2 * a.n : a.n;
    int column = warp * (int)gridDim.x + (int)blockIdx.x, slot = 0;
    uint4 *ring = shared + threadIdx.x;
    __nv_bfloat16 *rows = (__nv_bfloat16 *)(shared + RING_BYTES / 16);
    struct position ahead;
    float gate[M];

    if (TWO)
        column *= 2;
    go_to<TWO>(&ahead, a, column);
#pragma unroll
    for (int i = 0; i < BATCHES - 1; i++)
        copy_batch<TWO>(&ahead, a, columns, batches, ring + i * PIECES * THREADS);
    dependency_launch();
    dependency_wait();
    stage_rows<NORM>(a, rows, padded, part);
    for (; column < columns; column = next_column<TWO>(column)) {
        float even[M], odd[M];

#pragma unroll
        for (int r = 0; r < M; r++)
            even[r] = odd[r] = 0;
        for (int batch = 0; batch < batches; batch++) {
            const uint4 *at = ring + slot * PIECES * THREADS;
            const uint4 *x = (const uint4 *)(rows + batch * BATCH_ELEMENTS) + lane;
            uint4 w[PIECES];

            cp_async_wait<BATCHES - 2>();
#pragma unroll
            for (int i = 0; i < PIECES; i++)
                w[i] = at[i * THREADS];
            int last = slot == 0 ? BATCHES - 1 : slot - 1; /* read in the turn before this one */
            copy_batch<TWO>(&ahead, a, columns, batches, ring + last * PIECES * THREADS);
#pragma unroll
            for (int i = 0; i < PIECES; i++)
#pragma unroll
                for (int r = 0; r < M; r++)
                    add_products(&even[r], &odd[r], w[i], x[r * (padded / 8) + i * 32]);
            slot = slot + 1 == BATCHES ? 0 : slot + 1;
        }
#pragma unroll
        for (int r = 0; r < M; r++) {
            float whole = warp_sum(even[r] + odd[r]);

            if (TWO && !(column & 1))
                gate[r] = whole;
            else if (lane == 0 && r < a.m)
                put_product<END, false>(a, r, TWO ? column >> 1 : column, TWO ? gate[r] : whole, whole);
        }
    }
    cp_async_wait<0>();
}

static size_t
shared_bytes(int64_t m, int64_t k)
{
    int64_t padded = (k + BATCH_ELEMENTS - 1) / BATCH_ELEMENTS * BATCH_ELEMENTS;

    return (size_t)(RING_BYTES + m * padded * 2);
}

/* Two blocks on a multiprocessor where it can be, see above. */
static size_t
shared_most(const struct cuda_device *cuda)
{
    return cuda->block_shared_bytes < GEMV_SHARED_BYTES ? cuda->block_shared_bytes
                                                        : (size_t)GEMV_SHARED_BYTES;
}

bool
cuda_gemv_fits(const struct cuda_device *cuda, int64_t m, int64_t k)
{
    return m <= GEMV_MOST_ROWS && k % 8 == 0 && shared_bytes(m, k) <= shared_most(cuda);
}

template <int M, bool NORM, int END>
static int
launch(struct cuda_device *cuda, const struct gemv *a)
{
    int blocks = cuda->sm_count, columns = (a->n + WARPS - 1) / WARPS;
    size_t shared = shared_bytes(M, a->k);

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
    default:
        return a->norm ? launch_end<2, true>(cuda, a) : launch_end<2, false>(cuda, a);
    }
}

template <int M, bool NORM>
static int
allow(size_t bytes)
{
    int result = ALLOW_SHARED((gemv_kernel<M, NORM, GEMV_BF16>), bytes);

    result |= ALLOW_SHARED((gemv_kernel<M, NORM, GEMV_F32>), bytes);
    result |= ALLOW_SHARED((gemv_kernel<M, NORM, GEMV_ADD>), bytes);
    result |= ALLOW_SHARED((gemv_kernel<M, NORM, GEMV_SWIGLU>), bytes);
    return result ? -EIO : 0;
}

int
cuda_gemv_open(struct cuda_device *cuda)
{
    size_t bytes = shared_most(cuda);
    int result = allow<1, false>(bytes) | allow<1, true>(bytes) | allow<2, false>(bytes) | allow<2, true>(bytes);

    LOAD_KERNELS(cuda, (gemv_kernel<1, false, GEMV_BF16>));
    return result ? -EIO : 0;
}
