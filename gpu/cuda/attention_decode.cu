/* attention_decode: one query row per sequence against its KV cache, as fast as memory gives it. For the rows that
 * attention_stream.cu does not take; and what adds up the pieces that it leaves (attention_merge).
 *
 * A block takes one piece (up to CUDA_SPLIT_TOKENS positions) of one row and all query heads of one KV head,
 * so that a key is read from memory once. Each of its 8 warps holds 2 groups of 16 keys, and nothing is
 * a loop: ask for the keys of both groups; products; ask for the values in the registers that the keys
 * leave; agree on the maximum of the piece; weigh. Half of what a warp has to read is under way at any
 * time, 128 KiB a multiprocessor with two blocks, without shared memory between memory and tensor core.
 *
 * Scores are computed as K Q^T and outputs as V^T P^T: keys and dimensions take the 16-wide side of the
 * product, heads the 8-wide one, which a group of up to 8 heads fills with little waste. The order of
 * dimensions within a product is ours to choose, so it is chosen such that every load is 16 bytes of
 * one row, and 4 or 8 lanes read neighbouring 16 bytes.
 *
 * Pieces write a numerator [head_dim] F32, a maximum and a denominator per head to dev->partial; the
 * block that comes last (a counter per row and KV head, which it sets back) sums them in rising order. A
 * row of one piece is written at once. dev->partial:
 *
 *     counters  [max_sequences, heads] int32, 0 between steps
 *     summaries [pieces, heads] float2: maximum (times the scale, log2), denominator
 *     values    [pieces, heads, head_dim] F32                                                      */
#include "gpu/cuda/attention_decode.h"

enum {
    DECODE_WARPS = 8,
    DECODE_THREADS = 32 * DECODE_WARPS,
    DECODE_GROUPS = (int)CUDA_SPLIT_TOKENS / (int)KEY_GROUP / (int)DECODE_WARPS, /* of a warp */
};
static_assert((int)DECODE_GROUPS * (int)DECODE_WARPS * (int)KEY_GROUP == (int)CUDA_SPLIT_TOKENS);

static size_t
align_256(size_t bytes)
{
    return (bytes + 255) & ~(size_t)255;
}

static size_t
counters_bytes(int max_sequences, int heads)
{
    return align_256((size_t)max_sequences * (size_t)heads * sizeof(int32_t));
}

static size_t
max_pieces(const struct device_limits *limits)
{
    return (size_t)limits->max_sequences +
           (size_t)limits->max_step_pages * (size_t)limits->page_tokens / CUDA_SPLIT_TOKENS_ALONE;
}

size_t
cuda_partial_bytes(const struct model_shape *shape, const struct device_limits *limits)
{
    size_t heads = (size_t)shape->heads, pieces = max_pieces(limits);

    return counters_bytes(limits->max_sequences, shape->heads) +
           align_256(pieces * heads * sizeof(float2)) +
           pieces * heads * (size_t)shape->head_dim * sizeof(float);
}

/* Merges the pieces of a row for heads [first_head, first_head + n_heads); the whole block, after
 * whoever wrote them. `scratch`: DECODE_THREADS * VECTOR floats of shared memory. A thread sums
 * VECTOR dimensions of one head over every n-th piece; then those n sums are added. */
