/* attention_prefill: rows of prefill segments against their paged KV cache, causal, on tensor cores.
 *
 * A block takes a tile of up to 128 rows of one sequence and one query head, and walks the keys from
 * position 0 in blocks of KEYS with a running maximum and denominator: scores and outputs stay in
 * registers. Key blocks start at multiples of KEYS whatever the tile, and a key that a row may not see
 * changes nothing in it, not even its rounding: a row's bits do not depend on how its segment was cut.
 *
 * What limits it is the tensor cores as long as a warp has 32 rows: a fragment of keys from shared
 * memory then serves two products, and shared memory keeps up. Two blocks a multiprocessor, four warps
 * each, so that one's exponentials hide behind the other's products. Rows in shared memory are padded
 * by 16 bytes: ldmatrix meets no bank twice, and every address is one register and an immediate, which a
 * swizzle would not give. Keys and values of the next block are copied while this one is worked on.
 *
 * Keys beyond the last are copies of the last: nothing that was not written for this sequence is
 * multiplied, not even by zero.                                                                      */
#include "gpu/cuda/attention_paged.h"

struct prefill_args {
    __nv_bfloat16 *out;
    const __nv_bfloat16 *q;
    struct paged_keys keys;
    const struct cuda_tile *tiles;
    const struct batch_seq *seq;
    const int32_t *position;
    int heads, group;
    float scale_log2;
};

/* What a block knows of its tile. */
struct prefill_tile {
    const int32_t *pages;
    int first_position; /* of its first row */
    int n_keys;         /* of its last row */
    int64_t head;       /* offset of the KV head within a page */
};

__host__ __device__ constexpr int
prefill_warps(int m_tiles)
{
    return CUDA_TILE_ROWS / (16 * m_tiles);
}

/* Elements between rows in shared memory. */
__host__ __device__ constexpr int
prefill_stride(int dim)
{
    return dim + 8;
}

constexpr size_t
prefill_shared_bytes(int dim, int keys)
{
    return (size_t)(CUDA_TILE_ROWS + 4 * keys) * (size_t)prefill_stride(dim) *
           sizeof(__nv_bfloat16);
}

/* Copies keys and values [block * KEYS, + KEYS) to `to` (KEYS rows of keys, then of values). A warp copies
 * whole groups of 16; with more warps than groups, some copy keys and others values. page: of this
 * warp's groups where one look-up does. */
template <int D, int KEYS, int WARPS> struct prefill_copy {
    static constexpr int GROUPS = KEYS / KEY_GROUP;
    static constexpr int OWN = GROUPS > WARPS ? GROUPS / WARPS : 1;   /* groups of a warp */
    static constexpr int SHARE = WARPS > GROUPS ? WARPS / GROUPS : 1; /* warps of a group */
    static_assert(GROUPS * SHARE == WARPS * OWN);
};

template <int D, int KEYS, int WARPS>
__device__ static inline void
look_up_pages(int32_t *page, const struct paged_keys *keys, const struct prefill_tile *tile,
              int block)
{
    constexpr int GROUPS = prefill_copy<D, KEYS, WARPS>::GROUPS;
    int warp = (int)threadIdx.x / 32, last_group = (tile->n_keys - 1) / KEY_GROUP;

    if (keys->groups_per_page == 0)
        return;
#pragma unroll
    for (int i = 0; i < prefill_copy<D, KEYS, WARPS>::OWN; i++) {
        int group = block * GROUPS + warp % GROUPS + i * WARPS;
        page[i] = page_of_group(keys, tile->pages, min(group, last_group));
    }
}

