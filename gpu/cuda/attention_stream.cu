/* attention_stream: decode attention of many rows, at the rate the KV cache can be read. Hopper alone.
 *
 * A warp takes a unit, a piece of one row and all query heads of one KV head, and then the unit as many further on as
 * there are warps. It has a ring of its own in shared memory, of groups of 16 keys and their values, that the
 * multiprocessor's copy engine (TMA) fills: what comes next, of whichever unit, is asked for when a group has been
 * taken to registers. So the memory has work from the first unit to the last, and no warp waits for another.
 *
 * Scores are K Q^T and outputs V^T P^T, as in attention_decode.cu; the maximum is a running one. Rows of 128 bytes lie
 * in shared memory with their 16-byte parts changed about (128-byte swizzle), so that ldmatrix meets no bank twice. */
#include "gpu/cuda/attention_decode.h"
#include "gpu/cuda/cluster.h"
#include "gpu/cuda/driver.h"

enum {
    HEAD = STREAM_HEAD,
    MOST_HEADS = 8, /* of a group */
    WARPS = 4,
    SLOTS = 3,                    /* of a warp's ring: more only makes other loads wait longer */
    HALF_BYTES = KEY_GROUP * 128, /* 64 dimensions of a group's keys */
    SIDE_BYTES = 2 * HALF_BYTES,  /* its keys, or its values */
    SLOT_BYTES = 2 * SIDE_BYTES,
    /* More than half of what a multiprocessor has: it gets one block. Those that are free while the kernel before still
     * runs elsewhere would be dealt two, and the others none. */
    SHARED_BYTES = 120 << 10,
};
static_assert((int)BOX_ALIGN_BYTES + (int)WARPS * (int)SLOTS * (int)SLOT_BYTES <= (int)SHARED_BYTES);
static_assert((int)CUDA_SPLIT_TOKENS / (int)KEY_GROUP <=
              32); /* a lane for the page of each group */

struct stream_args {
    struct decode_args a;
    CUtensorMap kv; /* of the layer: [2 halves][rows][64] */
    int kv_heads, n_units;
};

#if __CUDA_ARCH__ >= 900
struct unit_range {
    int first_key, n_keys; /* of the piece */
};

__device__ static inline struct unit_range
range_of(const struct decode_args *a, const struct cuda_piece *piece)
{
    int first = piece->index * a->split;

    return {first, piece->row < 0 ? 0 : min(piece->n_keys - first, a->split)};
}

__device__ static inline struct cuda_piece
piece_of(const struct stream_args &args, int unit)
{
    struct cuda_piece none = {.row = -1};

    return unit < args.n_units ? args.a.pieces[unit / args.kv_heads] : none;
}

/* A lane's page: of the piece's group of that number. */
__device__ static inline int32_t
page_of_lane(const struct stream_args &args, const struct cuda_piece *piece, int lane)
{
    struct unit_range range = range_of(&args.a, piece);

    return lane * KEY_GROUP < range.n_keys
               ? page_of_group(&args.a.keys, piece->pages, range.first_key / KEY_GROUP + lane)
               : 0;
}

/* A unit as the ring is filled with it, and what is known of the two behind: while the ring is full, a load takes as
 * long as all that was asked for before it. */
struct fetch {
    int unit, at, n_groups, first_group;
    int32_t page, next_page;
    struct cuda_piece next, after;
};

__device__ static inline void
fetch_begin(struct fetch *f, const struct stream_args &args, int unit, int stride, int lane)
{
    f->unit = unit - stride;
    f->at = f->n_groups = 0;
    f->next = piece_of(args, unit);
    f->after = piece_of(args, unit + stride);
    f->next_page = page_of_lane(args, &f->next, lane);
}

