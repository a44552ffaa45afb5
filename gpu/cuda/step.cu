/* step: how a step gets to the device and back without a synchronisation.
 *
 * begin_step packs everything the host says about the step into pinned memory and starts one kernel
 * that spreads it over the arrays the operations read; these stay at one address for ever, so that
 * what follows can be captured once and replayed. end_step starts the kernel that writes results and
 * report to host memory. Nothing is waited for: pinned copies rotate, and the one about to be filled
 * was last used STEP_COPIES steps ago.
 *
 *     eager step     spread, operations, finish
 *     decode step    of a shape met for the first time: as above, which also warms libraries up;
 *                    the second time: spread, [operations, finish] captured, launched;
 *                    from then on:    spread, graph
 *
 * A decode step is padded to the next of a few row counts, so that few graphs serve all batch sizes.
 * Thread: engine. */
#include <stdlib.h>
#include <string.h>

#include "gpu/cuda/counters.h"
#include "gpu/cuda/cuda_state.h"
#include "gpu/cuda/step_clock.h"

enum {
    STEP_COPIES = 4,
    MAX_GRAPHS = 1024,
    MAX_SEGMENTS = 12,
    SPREAD_THREADS = 256,
    FINISH_THREADS = 512,
    LIST_BYTES = 1 << 20, /* of biases, counts and bans, to begin with */
};

/* Bytes that go from pinned memory to where operations find them; multiples of 4. */
struct segment {
    const void *from;
    void *to;
    uint32_t n_words;
};

struct segments {
    struct segment segment[MAX_SEGMENTS];
    int n;
};

/* A pinned copy of what one step says. */
struct step_copy {
    char *memory;
    char *lists; /* pinned, [list_bytes]: what sample_params points to */
    size_t list_bytes;
    cudaEvent_t over;
    bool used;
};

struct graph_key {
    int32_t rows, pieces;
    bool several_pieces, engram, greedy;
    uintptr_t tables; /* of the addresses of resident tables, which are arguments of kernels */
};

struct step_graph {
    struct graph_key key;
    cudaGraphExec_t exec; /* NULL: met once, not captured yet */
};

/* Device arrays, by name as in struct step_view. */
struct step_arrays {
    int32_t *token, *position, *row_seq, *output_row, *pages;
    struct cuda_piece *pieces;
    struct batch_seq *seq;
    struct sample_params *params;
    struct sample_result *results;
    struct cuda_tile *tiles;
    struct bundle_address *address[SHAPE_MAX_ENGRAM_LAYERS];
    uint64_t *mix[SHAPE_MAX_ENGRAM_LAYERS];
};

/* Device memory taken by cuda_reserve. */
enum {
    ARRAY_TOKEN,
    ARRAY_POSITION,
    ARRAY_ROW_SEQ,
    ARRAY_SEQ,
    ARRAY_OUTPUT_ROW,
    ARRAY_PARAMS,
    ARRAY_RESULTS,
    ARRAY_PAGES,
    ARRAY_PIECES,
    ARRAY_TILES,
    ARRAY_BLOCK,
    ARRAY_CLOCK,
    ARRAY_SLOT_TOKEN,
    ARRAY_ACTIVATIONS,
    ARRAY_PARTIAL,
    ARRAY_SAMPLE,
    ARRAY_SQUARES,
    ARRAY_ADDRESS, /* of each Engram layer */
    ARRAY_MIX = ARRAY_ADDRESS + SHAPE_MAX_ENGRAM_LAYERS,
    N_ARRAYS = ARRAY_MIX + SHAPE_MAX_ENGRAM_LAYERS,
};
struct step_array {
    void *memory;
    size_t bytes; /* 0: not there */
};

struct cuda_steps {
    struct step_array array[N_ARRAYS];
    struct step_arrays at;
    size_t copy_bytes;
    struct step_copy copy[STEP_COPIES];
    unsigned next;
    struct step_copy *current;
    struct step_graph graph[MAX_GRAPHS];
    int n_graphs;
    unsigned next_graph; /* to be replaced when all are taken */
    struct step_graph *capturing; /* between begin_step and end_step */
    bool no_graphs;               /* capture is not to be had here */
    struct step_clock *clock;     /* device */
    struct cuda_counters counters;
};

