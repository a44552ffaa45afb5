/* A whole forward pass: near the CPU device, and the same bits for a sequence whoever is beside it.
 *
 * What may change bits on CUDA is the number of rows of a product (gpu/cuda/README.md), so batches
 * that are compared have the same padded number of rows. Decode steps are run until their graph has
 * been captured and replayed. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "daemon/cuda_plugin.h"
#include "gpu/cuda/counters.h"
#include "gpu/host/host_device.h"
#include "tests/gpu/ops_model.h"
#include "tests/gpu/ops_rig.h"

#define BOUND_MODEL 6e-2 /* BF16 from layer to layer; as the golden models on a GPU */

/* Where each sequence stands: four of them behind more than a piece of attention_decode.cu. */
static const int context_of[MODEL_SEQS] = {100, 3,   40,  255, 256, 600, 700, 17, 1,  90,  12,
                                           300, 5,   64,  128, 33,  20,  31,  32, 47, 48,  49,
                                           63,  65,  79,  80,  81,  95,  96,  97, 99, 110, 111,
                                           112, 113, 127, 129, 143, 160, 200, 7,  9,  11,  2};
/* For the table's lines; issues nothing. */
static struct rig table;

static void
did(int status)
{
    rig_did(&table, CUDA, status);
}

static bool
same_result(const struct sample_result *a, const struct sample_result *b)
{
    size_t n = (size_t)a->n_top;

    return a->token == b->token && memcmp(&a->logprob, &b->logprob, sizeof a->logprob) == 0 &&
           a->n_top == b->n_top && a->n_top == SAMPLE_MAX_TOP &&
           memcmp(a->top_token, b->top_token, n * sizeof *a->top_token) == 0 &&
           memcmp(a->top_logprob, b->top_logprob, n * sizeof *a->top_logprob) == 0;
}

/* Brings every sequence to its context, in steps of its own, and puts its state aside. */
static void
prefill_all(struct ops_model *m)
{
    for (int s = 0; s < MODEL_SEQS; s++) {
        for (int at = 0; at < context_of[s]; at += 128) {
            int n = context_of[s] - at < 128 ? context_of[s] - at : 128;
            did(model_step(m, &(struct model_part){s, at, n, false}, 1, 0, NULL, NULL));
        }
        did(model_save(m, s));
    }
}

static struct model_part
decode_of(int seq)
{
    return (struct model_part){seq, context_of[seq], 1, seq == 7};
}

/* Decodes these sequences where they stand; the result of the one at index `of`. */
static struct sample_result
decode(struct ops_model *m, const int *seqs, int n, int of)
{
    struct model_part parts[MODEL_SEQS];
    struct sample_result results[MODEL_SEQS];

    for (int i = 0; i < n; i++) {
        parts[i] = decode_of(seqs[i]);
        did(model_restore(m, seqs[i]));
    }
    did(model_step(m, parts, n, n, NULL, results));
    return results[of];
}

static void
check_decode(struct ops_model *m)
{
    static const struct {
        int n, of;
        int seqs[8];
    } batch[] = {
        {5, 0, {0, 1, 2, 3, 4}},
        {5, 0, {0, 5, 6, 9, 11}},
        {5, 3, {10, 5, 7, 0, 6}},
        {7, 6, {1, 2, 8, 12, 13, 14, 0}},
        {8, 2, {15, 5, 0, 6, 11, 3, 4, 14}},
    };
    struct sample_result first = decode(m, batch[0].seqs, batch[0].n, batch[0].of);

    for (int b = 0; b < 5; b++) {
        bool same = true;

        for (int i = 0; i < 4; i++) { /* issued, captured, replayed, replayed */
            struct sample_result again = decode(m, batch[b].seqs, batch[b].n, batch[b].of);
            same = same && same_result(&first, &again);
        }
        ops_report_fact(&table, "neighbours", same, "decode, %d sequences, ours at %d: same bits",
                        batch[b].n, batch[b].of);
    }
    /* One, two and three of four rows. */
    static const int few[4][4] = {{0, 1, 2, 3}, {0, 5, 6}, {9, 4, 0}, {2, 0, 6, 5}};
    static const int few_n[4] = {4, 3, 3, 4}, few_of[4] = {0, 0, 2, 1};
    first = decode(m, few[0], 4, 0);
    for (int b = 0; b < 4; b++) {
        bool same = true;

        for (int i = 0; i < 4; i++) {
            struct sample_result again = decode(m, few[b], few_n[b], few_of[b]);
            same = same && same_result(&first, &again);
        }
        ops_report_fact(&table, "neighbours", same, "decode, %d sequences, ours at %d: same bits",
                        few_n[b], few_of[b]);
    }
    struct sample_result pair = decode(m, (int[]){0, 6}, 2, 0), other;
    other = decode(m, (int[]){5, 0}, 2, 1);
    ops_report_fact(&table, "neighbours", same_result(&pair, &other),
                    "decode, 2 sequences, ours at 0 and at 1: same bits");
}

