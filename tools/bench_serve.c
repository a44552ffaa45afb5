/* engram-bench: runs the engine in this process, without HTTP, and says how fast it is.
 *
 *   engram-bench serve [--config FILE] [--set SECTION.KEY=VALUE]... [--tokens N] [--prompt-tokens
 * N]
 *                      [--streams N] [--rounds N] [--text FILE]
 *
 * Serves prompts cut from a text with three placements of the N-gram tables, taking turns round by
 * round: all hot, as configured, all on disk. One stream decodes one prompt after the other. Each
 * round has prompts and seeds of its own, so that the stores meet N-grams they have not seen, as in
 * life; only "all hot" runs each round once before it counts. Prints medians over rounds and the
 * ratio to all hot of the same round.    */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/byte_size.h"
#include "base/check.h"
#include "base/clock.h"
#include "conf/conf.h"
#include "daemon/serving.h"
#include "tools/bench_jobs.h"

enum { MAX_ROUNDS = 100, MAX_STREAMS = 1024 };

struct options {
    int tokens, prompt_tokens, streams, rounds, prompts;
    const char *text;
    bool json;
};

/* Totals of the tiers that a round is charged with. */
struct counts {
    uint64_t hits[TIER_COUNT], bytes[TIER_COUNT], reads, stall_ns, steps;
};

/* One placement and what was measured of it. */
struct placement {
    const char *name;
    struct conf *conf;
    struct metrics *metrics;
    struct serving *serving;
    double tokens_per_s[MAX_ROUNDS];
    struct bench_latency latency;
    uint64_t n_tokens;
    double seconds;
    struct counts before, sum; /* at the start of the round; of all measured rounds */
};

/* The values stay in their order. */
static double
median(const double *values, int n)
{
    double sorted[MAX_ROUNDS];

    memcpy(sorted, values, (size_t)n * sizeof *values);
    return bench_median(sorted, n);
}

struct prompts {
    int32_t *ids;
    int64_t n_ids;
};

static void
read_prompts(const struct options *o, const struct serving *serving, struct prompts *ret_prompts)
{
    struct err err = ERR_INIT;
    FILE *file = fopen(o->text, "re");
    static char text[4 << 20];

    if (file == NULL) {
        fprintf(stderr, "engram-bench: cannot open %s\n", o->text);
        exit(1);
    }
    size_t size = fread(text, 1, sizeof text, file);

    fclose(file);
    ret_prompts->n_ids =
        tokenizer_encode(serving->tokenizer, text, size, 0, &ret_prompts->ids, &err);
    if (ret_prompts->n_ids < 0)
        bench_fail("cannot tokenise", &err);
    if (ret_prompts->n_ids < (int64_t)o->prompt_tokens * o->prompts * (o->rounds + 1)) {
        fprintf(stderr, "engram-bench: %s has %lld tokens; %d prompts of %d need more\n", o->text,
                (long long)ret_prompts->n_ids, o->prompts * (o->rounds + 1), o->prompt_tokens);
        exit(1);
    }
}

/* Prompt i of all rounds: cut at even distances from the text. */
static struct job *
make_job(const struct options *o, const struct prompts *p, int i)
{
    struct job *job = calloc(1, sizeof *job);

    ASSERT(job);
    job->prompt = malloc((size_t)o->prompt_tokens * sizeof *job->prompt);
    ASSERT(job->prompt);
    memcpy(job->prompt, p->ids + p->n_ids / (o->prompts * (o->rounds + 1)) * i,
           (size_t)o->prompt_tokens * sizeof *job->prompt);
    job->n_prompt = o->prompt_tokens;
    job->n_choices = 1;
    job->max_tokens = o->tokens;
    job->params = (struct sample_params){
        .temperature = 0.8f, .top_p = 0.95f, .repetition_penalty = 1, .forced = -1};
    job->seed[0] = (uint64_t)i;
    job->received_ns = clock_now_ns();
    return job;
}

/* A round's prompts on their way. */
struct round {
    struct placement *p;
    const struct options *o;
    const struct prompts *prompts;
    int first, next, ended; /* number of the round's first prompt; of these, submitted; ended */
    bool measure;
    uint64_t tokens;
};

static void
submit_next(struct round *r)
{
    const struct serving *s = r->p->serving;

    bench_submit(s->engine, s->resolver, s->compressed,
                 make_job(r->o, r->prompts, r->first + r->next++));
}

static void
take_event(void *arg, struct job_event *event, uint64_t now_ns)
{
    struct round *r = arg;

    if (event->kind != JOB_ENDED) {
        r->tokens++;
        bench_latency_token(r->measure ? &r->p->latency : NULL, event->job, now_ns);
        return;
    }
    r->ended++;
    if (r->next < r->o->prompts)
        submit_next(r);
}

