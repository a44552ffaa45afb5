/* sample: choosing tokens on the device; the order of operations is told at struct sample_params, and
 * gpu/host/sample.c is what the result is measured by.
 *
 * A row is read once where that is enough. Blocks of a scan reduce a chunk of 4096 logits each to its
 * maximum and its sums of exponentials, taken relative to that maximum; the last block of a row puts
 * the chunks together in order and, for greedy rows and plain draws, ends it (a draw reads one chunk
 * again). What is left goes on in the same launches for every row, so that a captured graph fits
 * any mixture; blocks of rows that are done leave at once:
 *
 *     scan raw -> (scan adjusted: biases, penalties, bans) -> filter: top-k, top-p, min-p, top log-probabilities
 *
 * A batch that is all greedy takes a first scan alone. A row's sums are added in an order that only the
 * vocabulary decides; what blocks tell each other in no fixed order (lists, histograms) is integer
 * and is sorted, or added, exactly. */
#include "gpu/cuda/block_sum.h"
#include "gpu/cuda/sample_filter.h"
#include "gpu/cuda/sample_row.h"

enum scan_pass { SCAN_GREEDY, SCAN_RAW, SCAN_ADJUSTED };

enum {
    N_WARPS = SAMPLE_SCAN_THREADS / 32,
    LOADS = SAMPLE_CHUNK / SAMPLE_SCAN_THREADS / 4, /* float4 of a thread */
    CLAIMS = 4096,
    BATCH = 4, /* entries of a list a thread works on at a time */
    FLOOR_KEYS = 12,
    FLOOR_BITS = 20, /* of a key that a floor has: 11 of the mantissa */
};

enum adjustment { ADJUST_BIAS, ADJUST_COUNT, ADJUST_BAN };

/* A row put together from its chunks. */
struct scan_total {
    float top;
    int32_t id;
    bool finite;
    double sum, weight;
};

__device__ static inline void
take_larger(float *max, int32_t *id, float other_max, int32_t other_id)
{
    if (other_max > *max || (other_max == *max && other_id < *id)) {
        *max = other_max;
        *id = other_id;
    }
}

__device__ static inline void
load_chunk(float4 *x, const float *row, int begin, int vocab)
{
#pragma unroll
    for (int j = 0; j < LOADS; j++)
        x[j] = sample_load(row, begin + (j * SAMPLE_SCAN_THREADS + (int)threadIdx.x) * 4, vocab);
}

/* The chunk of this block, x of load_chunk. Thread 0 returns it; `group`: where maxima of groups go,
 * or NULL; copy: where the row's logits go, or NULL. */