template <int VECTOR>
__device__ static void
merge_pieces(const struct decode_args *a, int row, int first_piece, int n_pieces, int first_head,
             int n_heads, int dim, float *scratch)
{
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    int n_vectors = n_heads * dim / VECTOR;
    int abreast = n_vectors < DECODE_THREADS ? DECODE_THREADS / n_vectors : 1;

    abreast = abreast < n_pieces ? abreast : n_pieces;
    /* The weights of the pieces take the place of their maxima. */
    for (int h = warp; h < n_heads; h += DECODE_WARPS) {
        float2 *summary = a->summaries + (size_t)first_piece * a->heads + first_head + h;
        float top = -INFINITY, sum = 0;
        for (int i = lane; i < n_pieces; i += 32)
            top = fmaxf(top, __ldcg(&summary[(size_t)i * a->heads]).x);
        for (int lanes = 16; lanes > 0; lanes /= 2)
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, lanes));
        for (int i = lane; i < n_pieces; i += 32) {
            float2 s = __ldcg(&summary[(size_t)i * a->heads]);
            sum += fast_exp2(s.x - top) * s.y;
        }
        for (int lanes = 16; lanes > 0; lanes /= 2)
            sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
        for (int i = lane; i < n_pieces; i += 32) {
            float2 *s = &summary[(size_t)i * a->heads];
            __stcg(&s->x, fast_exp2(__ldcg(&s->x) - top) / sum);
        }
    }
    __syncthreads();
    for (int base = 0; base < n_vectors; base += DECODE_THREADS) {
        int vector = base + (abreast > 1 ? (int)threadIdx.x % n_vectors : (int)threadIdx.x);
        int part = abreast > 1 ? (int)threadIdx.x / n_vectors : 0;
        float value[VECTOR] = {};
        if (vector < n_vectors && part < abreast) {
            int h = vector * VECTOR / dim, d = vector * VECTOR % dim;
            size_t at = (size_t)(first_piece + part) * a->heads + first_head + h;
            size_t step = (size_t)abreast * a->heads;
#pragma unroll 8
            for (int i = part; i < n_pieces; i += abreast, at += step) {
                float weight = __ldcg(&a->summaries[at].x);
                const float *from = a->values + at * dim + d;
                if (VECTOR == 4) {
                    float4 x = __ldcg((const float4 *)from);
                    value[0] += weight * x.x, value[1 % VECTOR] += weight * x.y;
                    value[2 % VECTOR] += weight * x.z, value[3 % VECTOR] += weight * x.w;
                } else {
                    value[0] += weight * __ldcg(from);
                }
            }
        }
        if (abreast > 1) {
            for (int j = 0; j < VECTOR; j++)
                scratch[threadIdx.x * VECTOR + j] = value[j];
            __syncthreads();
            if (part == 0)
                for (int p = 1; p < abreast; p++)
                    for (int j = 0; j < VECTOR; j++)
                        value[j] += scratch[(p * n_vectors + vector) * VECTOR + j];
        }
        if (vector < n_vectors && part == 0) {
            __nv_bfloat16 *to =
                a->out + ((int64_t)row * a->heads + first_head) * dim + vector * VECTOR;
            if (VECTOR == 4)
                *(uint2 *)to = make_uint2(pack_bf16(value[0], value[1 % VECTOR]),
                                          pack_bf16(value[2 % VECTOR], value[3 % VECTOR]));
            else
                *to = __float2bfloat16(value[0]);
        }
    }
}

/* A block for a piece and KV head: those of first pieces have work, where there are more. */
__global__ static void
__launch_bounds__(DECODE_THREADS) attention_merge(struct decode_args a)
{
    __shared__ float scratch[DECODE_THREADS * 4];
    struct cuda_piece piece;

    dependency_wait();
    piece = a.pieces[blockIdx.x];
    if (piece.row < 0 || piece.index > 0 || piece.n_keys <= a.split)
        return;
    merge_pieces<4>(&a, piece.row, (int)blockIdx.x, cuda_pieces(piece.n_keys, a.split),
                    (int)blockIdx.y * a.group, a.group, STREAM_HEAD, scratch);
}

int
cuda_attention_merge(struct cuda_device *dev, const struct decode_args *a)
{
    dim3 grid((unsigned)dev->n_pieces, (unsigned)(a->heads / a->group));

    return LAUNCH(attention_merge, grid, DECODE_THREADS, 0, dev->stream, *a);
}

/* Whether this block is the last of the row's pieces for its heads; then it sees what the others wrote.
 * Every thread has written its part. */