/* n sequences: `first`, then the others in order, but for those in `without`. */
static void
choose(int *seqs, int n, int first, const int *without, int n_without)
{
    int have = 0;

    seqs[have++] = first;
    for (int s = 0; s < MODEL_SEQS && have < n; s++) {
        bool wanted = s != first;
        for (int i = 0; i < n_without; i++)
            wanted = wanted && s != without[i];
        if (wanted)
            seqs[have++] = s;
    }
    ASSERT(have == n);
}

/* More rows than a kernel for few takes; the same number of pieces with and without a row that has two. */
static void
check_decode_many(struct ops_model *m)
{
    static const int longer[] = {4, 5, 6, 11};
    int whole[40], one_longer[40], all_longer[36];
    const struct {
        const int *seqs;
        int n, ours, longer; /* where those are; -1: not among them */
    } batch[] = {{whole, 40, 0, -1}, {one_longer, 39, 1, 0}, {all_longer, 36, 1, 0}};
    struct sample_result first, first_longer;

    choose(whole, 40, 0, longer, 4);
    choose(one_longer, 39, 11, longer, 3);
    choose(all_longer, 36, 11, NULL, 0);
    for (int i = 0; i < 12; i++) {
        int n = batch[i % 3].n, at = batch[i % 3].longer;
        struct sample_result result = decode(m, batch[i % 3].seqs, n, batch[i % 3].ours);

        if (i == 0)
            first = result;
        ops_report_fact(&table, "neighbours", same_result(&first, &result),
                        "decode, %d sequences: same bits", n);
        if (at < 0)
            continue;
        result = decode(m, batch[i % 3].seqs, n, at);
        if (i == 1)
            first_longer = result;
        ops_report_fact(&table, "neighbours", same_result(&first_longer, &result),
                        "decode, %d sequences, ours longer: same bits", n);
    }
}

/* One step of these parts, each from its saved state or from nothing; the result of `of`. */
static struct sample_result
prefill(struct ops_model *m, const struct model_part *parts, int n, int n_decode, int of)
{
    struct sample_result results[MODEL_SEQS];

    for (int i = 0; i < n; i++)
        if (parts[i].context > 0)
            did(model_restore(m, parts[i].seq));
    did(model_step(m, parts, n, n_decode, NULL, results));
    return results[of];
}

static void
check_prefill(struct ops_model *m)
{
    /* 128 rows, three outputs. */
    struct sample_result a = prefill(
        m, (struct model_part[]){{0, 0, 70, false}, {1, 0, 40, false}, {2, 0, 18, false}}, 3, 0, 0);
    struct sample_result b = prefill(
        m, (struct model_part[]){{0, 0, 70, false}, {3, 0, 1, false}, {4, 0, 57, true}}, 3, 0, 0);
    struct sample_result c = prefill(
        m, (struct model_part[]){{5, 0, 33, false}, {6, 0, 25, false}, {0, 0, 70, false}}, 3, 0, 2);
    ops_report_fact(&table, "neighbours", same_result(&a, &b),
                    "prefill of 70 beside 40 and 18, beside 1 and 57: same bits");
    ops_report_fact(&table, "neighbours", same_result(&a, &c),
                    "prefill of 70 first, and last beside 33 and 25: same bits");
    struct sample_result alone = prefill(m, (struct model_part[]){{0, 0, 70, false}}, 1, 0, 0);
    printf("%-14s %-100s %s\n", "neighbours", "prefill of 70 alone, and in 128 rows",
           same_result(&a, &alone) ? "note: same bits" : "note: not the same bits");
    /* A chunk behind a context. The prefills above wrote sequence 0 anew: here it is 9 and 13. */
    a = prefill(m, (struct model_part[]){{9, 90, 30, false}, {10, 0, 20, false}}, 2, 0, 0);
    b = prefill(m, (struct model_part[]){{13, 64, 20, false}, {9, 90, 30, false}}, 2, 0, 1);
    ops_report_fact(&table, "neighbours", same_result(&a, &b),
                    "prefill of 30 behind 90 beside 20 rows: same bits");
    /* Decoding beside a prefill. */
    a = prefill(m, (struct model_part[]){{9, 90, 1, false}, {10, 0, 20, false}}, 2, 1, 0);
    b = prefill(m, (struct model_part[]){{9, 90, 1, false}, {14, 128, 20, false}}, 2, 1, 0);
    ops_report_fact(&table, "neighbours", same_result(&a, &b),
                    "decode beside a prefill of 20: same bits");
}

