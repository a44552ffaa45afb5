/* sample: the same token as the CPU device for the same logits, and the same log-probabilities.
 *
 * Weights are exponentials of F32 values, so the two devices' sums differ in the last bits. Where
 * the tokens differ, the draw is done again in double by sorting: the difference is accepted only
 * where the draw, or an edge of a filter, falls within MARGIN of the step to the next token. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "gpu/philox.h"
#include "tests/gpu/ops_rig.h"

enum { MAX_N = 64, N_BIAS = 300, N_COUNTS = 200, N_BANNED = 50 };
#define MARGIN 4e-6

static struct logit_bias bias[N_BIAS];
static struct token_count counts[N_COUNTS];
static int32_t banned[N_BANNED], replay;

struct set {
    const char *name;
    struct sample_params p;
};

/* seed, draw, slot and forced are set row by row; forced 1: a token. n_*: how many of the lists. */
static const struct set sets[] = {
    {"greedy", {.forced = -1}},
    {"greedy, top 20", {.forced = -1, .n_top = 20}},
    {"greedy, bias", {.forced = -1, .n_bias = N_BIAS}},
    {"greedy, penalties",
     {.forced = -1,
      .n_counts = N_COUNTS,
      .repetition_penalty = 1.3f,
      .presence_penalty = 0.5f,
      .frequency_penalty = 0.25f}},
    {"greedy, banned, top 5", {.forced = -1, .n_banned = N_BANNED, .n_top = 5}},
    {"forced, top 3", {.forced = 1, .temperature = 1, .top_p = 0.5f, .n_top = 3}},
    {"t 1", {.forced = -1, .temperature = 1, .top_p = 1}},
    {"t 0.6 top-k 20", {.forced = -1, .temperature = 0.6f, .top_k = 20, .top_p = 1}},
    {"t 1 top-p 0.9", {.forced = -1, .temperature = 1, .top_p = 0.9f}},
    {"t 0.7 top-k 40 top-p 0.95", {.forced = -1, .temperature = 0.7f, .top_k = 40, .top_p = 0.95f}},
    {"t 1.5 top-k 5000 top-p 0.99",
     {.forced = -1, .temperature = 1.5f, .top_k = 5000, .top_p = 0.99f}},
    {"t 1 min-p 0.02", {.forced = -1, .temperature = 1, .top_p = 1, .min_p = 0.02f}},
    {"t 2 top-k 100 top-p 0.8 min-p 0.1",
     {.forced = -1, .temperature = 2, .top_k = 100, .top_p = 0.8f, .min_p = 0.1f}},
    {"t 1 top-k 1", {.forced = -1, .temperature = 1, .top_k = 1, .top_p = 1}},
    {"t 1 top-p 0", {.forced = -1, .temperature = 1, .top_p = 0}},
    {"t 1e-6", {.forced = -1, .temperature = 1e-6f, .top_p = 1}},
    {"t 0.8 top-p 0.9, penalties, bias, banned, top 20",
     {.forced = -1,
      .temperature = 0.8f,
      .top_p = 0.9f,
      .n_counts = N_COUNTS,
      .repetition_penalty = 1.1f,
      .presence_penalty = 0.3f,
      .frequency_penalty = 0.1f,
      .n_bias = N_BIAS,
      .n_banned = N_BANNED,
      .n_top = 20}},
    {"t 1, replay", {.forced = -1, .temperature = 1, .top_p = 1, .replay = &replay}},
};
enum { N_SETS = sizeof sets / sizeof *sets };

/* ------------------------------------------------------------------ how close a draw was */

struct candidate {
    double logit, weight;
    int id;
    bool kept;
};

static int
by_logit(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;

    if (x->logit != y->logit)
        return x->logit > y->logit ? -1 : 1;
    return x->id - y->id;
}

static int
by_id(const void *a, const void *b)
{
    return ((const struct candidate *)a)->id - ((const struct candidate *)b)->id;
}