/* The next group of this warp's units, if there is one, to `to`. */
__device__ static inline void
fetch_next(struct fetch *f, const struct stream_args &args, int stride, int lane, shared_address to,
           shared_address full)
{
    const struct paged_keys *keys = &args.a.keys;

    while (f->at == f->n_groups) {
        if (f->unit + stride >= args.n_units)
            return;
        struct unit_range range = range_of(&args.a, &f->next);
        f->unit += stride;
        f->at = 0;
        f->n_groups = (range.n_keys + KEY_GROUP - 1) / KEY_GROUP;
        f->first_group = range.first_key / KEY_GROUP;
        f->page = f->next_page;
        f->next = f->after;
        f->next_page = page_of_lane(args, &f->next, lane);
        f->after = piece_of(args, f->unit + 2 * stride);
    }
    int32_t page = __shfl_sync(0xffffffffu, f->page, f->at);
    int group = keys->groups_per_page == 1 ? 0 : (f->first_group + f->at) % keys->groups_per_page;
    int row = (page * 2 * args.kv_heads + f->unit % args.kv_heads) * keys->page_tokens +
              group * KEY_GROUP;

    f->at++;
    if (lane == 0) {
        counter_arrive_for(full, SLOT_BYTES);
        copy_box_3d(to, &args.kv, 0, row, 0, full, LEAVES_FIRST);
        copy_box_3d(to + SIDE_BYTES, &args.kv, 0, row + args.kv_heads * keys->page_tokens, 0, full,
                    LEAVES_FIRST);
    }
}

/* Queries as fragments: of a head each. */
struct queries {
    uint32_t part[HEAD / 16][2];
};

__device__ static inline void
ask_queries(struct queries *q, const struct decode_args *a, const struct cuda_piece *piece,
            int kv_head, int lane)
{
    int row = max((int)piece->row, 0), head = kv_head * a->group + min(lane / 4, a->group - 1);
    const __nv_bfloat16 *from = a->q + ((int64_t)row * a->heads + head) * HEAD + lane % 4 * 2;

#pragma unroll
    for (int j = 0; j < HEAD / 16; j++) {
        q->part[j][0] = *(const uint32_t *)(from + j * 16);
        q->part[j][1] = *(const uint32_t *)(from + j * 16 + 8);
    }
}

/* Where 16 bytes of a row are: part 0 .. 7 of a half. */
__device__ static inline shared_address
part_of(shared_address side, int half, int row, int part)
{
    return side + (uint32_t)(half * HALF_BYTES + row * 128 + (part ^ (row & 7)) * 16);
}

/* What has been added up of a unit: numerators as fragments, dimensions by heads; maxima (times the scale, log2) and
 * denominators of heads 2t and 2t + 1, the latter of a lane's own keys. */
struct unit_sums {
    float o[HEAD / 16][4], top[2], sum[2];
};

/* A group of which `valid` keys count. */
__device__ static inline void
add_group(struct unit_sums *u, const struct queries *q, const uint32_t (*k)[4], uint32_t (*v)[4],
          int valid, float scale_log2, int lane)
{
    int g = lane / 4, t = lane % 4;
    float s[2][4] = {}, factor[2];

#pragma unroll
    for (int j = 0; j < HEAD / 16; j++)
        mma_bf16(s[j % 2], k[j], q->part[j][0], q->part[j][1]);
#pragma unroll
    for (int c = 0; c < 4; c++)
        s[0][c] = g + c / 2 * 8 < valid ? (s[0][c] + s[1][c]) * scale_log2 : -INFINITY;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float x = fmaxf(s[0][h], s[0][2 + h]);
#pragma unroll
        for (int lanes = 4; lanes < 32; lanes *= 2)
            x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lanes));
        x = fmaxf(x, u->top[h]);
        factor[h] = fast_exp2(u->top[h] - x);
        u->top[h] = x;
        s[0][h] = fast_exp2(s[0][h] - x);
        s[0][2 + h] = fast_exp2(s[0][2 + h] - x);
        u->sum[h] = u->sum[h] * factor[h] + s[0][h] + s[0][2 + h];
    }
    uint32_t p0 = transpose_8x8(pack_bf16(s[0][0], s[0][1]));
    uint32_t p1 = transpose_8x8(pack_bf16(s[0][2], s[0][3]));
    if (valid < KEY_GROUP) {
        /* What lies behind the last position may be no number. A lane has values 2t, 2t + 1, 2t + 8, 2t + 9. */
        uint32_t keep0 = 2 * t + 1 < valid ? 0xffffffffu : 2 * t < valid ? 0xffffu : 0;
        uint32_t keep1 = 2 * t + 9 < valid ? 0xffffffffu : 2 * t + 8 < valid ? 0xffffu : 0;
#pragma unroll
        for (int j = 0; j < HEAD / 16; j++) {
            v[j][0] &= keep0, v[j][1] &= keep0;
            v[j][2] &= keep1, v[j][3] &= keep1;
        }
    }
