/* skinny_end: what a block of skinny.cu does with its sums: adds them to those of the other blocks of its cluster, and
 * writes what the product is to leave. Fragments as in mma.h: a warp has 16 columns of the product, a row of 8 a turn. */
#ifndef GPU_CUDA_SKINNY_END_H
#define GPU_CUDA_SKINNY_END_H

#include "gpu/cuda/block_sum.h"
#include "gpu/cuda/cluster.h"
#include "gpu/cuda/product_end.h"
#include "gpu/cuda/skinny.h"

enum {
    WARP_ROWS = 16, /* of w */
    MOST_SPLITS = 4,
    SKEW = 4, /* floats: a warp's stores hit 32 banks */
    HEAD = 128,
    HEAD_WARPS = HEAD / WARP_ROWS,
};

/* Volatile, so that the loads of a batch stay together, and where they are written. */
__device__ static inline float4
load_4(const float *from)
{
    float4 v;

    asm volatile("ld.global.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "l"(from)
                 : "memory");
    return v;
}

/* Where a thread's quads of columns are, of those that its block of a cluster writes: always the same columns, a row
 * further down each time. Threads of summing warps alone. */
struct quads {
    int n, turn; /* of a row of this block; of all its threads, each time */
    int column;
};

__device__ static inline struct quads
quads_of(int tile, int warps, int splits, int rank)
{
    int tile_rows = warps * WARP_ROWS, n = tile_rows / splits / 4;

    return {n, warps * 32, tile * tile_rows + (rank * n + (int)threadIdx.x % n) * 4};
}

/* Quads, or rows of a warp, that a thread ends at most: of 8 NT rows where 2 blocks or more share k. */
template <int NT>
constexpr int ends_of_thread = NT > 1 ? NT / 2 : 1;

/* What GEMV_ADD needs beside the sums. */
template <int NT>
struct stream_part {
    float4 x[ends_of_thread<NT>], bias, norm;
};

template <int NT>
__device__ static inline void
ask_stream(struct stream_part<NT> *s, const struct gemv &a, struct quads q)
{
    const float *from = (const float *)a.out + q.column;

    if (q.column >= a.n)
        return;
    if (a.bias)
        s->bias = load_4(a.bias + q.column);
    if (a.carried)
        s->norm = load_4(a.carried_norm + q.column);
#pragma unroll
    for (int i = 0; i < ends_of_thread<NT>; i++) {
        int at = i * q.turn + (int)threadIdx.x;

        if (at < a.m * q.n)
            s->x[i] = load_4(from + (size_t)(at / q.n) * (size_t)a.ld_out);
    }
}

/* Four columns of the residual stream, x; with `carried` also what the product behind takes: then q.n neighbouring
 * threads, a power of two, have a row of this block's part. */
template <int NT>
__device__ static inline void
add_to_stream(const struct gemv &a, const struct stream_part<NT> &s, struct quads q, int row,
              float4 x, float4 v)
{
    float squares = 0;
    int column = q.column;

    if (column < a.n) {
        if (a.bias)
            v = make_float4(v.x + s.bias.x, v.y + s.bias.y, v.z + s.bias.z, v.w + s.bias.w);
        x = make_float4(x.x + v.x, x.y + v.y, x.z + v.z, x.w + v.w);
        *(float4 *)((float *)a.out + (size_t)row * (size_t)a.ld_out + (size_t)column) = x;
        if (a.carried) {
            *(uint2 *)(a.carried + (size_t)row * (size_t)a.n + (size_t)column) =
                make_uint2(pack_bf16(x.x * s.norm.x, x.y * s.norm.y),
                           pack_bf16(x.z * s.norm.z, x.w * s.norm.w));
            squares = x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
        }
    }
    if (!a.carried)
        return;
    int lane = (int)threadIdx.x % 32;
    unsigned mask = (0xffffffffu >> (32 - q.n)) << (lane & -q.n);
    for (int lanes = q.n / 2; lanes > 0; lanes /= 2)
        squares += __shfl_xor_sync(mask, squares, lanes);
    if (lane % q.n == 0)
        a.squares[row * (int)gridDim.x + (int)blockIdx.x] = squares;
}