/* Serves a round's prompts; returns tokens per second of decoding and prefill together. Round 0 is
 * the warm-up. */
static double
run_round(struct placement *p, const struct options *o, const struct prompts *prompts, int round,
          bool measure)
{
    struct round r = {
        .p = p, .o = o, .prompts = prompts, .first = round * o->prompts, .measure = measure};
    uint64_t begin = clock_now_ns();

    while (r.next < o->streams && r.next < o->prompts)
        submit_next(&r);
    while (r.ended < o->prompts)
        bench_collect(p->serving->engine, take_event, &r);
    double seconds = (double)(clock_now_ns() - begin) * 1e-9;
    if (measure) {
        p->n_tokens += r.tokens;
        p->seconds += seconds;
    }
    return (double)r.tokens / seconds;
}

static void
set(struct conf *conf, const char *assignment)
{
    struct err err = ERR_INIT;

    if (conf_set(conf, assignment, &err) < 0)
        bench_fail(assignment, &err);
}

static struct conf *
read_conf(const char *config, char *const *sets, int n_sets)
{
    struct conf *conf;
    struct err err = ERR_INIT;
    struct buf mistakes = {0};

    if (conf_new(&conf, &err) < 0 || (config && conf_read_file(conf, config, &mistakes, &err) < 0))
        bench_fail("configuration", &err);
    for (int i = 0; i < n_sets; i++)
        set(conf, sets[i]);
    (void)conf_check(conf, &mistakes);
    if (mistakes.size_bytes) {
        fprintf(stderr, "%.*s", (int)mistakes.size_bytes, mistakes.data);
        exit(78);
    }
    return conf;
}

static void
load(struct placement *p)
{
    struct serving_hooks hooks = {0};
    struct err err = ERR_INIT;

    p->metrics = metrics_new();
    bench_latency_open(&p->latency);
    ASSERT(p->metrics);
    if (serving_load(&p->serving, p->conf, p->metrics, &hooks, &err) < 0)
        bench_fail(p->name, &err);
}

static uint64_t
stalls(const struct placement *p)
{
    double sum = 0;

    for (int t = 0; t < p->serving->config.shape.engram.n_layers; t++)
        sum += metrics_read(p->metrics, METRIC_ID_stall_nanoseconds_total, t);
    return (uint64_t)sum;
}

static void
take_counts(const struct placement *p, struct counts *ret_counts)
{
    struct tiers_stats stats = {0};

    *ret_counts = (struct counts){
        .stall_ns = stalls(p),
        .steps = (uint64_t)metrics_read(p->metrics, METRIC_ID_engine_steps_total, 0)};
    if (p->serving->resolver == NULL)
        return;
    resolver_stats(p->serving->resolver, &stats);
    ret_counts->reads = stats.nvme.reads;
    for (int tier = 0; tier < TIER_COUNT; tier++)
        for (int t = 0; t < stats.n_tables; t++)
            for (int o = 0; o < stats.n_orders; o++) {
                ret_counts->hits[tier] += stats.tier[tier].set[t][o].hits;
                ret_counts->bytes[tier] += stats.tier[tier].set[t][o].bytes;
            }
}

static void
begin_counting(struct placement *p)
{
    take_counts(p, &p->before);
}

/* Adds what happened since begin_counting. */
static void
end_counting(struct placement *p)
{
    struct counts now;

    take_counts(p, &now);
    p->sum.stall_ns += now.stall_ns - p->before.stall_ns;
    p->sum.reads += now.reads - p->before.reads;
    p->sum.steps += now.steps - p->before.steps;
    for (int tier = 0; tier < TIER_COUNT; tier++) {
        p->sum.hits[tier] += now.hits[tier] - p->before.hits[tier];
        p->sum.bytes[tier] += now.bytes[tier] - p->before.bytes[tier];
    }
}

static double
share(const struct placement *p, int tier)
{
    uint64_t all = p->sum.hits[TIER_HBM] + p->sum.hits[TIER_RAM] + p->sum.hits[TIER_NVME];

    return all ? 100.0 * (double)p->sum.hits[tier] / (double)all : 0;
}

/* The least time of the measured rounds: half of a job's tokens are in front of a decode row, on average. */
static double
least_seconds(const struct placement *p, const struct options *o, const struct bench_limits *limits)
{
    double jobs = (double)o->rounds * o->prompts, decoded = (double)p->n_tokens - jobs;
    double context = decoded * (o->prompt_tokens + (double)p->n_tokens / jobs / 2);

    return bench_least_seconds(p->serving->device, &p->serving->config.shape, limits,
                               (double)p->sum.steps, context, jobs * o->prompt_tokens);
}

