/* engram_gather: waiting for a step's N-gram rows, and bringing them to where the layer's projections
 * read them.
 *
 * A bundle or table row is read wherever it is: HBM, or pinned host memory over the bus, at the bus's limit.
 * That takes bytes in flight, some hundred KiB (1 to 2 us at 50 GB/s) for the bus and some MiB for HBM,
 * and requests of whole lines: so a warp takes 2 KiB of a cell, as 16-byte loads of neighbouring lanes, four
 * per lane, all issued before the first result is used. Scales (a few bytes) come as one more request of
 * the warp and are handed round by shuffles.
 *
 * Refused: one thread block per bundle through shared memory (cp.async, TMA): what limits is requests in flight, and
 * registers hold enough of them. */
#include <string.h>

#include "gpu/cuda/cuda_state.h"
#include "gpu/cuda/row_load.h"

enum {
    LANE_UNITS = 4, /* 16-byte loads of a lane at a time */
    PART_UNITS = 32 * LANE_UNITS,
    GATHER_WARPS = 4,
    GATHER_BLOCKS_PER_SM = 8, /* more wait in line */
    COPY_THREADS = 256,
    COPY_CELLS = 1024, /* up to here one block waits and copies */
    COPY_BLOCKS = 64,
};

/* Sleep between two looks: at the flag, which takes about 1 us over the bus by itself; at a word of the device. */
enum { POLL_NS = 100, LOOK_NS = 20 };

/* A wait for a layer's rows. One thread's. */
struct row_wait {
    const uint64_t *flag;
    uint64_t value, rows_from, timeout_ns, start_ns; /* start: of the first look in vain, or 0 */
    int32_t n_rows, status;
};

__device__ static inline struct row_wait
row_wait_of(const struct cuda_block *block, int index)
{
    return {block->engram[index].flag, block->engram[index].value, block->engram[index].rows_from,
            block->timeout_ns, 0, block->n_rows, block->status};
}

/* How many of the first rows are there: more than `have`, or -1 once any wait of the step has run out of time. */
__device__ static int32_t
wait_flag(struct row_wait *wait, struct cuda_block *block, int index, int32_t have)
{
    int32_t rows = wait->status || !wait->flag ? wait->n_rows : 0;

    while (rows <= have) {
        uint64_t word = load_system_acquire(wait->flag);

        if (word >= wait->value)
            rows = wait->n_rows;
        else if (wait->rows_from && word > wait->rows_from)
            rows = (int32_t)(word - wait->rows_from);
        if (rows > have && wait->start_ns == 0)
            break;
        uint64_t now = global_timer_ns();
        wait->start_ns = wait->start_ns ? wait->start_ns : now;
        block->engram[index].waited_ns = now - wait->start_ns;
        if (rows > have)
            break;
        if (now - wait->start_ns >= wait->timeout_ns) {
            block->status = wait->status = -ETIMEDOUT;
            break;
        }
        __nanosleep(POLL_NS);
    }
    return wait->status ? -1 : rows;
}

/* Small steps: one block, no second launch; mixes are fetched beside the addresses, needed or not. The next kernel,
 * gather, has begun and takes the rows as they come: rows_there. */
__global__ static void
wait_copy_kernel(struct cuda_block *block, int index, int orders, struct bundle_address *address,
                 uint64_t *mix)
{
    __shared__ int32_t shared_rows;
    struct row_wait wait;
    int32_t there = 0;

    dependency_wait();
    wait = row_wait_of(block, index);
    const struct bundle_address *from = block->engram[index].address;
    const uint64_t *from_mix = block->engram[index].mix;

    while (there < wait.n_rows) {
        if (threadIdx.x == 0)
            shared_rows = wait_flag(&wait, block, index, there);
        __syncthreads();
        bool ready = shared_rows >= 0;
        int32_t rows = ready ? shared_rows : wait.n_rows;
        int64_t end = (int64_t)rows * orders;

        for (int64_t cell = (int64_t)there * orders + threadIdx.x; cell < end; cell += blockDim.x) {
            uint4 at = make_uint4(0, 0, 0, 0);
            uint64_t mixed = 0;

            if (ready && from_mix)
                mixed = load_system_u64(from_mix + cell);
            if (ready)
                at = load_system_16(from + cell);
            *(uint4 *)(address + cell) = at;
            mix[cell] = mixed;
        }
        __syncthreads();
        if (threadIdx.x == 0)
            store_release(&block->engram[index].rows_there, rows);
        there = rows;
    }
}