__device__ static bool
is_last_piece(int32_t *counter, int n_pieces)
{
    __shared__ int last;

    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(counter, 1) == n_pieces - 1;
        if (last)
            *counter = 0;
    }
    __syncthreads();
    if (!last)
        return false;
    __threadfence();
    return true;
}

/* The keys of a group, 16 rows: lane (g, t) holds rows g and g + 8, of every 32 dimensions the eight
 * from 8 t on. */
template <int D>
__device__ static inline void
load_keys(uint4 (*k)[D / 32], const struct paged_keys *keys, const int32_t *pages, int32_t page,
          int group, int last_key, int64_t head)
{
    int g = (int)threadIdx.x % 32 / 4, t = (int)threadIdx.x % 4;

#pragma unroll
    for (int i = 0; i < 2; i++) {
        int position = min(group * KEY_GROUP + g + 8 * i, last_key);
        const __nv_bfloat16 *row = keys->groups_per_page ? key_of_group(keys, page, group, D) +
                                                               (position - group * KEY_GROUP) * D
                                                         : key_at(keys, pages, position, D);
        row += head + t * 8;
#pragma unroll
        for (int j = 0; j < D / 32; j++)
            k[i][j] = load_once_16(row + j * 32);
    }
}

/* Its values: lane (g, t) holds rows 2t, 2t + 1, 2t + 8, 2t + 9, of every 64 dimensions the eight from
 * 8 g on. */
template <int D>
__device__ static inline void
load_values(uint4 (*v)[D / 64], const struct paged_keys *keys, const int32_t *pages, int32_t page,
            int group, int last_key, int64_t head)
{
    int g = (int)threadIdx.x % 32 / 4, t = (int)threadIdx.x % 4;

#pragma unroll
    for (int i = 0; i < 4; i++) {
        int position = min(group * KEY_GROUP + 2 * t + i % 2 + 8 * (i / 2), last_key);
        const __nv_bfloat16 *row = keys->groups_per_page ? key_of_group(keys, page, group, D) +
                                                               (position - group * KEY_GROUP) * D
                                                         : key_at(keys, pages, position, D);
        row += head + keys->v_offset + g * 8;
#pragma unroll
        for (int j = 0; j < D / 64; j++)
            v[i][j] = load_once_16(row + j * 64);
    }
}

/* Floats of shared memory: the warps' sums, rows of heads 4 floats apart from a multiple of 32. */
template <int D>
__host__ __device__ constexpr static int
decode_head_floats(void)
{
    return D + 4;
}