/* After steps of any number of rows: all that could be chosen or loaded before the first one was. */
static void
check_warmed_up(struct ops_model *m)
{
    int (*counters)(struct device *, struct cuda_counters *) = NULL;
    struct cuda_counters counted = {0};

    for (int n = 1; n <= MODEL_ROWS; n += ops_options.quick ? 37 : 1)
        did(model_step(m, &(struct model_part){0, 0, n, false}, 1, 0, NULL, NULL));
    *(void **)&counters = cuda_plugin_symbol("engram_cuda_counters");
    ASSERT(counters && counters(m->dev, &counted) == 0);
    ops_report_fact(&table, "forward", counted.plans_late == 0,
                    "%llu algorithms of products chosen within %llu steps",
                    (unsigned long long)counted.plans_late, (unsigned long long)counted.steps);
    ops_report_fact(&table, "forward", counted.kernels > 0,
                    "%llu kernels loaded when the device was opened",
                    (unsigned long long)counted.kernels);
}

/* Prefills and decode steps of several sequences; logits of both devices. */
static void
check_logits(struct ops_model *host, struct ops_model *cuda)
{
    enum { PARTS = 4 };
    static float want[PARTS * MODEL_VOCAB], have[PARTS * MODEL_VOCAB];
    static const int seqs[PARTS] = {0, 7, 10, 15}, rows[PARTS] = {150, 20, 1, 70};
    struct model_part parts[PARTS];

    for (int i = 0; i < PARTS; i++)
        parts[i] = (struct model_part){seqs[i], 0, rows[i], i == 1};
    for (int step = 0; step < 6; step++) {
        int n_decode = step == 0 ? 0 : PARTS;

        did(model_step(host, parts, PARTS, n_decode, want, NULL));
        did(model_step(cuda, parts, PARTS, n_decode, have, NULL));
        ops_report(&table, "forward", ops_error_of(want, have, PARTS, MODEL_VOCAB), BOUND_MODEL,
                   "%s: logits", step == 0 ? "prefill of 150 20 1 70" : "decode of 4");
        for (int i = 0; i < PARTS; i++) {
            parts[i].context += parts[i].n_rows;
            parts[i].n_rows = 1;
        }
    }
}

static void
check_model(enum model_width width)
{
    struct host_device_options options = {.n_threads = 0, .isa = "auto"};
    struct device *dev[SIDES];
    struct err err = ERR_INIT;

    ASSERT(host_device_open(&dev[HOST], &options, &err) == 0);
    ASSERT(cuda_plugin_open(&dev[CUDA], ops_options.ordinal, &err) == 0);
    struct ops_model *host = model_open(dev[HOST], width), *cuda = model_open(dev[CUDA], width);
    printf("%-14s a model of width %d\n", "forward", cuda->shape.hidden);
    check_logits(host, cuda);
    if (!ops_options.quick) {
        prefill_all(cuda);
        check_decode(cuda);
        check_decode_many(cuda);
        check_prefill(cuda);
    }
    check_warmed_up(cuda);
    (void)model_close(host);
    (void)model_close(cuda);
}

void
ops_neighbours(void)
{
    if (!ops_wanted("neighbours") && !ops_wanted("forward"))
        return;
    check_model(MODEL_NARROW);
    if (!ops_options.quick)
        check_model(MODEL_WIDE);
}
