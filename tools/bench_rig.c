#include "tools/bench_rig.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"

static void
step_open(struct rig *r, struct rig_step *s)
{
    const struct device_ops *ops = r->device->ops;
    size_t rows = (size_t)r->limits.max_rows, seqs = (size_t)r->limits.max_sequences;

    s->token = ops->alloc_shared(r->device, rows * sizeof *s->token);
    s->position = ops->alloc_shared(r->device, rows * sizeof *s->position);
    s->row_seq = ops->alloc_shared(r->device, rows * sizeof *s->row_seq);
    s->seq = ops->alloc_shared(r->device, seqs * sizeof *s->seq);
    s->results = ops->alloc_shared(r->device, seqs * sizeof *s->results);
    s->report = ops->alloc_shared(r->device, sizeof *s->report);
    if (!s->token || !s->position || !s->row_seq || !s->seq || !s->results || !s->report) {
        fprintf(stderr, "engram-bench: no memory for the steps\n");
        exit(1);
    }
    memset(s->report, 0, sizeof *s->report);
}

static void
step_close(struct rig *r, struct rig_step *s)
{
    const struct device_ops *ops = r->device->ops;
    size_t rows = (size_t)r->limits.max_rows, seqs = (size_t)r->limits.max_sequences;

    ops->free_shared(r->device, s->token, rows * sizeof *s->token);
    ops->free_shared(r->device, s->position, rows * sizeof *s->position);
    ops->free_shared(r->device, s->row_seq, rows * sizeof *s->row_seq);
    ops->free_shared(r->device, s->seq, seqs * sizeof *s->seq);
    ops->free_shared(r->device, s->results, seqs * sizeof *s->results);
    ops->free_shared(r->device, s->report, sizeof *s->report);
}

void
rig_open(struct rig *r, const char *shape, const char *device, int max_rows, int max_sequences,
         int tokens)
{
    struct err err = ERR_INIT;

    *r = (struct rig){0};
    if (bench_shape(shape, &r->shape, &err) < 0)
        bench_fail("--shape", &err);
    if (bench_device(device, &r->device, &err) < 0)
        bench_fail("--device", &err);
    r->pages_each = (tokens + RIG_PAGE_TOKENS - 1) / RIG_PAGE_TOKENS;
    r->limits = (struct forward_limits){.max_rows = max_rows,
                                        .max_sequences = max_sequences,
                                        .n_states = max_sequences,
                                        .kv_pages = max_sequences * r->pages_each,
                                        .page_tokens = RIG_PAGE_TOKENS,
                                        .max_outputs = max_sequences,
                                        .max_step_pages = max_sequences * r->pages_each};
    if (forward_new(&r->forward, r->device, &r->shape, &r->limits, &err) < 0 ||
        forward_fill_all(r->forward, 1, &err) < 0 || forward_warm_up(r->forward, &err) < 0)
        bench_fail(shape, &err);
    r->pages = malloc((size_t)r->limits.kv_pages * sizeof *r->pages);
    r->outputs = calloc((size_t)max_sequences, sizeof *r->outputs);
    ASSERT(r->pages && r->outputs);
    for (int i = 0; i < r->limits.kv_pages; i++)
        r->pages[i] = i;
    for (int i = 0; i < RIG_STEPS; i++)
        step_open(r, &r->step[i]);
}

void
rig_close(struct rig *r)
{
    for (int i = 0; i < RIG_STEPS; i++)
        step_close(r, &r->step[i]);
    free(r->pages);
    free(r->outputs);
    forward_free(r->forward);
    r->device->ops->close(r->device);
}

static void
wait_for(struct rig *r, struct rig_step *s, uint64_t step)
{
    while (__atomic_load_n(&s->report->done, __ATOMIC_ACQUIRE) < step)
        if (r->device->ops->poll(r->device, NULL) < 0) {
            fprintf(stderr, "engram-bench: the device failed during step %llu\n",
                    (unsigned long long)step);
            exit(1);
        }
}

struct rig_step *
rig_next(struct rig *r)
{
    struct rig_step *s = &r->step[(r->last + 1) % RIG_STEPS];

    wait_for(r, s, s->forward.step);
    s->forward = (struct forward_step){.step = ++r->last,
                                       .report = s->report,
                                       .batch = {.token = s->token,
                                                 .position = s->position,
                                                 .row_seq = s->row_seq,
                                                 .seq = s->seq},
                                       .wait_timeout_ns = 1000000000,
                                       .outputs = r->outputs,
                                       .results = s->results};
    return s;
}

void
rig_issue(struct rig *r, struct rig_step *s)
{
    struct err err = ERR_INIT;

    if (forward_run(r->forward, &s->forward, &err) < 0)
        bench_fail("a step", &err);
}

void
rig_drain(struct rig *r)
{
    for (int i = 0; i < RIG_STEPS; i++)
        wait_for(r, &r->step[i], r->step[i].forward.step);
}