__device__ static inline float2
load_2(const float *from)
{
    float2 v;

    asm volatile("ld.global.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "l"(from) : "memory");
    return v;
}

/* The squares of a row, of which each of 4 lanes has every fourth pair. */
struct row_squares {
    float2 v[SKINNY_MOST_SQUARES / 8];
};

__device__ static inline bool
wants_norm(const struct gemv &a)
{
    return a.squares && !a.carried;
}

__device__ static inline void
ask_squares(struct row_squares *s, const struct gemv &a, int row, int lane)
{
    const float *from = a.squares + (row < a.m ? row : 0) * a.n_squares;

#pragma unroll
    for (int i = 0; i < SKINNY_MOST_SQUARES / 8; i++) {
        int at = i * 8 + lane % 4 * 2;
        s->v[i] = load_2(from + (at < a.n_squares ? at : 0));
    }
}

/* A row's factor, to all of its 4 lanes. */
__device__ static inline float
factor_of(const struct row_squares *s, const struct gemv &a, int lane)
{
    float sum = 0;

#pragma unroll
    for (int i = 0; i < SKINNY_MOST_SQUARES / 8; i++)
        sum += i * 8 + lane % 4 * 2 < a.n_squares ? s->v[i].x + s->v[i].y : 0.0f;
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    return rsqrtf(sum / (float)a.k + a.eps);
}

/* Factors of all rows: 1, or those of rows whose norm is still to be taken. Summing warps, each 8 rows at a time;
 * first: what it has asked for of its first 8. */
template <int NT>
__device__ static inline void
put_factors(float *factor, struct row_squares *first, const struct gemv &a, int warp, int warps,
            int lane)
{
    for (int row = warp * 8 + lane / 4; row < NT * 8; row += warps * 8) {
        float f = 1;

        if (wants_norm(a)) {
            if (row >= (warp + 1) * 8)
                ask_squares(first, a, row, lane);
            f = factor_of(first, a, lane);
        }
        if (lane % 4 == 0)
            factor[row] = f;
    }
}

/* What the blocks of the cluster have at this place, added in rising order. */
__device__ static inline float4
sum_of_cluster(shared_address at, int splits)
{
    float4 v[MOST_SPLITS];

#pragma unroll
    for (int s = 0; s < MOST_SPLITS; s++)
        if (s < splits)
            v[s] = load_cluster_16(at, s);
#pragma unroll
    for (int s = 1; s < MOST_SPLITS; s++)
        if (s < splits) {
            v[0].x += v[s].x;
            v[0].y += v[s].y;
            v[0].z += v[s].z;
            v[0].w += v[s].w;
        }
    return v[0];
}

/* A block's sums where the others of the cluster find them: [rows][stride]. All threads. */
template <int NT>
__device__ static inline void
put_sums(float *part, int stride, const float (*sum)[4], int warp, int warps, int lane)
{
    __syncthreads(); /* nobody reads the ring any more, whose place this is */
    if (warp >= warps)
        return;
#pragma unroll
    for (int j = 0; j < NT; j++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            part[(j * 8 + lane % 4 * 2 + e % 2) * stride + warp * WARP_ROWS + lane / 4 +
                 e / 2 * 8] = sum[j][e];
}

/* The sums of all blocks of the cluster, each of which writes a part of the columns. All threads. stream: of GEMV_ADD. */
template <int NT, int END>
__device__ static void
add_up(const struct gemv &a, const float (*sum)[4], float *part, const float *factor,
       const struct stream_part<NT> &stream, struct quads q, int splits, int tile, int warps)
{
    int tile_rows = warps * WARP_ROWS, stride = tile_rows + SKEW, warp = (int)threadIdx.x / 32;

    put_sums<NT>(part, stride, sum, warp, warps, (int)threadIdx.x % 32);
    cluster_barrier();
#pragma unroll
    for (int i = 0; i < ends_of_thread<NT>; i++) {
        int at = i * q.turn + (int)threadIdx.x, row = at / q.n;

        if (warp >= warps || at >= a.m * q.n)
            break;
        const float *sums = part + row * stride + q.column - tile * tile_rows;
        float4 v = sum_of_cluster(shared_address_of(sums), splits);

        if (END == GEMV_ADD) {
            add_to_stream(a, stream, q, row, stream.x[i], v);
            continue;
        }
        float f = factor[row];
        put_product<END, true>(a, row, q.column, v.x * f, 0);
        put_product<END, true>(a, row, q.column + 1, v.y * f, 0);
        put_product<END, true>(a, row, q.column + 2, v.z * f, 0);
        put_product<END, true>(a, row, q.column + 3, v.w * f, 0);
    }
    cluster_barrier(); /* the others may still read what is here */
}

/* Four neighbouring elements of a head of 128, a lane's: bias, norm, rotation. */
__device__ static inline float4
finish_head(const struct qkv_args &a, const struct qkv_head &h, const float *norm, float4 v,
            float4 cosine, float4 sine, int lane)
{
    if (h.bias) {
        float4 bias = *(const float4 *)(h.bias + lane * 4);
        v = make_float4(v.x + bias.x, v.y + bias.y, v.z + bias.z, v.w + bias.w);
    }
    if (h.is_v)
        return v;
    if (norm) {
        float4 weight = *(const float4 *)(norm + lane * 4);
        float squares = warp_sum(v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w);
        float factor = rsqrtf(squares / HEAD + a.eps);

        v = make_float4(v.x * factor * weight.x, v.y * factor * weight.y, v.z * factor * weight.z,
                        v.w * factor * weight.w);
    }
    float sign = lane < 16 ? -1.0f : 1.0f; /* the other half of a pair is 16 lanes away */
    float4 other = make_float4(
        __shfl_xor_sync(0xffffffffu, v.x, 16), __shfl_xor_sync(0xffffffffu, v.y, 16),
        __shfl_xor_sync(0xffffffffu, v.z, 16), __shfl_xor_sync(0xffffffffu, v.w, 16));
    return make_float4(v.x * cosine.x + sign * other.x * sine.x,
                       v.y * cosine.y + sign * other.y * sine.y,
                       v.z * cosine.z + sign * other.z * sine.z,
                       v.w * cosine.w + sign * other.w * sine.w);
}

/* Angles of the rows that a warp finishes: a row of every HEAD_WARPS * splits. */
template <int NT>
struct head_angles {
    float4 cosine[ends_of_thread<NT>], sine[ends_of_thread<NT>];
};

__device__ static inline int
row_of_head(int i, int splits, int rank)
{
    return (i * HEAD_WARPS + (int)threadIdx.x / 32) * splits + rank;
}

template <int NT>
__device__ static inline void
ask_angles(struct head_angles<NT> *h, const struct qkv_args &a, int rows, int splits, int rank)
{
#pragma unroll
    for (int i = 0; i < ends_of_thread<NT>; i++) {
        int row = row_of_head(i, splits, rank);

        if (row < rows) {
            const float *angles = a.angles + row * HEAD + (int)threadIdx.x % 16 * 4;
            h->cosine[i] = load_4(angles);
            h->sine[i] = load_4(angles + HEAD / 2);
        }
    }
}

/* GEMV_QKV: the sums of a head, `tile`. Rows are dealt to the blocks of the cluster and their summing warps. place:
 * where k of head 0 of a row belongs. All threads. */
template <int NT>
__device__ static void
add_up_head(const struct gemv &g, const struct qkv_args &a, const float (*sum)[4], float *part,
            const float *factor, __nv_bfloat16 *const *place, const struct head_angles<NT> &angles,
            int splits, int rank, int head)
{
    enum { STRIDE = HEAD + SKEW };
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    const float *norm = head < a.heads ? a.q_norm : a.k_norm;

    put_sums<NT>(part, STRIDE, sum, warp, HEAD_WARPS, lane);
    cluster_barrier();
#pragma unroll
    for (int i = 0; i < ends_of_thread<NT>; i++) {
        int row = row_of_head(i, splits, rank);

        if (warp >= HEAD_WARPS || row >= g.m)
            break;
        struct qkv_head h = head_of(&a, place[row], row, head);
        float4 v = sum_of_cluster(shared_address_of(part + row * STRIDE + lane * 4), splits);
        float f = factor[row];
        v = finish_head(a, h, norm, make_float4(v.x * f, v.y * f, v.z * f, v.w * f),
                        angles.cosine[i], angles.sine[i], lane);
        if (h.to)
            *(uint2 *)(h.to + lane * 4) = make_uint2(pack_bf16(v.x, v.y), pack_bf16(v.z, v.w));
    }
    cluster_barrier(); /* the others may still read what is here */
}

#endif