/* TILES * 8 heads at most. */
template <int D, int TILES>
__global__ void
__launch_bounds__(DECODE_THREADS, D *TILES <= 128 ? 2 : 1) attention_decode(struct decode_args a)
{
    constexpr int STRIDE = decode_head_floats<D>();
    __shared__ float warp_top[DECODE_WARPS][8 * TILES], warp_sum[DECODE_WARPS][8 * TILES];
    DYNAMIC_SHARED(float, sums); /* [warps][n_heads][STRIDE] */
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int slot = (int)blockIdx.x / a.units, unit = (int)blockIdx.x - slot * a.units;
    int kv_head = unit / a.chunks, first_of_group = (unit - kv_head * a.chunks) * 8 * TILES;
    int first_head = kv_head * a.group + first_of_group;
    int n_heads = min(a.group - first_of_group, 8 * TILES);

    dependency_wait();
    struct cuda_piece piece = a.pieces[slot];
    if (piece.row < 0)
        return;
    int first_key = piece.index * a.split, last_key = piece.n_keys - 1;
    int n_groups = min((last_key - first_key) / KEY_GROUP + 1, a.split / KEY_GROUP);
    int n_warps = min(n_groups, (int)DECODE_WARPS); /* that have any */
    int64_t head_offset = (int64_t)kv_head * a.keys.head_stride;
    int group[DECODE_GROUPS];
    int32_t page[DECODE_GROUPS];
    bool active[DECODE_GROUPS];
    uint4 k[DECODE_GROUPS][2][D / 32], v[DECODE_GROUPS][4][D / 64], q[TILES][D / 32];
    float s[DECODE_GROUPS][TILES][4], top[TILES][2], sum[TILES][2];
    uint32_t p[DECODE_GROUPS][TILES][2];
    float o[D / 16][TILES][4];

#pragma unroll
    for (int i = 0; i < DECODE_GROUPS; i++) {
        active[i] = i * DECODE_WARPS + warp < n_groups;
        group[i] = first_key / KEY_GROUP + i * DECODE_WARPS + warp;
        page[i] =
            active[i] && a.keys.groups_per_page ? page_of_group(&a.keys, piece.pages, group[i]) : 0;
    }
    /* Lane (g, t) holds head g, in the same order of dimensions as keys. */
#pragma unroll
    for (int n = 0; n < TILES; n++)
#pragma unroll
        for (int j = 0; j < D / 32; j++) {
            int head = first_head + min(n * 8 + g, n_heads - 1);
            q[n][j] =
                *(const uint4 *)(a.q + ((int64_t)piece.row * a.heads + head) * D + j * 32 + t * 8);
        }
#pragma unroll
    for (int i = 0; i < DECODE_GROUPS; i++)
        if (active[i])
            load_keys<D>(k[i], &a.keys, piece.pages, page[i], group[i], last_key, head_offset);
#pragma unroll
    for (int i = 0; i < DECODE_GROUPS; i++) {
#pragma unroll
        for (int n = 0; n < TILES; n++)
#pragma unroll
            for (int c = 0; c < 4; c++)
                s[i][n][c] = active[i] ? 0 : -INFINITY;
        if (!active[i])
            continue;
#pragma unroll
        for (int j = 0; j < D / 32; j++) {
            uint4 low = k[i][0][j], high = k[i][1][j];
            const uint32_t first[4] = {low.x, high.x, low.y, high.y};
            const uint32_t second[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
            for (int n = 0; n < TILES; n++) {
                mma_bf16(s[i][n], first, q[n][j].x, q[n][j].y);
                mma_bf16(s[i][n], second, q[n][j].z, q[n][j].w);
            }
        }
        load_values<D>(v[i], &a.keys, piece.pages, page[i], group[i], last_key, head_offset);
#pragma unroll
        for (int n = 0; n < TILES; n++)
#pragma unroll
            for (int c = 0; c < 4; c++)
                s[i][n][c] = group[i] * KEY_GROUP + g + c / 2 * 8 <= last_key
                                 ? s[i][n][c] * a.scale_log2
                                 : -INFINITY;
    }

    /* The maximum of the piece: with it there is nothing to rescale. */
#pragma unroll
    for (int n = 0; n < TILES; n++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float x = -INFINITY;
#pragma unroll
            for (int i = 0; i < DECODE_GROUPS; i++)
                x = fmaxf(x, fmaxf(s[i][n][h], s[i][n][2 + h]));
#pragma unroll
            for (int lanes = 4; lanes < 32; lanes *= 2)
                x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lanes));
            if (g == 0)
                warp_top[warp][n * 8 + 2 * t + h] = x;
        }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < TILES; n++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            top[n][h] = warp_top[0][n * 8 + 2 * t + h];
#pragma unroll
            for (int w = 1; w < DECODE_WARPS; w++)
                top[n][h] = fmaxf(top[n][h], warp_top[w][n * 8 + 2 * t + h]);
            sum[n][h] = 0;
        }