template <int pass>
__device__ static inline struct sample_part
reduce_chunk(const float4 *x, int begin, int vocab, bool weights, float inverse_temperature,
             float *group, float *copy)
{
    __shared__ struct sample_part of_warp[N_WARPS];
    int thread = (int)threadIdx.x, lane = thread & 31, warp = thread / 32;
    float max = -INFINITY, finite = 0;
    int32_t id = INT32_MAX;

#pragma unroll
    for (int j = 0; j < LOADS; j++) {
        const float value[4] = {x[j].x, x[j].y, x[j].z, x[j].w};
        int at = begin + (j * SAMPLE_SCAN_THREADS + thread) * 4;
#pragma unroll
        for (int e = 0; e < 4; e++) {
            /* NaN from then on, once a logit of the vocabulary is not finite. */
            if (pass != SCAN_ADJUSTED)
                finite = fmaf(at + e < vocab ? value[e] : 0.0f, 0.0f, finite);
            if (value[e] > max) {
                max = value[e];
                id = at + e;
            }
        }
        if (copy && at < vocab) {
            if (at + 4 <= vocab && ((uintptr_t)(copy + at) & 15) == 0)
                *(float4 *)(copy + at) = x[j];
            else
                for (int e = 0; e < 4 && at + e < vocab; e++)
                    copy[at + e] = value[e];
        }
    }
#pragma unroll
    for (int lanes = 1; lanes < 32; lanes *= 2) {
        take_larger(&max, &id, __shfl_xor_sync(0xffffffffu, max, lanes),
                    __shfl_xor_sync(0xffffffffu, id, lanes));
        /* Four threads are a group. */
        if (lanes == 2 && group && lane % 4 == 0)
            group[thread / 4] = max;
    }

    float sum = 0, weight = 0;
    if (max > -INFINITY) {
#pragma unroll
        for (int j = 0; j < LOADS; j++)
            sum += (sample_weight(x[j].x, max, 1.0f) + sample_weight(x[j].y, max, 1.0f)) +
                   (sample_weight(x[j].z, max, 1.0f) + sample_weight(x[j].w, max, 1.0f));
        if (weights && inverse_temperature != 1.0f)
#pragma unroll
            for (int j = 0; j < LOADS; j++)
                weight += (sample_weight(x[j].x, max, inverse_temperature) +
                           sample_weight(x[j].y, max, inverse_temperature)) +
                          (sample_weight(x[j].z, max, inverse_temperature) +
                           sample_weight(x[j].w, max, inverse_temperature));
    }
    sum = warp_sum(sum + finite);
    if (weights)
        weight = inverse_temperature != 1.0f ? warp_sum(weight) : sum;
    if (lane == 0)
        of_warp[warp] = (struct sample_part){max, id, sum, weight};
    __syncthreads();

    struct sample_part all = {-INFINITY, INT32_MAX, 0, 0};
    if (thread == 0) {
        for (int i = 0; i < N_WARPS; i++)
            take_larger(&all.max, &all.id, of_warp[i].max, of_warp[i].id);
        for (int i = 0; i < N_WARPS; i++) {
            if (of_warp[i].max > -INFINITY) {
                all.sum += of_warp[i].sum * sample_weight(of_warp[i].max, all.max, 1.0f);
                all.weight +=
                    of_warp[i].weight * sample_weight(of_warp[i].max, all.max, inverse_temperature);
            } else {
                all.sum += of_warp[i].sum; /* 0, or NaN */
            }
        }
    }
    return all;
}

/* Puts chunks together; all threads get the same. parts: shared. */
__device__ static struct scan_total
reduce_row(const struct sample_part *parts, int n_chunks, float inverse_temperature)
{
    __shared__ struct scan_total shared;

    if (threadIdx.x < 32) {
        int lane = (int)threadIdx.x;
        struct scan_total t = {-INFINITY, INT32_MAX, true, 0, 0};
        for (int c = lane; c < n_chunks; c += 32)
            take_larger(&t.top, &t.id, parts[c].max, parts[c].id);
#pragma unroll
        for (int lanes = 1; lanes < 32; lanes *= 2)
            take_larger(&t.top, &t.id, __shfl_xor_sync(0xffffffffu, t.top, lanes),
                        __shfl_xor_sync(0xffffffffu, t.id, lanes));
        for (int c = lane; c < n_chunks; c += 32) {
            if (parts[c].max > -INFINITY) {
                t.sum += (double)parts[c].sum * (double)sample_weight(parts[c].max, t.top, 1.0f);
                t.weight += (double)parts[c].weight *
                            (double)sample_weight(parts[c].max, t.top, inverse_temperature);
            } else {
                t.sum += (double)parts[c].sum;
            }
        }
        t.sum = warp_sum(t.sum);
        t.weight = warp_sum(t.weight);
        t.finite = isfinite(t.top) && isfinite(t.sum);
        if (lane == 0)
            shared = t;
    }
    __syncthreads();
    return shared;
}

/* A key that at least k groups' maxima, and so k tokens, reach, and not many more do: of the k-th
 * largest maximum the first FLOOR_BITS bits. */