__global__ static void
wait_kernel(struct cuda_block *block, int index)
{
    dependency_wait();
    struct row_wait wait = row_wait_of(block, index);

    (void)wait_flag(&wait, block, index, wait.n_rows - 1);
}

__global__ static void
copy_addresses_kernel(const struct cuda_block *block, int index, int orders,
                      struct bundle_address *address, uint64_t *mix)
{
    dependency_wait();
    bool ready = block->status == 0;
    const struct bundle_address *from = block->engram[index].address;
    const uint64_t *from_mix = block->engram[index].mix;
    int64_t n_cells = (int64_t)block->n_rows * orders, step = (int64_t)gridDim.x * blockDim.x;

    for (int64_t cell = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; cell < n_cells;
         cell += step) {
        uint4 at = make_uint4(0, 0, 0, 0);

        if (ready)
            at = load_system_16(from + cell);
        *(uint4 *)(address + cell) = at;
        if (from_mix && at.x == (uint32_t)(uintptr_t)BUNDLE_IN_PLACE && at.y == 0)
            mix[cell] = load_system_u64(from_mix + cell);
    }
}

/* Steps whose addresses are waited for and copied by one block. Gather asks with the padded number of rows: of a step
 * that is small only without its padding it waits for all, which is slower and no less right. */
static bool
is_small(int n_rows, int orders)
{
    return (int64_t)n_rows * orders <= COPY_CELLS;
}

/* How many cells there are is read on the device: a graph captured for one number of rows is replayed for others.
 * The shape of the launch only follows the number at hand; either copies any number. Rows of padding have no
 * address, and gather does not look for one. */
int
cuda_wait_rows(struct device *dev, const struct forward_step *step, int index,
               struct stream *stream)
{
    struct cuda_device *cuda = cuda_of(dev);
    int orders = cuda->shape.engram.max_order - 1;
    struct bundle_address *address = cuda_step_addresses(cuda, index);
    uint64_t *mix = cuda_step_mixes(cuda, index);
    int64_t n_cells = (int64_t)step->batch.n_rows * orders;

    if (is_small(step->batch.n_rows, orders)) {
        int threads = n_cells <= 64 ? 64 : n_cells <= 256 ? 256 : 512;
        return LAUNCH(wait_copy_kernel, dim3(1), dim3(threads), 0, cuda->stream, cuda->block, index,
                      orders, address, mix);
    }
    int64_t blocks = (n_cells + COPY_THREADS - 1) / COPY_THREADS;
    blocks = blocks < COPY_BLOCKS ? blocks : COPY_BLOCKS;
    int result = LAUNCH(wait_kernel, dim3(1), dim3(32), 0, cuda->stream, cuda->block, index);
    if (result >= 0)
        result = LAUNCH(copy_addresses_kernel, dim3((unsigned)blocks), dim3(COPY_THREADS), 0,
                        cuda->stream, (const struct cuda_block *)cuda->block, index, orders,
                        address, mix);
    return result;
}

/* One column's share of the table. inverse: (2^64 - 1) / prime. */
struct gather_column {
    uint64_t prime, inverse, row_base;
};

struct gather_args {
    __nv_bfloat16 *out;
    const struct bundle_address *address;
    const uint64_t *mix;
    const uint8_t *weights, *scales;
    const int32_t *row_seq;
    const struct batch_seq *seq;
    const int32_t *rows_there; /* of wait_copy_kernel, which may still run; NULL: no such kernel before this one */
    uint32_t n_cells, parts; /* parts of PART_UNITS a cell is cut into */
    int32_t orders, heads, head_dim, row_bytes, scale_bytes;
    uint32_t n_units, row_units,
        row_magic;                     /* 16-byte units of a bundle, of a row; 2^32 / row_units */
    uint32_t group_units, group_magic; /* units that share a scale */
    struct gather_column column[SHAPE_MAX_ORDERS][SHAPE_MAX_HEADS_PER_NGRAM];
};

