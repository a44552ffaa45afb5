/* skinny: see skinny.h.
 *
 * out = x w^T with w [n, k] read once and x [m, k] small: what counts is bytes of w in flight, and not to read x more
 * often than the L2 gives it. A warpgroup makes 64 rows of w against all rows of x (wgmma, w is the 64-wide side); a
 * block has up to three. Where n is too small to give every multiprocessor a tall block, 2 or 4 blocks, a cluster,
 * share the same rows of w and each takes a part of k; their sums are added through shared memory, in rising order.
 *
 * One thread more brings both, step by step, to a ring that takes nearly all of the shared memory. Weights are written
 * by nobody while a step of the model runs, so those of the first steps are asked for before the kernel before this
 * one has ended (dependency_wait), and x after. */
#include "gpu/cuda/cluster.h"
#include "gpu/cuda/driver.h"
#include "gpu/cuda/skinny.h"
#include "gpu/cuda/skinny_end.h"
#include "gpu/cuda/wgmma.h"

enum {
    STEP = 64, /* elements of a row of w and of x: 128 bytes */
    ROW_BYTES = STEP * 2,
    GROUP_WARPS = 4, /* of a warpgroup */
    MOST_WARPS = 12,
    MOST_STAGES = 16,
    SHARED_BYTES = 208 << 10,
};

struct skinny_args {
    struct gemv g;
    int splits; /* blocks of a cluster */
    int stages;
    CUtensorMap w, x;
    struct qkv_args qkv; /* GEMV_QKV */
};

template <bool TWO>
__device__ static void
copy_w(const struct skinny_args &args, shared_address to, int tile, int step, int tile_rows,
       shared_address counter)
{
    if (TWO)
        copy_box_4d(to, &args.w, step * STEP, 0, 0, tile * tile_rows / 16, counter, LEAVES_FIRST);
    else
        copy_box_2d(to, &args.w, step * STEP, tile * tile_rows, counter, LEAVES_FIRST);
}

/* What a block has before it: steps first .. last - 1 of every tile. */
struct work {
    int tile, tile_stride, first, last, n_steps;
};

/* The thread that brings w and x. */
template <int NT, bool TWO>
__device__ static void
bring(const struct skinny_args &args, struct work work, shared_address ring, shared_address full,
      shared_address empty, int tile_rows)
{
    uint32_t w_bytes = (uint32_t)tile_rows * ROW_BYTES, x_bytes = NT * 8 * ROW_BYTES;
    int early = work.n_steps < args.stages ? work.n_steps : args.stages, stage = 0;
    int steps = work.last - work.first, tile = work.tile, step = work.first;
    uint32_t parity = 1;

    /* A stage is empty at first. */
    for (int i = 0; i < early; i++) {
        counter_arrive_for(full + 8 * i, w_bytes + x_bytes);
        copy_w<TWO>(args, ring + i * (w_bytes + x_bytes), work.tile + i / steps * work.tile_stride,
                    work.first + i % steps, tile_rows, full + 8 * i);
    }
    dependency_wait();
    for (int i = 0; i < work.n_steps; i++) {
        shared_address to = ring + stage * (w_bytes + x_bytes);

        if (i >= early) {
            counter_wait(empty + 8 * stage, parity);
            counter_arrive_for(full + 8 * stage, w_bytes + x_bytes);
            copy_w<TWO>(args, to, tile, step, tile_rows, full + 8 * stage);
        }
        copy_box_2d(to + w_bytes, &args.x, step * STEP, 0, full + 8 * stage, LEAVES_LAST);
        if (++step == work.last) {
            step = work.first;
            tile += work.tile_stride;
        }
        if (++stage == args.stages) {
            stage = 0;
            parity ^= 1;
        }
    }
}

