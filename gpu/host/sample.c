/* sample: choosing tokens on the CPU; the order of operations is told at struct sample_params.
 *
 * Top-k and top-p need an edge in the order of logits, not the order itself. A float's bits, turned
 * so that they rise with the value, are the key; a radix search from the top digit finds the key at
 * the edge and how many tokens that share it are still in (the lowest ids). So nothing is sorted,
 * nothing is allocated, and the result is exact at any vocabulary. Sums run in double and in order
 * of ids. Thread: rows are split over the pool; a row is one thread's. */
#include <math.h>
#include <string.h>

#include "gpu/host/host_state.h"
#include "gpu/philox.h"

struct sample_args {
    const float *logits;
    float *scratch;
    int vocab, n;
    const struct sample_params *params;
    struct sample_result *results;
    struct host_device *host;
};

/* What is still in: keys above `key`, and the first `ties` tokens with that very key. */
struct edge {
    uint32_t key;
    int64_t ties;
};

/* One row being sampled: all its tokens, or those that can still be in; in order of ids. */
struct draw {
    const float *logit; /* adjusted, [n] */
    const int32_t *id;  /* [n]; NULL: logit is indexed by id */
    int n;
    float top, inverse_temperature;
    const struct host_kernels *kernels;
    struct host_scratch *scratch;
};

static uint32_t
key_of(float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof bits);
    return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

/* Tie-breaking for a walk in order of ids: is this token in, given how many ties were before it? */
static bool
is_in(uint32_t key, const struct edge *edge, int64_t *ties_seen)
{
    return key > edge->key || (key == edge->key && (*ties_seen)++ < edge->ties);
}

static const int digit_shift[3] = {21, 10, 0}, digit_bits[3] = {11, 11, 10};

/* Fills count and mass of one digit's buckets for tokens in, whose higher digits equal those of
 * prefix. */
static void
fill_buckets(const struct draw *d, const struct edge *in, int level, uint32_t prefix, bool masses)
{
    struct host_scratch *s = d->scratch;
    int shift = digit_shift[level], above = shift + digit_bits[level];
    uint32_t mask = (1u << digit_bits[level]) - 1;
    int64_t ties_seen = 0;

    memset(s->count, 0, sizeof s->count);
    memset(s->mass, 0, sizeof s->mass);
    for (int begin = 0; begin < d->n; begin += HOST_SAMPLE_BLOCK) {
        int n = d->n - begin < HOST_SAMPLE_BLOCK ? d->n - begin : HOST_SAMPLE_BLOCK;
        if (masses)
            (void)d->kernels->exp_sum(s->weight, d->logit + begin, (size_t)n, d->top,
                                      d->inverse_temperature);
        for (int i = 0; i < n; i++) {
            uint32_t key = key_of(d->logit[begin + i]);
            if (key < in->key || !is_in(key, in, &ties_seen))
                continue;
            if (level > 0 && key >> above != prefix >> above)
                continue;
            uint32_t bucket = (key >> shift) & mask;
            s->count[bucket]++;
            if (masses)
                s->mass[bucket] += (double)s->weight[i];
        }
    }
}

/* Goes on with a copy of the tokens whose key is at least `floor`, if they fit. */
static void
shorten(struct draw *d, uint32_t floor, int64_t n_left)
{
    struct host_scratch *s = d->scratch;
    int n = 0;

    if (d->id || n_left > HOST_SAMPLE_SHORTLIST)
        return;
    for (int i = 0; i < d->n; i++)
        if (key_of(d->logit[i]) >= floor) {
            /* Tokens beyond an earlier edge are not among n_left, yet have such keys. */
            if (n == HOST_SAMPLE_SHORTLIST)
                return;
            s->listed_logit[n] = d->logit[i];
            s->listed_id[n++] = i;
        }
    d->logit = s->listed_logit;
    d->id = s->listed_id;
    d->n = n;
}

/* The edge of the k largest logits. */
static struct edge
edge_of_count(struct draw *d, int64_t k)
{
    struct edge all = {0, INT64_MAX};
    uint32_t prefix = 0;

    for (int level = 0; level < 3; level++) {
        fill_buckets(d, &all, level, prefix, false);
        uint32_t bucket = (1u << digit_bits[level]) - 1;
        int64_t above = 0;
        while (bucket > 0 && d->scratch->count[bucket] < k - above)
            above += d->scratch->count[bucket--];
        prefix |= bucket << digit_shift[level];
        k -= above;
        if (level == 0)
            shorten(d, prefix, above + d->scratch->count[bucket]);
    }
    return (struct edge){prefix, k};
}

