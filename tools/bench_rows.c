/* bench_rows: delivery of N-gram rows to the device, for the keys of real text: ours (resolve, then a
 * gather that waits on the flag) from several placements, against a kernel that reads every row by
 * itself from pinned memory. Rows are one layer's: orders x heads for each token. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/byte_size.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/pool.h"
#include "daemon/chunk_pool.h"
#include "daemon/cuda_plugin.h"
#include "gpu/cuda/single_rows.h"
#include "model/ngram_hash.h"
#include "tiering/tiers.h"
#include "tools/bench_corpus.h"
#include "tools/bench_table.h"

enum { MOST_TOKENS = 8192, ROUNDS = 41, IN_FLIGHT = 2, WARM_STEPS = 160 };

struct options {
    const char *text, *tokenizer, *device;
    double params;
    enum dtype table_dtype;
    int heads, head_dim;
    uint64_t hbm_bytes;
    int threads, in_place; /* as in struct tiers_options */
    bool json;
};

/* A step that only gathers. */
struct row_step {
    struct forward_step forward;
    int32_t *token, *position, *row_seq;
    struct batch_seq *seq;
    struct step_report *report;
    struct flag *ready;
    struct bundle_address *address;
    uint64_t *mix;
    struct sample_result *results;
    uint8_t *failed;
};

struct bench {
    const struct options *o;
    struct model_shape shape;
    struct device *device;
    struct bench_corpus corpus;
    struct bench_table table;
    struct row_step step[IN_FLIGHT];
    uint64_t last;
    int64_t at; /* in the text */
    void *out;  /* device, [MOST_TOKENS, columns] activations */
    struct tiers *tiers;
    int64_t cells_hit[TIER_COUNT];
};

static void *
shared(struct bench *b, size_t size)
{
    void *memory = b->device->ops->alloc_shared(b->device, size);

    if (memory == NULL) {
        fprintf(stderr, "engram-bench: no memory\n");
        exit(1);
    }
    return memory;
}

static int32_t no_pages[1];

static void
open_step(struct bench *b, struct row_step *s)
{
    size_t cells = MOST_TOKENS * (size_t)(b->shape.engram.max_order - 1);

    *s = (struct row_step){
        .token = shared(b, MOST_TOKENS * sizeof *s->token),
        .position = shared(b, MOST_TOKENS * sizeof *s->position),
        .row_seq = shared(b, MOST_TOKENS * sizeof *s->row_seq),
        .seq = shared(b, sizeof *s->seq),
        .report = shared(b, sizeof *s->report),
        .ready = shared(b, sizeof *s->ready),
        .address = shared(b, cells * sizeof *s->address),
        .mix = shared(b, cells * sizeof *s->mix),
        .results = shared(b, sizeof *s->results),
        .failed = calloc(MOST_TOKENS, 1),
    };
    ASSERT(s->failed);
    for (int i = 0; i < MOST_TOKENS; i++)
        s->position[i] = i;
}

static void
close_step(struct bench *b, struct row_step *s)
{
    const struct device_ops *ops = b->device->ops;
    size_t cells = MOST_TOKENS * (size_t)(b->shape.engram.max_order - 1);

    ops->free_shared(b->device, s->token, MOST_TOKENS * sizeof *s->token);
    ops->free_shared(b->device, s->position, MOST_TOKENS * sizeof *s->position);
    ops->free_shared(b->device, s->row_seq, MOST_TOKENS * sizeof *s->row_seq);
    ops->free_shared(b->device, s->seq, sizeof *s->seq);
    ops->free_shared(b->device, s->report, sizeof *s->report);
    ops->free_shared(b->device, s->ready, sizeof *s->ready);
    ops->free_shared(b->device, s->address, cells * sizeof *s->address);
    ops->free_shared(b->device, s->mix, cells * sizeof *s->mix);
    ops->free_shared(b->device, s->results, sizeof *s->results);
    free(s->failed);
}

static void
check(int status, const char *what)
{
    if (status < 0) {
        fprintf(stderr, "engram-bench: %s: %s\n", what, strerror(-status));
        exit(1);
    }
}