template <int NT, int END>
__global__ static void
__launch_bounds__(((END == GEMV_QKV ? (int)HEAD_WARPS : (int)MOST_WARPS) + 1) * 32)
    skinny_kernel(const __grid_constant__ struct skinny_args args)
{
#if __CUDA_ARCH_FEAT_SM90_ALL
    enum { TWO = END == GEMV_SWIGLU, MAY_NORM = END != GEMV_ADD && END != GEMV_F32 };
    DYNAMIC_SHARED(char, shared);
    __shared__ uint64_t counters[2 * MOST_STAGES];
    __shared__ float factor[NT * 8];
    __shared__ __nv_bfloat16 *place[END == GEMV_QKV ? NT * 8 : 1];
    const struct gemv &a = args.g;
    int lane = (int)threadIdx.x % 32;
    int warp = __shfl_sync(0xffffffffu, (int)threadIdx.x / 32, 0); /* which the compiler sees is one */
    int warps = (int)blockDim.x / 32 - 1, splits = args.splits, tile_rows = warps * WARP_ROWS;
    int rank = (int)blockIdx.x % splits, columns = warps * (TWO ? 8 : 16);
    int tiles = (a.n + columns - 1) / columns, steps = a.k / STEP;
    struct work work = {(int)blockIdx.x / splits, (int)gridDim.x / splits, steps * rank / splits,
                        steps * (rank + 1) / splits, 0};
    shared_address ring = box_aligned(shared_address_of(shared));
    shared_address full = shared_address_of(counters), empty = full + 8 * MOST_STAGES;
    struct quads quads = quads_of(work.tile, warps, splits, rank);
    struct stream_part<NT> stream;
    struct head_angles<NT> angles;
    float sum[NT][4] = {};

    work.n_steps = (work.last - work.first) *
                   ((tiles - work.tile + work.tile_stride - 1) / work.tile_stride);
    if ((int)threadIdx.x == warps * 32) {
        for (int s = 0; s < args.stages; s++) {
            counter_open(full + 8 * s, 1);
            counter_open(empty + 8 * s, warps);
        }
        counters_opened();
    }
    __syncthreads();
    dependency_launch();
    if (warp == warps) {
        if (lane == 0)
            bring<NT, TWO>(args, work, ring, full, empty, tile_rows);
        __syncwarp();
    } else {
        uint32_t stage_bytes = (uint32_t)(tile_rows + NT * 8) * ROW_BYTES, parity = 0;
        uint32_t group = (uint32_t)(warp / GROUP_WARPS * GROUP_WARPS * WARP_ROWS * ROW_BYTES);
        int stage = 0, tile = work.tile;

        /* Of the step's beginning, which is over: see launch.h. */
        if (END == GEMV_QKV && (int)threadIdx.x < a.m)
            place[threadIdx.x] = row_in_cache(&args.qkv.kv, &args.qkv.batch, (int)threadIdx.x);
        if (END == GEMV_QKV)
            ask_angles(&angles, args.qkv, a.m, splits, rank);
        dependency_wait();
        /* Behind the ring's copies a load takes its time: these come while the sums are made. */
        if (END == GEMV_ADD && splits > 1)
            ask_stream(&stream, a, quads);
        struct row_squares squares;
        if (MAY_NORM && wants_norm(a) && warp < NT)
            ask_squares(&squares, a, warp * 8 + lane / 4, lane);
        for (; tile < tiles; tile += work.tile_stride) {
            int before = stage;

            for (int step = work.first; step < work.last; step++) {
                shared_address w = ring + stage * stage_bytes + group;
                shared_address x = ring + stage * stage_bytes + (uint32_t)tile_rows * ROW_BYTES;

                counter_wait(full + 8 * stage, parity);
                wgmma_fence();
#pragma unroll
                for (int q = 0; q < STEP / 16; q++)
                    wgmma_bf16<NT>(sum, wgmma_matrix(w + q * 32), wgmma_matrix(x + q * 32));
                wgmma_commit();
                wgmma_wait<1>();
                if (lane == 0 && step > work.first)
                    counter_arrive(empty + 8 * before);
                before = stage;
                if (++stage == args.stages) {
                    stage = 0;
                    parity ^= 1;
                }
            }
            wgmma_wait<0>();
            if (lane == 0)
                counter_arrive(empty + 8 * before);
            if (MAY_NORM && tile == work.tile)
                put_factors<NT>(factor, &squares, a, warp, warps, lane);
            if (splits > 1)
                break; /* its one tile; add_up waits for the factors */
            if (MAY_NORM && tile == work.tile)
                asm volatile("bar.sync 1, %0;" ::"r"(warps * 32) : "memory");
            int column = (tile * warps + warp) * (TWO ? 8 : 16) + lane / 4;
#pragma unroll
            for (int j = 0; j < NT; j++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    int row = j * 8 + lane % 4 * 2 + e;

                    float f = MAY_NORM ? factor[row] : 1.0f;

                    put_product<END, true>(a, row, column, sum[j][e] * f, sum[j][2 + e] * f);
                    if (!TWO)
                        put_product<END, true>(a, row, column + 8, sum[j][2 + e] * f, 0);
                    sum[j][e] = sum[j][2 + e] = 0;
                }
        }
    }
    if (END == GEMV_QKV)
        add_up_head<NT>(a, args.qkv, sum, (float *)shared, factor, place, angles, splits, rank,
                        work.tile);
    else if (!TWO && END != GEMV_F32 && splits > 1)
        add_up<NT, END>(a, sum, (float *)shared, factor, stream, quads, splits, work.tile, warps);
#endif
}