__device__ static uint32_t
find_floor(const float *group, int n_groups, int k)
{
    __shared__ int of_warp[2][N_WARPS];
    uint32_t key[FLOOR_KEYS], floor = 0;
    int thread = (int)threadIdx.x, room = FLOOR_KEYS * SAMPLE_SCAN_THREADS;

    /* Where there are more groups than fit, several count as one. */
#pragma unroll
    for (int j = 0; j < FLOOR_KEYS; j++)
        key[j] = 0;
    for (int base = 0; base < n_groups; base += room)
#pragma unroll
        for (int j = 0; j < FLOOR_KEYS; j++) {
            int i = base + j * SAMPLE_SCAN_THREADS + thread;
            uint32_t other = i < n_groups ? sample_key(__ldcg(group + i)) : 0;
            key[j] = other > key[j] ? other : key[j];
        }
    for (int bit = 31; bit > 31 - FLOOR_BITS; bit--) {
        uint32_t next = floor | 1u << bit;
        int n = 0;
#pragma unroll
        for (int j = 0; j < FLOOR_KEYS; j++)
            n += key[j] >= next;
        n = __reduce_add_sync(0xffffffffu, n);
        if (thread % 32 == 0)
            of_warp[bit & 1][thread / 32] = n;
        __syncthreads();
        n = 0;
#pragma unroll
        for (int i = 0; i < N_WARPS; i++)
            n += of_warp[bit & 1][i];
        if (n >= k)
            floor = next;
    }
    __syncthreads();
    return floor;
}

/* The first id at which the running sum of weights exceeds u times the whole. All threads. */
__device__ static int32_t
draw_from_all(const float *row, int vocab, const struct sample_part *parts, int n_chunks, float top,
              float inverse_temperature, double u)
{
    __shared__ double of_warp[N_WARPS], before, target;
    __shared__ int chunk, first, last;
    int thread = (int)threadIdx.x, lane = thread & 31, warp = thread / 32;

    if (warp == 0) {
        double whole = 0;
        int hit = -1, crumb = -1;
        /* Twice the same sums: the whole, then the place. */
        for (int pass = 0; pass < 2; pass++) {
            double sum = 0;
            for (int begin = 0; begin < n_chunks && hit < 0; begin += 32) {
                int c = begin + lane;
                double own = 0;
                if (c < n_chunks && parts[c].max > -INFINITY)
                    own = (double)parts[c].weight *
                          (double)sample_weight(parts[c].max, top, inverse_temperature);
                double running = own;
                for (int lanes = 1; lanes < 32; lanes *= 2) {
                    double other = __shfl_up_sync(0xffffffffu, running, lanes);
                    running += lane >= lanes ? other : 0;
                }
                unsigned some = __ballot_sync(0xffffffffu, own > 0);
                unsigned over =
                    __ballot_sync(0xffffffffu, pass == 1 && own > 0 && sum + running > u * whole);
                crumb = some ? begin + 31 - __clz((int)some) : crumb;
                if (over) {
                    int at = __ffs((int)over) - 1;
                    hit = begin + at;
                    sum +=
                        __shfl_sync(0xffffffffu, running, at) - __shfl_sync(0xffffffffu, own, at);
                } else {
                    sum += __shfl_sync(0xffffffffu, running, 31);
                }
            }
            if (pass == 0)
                whole = sum;
            else if (lane == 0)
                before = hit >= 0 ? sum : 0;
        }
        if (lane == 0) {
            /* u times the whole was rounded up to the whole: the last token there is. */
            chunk = hit >= 0 ? hit : crumb;
            target = hit >= 0 ? u * whole : INFINITY;
            first = INT32_MAX;
            last = -1;
        }
    }
    __syncthreads();

    enum { OWN = SAMPLE_CHUNK / SAMPLE_SCAN_THREADS };
    int at = chunk * SAMPLE_CHUNK + thread * OWN;
    float weight[OWN];
    double own = 0;
#pragma unroll
    for (int j = 0; j < OWN / 4; j++) {
        float4 x = sample_load(row, at + 4 * j, vocab);
        weight[4 * j] = sample_weight(x.x, top, inverse_temperature);
        weight[4 * j + 1] = sample_weight(x.y, top, inverse_temperature);
        weight[4 * j + 2] = sample_weight(x.z, top, inverse_temperature);
        weight[4 * j + 3] = sample_weight(x.w, top, inverse_temperature);
    }
#pragma unroll
    for (int e = 0; e < OWN; e++)
        own += (double)weight[e];
    double running = own;
    for (int lanes = 1; lanes < 32; lanes *= 2) {
        double other = __shfl_up_sync(0xffffffffu, running, lanes);
        running += lane >= lanes ? other : 0;
    }
    if (lane == 31)
        of_warp[warp] = running;
    __syncthreads();
    double sum = before;
    for (int i = 0; i < warp; i++)
        sum += of_warp[i];
    sum += running - own;
    int hit = INT32_MAX, seen = -1;
#pragma unroll
    for (int e = 0; e < OWN; e++) {
        sum += (double)weight[e];
        if (weight[e] > 0) {
            seen = at + e;
            hit = hit == INT32_MAX && sum > target ? at + e : hit;
        }
    }
    if (hit != INT32_MAX)
        atomicMin(&first, hit);
    if (seen >= 0)
        atomicMax(&last, seen);
    __syncthreads();
    return first != INT32_MAX ? first : last;
}

