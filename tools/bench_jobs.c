#include "tools/bench_jobs.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"

enum { MAX_SAMPLES = 1 << 20 };

void
bench_latency_open(struct bench_latency *l)
{
    *l = (struct bench_latency){.ttft_ms = malloc(MAX_SAMPLES * sizeof *l->ttft_ms),
                                .itl_ms = malloc(MAX_SAMPLES * sizeof *l->itl_ms)};
    ASSERT(l->ttft_ms && l->itl_ms);
}

void
bench_latency_close(struct bench_latency *l)
{
    free(l->ttft_ms);
    free(l->itl_ms);
    *l = (struct bench_latency){0};
}

void
bench_latency_token(struct bench_latency *l, struct job *job, uint64_t now_ns)
{
    bool first = job->owner == NULL;
    uint64_t since = first ? job->received_ns : (uint64_t)(uintptr_t)job->owner;
    float ms = (float)((double)(now_ns - since) * 1e-6);

    job->owner = (void *)(uintptr_t)now_ns;
    if (l && first && l->n_ttft < MAX_SAMPLES)
        l->ttft_ms[l->n_ttft++] = ms;
    if (l && !first && l->n_itl < MAX_SAMPLES)
        l->itl_ms[l->n_itl++] = ms;
}

static int
by_value(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;

    return (x > y) - (x < y);
}

double
bench_percentile(float *values, int n, double share)
{
    if (n == 0)
        return 0;
    qsort(values, (size_t)n, sizeof *values, by_value);
    return (double)values[(int)(share * (n - 1) + 0.5)];
}

void
bench_submit(struct engine *engine, struct resolver *resolver, const int32_t *compressed,
             struct job *job)
{
    int32_t *ids = compressed ? malloc((size_t)job->n_prompt * sizeof *ids) : NULL;

    ASSERT(ids || !compressed);
    for (int k = 0; ids && k < job->n_prompt; k++)
        ids[k] = compressed[job->prompt[k]];
    if (ids)
        resolver_prefetch(resolver, ids, job->n_prompt);
    free(ids);
    int status = engine_submit(engine, job);

    ASSERT(status == 0);
}

static void
take_block(struct job_block *block, bench_event_fn take, void *arg)
{
    uint64_t now_ns = clock_now_ns();

    for (int i = 0; i < block->n_events; i++) {
        struct job_event *event = &block->event[i];

        if (event->kind == JOB_ENDED && event->error) {
            fprintf(stderr, "engram-bench: %s\n", event->error_text);
            exit(1);
        }
        take(arg, event, now_ns);
        if (event->kind == JOB_ENDED)
            job_free(event->job);
    }
}

void
bench_collect(struct engine *engine, bench_event_fn take, void *arg)
{
    struct pollfd readable = {.fd = engine_fd(engine), .events = POLLIN};
    struct job_block *block;
    uint64_t wakes;

    poll(&readable, 1, 1000);
    if (read(readable.fd, &wakes, sizeof wakes) < 0 && errno != EAGAIN)
        abort();
    while ((block = engine_collect(engine)) != NULL) {
        take_block(block, take, arg);
        engine_recycle(engine, block);
    }
}
