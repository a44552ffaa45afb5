/* bench_text: requests of real text through the engine, over a random model, from one placement of
 * the Engram table after another. Prompts are cut from the text, and what is sampled is replaced by
 * the text's continuation, so that N-grams repeat as those of text do. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/byte_size.h"
#include "base/check.h"
#include "base/clock.h"
#include "tools/bench_corpus.h"
#include "tools/bench_jobs.h"
#include "tools/bench_place.h"

enum { MAX_PLACEMENTS = 16, PAGE_TOKENS = 64 };

struct options {
    const char *shape, *device, *text, *tokenizer, *table_path;
    struct placement_spec place[MAX_PLACEMENTS];
    int n_places;
    double table_params;
    enum dtype table_dtype;
    int head_dim, heads, layer;
    int sequences, streams, least, most, chunk, warm;
    uint64_t kv_bytes;
    bool json;
};

struct figures {
    double seconds, limit_s;
    uint64_t in, out;
    double context; /* tokens in the KV cache, summed over the decode rows */
    struct bench_latency latency;
    int ended; /* requests */
    struct tiers_stats before, after;
    double stall_s, steps, idle, syncs;
    uint64_t plans_late; /* since the start: none is made a second time */
};

static uint64_t
next_random(uint64_t *state)
{
    *state += 0x9e3779b97f4a7c15u;
    uint64_t x = *state;

    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* Request i of a run: lengths and place in the text follow from the run's random numbers. */
static struct job *
make_job(const struct options *o, const struct bench_corpus *t, uint64_t *random, bool engram_off)
{
    struct job *job = calloc(1, sizeof *job);
    uint64_t span = (uint64_t)(o->most - o->least + 1);
    int n_in = o->least + (int)(next_random(random) % span);
    int n_out = o->least + (int)(next_random(random) % span);
    int64_t at = (int64_t)(next_random(random) % (uint64_t)(t->n_ids - n_in - n_out));

    ASSERT(job);
    job->prompt = malloc((size_t)n_in * sizeof *job->prompt);
    job->replay = malloc((size_t)n_out * sizeof *job->replay);
    ASSERT(job->prompt && job->replay);
    memcpy(job->prompt, t->ids + at, (size_t)n_in * sizeof *job->prompt);
    memcpy(job->replay, t->ids + at + n_in, (size_t)n_out * sizeof *job->replay);
    job->n_prompt = n_in;
    job->n_choices = 1;
    job->max_tokens = n_out;
    job->params = (struct sample_params){.repetition_penalty = 1, .top_p = 1, .forced = -1};
    job->engram_off = engram_off;
    job->received_ns = clock_now_ns();
    return job;
}

static void
take_event(void *arg, struct job_event *event, uint64_t now_ns)
{
    struct figures *f = arg;

    if (event->kind == JOB_ENDED) {
        f->ended++;
        return;
    }
    f->out++;
    bench_latency_token(&f->latency, event->job, now_ns);
}

/* All n requests at once; returns when the last one has ended. */
static void
run_requests(struct place *p, const struct options *o, const struct bench_corpus *t, int n,
             uint64_t seed, struct figures *f)
{
    const int32_t *planned = p->spec.kind == PLACE_DISK ? t->compressed : NULL;
    uint64_t begin = clock_now_ns(), random = seed;

    for (int i = 0; i < n; i++) {
        struct job *job = make_job(o, t, &random, p->spec.kind == PLACE_NONE);

        f->in += (uint64_t)job->n_prompt;
        f->context +=
            (double)(job->max_tokens - 1) * (job->n_prompt + (double)job->max_tokens / 2);
        bench_submit(p->engine, p->resolver, planned, job);
    }
    while (f->ended < n)
        bench_collect(p->engine, take_event, f);
    f->seconds = (double)(clock_now_ns() - begin) * 1e-9;
}

static void
measure(const struct options *o, const struct place_options *po, const struct bench_corpus *t,
        const struct placement_spec *spec, struct figures *f)
{
    struct metrics *m = po->metrics;
    struct figures warm = {0};
    struct place place;

    place_open(&place, po, spec);
    bench_latency_open(&warm.latency);
    if (o->warm) /* other parts of the text: graphs are captured, stores are filled */
        run_requests(&place, o, t, o->warm, 1, &warm);
    bench_latency_close(&warm.latency);
    if (place.resolver)
        resolver_stats(place.resolver, &f->before);
    double stall = metrics_read(m, METRIC_ID_stall_nanoseconds_total, 0);
    double steps = metrics_read(m, METRIC_ID_engine_steps_total, 0);
    struct cuda_counters before, after;

    (void)bench_counters(po->device, &before);

    run_requests(&place, o, t, o->sequences, 2, f);
    (void)bench_counters(po->device, &after);
    f->stall_s = (metrics_read(m, METRIC_ID_stall_nanoseconds_total, 0) - stall) * 1e-9;
    f->steps = metrics_read(m, METRIC_ID_engine_steps_total, 0) - steps;
    if (after.gpu_span_ns > before.gpu_span_ns)
        f->idle = 1 - (double)(after.gpu_busy_ns - before.gpu_busy_ns) /
                          (double)(after.gpu_span_ns - before.gpu_span_ns);
    f->plans_late = after.plans_late;
    f->syncs = (double)(after.syncs - before.syncs) / f->steps;
    if (place.resolver)
        resolver_stats(place.resolver, &f->after);
    place_close(&place);
}

static double
hits(const struct figures *f, int tier)
{
    double sum = 0;

    for (int order = 0; order < f->after.n_orders; order++)
        sum += (double)(f->after.tier[tier].set[0][order].hits -
                        f->before.tier[tier].set[0][order].hits);
    return sum;
}

static double
gigabytes(const struct figures *f, int tier)
{
    double sum = 0;

    for (int order = 0; order < f->after.n_orders; order++)
        sum += (double)(f->after.tier[tier].set[0][order].bytes -
                        f->before.tier[tier].set[0][order].bytes);
    return sum * 1e-9;
}

static void
print(const struct options *o, const char *device, double table_gb,
      const struct placement_spec *spec, struct figures *f, double base)
{
    double all = hits(f, TIER_HBM) + hits(f, TIER_RAM) + hits(f, TIER_NVME);
    double rate = (double)f->out / f->seconds, reads = 0;
    double share[TIER_COUNT];

    for (int tier = 0; tier < TIER_COUNT; tier++)
        share[tier] = all > 0 ? 100 * hits(f, tier) / all : 0;
    reads = (double)(f->after.nvme.reads - f->before.nvme.reads) / f->seconds;
    char least[16];

    if (o->json)
        printf("{\"device\": \"%s\", \"table_gb\": %.3f, \"table_dtype\": \"%s\", ", device, table_gb,
               dtype_name(o->table_dtype));
    printf(o->json ? "\"command\": \"text\", \"shape\": \"%s\", \"placement\": \"%s\", "
                     "\"tokens_per_s\": %.1f, \"ratio\": %.4f, \"seconds\": %.2f, \"in\": %llu, "
                     "\"out\": %llu, \"ttft_p50_ms\": %.1f, \"ttft_p99_ms\": %.1f, "
                     "\"itl_p50_ms\": %.2f, \"itl_p99_ms\": %.2f, \"hbm\": %.2f, \"ram\": %.2f, "
                     "\"nvme\": %.2f, \"hbm_gb\": %.9f, \"ram_gb\": %.9f, \"nvme_gb\": %.9f, "
                     "\"limit_s\": %.3f, \"share\": %s, \"reads_per_s\": %.0f, \"stall_us_per_step\": %.1f, "
                     "\"steps\": %.0f, \"idle\": %.4f, \"syncs\": %.4f, \"plans_late\": %llu}\n"
                   : "%-11s %-26s %9.1f %7.4f %7.2f %8llu %8llu %8.1f %8.1f %7.2f %7.2f %6.2f "
                     "%6.2f %6.2f %7.3f %7.3f %7.3f %7.2f %6s %8.0f %8.1f %7.0f %7.4f %6.4f %6llu\n",
           o->shape, spec->text, rate, base > 0 ? rate / base : 1, f->seconds,
           (unsigned long long)f->in, (unsigned long long)f->out,
           bench_percentile(f->latency.ttft_ms, f->latency.n_ttft, 0.5),
           bench_percentile(f->latency.ttft_ms, f->latency.n_ttft, 0.99),
           bench_percentile(f->latency.itl_ms, f->latency.n_itl, 0.5),
           bench_percentile(f->latency.itl_ms, f->latency.n_itl, 0.99), share[TIER_HBM],
           share[TIER_RAM], share[TIER_NVME], gigabytes(f, TIER_HBM), gigabytes(f, TIER_RAM),
           gigabytes(f, TIER_NVME), f->limit_s,
           bench_share_text(f->limit_s, f->seconds, o->json, least, sizeof least), reads,
           f->stall_s * 1e6 / f->steps, f->steps, f->idle, f->syncs,
           (unsigned long long)f->plans_late);
    fflush(stdout);
}

static void
usage(FILE *out)
{
    fputs("Usage: engram-bench text --text FILE --tokenizer FILE [--place PLACEMENT]...\n"
          "         [--shape NAME] [--device cpu|cuda:N|auto] [--params N] [--table-dtype fp8|bf16]\n"
          "         [--head-dim N] [--heads N] [--layer N] [--table FILE] [--sequences N] [--streams N]\n"
          "         [--least N] [--most N] [--chunk N] [--kv SIZE] [--warm N] [--json]\n"
          "PLACEMENT: none, device, host[,hbm=SIZE], disk[,hbm=SIZE][,ram=SIZE]\n",
          out);
}

static bool
parse(struct options *o, int argc, char **argv)
{
    static const struct option longs[] = {
        {"text", 1, NULL, 't'},      {"tokenizer", 1, NULL, 'T'}, {"place", 1, NULL, 'p'},
        {"shape", 1, NULL, 's'},     {"device", 1, NULL, 'd'},    {"params", 1, NULL, 'P'},
        {"head-dim", 1, NULL, 'D'},  {"heads", 1, NULL, 'H'},     {"layer", 1, NULL, 'L'},
        {"table", 1, NULL, 'f'},     {"sequences", 1, NULL, 'n'}, {"streams", 1, NULL, 'S'},
        {"least", 1, NULL, 'l'},     {"most", 1, NULL, 'm'},      {"chunk", 1, NULL, 'c'},
        {"kv", 1, NULL, 'k'},        {"warm", 1, NULL, 'w'},      {"json", 0, NULL, 'j'},
        {"table-dtype", 1, NULL, 'y'}, {"help", 0, NULL, 'h'},  {0}};
    struct err err = ERR_INIT;

    for (int c; (c = getopt_long(argc, argv, "", longs, NULL)) != -1;)
        switch (c) {
        case 't':
            o->text = optarg;
            break;
        case 'T':
            o->tokenizer = optarg;
            break;
        case 'p':
            if (o->n_places == MAX_PLACEMENTS)
                return false;
            if (placement_parse(optarg, &o->place[o->n_places++], &err) < 0)
                bench_fail("--place", &err);
            break;
        case 's':
            o->shape = optarg;
            break;
        case 'd':
            o->device = optarg;
            break;
        case 'P':
            o->table_params = strtod(optarg, NULL);
            break;
        case 'y':
            o->table_dtype = bench_table_dtype(optarg);
            break;
        case 'D':
            o->head_dim = bench_number(optarg, 8, 1024);
            break;
        case 'H':
            o->heads = bench_number(optarg, 1, SHAPE_MAX_HEADS_PER_NGRAM);
            break;
        case 'L':
            o->layer = bench_number(optarg, 0, SHAPE_MAX_LAYERS - 1);
            break;
        case 'f':
            o->table_path = optarg;
            break;
        case 'n':
            o->sequences = bench_number(optarg, 1, 1 << 16);
            break;
        case 'S':
            o->streams = bench_number(optarg, 1, 4096);
            break;
        case 'l':
            o->least = bench_number(optarg, 1, 1 << 16);
            break;
        case 'm':
            o->most = bench_number(optarg, 1, 1 << 16);
            break;
        case 'c':
            o->chunk = bench_number(optarg, 1, 1 << 16);
            break;
        case 'k':
            if (byte_size_parse(optarg, &o->kv_bytes, &err) < 0)
                bench_fail("--kv", &err);
            break;
        case 'w':
            o->warm = bench_number(optarg, 0, 1 << 16);
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
    return optind == argc && o->text && o->tokenizer && o->n_places && o->least <= o->most &&
           o->table_params >= 1000.0 * o->head_dim * o->heads;
}

static void
run(const struct options *o)
{
    struct model_shape shape;
    struct bench_corpus text;
    struct bench_table table;
    struct bench_limits limits;
    struct err err = ERR_INIT;
    struct place_options po = {.shape = &shape,
                               .prefill_chunk = o->chunk,
                               .max_queue = o->sequences > o->warm ? o->sequences : o->warm,
                               .table = &table,
                               .table_path = o->table_path,
                               .metrics = metrics_new()};
    double base = 0;

    ASSERT(po.metrics);
    if (bench_shape(o->shape, &shape, &err) < 0)
        bench_fail("--shape", &err);
    bench_add_engram(&shape, o->table_dtype, o->table_params, o->heads, o->head_dim, o->layer);
    bench_corpus_read(&text, o->text, o->tokenizer, &shape);
    if (text.n_ids <= 2 * o->most) {
        fprintf(stderr, "engram-bench: %s has only %lld tokens\n", o->text, (long long)text.n_ids);
        exit(1);
    }
    if (bench_device(o->device, &po.device, &err) < 0)
        bench_fail("--device", &err);
    po.compressed = text.compressed;
    po.limits = (struct forward_limits){
        .max_rows = o->streams + o->chunk,
        .max_sequences = o->streams,
        .n_states = o->streams,
        .kv_pages = (int)(o->kv_bytes /
                          po.device->ops->kv_page_bytes(po.device, &shape, PAGE_TOKENS)),
        .page_tokens = PAGE_TOKENS,
        .max_outputs = 2 * o->streams};
    po.limits.max_step_pages = po.limits.kv_pages;
    po.max_sequence_pages = (2 * o->most + PAGE_TOKENS - 1) / PAGE_TOKENS;
    if (forward_new(&po.forward, po.device, &shape, &po.limits, &err) < 0 ||
        forward_fill_all(po.forward, 1, &err) < 0 || forward_warm_up(po.forward, &err) < 0)
        bench_fail(o->shape, &err);
    if (bench_limits(po.device, &limits, &err) < 0)
        bench_fail("limits", &err);
    bench_table_open(&table, po.device, &shape.engram);
    if (!o->json)
        printf("%s on %s; table %.2f GB of %s, %d heads of %d, layer %d; %d requests of %d to %d tokens "
               "in and out, %d at a time\n%-11s %-26s %9s %7s %7s %8s %8s %8s %8s %7s %7s %6s %6s "
               "%6s %7s %7s %7s %7s %6s %8s %8s %7s %7s %6s %6s\n",
               o->shape, bench_device_text(po.device), (double)table.size_bytes * 1e-9,
               dtype_name(o->table_dtype), o->heads,
               o->head_dim, o->layer, o->sequences, o->least, o->most, o->streams, "shape",
               "placement", "out tok/s", "ratio", "s", "in", "out", "ttft p50", "ttft p99",
               "itl p50", "itl p99", "hbm %", "ram %", "nvme %", "hbm GB", "ram GB",
               "nvme GB", "limit s", "share", "reads/s", "us stall", "steps",
               "idle", "syncs", "late");
    for (int i = 0; i < o->n_places; i++) {
        struct figures f = {0};

        bench_latency_open(&f.latency);
        measure(o, &po, &text, &o->place[i], &f);
        f.limit_s =
            bench_least_seconds(po.device, &shape, &limits, f.steps, f.context, (double)f.in);
        print(o, bench_device_text(po.device), (double)table.size_bytes * 1e-9, &o->place[i], &f,
              base);
        if (base <= 0)
            base = (double)f.out / f.seconds;
        bench_latency_close(&f.latency);
    }
    bench_table_close(&table);
    forward_free(po.forward);
    po.device->ops->close(po.device);
    metrics_free(po.metrics);
    bench_corpus_free(&text);
}

int
bench_text(int argc, char **argv)
{
    struct options o = {.shape = "qwen3-0.6b",
                        .device = "auto",
                        .table_path = "engram-bench.table",
                        .table_params = 1e9,
                        .table_dtype = DTYPE_F8_E4M3,
                        .head_dim = 160,
                        .heads = 8,
                        .layer = 1,
                        .sequences = 512,
                        .streams = 64,
                        .least = 100,
                        .most = 1024,
                        .chunk = 2048,
                        .warm = 32,
                        .kv_bytes = (uint64_t)8 << 30};

    if (!parse(&o, argc, argv)) {
        usage(stderr);
        return BENCH_USAGE;
    }
    run(&o);
    return 0;
}