bool
cuda_skinny_fits(const struct cuda_device *cuda, const struct gemv *a)
{
    return cuda->encode_tensor_map && a->m <= SKINNY_MOST_ROWS && a->n % 8 == 0 &&
           a->k % STEP == 0 && ((uintptr_t)a->x | (uintptr_t)a->w) % 16 == 0 &&
           (a->end != GEMV_ADD ||
            (a->ld_out % 4 == 0 && ((uintptr_t)a->out | (uintptr_t)a->bias) % 16 == 0));
}

/* How a product is cut: what a multiprocessor reads, w and x, x at a fraction of the price as it is in L2. */
struct cut {
    int warps, splits, blocks;
};

static struct cut
choose_cut(const struct cuda_device *cuda, const struct gemv *a)
{
    bool two = a->end == GEMV_SWIGLU, may_split = !two && a->end != GEMV_F32;
    struct cut best = {};
    int64_t best_cost = INT64_MAX;

    for (int splits = 1; splits <= (may_split ? MOST_SPLITS : 1); splits *= 2) {
        int places = splits == 1 ? cuda->sm_count : cuda->clusters[splits / 2 - 1];

        for (int warps = GROUP_WARPS; warps <= MOST_WARPS; warps += GROUP_WARPS) {
            int columns = warps * (two ? 8 : 16), tiles = (a->n + columns - 1) / columns;
            int turns = places > 0 ? (tiles + places - 1) / places : 0;
            int64_t cost = (int64_t)turns * (warps * WARP_ROWS * 5 + a->m * 2) *
                           (a->k / splits + STEP);

            if (turns == 0 || (splits > 1 && (turns > 1 || a->k / splits < 512)))
                continue;
            if (a->end == GEMV_QKV && (splits == 1 || warps != HEAD_WARPS))
                continue;
            if (a->carried && (splits == 1 || warps == MOST_WARPS ||
                               tiles * splits > SKINNY_MOST_SQUARES))
                continue;
            if (cost < best_cost) {
                best = {warps, splits, (turns > 1 ? places : tiles) * splits};
                best_cost = cost;
            }
        }
    }
    return best;
}

int
cuda_skinny_squares(const struct cuda_device *cuda, const struct gemv *a)
{
    return cuda_skinny_fits(cuda, a) ? choose_cut(cuda, a).blocks : 0;
}

/* Boxes of 64 columns and `rows` rows of [total, k]; what is behind the end is 0. SwiGLU: of [2, total, k], 8 rows of
 * the first and 8 of the second in turn. */
static bool
map_rows(const struct cuda_device *cuda, CUtensorMap *ret_map, const void *at, int64_t total,
         int64_t k, int rows, bool two)
{
    cuuint64_t row = (cuuint64_t)k * 2, n = (cuuint64_t)total;
    cuuint64_t plain[2] = {(cuuint64_t)k, n}, plain_stride[1] = {row};
    cuuint64_t turns[4] = {(cuuint64_t)k, 8, 2, n / 8}, turns_stride[3] = {row, n * row, 8 * row};
    cuuint32_t plain_box[2] = {STEP, (cuuint32_t)rows};
    cuuint32_t turns_box[4] = {STEP, 8, 2, (cuuint32_t)rows / 16};

    return two ? cuda_map_boxes(cuda, ret_map, at, 4, turns, turns_stride, turns_box)
               : cuda_map_boxes(cuda, ret_map, at, 2, plain, plain_stride, plain_box);
}