#pragma unroll
        for (int i = 0; i < DECODE_GROUPS; i++) {
#pragma unroll
            for (int c = 0; c < 4; c++) {
                s[i][n][c] = fast_exp2(s[i][n][c] - top[n][c % 2]);
                sum[n][c % 2] += s[i][n][c];
            }
            p[i][n][0] = transpose_8x8(pack_bf16(s[i][n][0], s[i][n][1]));
            p[i][n][1] = transpose_8x8(pack_bf16(s[i][n][2], s[i][n][3]));
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
#pragma unroll
            for (int lanes = 4; lanes < 32; lanes *= 2)
                sum[n][h] += __shfl_xor_sync(0xffffffffu, sum[n][h], lanes);
            if (g == 0)
                warp_sum[warp][n * 8 + 2 * t + h] = sum[n][h];
        }
    }

#pragma unroll
    for (int m = 0; m < D / 16; m++)
#pragma unroll
        for (int n = 0; n < TILES; n++)
#pragma unroll
            for (int c = 0; c < 4; c++)
                o[m][n][c] = 0;
#pragma unroll
    for (int i = 0; i < DECODE_GROUPS; i++) {
        if (!active[i])
            continue;
#pragma unroll
        for (int m = 0; m < D / 16; m++) {
            uint32_t x[4], rows[4];
#pragma unroll
            for (int r = 0; r < 4; r++) {
                const uint4 *from = &v[i][r][m / 4];
                rows[r] = m % 4 == 0   ? from->x
                          : m % 4 == 1 ? from->y
                          : m % 4 == 2 ? from->z
                                       : from->w;
            }
            x[0] = low_halves(rows[0], rows[1]);
            x[1] = high_halves(rows[0], rows[1]);
            x[2] = low_halves(rows[2], rows[3]);
            x[3] = high_halves(rows[2], rows[3]);
#pragma unroll
            for (int n = 0; n < TILES; n++)
                mma_bf16(o[m][n], x, p[i][n][0], p[i][n][1]);
        }
    }
    /* Product m has dimensions m / 4 * 64 + 8 g + m % 4 * 2 and the next; heads 2t, 2t + 1. */
    if (active[0]) {
#pragma unroll
        for (int n = 0; n < TILES; n++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                int head = n * 8 + 2 * t + h;
                if (head >= n_heads)
                    continue;
                float *to = sums + (warp * n_heads + head) * STRIDE + 8 * g;
#pragma unroll
                for (int m = 0; m < D / 16; m += 2)
                    *(float4 *)(to + m / 4 * 64 + m % 4 * 2) =
                        make_float4(o[m][n][h], o[m][n][2 + h], o[m + 1][n][h], o[m + 1][n][2 + h]);
            }
    }
    __syncthreads();

    int n_pieces = cuda_pieces(piece.n_keys, a.split);
    for (int e = (int)threadIdx.x; e < n_heads * (D / 4); e += DECODE_THREADS) {
        int head = e / (D / 4), d = e % (D / 4) * 4;
        float4 x = *(const float4 *)(sums + head * STRIDE + d);
        float total = warp_sum[0][head], highest = warp_top[0][head];
        for (int w = 1; w < n_warps; w++) {
            float4 y = *(const float4 *)(sums + (w * n_heads + head) * STRIDE + d);
            x.x += y.x, x.y += y.y, x.z += y.z, x.w += y.w;
            total += warp_sum[w][head];
            highest = fmaxf(highest, warp_top[w][head]);
        }
        if (n_pieces == 1) {
            float factor = 1 / total;
            *(uint2 *)(a.out + ((int64_t)piece.row * a.heads + first_head + head) * D + d) =
                make_uint2(pack_bf16(x.x * factor, x.y * factor),
                           pack_bf16(x.z * factor, x.w * factor));
            continue;
        }
        size_t at = (size_t)slot * a.heads + first_head + head;
        *(float4 *)(a.values + at * D + d) = x;
        if (d == 0)
            a.summaries[at] = make_float2(highest, total);
    }
    if (n_pieces == 1 || !is_last_piece(a.counters + piece.row * a.heads + unit, n_pieces))
        return;
    merge_pieces<4>(&a, piece.row, slot - piece.index, n_pieces, first_head, n_heads, D, sums);
}

/* Any head_dim and group: a block per piece and query head; a warp takes a key at a time, then a thread
 * a dimension. */
