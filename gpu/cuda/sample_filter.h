/* sample_filter: the kernel for rows with top-k, top-p or min-p, and for top log-probabilities.
 * Included by sample.cu alone.
 *
 * The scan has left a floor, a key that at least k tokens reach: the k of top-k, or a guess. Warps list
 * the tokens from the floor on; chunks whose maximum is below are not read. The last block of the row
 * sorts the list by falling key and rising id, so that each filter is a prefix of it, and the draw is a
 * search by id. When the list was too long, or the guess too small, the block finds the edge by radix over
 * the whole row instead, as the host does. Masses are integers (weight 1 is `fixed`): their sums are the same in any
 * order. */
#ifndef GPU_CUDA_SAMPLE_FILTER_H
#define GPU_CUDA_SAMPLE_FILTER_H

#include "gpu/cuda/sample_row.h"
#include "gpu/philox.h"

enum {
    FILTER_WARPS = SAMPLE_FILTER_THREADS / 32,
    RADIX_BUCKETS = 2048,
    /* The list and its running masses; or a histogram of masses, in halves, low ones first. */
    FILTER_POOL = 2 * SAMPLE_LISTED,
};

/* A row in the hands of its last block. */
struct filter_row {
    const struct sample_args *a;
    const struct sample_params *p;
    struct sample_plan plan;
    const float *logit; /* that are sampled from, [vocab] */
    float top;
    double whole;
};

/* What is in: keys above `key`, and the first `ties` tokens with that very key. */
struct filter_edge {
    uint32_t key;
    unsigned long long ties;
};

__device__ static inline unsigned long long
warp_add(unsigned long long value)
{
    for (int lanes = 16; lanes > 0; lanes /= 2)
        value += __shfl_xor_sync(0xffffffffu, value, lanes);
    return value;
}

__device__ static inline unsigned long long
warp_running(unsigned long long value)
{
    for (int lanes = 1; lanes < 32; lanes *= 2) {
        unsigned long long other = __shfl_up_sync(0xffffffffu, value, lanes);
        value += (int)(threadIdx.x & 31) >= lanes ? other : 0;
    }
    return value;
}

/* Running sum over the threads of the block, its own included; *ret_all is the sum of all. */
__device__ static unsigned long long
block_running(unsigned long long value, unsigned long long *ret_all)
{
    __shared__ unsigned long long of_warp[FILTER_WARPS];
    int lane = (int)threadIdx.x & 31, warp = (int)threadIdx.x / 32;
    unsigned long long running = warp_running(value);

    __syncthreads();
    if (lane == 31)
        of_warp[warp] = running;
    __syncthreads();
    unsigned long long others = warp_running(of_warp[lane]);
    *ret_all = __shfl_sync(0xffffffffu, others, 31);
    others = __shfl_sync(0xffffffffu, others, warp > 0 ? warp - 1 : 0);
    return running + (warp > 0 ? others : 0);
}

__device__ static inline unsigned long long
fixed_weight(const struct filter_row *r, float logit)
{
    return (unsigned long long)(sample_weight(logit, r->top, r->plan.inverse_temperature) *
                                r->a->fixed);
}

/* u times the whole, such that the running sum that exceeds it is there: u is below 1. */
__device__ static inline unsigned long long
draw_target(const struct filter_row *r, unsigned long long whole)
{
    double u = philox_uniform(r->p->seed, r->p->draw);
    unsigned long long target = (unsigned long long)(u * (double)whole);

    return target < whole ? target : whole - 1;
}