static void
wait_done(struct bench *b, struct row_step *s)
{
    if (s->forward.step == 0)
        return;
    while (!step_report_done(s->report, s->forward.step))
        check(b->device->ops->poll(b->device, NULL), "the device");
    if (b->tiers)
        tiers_step_done(b->tiers, s->forward.step);
    check(s->report->status, "a step");
    s->forward.step = 0;
}

/* The device's part of the step, which then stands before its rows. */
static struct row_step *
launch(struct bench *b, int n)
{
    const struct device_ops *ops = b->device->ops;
    struct row_step *s = &b->step[++b->last % IN_FLIGHT];
    struct step_view view;

    wait_done(b, s);
    s->seq[0] = (struct batch_seq){.n_rows = n, .pages = no_pages};
    s->forward = (struct forward_step){
        .step = b->last,
        .report = s->report,
        .batch = {n, 1, 0, s->token, s->position, s->row_seq, s->seq},
        .wait_timeout_ns = 10000000000,
        .results = s->results,
    };
    s->forward.engram[0] = (struct forward_engram){.address = s->address,
                                                   .ready = s->ready,
                                                   .rows_from = step_rows_from(b->last),
                                                   .mix = s->mix};
    s->forward.engram[0].ready_value = s->forward.engram[0].rows_from + (uint64_t)n;
    s->forward.engram[0].weights = b->table.on_device ? b->table.on_device : b->table.host;
    check(ops->begin_step(b->device, &s->forward, &view, NULL), "begin_step");
    check(ops->wait_rows(b->device, &s->forward, 0, NULL), "wait_rows");
    check(ops->engram_gather(b->device, b->out, &view.engram[0], 0, &b->shape.engram, &view.batch,
                             NULL),
          "engram_gather");
    check(ops->end_step(b->device, &s->forward, 0, NULL), "end_step");
    return s;
}

struct hashing {
    struct bench *b;
    struct row_step *s;
    int n;
};

static void
hash_part(void *arg, int part, int n_parts)
{
    const struct hashing *h = arg;
    const struct bench *b = h->b;
    const struct engram_shape *e = &b->shape.engram;
    long begin, end;

    pool_slice(h->n, 64, part, n_parts, &begin, &end);
    for (long i = begin; i < end; i++) {
        int32_t ids[SHAPE_MAX_ORDER];

        for (int k = 0; k < e->max_order; k++)
            ids[k] = b->corpus.compressed[b->corpus.ids[b->at + i - k]];
        ngram_hash_mix(e, 0, ids, h->s->mix + i * (e->max_order - 1));
    }
}

/* The host's part, as the resolver's: hash, look up, raise. tiers NULL: every row is read in place. */
static void
resolve(struct bench *b, struct row_step *s, int n)
{
    struct hashing hashing = {b, s, n};
    struct pool *pool = b->tiers && n >= 1024 ? tiers_pool(b->tiers) : NULL;

    if (pool)
        pool_run(pool, hash_part, &hashing);
    else
        hash_part(&hashing, 0, 1);
    b->at += n;
    if (b->tiers == NULL) {
        for (int c = 0; c < n * (b->shape.engram.max_order - 1); c++)
            s->address[c] = (struct bundle_address){BUNDLE_IN_PLACE, NULL};
        flag_raise(s->ready, s->forward.engram[0].ready_value);
        return;
    }
    struct tiers_request request = {.step = s->forward.step,
                                    .n_rows = n,
                                    .resident = s->forward.engram[0].weights,
                                    .mix = s->mix,
                                    .address = s->address,
                                    .failed = s->failed,
                                    .ready = s->ready,
                                    .ready_value = s->forward.engram[0].ready_value,
                                    .rows_from = s->forward.engram[0].rows_from,
                                    .deadline_ns = clock_now_ns()};
    tiers_resolve(b->tiers, &request);
}

static void
drain(struct bench *b)
{
    for (uint64_t i = 1; i <= IN_FLIGHT; i++)
        wait_done(b, &b->step[(b->last + i) % IN_FLIGHT]);
}

