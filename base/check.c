/* check: see check.h. */
#include "base/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static _Thread_local enum thread_role role_here = THREAD_ANY;

static const char *const role_names[] = {
    [THREAD_ANY] = "any",
    [THREAD_LOOP] = "loop",
    [THREAD_ENGINE] = "engine",
    [THREAD_RESOLVER] = "resolver",
    [THREAD_RING] = "ring",
    [THREAD_WORKER] = "worker",
    [THREAD_BACKGROUND] = "background",
};

_Noreturn void
check_failed(const char *file, int line, const char *expr)
{
    fprintf(stderr, "%s:%d: thread %s: invariant broken: %s\n", file, line, role_names[role_here],
            expr);
    abort();
}

/* Asks the kernel for a short time slice: a thread that wakes often and works briefly then gets its CPU at once
 * from one that computes. On two CPUs, both busy with a forward pass, this is the difference between a row
 * that comes in time and one that waits for a slice of milliseconds. Needs no privilege; a kernel before
 * 6.12 ignores the number, and nothing else changes. */
static void
prefer_latency(void)
{
    struct { /* struct sched_attr, version 0 */
        uint32_t size, policy;
        uint64_t flags;
        int32_t nice;
        uint32_t priority;
        uint64_t runtime_ns, deadline_ns, period_ns;
    } attr = {.size = 48};

    if (syscall(SYS_sched_getattr, 0, &attr, sizeof attr, 0) != 0)
        return;
    attr.size = 48;
    attr.runtime_ns = 100000;
    (void)syscall(SYS_sched_setattr, 0, &attr, 0);
}

void
thread_enter(enum thread_role role)
{
    ASSERT(role >= THREAD_ANY && role <= THREAD_BACKGROUND);
    role_here = role;
    /* The first thread's name is the process's name in ps and pgrep: it stays "engramd". */
    if (gettid() != getpid())
        (void)prctl(PR_SET_NAME, role_names[role]);
    if (role == THREAD_RESOLVER || role == THREAD_RING)
        prefer_latency();
    /* They sleep tens of microseconds between two looks at a step; by default 50 are added. */
    if (role == THREAD_RESOLVER || role == THREAD_ENGINE)
        (void)prctl(PR_SET_TIMERSLACK, 1000ul, 0, 0, 0);
}

enum thread_role
thread_current(void)
{
    return role_here;
}
