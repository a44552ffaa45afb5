/* Choosing tokens: against a plain reference that sorts, and at every edge of its parameters. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "gpu/host/host_device.h"
#include "gpu/philox.h"

enum { VOCAB = 20000, MAX_N = 8 };
static float logits[MAX_N * VOCAB], scratch[MAX_N * VOCAB], before[MAX_N * VOCAB];
static struct device *dev;

static uint64_t seed = 1;
static double
noise(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (double)(int32_t)(seed >> 32) / 2147483648.0;
}

/* A row like a model's: a few high, many low; quantised so that ties happen. */
static void
fill(int n, int vocab, double step)
{
    for (int i = 0; i < n * vocab; i++) {
        double a = noise(), b = noise();
        logits[i] = (float)(floor((9 * a * a * a * fabs(b) - 3) / step) * step);
    }
}

static struct sample_result
sample(const struct sample_params *params, int vocab)
{
    struct sample_result result;

    memcpy(before, logits, sizeof before);
    assert_int_equal(dev->ops->sample(dev, logits, scratch, vocab, params, 1, &result, NULL), 0);
    assert_memory_equal(before, logits, sizeof before);
    return result;
}

struct candidate {
    double logit, weight;
    int id;
    bool kept;
};
static struct candidate sorted[VOCAB];

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

/* The documented order of operations by sorting, in double. The row is without bias and penalties.
 */
static int
reference(const struct sample_params *p, int vocab, int *ret_kept)
{
    double whole = 0, sum = 0, target;
    int kept = vocab, last = -1;

    for (int i = 0; i < vocab; i++)
        sorted[i] = (struct candidate){(double)logits[i], 0, i, false};
    qsort(sorted, (size_t)vocab, sizeof *sorted, by_logit);
    if (p->top_k > 0 && p->top_k < kept)
        kept = p->top_k;
    for (int i = 0; i < kept; i++)
        whole += sorted[i].weight =
            exp((sorted[i].logit - sorted[0].logit) / (double)p->temperature);
    if (p->top_p < 1) {
        int n = 0;
        while (n < kept && (n == 0 || sum < whole * (double)p->top_p * (1 - 1e-12)))
            sum += sorted[n++].weight;
        kept = n;
    }
    while (p->min_p > 0 && kept > 1 && sorted[kept - 1].weight < (double)p->min_p)
        kept--;
    whole = 0;
    for (int i = 0; i < kept; i++) {
        sorted[i].kept = true;
        whole += sorted[i].weight;
    }
    qsort(sorted, (size_t)vocab, sizeof *sorted, by_id);
    target = philox_uniform(p->seed, p->draw) * whole;
    sum = 0;
    for (int i = 0; i < vocab; i++)
        if (sorted[i].kept) {
            sum += sorted[i].weight;
            last = i;
            if (sum > target)
                break;
        }
    *ret_kept = kept;
    return last;
}

static void
every_mix_of_filters_chooses_what_sorting_chooses(void **state)
{
    static const int top_ks[] = {0, 1, 5, 40, 1000, VOCAB};
    static const float top_ps[] = {1, 0.95f, 0.5f, 0.01f, 0}, min_ps[] = {0, 0.02f, 0.5f, 1};
    static const float temperatures[] = {1, 0.7f, 0.05f, 3};
    static const int vocabs[] = {7, 300, 8192, VOCAB};
    uint64_t draw = 0;

    for (int v = 0; v < 4; v++)
        for (int k = 0; k < 6; k++)
            for (int p = 0; p < 5; p++)
                for (int m = 0; m < 4; m++) {
                    struct sample_params params = {.temperature = temperatures[draw % 4],
                                                   .top_k = top_ks[k],
                                                   .top_p = top_ps[p],
                                                   .min_p = min_ps[m],
                                                   .forced = -1,
                                                   .seed = 99,
                                                   .draw = draw++};
                    int kept;
                    fill(1, vocabs[v], draw % 2 ? 1e-6 : 0.25);
                    int want = reference(&params, vocabs[v], &kept);
                    assert_int_equal(sample(&params, vocabs[v]).token, want);
                    if (top_ps[p] <= 0 || params.top_k == 1)
                        assert_int_equal(kept, 1);
                }
}

static void
equal_logits_all_over_the_row_are_cut_by_rising_id(void **state)
{
    for (int i = 0; i < VOCAB; i++)
        logits[i] = 1.5f;
    for (uint64_t draw = 0; draw < 50; draw++) {
        struct sample_params params = {
            .temperature = 1, .top_k = 100, .top_p = 0.5f, .forced = -1, .seed = 3, .draw = draw};
        int want = (int)(philox_uniform(3, draw) * 50);
        assert_int_equal(sample(&params, VOCAB).token, want);
        params.top_k = 0;
        assert_int_equal(sample(&params, VOCAB).token, (int)(philox_uniform(3, draw) * VOCAB / 2));
        params.top_p = 1;
        assert_int_equal(sample(&params, VOCAB).token, (int)(philox_uniform(3, draw) * VOCAB));
    }
}