/* n / d for a d whose magic is ceil(2^32 / d); n * d < 2^32. */
__device__ static inline uint32_t
divide(uint32_t n, uint32_t d, uint32_t magic)
{
    return d == 1 ? n : __umulhi(n, magic);
}

/* Table row of a column for a mix: the quotient is at most one too small. */
__device__ static inline uint64_t
table_row(const struct gather_column *column, uint64_t mix)
{
    uint64_t quotient = __umul64hi(mix, column->inverse);
    uint64_t rest = mix - quotient * column->prime;

    return column->row_base + (rest >= column->prime ? rest - column->prime : rest);
}

/* A cell as its warp sees it. */
struct gather_cell {
    const uint8_t *source; /* of a bundle */
    uint8_t *promote;      /* or NULL */
    uint64_t row;          /* in place: table row of head `lane` */
    bool in_place;
};

/* One element as a float, from any address. */
template <int ELEMENT_BYTES>
__device__ static float
load_element(const uint8_t *from)
{
    if (ELEMENT_BYTES == 1)
        return e4m3x2_to_float2(from[0]).x;
    if (ELEMENT_BYTES == 2)
        return __uint_as_float((uint32_t)from[0] << 16 | (uint32_t)from[1] << 24);
    return __uint_as_float((uint32_t)from[0] | (uint32_t)from[1] << 8 | (uint32_t)from[2] << 16 |
                           (uint32_t)from[3] << 24);
}

/* Any shape and alignment, element by element. All lanes of the warp. */
template <int ELEMENT_BYTES>
__device__ __noinline__ static void
gather_elements(const struct gather_args &a, __nv_bfloat16 *out, struct gather_cell cell)
{
    int lane = threadIdx.x % 32, width = a.heads * a.head_dim, scales = a.heads * a.scale_bytes;
    size_t weight_bytes = (size_t)a.heads * (size_t)a.row_bytes;

    for (int base = 0; base < width; base += 32) {
        int element = base + lane < width ? base + lane : width - 1;
        int head = element / a.head_dim, d = element - head * a.head_dim;
        uint64_t row = __shfl_sync(0xffffffffu, cell.row, head);
        size_t offset = (size_t)d * ELEMENT_BYTES;
        const uint8_t *from = cell.in_place
                                  ? a.weights + row * (uint64_t)a.row_bytes + offset
                                  : cell.source + (size_t)head * (size_t)a.row_bytes + offset;
        float value = load_element<ELEMENT_BYTES>(from);

        if (a.scale_bytes) {
            int group = d / (a.head_dim / a.scale_bytes);
            const uint8_t *scale = cell.in_place
                                       ? a.scales + row * (uint64_t)a.scale_bytes + group
                                       : cell.source + weight_bytes + head * a.scale_bytes + group;
            value *= e8m0_to_float(*scale);
        }
        if (base + lane >= width)
            continue;
        out[element] = __float2bfloat16(value);
        for (int i = 0; cell.promote && i < ELEMENT_BYTES; i++)
            cell.promote[(size_t)element * ELEMENT_BYTES + i] = from[i];
    }
    for (int base = 0; cell.promote && base < scales; base += 32) {
        int byte = base + lane < scales ? base + lane : scales - 1;
        int head = byte / a.scale_bytes, group = byte - head * a.scale_bytes;
        uint64_t row = __shfl_sync(0xffffffffu, cell.row, head);
        const uint8_t *from = cell.in_place ? a.scales + row * (uint64_t)a.scale_bytes + group
                                            : cell.source + weight_bytes + byte;

        cell.promote[weight_bytes + byte] = *from;
    }
}

/* 16 bytes at a multiple of 8. Through L1, which the second half of the line then hits. */
__device__ static inline uint4
load_halves(const uint8_t *from)
{
    uint2 low = *(const uint2 *)from, high = *(const uint2 *)(from + 8);

    return make_uint4(low.x, low.y, high.x, high.y);
}