__device__ static inline float
adjust_one(enum adjustment kind, float value, int32_t entry, const struct sample_params *p)
{
    if (kind == ADJUST_BIAS) {
        value += __int_as_float(entry);
    } else {
        float repetition = p->repetition_penalty;
        if (repetition > 0)
            value = value > 0 ? value / repetition : value * repetition;
        /* Rounded one by one, as on the host. */
        if (entry > 0)
            value = __fsub_rn(value, __fadd_rn(p->presence_penalty,
                                               __fmul_rn(p->frequency_penalty, (float)entry)));
    }
    return isnan(value) ? -INFINITY : value;
}

/* Applies one list: entries [n] of token and value, in host memory. Entries that name the same token
 * take effect in order: of those that share a claim the first goes, the others stay for another
 * round. All threads. */
__device__ static void
adjust_list(enum adjustment kind, float *row, int vocab, const int32_t *list, int n,
            const struct sample_params *p, int *claim)
{
    int thread = (int)threadIdx.x;

    for (int begin = 0; begin < n; begin += BATCH * SAMPLE_SCAN_THREADS) {
        int32_t token[BATCH], entry[BATCH];
        float value[BATCH];
        unsigned left = 0;
#pragma unroll
        for (int j = 0; j < BATCH; j++) {
            int i = begin + j * SAMPLE_SCAN_THREADS + thread;
            token[j] = i < n ? list[2 * (size_t)i] : -1;
            entry[j] = i < n ? list[2 * (size_t)i + 1] : 0;
            left |= (unsigned)(token[j] >= 0 && token[j] < vocab) << j;
        }
        do {
            for (int i = thread; i < CLAIMS; i += SAMPLE_SCAN_THREADS)
                claim[i] = INT32_MAX;
            __syncthreads();
#pragma unroll
            for (int j = 0; j < BATCH; j++)
                if (left >> j & 1)
                    atomicMin(&claim[token[j] & (CLAIMS - 1)], j * SAMPLE_SCAN_THREADS + thread);
            __syncthreads();
            unsigned now = 0;
#pragma unroll
            for (int j = 0; j < BATCH; j++)
                if ((left >> j & 1) &&
                    claim[token[j] & (CLAIMS - 1)] == j * SAMPLE_SCAN_THREADS + thread) {
                    now |= 1u << j;
                    value[j] = __ldcg(row + token[j]);
                }
#pragma unroll
            for (int j = 0; j < BATCH; j++)
                if (now >> j & 1)
                    row[token[j]] = adjust_one(kind, value[j], entry[j], p);
            left &= ~now;
        } while (__syncthreads_or(left != 0));
    }
}

__device__ static void
adjust_row(float *row, int vocab, const struct sample_params *p)
{
    __shared__ int claim[CLAIMS];

    adjust_list(ADJUST_BIAS, row, vocab, (const int32_t *)p->bias, p->n_bias, p, claim);
    adjust_list(ADJUST_COUNT, row, vocab, (const int32_t *)p->counts, p->n_counts, p, claim);
    for (int i = (int)threadIdx.x; i < p->n_banned; i += SAMPLE_SCAN_THREADS) {
        int32_t token = p->banned[i];
        if (token >= 0 && token < vocab)
            row[token] = -INFINITY;
    }
}