static void
draws_follow_the_probabilities(void **state)
{
    enum { N = 20000 };
    static const float row[6] = {0, 1, 2, -1, 0.5f, 2};
    struct sample_params params = {.temperature = 0.8f, .top_p = 1, .forced = -1, .seed = 7};
    int count[6] = {0};
    double whole = 0, chi = 0;

    memcpy(logits, row, sizeof row);
    for (params.draw = 0; params.draw < N; params.draw++)
        count[sample(&params, 6).token]++;
    for (int i = 0; i < 6; i++)
        whole += exp((double)row[i] / 0.8);
    for (int i = 0; i < 6; i++) {
        double want = N * exp((double)row[i] / 0.8) / whole;
        chi += (count[i] - want) * (count[i] - want) / want;
    }
    assert_true(chi < 20.5); /* 5 degrees of freedom: one in a thousand */
}

static void
a_draw_depends_on_seed_and_counter_and_on_no_neighbour(void **state)
{
    struct sample_params params[MAX_N];
    struct sample_result together[MAX_N], alone;
    int different = 0;

    fill(MAX_N, VOCAB, 1e-6);
    for (int i = 0; i < MAX_N; i++)
        params[i] = (struct sample_params){.temperature = 2,
                                           .top_p = i % 2 ? 0.9f : 1,
                                           .forced = -1,
                                           .seed = (uint64_t)i,
                                           .draw = 5,
                                           .n_top = i};
    assert_int_equal(dev->ops->sample(dev, logits, scratch, VOCAB, params, MAX_N, together, NULL),
                     0);
    for (int i = 0; i < MAX_N; i++) {
        assert_int_equal(
            dev->ops->sample(dev, logits + i * VOCAB, scratch, VOCAB, &params[i], 1, &alone, NULL),
            0);
        assert_memory_equal(&alone, &together[i], sizeof alone);
        params[i].draw++;
        assert_int_equal(
            dev->ops->sample(dev, logits + i * VOCAB, scratch, VOCAB, &params[i], 1, &alone, NULL),
            0);
        different += alone.token != together[i].token;
    }
    assert_true(different >= MAX_N - 2);
}

static void
greedy_takes_the_lowest_id_of_the_best(void **state)
{
    struct sample_params params = {.forced = -1, .top_k = 3, .top_p = 0.2f, .seed = 1};

    fill(1, VOCAB, 0.5);
    logits[4711] = logits[13000] = 50;
    assert_int_equal(sample(&params, VOCAB).token, 4711);
    params.temperature = 1e-6f;
    params.top_k = 1;
    assert_int_equal(sample(&params, VOCAB).token, 4711);
    params.temperature = 1e-45f; /* its inverse is infinite */
    params.top_k = 0;
    assert_int_equal(sample(&params, VOCAB).token, 4711);
    params.temperature = -1;
    assert_int_equal(sample(&params, VOCAB).token, 4711);
    params.temperature = 1e-6f;
    params.top_p = 1;
    int32_t token = sample(&params, VOCAB).token;
    assert_true(token == 4711 || token == 13000);
}

static void
log_probabilities_are_those_of_the_raw_logits(void **state)
{
    struct logit_bias bias[] = {{5, 100}, {6, -100}};
    struct sample_params params = {
        .forced = -1, .n_top = SAMPLE_MAX_TOP, .n_bias = 2, .bias = bias};
    double whole = 0;

    fill(1, 5000, 0.25);
    for (int i = 0; i < 5000; i++)
        whole += exp((double)logits[i]);
    struct sample_result result = sample(&params, 5000);
    assert_int_equal(result.token, 5);
    assert_true(fabs((double)result.logprob - ((double)logits[5] - log(whole))) < 1e-5);
    assert_int_equal(result.n_top, SAMPLE_MAX_TOP);
    for (int i = 0; i < 5000; i++)
        sorted[i] = (struct candidate){(double)logits[i], 0, i, false};
    qsort(sorted, 5000, sizeof *sorted, by_logit);
    for (int i = 0; i < SAMPLE_MAX_TOP; i++) {
        assert_int_equal(result.top_token[i], sorted[i].id);
        assert_true(fabs((double)result.top_logprob[i] - (sorted[i].logit - log(whole))) < 1e-5);
    }
    params.n_top = 1000; /* more than there is room for */
    assert_int_equal(sample(&params, 5000).n_top, SAMPLE_MAX_TOP);
    assert_int_equal(sample(&params, 3).n_top, 3);
}