/* Seconds from the moment the keys are known to the host until the rows are there and the host
 * knows: median. ret_host: until the host's part was over. */
static double
latency(struct bench *b, int n, double *ret_host)
{
    double seconds[ROUNDS], host[ROUNDS];

    for (int i = 0; i < ROUNDS; i++) {
        struct row_step *s = launch(b, n);
        uint64_t begin = clock_now_ns();

        while (clock_now_ns() - begin < 100000)
            ; /* the device stands before the flag by now */
        begin = clock_now_ns();
        resolve(b, s, n);
        host[i] = (double)(clock_now_ns() - begin) * 1e-9;
        while (!step_report_done(s->report, s->forward.step))
            ;
        seconds[i] = (double)(clock_now_ns() - begin) * 1e-9;
        drain(b);
    }
    *ret_host = bench_median(host, ROUNDS);
    return bench_median(seconds, ROUNDS);
}

/* Seconds for each step of n tokens, one after the other, the host a step ahead. */
static double
interval(struct bench *b, int n, int steps)
{
    uint64_t begin = clock_now_ns();

    for (int i = 0; i < steps; i++) {
        struct row_step *s = launch(b, n);

        resolve(b, s, n);
    }
    drain(b);
    return (double)(clock_now_ns() - begin) * 1e-9 / steps;
}

static void
nothing(void *arg)
{
}

/* Of JSON: the machine and the table; the rest of the object is to follow. */
static void
begin_line(const struct bench *b)
{
    if (b->o->json)
        printf("{\"device\": \"%s\", \"table_gb\": %.3f, \"table_dtype\": \"%s\", ",
               bench_device_text(b->device), (double)b->table.size_bytes * 1e-9,
               dtype_name(b->o->table_dtype));
}

static void
count_hits(struct bench *b, double *ret_share)
{
    struct tiers_stats stats;
    double now[TIER_COUNT] = {0}, all = 0;

    *ret_share = 0;
    if (b->tiers == NULL)
        return;
    tiers_stats(b->tiers, &stats);
    for (int tier = 0; tier < TIER_COUNT; tier++)
        for (int o = 0; o < stats.n_orders; o++)
            now[tier] += (double)stats.tier[tier].set[0][o].hits;
    for (int tier = 0; tier < TIER_COUNT; tier++) {
        all += now[tier] - (double)b->cells_hit[tier];
        *ret_share = tier == TIER_HBM ? now[tier] - (double)b->cells_hit[tier] : *ret_share;
        b->cells_hit[tier] = (int64_t)now[tier];
    }
    *ret_share = all > 0 ? *ret_share / all : 0;
}

static void
run(struct bench *b, const char *name, uint64_t hbm_bytes, bool tiers, bool on_device,
    const double *single)
{
    const struct engram_shape *e = &b->shape.engram;
    struct cold_store *cold = NULL;
    struct err err = ERR_INIT;
    struct tiers_options options = {
        .engram = *e,
        .hbm_memory = chunk_ops_of_device(b->device, false),
        .ram_memory = chunk_ops_of_device(b->device, true),
        .hbm_budget_bytes = hbm_bytes,
        .gather_threads = b->o->threads,
        .in_place_below = b->o->in_place,
        .max_step_rows = MOST_TOKENS,
        .steps_in_flight = IN_FLIGHT + 1,
    };
    static const int sizes[] = {64, 512, MOST_TOKENS};
    double rows = (double)MOST_TOKENS * (e->max_order - 1) * e->heads, share, figures[3], host[2];

    if (on_device)
        bench_table_to_device(&b->table);
    options.resident[0] = (struct tier_resident){
        .weights = on_device ? b->table.on_device : b->table.host, .device = on_device};
    check(null_store_open(&cold, nothing, NULL), "a store");
    options.cold = cold;
    if (tiers && tiers_new(&b->tiers, &options, &err) < 0)
        bench_fail(name, &err);
    memset(b->cells_hit, 0, sizeof b->cells_hit);
    b->at = e->max_order;
    (void)interval(b, MOST_TOKENS, WARM_STEPS);
    count_hits(b, &share);
    for (int i = 0; i < 2; i++)
        figures[i] = latency(b, sizes[i], &host[i]);
    double rounds[5];
    for (int i = 0; i < 5; i++)
        rounds[i] = interval(b, MOST_TOKENS, 8);
    figures[2] = bench_median(rounds, 5);
    count_hits(b, &share);
    begin_line(b);
    printf(b->o->json ? "\"command\": \"rows\", \"placement\": \"%s\", \"hbm_share\": %.4f, "
                        "\"us_64\": %.2f, \"us_512\": %.2f, \"host_us_64\": %.2f, "
                        "\"host_us_512\": %.2f, \"rows_per_s_8192\": %.0f, "
                        "\"times_single\": %.3f, \"gb_per_s\": %.2f}\n"
                      : "%-26s %7.3f %9.1f %9.1f %9.1f %9.1f %14.0f %8.2f %8.2f\n",
           name, share, figures[0] * 1e6, figures[1] * 1e6, host[0] * 1e6, host[1] * 1e6, rows / figures[2],
           rows / figures[2] / single[2],
           rows / figures[2] * engram_row_weight_bytes(e) * 1e-9);
    fflush(stdout);
    b->tiers = tiers_free(b->tiers);
    cold->ops->close(cold);
    if (on_device)
        bench_table_drop_device(&b->table);
}