/* Appends the tokens of 16 logits per lane (4 loads) whose key reaches the floor. */
__device__ static void
list_tokens(const float4 *x, int begin, int vocab, uint32_t floor, unsigned long long *list,
            uint32_t room, uint32_t *count)
{
    int lane = (int)threadIdx.x & 31;
    unsigned mine = 0;

#pragma unroll
    for (int j = 0; j < SAMPLE_UNIT / 128; j++) {
        const float value[4] = {x[j].x, x[j].y, x[j].z, x[j].w};
#pragma unroll
        for (int e = 0; e < 4; e++)
            mine |=
                (unsigned)(begin + j * 128 + lane * 4 + e < vocab && sample_key(value[e]) >= floor)
                << (4 * j + e);
    }
    if (!__any_sync(0xffffffffu, mine != 0))
        return;
    int n = __popc(mine), running = n;
    for (int lanes = 1; lanes < 32; lanes *= 2) {
        int other = __shfl_up_sync(0xffffffffu, running, lanes);
        running += lane >= lanes ? other : 0;
    }
    uint32_t at = 0;
    if (lane == 31)
        at = atomicAdd(count, (uint32_t)running);
    at = __shfl_sync(0xffffffffu, at, 31) + (uint32_t)(running - n);
#pragma unroll
    for (int j = 0; j < SAMPLE_UNIT / 128; j++) {
        const float value[4] = {x[j].x, x[j].y, x[j].z, x[j].w};
#pragma unroll
        for (int e = 0; e < 4; e++)
            if (mine >> (4 * j + e) & 1) {
                if (at < room)
                    list[at] =
                        sample_composite(sample_key(value[e]), begin + j * 128 + lane * 4 + e);
                at++;
            }
    }
}

/* Lists the tokens of a row from `floor` on: all blocks of the row, a unit per warp at a time. */
__device__ static void
list_row(const struct sample_args *a, const float *logit, const struct sample_part *part,
         uint32_t floor, unsigned long long *list, uint32_t room, uint32_t *count)
{
    int lane = (int)threadIdx.x & 31;
    int first = (int)blockIdx.x * FILTER_WARPS + (int)threadIdx.x / 32;
    int step = (int)gridDim.x * FILTER_WARPS, n_units = (a->vocab + SAMPLE_UNIT - 1) / SAMPLE_UNIT;

    /* Which of the next 32 units are worth reading: a lane looks at one. */
    for (int base = first; base < n_units; base += 32 * step) {
        int unit = base + lane * step;
        bool some =
            unit < n_units && sample_key(part[unit / (SAMPLE_CHUNK / SAMPLE_UNIT)].max) >= floor;
        unsigned units = __ballot_sync(0xffffffffu, some);
        for (; units; units &= units - 1) {
            int begin = (base + (__ffs((int)units) - 1) * step) * SAMPLE_UNIT;
            float4 x[SAMPLE_UNIT / 128];
#pragma unroll
            for (int j = 0; j < SAMPLE_UNIT / 128; j++)
                x[j] = sample_load(logit, begin + j * 128 + lane * 4, a->vocab);
            list_tokens(x, begin, a->vocab, floor, list, room, count);
        }
    }
}

/* Takes a list of n into `sorted`, by falling composite. Returns its padded length. All threads. */
__device__ static int
sort_list(unsigned long long *sorted, const unsigned long long *list, int n)
{
    int length = 2, thread = (int)threadIdx.x;

    while (length < n)
        length *= 2;
    for (int i = thread; i < length; i += SAMPLE_FILTER_THREADS)
        sorted[i] = i < n ? __ldcg(list + i) : 0;
    __syncthreads();
    for (int size = 2; size <= length; size *= 2)
        for (int stride = size / 2; stride > 0; stride /= 2) {
            for (int pair = thread; pair < length / 2; pair += SAMPLE_FILTER_THREADS) {
                int low = 2 * pair - (pair & (stride - 1)), high = low + stride;
                unsigned long long x = sorted[low], y = sorted[high];
                if (low & size ? x > y : x < y) {
                    sorted[low] = y;
                    sorted[high] = x;
                }
            }
            __syncthreads();
        }
    return length;
}

/* The first id at which the running sum, in order of ids, of the first n of the list exceeds target.
 * Bit by bit of the id, from the top. One warp. */
__device__ static int32_t
draw_by_id(const unsigned long long *sorted, const unsigned long long *running, int n,
           unsigned long long target, int vocab)
{
    int lane = (int)threadIdx.x & 31;
    uint32_t id = 0;
    unsigned long long before = 0;

    for (int bit = 31 - __clz(vocab); bit >= 0; bit--) {
        unsigned long long lower = 0;
        for (int i = lane; i < n; i += 32) {
            uint32_t other = (uint32_t)sample_id(sorted[i]);
            if (other >> bit == id >> bit)
                lower += running[i] - (i > 0 ? running[i - 1] : 0);
        }
        lower = warp_add(lower);
        if (before + lower <= target) {
            before += lower;
            id |= 1u << bit;
        }
    }
    return (int32_t)id;
}

