/* bench_resolve: the host's time for the requests of a resident table with an HBM store, for the keys of
 * real text; what engram-bench rows does on the host, without a GPU.
 *
 *   bench_resolve --text FILE --tokenizer FILE [--table-bytes SIZE] [--hbm SIZE] [--threads N]
 *                 [--in-place N] [--warm STEPS] [--rounds N]
 *
 * The table lies in huge pages, the HBM store's chunks in memory that nobody touches. 64 and 512 tokens:
 * one request at a time after a pause in which the pool falls asleep; 8,192: one after the other, two in
 * flight. Medians and tenths in us; "answers" is a sum over which cells hit and which promote, equal for
 * equal decisions. The gathered bytes are compared with the table's in the last step. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/byte_size.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/pool.h"
#include "model/ngram_hash.h"
#include "tiering/tiers.h"
#include "tools/bench_corpus.h"

enum { MOST_TOKENS = 8192, ORDERS = 2, HEADS = 8, HEAD_DIM = 160, IN_FLIGHT = 2, ROUNDS_MAX = 1000 };

struct options {
    const char *text, *tokenizer;
    uint64_t table_bytes, hbm_bytes;
    int threads, in_place, warm, rounds;
};

struct bench {
    const struct options *o;
    struct model_shape shape;
    struct bench_corpus corpus;
    uint8_t *weights;
    struct tiers *tiers;
    uint64_t step, answers;
    int64_t at; /* in the text */
    uint64_t mix[IN_FLIGHT + 1][MOST_TOKENS * ORDERS];
    struct bundle_address address[IN_FLIGHT + 1][MOST_TOKENS * ORDERS];
    uint8_t failed[MOST_TOKENS];
};

struct times {
    double hash, resolve, done; /* us */
};

void
bench_fail(const char *what, const struct err *err)
{
    fprintf(stderr, "bench_resolve: %s: %s\n", what, err->text);
    exit(1);
}

static void *
chunk_alloc(void *arg, size_t size)
{
    void *chunk = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    return chunk == MAP_FAILED ? NULL : chunk;
}

static void *
staging_alloc(void *arg, size_t size)
{
    void *chunk = chunk_alloc(arg, size);

    if (chunk)
        memset(chunk, 0, size);
    return chunk;
}

static void
chunk_free(void *arg, void *chunk, size_t size)
{
    (void)munmap(chunk, size);
}

struct hashing {
    struct bench *b;
    uint64_t *mix;
    int n;
};

static void
hash_part(void *arg, int part, int n_parts)
{
    const struct hashing *h = arg;
    const struct bench *b = h->b;
    long begin, end;

    pool_slice(h->n, 64, part, n_parts, &begin, &end);
    for (long i = begin; i < end; i++) {
        int32_t ids[SHAPE_MAX_ORDER];

        for (int k = 0; k <= ORDERS; k++)
            ids[k] = b->corpus.compressed[b->corpus.ids[b->at + i - k]];
        ngram_hash_mix(&b->shape.engram, 0, ids, h->mix + i * ORDERS);
    }
}

static void
compare(const struct bench *b, const uint64_t *mix, const struct bundle_address *address, int n)
{
    const struct engram_shape *e = &b->shape.engram;
    int gathered = 0;

    for (int c = 0; c < n * ORDERS; c++) {
        const uint8_t *source = address[c].source;
        ASSERT(source);
        if (source == BUNDLE_IN_PLACE || *(const uint64_t *)source == 0) /* HBM: nobody filled it */
            continue;
        gathered++;
        for (int j = 0; j < HEADS; j++) {
            uint64_t row = (uint64_t)e->table[0].row_base[c % ORDERS][j] +
                           mix[c] % (uint64_t)e->table[0].prime[c % ORDERS][j];
            ASSERT(memcmp(source + j * HEAD_DIM, b->weights + row * HEAD_DIM, HEAD_DIM) == 0);
        }
    }
    printf("last step: %d of %d cells gathered, and right\n", gathered, n * ORDERS);
}