/* ------------------------------------------------------------------ kernels */

__global__ static void
spread_kernel(struct segments segments, struct step_clock *clock)
{
    uint32_t stride = gridDim.x * blockDim.x, first = blockIdx.x * blockDim.x + threadIdx.x;

    dependency_wait();
    if (first == 0)
        step_clock_begin(clock);
    for (int i = 0; i < segments.n; i++) {
        const struct segment s = segments.segment[i];
        const uint4 *from = (const uint4 *)s.from;
        uint4 *to = (uint4 *)s.to;

        for (uint32_t w = first; w < s.n_words / 4; w += stride)
            to[w] = from[w];
        for (uint32_t w = s.n_words / 4 * 4 + first; w < s.n_words; w += stride)
            ((uint32_t *)s.to)[w] = ((const uint32_t *)s.from)[w];
    }
}

/* One block: results to the host, then the report, `done` last. */
__global__ static void
finish_kernel(struct cuda_block *block, const struct sample_result *results,
              struct step_clock *clock)
{
    dependency_wait();
    int status = block->status, n = block->n_outputs;
    struct sample_result *to = block->results;

    for (int i = (int)threadIdx.x; i < n; i += (int)blockDim.x) {
        const struct sample_result *from = &results[i];

        to[i].token = status ? -1 : from->token;
        to[i].logprob = from->logprob;
        to[i].n_top = status ? 0 : from->n_top;
        for (int k = 0; k < from->n_top && !status; k++) {
            to[i].top_token[k] = from->top_token[k];
            to[i].top_logprob[k] = from->top_logprob[k];
        }
    }
    __threadfence_system();
    __syncthreads();
    if (threadIdx.x == 0) {
        volatile struct step_report *report = block->report;

        for (int i = 0; i < SHAPE_MAX_ENGRAM_LAYERS; i++)
            report->waited_ns[i] = block->engram[i].waited_ns;
        report->status = status;
        step_clock_end(clock);
        __threadfence_system();
        report->done = block->step;
    }
}

/* ------------------------------------------------------------------ memory */

static size_t
align16(size_t bytes)
{
    return (bytes + 15) / 16 * 16;
}

/* Up to 16 a power of two, then in steps of a quarter of the power of two below: what grids of decode
 * attention are made for. */
static int
rounded_pieces(int n)
{
    int power = 1;

    while (power * 2 <= n)
        power *= 2;
    int step = power >= 16 ? power / 4 : power;
    return (n + step - 1) / step * step;
}

static size_t
max_pieces(const struct device_limits *limits)
{
    int64_t most = limits->max_sequences +
                   (int64_t)limits->max_step_pages * limits->page_tokens / CUDA_SPLIT_TOKENS_ALONE;

    return (size_t)rounded_pieces(most > INT32_MAX / 4 ? INT32_MAX / 4 : (int)most);
}

static size_t
max_tiles(const struct device_limits *limits)
{
    return (size_t)(limits->max_rows / CUDA_TILE_ROWS) + (size_t)limits->max_sequences + 1;
}