__device__ static inline void
store_unit(uint8_t *to, uint4 v, bool whole)
{
    if (whole) {
        *(uint4 *)to = v;
        return;
    }
    *(uint2 *)to = make_uint2(v.x, v.y);
    *(uint2 *)(to + 8) = make_uint2(v.z, v.w);
}

/* Scale bytes first .. first + 3 of a bundle, those below `end`, as one word. All lanes of the warp. */
__device__ static uint32_t
load_scale_word(const struct gather_args &a, const struct gather_cell &cell, uint32_t first,
                uint32_t end)
{
    uint32_t per_row = (uint32_t)a.scale_bytes, word = 0;

    if (!cell.in_place) {
        /* May reach 3 bytes past the bundle, inside the aligned word its last byte is in. */
        const uint8_t *scales = cell.source + (size_t)a.heads * (size_t)a.row_bytes;
        return first < end ? *(const uint32_t *)(scales + first) : 0;
    }
    if (per_row % 4 == 0 && (uintptr_t)a.scales % 4 == 0) {
        uint32_t head = first < end ? first / per_row : 0;
        uint64_t row = __shfl_sync(0xffffffffu, cell.row, (int)head);
        const uint8_t *from = a.scales + row * per_row + (first - head * per_row);
        return first < end ? *(const uint32_t *)from : 0;
    }
    for (uint32_t i = 0; i < 4; i++) {
        uint32_t byte = first + i < end ? first + i : 0, head = byte / per_row;
        uint64_t row = __shfl_sync(0xffffffffu, cell.row, (int)head);
        const uint8_t *from = a.scales + row * per_row + (byte - head * per_row);
        if (first + i < end)
            word |= (uint32_t)*from << 8 * i;
    }
    return word;
}

__device__ static inline void
store_scale_word(uint8_t *to, uint32_t word, uint32_t n_bytes)
{
    if (n_bytes >= 4)
        *(uint32_t *)to = word;
    else
        for (uint32_t i = 0; i < n_bytes; i++)
            to[i] = (uint8_t)(word >> 8 * i);
}

/* One unit to BF16: 16, 8 or 4 elements. */
template <int ELEMENT_BYTES, bool SCALED>
__device__ static inline void
store_values(__nv_bfloat16 *out, uint4 v, float scale)
{
    if (ELEMENT_BYTES == 1) {
        uint32_t in[4] = {v.x, v.y, v.z, v.w}, bits[8];

#pragma unroll
        for (int i = 0; i < 8; i++) {
            float2 two = e4m3x2_to_float2(in[i / 2] >> 16 * (i % 2) & 0xffff);
            bits[i] = SCALED ? pack_bf16(two.x * scale, two.y * scale) : pack_bf16(two.x, two.y);
        }
        ((uint4 *)out)[0] = make_uint4(bits[0], bits[1], bits[2], bits[3]);
        ((uint4 *)out)[1] = make_uint4(bits[4], bits[5], bits[6], bits[7]);
    } else if (ELEMENT_BYTES == 2) {
        if (SCALED) {
            v.x = pack_bf16(low_bf16(v.x) * scale, high_bf16(v.x) * scale);
            v.y = pack_bf16(low_bf16(v.y) * scale, high_bf16(v.y) * scale);
            v.z = pack_bf16(low_bf16(v.z) * scale, high_bf16(v.z) * scale);
            v.w = pack_bf16(low_bf16(v.w) * scale, high_bf16(v.w) * scale);
        }
        *(uint4 *)out = v;
    } else {
        float by = SCALED ? scale : 1.0f;
        *(uint2 *)out = make_uint2(pack_bf16(__uint_as_float(v.x) * by, __uint_as_float(v.y) * by),
                                   pack_bf16(__uint_as_float(v.z) * by, __uint_as_float(v.w) * by));
    }
}

__device__ static inline void
store_zeros(__nv_bfloat16 *out, int n_bytes)
{
    uint4 zero = make_uint4(0, 0, 0, 0);

    if (n_bytes == 8)
        *(uint2 *)out = make_uint2(0, 0);
    else
        *(uint4 *)out = zero;
    if (n_bytes == 32)
        ((uint4 *)out)[1] = zero;
}