/* The edge of the most probable tokens, of those that are in, that together reach `share`. */
static struct edge
edge_of_mass(struct draw *d, const struct edge *in, double share)
{
    struct host_scratch *s = d->scratch;
    uint32_t prefix = 0;
    double left = 0;

    for (int level = 0; level < 3; level++) {
        uint32_t bucket = 0, n_buckets = 1u << digit_bits[level];
        fill_buckets(d, in, level, prefix, true);
        if (level == 0) {
            for (uint32_t i = 0; i < n_buckets; i++)
                left += s->mass[i];
            left *= share;
        }
        /* From the top. Rounding may leave a crumb behind the last bucket: that is the edge then.
         */
        double passed = 0;
        int64_t n_left = 0;
        for (uint32_t i = n_buckets; i-- > 0;) {
            if (s->count[i] == 0)
                continue;
            left -= passed;
            passed = s->mass[i];
            bucket = i;
            n_left += s->count[i];
            if (passed >= left)
                break;
        }
        prefix |= bucket << digit_shift[level];
        if (level == 0)
            shorten(d, prefix, n_left);
        if (level == 2) {
            double each = s->mass[bucket] / s->count[bucket];
            double ties = each > 0 ? ceil(left / each) : s->count[bucket];
            ties = ties < 1 ? 1 : ties > s->count[bucket] ? s->count[bucket] : ties;
            return (struct edge){prefix, (int64_t)ties};
        }
    }
    return *in;
}

/* Walks what is left in order of ids until the running sum exceeds target (INFINITY: to the end).
 * Returns the id there, or the last id with any weight; *ret_sum is the sum so far. */
static int32_t
walk(const struct draw *d, const struct edge *in, float least_weight, double target,
     double *ret_sum)
{
    struct host_scratch *s = d->scratch;
    int64_t ties_seen = 0;
    int32_t last = -1;
    double sum = 0;

    for (int begin = 0; begin < d->n; begin += HOST_SAMPLE_BLOCK) {
        int n = d->n - begin < HOST_SAMPLE_BLOCK ? d->n - begin : HOST_SAMPLE_BLOCK;
        (void)d->kernels->exp_sum(s->weight, d->logit + begin, (size_t)n, d->top,
                                  d->inverse_temperature);
        for (int i = 0; i < n; i++) {
            uint32_t key = key_of(d->logit[begin + i]);
            if (key < in->key || !is_in(key, in, &ties_seen) || s->weight[i] < least_weight ||
                !(s->weight[i] > 0))
                continue;
            sum += (double)s->weight[i];
            last = d->id ? d->id[begin + i] : begin + i;
            if (sum > target) {
                *ret_sum = sum;
                return last;
            }
        }
    }
    *ret_sum = sum;
    return last;
}

/* The same without any edge, a block at a time; the sums of blocks are those of exp_sum. */
static int32_t
draw_from_all(const struct draw *d, double u)
{
    struct host_scratch *s = d->scratch;
    double whole = 0, sum = 0;
    int32_t last = -1;

    for (int pass = 0; pass < 2; pass++)
        for (int begin = 0; begin < d->n; begin += HOST_SAMPLE_BLOCK) {
            int n = d->n - begin < HOST_SAMPLE_BLOCK ? d->n - begin : HOST_SAMPLE_BLOCK;
            double block = d->kernels->exp_sum(s->weight, d->logit + begin, (size_t)n, d->top,
                                               d->inverse_temperature);
            if (pass == 0) {
                whole += block;
                continue;
            }
            double inside = sum;
            sum += block;
            if (!(sum > u * whole) && begin + n < d->n)
                continue;
            for (int i = 0; i < n; i++) {
                inside += (double)s->weight[i];
                if (s->weight[i] > 0)
                    last = begin + i;
                if (inside > u * whole && last == begin + i)
                    return last;
            }
            if (last >= 0)
                return last;
        }
    /* u * whole was rounded up to the whole, and the last block is all zeros. */
    return walk(d, &(struct edge){0, INT64_MAX}, 0, INFINITY, &sum);
}

static int32_t
draw_token(struct draw *d, const struct sample_params *p)
{
    struct edge in = {0, INT64_MAX};
    double u = philox_uniform(p->seed, p->draw), whole, sum;

    if (!(p->top_k > 0 && p->top_k < d->n) && p->top_p >= 1 && !(p->min_p > 0))
        return draw_from_all(d, u);
    if (p->top_k > 0 && p->top_k < d->n)
        in = edge_of_count(d, p->top_k);
    if (p->top_p < 1)
        in = edge_of_mass(d, &in, p->top_p > 0 ? (double)p->top_p : 0);
    (void)walk(d, &in, p->min_p, INFINITY, &whole);
    return walk(d, &in, p->min_p, u * whole, &sum);
}

static int32_t
first_with(const float *logit, int vocab, float value)
{
    for (int i = 0; i < vocab; i++)
        if (logit[i] == value)
            return i;
    return -1;
}

