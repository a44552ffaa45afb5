/* engine_rig: an engine under test with the real model, tiers and resolver, on the CPU backend or on a
 * device that runs behind the host (behind_device.h), and the jobs it is given. */
#ifndef TESTS_UNIT_DAEMON_ENGINE_RIG_H
#define TESTS_UNIT_DAEMON_ENGINE_RIG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "daemon/serving.h"
#include "tests/unit/daemon/behind_device.h"

enum { MAX_JOBS = 24, MAX_CHOICES = 4, MAX_TOKENS = 64, PROMPT = 64, PATIENCE_MS = 60000 };

struct outcome {
    int n_tokens[MAX_CHOICES];
    struct sample_result token[MAX_CHOICES][MAX_TOKENS];
    bool ended;
    int error;
    struct sample_result score[PROMPT];
};

struct rig {
    struct conf *conf;
    struct metrics *metrics;
    struct serving *serving;
    struct behind *behind; /* NULL: serving->engine on the CPU backend itself */
    struct forward *forward;
    struct engine *engine;
    struct job *jobs[MAX_JOBS]; /* in the engine */
    struct outcome outcome[MAX_JOBS];
    int n_ended;
    /* When the job has this many tokens of choice 0, it is cancelled, or its choice 0 stopped. */
    int cancel_at[MAX_JOBS], stop_at[MAX_JOBS];
};

/* extra: more options, NULL at the end, or NULL. step_timeout_ms: 0: the engine's own. */
struct rig *open_rig(bool behind, const char *const *extra, unsigned step_timeout_ms);
/* The resolver stops before the buffers go, as in serving_free. */
void close_rig(struct rig *r);
struct job *make_job(unsigned seed, int n_prompt, int64_t max_tokens);
/* All kinds of jobs, by number. */
struct job *any_job(unsigned i);
void submit(struct rig *r, int i, struct job *job);
/* Takes events until this many jobs have ended, or until the time is over; false then. */
bool wait_ended(struct rig *r, int n, int patience_ms);
void wait_issued(struct rig *r, uint64_t step);
/* What a has of the job is how b's began; all of it when `whole`. */
void compare(const struct rig *a, const struct rig *b, int i, bool whole);
int rig_metric(const struct rig *r, enum metric_id id);
/* Nothing runs, nothing waits, no page is in use but by the prefix cache. */
void wait_all_free(struct rig *r);
/* The jobs' outcomes on the CPU backend, with pages for all of them. */
struct rig *reference(struct job *(*make)(unsigned), int n);

#endif