static void
adjust(struct candidate *c, int vocab, const struct sample_params *p)
{
    for (int i = 0; i < p->n_bias; i++)
        if (p->bias[i].token < vocab)
            c[p->bias[i].token].logit += (double)p->bias[i].bias;
    for (int i = 0; i < p->n_counts; i++) {
        if (p->counts[i].token >= vocab)
            continue;
        double *l = &c[p->counts[i].token].logit, penalty = (double)p->repetition_penalty;
        if (penalty > 0)
            *l = *l > 0 ? *l / penalty : *l * penalty;
        if (p->counts[i].in_output > 0)
            *l -=
                (double)p->presence_penalty + (double)p->frequency_penalty * p->counts[i].in_output;
    }
    for (int i = 0; i < p->n_banned; i++)
        if (p->banned[i] < vocab)
            c[p->banned[i]].logit = -INFINITY;
}

/* The share of the whole by which the draw or an edge of a filter missed the next token. */
static double
margin_of(const float *logits, int vocab, const struct sample_params *p)
{
    struct candidate *c = calloc((size_t)vocab, sizeof *c);
    double whole = 0, sum = 0, margin = 1;
    int kept = vocab;

    ASSERT(c);
    for (int i = 0; i < vocab; i++)
        c[i] = (struct candidate){(double)logits[i], 0, i, false};
    adjust(c, vocab, p);
    qsort(c, (size_t)vocab, sizeof *c, by_logit);
    if (!(p->temperature > 0)) {
        margin = vocab > 1 ? (c[0].logit - c[1].logit) / fmax(fabs(c[0].logit), 1) : 1;
        free(c);
        return margin;
    }
    if (p->top_k > 0 && p->top_k < kept)
        kept = p->top_k;
    /* Two adjusted values that differ by rounding alone may change places at the edge. */
    if (kept < vocab && (p->n_bias || p->n_counts))
        margin = fmin(margin, (c[kept - 1].logit - c[kept].logit) / fmax(fabs(c[kept].logit), 1));
    for (int i = 0; i < kept; i++)
        whole += c[i].weight = exp((c[i].logit - c[0].logit) / (double)p->temperature);
    if (p->top_p < 1) {
        int n = 0;

        while (n < kept && (n == 0 || sum < whole * (double)p->top_p)) {
            sum += c[n++].weight;
            margin = fmin(margin, fabs(sum / whole - (double)p->top_p));
        }
        kept = n;
    }
    for (int i = 0; i < kept && p->min_p > 0; i++)
        margin = fmin(margin, fabs(c[i].weight - (double)p->min_p));
    while (p->min_p > 0 && kept > 1 && c[kept - 1].weight < (double)p->min_p)
        kept--;
    whole = 0;
    for (int i = 0; i < kept; i++) {
        c[i].kept = true;
        whole += c[i].weight;
    }
    qsort(c, (size_t)vocab, sizeof *c, by_id);
    double u = philox_uniform(p->seed, p->draw);
    sum = 0;
    for (int i = 0; i < vocab; i++)
        if (c[i].kept) {
            sum += c[i].weight;
            margin = fmin(margin, fabs(sum / whole - u));
        }
    free(c);
    return margin;
}

/* ------------------------------------------------------------------ cases */

/* Like a model's: a bell, and a few that stand out; in steps, so that ties happen, if asked for. */
static void
fill_logits(struct rig *rig, struct twin *logits, bool ties)
{
    float *at = logits->at[HOST];

    for (int64_t i = 0; i < logits->rows * logits->cols; i++) {
        float value = rig_random(rig, 2) + rig_random(rig, 2) + rig_random(rig, 2) - 4;

        if (rig_bits(rig) % 997 == 0)
            value += 6 + rig_random(rig, 4);
        at[i] = ties ? floorf(value * 4) / 4 : value;
    }
    twin_upload(rig, logits);
}

static void
fill_lists(struct rig *rig, int vocab, const float *logits)
{
    int32_t best = 0;

    for (int i = 0; i < vocab; i++)
        best = logits[i] > logits[best] ? i : best;
    for (int i = 0; i < N_BIAS; i++)
        bias[i] =
            (struct logit_bias){(int32_t)(rig_bits(rig) % (uint32_t)vocab), rig_random(rig, 8)};
    /* A token is counted once: penalties of one that occurs twice would apply twice. */
    for (int i = 0; i < N_COUNTS; i++)
        counts[i] = (struct token_count){(int32_t)(((int64_t)best + i * 37ll) % vocab), i % 4};
    for (int i = 0; i < N_BANNED; i++)
        banned[i] = (int32_t)(((int64_t)best + i * 31ll) % vocab);
    replay = vocab / 2;
}

