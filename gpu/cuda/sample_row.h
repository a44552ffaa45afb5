/* sample_row: what the kernels of sample.cu keep of a row between them, and the small functions they
 * share. Included by sample.cu and sample_filter.h alone. */
#ifndef GPU_CUDA_SAMPLE_ROW_H
#define GPU_CUDA_SAMPLE_ROW_H

#include <math.h>

#include "gpu/cuda/cuda_state.h"

enum {
    SAMPLE_CHUNK = 4096, /* logits one block of a scan looks at */
    SAMPLE_GROUPS = 64,  /* groups of a chunk whose maxima are kept */
    SAMPLE_SCAN_THREADS = 256,
    SAMPLE_FILTER_THREADS = 1024,
    SAMPLE_UNIT = 512,       /* logits one warp gathers from at a time */
    SAMPLE_GUESS = 1024,     /* this many tokens are listed where the number is not known before */
    SAMPLE_LISTED = 2048,    /* room for listed tokens: those, and their neighbours in groups */
    SAMPLE_TOP_LISTED = 256, /* the same for top log-probabilities */
    SAMPLE_SLAB = 512,       /* rows of one launch */
};

/* What is still to be done for a row. */
enum { SAMPLE_ADJUST = 1, SAMPLE_FILTER = 2, SAMPLE_TOPS = 4 };

/* floor of a row whose tokens are not listed: everything is looked at instead. */
#define SAMPLE_NO_LIST 0xffffffffu

/* One chunk of a row. */
struct __align__(16) sample_part
{
    float max;    /* -infinity: of an adjusted row, all of it banned */
    int32_t id;   /* the first with it */
    float sum;    /* of exp(l - max); NaN: not all are finite */
    float weight; /* of exp((l - max) / temperature), where that is wanted */
};

struct __align__(16) sample_row
{
    double log_sum;            /* of raw logits */
    double whole;              /* sum of weights, that of the largest logit being 1 */
    float top;                 /* the largest of the logits that are sampled from */
    uint32_t floor, top_floor; /* keys from here on are listed */
    int32_t todo, replay;
    uint32_t ticket;             /* blocks of the row that have done their part */
    uint32_t n_listed, n_topped; /* may be more than there is room for */
};

struct sample_args {
    const float *logits;                /* [rows, vocab] */
    float *adjusted;                    /* [rows, vocab]; rows with a bias, penalty or ban */
    const struct sample_params *params; /* [rows] */
    struct sample_result *results;      /* [rows] */
    const struct cuda_block *block;
    int32_t *slot_token;
    struct sample_row *row;     /* [rows]; tickets 0 between launches */
    struct sample_part *part;   /* [2][rows, n_chunks]: raw, adjusted */
    float *group;               /* [rows, n_chunks * SAMPLE_GROUPS] */
    unsigned long long *listed; /* [rows, SAMPLE_LISTED] composites */
    unsigned long long *topped; /* [rows, SAMPLE_TOP_LISTED] */
    size_t part_stride;         /* from raw to adjusted */
    int vocab, n_chunks;
    int first_row; /* of this launch, among the rows of the operation */
    float fixed;   /* weight 1 as an integer: a power of two; a sum over the vocabulary fits */
};

/* How a row is sampled: what its parameters come to. */
struct sample_plan {
    bool adjusts, draws, filters, limits_count, tops;
    float inverse_temperature;
};

__device__ static inline float
sample_exp2(float x)
{
    float out;

    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
}

/* exp((l - top) * inverse_temperature). Its argument's rounding error grows as the value shrinks, so
 * the fast instruction does: what is off is off by less than 2^-22 of the largest. */
__device__ static inline float
sample_weight(float logit, float top, float inverse_temperature)
{
    return sample_exp2((logit - top) * inverse_temperature * 1.44269504f);
}

/* Rises with the value; the same as on the host. */
__device__ static inline uint32_t
sample_key(float value)
{
    uint32_t bits = __float_as_uint(value);

    return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

__device__ static inline float
sample_value(uint32_t key)
{
    return __uint_as_float(key ^ (key >> 31 ? 0x80000000u : 0xffffffffu));
}

/* Key, then id: the larger composite comes first in the order of tokens, ties by rising id. */
__device__ static inline unsigned long long
sample_composite(uint32_t key, int32_t id)
{
    return (unsigned long long)key << 32 | (0xffffffffu - (uint32_t)id);
}

__device__ static inline int32_t
sample_id(unsigned long long composite)
{
    return (int32_t)(0xffffffffu - (uint32_t)composite);
}

__device__ static inline struct sample_plan
sample_plan_of(const struct sample_params *p, int vocab)
{
    struct sample_plan plan;
    float repetition = p->repetition_penalty;
    bool counts = p->n_counts > 0 && ((repetition > 0 && repetition != 1.0f) ||
                                      p->presence_penalty != 0 || p->frequency_penalty != 0);

    plan.inverse_temperature = p->temperature > 0 ? 1.0f / p->temperature : 0.0f;
    plan.adjusts = p->forced < 0 && (p->n_bias > 0 || p->n_banned > 0 || counts);
    plan.draws = p->forced < 0 && p->temperature > 0 && isfinite(plan.inverse_temperature);
    plan.limits_count = p->top_k > 0 && p->top_k < vocab;
    plan.filters = plan.draws && (plan.limits_count || p->top_p < 1 || p->min_p > 0);
    plan.tops = p->n_top > 0;
    return plan;
}

/* Four logits from i on, a multiple of 4; -infinity beyond the vocabulary. */
__device__ static inline float4
sample_load(const float *row, int i, int vocab)
{
    float4 out;

    if (i + 4 <= vocab && ((uintptr_t)(row + i) & 15) == 0)
        return *(const float4 *)(row + i);
    out.x = i < vocab ? row[i] : -INFINITY;
    out.y = i + 1 < vocab ? row[i + 1] : -INFINITY;
    out.z = i + 2 < vocab ? row[i + 2] : -INFINITY;
    out.w = i + 3 < vocab ? row[i + 3] : -INFINITY;
    return out;
}

/* True in all threads of the block that is the last of its row's n_blocks to come here: it sees what
 * the others wrote. */
__device__ static inline bool
sample_is_last(struct sample_row *row, unsigned n_blocks)
{
    __shared__ bool last;

    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        last = n_blocks == 1 || atomicAdd(&row->ticket, 1u) == n_blocks - 1;
        __threadfence();
        if (last)
            row->ticket = 0;
    }
    __syncthreads();
    return last;
}

/* One thread: the token is known. A void row tells its slot token 0: a step that was issued before
 * anybody could look must find a token of the vocabulary there. */
__device__ static inline void
sample_conclude(const struct sample_args *a, int row, int32_t token, int32_t replay, double log_sum,
                int32_t slot)
{
    struct sample_result *result = &a->results[row];

    if (token >= 0 && replay >= 0 && replay < a->vocab)
        token = replay;
    result->token = token;
    result->logprob =
        token >= 0
            ? (float)((double)a->logits[(size_t)row * (size_t)a->vocab + (size_t)token] - log_sum)
            : 0.0f;
    if (slot >= 0)
        a->slot_token[slot] = token < 0 ? 0 : token;
}

#endif
