/* bench_tiers: what a look-up costs, what a miss adds to the disk's own latency, and how many rows
 * a second come from disk.
 *
 *   bench_tiers [folder=/tmp] [mib=512] [depth=128] [seconds=3] [threads=0] [disk=1]
 *
 * threads: of the gather from a resident table of that size, 0: the default; disk=0: memory only.
 * Writes a table file of that size into the folder first and removes it. The resolver is a thread
 * of its own, as in the daemon, so a miss pays for every wake-up on its way. Best and median of
 * many: a shared machine only ever makes them worse. */
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/mailbox.h"
#include "tiering/tiers.h"

enum {
    HEADS = 8,
    ROW_BYTES = 160,
    ORDERS = 2,
    STEP_ROWS = 512,
    MAX_ROWS = 8192,
    SAMPLES_MAX = 200000
};

struct bench {
    char folder[200], path[256];
    int mib, depth, threads, disk;
    double seconds;
    struct engram_shape engram;
    struct tier_table table;
    uint64_t file_bytes;
    uint64_t random;
    uint64_t *sample_ns;
    int n_samples;
    double best_ns, median_ns; /* of what was shown last */
};

static uint64_t
next_random(struct bench *b)
{
    uint64_t x = b->random += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static int
compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void
sample(struct bench *b, uint64_t ns)
{
    if (b->n_samples < SAMPLES_MAX)
        b->sample_ns[b->n_samples++] = ns;
}

static void
show(struct bench *b, const char *what)
{
    qsort(b->sample_ns, (size_t)b->n_samples, sizeof *b->sample_ns, compare);
    printf("%-52s best %8.1f us  median %8.1f us  p99 %8.1f us  (n %d)\n", what,
           (double)b->sample_ns[0] * 1e-3, (double)b->sample_ns[b->n_samples / 2] * 1e-3,
           (double)b->sample_ns[b->n_samples * 99 / 100] * 1e-3, b->n_samples);
    b->best_ns = (double)b->sample_ns[0];
    b->median_ns = (double)b->sample_ns[b->n_samples / 2];
    b->n_samples = 0;
}

static void
show_each(const struct bench *b, int n, const char *what)
{
    printf("    best %.1f ns, median %.1f ns a %s\n", b->best_ns / n, b->median_ns / n, what);
}

static void *
chunk_alloc(void *arg, size_t size)
{
    void *chunk = malloc(size);
    if (chunk)
        memset(chunk, 0, size);
    return chunk;
}

static void
chunk_free(void *arg, void *chunk, size_t size)
{
    free(chunk);
}

static struct tiers *
open_tiers(struct bench *b, struct cold_store *cold, uint64_t hbm, uint64_t ram,
           const struct tier_resident *resident)
{
    struct tiers_options options = {
        .engram = b->engram,
        .table = {b->table},
        .cold = cold,
        .hbm_memory = {.alloc = chunk_alloc, .free = chunk_free, .arg = NULL},
        .ram_memory = {.alloc = chunk_alloc, .free = chunk_free, .arg = NULL},
        .hbm_budget_bytes = hbm,
        .ram_budget_bytes = ram,
        .resident = {*resident},
        .gather_threads = b->threads,
        .max_step_rows = MAX_ROWS,
        .steps_in_flight = 2,
    };
    struct tiers *tiers;
    struct err err = ERR_INIT;
    if (tiers_new(&tiers, &options, &err) < 0) {
        fprintf(stderr, "%s\n", err.text);
        exit(1);
    }
    return tiers;
}

static const struct tier_resident none;
static const void *resident_weights; /* of the table, where it is resident */

static struct tiers_request
request_of(uint64_t step, int n_rows, const uint64_t *mix, struct flag *flag)
{
    static struct bundle_address address[MAX_ROWS * ORDERS];
    static uint8_t failed[MAX_ROWS];
    return (struct tiers_request){.step = step,
                                  .n_rows = n_rows,
                                  .resident = resident_weights,
                                  .mix = mix,
                                  .address = address,
                                  .failed = failed,
                                  .ready = flag,
                                  .ready_value = step,
                                  .deadline_ns = step};
}

/* Steps whose bundles are all resident, of a store far larger than the CPU's caches. */
static void
bench_hits(struct bench *b, const char *what, int n_rows, uint64_t hbm, uint64_t ram, int n_known)
{
    struct cold_store *cold;
    static uint64_t mix[MAX_ROWS * ORDERS];
    uint64_t *known = calloc((size_t)n_known, sizeof *known);
    ASSERT(null_store_open(&cold, NULL, NULL) == 0);
    struct tiers *tiers = open_tiers(b, cold, hbm, ram, &none);
    struct flag flag = {0};
    uint64_t step = 1;
    for (int i = 0; i < n_known; i++)
        known[i] = next_random(b) >> 1;
    for (int begin = 0; begin + n_rows <= n_known; begin += n_rows, step++) {
        for (int i = 0; i < n_rows * ORDERS; i++)
            mix[i] = known[begin + i / ORDERS];
        struct tiers_request request = request_of(step, n_rows, mix, &flag);
        tiers_resolve(tiers, &request);
        tiers_step_done(tiers, step);
    }
    struct tiers_stats before, after;
    tiers_stats(tiers, &before);
    uint64_t end = clock_now_ns() + (uint64_t)(b->seconds * 1e9);
    while (clock_now_ns() < end) {
        for (int i = 0; i < n_rows * ORDERS; i++)
            mix[i] = known[next_random(b) % (unsigned)(n_known / n_rows * n_rows)];
        struct tiers_request request = request_of(++step, n_rows, mix, &flag);
        uint64_t start = clock_now_ns();
        tiers_resolve(tiers, &request);
        sample(b, clock_now_ns() - start);
        tiers_step_done(tiers, step);
    }
    tiers_stats(tiers, &after);
    double look_ups = (double)b->n_samples * n_rows * ORDERS;
    show(b, what);
    show_each(b, n_rows * ORDERS, "look-up");
    printf("    HBM %.0f MiB, RAM %.0f MiB used; %.3f %% of look-ups went to the cold store; %llu "
           "promotions\n",
           (double)after.tier[TIER_HBM].used_bytes / 1048576,
           (double)after.tier[TIER_RAM].used_bytes / 1048576,
           100.0 * (double)(after.nvme.reads - before.nvme.reads) / HEADS / look_ups,
           (unsigned long long)after.tier[TIER_HBM].set[0][0].promotions);
    tiers_free(tiers);
    cold->ops->close(cold);
    free(known);
}

/* A table that is resident: misses_percent of the look-ups are of bundles that HBM lacks and has no
 * room for. */
static void
bench_resident(struct bench *b, const char *what, int n_rows, bool device, int misses_percent)
{
    enum { N_KNOWN = 40000 };
    struct cold_store *cold;
    static uint64_t mix[MAX_ROWS * ORDERS], known[N_KNOWN];
    uint8_t *weights = aligned_alloc(2 << 20, b->file_bytes);
    ASSERT(weights && null_store_open(&cold, NULL, NULL) == 0);
    (void)madvise(weights, b->file_bytes, MADV_HUGEPAGE);
    memset(weights, 1, b->file_bytes);
    struct tier_resident resident = {weights, NULL, device};
    resident_weights = weights;
    struct tiers *tiers =
        open_tiers(b, cold, (uint64_t)N_KNOWN * ORDERS * HEADS * ROW_BYTES, 0, &resident);
    struct flag flag = {0};
    uint64_t step = 1;
    for (int i = 0; i < N_KNOWN; i++)
        known[i] = next_random(b) >> 1;
    for (int begin = 0; begin + n_rows <= N_KNOWN; begin += n_rows, step++) {
        for (int i = 0; i < n_rows * ORDERS; i++)
            mix[i] = known[begin + i / ORDERS];
        struct tiers_request request = request_of(step, n_rows, mix, &flag);
        tiers_resolve(tiers, &request);
        tiers_step_done(tiers, step);
    }
    /* Fills what is left, so that what follows is found in HBM or not promoted. */
    for (int turn = 0; turn < 20; turn++, step++) {
        for (int i = 0; i < n_rows * ORDERS; i++)
            mix[i] = next_random(b) >> 1;
        struct tiers_request request = request_of(step, n_rows, mix, &flag);
        tiers_resolve(tiers, &request);
        tiers_step_done(tiers, step);
    }
    struct tiers_stats before, after;
    tiers_stats(tiers, &before);
    uint64_t end = clock_now_ns() + (uint64_t)(b->seconds * 1e9), n_steps = 0;
    while (clock_now_ns() < end) {
        for (int i = 0; i < n_rows * ORDERS; i++)
            mix[i] = (int)(next_random(b) % 100) < misses_percent
                         ? next_random(b) >> 1
                         : known[next_random(b) % (unsigned)(N_KNOWN / n_rows * n_rows)];
        struct tiers_request request = request_of(++step, n_rows, mix, &flag);
        uint64_t start = clock_now_ns();
        tiers_resolve(tiers, &request);
        sample(b, clock_now_ns() - start);
        tiers_step_done(tiers, step);
        n_steps++;
    }
    tiers_stats(tiers, &after);
    double gathered = 0, promoted = 0;
    for (int o = 0; o < ORDERS; o++) {
        gathered +=
            (double)(after.tier[TIER_RAM].set[0][o].hits - before.tier[TIER_RAM].set[0][o].hits) /
            (double)n_steps;
        promoted += (double)(after.tier[TIER_HBM].set[0][o].promotions -
                             before.tier[TIER_HBM].set[0][o].promotions) /
                    (double)n_steps;
    }
    show(b, what);
    show_each(b, n_rows * ORDERS, "look-up");
    printf("    %.0f of %d bundles from the table in a step, %.0f promoted; best %.1f, median %.1f "
           "M rows/s of all the step takes; staging %.0f MiB\n",
           gathered, n_rows * ORDERS, promoted, gathered * HEADS / b->best_ns * 1e3,
           gathered * HEADS / b->median_ns * 1e3, (double)after.staging_bytes / 1048576);
    tiers_free(tiers);
    cold->ops->close(cold);
    free(weights);
}

/* The resolver thread of the daemon in small. */
struct resolver {
    struct mailbox *mailbox;
    struct tiers *tiers;
    pthread_t thread;
};

static void
wake(void *arg)
{
    struct resolver *r = arg;
    mailbox_wake(r->mailbox);
}

static void *
resolver_main(void *arg)
{
    struct resolver *r = arg;
    static char stop;
    thread_enter(THREAD_RESOLVER);
    for (;;) {
        struct tiers_request *request = mailbox_receive(r->mailbox, UINT64_MAX);
        if ((char *)request == (char *)r)
            return &stop;
        if (request && request->n_rows < 0)
            tiers_step_done(r->tiers, request->step);
        else if (request)
            tiers_resolve(r->tiers, request);
        tiers_poll(r->tiers);
    }
}

static void
shape_table(struct bench *b)
{
    b->file_bytes = (uint64_t)b->mib << 20;
    int64_t rows = (int64_t)(b->file_bytes / ROW_BYTES), per_head = rows / (HEADS * ORDERS);
    b->engram.table[0].rows = rows;
    for (int o = 0; o < ORDERS; o++)
        for (int j = 0; j < HEADS; j++) {
            b->engram.table[0].prime[o][j] = per_head - (per_head % 2 == 0) - 2 * (o * HEADS + j);
            b->engram.table[0].row_base[o][j] = per_head * (o * HEADS + j);
        }
}

static void
write_file(struct bench *b)
{
    snprintf(b->path, sizeof b->path, "%s/bench-tiers-XXXXXX", b->folder);
    int fd = mkstemp(b->path);
    ASSERT(fd >= 0);
    enum { BLOCK = 1 << 20 };
    uint64_t *block = malloc(BLOCK);
    for (int i = 0; i < b->mib; i++) {
        for (int k = 0; k < BLOCK / 8; k++)
            block[k] = next_random(b);
        ASSERT(write(fd, block, BLOCK) == BLOCK);
    }
    ASSERT(fsync(fd) == 0);
    close(fd);
    free(block);
}

/* The disk alone: what one page costs a thread that does nothing else. */
static void
bench_pread(struct bench *b)
{
    int fd = open(b->path, O_RDONLY | O_DIRECT);
    void *page;
    if (fd < 0 || posix_memalign(&page, 4096, 4096))
        return;
    uint64_t end = clock_now_ns() + (uint64_t)(b->seconds * 1e9);
    while (clock_now_ns() < end) {
        off_t at = (off_t)(next_random(b) % (b->file_bytes / 4096) * 4096);
        uint64_t start = clock_now_ns();
        ASSERT(pread(fd, page, 4096, at) == 4096);
        sample(b, clock_now_ns() - start);
    }
    show(b, "pread of one page, O_DIRECT, depth 1");
    close(fd);
    free(page);
}

static void
bench_misses(struct bench *b, const char *what, int n_rows, uint64_t ram)
{
    struct resolver r = {.mailbox = mailbox_new(8)};
    struct nvme_file file = {b->path, b->file_bytes};
    struct nvme_options options = {
        .depth = b->depth, .direct = 1, .retries = 1, .notify = wake, .notify_arg = &r};
    struct cold_store *cold;
    struct err err = ERR_INIT;
    if (nvme_store_open(&cold, &file, 1, &options, &err) < 0) {
        fprintf(stderr, "%s\n", err.text);
        exit(1);
    }
    r.tiers = open_tiers(b, cold, 0, ram, &none);
    ASSERT(pthread_create(&r.thread, NULL, resolver_main, &r) == 0);
    static uint64_t mix[MAX_ROWS * ORDERS];
    static struct tiers_request message[8][2]; /* the mailbox holds fewer steps than that */
    struct flag flag = {0};
    uint64_t begin = clock_now_ns(), end = begin + (uint64_t)(b->seconds * 1e9), step = 0;
    while (clock_now_ns() < end) {
        for (int i = 0; i < n_rows * ORDERS; i++)
            mix[i] = next_random(b) >> 1;
        struct tiers_request *request = &message[step % 8][0], *done = &message[step % 8][1];
        step++;
        *request = request_of(step, n_rows, mix, &flag);
        *done = (struct tiers_request){.step = step, .n_rows = -1};
        uint64_t start = clock_now_ns();
        ASSERT(mailbox_send(r.mailbox, request) == 0);
        ASSERT(flag_wait(&flag, step, 20000, 10000000000u) == 0);
        sample(b, clock_now_ns() - start);
        while (mailbox_send(r.mailbox, done) < 0)
            usleep(10);
        usleep(n_rows == 1 ? 300 : 0);
    }
    double seconds = (double)(clock_now_ns() - begin) * 1e-9;
    struct tiers_stats stats;
    tiers_stats(r.tiers, &stats);
    show(b, what);
    printf(
        "    %.0f bundles/s, %.0f device reads/s (mean %.0f us), %.2f reads merged into another's, "
        "%.1f bytes read per byte wanted\n",
        (double)step * n_rows * ORDERS / seconds, (double)stats.nvme.reads / seconds,
        (double)stats.nvme.latency_ns_total * 1e-3 / (double)stats.nvme.reads,
        (double)stats.nvme.merged / (double)(stats.nvme.useful_bytes / ROW_BYTES),
        (double)stats.nvme.bytes / (double)stats.nvme.useful_bytes);
    ASSERT(mailbox_send(r.mailbox, &r) == 0);
    pthread_join(r.thread, NULL);
    if (n_rows == 1)
        printf("    %s\n", nvme_store_describe(cold));
    tiers_free(r.tiers);
    cold->ops->close(cold);
    mailbox_free(r.mailbox);
}

int
main(int argc, char **argv)
{
    static struct bench b = {
        .folder = "/tmp", .mib = 512, .depth = 128, .seconds = 3, .disk = 1, .random = 1};
    for (int i = 1; i < argc; i++)
        if (sscanf(argv[i], "folder=%199s", b.folder) != 1 &&
            sscanf(argv[i], "mib=%d", &b.mib) != 1 && sscanf(argv[i], "depth=%d", &b.depth) != 1 &&
            sscanf(argv[i], "threads=%d", &b.threads) != 1 &&
            sscanf(argv[i], "disk=%d", &b.disk) != 1 &&
            sscanf(argv[i], "seconds=%lf", &b.seconds) != 1) {
            fprintf(stderr, "unknown argument %s\n", argv[i]);
            return 2;
        }
    if (b.mib < 1 || b.mib > 1 << 20 || b.seconds < 0.1 || b.seconds > 600)
        return 2;
    b.sample_ns = calloc(SAMPLES_MAX, sizeof *b.sample_ns);
    b.engram = (struct engram_shape){.n_layers = 1,
                                     .max_order = ORDERS + 1,
                                     .heads = HEADS,
                                     .head_dim = ROW_BYTES,
                                     .table_dtype = DTYPE_F8_E4M3};
    shape_table(&b);
    printf("bundles of %d bytes, %d look-ups a row\n", HEADS * ROW_BYTES, ORDERS);
    bench_hits(&b, "resolve 512 rows x 2, all in HBM (10 k bundles)", STEP_ROWS, 64 << 20, 0,
               10000);
    bench_hits(&b, "resolve 512 rows x 2, all in RAM (10 k bundles)", STEP_ROWS, 0, 64 << 20,
               10000);
    bench_hits(&b, "resolve 512 rows x 2, all in RAM (300 k bundles)", STEP_ROWS, 0, 1ull << 30,
               300000);
    bench_hits(&b, "resolve 512 rows x 2, RAM with a full HBM beside", STEP_ROWS, 4 << 20,
               1ull << 30, 300000);
    bench_hits(&b, "resolve 8192 rows x 2, all in HBM (40 k bundles)", MAX_ROWS, 256 << 20, 0,
               20000);
    bench_hits(&b, "resolve 8192 rows x 2, all in HBM (600 k bundles)", MAX_ROWS, 1ull << 30, 0,
               300000);
    bench_resident(&b, "resident in HBM, 8192 rows x 2", MAX_ROWS, true, 0);
    bench_resident(&b, "resident in RAM, 8192 rows x 2, all in HBM", MAX_ROWS, false, 0);
    bench_resident(&b, "resident in RAM, 8192 rows x 2, 5 % not in HBM", MAX_ROWS, false, 5);
    bench_resident(&b, "resident in RAM, 8192 rows x 2, 40 % not in HBM", MAX_ROWS, false, 40);
    bench_resident(&b, "resident in RAM, 8192 rows x 2, none in HBM", MAX_ROWS, false, 100);
    if (!b.disk)
        return 0;
    write_file(&b);
    bench_pread(&b);
    bench_misses(&b, "decode: 1 row x 2 misses, staging", 1, 0);
    bench_misses(&b, "decode: 1 row x 2 misses, into RAM", 1, 64 << 20);
    bench_misses(&b, "prefill: 512 rows x 2 misses, staging", STEP_ROWS, 0);
    (void)unlink(b.path);
    free(b.sample_ns);
    return 0;
}