template <int D, int KEYS, int WARPS>
__device__ static inline void
copy_block(shared_address to, const int32_t *page, const struct paged_keys *keys,
           const struct prefill_tile *tile, int block)
{
    constexpr int GROUPS = prefill_copy<D, KEYS, WARPS>::GROUPS;
    constexpr int SHARE = prefill_copy<D, KEYS, WARPS>::SHARE;
    constexpr int CHUNKS = D / 8, ROW_BYTES = prefill_stride(D) * 2;
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    bool with_keys = SHARE == 1 || warp < GROUPS;
    bool with_values = SHARE == 1 || (warp >= GROUPS && warp < 2 * GROUPS);

#pragma unroll
    for (int i = 0; i < prefill_copy<D, KEYS, WARPS>::OWN; i++) {
        int in_block = warp % GROUPS + i * WARPS, group = block * GROUPS + in_block;
        shared_address own = to + in_block * KEY_GROUP * ROW_BYTES;
        bool whole = keys->groups_per_page > 0 && (group + 1) * KEY_GROUP <= tile->n_keys;
        const __nv_bfloat16 *from =
            whole ? key_of_group(keys, page[i], group, D) + tile->head : NULL;
#pragma unroll
        for (int part = 0; part < 2; part++) {
            if (!(part ? with_values : with_keys))
                continue;
            int64_t offset = part ? keys->v_offset : 0;
            shared_address at = own + part * KEYS * ROW_BYTES;
            if (whole) {
#pragma unroll
                for (int j = 0; j < CHUNKS / 2; j++) {
                    int chunk = lane + 32 * j; /* of the 16 rows, which lie together */
                    cp_async_16(at + chunk / CHUNKS * ROW_BYTES + chunk % CHUNKS * 16,
                                from + offset + chunk * 8);
                }
                continue;
            }
#pragma unroll 1
            for (int chunk = lane; chunk < KEY_GROUP * CHUNKS; chunk += 32) {
                int row = chunk / CHUNKS;
                int position = min(group * KEY_GROUP + row, tile->n_keys - 1);
                cp_async_16(at + row * ROW_BYTES + chunk % CHUNKS * 16,
                            key_at(keys, tile->pages, position, D) + tile->head + offset +
                                chunk % CHUNKS * 8);
            }
        }
    }
}

/* One block of keys for the 16 * M_TILES rows of a warp. q, k, v: this lane's address for ldmatrix.
 * MASK: keys beyond a row's own position are left out: key column j of row i of this lane's first
 * tile is seen if j <= visible + i, columns counted from the lane's first. top and sum belong to rows
 * g and g + 8 of each tile; sum is this lane's share of the denominator. */
template <int D, int M_TILES, int KEYS, bool MASK>
__device__ __forceinline__ void
attend_block(float (*o)[D / 8][4], float (*top)[2], float (*sum)[2], shared_address q,
             shared_address k, shared_address v, int visible, float scale_log2)
{
    constexpr int ROW_BYTES = prefill_stride(D) * 2;
    float s[M_TILES][KEYS / 8][4];

#pragma unroll
    for (int m = 0; m < M_TILES; m++)
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int c = 0; c < 4; c++)
                s[m][n][c] = 0;
#pragma unroll
    for (int d = 0; d < D / 16; d++) {
        uint32_t x[M_TILES][4];
#pragma unroll
        for (int m = 0; m < M_TILES; m++)
            ldmatrix_x4(x[m], q + m * 16 * ROW_BYTES + d * 32);
#pragma unroll
        for (int n = 0; n < KEYS / 16; n++) {
            uint32_t y[4];
            ldmatrix_x4(y, k + n * 16 * ROW_BYTES + d * 32);
#pragma unroll
            for (int m = 0; m < M_TILES; m++) {
                mma_bf16(s[m][2 * n], x[m], y[0], y[1]);
                mma_bf16(s[m][2 * n + 1], x[m], y[2], y[3]);
            }
        }
    }