static void
size_arrays(const struct cuda_device *cuda, const struct model_shape *shape,
            const struct device_limits *limits, struct step_array *ret_array)
{
    size_t rows = (size_t)limits->max_rows, outputs = (size_t)limits->max_outputs;
    size_t cells = rows * (size_t)(shape->engram.max_order > 1 ? shape->engram.max_order - 1 : 0);
    size_t bytes[N_ARRAYS] = {};

    bytes[ARRAY_TOKEN] = bytes[ARRAY_POSITION] = bytes[ARRAY_ROW_SEQ] = rows * sizeof(int32_t);
    bytes[ARRAY_SEQ] = rows * sizeof(struct batch_seq);
    bytes[ARRAY_OUTPUT_ROW] = outputs * sizeof(int32_t);
    bytes[ARRAY_PARAMS] = outputs * sizeof(struct sample_params);
    bytes[ARRAY_RESULTS] = outputs * sizeof(struct sample_result);
    bytes[ARRAY_PAGES] = (size_t)limits->max_step_pages * sizeof(int32_t);
    bytes[ARRAY_PIECES] = max_pieces(limits) * sizeof(struct cuda_piece);
    bytes[ARRAY_TILES] = max_tiles(limits) * sizeof(struct cuda_tile);
    bytes[ARRAY_BLOCK] = sizeof(struct cuda_block);
    bytes[ARRAY_CLOCK] = sizeof(struct step_clock);
    bytes[ARRAY_SLOT_TOKEN] = ((size_t)limits->n_states + 1) * sizeof(int32_t);
    bytes[ARRAY_ACTIVATIONS] = cuda_activation_bytes(shape, limits);
    bytes[ARRAY_PARTIAL] = cuda_partial_bytes(shape, limits);
    bytes[ARRAY_SAMPLE] = cuda_sample_bytes(shape, limits);
    bytes[ARRAY_SQUARES] = cuda_squares_bytes(cuda);
    for (int i = 0; i < shape->engram.n_layers; i++) {
        bytes[ARRAY_ADDRESS + i] = cells * sizeof(struct bundle_address);
        bytes[ARRAY_MIX + i] = cells * sizeof(uint64_t);
    }
    for (int i = 0; i < N_ARRAYS; i++) {
        bool there = i < ARRAY_ADDRESS || (i < ARRAY_MIX ? i - ARRAY_ADDRESS : i - ARRAY_MIX) <
                                              shape->engram.n_layers;

        ret_array[i] = {NULL, there ? bytes[i] + 16 : 0};
    }
}

size_t
cuda_reserve_bytes(const struct device *dev, const struct model_shape *shape,
                   const struct device_limits *limits)
{
    struct step_array array[N_ARRAYS];
    size_t sum = 0;

    size_arrays((const struct cuda_device *)dev, shape, limits, array);
    for (int i = 0; i < N_ARRAYS; i++)
        sum += array[i].bytes;
    return sum;
}

static void
name_arrays(struct cuda_device *cuda)
{
    const struct step_array *array = cuda->steps->array;
    struct step_arrays *at = &cuda->steps->at;

    at->token = (int32_t *)array[ARRAY_TOKEN].memory;
    at->position = (int32_t *)array[ARRAY_POSITION].memory;
    at->row_seq = (int32_t *)array[ARRAY_ROW_SEQ].memory;
    at->seq = (struct batch_seq *)array[ARRAY_SEQ].memory;
    at->output_row = (int32_t *)array[ARRAY_OUTPUT_ROW].memory;
    at->params = (struct sample_params *)array[ARRAY_PARAMS].memory;
    at->results = (struct sample_result *)array[ARRAY_RESULTS].memory;
    at->pages = (int32_t *)array[ARRAY_PAGES].memory;
    at->pieces = (struct cuda_piece *)array[ARRAY_PIECES].memory;
    at->tiles = (struct cuda_tile *)array[ARRAY_TILES].memory;
    for (int i = 0; i < SHAPE_MAX_ENGRAM_LAYERS; i++) {
        at->address[i] = (struct bundle_address *)array[ARRAY_ADDRESS + i].memory;
        at->mix[i] = (uint64_t *)array[ARRAY_MIX + i].memory;
    }
    cuda->block = (struct cuda_block *)array[ARRAY_BLOCK].memory;
    cuda->steps->clock = (struct step_clock *)array[ARRAY_CLOCK].memory;
    cuda->slot_token = (int32_t *)array[ARRAY_SLOT_TOKEN].memory;
    cuda->activations = array[ARRAY_ACTIVATIONS].memory;
    cuda->partial = (float *)array[ARRAY_PARTIAL].memory;
    cuda->sample_scratch = array[ARRAY_SAMPLE].memory;
    cuda->squares = (float *)array[ARRAY_SQUARES].memory;
}