/* Until the kernel before has this row's addresses here, which it has in the end, whatever happens. Whole warps; what
 * follows gather may start once all of its blocks are so far. */
__device__ static inline void
await_row(const int32_t *rows_there, uint32_t row)
{
    if (threadIdx.x % 32 == 0)
        while (load_acquire(rows_there) <= (int32_t)row)
            __nanosleep(LOOK_NS);
    __syncwarp();
    dependency_launch();
}

/* What a warp finds out about its cell; false: zeros. */
__device__ static inline bool
look_up(const struct gather_args &a, uint32_t cell, struct gather_cell *ret_cell)
{
    uint32_t row = cell / (uint32_t)a.orders, order = cell - row * (uint32_t)a.orders;
    uint32_t lane = threadIdx.x % 32;
    int32_t seq = a.row_seq[row];

    if (a.rows_there && seq >= 0)
        await_row(a.rows_there, row);
    /* All at once: what is there is not looked at unless the row's sequence says so. */
    struct bundle_address at = a.address[cell];
    uint64_t mix = a.mix ? a.mix[cell] : 0;

    if (seq < 0 || a.seq[seq].engram_off || !at.source)
        return false;
    ret_cell->source = (const uint8_t *)at.source;
    ret_cell->promote = (uint8_t *)at.promote;
    ret_cell->in_place = at.source == BUNDLE_IN_PLACE;
    ret_cell->row = 0;
    if (ret_cell->in_place && lane < (uint32_t)a.heads)
        ret_cell->row = table_row(&a.column[order][lane], mix);
    return true;
}

/* Beside wait_copy_kernel gather begins with what the kernels before that one have left: it was let in when those had
 * ended (launch.h). */
__device__ static inline void
begin_gather(const struct gather_args &a)
{
    if (!a.rows_there)
        dependency_wait();
}

/* Who waits for gather waits for wait_copy_kernel too. */
__device__ static inline void
end_gather(const struct gather_args &a)
{
    if (a.rows_there)
        dependency_wait();
}

