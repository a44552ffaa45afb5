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

/* Four columns of the residual stream; with `carried` also what the product behind takes: then `quads` neighbouring
 * threads, a power of two, have a row of this block's part. */
__device__ static inline void
add_to_stream(const struct gemv &a, int row, int column, float4 v, int quads)
{
    float squares = 0;

    if (column < a.n) {
        float4 *at = (float4 *)((float *)a.out + (size_t)row * (size_t)a.ld_out + (size_t)column);
        float4 x = *at;

        if (a.bias) {
            float4 bias = *(const float4 *)(a.bias + column);
            v = make_float4(v.x + bias.x, v.y + bias.y, v.z + bias.z, v.w + bias.w);
        }
        x = make_float4(x.x + v.x, x.y + v.y, x.z + v.z, x.w + v.w);
        *at = x;
        if (a.carried) {
            float4 norm = *(const float4 *)(a.carried_norm + column);

            *(uint2 *)(a.carried + (size_t)row * (size_t)a.n + (size_t)column) =
                make_uint2(pack_bf16(x.x * norm.x, x.y * norm.y),
                           pack_bf16(x.z * norm.z, x.w * norm.w));
            squares = x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
        }
    }
    if (!a.carried)
        return;
    int lane = (int)threadIdx.x % 32;
    unsigned mask = (0xffffffffu >> (32 - quads)) << (lane & -quads);
    for (int lanes = quads / 2; lanes > 0; lanes /= 2)
        squares += __shfl_xor_sync(mask, squares, lanes);
    if (lane % quads == 0)
        a.squares[row * (int)gridDim.x + (int)blockIdx.x] = squares;
}

/* Volatile, so that the loads of a batch stay together. */
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

/* The sums of all blocks of the cluster, each of which writes a part of the columns. All threads. */
template <int NT, int END>
__device__ static void
add_up(const struct gemv &a, const float (*sum)[4], float *part, const float *factor, int splits,
       int rank, int tile, int warps)
{
    int tile_rows = warps * WARP_ROWS, stride = tile_rows + SKEW;
    int quads = tile_rows / splits / 4;

    put_sums<NT>(part, stride, sum, (int)threadIdx.x / 32, warps, (int)threadIdx.x % 32);
    cluster_barrier();
    for (int i = (int)threadIdx.x; i < a.m * quads; i += (int)blockDim.x) {
        int row = i / quads, column = (rank * quads + i - row * quads) * 4;
        shared_address at = shared_address_of(part + row * stride + column);
        float4 v = sum_of_cluster(at, splits);

        column += tile * tile_rows;
        if (END == GEMV_ADD) {
            add_to_stream(a, row, column, v, quads);
            continue;
        }
        float f = factor[row];
        put_product<END, true>(a, row, column, v.x * f, 0);
        put_product<END, true>(a, row, column + 1, v.y * f, 0);
        put_product<END, true>(a, row, column + 2, v.z * f, 0);
        put_product<END, true>(a, row, column + 3, v.w * f, 0);
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

/* GEMV_QKV: the sums of a head, `tile`. Rows are dealt to the blocks of the cluster and their warps. place: where k of
 * head 0 of a row belongs. All threads. */
template <int NT>
__device__ static void
add_up_head(const struct gemv &g, const struct qkv_args &a, const float (*sum)[4], float *part,
            const float *factor, __nv_bfloat16 *const *place, int splits, int rank, int head)
{
    enum { STRIDE = HEAD + SKEW, ALL_WARPS = HEAD_WARPS + 1, ROWS = NT * 4 / ALL_WARPS + 1 };
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    const float *norm = head < a.heads ? a.q_norm : a.k_norm;
    float4 cosine[ROWS], sine[ROWS];

    put_sums<NT>(part, STRIDE, sum, warp, HEAD_WARPS, lane);
    /* Asked for before the others are waited for. */
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        int row = (i * ALL_WARPS + warp) * splits + rank;

        if (row < g.m) {
            const float *angles = a.angles + row * HEAD + lane % 16 * 4;
            cosine[i] = *(const float4 *)angles;
            sine[i] = *(const float4 *)(angles + HEAD / 2);
        }
    }
    cluster_barrier();
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        int row = (i * ALL_WARPS + warp) * splits + rank;

        if (row >= g.m)
            break;
        struct qkv_head h = head_of(&a, place[row], row, head);
        float4 v = sum_of_cluster(shared_address_of(part + row * STRIDE + lane * 4), splits);
        float f = factor[row];
        v = finish_head(a, h, norm, make_float4(v.x * f, v.y * f, v.z * f, v.w * f), cosine[i],
                        sine[i], lane);
        if (h.to)
            *(uint2 *)(h.to + lane * 4) = make_uint2(pack_bf16(v.x, v.y), pack_bf16(v.z, v.w));
    }
    cluster_barrier(); /* the others may still read what is here */
}

#endif