int
cuda_reserve(struct device *dev, const struct model_shape *shape,
             const struct device_limits *limits)
{
    struct cuda_device *cuda = cuda_of(dev);
    struct cuda_steps *s = (struct cuda_steps *)calloc(1, sizeof *s);
    size_t rows = (size_t)limits->max_rows, outputs = (size_t)limits->max_outputs;
    size_t pages = (size_t)limits->max_step_pages, tiles = max_tiles(limits);
    int ok = 1;

    if (!s || cuda->steps) {
        free(s);
        return cuda->steps ? -EBUSY : -ENOMEM;
    }
    cuda->steps = s;
    cuda->limits = *limits;
    cuda->shape = *shape;
    size_arrays(cuda, shape, limits, s->array);
    for (int i = 0; i < N_ARRAYS; i++)
        if (s->array[i].bytes) {
            s->array[i].memory = cuda_alloc(dev, s->array[i].bytes);
            ok &= s->array[i].memory != NULL;
        }
    name_arrays(cuda);
    cuda->activations_bytes = cuda_activation_bytes(shape, limits);
    cuda->partial_bytes = cuda_partial_bytes(shape, limits);
    cuda->sample_scratch_bytes = cuda_sample_bytes(shape, limits);
    s->copy_bytes = align16(sizeof(struct cuda_block)) + 3 * align16(rows * sizeof(int32_t)) +
                    align16(rows * sizeof(struct batch_seq)) + align16(outputs * sizeof(int32_t)) +
                    align16(outputs * sizeof(struct sample_params)) +
                    align16(pages * sizeof(int32_t)) +
                    align16(max_pieces(limits) * sizeof(struct cuda_piece)) +
                    align16(tiles * sizeof(struct cuda_tile));
    for (int i = 0; i < STEP_COPIES && ok; i++) {
        struct step_copy *copy = &s->copy[i];

        copy->memory = (char *)cuda_alloc_shared(dev, s->copy_bytes);
        copy->lists = (char *)cuda_alloc_shared(dev, LIST_BYTES);
        copy->list_bytes = LIST_BYTES;
        ok &= copy->memory && copy->lists;
        ok &= cudaEventCreateWithFlags(&copy->over, cudaEventDisableTiming) == cudaSuccess;
    }
    return ok ? 0 : -ENOMEM;
}

void
cuda_steps_open(struct cuda_device *cuda)
{
    LOAD_KERNELS(cuda, spread_kernel);
}

void
cuda_steps_free(struct cuda_device *cuda)
{
    struct cuda_steps *s = cuda->steps;
    struct device *dev = &cuda->device;

    if (!s)
        return;
    for (int i = 0; i < s->n_graphs; i++)
        if (s->graph[i].exec)
            (void)cudaGraphExecDestroy(s->graph[i].exec);
    for (int i = 0; i < STEP_COPIES; i++) {
        cuda_free_shared(dev, s->copy[i].memory, s->copy_bytes);
        cuda_free_shared(dev, s->copy[i].lists, s->copy[i].list_bytes);
        if (s->copy[i].over)
            (void)cudaEventDestroy(s->copy[i].over);
    }
    for (int i = 0; i < N_ARRAYS; i++)
        cuda_free(dev, s->array[i].memory, s->array[i].bytes);
    free(s);
    cuda->steps = NULL;
}

struct bundle_address *
cuda_step_addresses(struct cuda_device *cuda, int index)
{
    return cuda->steps->at.address[index];
}

uint64_t *
cuda_step_mixes(struct cuda_device *cuda, int index)
{
    return cuda->steps->at.mix[index];
}

/* ------------------------------------------------------------------ packing */

/* Where in the pinned copy the next segment goes, and to which array. */
struct packer {
    char *at;
    struct segments segments;
};

static void *
pack(struct packer *p, void *to, size_t bytes)
{
    void *from = p->at;

    if (bytes == 0)
        return from;
    p->segments.segment[p->segments.n++] = {from, to, (uint32_t)(bytes / 4)};
    p->at += align16(bytes);
    return from;
}

/* 1, 2, 4, then multiples that grow with the batch: what a graph is made for. */
static int
padded_rows(int n, int most)
{
    int step = n <= 8 ? 0 : n <= 64 ? 8 : n <= 256 ? 32 : 64;
    int padded = 1;

    if (step)
        padded = (n + step - 1) / step * step;
    else
        while (padded < n)
            padded *= 2;
    return padded < most ? padded : most;
}