__global__ void
__launch_bounds__(DECODE_THREADS) attention_decode_any(struct decode_args a, int dim)
{
    __shared__ float query[CUDA_MAX_HEAD_DIM], weight[CUDA_SPLIT_TOKENS];
    __shared__ float scratch[DECODE_THREADS];
    __shared__ int64_t key_offset[CUDA_SPLIT_TOKENS];
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    int slot = (int)blockIdx.x / a.units, head = (int)blockIdx.x - slot * a.units;

    dependency_wait();
    struct cuda_piece piece = a.pieces[slot];
    if (piece.row < 0)
        return;
    int first_key = piece.index * a.split;
    int n_keys = min(piece.n_keys - first_key, a.split);
    int n_pieces = cuda_pieces(piece.n_keys, a.split);
    const __nv_bfloat16 *base = a.keys.k + (int64_t)(head / a.group) * a.keys.head_stride;
    const __nv_bfloat16 *q = a.q + ((int64_t)piece.row * a.heads + head) * dim;
    float top = -INFINITY, sum = 0;

    for (int d = (int)threadIdx.x; d < dim; d += DECODE_THREADS)
        query[d] = __bfloat162float(q[d]) * a.scale_log2;
    for (int i = (int)threadIdx.x; i < n_keys; i += DECODE_THREADS)
        key_offset[i] = key_at(&a.keys, piece.pages, first_key + i, dim) - a.keys.k;
    __syncthreads();
    for (int i = warp; i < n_keys; i += DECODE_WARPS) {
        const __nv_bfloat16 *key = base + key_offset[i];
        float score = 0;
        for (int d = lane; d < dim; d += 32)
            score += query[d] * __bfloat162float(key[d]);
        for (int lanes = 16; lanes > 0; lanes /= 2)
            score += __shfl_xor_sync(0xffffffffu, score, lanes);
        if (lane == 0)
            weight[i] = score;
    }
    __syncthreads();
    for (int i = lane; i < n_keys; i += 32)
        top = fmaxf(top, weight[i]);
    for (int lanes = 16; lanes > 0; lanes /= 2)
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, lanes));
    __syncthreads(); /* before weights take the place of scores */
    for (int i = (int)threadIdx.x; i < n_keys; i += DECODE_THREADS)
        weight[i] = fast_exp2(weight[i] - top);
    __syncthreads();
    for (int i = lane; i < n_keys; i += 32)
        sum += weight[i];
    for (int lanes = 16; lanes > 0; lanes /= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, lanes);

    size_t at = (size_t)slot * a.heads + head;
    for (int d = (int)threadIdx.x; d < dim; d += DECODE_THREADS) {
        const __nv_bfloat16 *value = base + a.keys.v_offset + d;
        float x = 0;
#pragma unroll 8
        for (int i = 0; i < n_keys; i++)
            x += weight[i] * __bfloat162float(value[key_offset[i]]);
        if (n_pieces == 1)
            a.out[((int64_t)piece.row * a.heads + head) * dim + d] = __float2bfloat16(x / sum);
        else
            a.values[at * dim + d] = x;
    }
    if (n_pieces > 1 && threadIdx.x == 0)
        a.summaries[at] = make_float2(top, sum);
    if (n_pieces == 1 || !is_last_piece(a.counters + piece.row * a.heads + head, n_pieces))
        return;
    merge_pieces<1>(&a, piece.row, slot - piece.index, n_pieces, head, 1, dim, scratch);
}

template <int D, int TILES>
static size_t
decode_shared_bytes(int n_heads)
{
    size_t sums = (size_t)DECODE_WARPS * (size_t)n_heads * decode_head_floats<D>() * sizeof(float);
    size_t scratch = (size_t)DECODE_THREADS * 4 * sizeof(float);

    return sums > scratch ? sums : scratch;
}