/* A step of n tokens; the one before the last is done first, as the device would be. */
static struct times
run_step(struct bench *b, int n, bool show)
{
    struct flag flag = {0};
    uint64_t step = ++b->step, place = step % (IN_FLIGHT + 1), start = clock_now_ns();
    struct hashing hashing = {b, b->mix[place], n};
    struct times times;

    if (step > IN_FLIGHT)
        tiers_step_done(b->tiers, step - IN_FLIGHT);
    uint64_t done = clock_now_ns();
    if (n >= 1024)
        pool_run(tiers_pool(b->tiers), hash_part, &hashing);
    else
        hash_part(&hashing, 0, 1);
    b->at += n;
    uint64_t hashed = clock_now_ns();
    struct tiers_request request = {.step = step,
                                    .n_rows = n,
                                    .resident = b->weights,
                                    .mix = b->mix[place],
                                    .address = b->address[place],
                                    .failed = b->failed,
                                    .ready = &flag,
                                    .ready_value = step,
                                    .deadline_ns = start};
    tiers_resolve(b->tiers, &request);
    uint64_t end = clock_now_ns();
    times = (struct times){(double)(hashed - done) * 1e-3, (double)(end - hashed) * 1e-3,
                           (double)(done - start) * 1e-3};
    if (show)
        compare(b, b->mix[place], b->address[place], n);
    return times;
}

/* Which cells are answered by HBM and which promote. */
static void
sum_answers(struct bench *b, int n)
{
    struct tiers_stats stats;
    const struct bundle_address *address = b->address[b->step % (IN_FLIGHT + 1)];

    for (int c = 0; c < n * ORDERS; c++)
        b->answers = (b->answers ^ (address[c].promote != NULL)) * 0x100000001b3u + (uint64_t)c;
    tiers_stats(b->tiers, &stats);
    for (int o = 0; o < ORDERS; o++)
        b->answers = (b->answers ^ stats.tier[TIER_HBM].set[0][o].hits) * 0x100000001b3u;
}

static int
by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void
show(const char *what, double *us, int n)
{
    qsort(us, (size_t)n, sizeof *us, by_size);
    printf("  %-8s %8.1f %8.1f %8.1f\n", what, us[n / 10], us[n / 2], us[n * 9 / 10]);
}

static void
run(struct bench *b, int n, int rounds, bool pause)
{
    static double hash[ROUNDS_MAX], resolve[ROUNDS_MAX], done[ROUNDS_MAX], all[ROUNDS_MAX];
    struct tiers_stats before, after;
    double hits = 0, promotions = 0;

    tiers_stats(b->tiers, &before);
    uint64_t answers = b->answers;
    for (int i = 0; i < rounds; i++) {
        uint64_t begin = clock_now_ns();
        while (pause && clock_now_ns() - begin < 150000)
            ;
        struct times times = run_step(b, n, n == MOST_TOKENS && i == rounds - 1);
        hash[i] = times.hash;
        resolve[i] = times.resolve;
        done[i] = times.done;
        all[i] = times.hash + times.resolve + times.done;
        sum_answers(b, n);
    }
    tiers_stats(b->tiers, &after);
    for (int o = 0; o < ORDERS; o++) {
        hits += (double)(after.tier[TIER_HBM].set[0][o].hits - before.tier[TIER_HBM].set[0][o].hits);
        promotions += (double)(after.tier[TIER_HBM].set[0][o].promotions -
                               before.tier[TIER_HBM].set[0][o].promotions);
    }
    printf("%d tokens: %.1f %% hits, %.1f promotions a step, answers %016llx\n", n,
           100 * hits / ((double)rounds * n * ORDERS), promotions / rounds,
           (unsigned long long)(b->answers - answers));
    show("hash", hash, rounds);
    show("resolve", resolve, rounds);
    show("done", done, rounds);
    show("all", all, rounds);
    printf("  %.1f M rows/s\n", (double)n * ORDERS * HEADS / all[rounds / 2]);
}

static void
nothing(void *arg)
{
}