/* Rows of whole 16-byte units, and groups of whole units. */
template <int ELEMENT_BYTES, bool SCALED>
__global__ static void
__launch_bounds__(GATHER_WARPS * 32, GATHER_BLOCKS_PER_SM)
    gather_kernel(const __grid_constant__ struct gather_args a)
{
    enum { UNIT_ELEMENTS = 16 / ELEMENT_BYTES };
    uint32_t lane = threadIdx.x % 32, n_warps = gridDim.x * (blockDim.x / 32);
    uint32_t n_items = a.n_cells * a.parts;
    size_t width = (size_t)a.heads * (size_t)a.head_dim;
    size_t weight_bytes = (size_t)a.n_units * 16;

    begin_gather(a);
    for (uint32_t item = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32; item < n_items;
         item += n_warps) {
        uint32_t n_cell = a.parts == 1 ? item : item / a.parts;
        uint32_t first = (item - n_cell * a.parts) * PART_UNITS;
        __nv_bfloat16 *out = a.out + (size_t)n_cell * width;
        struct gather_cell cell;

        if (!look_up(a, n_cell, &cell)) {
#pragma unroll
            for (int i = 0; i < LANE_UNITS; i++) {
                uint32_t unit = first + lane + 32 * i;
                if (unit < a.n_units)
                    store_zeros(out + (size_t)unit * UNIT_ELEMENTS, 2 * UNIT_ELEMENTS);
            }
            continue;
        }
        uintptr_t base = cell.in_place ? (uintptr_t)a.weights : (uintptr_t)cell.source;
        if (base % 8 || (uintptr_t)cell.promote % 8) {
            if (first == 0)
                gather_elements<ELEMENT_BYTES>(a, out, cell);
            continue;
        }

        uint32_t scale_first = 0, scale_end = 0, scale_word = 0;
        if (SCALED) {
            uint32_t last = first + PART_UNITS < a.n_units ? first + PART_UNITS : a.n_units;
            uint32_t n_scales = (uint32_t)(a.heads * a.scale_bytes);

            scale_first = divide(first, a.group_units, a.group_magic) & ~3u;
            scale_end = divide(last - 1, a.group_units, a.group_magic) + 1;
            scale_end = (scale_end + 3) & ~3u;
            scale_end = scale_end < n_scales ? scale_end : n_scales;
            scale_word = load_scale_word(a, cell, scale_first + 4 * lane, scale_end);
        }

        uint4 v[LANE_UNITS];
        if (cell.in_place) {
#pragma unroll
            for (int i = 0; i < LANE_UNITS; i++) {
                uint32_t unit = first + lane + 32 * i;
                uint32_t in = unit < a.n_units ? unit : 0;
                uint32_t head = divide(in, a.row_units, a.row_magic);
                uint64_t row = __shfl_sync(0xffffffffu, cell.row, (int)head);
                const uint8_t *from =
                    a.weights + row * (uint64_t)a.row_bytes + (in - head * a.row_units) * 16;
                if (unit < a.n_units)
                    v[i] = base % 16 == 0 ? load_rows(from) : load_halves(from);
            }
        } else if (base % 16 == 0) {
#pragma unroll
            for (int i = 0; i < LANE_UNITS; i++) {
                uint32_t unit = first + lane + 32 * i;
                if (unit < a.n_units)
                    v[i] = load_rows(cell.source + (size_t)unit * 16);
            }
        } else {
#pragma unroll
            for (int i = 0; i < LANE_UNITS; i++) {
                uint32_t unit = first + lane + 32 * i;
                if (unit < a.n_units)
                    v[i] = load_halves(cell.source + (size_t)unit * 16);
            }
        }

        if (SCALED && cell.promote && scale_first + 4 * lane < scale_end)
            store_scale_word(cell.promote + weight_bytes + scale_first + 4 * lane, scale_word,
                             scale_end - scale_first - 4 * lane);
        bool whole = (uintptr_t)cell.promote % 16 == 0;
#pragma unroll
        for (int i = 0; i < LANE_UNITS; i++) {
            uint32_t unit = first + lane + 32 * i;
            float scale = 1.0f;

            if (SCALED) {
                uint32_t in = unit < a.n_units ? unit : a.n_units - 1;
                uint32_t byte = divide(in, a.group_units, a.group_magic) - scale_first;
                uint32_t word = __shfl_sync(0xffffffffu, scale_word, (int)(byte / 4));
                scale = e8m0_to_float(word >> 8 * (byte % 4) & 0xff);
            }
            if (unit >= a.n_units)
                continue;
            if (cell.promote)
                store_unit(cell.promote + (size_t)unit * 16, v[i], whole);
            store_values<ELEMENT_BYTES, SCALED>(out + (size_t)unit * UNIT_ELEMENTS, v[i], scale);
        }
    }
    end_gather(a);
}

/* Any shape: a warp per cell. */
template <int ELEMENT_BYTES>
__global__ static void
__launch_bounds__(GATHER_WARPS * 32) gather_any_kernel(const __grid_constant__ struct gather_args a)
{
    uint32_t lane = threadIdx.x % 32, n_warps = gridDim.x * (blockDim.x / 32);
    int width = a.heads * a.head_dim;

    begin_gather(a);
    for (uint32_t n_cell = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32; n_cell < a.n_cells;
         n_cell += n_warps) {
        __nv_bfloat16 *out = a.out + (size_t)n_cell * (size_t)width;
        struct gather_cell cell;

        if (look_up(a, n_cell, &cell))
            gather_elements<ELEMENT_BYTES>(a, out, cell);
        else
            for (int d = (int)lane; d < width; d += 32)
                out[d] = __float2bfloat16(0.0f);
    }
    end_gather(a);
}

static uint32_t
magic_of(uint32_t d)
{
    return d > 1 ? (uint32_t)((((uint64_t)1 << 32) + d - 1) / d) : 0;
}

/* Whether rows and groups are whole units, and small enough for the divisions. */
static bool
in_units(const struct engram_shape *e, int element_bytes)
{
    uint64_t row_bytes = (uint64_t)e->head_dim * (uint64_t)element_bytes;
    uint64_t n_units = (uint64_t)e->heads * (row_bytes / 16);
    int unit_elements = 16 / element_bytes;

    return row_bytes % 16 == 0 && (e->scale_group == 0 || e->scale_group % unit_elements == 0) &&
           n_units + PART_UNITS < 1 << 16 && row_bytes / 16 < 1 << 15;
}