template <int D, int TILES>
static int
launch_decode(struct decode_args *a, int kv_heads, int n_pieces, cudaStream_t stream)
{
    int n_heads = a->group < 8 * TILES ? a->group : 8 * TILES;

    a->chunks = (a->group + 8 * TILES - 1) / (8 * TILES);
    a->units = kv_heads * a->chunks;
    return LAUNCH((attention_decode<D, TILES>), dim3((unsigned)n_pieces * (unsigned)a->units),
                  dim3(DECODE_THREADS), (decode_shared_bytes<D, TILES>(n_heads)), stream, *a);
}

int
cuda_attention_decode(struct cuda_device *dev, void *out, const void *q, const struct kv_cache *kv,
                      int layer, const struct model_shape *shape, const struct batch *batch)
{
    size_t pieces = max_pieces(&dev->limits), heads = (size_t)shape->heads;
    char *partial = (char *)dev->partial;
    struct decode_args a = {
        .out = (__nv_bfloat16 *)out,
        .q = (const __nv_bfloat16 *)q,
        .keys = paged_keys_of(kv, layer),
        .pieces = dev->pieces,
        .heads = shape->heads,
        .group = shape->heads / shape->kv_heads,
        .split = dev->split_tokens,
        .scale_log2 = attention_scale_log2(shape->head_dim),
        .counters = (int32_t *)partial,
        .summaries = (float2 *)(partial + counters_bytes(dev->limits.max_sequences, shape->heads)),
    };

    a.values = (float *)((char *)a.summaries + align_256(pieces * heads * sizeof(float2)));
    if (dev->n_pieces == 0)
        return 0;
    if (batch->n_decode > CUDA_STREAM_ROWS && cuda_attention_stream_fits(dev, kv, &a, shape)) {
        int result = cuda_attention_stream(dev, kv, layer, &a, shape);
        return result >= 0 && dev->several_pieces ? cuda_attention_merge(dev, &a) : result;
    }
    switch (shape->head_dim) {
    case 64:
        return a.group <= 8 ? launch_decode<64, 1>(&a, shape->kv_heads, dev->n_pieces, dev->stream)
                            : launch_decode<64, 2>(&a, shape->kv_heads, dev->n_pieces, dev->stream);
    case 128:
        return a.group <= 8
                   ? launch_decode<128, 1>(&a, shape->kv_heads, dev->n_pieces, dev->stream)
                   : launch_decode<128, 2>(&a, shape->kv_heads, dev->n_pieces, dev->stream);
    case 256:
        /* Two tiles would not fit the registers: wider groups are cut and read their keys twice. */
        return launch_decode<256, 1>(&a, shape->kv_heads, dev->n_pieces, dev->stream);
    }
    if (shape->head_dim > CUDA_MAX_HEAD_DIM)
        return -EINVAL;
    a.chunks = a.group;
    a.units = shape->heads;
    return LAUNCH(attention_decode_any, dim3((unsigned)dev->n_pieces * (unsigned)a.units),
                  dim3(DECODE_THREADS), 0, dev->stream, a, shape->head_dim);
}

int
cuda_attention_decode_open(struct cuda_device *dev)
{
    int result = ALLOW_SHARED((attention_decode<64, 1>), (decode_shared_bytes<64, 1>(8)));

    LOAD_KERNELS(dev, attention_decode_any);
    if (result >= 0)
        result = cuda_attention_stream_open(dev);
    if (result >= 0)
        result = ALLOW_SHARED((attention_decode<64, 2>), (decode_shared_bytes<64, 2>(16)));
    if (result >= 0)
        result = ALLOW_SHARED((attention_decode<128, 1>), (decode_shared_bytes<128, 1>(8)));
    if (result >= 0)
        result = ALLOW_SHARED((attention_decode<128, 2>), (decode_shared_bytes<128, 2>(16)));
    if (result >= 0)
        result = ALLOW_SHARED((attention_decode<256, 1>), (decode_shared_bytes<256, 1>(8)));
    return result;
}