/* Copies the logits and applies bias, penalties and bans. */
static void
adjust(float *out, const float *logit, int vocab, const struct sample_params *p)
{
    memcpy(out, logit, (size_t)vocab * sizeof *out);
    for (int i = 0; i < p->n_bias; i++)
        if (p->bias[i].token >= 0 && p->bias[i].token < vocab)
            out[p->bias[i].token] += p->bias[i].bias;
    for (int i = 0; i < p->n_counts; i++) {
        int32_t token = p->counts[i].token;
        if (token < 0 || token >= vocab)
            continue;
        if (p->repetition_penalty > 0)
            out[token] = out[token] > 0 ? out[token] / p->repetition_penalty
                                        : out[token] * p->repetition_penalty;
        if (p->counts[i].in_output > 0)
            out[token] -=
                p->presence_penalty + p->frequency_penalty * (float)p->counts[i].in_output;
    }
    for (int i = 0; i < p->n_banned; i++)
        if (p->banned[i] >= 0 && p->banned[i] < vocab)
            out[p->banned[i]] = -INFINITY;
}

/* The n largest raw logits by insertion: rarely more than a few enter after the first hundred. */
static void
find_top(const float *logit, int vocab, double log_sum, int n, struct sample_result *result)
{
    n = n < SAMPLE_MAX_TOP ? n : SAMPLE_MAX_TOP;
    n = n < vocab ? n : vocab;
    int have = 0;
    float *best = result->top_logprob;
    for (int i = 0; i < vocab && n > 0; i++) {
        if (have == n && !(logit[i] > best[n - 1]))
            continue;
        int at = have < n ? have++ : n - 1;
        for (; at > 0 && logit[i] > best[at - 1]; at--) {
            best[at] = best[at - 1];
            result->top_token[at] = result->top_token[at - 1];
        }
        best[at] = logit[i];
        result->top_token[at] = i;
    }
    result->n_top = have;
    for (int i = 0; i < have; i++)
        best[i] = (float)((double)best[i] - log_sum);
}

static int32_t
choose(const struct sample_args *a, const float *logit, float raw_top, float *adjusted,
       const struct sample_params *p, struct host_scratch *scratch)
{
    bool plain = p->n_bias == 0 && p->n_counts == 0 && p->n_banned == 0, finite;
    float top = raw_top;

    if (p->forced >= 0)
        return p->forced < a->vocab ? p->forced : -1;
    if (!plain) {
        adjust(adjusted, logit, a->vocab, p);
        top = a->host->kernels->max(adjusted, (size_t)a->vocab, &finite);
        if (!isfinite(top))
            return -1;
        logit = adjusted;
    }
    if (!(p->temperature > 0))
        return first_with(logit, a->vocab, top);
    struct draw d = {logit, NULL, a->vocab, top, 1.0f / p->temperature, a->host->kernels, scratch};
    if (!isfinite(d.inverse_temperature))
        return first_with(logit, a->vocab, top);
    return draw_token(&d, p);
}

static void
sample_row(const struct sample_args *a, int row, struct host_scratch *scratch)
{
    const struct host_kernels *kernels = a->host->kernels;
    const struct sample_params *p = &a->params[row];
    struct sample_result *result = &a->results[row];
    const float *logit = a->logits + (size_t)row * (size_t)a->vocab;
    bool finite;

    *result = (struct sample_result){.token = -1};
    float top = kernels->max(logit, (size_t)a->vocab, &finite);
    if (!finite)
        return;
    double log_sum = (double)top + log(kernels->exp_sum(NULL, logit, (size_t)a->vocab, top, 1.0f));
    find_top(logit, a->vocab, log_sum, p->n_top, result);
    result->token = choose(a, logit, top, a->scratch + (size_t)row * (size_t)a->vocab, p, scratch);
    if (result->token >= 0 && p->replay && *p->replay >= 0 && *p->replay < a->vocab)
        result->token = *p->replay;
    if (result->token >= 0)
        result->logprob = (float)((double)logit[result->token] - log_sum);
}

static void
sample_part(void *arg, int part, int n_parts)
{
    struct sample_args *a = arg;
    long begin, end;

    pool_slice(a->n, 1, part, n_parts, &begin, &end);
    for (long row = begin; row < end; row++)
        sample_row(a, (int)row, &a->host->scratch[part]);
}

int
host_sample(struct device *dev, const float *logits, float *scratch, int vocab,
            const struct sample_params *params, int n, struct sample_result *results,
            struct stream *stream)
{
    struct sample_args a = {logits, scratch, vocab, n, params, results, host_of(dev)};

    host_run(a.host, sample_part, &a, n > 1 ? 1.0 * n * vocab : 0);
    return 0;
}
