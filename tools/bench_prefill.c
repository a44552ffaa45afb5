/* bench_prefill: one prompt of a random model, in chunks; the limit is the time of its products at
 * the matrix rate measured in the same run. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "tools/bench_rig.h"

enum { ROUNDS = 5 };

struct options {
    const char *shape, *device;
    int tokens, chunk;
    bool json;
};

static double
run_prompt(struct rig *r, const struct options *o)
{
    uint64_t begin = clock_now_ns();

    for (int at = 0; at < o->tokens; at += o->chunk) {
        struct rig_step *s = rig_next(r);
        int n = o->tokens - at < o->chunk ? o->tokens - at : o->chunk;

        for (int k = 0; k < n; k++) {
            s->token[k] = (int32_t)((uint32_t)(at + k) * 2654435761u % (uint32_t)r->shape.vocab);
            s->position[k] = at + k;
            s->row_seq[k] = 0;
        }
        s->seq[0] = (struct batch_seq){.n_rows = n,
                                       .context = at,
                                       .n_pages = (at + n + RIG_PAGE_TOKENS - 1) / RIG_PAGE_TOKENS,
                                       .pages = r->pages};
        r->outputs[0] = (struct forward_output){
            .row = n - 1, .params = {.repetition_penalty = 1, .forced = -1}};
        s->forward.batch.n_rows = n;
        s->forward.batch.n_seqs = 1;
        s->forward.n_outputs = at + n == o->tokens;
        rig_issue(r, s);
    }
    rig_drain(r);
    return (double)(clock_now_ns() - begin) * 1e-9;
}

static void
usage(FILE *out)
{
    fputs("Usage: engram-bench prefill [--shape NAME] [--device cpu|cuda:N|auto] [--tokens N]\n"
          "                            [--chunk N] [--json]\n",
          out);
}

static bool
parse(struct options *o, int argc, char **argv)
{
    static const struct option longs[] = {
        {"shape", 1, NULL, 's'}, {"device", 1, NULL, 'd'}, {"tokens", 1, NULL, 't'},
        {"chunk", 1, NULL, 'c'}, {"json", 0, NULL, 'j'},   {"help", 0, NULL, 'h'},
        {0}};

    for (int c; (c = getopt_long(argc, argv, "", longs, NULL)) != -1;)
        switch (c) {
        case 's':
            o->shape = optarg;
            break;
        case 'd':
            o->device = optarg;
            break;
        case 't':
            o->tokens = bench_number(optarg, 1, 1 << 20);
            break;
        case 'c':
            o->chunk = bench_number(optarg, 1, 1 << 16);
            break;
        case 'j':
            o->json = true;
            break;
        case 'h':
            usage(stdout);
            exit(0);
        default:
            return false;
        }
    return optind == argc;
}

int
bench_prefill(int argc, char **argv)
{
    struct options o = {.shape = "qwen3-0.6b", .device = "auto", .tokens = 8192, .chunk = 2048};
    struct bench_limits limits;
    struct cuda_counters counters;
    struct err err = ERR_INIT;
    struct rig rig;
    double seconds[ROUNDS];

    if (!parse(&o, argc, argv)) {
        usage(stderr);
        return BENCH_USAGE;
    }
    rig_open(&rig, o.shape, o.device, o.chunk, 1, o.tokens);
    if (bench_limits(rig.device, &limits, &err) < 0)
        bench_fail("limits", &err);
    (void)run_prompt(&rig, &o);
    (void)run_prompt(&rig, &o);
    for (int i = 0; i < ROUNDS; i++)
        seconds[i] = run_prompt(&rig, &o);
    (void)bench_counters(rig.device, &counters);

    const struct model_shape *s = &rig.shape;
    double median = bench_median(seconds, ROUNDS), n = o.tokens;
    double products = n * bench_token_flop(s);
    /* Causal: half of the square; q k and p v. */
    double attention = 2.0 * n * n * s->heads * s->head_dim * s->layers;
    double rate = limits.flop_per_s;

    if (o.json)
        printf("{\"command\": \"prefill\", \"device\": \"%s\", \"shape\": \"%s\", \"tokens\": %d, \"chunk\": %d, "
               "\"ms\": %.3f, \"tokens_per_s\": %.1f, \"tflops\": %.4f, \"limit_tflops\": %.4f, "
               "\"share\": %.4f, \"share_of_products_alone\": %.4f, \"plans_late\": %llu}\n",
               bench_device_text(rig.device), o.shape, o.tokens, o.chunk, median * 1e3, n / median,
               (products + attention) / median * 1e-12, rate * 1e-12,
               (products + attention) / median / rate, products / median / rate,
               (unsigned long long)counters.plans_late);
    else
        printf("%s on %s; matrix rate %.1f TFLOP/s\n"
               "%d tokens in chunks of %d: %.2f ms, %.0f tokens/s, %.1f TFLOP/s with attention: "
               "%.1f%% of the rate, %.1f%% by the products with weights alone; %llu plans made late\n",
               o.shape, bench_device_text(rig.device), rate * 1e-12, o.tokens, o.chunk,
               median * 1e3, n / median, (products + attention) / median * 1e-12,
               100 * (products + attention) / median / rate, 100 * products / median / rate,
               (unsigned long long)counters.plans_late);
    rig_close(&rig);
    return 0;
}