static void
serve(struct bench *b)
{
    struct tiers_options options = {
        .engram = b->shape.engram,
        .resident[0] = {.weights = b->weights},
        .hbm_memory = {.alloc = chunk_alloc, .free = chunk_free},
        .ram_memory = {.alloc = staging_alloc, .free = chunk_free},
        .hbm_budget_bytes = b->o->hbm_bytes,
        .gather_threads = b->o->threads,
        .in_place_below = b->o->in_place,
        .max_step_rows = MOST_TOKENS,
        .steps_in_flight = IN_FLIGHT + 1,
    };
    struct cold_store *cold;
    struct err err = ERR_INIT;

    ASSERT(null_store_open(&cold, nothing, NULL) == 0);
    options.cold = cold;
    if (tiers_new(&b->tiers, &options, &err) < 0)
        bench_fail("tiers", &err);
    for (int i = 0; i < b->o->warm; i++)
        (void)run_step(b, MOST_TOKENS, false);
    printf("%d threads; p10, median and p90 in us\n", pool_threads(tiers_pool(b->tiers)));
    run(b, 64, 5 * b->o->rounds, true);
    run(b, 512, 3 * b->o->rounds, true);
    run(b, MOST_TOKENS, b->o->rounds, false);
    b->tiers = tiers_free(b->tiers);
    cold->ops->close(cold);
}

static void
fill(struct bench *b, size_t size)
{
    uint64_t x = 1;

    b->weights = aligned_alloc(2 << 20, (size + (2 << 20) - 1) >> 21 << 21);
    ASSERT(b->weights);
    (void)madvise(b->weights, size, MADV_HUGEPAGE);
    for (size_t i = 0; i < size / 8; i++) {
        x = x * 0xd1342543de82ef95u + 1;
        ((uint64_t *)b->weights)[i] = x | 1;
    }
}

static bool
parse(struct options *o, int argc, char **argv)
{
    static const struct option longs[] = {
        {"text", 1, NULL, 't'},     {"tokenizer", 1, NULL, 'T'}, {"table-bytes", 1, NULL, 'b'},
        {"hbm", 1, NULL, 'h'},      {"threads", 1, NULL, 'n'},   {"in-place", 1, NULL, 'i'},
        {"warm", 1, NULL, 'w'},     {"rounds", 1, NULL, 'r'},    {0}};
    struct err err = ERR_INIT;

    for (int c; (c = getopt_long(argc, argv, "", longs, NULL)) != -1;) {
        uint64_t *size = c == 'b' ? &o->table_bytes : &o->hbm_bytes;

        if ((c == 'b' || c == 'h') && byte_size_parse(optarg, size, &err) < 0)
            bench_fail("a size", &err);
        else if (c == 't')
            o->text = optarg;
        else if (c == 'T')
            o->tokenizer = optarg;
        else if (c == 'n')
            o->threads = atoi(optarg);
        else if (c == 'i')
            o->in_place = atoi(optarg);
        else if (c == 'w')
            o->warm = atoi(optarg);
        else if (c == 'r')
            o->rounds = atoi(optarg);
        else if (c == '?')
            return false;
    }
    return optind == argc && o->text && o->tokenizer && o->rounds >= 2 &&
           5 * o->rounds <= ROUNDS_MAX && o->warm > IN_FLIGHT;
}

int
main(int argc, char **argv)
{
    static struct bench b = {.shape = {.vocab = 151936, .layers = 28}, .at = ORDERS + 1};
    struct options o = {
        .table_bytes = 3ull << 30, .hbm_bytes = 1ull << 30, .warm = 160, .rounds = 40};

    if (!parse(&o, argc, argv)) {
        fprintf(stderr, "bench_resolve: usage: see the head of bench_resolve.c\n");
        return 2;
    }
    thread_enter(THREAD_RESOLVER);
    b.o = &o;
    bench_add_engram(&b.shape, DTYPE_F8_E4M3, (double)o.table_bytes, HEADS, HEAD_DIM, 1);
    bench_corpus_read(&b.corpus, o.text, o.tokenizer, &b.shape);
    int64_t wanted =
        (int64_t)MOST_TOKENS * (o.warm + o.rounds) + (int64_t)o.rounds * (5 * 64 + 3 * 512) + 64;
    if (b.corpus.n_ids < wanted) {
        fprintf(stderr, "bench_resolve: %lld tokens of text, %lld are needed\n",
                (long long)b.corpus.n_ids, (long long)wanted);
        return 1;
    }
    fill(&b, (size_t)b.shape.engram.table[0].rows * HEAD_DIM);
    serve(&b);
    free(b.weights);
    bench_corpus_free(&b.corpus);
    return 0;
}