/* The plain kernel: seconds for 64 and 512 tokens, rows/s for 8192. */
static void
run_single(struct bench *b, double *ret_figures)
{
    const struct engram_shape *e = &b->shape.engram;
    static const int sizes[] = {64, 512, MOST_TOKENS};
    int (*single)(struct device *, const struct single_rows *, int, double *) = NULL;
    int columns = (e->max_order - 1) * e->heads, repeats = 21;
    int64_t *row = shared(b, (size_t)repeats * MOST_TOKENS * (size_t)columns * sizeof *row);

    *(void **)&single = cuda_plugin_symbol("engram_cuda_single_rows");
    ASSERT(single);
    for (int size = 0; size < 3; size++) {
        int n = sizes[size];
        struct single_rows a = {.table = b->table.host,
                                .row = row,
                                .n_rows = n * columns,
                                .row_bytes = engram_row_weight_bytes(e),
                                .out = b->out};
        b->at = e->max_order;
        for (int64_t i = 0; i < (int64_t)repeats * n; i++, b->at++) {
            int32_t ids[SHAPE_MAX_ORDER];
            uint64_t mix[SHAPE_MAX_ORDERS];

            for (int k = 0; k < e->max_order; k++)
                ids[k] = b->corpus.compressed[b->corpus.ids[b->at - k]];
            ngram_hash_mix(e, 0, ids, mix);
            for (int c = 0; c < columns; c++) {
                int o = c / e->heads, h = c % e->heads;

                row[i * columns + c] = e->table[0].row_base[o][h] +
                                       (int64_t)(mix[o] % (uint64_t)e->table[0].prime[o][h]);
            }
        }
        double seconds;
        check(single(b->device, &a, repeats, &seconds), "the single-row kernel");
        ret_figures[size] = size == 2 ? (double)a.n_rows / seconds : seconds;
    }
    begin_line(b);
    printf(b->o->json ? "\"command\": \"rows\", \"placement\": \"%s\", "
                        "\"us_64\": %.2f, \"us_512\": %.2f, \"rows_per_s_8192\": %.0f, "
                        "\"times_single\": 1, \"gb_per_s\": %.2f}\n"
                      : "%-26s       - %9.1f %9.1f         -         - %14.0f     1.00 %8.2f\n",
           "single rows, kernel alone", ret_figures[0] * 1e6,
           ret_figures[1] * 1e6, ret_figures[2],
           ret_figures[2] * engram_row_weight_bytes(e) * 1e-9);
    b->device->ops->free_shared(b->device, row,
                                (size_t)repeats * MOST_TOKENS * (size_t)columns * sizeof *row);
}

/* Whole bundles that lie one behind the other, as in staging: a kernel that reads them where they are,
 * against one DMA and the same kernel reading its copy. */
