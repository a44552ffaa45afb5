/* bench_decode: decode steps of a random model, one row for each sequence, back to back; the limit
 * is the time to read weights and KV cache once at the bandwidth measured in the same run. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "tools/bench_rig.h"

enum { MAX_BATCHES = 16, ROUNDS = 7 };

struct options {
    const char *shape, *device;
    int batch[MAX_BATCHES], n_batches;
    int context, steps;
    bool json;
};

struct figures {
    int batch;
    double step_s, bound_s, idle, syncs, allocs, replayed;
    uint64_t plans_late; /* since the start: none is made a second time */
};

/* steps decode steps from a context of o->context tokens on; returns seconds for each. */
static double
run_steps(struct rig *r, const struct options *o, int batch)
{
    uint64_t begin = clock_now_ns();

    for (int i = 0; i < o->steps; i++) {
        struct rig_step *s = rig_next(r);

        for (int k = 0; k < batch; k++) {
            s->token[k] = i ? TOKEN_OF_SLOT : k * 7919 % r->shape.vocab;
            s->position[k] = o->context + i;
            s->row_seq[k] = k;
            s->seq[k] = (struct batch_seq){.first_row = k,
                                           .n_rows = 1,
                                           .context = o->context + i,
                                           .state_slot = k,
                                           .n_pages = (o->context + i) / RIG_PAGE_TOKENS + 1,
                                           .pages = r->pages + k * r->pages_each};
            r->outputs[k] = (struct forward_output){
                .row = k, .params = {.repetition_penalty = 1, .forced = -1, .slot = k}};
        }
        s->forward.batch.n_rows = s->forward.batch.n_seqs = s->forward.batch.n_decode = batch;
        s->forward.n_outputs = batch;
        rig_issue(r, s);
    }
    rig_drain(r);
    return (double)(clock_now_ns() - begin) * 1e-9 / o->steps;
}

static struct figures
measure(struct rig *r, const struct options *o, int batch, const struct bench_limits *limits)
{
    struct cuda_counters before, after;
    double seconds[ROUNDS], steps = (double)ROUNDS * o->steps;
    double context = o->context + (o->steps + 1) / 2.0;
    double bytes = (double)bench_weight_bytes(&r->shape) +
                   batch * context * (double)bench_kv_bytes(r->device, &r->shape);
    struct figures f = {.batch = batch};

    for (int i = 0; i < 2; i++) /* once to see every size, once to capture its graph */
        (void)run_steps(r, o, batch);
    bool counted = bench_counters(r->device, &before);
    for (int i = 0; i < ROUNDS; i++)
        seconds[i] = run_steps(r, o, batch);
    f.step_s = bench_median(seconds, ROUNDS);
    f.bound_s = bytes / limits->read_bytes_per_s;
    if (counted && bench_counters(r->device, &after)) {
        double span = (double)(after.gpu_span_ns - before.gpu_span_ns);

        f.idle = 1 - (double)(after.gpu_busy_ns - before.gpu_busy_ns) / span;
        f.syncs = (double)(after.syncs - before.syncs) / steps;
        f.allocs = (double)(after.allocs - before.allocs) / steps;
        f.plans_late = after.plans_late;
        f.replayed = (double)(after.graph_replays - before.graph_replays) / steps;
    }
    return f;
}

static void
print(const struct options *o, const struct rig *r, const struct figures *f)
{
    if (o->json)
        printf("{\"command\": \"decode\", \"device\": \"%s\", \"shape\": \"%s\", \"batch\": %d, \"context\": %d, "
               "\"step_ms\": %.4f, \"tokens_per_s\": %.1f, \"bound_ms\": %.4f, \"share\": %.4f, "
               "\"idle\": %.5f, \"syncs\": %.4f, \"allocs\": %.4f, \"plans_late\": %llu, \"replayed\": %.4f}\n",
               bench_device_text(r->device), o->shape, f->batch, o->context, f->step_s * 1e3,
               f->batch / f->step_s, f->bound_s * 1e3, f->bound_s / f->step_s, f->idle, f->syncs,
               f->allocs, (unsigned long long)f->plans_late, f->replayed);
    else
        printf("%6d %8d %9.3f %10.1f %9.3f %6.1f%% %6.2f%% %6.3f %6.3f %6llu %8.1f%%\n", f->batch,
               o->context, f->step_s * 1e3, f->batch / f->step_s, f->bound_s * 1e3,
               100 * f->bound_s / f->step_s, 100 * f->idle, f->syncs, f->allocs,
               (unsigned long long)f->plans_late, 100 * f->replayed);
    fflush(stdout);
}

static void
usage(FILE *out)
{
    fputs("Usage: engram-bench decode [--shape NAME] [--device cpu|cuda:N|auto] [--batch N]...\n"
          "                           [--context N] [--steps N] [--json]\n",
          out);
}

static bool
parse(struct options *o, int argc, char **argv)
{
    static const struct option longs[] = {
        {"shape", 1, NULL, 's'}, {"device", 1, NULL, 'd'}, {"batch", 1, NULL, 'b'},
        {"context", 1, NULL, 'c'}, {"steps", 1, NULL, 'n'}, {"json", 0, NULL, 'j'},
        {"help", 0, NULL, 'h'}, {0}};

    for (int c; (c = getopt_long(argc, argv, "", longs, NULL)) != -1;)
        switch (c) {
        case 's':
            o->shape = optarg;
            break;
        case 'd':
            o->device = optarg;
            break;
        case 'b':
            if (o->n_batches == MAX_BATCHES)
                return false;
            o->batch[o->n_batches++] = bench_number(optarg, 1, 4096);
            break;
        case 'c':
            o->context = bench_number(optarg, 0, 1 << 20);
            break;
        case 'n':
            o->steps = bench_number(optarg, 1, 100000);
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
bench_decode(int argc, char **argv)
{
    struct options o = {
        .shape = "qwen3-0.6b", .device = "auto", .context = 1024, .steps = 64};
    struct bench_limits limits;
    struct err err = ERR_INIT;
    struct rig rig;
    int most = 1;

    if (!parse(&o, argc, argv)) {
        usage(stderr);
        return BENCH_USAGE;
    }
    if (o.n_batches == 0)
        o.batch[o.n_batches++] = 1;
    for (int i = 0; i < o.n_batches; i++)
        most = o.batch[i] > most ? o.batch[i] : most;
    rig_open(&rig, o.shape, o.device, most, most, o.context + o.steps);
    if (bench_limits(rig.device, &limits, &err) < 0)
        bench_fail("limits", &err);
    if (!o.json)
        printf("%s on %s; reads %.0f GB/s\n%6s %8s %9s %10s %9s %7s %7s %6s %6s %6s %9s\n", o.shape,
               bench_device_text(rig.device), limits.read_bytes_per_s * 1e-9, "batch", "context",
               "step ms", "tokens/s", "bound ms", "share", "idle", "syncs", "allocs", "late",
               "replayed");
    for (int i = 0; i < o.n_batches; i++) {
        struct figures f = measure(&rig, &o, o.batch[i], &limits);

        print(&o, &rig, &f);
    }
    rig_close(&rig);
    return 0;
}