/* set < 0: every row another one. */
static void
make_outputs(struct rig *rig, struct forward_output *outputs, int n, int set, int vocab)
{
    for (int i = 0; i < n; i++) {
        struct sample_params *p = &outputs[i].params;

        *p = sets[set < 0 ? i % N_SETS : set].p;
        outputs[i].row = 0;
        p->seed = rig_bits(rig);
        p->draw = rig_bits(rig) % 5000;
        p->slot = i;
        p->forced = p->forced < 0 ? -1 : (int32_t)(p->seed % (uint64_t)vocab);
        p->bias = p->n_bias ? bias : NULL;
        p->n_counts = p->n_counts < vocab / 2 ? p->n_counts : vocab / 2;
        p->counts = p->n_counts ? counts : NULL;
        p->n_banned = p->n_banned < vocab / 2 ? p->n_banned : vocab / 2;
        p->banned = p->n_banned ? banned : NULL;
    }
}

static void
run_sample(struct rig *rig, struct twin *logits, struct twin *scratch,
           const struct forward_output *outputs, int n)
{
    rig_plain_batch(rig, 1, true);
    rig_begin(rig, outputs, n);
    for (int s = 0; s < SIDES; s++) {
        struct ops_side *side = &rig->side[s];
        rig_did(rig, s,
                side->dev->ops->sample(side->dev, logits->at[s], scratch->at[s], (int)logits->cols,
                                       side->view.params, n, side->view.results, NULL));
    }
    rig_end(rig);
}

static void
compare_results(struct rig *rig, struct twin *logits, const struct forward_output *outputs, int n,
                const char *name, const char *kind)
{
    const float *raw = logits->at[HOST];
    int vocab = (int)logits->cols, differ = 0, tops = 0;
    double widest = 0, off = 0;

    for (int i = 0; i < n; i++) {
        const struct sample_result *want = &rig->side[HOST].results[i];
        const struct sample_result *have = &rig->side[CUDA].results[i];

        if (want->token != have->token) {
            differ++;
            widest =
                fmax(widest, margin_of(raw + (size_t)i * (size_t)vocab, vocab, &outputs[i].params));
        } else if (want->token >= 0) {
            off = fmax(off, fabs((double)want->logprob - (double)have->logprob));
        }
        tops += want->n_top != have->n_top;
        for (int k = 0; k < want->n_top && k < have->n_top; k++) {
            tops += want->top_token[k] != have->top_token[k];
            off = fmax(off, fabs((double)want->top_logprob[k] - (double)have->top_logprob[k]));
        }
    }
    ops_report_fact(rig, "sample", widest <= MARGIN && differ * 16 <= n + 15 && tops == 0,
                    "%s, %d of %d%s: %d tokens differ (by %.1g), %d tops", name, n, vocab, kind,
                    differ, widest, tops);
    ops_report(rig, "sample", (struct ops_error){off, off}, 2e-5, "%s, %d of %d%s: logprob", name,
               n, vocab, kind);
}

/* A row that is not finite, and one whose tokens are all banned, give no token on both. */
static void
check_void_rows(struct rig *rig, struct twin *logits, struct twin *scratch)
{
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    int vocab = (int)logits->cols;
    float *at = logits->at[HOST];
    struct forward_output outputs[4];
    int32_t *all = calloc((size_t)vocab, sizeof *all);
    bool none = true;

    ASSERT(all);
    make_outputs(rig, outputs, 4, 8, vocab);
    for (int i = 0; i < 3; i++)
        at[(size_t)i * (size_t)vocab + (size_t)(vocab - 1 - i)] = bad[i];
    for (int i = 0; i < vocab; i++)
        all[i] = i;
    outputs[1].params.temperature = 0;
    outputs[3].params.banned = all;
    outputs[3].params.n_banned = vocab;
    twin_upload(rig, logits);
    run_sample(rig, logits, scratch, outputs, 4);
    for (int i = 0; i < 4; i++)
        none = none && rig->side[HOST].results[i].token == -1 &&
               rig->side[CUDA].results[i].token == -1;
    ops_report_fact(rig, "sample", none, "of %d: not finite, or all banned: no token", vocab);
    free(all);
}