/* The filters on the list. False: it does not tell. All threads. */
__device__ static bool
choose_listed(const struct filter_row *r, unsigned long long *pool, int n, bool complete,
              const unsigned long long *list, int32_t *ret_token)
{
    __shared__ int cut;
    __shared__ int32_t token;
    unsigned long long *sorted = pool, *running = pool + SAMPLE_LISTED, all;
    int length = sort_list(sorted, list, n), thread = (int)threadIdx.x;
    enum { OWN = SAMPLE_LISTED / SAMPLE_FILTER_THREADS };

    unsigned long long own[OWN], sum = 0;
#pragma unroll
    for (int j = 0; j < OWN; j++) {
        int i = OWN * thread + j;
        own[j] = i < n ? fixed_weight(r, sample_value((uint32_t)(sorted[i] >> 32))) : 0;
        sum += own[j];
    }
    sum = block_running(sum, &all) - sum;
#pragma unroll
    for (int j = 0; j < OWN; j++) {
        sum += own[j];
        if (OWN * thread + j < length)
            running[OWN * thread + j] = sum;
    }
    if (thread == 0)
        cut = INT32_MAX;
    __syncthreads();

    int most = r->plan.limits_count && r->p->top_k < n ? r->p->top_k : n;
    double whole = r->plan.limits_count ? (double)running[most - 1]
                   : complete           ? (double)all
                                        : r->whole * (double)r->a->fixed;
    double target = r->p->top_p > 0 ? (double)r->p->top_p * whole : 0;
    for (int i = thread; i < most; i += SAMPLE_FILTER_THREADS) {
        if (r->p->min_p > 0 && sample_weight(sample_value((uint32_t)(sorted[i] >> 32)), r->top,
                                             r->plan.inverse_temperature) < r->p->min_p) {
            atomicMin(&cut, i);
            break;
        }
        if (r->p->top_p < 1 && (double)running[i] >= target) {
            atomicMin(&cut, i + 1);
            break;
        }
    }
    __syncthreads();
    int n_in = cut;
    if (n_in > most) {
        if (!r->plan.limits_count && !complete)
            return false;
        n_in = most;
    }
    if (n_in == 0) {
        *ret_token = -1; /* min-p over 1 */
        return true;
    }
    if (thread < 32) {
        int32_t drawn =
            draw_by_id(sorted, running, n_in, draw_target(r, running[n_in - 1]), r->a->vocab);
        if (thread == 0)
            token = drawn;
    }
    __syncthreads();
    *ret_token = token;
    return true;
}

__device__ static inline void
shared_add(uint32_t *low, uint32_t *high, unsigned long long value)
{
    uint32_t part = (uint32_t)value;
    uint32_t carry = atomicAdd(low, part) + part < part;

    /* 64 bits of two native additions: a carry goes up once, whoever makes it. */
    if ((uint32_t)(value >> 32) + carry)
        atomicAdd(high, (uint32_t)(value >> 32) + carry);
}

/* One digit of the radix search. Of the buckets from the top, finds that at which the running sum
 * reaches *left (-1: `share` of all), and takes what is above it off *left. Sums are counts, or
 * masses. Tokens with keys below in->key, or beyond the ties, are out. Returns the bucket. */