static double
megabytes(const struct placement *p, int tier)
{
    return (double)p->sum.bytes[tier] * 1e-6;
}

static void
print_placement(struct placement *p, const struct placement *hot, const struct options *o,
                const char *machine, const struct bench_limits *limits)
{
    const struct serving *s = p->serving;
    double ratio[MAX_ROUNDS], least_s = least_seconds(p, o, limits);
    char least[16];

    for (int r = 0; r < o->rounds; r++)
        ratio[r] = p->tokens_per_s[r] / hot->tokens_per_s[r];
    if (o->json)
        printf("{\"command\": \"serve\", \"device\": \"%s\", \"shape\": \"%s\", \"hbm_size\": %llu, "
               "\"ram_size\": %llu, \"table_size\": %llu, \"seconds\": %.3f, \"steps\": %llu, ",
               machine, s->name, (unsigned long long)p->conf->tier_hbm_size,
               (unsigned long long)p->conf->tier_ram_size, (unsigned long long)s->table_bytes,
               p->seconds, (unsigned long long)p->sum.steps);
    printf(o->json ? "\"placement\": \"%s\", \"tokens_per_s\": %.1f, \"of_hot_percent\": %.1f, "
                     "\"ttft_p50_ms\": %.2f, \"ttft_p99_ms\": %.2f, \"itl_p50_ms\": %.3f, "
                     "\"itl_p99_ms\": %.3f, \"hbm\": %.2f, \"ram\": %.2f, \"nvme\": %.2f, "
                     "\"hbm_mb\": %.4f, \"ram_mb\": %.4f, \"nvme_mb\": %.4f, "
                     "\"reads_per_token\": %.3f, \"stall_us_per_token\": %.2f, "
                     "\"limit_s\": %.4f, \"share\": %s}\n"
                   : "%-11s %9.1f %6.1f%% %6.2fms %6.2fms %6.3fms %6.3fms %6.1f %6.1f %6.1f %8.2f "
                     "%8.2f %8.2f %9.2f %7.1fus %8.3f %6s\n",
           p->name, median(p->tokens_per_s, o->rounds), 100 * median(ratio, o->rounds),
           bench_percentile(p->latency.ttft_ms, p->latency.n_ttft, 0.5),
           bench_percentile(p->latency.ttft_ms, p->latency.n_ttft, 0.99),
           bench_percentile(p->latency.itl_ms, p->latency.n_itl, 0.5),
           bench_percentile(p->latency.itl_ms, p->latency.n_itl, 0.99), share(p, TIER_HBM),
           share(p, TIER_RAM), share(p, TIER_NVME), megabytes(p, TIER_HBM), megabytes(p, TIER_RAM),
           megabytes(p, TIER_NVME), (double)p->sum.reads / (double)p->n_tokens,
           (double)p->sum.stall_ns * 1e-3 / (double)p->n_tokens, least_s,
           bench_share_text(least_s, p->seconds, o->json, least, sizeof least));
}

static void
print_table(struct placement *placements, int n, const struct options *o, const char *machine,
            const struct bench_limits *limits)
{
    if (!o->json)
        printf("%-11s %9s %7s %8s %8s %8s %8s %6s %6s %6s %8s %8s %8s %9s %9s %8s %6s\n",
               "placement", "tokens/s", "of hot", "ttft p50", "ttft p99", "itl p50", "itl p99",
               "hbm %", "ram %", "nvme %", "hbm MB", "ram MB", "nvme MB", "reads/tok", "stall/tok",
               "limit s", "share");
    for (int i = 0; i < n; i++)
        print_placement(&placements[i], &placements[0], o, machine, limits);
}

/* Before the models are there: a GPU's limits are measured with some GiB of its memory. */
static void
look_at_machine(const char *device_name, char *text, size_t size, struct bench_limits *ret_limits)
{
    struct device *device;
    struct err err = ERR_INIT;

    if (bench_device(device_name, &device, &err) < 0 ||
        bench_limits(device, ret_limits, &err) < 0)
        bench_fail("device", &err);
    snprintf(text, size, "%s", bench_device_text(device));
    device->ops->close(device);
}