/* What was sampled for a slot is the token of a row that asks for it. */
static void
check_slots(struct rig *rig, int n)
{
    enum { HIDDEN = 64 };
    int32_t of_slot[MAX_N], sampled[MAX_N];
    struct ops_seq seqs[MAX_N];
    struct twin *table = rig_twin(rig, CONTENT_MATRIX, rig->shape.vocab, HIDDEN, 1, 0);
    struct twin *out = rig_twin(rig, CONTENT_F32, n, HIDDEN, 0, 0);

    for (int i = 0; i < n; i++) {
        of_slot[i] = TOKEN_OF_SLOT;
        sampled[i] = rig->side[CUDA].results[i].token;
        seqs[i] = (struct ops_seq){.n_rows = 1, .context = 1, .slot = i};
    }
    rig_batch(rig, seqs, n, n);
    memcpy(rig->token, sampled, (size_t)n * sizeof *sampled);
    rig->cuda_token = of_slot;
    rig_begin(rig, NULL, 0);
    rig->cuda_token = NULL;
    for (int s = 0; s < SIDES; s++) {
        struct ops_side *side = &rig->side[s];
        rig_did(rig, s,
                side->dev->ops->embed(side->dev, out->at[s], twin_weight(table, s),
                                      &side->view.batch, NULL));
    }
    rig_end(rig);
    ops_report(rig, "sample", twin_error(rig, out), BOUND_EXACT, "%d slots: TOKEN_OF_SLOT", n);
}

static void
check_vocab(int vocab, int n, bool ties)
{
    struct model_shape shape = {.vocab = vocab,
                                .hidden = 64,
                                .layers = 1,
                                .heads = 1,
                                .kv_heads = 1,
                                .head_dim = 64,
                                .intermediate = 64};
    struct device_limits limits = {.max_rows = MAX_N,
                                   .max_sequences = MAX_N,
                                   .max_outputs = MAX_N,
                                   .n_states = MAX_N,
                                   .max_step_pages = 4,
                                   .page_tokens = 16};
    struct forward_output outputs[MAX_N];
    const char *kind = ties ? ", ties" : "";
    struct rig rig;

    rig_open(&rig, &shape, &limits);
    struct twin *logits = rig_twin(&rig, CONTENT_F32, n, vocab, 0, 0);
    struct twin *scratch = rig_twin(&rig, CONTENT_F32, n, vocab, 0, 0);
    fill_logits(&rig, logits, ties);
    fill_lists(&rig, vocab, logits->at[HOST]);
    for (int set = -1; set < N_SETS; set++) {
        make_outputs(&rig, outputs, n, set, vocab);
        run_sample(&rig, logits, scratch, outputs, n);
        compare_results(&rig, logits, outputs, n, set < 0 ? "every row another" : sets[set].name,
                        kind);
    }
    struct ops_error changed = twin_error(&rig, logits);
    ops_report(&rig, "sample", changed, BOUND_EXACT, "%d of %d: logits are left as they are", n,
               vocab);
    if (n <= 16)
        check_slots(&rig, n);
    if (n >= 4)
        check_void_rows(&rig, logits, scratch);
    rig_close(&rig);
}

void
ops_sample(void)
{
    if (!ops_wanted("sample"))
        return;
    check_vocab(1009, 5, false);
    check_vocab(8192, 3, false); /* two chunks of a scan */
    if (ops_options.quick)
        return;
    check_vocab(17, 33, false);
    check_vocab(32000, 64, false);
    check_vocab(32000, 64, true);
    check_vocab(151936, 1, false);
    check_vocab(151936, 48, false);
    check_vocab(151936, 16, true);
}