typedef void gather_function(const struct gather_args);

static gather_function *const any_kernel[3] = {gather_any_kernel<1>, gather_any_kernel<2>,
                                               gather_any_kernel<4>};
static gather_function *const unit_kernel[3][2] = {
    {gather_kernel<1, false>, gather_kernel<1, true>},
    {gather_kernel<2, false>, gather_kernel<2, true>},
    {gather_kernel<4, false>, gather_kernel<4, true>},
};

int
cuda_engram_gather_open(struct cuda_device *cuda)
{
    int result = load_kernel(wait_copy_kernel);

    if (result >= 0)
        result = load_kernel(wait_kernel);
    if (result >= 0)
        result = load_kernel(copy_addresses_kernel);
    for (int i = 0; i < 3 && result >= 0; i++) {
        result = load_kernel(any_kernel[i]);
        for (int k = 0; k < 2 && result >= 0; k++)
            result = load_kernel(unit_kernel[i][k]);
    }
    return result;
}

int
cuda_engram_gather(struct device *dev, void *out, const struct bundle_source *source, int index,
                   const struct engram_shape *e, const struct batch *batch, struct stream *stream)
{
    struct cuda_device *cuda = cuda_of(dev);
    const struct engram_table_shape *table = &e->table[index];
    int element_bytes = e->table_dtype == DTYPE_F8_E4M3 ? 1 : e->table_dtype == DTYPE_BF16 ? 2 : 4;
    uint32_t row_bytes = (uint32_t)(e->head_dim * element_bytes);
    uint32_t group_units = e->scale_group ? (uint32_t)(e->scale_group * element_bytes) / 16 : 1;
    struct gather_args a = {
        .out = (__nv_bfloat16 *)out,
        .address = source->address,
        .mix = source->mix,
        .weights = (const uint8_t *)source->weights,
        .scales = (const uint8_t *)source->scales,
        .row_seq = batch->row_seq,
        .seq = batch->seq,
        .rows_there = is_small(batch->n_rows, e->max_order - 1)
                          ? &cuda->block->engram[index].rows_there
                          : NULL,
        .n_cells = (uint32_t)batch->n_rows * (uint32_t)(e->max_order - 1),
        .parts = 1,
        .orders = e->max_order - 1,
        .heads = e->heads,
        .head_dim = e->head_dim,
        .row_bytes = (int32_t)row_bytes,
        .scale_bytes = e->scale_group ? e->head_dim / e->scale_group : 0,
        .n_units = (uint32_t)e->heads * (row_bytes / 16),
        .row_units = row_bytes / 16,
        .row_magic = magic_of(row_bytes / 16),
        .group_units = group_units,
        .group_magic = magic_of(group_units),
    };

    for (int o = 0; o < a.orders; o++)
        for (int h = 0; h < e->heads; h++) {
            uint64_t prime = (uint64_t)table->prime[o][h];
            a.column[o][h] = {prime, prime ? UINT64_MAX / prime : 0,
                              (uint64_t)table->row_base[o][h]};
        }
    int type = element_bytes / 2; /* 1, 2, 4: 0, 1, 2 */
    gather_function *kernel = any_kernel[type];
    if (in_units(e, element_bytes)) {
        kernel = unit_kernel[type][e->scale_group != 0];
        a.parts = (a.n_units + PART_UNITS - 1) / PART_UNITS;
    }
    uint32_t n_items = a.n_cells * a.parts,
             most = (uint32_t)(cuda->sm_count * GATHER_BLOCKS_PER_SM);
    /* Few: each on an SM of its own, as far as they go. */
    uint32_t warps = n_items <= 2 * (uint32_t)cuda->sm_count ? 1 : GATHER_WARPS;
    uint32_t blocks = (n_items + warps - 1) / warps;
    blocks = blocks < most ? blocks : most;
    return LAUNCH(kernel, dim3(blocks), dim3(32 * warps), 0, cuda->stream, a);
}