/* The last block of a row: what the logits that are sampled from (raw or adjusted) say. Returns true
 * when *ret_token is known, else leaves the row to the filter. All threads, the same result. */
__device__ static bool
choose(const struct sample_args *a, int row, const float *logits, const struct sample_part *parts,
       const struct scan_total *total, const struct sample_plan *plan, int32_t *ret_token)
{
    const struct sample_params *p = &a->params[row];
    struct sample_row *state = &a->row[row];

    if (!isfinite(total->top)) {
        *ret_token = -1; /* banned, all of them, or a bias without bounds */
        return true;
    }
    if (!plan->draws) {
        *ret_token = total->id;
        return true;
    }
    if (!plan->filters) {
        *ret_token = draw_from_all(logits, a->vocab, parts, a->n_chunks, total->top,
                                   plan->inverse_temperature, philox_uniform(p->seed, p->draw));
        return true;
    }
    int n_groups = a->n_chunks * SAMPLE_GROUPS;
    int k = plan->limits_count ? p->top_k : SAMPLE_GUESS;
    uint32_t floor = SAMPLE_NO_LIST;
    if (k <= SAMPLE_GUESS)
        floor = find_floor(a->group + (size_t)row * (size_t)n_groups, n_groups, k);
    if (threadIdx.x == 0) {
        state->top = total->top;
        state->whole = total->weight;
        state->floor = floor;
        state->todo |= SAMPLE_FILTER;
    }
    return false;
}

/* The last block of the first scan of a row. */
template <int pass>
__device__ static void
finish_raw(const struct sample_args *a, int row, const struct sample_part *parts,
           const struct sample_plan *plan, int32_t slot)
{
    const struct sample_params *p = &a->params[row];
    struct sample_row *state = &a->row[row];
    struct scan_total total = reduce_row(parts, a->n_chunks, plan->inverse_temperature);
    const float *logits = a->logits + (size_t)row * (size_t)a->vocab;
    double log_sum = total.finite ? (double)total.top + log(total.sum) : 0;
    int32_t token = -1, replay = -1;
    bool known = true;

    for (int i = (int)threadIdx.x; i < (int)(sizeof(struct sample_result) / 4);
         i += SAMPLE_SCAN_THREADS)
        ((int32_t *)&a->results[row])[i] = 0;
    if (pass == SCAN_GREEDY) {
        __syncthreads();
        if (threadIdx.x == 0)
            sample_conclude(a, row, total.finite ? total.id : -1, -1, log_sum, slot);
        return;
    }
    if (threadIdx.x == 0) {
        state->todo = 0;
        state->n_listed = state->n_topped = 0;
        state->log_sum = log_sum;
        state->floor = state->top_floor = SAMPLE_NO_LIST;
    }
    __syncthreads();
    if (total.finite) {
        replay = __ldcg(&state->replay);
        if (plan->tops) {
            int n_groups = a->n_chunks * SAMPLE_GROUPS;
            int n = p->n_top < SAMPLE_MAX_TOP ? p->n_top : SAMPLE_MAX_TOP;
            uint32_t floor = find_floor(a->group + (size_t)row * (size_t)n_groups, n_groups, n);
            if (threadIdx.x == 0) {
                state->top_floor = floor;
                state->todo = SAMPLE_TOPS;
            }
        }
        if (p->forced >= 0) {
            token = p->forced < a->vocab ? p->forced : -1;
        } else if (plan->adjusts) {
            adjust_row(a->adjusted + (size_t)row * (size_t)a->vocab, a->vocab, p);
            if (threadIdx.x == 0)
                state->todo |= SAMPLE_ADJUST;
            known = false;
        } else {
            known = choose(a, row, logits, parts, &total, plan, &token);
        }
    }
    if (known && threadIdx.x == 0)
        sample_conclude(a, row, token, replay, log_sum, slot);
}