static void
run_staging(struct bench *b)
{
    const struct engram_shape *e = &b->shape.engram;
    int (*single)(struct device *, const struct single_rows *, int, double *) = NULL;
    int (*dma)(struct device *, void *, const void *, size_t, const struct single_rows *, int,
               double *) = NULL;
    enum { MOST = 2 * MOST_TOKENS, REPEATS = 21 };
    size_t bundle = (size_t)engram_bundle_bytes(e), list = (size_t)REPEATS * MOST * sizeof(int64_t);
    int64_t *row = shared(b, list);
    void *out = b->device->ops->alloc(b->device, MOST * bundle);
    void *copy = b->device->ops->alloc(b->device, MOST * bundle);

    *(void **)&single = cuda_plugin_symbol("engram_cuda_single_rows");
    *(void **)&dma = cuda_plugin_symbol("engram_cuda_dma");
    ASSERT(single && dma && out && copy && MOST * bundle <= b->table.size_bytes);
    if (!b->o->json)
        printf("%-26s %12s %12s %16s\n", "staged bundles", "zero copy us", "DMA alone us",
               "DMA + gather us");
    for (int n = 64; n <= MOST; n *= 4) {
        struct single_rows in_place = {b->table.host, row, n, (int)bundle, out};
        struct single_rows gather = {copy, row, n, (int)bundle, out};
        size_t size = (size_t)n * bundle;
        double by_kernel, by_dma, by_both;

        for (int i = 0; i < REPEATS * n; i++)
            row[i] = i % n;
        check(single(b->device, &in_place, REPEATS, &by_kernel), "zero copy");
        check(dma(b->device, copy, b->table.host, size, NULL, REPEATS, &by_dma), "DMA");
        check(dma(b->device, copy, b->table.host, size, &gather, REPEATS, &by_both), "DMA and gather");
        begin_line(b);
        printf(b->o->json ? "\"command\": \"staging\", \"bundles\": %d, \"bundle_bytes\": %zu, "
                            "\"zero_copy_us\": %.2f, \"dma_alone_us\": %.2f, "
                            "\"dma_gather_us\": %.2f}\n"
                          : "%-10d of %5zu bytes  %12.2f %12.2f %16.2f\n",
               n, bundle, by_kernel * 1e6, by_dma * 1e6, by_both * 1e6);
    }
    b->device->ops->free(b->device, copy, MOST * bundle);
    b->device->ops->free(b->device, out, MOST * bundle);
    b->device->ops->free_shared(b->device, row, list);
}

static void
usage(FILE *out)
{
    fputs("Usage: engram-bench rows --text FILE --tokenizer FILE [--device cuda:N] [--params N]\n"
          "                         [--table-dtype fp8|bf16] [--heads N] [--head-dim N] [--hbm SIZE]\n"
          "                         [--threads N] [--in-place N] [--json]\n",
          out);
}