#pragma unroll
    for (int m = 0; m < M_TILES; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float before = top[m][h], now = before;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    if (MASK && n * 8 + c > visible + m * 16 + h * 8)
                        s[m][n][2 * h + c] = -INFINITY;
                    now = fmaxf(now, s[m][n][2 * h + c]);
                }
            now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 1));
            now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 2));
            float keep = fast_exp2((before - now) * scale_log2), base = now * scale_log2;
            float total = 0;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    float p = fast_exp2(s[m][n][2 * h + c] * scale_log2 - base);
                    s[m][n][2 * h + c] = p;
                    total += p;
                }
            top[m][h] = now;
            sum[m][h] = sum[m][h] * keep + total;
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                o[m][n][2 * h] *= keep;
                o[m][n][2 * h + 1] *= keep;
            }
        }
#pragma unroll
    for (int j = 0; j < KEYS / 16; j++) {
        uint32_t x[M_TILES][4];
#pragma unroll
        for (int m = 0; m < M_TILES; m++) {
            const float *low = s[m][2 * j], *high = s[m][2 * j + 1];
            x[m][0] = pack_bf16(low[0], low[1]);
            x[m][1] = pack_bf16(low[2], low[3]);
            x[m][2] = pack_bf16(high[0], high[1]);
            x[m][3] = pack_bf16(high[2], high[3]);
        }
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            uint32_t y[4];
            ldmatrix_x4_trans(y, v + j * 16 * ROW_BYTES + n * 32);
#pragma unroll
            for (int m = 0; m < M_TILES; m++) {
                mma_bf16(o[m][2 * n], x[m], y[0], y[1]);
                mma_bf16(o[m][2 * n + 1], x[m], y[2], y[3]);
            }
        }
    }
}