/* grid (chunks, rows) */
template <int pass>
__global__ void
__launch_bounds__(SAMPLE_SCAN_THREADS, 5) sample_scan(const __grid_constant__ struct sample_args a)
{
    DYNAMIC_SHARED(struct sample_part, parts);
    int row = (int)blockIdx.y, chunk = (int)blockIdx.x;
    struct sample_row *state = &a.row[row];
    const struct sample_params *p = &a.params[row];
    size_t offset = (size_t)row * (size_t)a.vocab;
    struct sample_plan plan = {};
    float4 x[LOADS];

    dependency_wait();
    /* Before anything is known of the row: it takes as long to hear that there is nothing to do. */
    if (pass != SCAN_ADJUSTED)
        load_chunk(x, a.logits + offset, chunk * SAMPLE_CHUNK, a.vocab);
    if (a.first_row + row >= a.block->n_outputs)
        return;
    if (pass == SCAN_ADJUSTED && !(state->todo & SAMPLE_ADJUST))
        return;
    if (pass == SCAN_ADJUSTED)
        load_chunk(x, a.adjusted + offset, chunk * SAMPLE_CHUNK, a.vocab);
    struct sample_part *part =
        a.part + (pass == SCAN_ADJUSTED ? a.part_stride : 0) + (size_t)row * (size_t)a.n_chunks;
    float *group = NULL, *copy = NULL;
    bool weights = false;
    int32_t slot = p->slot;

    if (pass != SCAN_GREEDY) {
        plan = sample_plan_of(p, a.vocab);
        weights = plan.draws && (pass == SCAN_ADJUSTED || !plan.adjusts);
        if (pass == SCAN_ADJUSTED ? plan.filters : plan.tops || (plan.filters && !plan.adjusts))
            group = a.group + ((size_t)row * (size_t)a.n_chunks + (size_t)chunk) * SAMPLE_GROUPS;
        if (pass == SCAN_RAW && plan.adjusts)
            copy = a.adjusted + offset;
        /* Early, for it is far away. */
        if (pass == SCAN_RAW && chunk == 0 && threadIdx.x == 0)
            state->replay = p->replay ? *p->replay : -1;
    }
    struct sample_part own = reduce_chunk<pass>(x, chunk * SAMPLE_CHUNK, a.vocab, weights,
                                                plan.inverse_temperature, group, copy);
    if (threadIdx.x == 0)
        part[chunk] = own;
    if (!sample_is_last(state, gridDim.x))
        return;
    for (int c = (int)threadIdx.x; c < a.n_chunks; c += SAMPLE_SCAN_THREADS) {
        float4 bits = __ldcg((const float4 *)&part[c]);
        parts[c] = (struct sample_part){bits.x, __float_as_int(bits.y), bits.z, bits.w};
    }
    __syncthreads();
    if (pass != SCAN_ADJUSTED) {
        finish_raw<pass>(&a, row, parts, &plan, slot);
        return;
    }
    struct scan_total total = reduce_row(parts, a.n_chunks, plan.inverse_temperature);
    int32_t token = -1;
    if (threadIdx.x == 0)
        state->todo &= ~SAMPLE_ADJUST;
    __syncthreads();
    if (choose(&a, row, a.adjusted + offset, parts, &total, &plan, &token) && threadIdx.x == 0)
        sample_conclude(&a, row, token, state->replay, state->log_sum, slot);
}

static size_t
chunks_of(int vocab)
{
    return ((size_t)vocab + SAMPLE_CHUNK - 1) / SAMPLE_CHUNK;
}

static size_t
row_bytes(size_t n_chunks)
{
    return sizeof(struct sample_row) +
           n_chunks * (2 * sizeof(struct sample_part) + SAMPLE_GROUPS * sizeof(float)) +
           (SAMPLE_LISTED + SAMPLE_TOP_LISTED) * sizeof(unsigned long long);
}

