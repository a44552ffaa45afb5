/* bench_jobs: jobs on their way through an engine in this process, and how long their tokens took. */
#ifndef TOOLS_BENCH_JOBS_H
#define TOOLS_BENCH_JOBS_H

#include "daemon/engine.h"
#include "tools/bench.h"

struct bench_latency {
    float *ttft_ms, *itl_ms;
    int n_ttft, n_itl;
};
void bench_latency_open(struct bench_latency *latency);
void bench_latency_close(struct bench_latency *latency);
/* A token of the job came at now_ns. latency NULL: it is not to be counted. job->owner is taken for
 * the time of the job's last token. */
void bench_latency_token(struct bench_latency *latency, struct job *job, uint64_t now_ns);
double bench_percentile(float *values, int n, double share); /* sorts; 0 of none */

/* Plans the prompt's rows, then hands the job to the engine, which has room. compressed NULL: nothing
 * to plan. */
void bench_submit(struct engine *engine, struct resolver *resolver, const int32_t *compressed,
                  struct job *job);
/* Waits for events, a second at most, and hands each to take; a job that has ended is freed after
 * that, one that failed ends the program. */
typedef void (*bench_event_fn)(void *arg, struct job_event *event, uint64_t now_ns);
void bench_collect(struct engine *engine, bench_event_fn take, void *arg);

#endif