static bool
is_greedy(const struct sample_params *p)
{
    return !(p->temperature > 0) && p->n_bias == 0 && p->n_counts == 0 && p->n_banned == 0 &&
           p->forced < 0 && p->n_top == 0 && !p->replay;
}

/* One row for each sequence and one output for each row, and nothing that needs the host. */
static bool
is_plain_decode(const struct forward_step *step)
{
    const struct batch *b = &step->batch;

    if (b->n_decode != b->n_seqs || b->n_seqs != b->n_rows || step->n_outputs != b->n_rows ||
        step->logits)
        return false;
    for (int i = 0; i < step->n_outputs; i++)
        if (step->outputs[i].row != i)
            return false;
    return true;
}

static size_t
list_bytes(const struct sample_params *p)
{
    return align16((size_t)p->n_bias * sizeof *p->bias) +
           align16((size_t)p->n_counts * sizeof *p->counts) +
           align16((size_t)p->n_banned * sizeof *p->banned) + (p->replay ? 16 : 0);
}

static const void *
put_list(char **at, const void *from, size_t bytes)
{
    void *to = *at;

    if (bytes == 0)
        return NULL;
    memcpy(to, from, bytes);
    *at += align16(bytes);
    return to;
}

/* Copies what the parameters point to: the caller's arrays are free when begin_step returns. */
static int
pack_params(struct cuda_device *cuda, struct step_copy *copy, const struct forward_step *step,
            struct sample_params *params, int32_t *output_row, int n_padded)
{
    size_t need = 0;

    cuda->all_greedy = true;
    for (int i = 0; i < step->n_outputs; i++) {
        need += list_bytes(&step->outputs[i].params);
        cuda->all_greedy = cuda->all_greedy && is_greedy(&step->outputs[i].params);
    }
    if (need > copy->list_bytes) {
        char *more = (char *)cuda_alloc_shared(&cuda->device, 2 * need);

        if (!more)
            return -ENOMEM;
        cuda_free_shared(&cuda->device, copy->lists, copy->list_bytes);
        copy->lists = more;
        copy->list_bytes = 2 * need;
        cuda->steps->counters.allocs++;
    }
    char *list = copy->lists;
    for (int i = 0; i < n_padded; i++) {
        if (i >= step->n_outputs) {
            params[i] = {};
            params[i].forced = params[i].slot = -1;
            output_row[i] = i;
            continue;
        }
        const struct sample_params *p = &step->outputs[i].params;
        params[i] = *p;
        output_row[i] = step->outputs[i].row;
        params[i].bias = (const struct logit_bias *)put_list(&list, p->bias,
                                                             (size_t)p->n_bias * sizeof *p->bias);
        params[i].counts = (const struct token_count *)put_list(
            &list, p->counts, (size_t)p->n_counts * sizeof *p->counts);
        params[i].banned =
            (const int32_t *)put_list(&list, p->banned, (size_t)p->n_banned * sizeof *p->banned);
        params[i].replay =
            (const int32_t *)put_list(&list, p->replay, p->replay ? sizeof *p->replay : 0);
    }
    return 0;
}

static int
tile_order(const void *a, const void *b)
{
    const struct cuda_tile *x = (const struct cuda_tile *)a, *y = (const struct cuda_tile *)b;

    return x->unused != y->unused ? (x->unused < y->unused ? 1 : -1) : x->first_row - y->first_row;
}