/* M_TILES tiles of 16 rows a warp, KEYS keys a block, BLOCKS blocks a multiprocessor. */
template <int D, int M_TILES, int KEYS, int BLOCKS>
__global__ void __launch_bounds__(32 * prefill_warps(M_TILES), BLOCKS)
    attention_prefill(struct prefill_args a)
{
    constexpr int WARPS = prefill_warps(M_TILES), ROWS = 16 * M_TILES; /* of a warp */
    constexpr int STRIDE = prefill_stride(D), ROW_BYTES = 2 * STRIDE, CHUNKS = D / 8;
    DYNAMIC_SHARED(__nv_bfloat16, shared); /* q; then twice: keys, values */
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int head = (int)blockIdx.x;

    dependency_wait();
    struct cuda_tile rows = a.tiles[blockIdx.y];
    if (rows.n_rows <= 0)
        return;
    struct prefill_tile tile = {
        .pages = a.seq[rows.seq].pages,
        .first_position = a.position[rows.first_row],
        .n_keys = 0,
        .head = (int64_t)(head / a.group) * a.keys.head_stride,
    };
    tile.n_keys = tile.first_position + rows.n_rows;
    int n_blocks = (tile.n_keys + KEYS - 1) / KEYS;
    int first = tile.first_position + warp * ROWS; /* position of this warp's first row */
    bool active = warp * ROWS < rows.n_rows;
    int32_t page[prefill_copy<D, KEYS, WARPS>::OWN] = {};
    float o[M_TILES][D / 8][4], top[M_TILES][2], sum[M_TILES][2];

    shared_address q = shared_address_of(shared), keys = q + CUDA_TILE_ROWS * ROW_BYTES;
    look_up_pages<D, KEYS, WARPS>(page, &a.keys, &tile, 0);
#pragma unroll 4
    for (int i = (int)threadIdx.x; i < CUDA_TILE_ROWS * CHUNKS; i += 32 * WARPS) {
        int row = min(i / CHUNKS, rows.n_rows - 1);
        cp_async_16(q + i / CHUNKS * ROW_BYTES + i % CHUNKS * 16,
                    a.q + ((int64_t)(rows.first_row + row) * a.heads + head) * D + i % CHUNKS * 8);
    }
    copy_block<D, KEYS, WARPS>(keys, page, &a.keys, &tile, 0);
    cp_async_commit();
    look_up_pages<D, KEYS, WARPS>(page, &a.keys, &tile, 1);
#pragma unroll
    for (int m = 0; m < M_TILES; m++) {
#pragma unroll
        for (int n = 0; n < D / 8; n++)
#pragma unroll
            for (int c = 0; c < 4; c++)
                o[m][n][c] = 0;
        top[m][0] = top[m][1] = -INFINITY;
        sum[m][0] = sum[m][1] = 0;
    }
    /* ldmatrix: this lane gives row lane % 8 of matrix lane / 8. A: the matrices are rows 0, rows 8,
     * then 8 columns on. B of keys: columns 0, columns 8, then 8 keys on; of values as A. */
    int as_a = (lane % 16) * ROW_BYTES + lane / 16 * 16;
    int as_b = (lane % 8 + lane / 16 * 8) * ROW_BYTES + lane / 8 % 2 * 16;
    q += warp * ROWS * ROW_BYTES + as_a;

    for (int block = 0; block < n_blocks; block++) {
        constexpr int PART = KEYS * ROW_BYTES;
        shared_address k = keys + block % 2 * (2 * PART);
        cp_async_wait<0>();
        __syncthreads(); /* the block is there for all, and all have left the one before it */
        if (block + 1 < n_blocks) {
            copy_block<D, KEYS, WARPS>(keys + (block + 1) % 2 * (2 * PART), page, &a.keys, &tile,
                                       block + 1);
            cp_async_commit();
            look_up_pages<D, KEYS, WARPS>(page, &a.keys, &tile, block + 2);
        }
        int begin = block * KEYS;
        if (active && begin + KEYS - 1 <= first)
            attend_block<D, M_TILES, KEYS, false>(o, top, sum, q, k + as_b, k + PART + as_a, 0,
                                                  a.scale_log2);
        else if (active && begin <= first + ROWS - 1)
            attend_block<D, M_TILES, KEYS, true>(o, top, sum, q, k + as_b, k + PART + as_a,
                                                 first + g - begin - 2 * t, a.scale_log2);
    }
    if (!active)
        return;

    /* Through this warp's rows of q, which nobody else reads, to whole rows. */
    uint32_t *staged = (uint32_t *)(shared + (warp * ROWS + g) * STRIDE) + t;
    __syncwarp();
#pragma unroll
    for (int m = 0; m < M_TILES; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float total = sum[m][h];
            total += __shfl_xor_sync(0xffffffffu, total, 1);
            total += __shfl_xor_sync(0xffffffffu, total, 2);
            float factor = 1 / total;
#pragma unroll
            for (int n = 0; n < D / 8; n++)
                staged[(m * 16 + h * 8) * (STRIDE / 2) + n * 4] =
                    pack_bf16(o[m][n][2 * h] * factor, o[m][n][2 * h + 1] * factor);
        }
    __syncwarp();
    for (int i = lane; i < ROWS * CHUNKS; i += 32) {
        int row = warp * ROWS + i / CHUNKS;
        if (row < rows.n_rows)
            *(uint4 *)(a.out + ((int64_t)(rows.first_row + row) * a.heads + head) * D +
                       i % CHUNKS * 8) = *(const uint4 *)(shared + row * STRIDE + i % CHUNKS * 8);
    }
}

/* Any even head_dim: a block has 8 rows of one head, a warp each. 32 keys at a time go to shared memory;
 * a lane scores one of them, then mixes every 32nd pair of dimensions. */
enum { ANY_ROWS = 8, ANY_KEYS = 32, ANY_PAIRS = CUDA_MAX_HEAD_DIM / 64 };

/* Rows of q are dim floats, rows of keys and values dim / 2 + 1 pairs. */
static size_t
prefill_any_shared_bytes(int dim)
{
    return (size_t)ANY_ROWS * (size_t)dim * sizeof(float) +
           (size_t)2 * ANY_KEYS * (size_t)(dim / 2 + 1) * sizeof(uint32_t);
}