static int
serve(const char *config, char *const *sets, int n_sets, const struct options *o)
{
    static struct placement placements[3];
    static const char *const names[] = {"all-hot", "configured", "nvme-only"};
    struct prompts prompts;
    struct bench_limits limits;
    char size[64], machine[512];

    for (int i = 0; i < 3; i++) {
        placements[i].name = names[i];
        placements[i].conf = read_conf(config, sets, n_sets);
    }
    look_at_machine(placements[0].conf->device, machine, sizeof machine, &limits);
    set(placements[0].conf, "tier.ram.size=0B");
    set(placements[2].conf, "tier.ram.size=0B");
    set(placements[2].conf, "tier.hbm.size=0B");
    load(&placements[1]);
    snprintf(size, sizeof size, "tier.hbm.size=%lluB",
             (unsigned long long)(2 * placements[1].serving->table_bytes + (64 << 20)));
    set(placements[0].conf, size);
    load(&placements[0]);
    load(&placements[2]);
    read_prompts(o, placements[1].serving, &prompts);

    const struct serving *s = placements[1].serving;
    char hbm[32], ram[32], tables[32], weights[32];

    if (!o->json)
        printf("model %s: weights %s, tables %s; configured: hbm %s, ram %s; %s; %d prompts of %d "
           "tokens, %d generated, %d streams, %d rounds\n",
           s->name, byte_size_format(s->weight_bytes, weights, sizeof weights),
           byte_size_format(s->table_bytes, tables, sizeof tables),
           byte_size_format(s->conf->tier_hbm_size, hbm, sizeof hbm),
           byte_size_format(s->conf->tier_ram_size, ram, sizeof ram), machine, o->prompts,
           o->prompt_tokens, o->tokens, o->streams, o->rounds);
    for (int i = 0; i < 3; i++)
        run_round(&placements[i], o, &prompts, 0, false);
    for (int r = 1; r <= o->rounds; r++)
        for (int i = 0; i < 3; i++) {
            if (i == 0)
                run_round(&placements[i], o, &prompts, r, false);
            begin_counting(&placements[i]);
            placements[i].tokens_per_s[r - 1] = run_round(&placements[i], o, &prompts, r, true);
            end_counting(&placements[i]);
        }
    print_table(placements, 3, o, machine, &limits);
    free(prompts.ids);
    for (int i = 0; i < 3; i++) {
        serving_free(placements[i].serving);
        metrics_free(placements[i].metrics);
        conf_free(placements[i].conf);
        bench_latency_close(&placements[i].latency);
    }
    return 0;
}

static void
usage(FILE *out)
{
    fputs("Usage: engram-bench serve [--config FILE] [--set SECTION.KEY=VALUE]... [--tokens N]\n"
          "                          [--prompt-tokens N] [--prompts N] [--streams N] [--rounds N]\n"
          "                          [--text FILE] [--json]\n",
          out);
}

int
bench_serve(int argc, char **argv)
{
    static const struct option longs[] = {
        {"config", 1, NULL, 'c'},  {"set", 1, NULL, 's'},
        {"tokens", 1, NULL, 't'},  {"prompt-tokens", 1, NULL, 'p'},
        {"prompts", 1, NULL, 'n'}, {"streams", 1, NULL, 'S'},
        {"rounds", 1, NULL, 'r'},  {"text", 1, NULL, 'f'},
        {"json", 0, NULL, 'j'},    {"help", 0, NULL, 'h'},
        {0}};
    struct options o = {.tokens = 128,
                        .prompt_tokens = 32,
                        .streams = 1,
                        .rounds = 5,
                        .prompts = 8,
                        .text = "tests/bench/prose.txt"};
    const char *config = "conf/demo.conf";
    char *sets[64];
    int n_sets = 0;

    for (int c; (c = getopt_long(argc, argv, "", longs, NULL)) != -1;)
        switch (c) {
        case 'c':
            config = optarg;
            break;
        case 's':
            if (n_sets == 64)
                return BENCH_USAGE;
            sets[n_sets++] = optarg;
            break;
        case 't':
            o.tokens = bench_number(optarg, 1, 100000);
            break;
        case 'p':
            o.prompt_tokens = bench_number(optarg, 1, 100000);
            break;
        case 'n':
            o.prompts = bench_number(optarg, 1, 10000);
            break;
        case 'S':
            o.streams = bench_number(optarg, 1, MAX_STREAMS);
            break;
        case 'r':
            o.rounds = bench_number(optarg, 1, MAX_ROUNDS);
            break;
        case 'f':
            o.text = optarg;
            break;
        case 'j':
            o.json = true;
            break;
        case 'h':
            usage(stdout);
            return 0;
        default:
            usage(stderr);
            return BENCH_USAGE;
        }
    if (optind != argc) {
        usage(stderr);
        return BENCH_USAGE;
    }
    return serve(config, sets, n_sets, &o);
}