#pragma unroll
    for (int j = 0; j < HEAD / 16; j++) {
#pragma unroll
        for (int c = 0; c < 4; c++)
            u->o[j][c] *= factor[c % 2];
        mma_bf16(u->o[j], v[j], p0, p1);
    }
}

/* The only piece of its row. */
__device__ static inline void
write_row(const struct unit_sums *u, const struct decode_args *a, int row, int first_head, int lane)
{
    int g = lane / 4, t = lane % 4;
    __nv_bfloat16 *to = a->out + ((int64_t)row * a->heads + first_head + g) * HEAD + 2 * t;
    float f0 = 1 / u->sum[0], f1 = 1 / u->sum[1];

#pragma unroll
    for (int j = 0; j < HEAD / 16; j++) {
        uint32_t low = transpose_8x8(pack_bf16(u->o[j][0] * f0, u->o[j][1] * f1));
        uint32_t high = transpose_8x8(pack_bf16(u->o[j][2] * f0, u->o[j][3] * f1));
        if (g < a->group) {
            *(uint32_t *)(to + j * 16) = low;
            *(uint32_t *)(to + j * 16 + 8) = high;
        }
    }
}

/* One of several: for attention_merge. */
__device__ static inline void
write_piece(const struct unit_sums *u, const struct decode_args *a, int slot, int first_head,
            int lane)
{
    int g = lane / 4, t = lane % 4;

#pragma unroll
    for (int h = 0; h < 2; h++) {
        size_t at = (size_t)slot * a->heads + first_head + 2 * t + h;

        if (2 * t + h >= a->group)
            continue;
#pragma unroll
        for (int j = 0; j < HEAD / 16; j++) {
            a->values[at * HEAD + j * 16 + g] = u->o[j][h];
            a->values[at * HEAD + j * 16 + 8 + g] = u->o[j][2 + h];
        }
        if (g == 0)
            a->summaries[at] = make_float2(u->top[h], u->sum[h]);
    }
}

#endif