__global__ void __launch_bounds__(32 * ANY_ROWS)
    attention_prefill_any(struct prefill_args a, int dim)
{
    DYNAMIC_SHARED(uint32_t, shared_any);
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, stride = dim / 2 + 1;
    int head = (int)blockIdx.x, first_row = (int)blockIdx.z * ANY_ROWS;
    float *q = (float *)shared_any + warp * dim;
    uint32_t *keys = shared_any + ANY_ROWS * dim, *values = keys + ANY_KEYS * stride;
    float o[ANY_PAIRS][2] = {}, top = -INFINITY, sum = 0;

    dependency_wait();
    struct cuda_tile rows = a.tiles[blockIdx.y];
    if (first_row >= rows.n_rows)
        return;
    const int32_t *pages = a.seq[rows.seq].pages;
    int n_rows = min(rows.n_rows - first_row, (int)ANY_ROWS);
    int first_position = a.position[rows.first_row] + first_row;
    int n_keys = first_position + n_rows, own_keys = first_position + warp + 1;
    int64_t offset = (int64_t)(head / a.group) * a.keys.head_stride;
    int64_t at = ((int64_t)(rows.first_row + first_row + warp) * a.heads + head) * dim;

    for (int d = lane; d < dim && warp < n_rows; d += 32)
        q[d] = __bfloat162float(a.q[at + d]) * a.scale_log2;
    for (int begin = 0; begin < n_keys; begin += ANY_KEYS) {
        __syncthreads();
        for (int i = warp; i < ANY_KEYS && begin + i < n_keys; i += ANY_ROWS) {
            const uint32_t *key =
                (const uint32_t *)(key_at(&a.keys, pages, begin + i, dim) + offset);
            for (int d = lane; d < dim / 2; d += 32) {
                keys[i * stride + d] = key[d];
                values[i * stride + d] = key[a.keys.v_offset / 2 + d];
            }
        }
        __syncthreads();
        int n = min(own_keys - begin, (int)ANY_KEYS);
        if (warp >= n_rows || n <= 0)
            continue;
        float score = -INFINITY;
        if (lane < n) {
            score = 0;
            for (int d = 0; d < dim / 2; d++) {
                uint32_t pair = keys[lane * stride + d];
                score += q[2 * d] * low_bf16(pair) + q[2 * d + 1] * high_bf16(pair);
            }
        }
        float now = fmaxf(top, score);
        for (int lanes = 16; lanes > 0; lanes /= 2)
            now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, lanes));
        float p = fast_exp2(score - now), keep = fast_exp2(top - now);
        top = now;
        sum = sum * keep + p;
#pragma unroll
        for (int j = 0; j < ANY_PAIRS; j++) {
            o[j][0] *= keep;
            o[j][1] *= keep;
        }
        for (int i = 0; i < n; i++) {
            float weight = __shfl_sync(0xffffffffu, p, i);
#pragma unroll
            for (int j = 0; j < ANY_PAIRS; j++)
                if (lane + 32 * j < dim / 2) {
                    uint32_t pair = values[i * stride + lane + 32 * j];
                    o[j][0] += weight * low_bf16(pair);
                    o[j][1] += weight * high_bf16(pair);
                }
        }
    }
    if (warp >= n_rows)
        return;
    for (int lanes = 16; lanes > 0; lanes /= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
#pragma unroll
    for (int j = 0; j < ANY_PAIRS; j++)
        if (lane + 32 * j < dim / 2)
            ((uint32_t *)(a.out + at))[lane + 32 * j] = pack_bf16(o[j][0] / sum, o[j][1] / sum);
}

template <int D, int M_TILES, int KEYS, int BLOCKS>
static int
launch_prefill(const struct prefill_args *a, int n_tiles, cudaStream_t stream)
{
    return LAUNCH((attention_prefill<D, M_TILES, KEYS, BLOCKS>),
                  dim3((unsigned)a->heads, (unsigned)n_tiles), dim3(32 * prefill_warps(M_TILES)),
                  prefill_shared_bytes(D, KEYS), stream, *a);
}

/* Dynamic shared memory of a block, KiB. */
static int
shared_kib(int compute_capability)
{
    switch (compute_capability) {
    case 90:
    case 100:
    case 101:
    case 103:
        return 227;
    case 80:
    case 87:
        return 163;
    }
    return 99;
}