__device__ static uint32_t
find_bucket(const struct filter_row *r, unsigned long long *pool, const struct filter_edge *in,
            int shift, int bits, uint32_t prefix, bool masses, double share, bool first,
            unsigned long long *left)
{
    enum { LOADS = 2 };
    __shared__ unsigned long long found_left;
    __shared__ uint32_t found;
    uint32_t *low = (uint32_t *)pool, *high = low + RADIX_BUCKETS, mask = (1u << bits) - 1;
    int thread = (int)threadIdx.x, vocab = r->a->vocab;

    __syncthreads();
    for (int i = thread; i < 2 * RADIX_BUCKETS; i += SAMPLE_FILTER_THREADS)
        low[i] = 0;
    __syncthreads();
    for (int base = 0; base < vocab; base += LOADS * 4 * SAMPLE_FILTER_THREADS) {
        float4 x[LOADS];
#pragma unroll
        for (int j = 0; j < LOADS; j++)
            x[j] = sample_load(r->logit, base + (j * SAMPLE_FILTER_THREADS + thread) * 4, vocab);
#pragma unroll
        for (int j = 0; j < LOADS; j++) {
            const float value[4] = {x[j].x, x[j].y, x[j].z, x[j].w};
#pragma unroll
            for (int e = 0; e < 4; e++) {
                uint32_t key = sample_key(value[e]);
                if (base + (j * SAMPLE_FILTER_THREADS + thread) * 4 + e >= vocab || key < in->key ||
                    (in->ties != ~0ull && key == in->key) ||
                    (!first && key >> (shift + bits) != prefix >> (shift + bits)))
                    continue;
                uint32_t bucket = key >> shift & mask;
                if (!masses)
                    atomicAdd(&low[bucket], 1u);
                else if (unsigned long long mass = fixed_weight(r, value[e]))
                    shared_add(&low[bucket], &high[bucket], mass);
            }
        }
    }
    __syncthreads();
    /* Ties are alike, so it does not matter which of them are in. */
    if (masses && thread == 0 && in->ties != ~0ull &&
        (first || in->key >> (shift + bits) == prefix >> (shift + bits))) {
        unsigned long long mass = in->ties * fixed_weight(r, sample_value(in->key));
        shared_add(&low[in->key >> shift & mask], &high[in->key >> shift & mask], mass);
    }
    __syncthreads();
    int upper = RADIX_BUCKETS - 1 - 2 * thread;
    unsigned long long one = (unsigned long long)high[upper] << 32 | low[upper];
    unsigned long long two = (unsigned long long)high[upper - 1] << 32 | low[upper - 1];
    unsigned long long all, above = block_running(one + two, &all) - (one + two);
    if (masses && first) {
        double wanted = ceil(share * (double)all);
        *left = wanted < 1 ? 1 : (unsigned long long)wanted;
        *left = *left < all ? *left : all;
    }
    if (above < *left && *left <= above + one + two) {
        bool is_one = *left <= above + one;
        found = (uint32_t)(is_one ? upper : upper - 1);
        found_left = *left - (is_one ? above : above + one);
    }
    __syncthreads();
    *left = found_left;
    return found;
}

/* The edge of the k largest logits of all, or of the most probable tokens of those that are in. */
__device__ static struct filter_edge
find_edge(const struct filter_row *r, unsigned long long *pool, const struct filter_edge *in,
          bool masses, unsigned long long left, double share)
{
    uint32_t prefix = 0;

    prefix |= find_bucket(r, pool, in, 21, 11, prefix, masses, share, true, &left) << 21;
    prefix |= find_bucket(r, pool, in, 10, 11, prefix, masses, share, false, &left) << 10;
    prefix |= find_bucket(r, pool, in, 0, 10, prefix, masses, share, false, &left);
    if (!masses)
        return (struct filter_edge){prefix, left};
    /* left is at most the mass of the ties, each of which weighs the same and more than nothing. */
    unsigned long long each = fixed_weight(r, sample_value(prefix));
    return (struct filter_edge){prefix, (left + each - 1) / each};
}

/* Is the token in, and what does it weigh? A tie (of the edge's key) is in if it is among the first. */
__device__ static inline unsigned long long
weight_inside(const struct filter_row *r, const struct filter_edge *edge, float logit,
              bool *ret_tie)
{
    uint32_t key = sample_key(logit);
    float weight = sample_weight(logit, r->top, r->plan.inverse_temperature);

    *ret_tie = edge->ties != ~0ull && key == edge->key;
    return key < edge->key || (r->p->min_p > 0 && weight < r->p->min_p)
               ? 0
               : (unsigned long long)(weight * r->a->fixed);
}

/* One warp: the token of the piece of the row in which the running sum exceeds target. `before` and
 * `ties` are the sum and the ties of the edge before it. */