__global__ static void
__launch_bounds__(WARPS * 32) attention_stream(const __grid_constant__ struct stream_args args)
{
#if __CUDA_ARCH__ >= 900
    DYNAMIC_SHARED(char, shared);
    __shared__ uint64_t counters[WARPS][SLOTS];
    const struct decode_args &a = args.a;
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    int first_unit = warp * (int)gridDim.x + (int)blockIdx.x, stride = (int)gridDim.x * WARPS;
    shared_address ring =
        box_aligned(shared_address_of(shared)) + (uint32_t)(warp * SLOTS * SLOT_BYTES);
    shared_address full = shared_address_of(counters[warp]);
    int slot = 0; /* of the ring */
    uint32_t parity = 0;
    struct fetch fetch;
    struct queries q, next_q;

    if (lane < SLOTS) {
        counter_open(full + 8 * lane, 1);
        counters_opened();
    }
    __syncwarp();
    dependency_wait();
    fetch_begin(&fetch, args, first_unit, stride, lane);
    struct cuda_piece piece = fetch.next, next = fetch.after;
    ask_queries(&q, &a, &piece, first_unit % args.kv_heads, lane);
    for (int i = 0; i < SLOTS; i++)
        fetch_next(&fetch, args, stride, lane, ring + i * SLOT_BYTES, full + 8 * i);
    for (int unit = first_unit; unit < args.n_units; unit += stride) {
        int n_keys = range_of(&a, &piece).n_keys, first_head = unit % args.kv_heads * a.group;
        struct unit_sums u = {.top = {-INFINITY, -INFINITY}};

        ask_queries(&next_q, &a, &next, (unit + stride) % args.kv_heads, lane);
        struct cuda_piece after = piece_of(args, unit + 2 * stride);
        for (int valid = n_keys; valid > 0; valid -= KEY_GROUP) {
            shared_address k_side = ring + (uint32_t)(slot * SLOT_BYTES);
            uint32_t k[HEAD / 16][4], v[HEAD / 16][4];

            counter_wait(full + 8 * slot, parity);
#pragma unroll
            for (int j = 0; j < HEAD / 16; j++)
                ldmatrix_x4(k[j], part_of(k_side, j / 4, lane % 16, j % 4 * 2 + lane / 16));
#pragma unroll
            for (int j = 0; j < HEAD / 16; j++)
                ldmatrix_x4_trans(v[j],
                                  part_of(k_side + SIDE_BYTES, j / 4, lane / 16 * 8 + lane % 8,
                                          j % 4 * 2 + lane / 8 % 2));
            __syncwarp();
            fetch_next(&fetch, args, stride, lane, k_side, full + 8 * slot);
            if (++slot == SLOTS) {
                slot = 0;
                parity ^= 1;
            }
            add_group(&u, &q, k, v, valid, a.scale_log2, lane);
        }
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
            for (int lanes = 4; lanes < 32; lanes *= 2)
                u.sum[h] += __shfl_xor_sync(0xffffffffu, u.sum[h], lanes);
        if (n_keys > 0 && piece.n_keys <= a.split)
            write_row(&u, &a, piece.row, first_head, lane);
        else if (n_keys > 0)
            write_piece(&u, &a, unit / args.kv_heads, first_head, lane);
        piece = next;
        next = after;
        q = next_q;
    }
#endif
}

bool
cuda_attention_stream_fits(const struct cuda_device *dev, const struct kv_cache *kv,
                           const struct decode_args *a, const struct model_shape *shape)
{
    return dev->encode_tensor_map && dev->block_shared_bytes >= (size_t)SHARED_BYTES &&
           shape->head_dim == HEAD && a->group <= MOST_HEADS && a->keys.groups_per_page > 0 &&
           (uintptr_t)kv->data % 16 == 0;
}

/* A layer's keys and values as rows of 128 elements: boxes of KEY_GROUP rows, half by half. */
static bool
map_layer(const struct cuda_device *dev, CUtensorMap *ret_map, const struct kv_cache *kv, int layer)
{
    cuuint64_t rows = (cuuint64_t)kv->n_pages * 2 * (cuuint64_t)(kv->kv_heads * kv->page_tokens);
    cuuint64_t sizes[3] = {HEAD / 2, rows, 2}, strides[2] = {HEAD * 2, HEAD};
    cuuint32_t box[3] = {HEAD / 2, KEY_GROUP, 2};

    return cuda_map_boxes(dev, ret_map, (__nv_bfloat16 *)kv->data + cuda_kv_offset(kv, layer, 0, 0, 0),
                          3, sizes, strides, box);
}

int
cuda_attention_stream(struct cuda_device *dev, const struct kv_cache *kv, int layer,
                      const struct decode_args *a, const struct model_shape *shape)
{
    struct stream_args args = {
        .a = *a, .kv_heads = shape->kv_heads, .n_units = dev->n_pieces * shape->kv_heads};
    int blocks = args.n_units < dev->sm_count ? args.n_units : dev->sm_count;

    if (!map_layer(dev, &args.kv, kv, layer))
        return -EIO;
    return LAUNCH(attention_stream, (unsigned)blocks, WARPS * 32, SHARED_BYTES, dev->stream, args);
}

int
cuda_attention_stream_open(struct cuda_device *dev)
{
    if (!dev->encode_tensor_map)
        return 0;
    LOAD_KERNELS(dev, attention_stream);
    return ALLOW_SHARED(attention_stream, SHARED_BYTES);
}