size_t
cuda_sample_bytes(const struct model_shape *shape, const struct device_limits *limits)
{
    int rows = limits->max_outputs < SAMPLE_SLAB ? limits->max_outputs : SAMPLE_SLAB;

    return (size_t)(rows < 1 ? 1 : rows) * row_bytes(chunks_of(shape->vocab));
}

int
cuda_sample_open(struct cuda_device *dev)
{
    /* Parts of a row: 64 KiB for the largest vocabulary there may be. */
    size_t bytes = chunks_of(1 << 24) * sizeof(struct sample_part);
    int result = ALLOW_SHARED(sample_scan<SCAN_GREEDY>, bytes);

    LOAD_KERNELS(dev, sample_scan<SCAN_GREEDY>);
    if (result >= 0)
        result = ALLOW_SHARED(sample_scan<SCAN_RAW>, bytes);
    if (result >= 0)
        result = ALLOW_SHARED(sample_scan<SCAN_ADJUSTED>, bytes);
    return result;
}

static int
sample_slab(struct cuda_device *dev, const struct sample_args *a, int n)
{
    dim3 grid((unsigned)a->n_chunks, (unsigned)n);
    size_t shared = (size_t)a->n_chunks * sizeof(struct sample_part);

    if (dev->all_greedy)
        return LAUNCH(sample_scan<SCAN_GREEDY>, grid, dim3(SAMPLE_SCAN_THREADS), shared,
                      dev->stream, *a);
    int result =
        LAUNCH(sample_scan<SCAN_RAW>, grid, dim3(SAMPLE_SCAN_THREADS), shared, dev->stream, *a);
    if (result >= 0)
        result = LAUNCH(sample_scan<SCAN_ADJUSTED>, grid, dim3(SAMPLE_SCAN_THREADS), shared,
                        dev->stream, *a);
    /* Blocks of a row: as many as find room beside the other rows', or work for their warps. */
    int units = (a->vocab + SAMPLE_UNIT - 1) / SAMPLE_UNIT;
    int most = (units + SAMPLE_FILTER_THREADS / 32 - 1) / (SAMPLE_FILTER_THREADS / 32);
    int blocks = 2 * dev->sm_count / n;
    blocks = blocks < 1 ? 1 : blocks > most ? most : blocks;
    if (result >= 0)
        result = LAUNCH(sample_filter, dim3((unsigned)blocks, (unsigned)n),
                        dim3(SAMPLE_FILTER_THREADS), 0, dev->stream, *a);
    return result;
}

int
cuda_sample(struct device *device, const float *logits, float *scratch, int vocab,
            const struct sample_params *params, int n, struct sample_result *results,
            struct stream *stream)
{
    struct cuda_device *dev = cuda_of(device);
    size_t n_chunks = chunks_of(vocab), room = dev->sample_scratch_bytes / row_bytes(n_chunks);
    size_t rows = room < SAMPLE_SLAB ? room : SAMPLE_SLAB;
    int result = 0, bits = 0;

    (void)stream;
    if (rows < 1)
        return -EINVAL;
    while ((1ll << bits) < vocab)
        bits++;
    struct sample_args a = {};
    a.block = dev->block;
    a.slot_token = dev->slot_token;
    a.vocab = vocab;
    a.n_chunks = (int)n_chunks;
    a.fixed = (float)(1ull << (62 - bits));
    a.part_stride = rows * n_chunks;
    a.row = (struct sample_row *)dev->sample_scratch;
    a.part = (struct sample_part *)(a.row + rows);
    a.listed = (unsigned long long *)(a.part + 2 * rows * n_chunks);
    a.topped = a.listed + rows * SAMPLE_LISTED;
    a.group = (float *)(a.topped + rows * SAMPLE_TOP_LISTED);
    for (int first = 0; first < n && result >= 0; first += (int)rows) {
        a.logits = logits + (size_t)first * (size_t)vocab;
        a.adjusted = scratch + (size_t)first * (size_t)vocab;
        a.params = params + first;
        a.results = results + first;
        a.first_row = first;
        result = sample_slab(dev, &a, n - first < (int)rows ? n - first : (int)rows);
    }
    return result;
}