static bool
parse(struct options *o, int argc, char **argv)
{
    static const struct option longs[] = {
        {"text", 1, NULL, 't'},   {"tokenizer", 1, NULL, 'T'}, {"device", 1, NULL, 'd'},
        {"params", 1, NULL, 'P'}, {"heads", 1, NULL, 'H'},     {"head-dim", 1, NULL, 'D'},
        {"threads", 1, NULL, 'n'}, {"in-place", 1, NULL, 'i'},
        {"table-dtype", 1, NULL, 'y'}, {"hbm", 1, NULL, 'b'},    {"json", 0, NULL, 'j'},      {"help", 0, NULL, 'h'},
        {0}};
    struct err err = ERR_INIT;

    for (int c; (c = getopt_long(argc, argv, "", longs, NULL)) != -1;)
        switch (c) {
        case 't':
            o->text = optarg;
            break;
        case 'T':
            o->tokenizer = optarg;
            break;
        case 'd':
            o->device = optarg;
            break;
        case 'P':
            o->params = strtod(optarg, NULL);
            break;
        case 'y':
            o->table_dtype = bench_table_dtype(optarg);
            break;
        case 'H':
            o->heads = bench_number(optarg, 1, SHAPE_MAX_HEADS_PER_NGRAM);
            break;
        case 'D':
            o->head_dim = bench_number(optarg, 16, 1024);
            break;
        case 'b':
            if (byte_size_parse(optarg, &o->hbm_bytes, &err) < 0)
                bench_fail("--hbm", &err);
            break;
        case 'n':
            o->threads = bench_number(optarg, 0, 256);
            break;
        case 'i':
            o->in_place = bench_number(optarg, 0, 1 << 20);
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
    return optind == argc && o->text && o->tokenizer && o->head_dim % 16 == 0;
}

int
bench_rows(int argc, char **argv)
{
    struct options o = {.device = "auto",
                        .params = 16e9,
                        .table_dtype = DTYPE_F8_E4M3,
                        .heads = 8,
                        .head_dim = 160,
                        .hbm_bytes = (uint64_t)1 << 30};
    struct bench b = {.o = &o};
    struct err err = ERR_INIT;
    double single[3];

    if (!parse(&o, argc, argv)) {
        usage(stderr);
        return BENCH_USAGE;
    }
    if (bench_shape("qwen3-0.6b", &b.shape, &err) < 0)
        bench_fail("shape", &err);
    bench_add_engram(&b.shape, o.table_dtype, o.params, o.heads, o.head_dim, 1);
    bench_corpus_read(&b.corpus, o.text, o.tokenizer, &b.shape);
    int64_t wanted = (int64_t)MOST_TOKENS * (WARM_STEPS + 5 * 8) + ROUNDS * (64 + 512) + 64;
    if (b.corpus.n_ids < wanted) {
        fprintf(stderr, "engram-bench: %s has %lld tokens, %lld are needed\n", o.text,
                (long long)b.corpus.n_ids, (long long)wanted);
        return 1;
    }
    if (bench_device(o.device, &b.device, &err) < 0)
        bench_fail("--device", &err);
    if (strcmp(b.device->ops->name, "cuda") != 0) {
        fprintf(stderr, "engram-bench: rows: there is no GPU to deliver rows to\n");
        return 1;
    }
    struct device_limits limits = {MOST_TOKENS, 1, 1, 1, 1, 64};
    check(b.device->ops->reserve(b.device, &b.shape, &limits), "reserve");
    bench_table_open(&b.table, b.device, &b.shape.engram);
    for (int i = 0; i < IN_FLIGHT; i++)
        open_step(&b, &b.step[i]);
    size_t out_bytes = (size_t)MOST_TOKENS * 2 * (size_t)(b.shape.engram.max_order - 1) *
                       (size_t)o.heads * (size_t)o.head_dim;
    b.out = b.device->ops->alloc(b.device, out_bytes);
    ASSERT(b.out);
    if (!o.json)
        printf("%s; table %.2f GB of %s, %d heads of %d for each of %d orders; single rows: the kernel's "
               "own time, keys on the device; ours: from the keys on the host\n%-26s %7s %9s %9s "
               "%9s %9s %14s %8s %8s\n",
               bench_device_text(b.device), (double)b.table.size_bytes * 1e-9,
               dtype_name(o.table_dtype), o.heads, o.head_dim,
               b.shape.engram.max_order - 1, "placement", "in hbm", "us at 64", "us at 512", "host 64",
               "host 512", "rows/s at 8192", "times", "GB/s");
    run_single(&b, single);
    run(&b, "rows in place, no tiers", 0, false, false, single);
    run(&b, "host", 0, true, false, single);
    run(&b, "host, hbm store", o.hbm_bytes, true, false, single);
    run(&b, "host, hbm store / 4", o.hbm_bytes / 4, true, false, single);
    run(&b, "device", 0, true, true, single);
    run_staging(&b);
    for (int i = 0; i < IN_FLIGHT; i++)
        close_step(&b, &b.step[i]);
    b.device->ops->free(b.device, b.out, out_bytes);
    bench_table_close(&b.table);
    bench_corpus_free(&b.corpus);
    b.device->ops->close(b.device);
    return 0;
}