__device__ static int32_t
draw_in_piece(const struct filter_row *r, const struct filter_edge *edge, int begin, int end,
              unsigned long long before, unsigned long long ties, unsigned long long target)
{
    int lane = (int)threadIdx.x & 31;

    for (int base = begin; base < end; base += 32) {
        int i = base + lane;
        bool tie = false;
        unsigned long long weight = i < end ? weight_inside(r, edge, r->logit[i], &tie) : 0;
        unsigned tied = __ballot_sync(0xffffffffu, tie);
        if (tie && ties + (unsigned)__popc(tied & ((1u << lane) - 1)) >= edge->ties)
            weight = 0;
        ties += (unsigned)__popc(tied);
        unsigned long long running = before + warp_running(weight);
        unsigned over = __ballot_sync(0xffffffffu, running > target);
        if (over)
            return base + __ffs((int)over) - 1;
        before = __shfl_sync(0xffffffffu, running, 31);
    }
    return -1;
}

/* The filters on the whole row. All threads. */
__device__ static int32_t
choose_from_all(const struct filter_row *r, unsigned long long *pool)
{
    __shared__ unsigned long long piece_mass[SAMPLE_FILTER_THREADS];
    __shared__ uint32_t piece_ties[SAMPLE_FILTER_THREADS];
    __shared__ int32_t token;
    struct filter_edge edge = {0, ~0ull};
    int thread = (int)threadIdx.x, lane = thread & 31, vocab = r->a->vocab;

    if (r->plan.limits_count)
        edge = find_edge(r, pool, &edge, false, (unsigned long long)r->p->top_k, 0);
    if (r->p->top_p < 1) {
        struct filter_edge in = edge;
        edge = find_edge(r, pool, &in, true, 0, r->p->top_p > 0 ? (double)r->p->top_p : 0);
    }
    /* A piece of the row for each thread, summed by warps. */
    int size = (vocab + SAMPLE_FILTER_THREADS - 1) / SAMPLE_FILTER_THREADS;
    size = (size + 127) / 128 * 128;
    for (int piece = thread / 32; piece < SAMPLE_FILTER_THREADS; piece += FILTER_WARPS) {
        unsigned long long mass = 0;
        unsigned n_ties = 0;
        int begin = piece * size < vocab ? piece * size : vocab;
        int end = vocab - begin < size ? vocab : begin + size;
#pragma unroll 2
        for (int at = begin + lane * 4; at < end; at += 128) {
            float4 x = sample_load(r->logit, at, vocab);
            const float value[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
            for (int e = 0; e < 4; e++) {
                bool tie;
                unsigned long long weight = weight_inside(r, &edge, value[e], &tie);
                n_ties += tie && at + e < vocab;
                mass += tie ? 0 : weight;
            }
        }
        mass = warp_add(mass);
        n_ties = __reduce_add_sync(0xffffffffu, n_ties);
        if (lane == 0) {
            piece_mass[piece] = mass;
            piece_ties[piece] = n_ties;
        }
    }
    if (thread == 0)
        token = -1;
    __syncthreads();
    unsigned long long own = piece_mass[thread], n_ties = piece_ties[thread], all;
    unsigned long long ties = block_running(n_ties, &all) - n_ties;
    if (edge.ties != ~0ull && ties < edge.ties) {
        bool tie;
        unsigned long long in = edge.ties - ties < n_ties ? edge.ties - ties : n_ties;
        own += in * weight_inside(r, &edge, sample_value(edge.key), &tie);
    }
    unsigned long long before = block_running(own, &all) - own;
    /* Nothing is left when min-p is over 1. */
    unsigned long long target = all > 0 ? draw_target(r, all) : 0;
    bool mine = before <= target && target < before + own;
    unsigned found = __ballot_sync(0xffffffffu, mine);
    if (found) {
        int source = __ffs((int)found) - 1, piece = (thread & ~31) + source;
        before = __shfl_sync(0xffffffffu, before, source);
        ties = __shfl_sync(0xffffffffu, ties, source);
        int begin = piece * size < vocab ? piece * size : vocab;
        int end = vocab - begin < size ? vocab : begin + size;
        int32_t drawn = draw_in_piece(r, &edge, begin, end, before, ties, target);
        if (lane == 0)
            token = drawn;
    }
    __syncthreads();
    return token;
}

/* The largest composite of raw logits below `limit`. All threads. */
__device__ static unsigned long long
largest_below(const float *logit, int vocab, unsigned long long limit)
{
    __shared__ unsigned long long of_warp[FILTER_WARPS];
    unsigned long long best = 0;

    for (int i = (int)threadIdx.x; i < vocab; i += SAMPLE_FILTER_THREADS) {
        unsigned long long other = sample_composite(sample_key(logit[i]), i);
        best = other < limit && other > best ? other : best;
    }
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        unsigned long long other = __shfl_xor_sync(0xffffffffu, best, lanes);
        best = other > best ? other : best;
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        of_warp[threadIdx.x / 32] = best;
    __syncthreads();
    for (int i = 0; i < FILTER_WARPS; i++)
        best = of_warp[i] > best ? of_warp[i] : best;
    return best;
}

/* Top log-probabilities. All threads. */
__device__ static void
write_tops(const struct sample_args *a, int row, unsigned long long *pool, double log_sum)
{
    const float *logit = a->logits + (size_t)row * (size_t)a->vocab;
    struct sample_result *result = &a->results[row];
    uint32_t listed = __ldcg(&a->row[row].n_topped);
    int n = a->params[row].n_top < SAMPLE_MAX_TOP ? a->params[row].n_top : SAMPLE_MAX_TOP;
    int thread = (int)threadIdx.x;

    n = n < a->vocab ? n : a->vocab;
    if (listed <= SAMPLE_TOP_LISTED) {
        (void)sort_list(pool, a->topped + (size_t)row * SAMPLE_TOP_LISTED, (int)listed);
    } else {
        /* Equal logits without end. */
        unsigned long long last = ~0ull;
        for (int i = 0; i < n; i++) {
            last = largest_below(logit, a->vocab, last);
            if (thread == 0)
                pool[i] = last;
        }
        __syncthreads();
    }
    if (thread < n) {
        result->top_token[thread] = sample_id(pool[thread]);
        result->top_logprob[thread] =
            (float)((double)sample_value((uint32_t)(pool[thread] >> 32)) - log_sum);
    }
    if (thread == 0)
        result->n_top = n;
    __syncthreads();
}

/* grid (blocks of a row, rows) */
__global__ void
__launch_bounds__(SAMPLE_FILTER_THREADS) sample_filter(const __grid_constant__ struct sample_args a)
{
    __shared__ unsigned long long pool[FILTER_POOL];
    int row = (int)blockIdx.y;
    struct sample_row *state = &a.row[row];
    const struct sample_params *p = &a.params[row];
    size_t offset = (size_t)row * (size_t)a.vocab;

    dependency_wait();
    if (a.first_row + row >= a.block->n_outputs)
        return;
    int todo = state->todo;
    if (!(todo & (SAMPLE_FILTER | SAMPLE_TOPS)))
        return;
    struct filter_row r = {&a,         p,           sample_plan_of(p, a.vocab), a.logits + offset,
                           state->top, state->whole};
    const struct sample_part *part = a.part + (size_t)row * (size_t)a.n_chunks;
    uint32_t floor = state->floor, top_floor = state->top_floor;
    unsigned long long *listed = a.listed + (size_t)row * SAMPLE_LISTED;

    if (todo & SAMPLE_TOPS)
        list_row(&a, r.logit, part, top_floor, a.topped + (size_t)row * SAMPLE_TOP_LISTED,
                 SAMPLE_TOP_LISTED, &state->n_topped);
    if (r.plan.adjusts) {
        r.logit = a.adjusted + offset;
        part += a.part_stride;
    }
    if ((todo & SAMPLE_FILTER) && floor != SAMPLE_NO_LIST)
        list_row(&a, r.logit, part, floor, listed, SAMPLE_LISTED, &state->n_listed);
    if (!sample_is_last(state, gridDim.x))
        return;
    if (todo & SAMPLE_TOPS)
        write_tops(&a, row, pool, state->log_sum);
    if (!(todo & SAMPLE_FILTER))
        return;
    uint32_t n = __ldcg(&state->n_listed);
    int32_t token = -1;
    bool known = false;
    if (floor != SAMPLE_NO_LIST && n <= SAMPLE_LISTED)
        known = choose_listed(&r, pool, (int)n, floor <= sample_key(-INFINITY), listed, &token);
    if (!known)
        token = choose_from_all(&r, pool);
    if (threadIdx.x == 0)
        sample_conclude(&a, row, token, state->replay, state->log_sum, p->slot);
}

#endif