/* Sequences, their page lists, and the tiles of those that are not decoding. */
static int
pack_sequences(struct cuda_device *cuda, struct packer *p, const struct batch *b, int n_padded)
{
    struct step_arrays *at = &cuda->steps->at;
    struct batch_seq *seq = (struct batch_seq *)pack(p, at->seq, (size_t)n_padded * sizeof *seq);
    int64_t n_pages = 0;
    int n_tiles = 0;

    for (int i = 0; i < b->n_seqs; i++)
        n_pages += b->seq[i].n_pages;
    if (n_pages > cuda->limits.max_step_pages)
        return -EINVAL;
    int32_t *pages = (int32_t *)pack(p, at->pages, (size_t)n_pages * sizeof *pages);
    n_pages = 0;
    for (int i = 0; i < n_padded; i++) {
        if (i >= b->n_seqs) {
            seq[i] = {};
            seq[i].first_row = i;
            seq[i].pages = at->pages;
            continue;
        }
        seq[i] = b->seq[i];
        seq[i].pages = at->pages + n_pages;
        memcpy(pages + n_pages, b->seq[i].pages, (size_t)seq[i].n_pages * sizeof *pages);
        n_pages += seq[i].n_pages;
        if (i >= b->n_decode)
            n_tiles += (seq[i].n_rows + CUDA_TILE_ROWS - 1) / CUDA_TILE_ROWS;
    }
    struct cuda_tile *tile = (struct cuda_tile *)pack(p, at->tiles, (size_t)n_tiles * sizeof *tile);
    cuda->n_tiles = n_tiles;
    cuda->tiles = at->tiles;
    n_tiles = 0;
    for (int i = b->n_decode; i < b->n_seqs; i++)
        for (int r = 0; r < b->seq[i].n_rows; r += CUDA_TILE_ROWS) {
            int left = b->seq[i].n_rows - r;

            tile[n_tiles++] = {i, b->seq[i].first_row + r,
                               left < CUDA_TILE_ROWS ? left : CUDA_TILE_ROWS,
                               b->seq[i].context + r};
        }
    qsort(tile, (size_t)n_tiles, sizeof *tile, tile_order);
    return 0;
}

/* What decode attention has to do, piece by piece; rounded up with pieces of no row. */
static int
pack_pieces(struct cuda_device *cuda, struct packer *p, const struct batch *b)
{
    struct step_arrays *at = &cuda->steps->at;
    const int32_t *pages = at->pages;
    int64_t n = 0;

    cuda->split_tokens = b->n_decode == 1 ? CUDA_SPLIT_TOKENS_ALONE : CUDA_SPLIT_TOKENS;
    for (int i = 0; i < b->n_decode; i++)
        n += cuda_pieces(b->seq[i].context + 1, cuda->split_tokens);
    if (n > (int64_t)max_pieces(&cuda->limits))
        return -EINVAL;
    cuda->pieces = at->pieces;
    cuda->several_pieces = n > b->n_decode;
    cuda->n_pieces = n > 0 ? rounded_pieces((int)n) : 0;
    struct cuda_piece *piece =
        (struct cuda_piece *)pack(p, at->pieces, (size_t)cuda->n_pieces * sizeof *piece);
    n = 0;
    for (int i = 0; i < b->n_decode; i++) {
        int n_keys = b->seq[i].context + 1;

        for (int k = 0; k < cuda_pieces(n_keys, cuda->split_tokens); k++)
            piece[n++] = {pages, b->seq[i].first_row, k, n_keys, 0};
        pages += b->seq[i].n_pages;
    }
    for (; n < cuda->n_pieces; n++)
        piece[n] = {at->pages, -1, 0, 0, 0};
    return 0;
}

static void
pack_block(struct packer *p, struct cuda_device *cuda, const struct forward_step *step)
{
    struct cuda_block *block = (struct cuda_block *)pack(p, cuda->block, sizeof *block);

    memset(block, 0, sizeof *block);
    block->step = step->step;
    block->timeout_ns = step->wait_timeout_ns;
    block->report = step->report;
    block->results = step->results;
    block->n_rows = step->batch.n_rows;
    block->n_outputs = step->n_outputs;
    for (int i = 0; i < cuda->shape.engram.n_layers; i++) {
        const struct forward_engram *e = &step->engram[i];

        block->engram[i].address = e->address;
        block->engram[i].mix = e->mix;
        block->engram[i].flag = (const uint64_t *)e->ready; /* its word comes first */
        block->engram[i].value = e->ready_value;
        block->engram[i].rows_from = e->rows_from;
    }
}