static void
penalties_and_bans_apply_in_the_documented_order(void **state)
{
    static const float row[4] = {2, 1.9f, -1, -1.1f};
    struct token_count counts[] = {{0, 2}, {2, 0}, {99, 1}, {-1, 1}};
    struct logit_bias bias[] = {{1, -3}, {1, 1}, {99, 5}, {-7, 5}};
    int32_t banned[] = {0, 99, -1};
    struct sample_params params = {.forced = -1, .counts = counts, .bias = bias, .banned = banned};

    memcpy(logits, row, sizeof row);
    params.n_counts = 4;
    params.presence_penalty = 0.05f; /* 2 - 0.05 > 1.9 */
    assert_int_equal(sample(&params, 4).token, 0);
    params.frequency_penalty = 0.03f; /* 2 - 0.05 - 2 * 0.03 < 1.9 */
    assert_int_equal(sample(&params, 4).token, 1);
    params.presence_penalty = params.frequency_penalty = 0;
    params.repetition_penalty = 1.04f; /* 2 / 1.04 > 1.9 */
    assert_int_equal(sample(&params, 4).token, 0);
    params.repetition_penalty = 1.06f; /* 2 / 1.06 < 1.9 */
    assert_int_equal(sample(&params, 4).token, 1);
    params.n_bias = 4; /* 1.9 - 3 + 1 = -0.1 */
    params.n_banned = 3;
    params.repetition_penalty = 1.2f; /* -1 * 1.2 < -1.1: token 2 was in the prompt */
    assert_int_equal(sample(&params, 4).token, 1);
    bias[1].bias = 0; /* 1.9 - 3 = -1.1, as token 3: the lower id */
    assert_int_equal(sample(&params, 4).token, 1);
    bias[0].bias = -3.5f;
    assert_int_equal(sample(&params, 4).token, 3);
    params.temperature = 1;
    params.top_p = 1;
    for (params.draw = 0; params.draw < 200; params.draw++)
        assert_int_not_equal(sample(&params, 4).token, 0);
}

static void
a_forced_token_is_scored_and_never_changed(void **state)
{
    int32_t banned[] = {2};
    struct sample_params params = {
        .forced = 2, .temperature = 1, .top_k = 1, .n_banned = 1, .banned = banned};

    fill(1, 100, 0.25);
    struct sample_result result = sample(&params, 100);
    double whole = 0;
    for (int i = 0; i < 100; i++)
        whole += exp((double)logits[i]);
    assert_int_equal(result.token, 2);
    assert_true(fabs((double)result.logprob - ((double)logits[2] - log(whole))) < 1e-5);
    params.forced = 100;
    assert_int_equal(sample(&params, 100).token, -1);
}

static void
a_row_that_is_not_finite_or_all_banned_gives_no_token(void **state)
{
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    int32_t banned[] = {0, 1, 2};
    struct sample_params params = {.forced = -1, .temperature = 1, .top_p = 0.9f, .n_top = 3};

    for (int i = 0; i < 3; i++)
        for (int at = 0; at < 40; at++) {
            fill(1, 40, 0.25);
            logits[at] = bad[i];
            struct sample_result result = sample(&params, 40);
            assert_int_equal(result.token, -1);
            assert_int_equal(result.n_top, 0);
        }
    fill(1, 3, 0.25);
    params.banned = banned;
    params.n_banned = 3;
    assert_int_equal(sample(&params, 3).token, -1);
    params.temperature = 0;
    assert_int_equal(sample(&params, 3).token, -1);
    params.n_banned = 2;
    assert_int_equal(sample(&params, 3).token, 2);
    struct logit_bias bias[] = {{2, 3e38f}, {2, 3e38f}};
    params.bias = bias;
    params.n_bias = 2; /* adds up to infinity */
    assert_int_equal(sample(&params, 3).token, -1);
}

static void
all_instruction_sets_choose_alike(void **state)
{
    static const char *const isas[] = {"portable", "avx2", "avx512"};
    struct sample_result result[3];

    for (uint64_t draw = 0; draw < 20; draw++) {
        int n = 0;
        fill(1, VOCAB, 1e-6);
        for (int i = 0; i < 3; i++) {
            struct host_device_options options = {.n_threads = 1, .isa = isas[i]};
            struct sample_params params = {
                .temperature = 1, .top_p = 0.9f, .forced = -1, .draw = draw, .n_top = 5};
            struct device *other;
            if (host_device_open(&other, &options, NULL) < 0)
                continue;
            assert_int_equal(
                other->ops->sample(other, logits, scratch, VOCAB, &params, 1, &result[n], NULL), 0);
            assert_int_equal(result[n].token, result[0].token);
            assert_true(fabsf(result[n].logprob - result[0].logprob) < 1e-5f);
            n++;
            (void)other->ops->close(other);
        }
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_mix_of_filters_chooses_what_sorting_chooses),
        cmocka_unit_test(equal_logits_all_over_the_row_are_cut_by_rising_id),
        cmocka_unit_test(draws_follow_the_probabilities),
        cmocka_unit_test(a_draw_depends_on_seed_and_counter_and_on_no_neighbour),
        cmocka_unit_test(greedy_takes_the_lowest_id_of_the_best),
        cmocka_unit_test(log_probabilities_are_those_of_the_raw_logits),
        cmocka_unit_test(penalties_and_bans_apply_in_the_documented_order),
        cmocka_unit_test(a_forced_token_is_scored_and_never_changed),
        cmocka_unit_test(a_row_that_is_not_finite_or_all_banned_gives_no_token),
        cmocka_unit_test(all_instruction_sets_choose_alike),
    };
    struct host_device_options options = {.n_threads = 2, .isa = "auto"};

    if (host_device_open(&dev, &options, NULL) < 0)
        return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    (void)dev->ops->close(dev);
    return failed;
}