int
cuda_attention_prefill(struct cuda_device *dev, void *out, const void *q, const struct kv_cache *kv,
                       int layer, const struct model_shape *shape, const struct batch *batch)
{
    struct prefill_args a = {
        .out = (__nv_bfloat16 *)out,
        .q = (const __nv_bfloat16 *)q,
        .keys = paged_keys_of(kv, layer),
        .tiles = dev->tiles,
        .seq = batch->seq,
        .position = batch->position,
        .heads = shape->heads,
        .group = shape->heads / shape->kv_heads,
        .scale_log2 = attention_scale_log2(shape->head_dim),
    };
    int shared = shared_kib(dev->compute_capability);

    if (dev->n_tiles == 0)
        return 0;
    switch (shape->head_dim) {
    case 64:
        return launch_prefill<64, 2, 64, 2>(&a, dev->n_tiles, dev->stream);
    case 80:
        return launch_prefill<80, 2, 64, 2>(&a, dev->n_tiles, dev->stream);
    case 96:
        return launch_prefill<96, 2, 64, 2>(&a, dev->n_tiles, dev->stream);
    case 128:
        if (shared == 227)
            return launch_prefill<128, 2, 64, 2>(&a, dev->n_tiles, dev->stream);
        return launch_prefill<128, 2, 32, 2>(&a, dev->n_tiles, dev->stream);
    case 256:
        if (shared == 227)
            return launch_prefill<256, 1, 64, 1>(&a, dev->n_tiles, dev->stream);
        if (shared == 163)
            return launch_prefill<256, 1, 32, 1>(&a, dev->n_tiles, dev->stream);
        break;
    }
    if (shape->head_dim > CUDA_MAX_HEAD_DIM)
        return -EINVAL;
    return LAUNCH(attention_prefill_any,
                  dim3((unsigned)a.heads, (unsigned)dev->n_tiles, CUDA_TILE_ROWS / ANY_ROWS),
                  dim3(32 * ANY_ROWS), prefill_any_shared_bytes(shape->head_dim), dev->stream, a,
                  shape->head_dim);
}

int
cuda_attention(struct device *device, void *out, const void *q, const struct kv_cache *kv,
               int layer, const struct model_shape *shape, const struct batch *batch,
               struct stream *stream)
{
    struct cuda_device *dev = cuda_of(device);
    int result = cuda_attention_decode(dev, out, q, kv, layer, shape, batch);

    (void)stream;
    return result < 0 ? result : cuda_attention_prefill(dev, out, q, kv, layer, shape, batch);
}

#define ALLOW_PREFILL(dim, m_tiles, keys, blocks)                                                  \
    ALLOW_SHARED((attention_prefill<dim, m_tiles, keys, blocks>), prefill_shared_bytes(dim, keys))

int
cuda_attention_prefill_open(struct cuda_device *dev)
{
    int shared = shared_kib(dev->compute_capability);
    int result = ALLOW_PREFILL(64, 2, 64, 2);

    LOAD_KERNELS(dev, attention_prefill_any);
    if (result >= 0)
        result = ALLOW_PREFILL(80, 2, 64, 2);
    if (result >= 0)
        result = ALLOW_PREFILL(96, 2, 64, 2);
    if (result >= 0)
        result = ALLOW_PREFILL(128, 2, 32, 2);
    if (result >= 0 && shared == 227)
        result = ALLOW_PREFILL(128, 2, 64, 2);
    if (result >= 0 && shared >= 163)
        result = ALLOW_PREFILL(256, 1, 32, 1);
    if (result >= 0 && shared == 227)
        result = ALLOW_PREFILL(256, 1, 64, 1);
    if (result >= 0)
        result = ALLOW_SHARED(attention_prefill_any, prefill_any_shared_bytes(CUDA_MAX_HEAD_DIM));
    return result;
}