static void
pack_rows(struct packer *p, struct step_arrays *at, const struct batch *b, int n_padded)
{
    size_t bytes = (size_t)n_padded * sizeof(int32_t);
    int32_t *token = (int32_t *)pack(p, at->token, bytes);
    int32_t *position = (int32_t *)pack(p, at->position, bytes);
    int32_t *row_seq = (int32_t *)pack(p, at->row_seq, bytes);

    for (int r = 0; r < n_padded; r++) {
        bool real = r < b->n_rows;

        token[r] = real ? b->token[r] : 0;
        position[r] = real ? b->position[r] : 0;
        row_seq[r] = real ? b->row_seq[r] : -1;
    }
}

/* ------------------------------------------------------------------ a step */

static struct step_graph *
find_graph(struct cuda_steps *s, const struct graph_key *key)
{
    for (int i = 0; i < s->n_graphs; i++) {
        const struct graph_key *k = &s->graph[i].key;

        if (k->rows == key->rows && k->pieces == key->pieces &&
            k->several_pieces == key->several_pieces && k->engram == key->engram &&
            k->greedy == key->greedy && k->tables == key->tables)
            return &s->graph[i];
    }
    return NULL;
}

static int
step_over(struct cuda_device *cuda, struct step_copy *copy)
{
    copy->used = true;
    return cuda_launch_status(cudaEventRecord(copy->over, cuda->stream));
}

/* The graph of a plain decode step of this shape, to be replayed, or captured if it has not been;
 * NULL: the shape is met for the first time, and its operations are to be issued as they are. */
static struct step_graph *
choose_graph(struct cuda_device *cuda, const struct forward_step *step, int n_padded)
{
    struct cuda_steps *s = cuda->steps;
    struct graph_key key = {n_padded, cuda->n_pieces, cuda->several_pieces,
                            cuda->shape.engram.n_layers > 0 && batch_any_engram(&step->batch),
                            cuda->all_greedy, 0};

    for (int i = 0; i < cuda->shape.engram.n_layers && key.engram; i++)
        key.tables = key.tables * 31 + (uintptr_t)step->engram[i].weights;
    struct step_graph *graph = find_graph(s, &key);

    if (graph)
        return graph;
    /* When all are taken the oldest goes; CUDA frees one that still runs once it has ended. */
    struct step_graph *place = s->n_graphs < MAX_GRAPHS ? &s->graph[s->n_graphs++]
                                                        : &s->graph[s->next_graph++ % MAX_GRAPHS];
    if (place->exec)
        (void)cudaGraphExecDestroy(place->exec);
    *place = {key, NULL};
    return NULL;
}

int
cuda_begin_step(struct device *dev, const struct forward_step *step, struct step_view *ret_view,
                struct stream *stream)
{
    struct cuda_device *cuda = cuda_of(dev);
    struct cuda_steps *s = cuda->steps;
    struct step_copy *copy = &s->copy[s->next++ % STEP_COPIES];
    struct step_arrays *at = &s->at;
    const struct batch *b = &step->batch;
    bool decode = is_plain_decode(step) && !s->no_graphs;
    int most = cuda->limits.max_rows < cuda->limits.max_outputs ? cuda->limits.max_rows
                                                                : cuda->limits.max_outputs;
    int n_rows = decode ? padded_rows(b->n_rows, most) : b->n_rows;
    int n_seqs = decode ? n_rows : b->n_seqs, n_outputs = decode ? n_rows : step->n_outputs;
    struct packer packer = {};

    (void)cudaSetDevice(cuda->ordinal); /* of this thread; the first operation of a step tells */
    if (copy->used && cudaEventQuery(copy->over) == cudaErrorNotReady) {
        s->counters.syncs++;
        int result = cuda_launch_status(cudaEventSynchronize(copy->over));
        if (result < 0)
            return result;
    }
    packer.at = copy->memory;
    pack_block(&packer, cuda, step);
    pack_rows(&packer, at, b, n_rows);
    int result = pack_sequences(cuda, &packer, b, n_seqs);
    if (result == 0)
        result = pack_pieces(cuda, &packer, b);
    if (result < 0)
        return result;
    struct sample_params *params =
        (struct sample_params *)pack(&packer, at->params, (size_t)n_outputs * sizeof *params);
    int32_t *output_row =
        (int32_t *)pack(&packer, at->output_row, (size_t)n_outputs * sizeof *output_row);
    result = pack_params(cuda, copy, step, params, output_row, n_outputs);
    if (result < 0)
        return result;
    size_t words = (size_t)(packer.at - copy->memory) / 4;
    unsigned blocks = (unsigned)(words / (4 * SPREAD_THREADS) + 1);