template <int NT, int END>
static int
launch(struct cuda_device *cuda, const struct gemv *a, const struct qkv_args *qkv)
{
    struct cut cut = choose_cut(cuda, a);
    int rows = cut.warps * WARP_ROWS, stage = (rows + NT * 8) * ROW_BYTES;
    int stages = (SHARED_BYTES - BOX_ALIGN_BYTES) / stage;
    struct skinny_args args = {*a, cut.splits, stages < MOST_STAGES ? stages : MOST_STAGES};
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute attribute[2] = {};

    if (qkv)
        args.qkv = *qkv;
    if (!map_rows(cuda, &args.w, a->w, a->n, a->k, rows, a->end == GEMV_SWIGLU) ||
        !map_rows(cuda, &args.x, a->x, a->m, a->k, NT * 8, false))
        return -EIO;
    attribute[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute[0].val.programmaticStreamSerializationAllowed = 1;
    attribute[1].id = cudaLaunchAttributeClusterDimension;
    attribute[1].val.clusterDim.x = (unsigned)cut.splits;
    attribute[1].val.clusterDim.y = attribute[1].val.clusterDim.z = 1;
    config.gridDim = (unsigned)cut.blocks;
    config.blockDim = (unsigned)(cut.warps + 1) * 32;
    config.dynamicSmemBytes = SHARED_BYTES;
    config.stream = cuda->stream;
    config.attrs = attribute;
    config.numAttrs = cut.splits > 1 ? 2 : 1;
    return cuda_launch_status(cudaLaunchKernelEx(&config, skinny_kernel<NT, END>, args));
}

template <int NT>
static int
launch_end(struct cuda_device *cuda, const struct gemv *a, const struct qkv_args *qkv)
{
    switch (a->end) {
    case GEMV_BF16:
        return launch<NT, GEMV_BF16>(cuda, a, qkv);
    case GEMV_F32:
        return launch<NT, GEMV_F32>(cuda, a, qkv);
    case GEMV_ADD:
        return launch<NT, GEMV_ADD>(cuda, a, qkv);
    case GEMV_SWIGLU:
        return launch<NT, GEMV_SWIGLU>(cuda, a, qkv);
    default:
        return launch<NT, GEMV_QKV>(cuda, a, qkv);
    }
}

static int
launch_rows(struct cuda_device *cuda, const struct gemv *a, const struct qkv_args *qkv)
{
    return a->m <= 8    ? launch_end<1>(cuda, a, qkv)
           : a->m <= 16 ? launch_end<2>(cuda, a, qkv)
           : a->m <= 32 ? launch_end<4>(cuda, a, qkv)
                        : launch_end<8>(cuda, a, qkv);
}

int
cuda_skinny(struct cuda_device *cuda, const struct gemv *a)
{
    return launch_rows(cuda, a, NULL);
}

bool
cuda_skinny_qkv_fits(const struct cuda_device *cuda, const struct gemv *a,
                     const struct qkv_args *qkv)
{
    struct gemv g = *a;

    g.end = GEMV_QKV;
    return qkv->kv.head_dim == HEAD && cuda_skinny_fits(cuda, &g) &&
           choose_cut(cuda, &g).blocks > 0;
}

int
cuda_skinny_qkv(struct cuda_device *cuda, const struct gemv *a, const struct qkv_args *qkv)
{
    struct gemv g = *a;

    g.end = GEMV_QKV;
    return launch_rows(cuda, &g, qkv);
}

template <int NT>
static int
allow(void)
{
    int result = ALLOW_SHARED((skinny_kernel<NT, GEMV_BF16>), SHARED_BYTES);

    result |= ALLOW_SHARED((skinny_kernel<NT, GEMV_QKV>), SHARED_BYTES);
    result |= ALLOW_SHARED((skinny_kernel<NT, GEMV_F32>), SHARED_BYTES);
    result |= ALLOW_SHARED((skinny_kernel<NT, GEMV_ADD>), SHARED_BYTES);
    result |= ALLOW_SHARED((skinny_kernel<NT, GEMV_SWIGLU>), SHARED_BYTES);
    return result;
}

/* Clusters of so many blocks that run at the same time. */
static int
count_clusters(int splits, int *ret_count)
{
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute attribute = {};

    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = (unsigned)splits;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    config.gridDim = (unsigned)splits;
    config.blockDim = (MOST_WARPS + 1) * 32;
    config.dynamicSmemBytes = SHARED_BYTES;
    config.attrs = &attribute;
    config.numAttrs = 1;
    return cuda_launch_status(
        cudaOccupancyMaxActiveClusters(ret_count, skinny_kernel<8, GEMV_ADD>, &config));
}

int
cuda_skinny_open(struct cuda_device *cuda)
{
    if (cuda->compute_capability / 10 != 9 || cuda->block_shared_bytes < SHARED_BYTES)
        return 0;
    LOAD_KERNELS(cuda, (skinny_kernel<1, GEMV_BF16>));
    int result = allow<1>() | allow<2>() | allow<4>() | allow<8>();
    for (int i = 0; i < 2 && !result; i++)
        result = count_clusters(2 << i, &cuda->clusters[i]);
    if (!result)
        cuda->encode_tensor_map = cuda_driver_function("cuTensorMapEncodeTiled", 12000);
    return result ? -EIO : 0;
}