    result = LAUNCH(spread_kernel, blocks < 64 ? blocks : 64, SPREAD_THREADS, 0, cuda->stream,
                    packer.segments, s->clock);
    if (result < 0)
        return result;
    cuda->carried_norm = NULL;
    s->counters.steps++;
    cuda->in_step = true;
    s->current = copy;
    *ret_view = {};
    ret_view->batch = {n_rows,      n_seqs, decode ? n_seqs : b->n_decode, at->token, at->position,
                       at->row_seq, at->seq};
    for (int i = 0; i < cuda->shape.engram.n_layers; i++)
        ret_view->engram[i] = {at->address[i], at->mix[i], step->engram[i].weights,
                               step->engram[i].scales};
    ret_view->n_outputs = n_outputs;
    ret_view->output_row = at->output_row;
    ret_view->params = at->params;
    ret_view->results = at->results;
    if (!decode)
        return STEP_ISSUE;
    struct step_graph *graph = choose_graph(cuda, step, n_rows);
    if (!graph)
        return STEP_ISSUE;
    if (graph->exec) {
        cuda->in_step = false;
        s->counters.graph_replays++;
        result = cuda_launch_status(cudaGraphLaunch(graph->exec, cuda->stream));
        if (result == 0)
            result = step_over(cuda, copy);
        return result < 0 ? result : STEP_REPLAYED;
    }
    if (cudaStreamBeginCapture(cuda->stream, cudaStreamCaptureModeThreadLocal) != cudaSuccess) {
        (void)cudaGetLastError();
        s->no_graphs = true;
        return STEP_ISSUE;
    }
    s->capturing = graph;
    return STEP_ISSUE;
}

int
cuda_end_step(struct device *dev, const struct forward_step *step, int status,
              struct stream *stream)
{
    struct cuda_device *cuda = cuda_of(dev);
    struct cuda_steps *s = cuda->steps;
    struct step_graph *graph = s->capturing;
    cudaGraph_t captured = NULL;
    int result = status;

    cuda->in_step = false;
    s->capturing = NULL;
    if (result == 0)
        result = LAUNCH(finish_kernel, 1, FINISH_THREADS, 0, cuda->stream, cuda->block,
                        s->at.results, s->clock);
    if (graph) {
        int ended = cuda_launch_status(cudaStreamEndCapture(cuda->stream, &captured));

        result = result < 0 ? result : ended;
        if (result == 0)
            result = cuda_launch_status(cudaGraphInstantiate(&graph->exec, captured, 0));
        if (captured)
            (void)cudaGraphDestroy(captured);
        if (result == 0)
            result = cuda_launch_status(cudaGraphLaunch(graph->exec, cuda->stream));
        s->counters.captures++;
    }
    if (result == 0)
        result = step_over(cuda, s->current);
    return result;
}

/* ------------------------------------------------------------------ counters */

extern "C" int
engram_cuda_counters(struct device *dev, struct cuda_counters *ret_counters)
{
    struct cuda_device *cuda = cuda_of(dev);
    struct step_clock clock = {};

    if (!cuda->steps)
        return -EINVAL;
    int result = cuda_download(dev, &clock, cuda->steps->clock, sizeof clock);
    if (result < 0)
        return result;
    *ret_counters = cuda->steps->counters;
    ret_counters->plans_late = cuda->plans_late;
    ret_counters->kernels = (uint64_t)cuda->kernels;
    ret_counters->gpu_busy_ns = clock.busy_ns;
    ret_counters->gpu_span_ns = clock.busy_ns + clock.idle_ns;
    return 0;
}
