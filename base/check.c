/* check: see check.h. */
#include "base/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
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

void
thread_enter(enum thread_role role)
{
    ASSERT(role >= THREAD_ANY && role <= THREAD_BACKGROUND);
    role_here = role;
    /* The first thread's name is the process's name in ps and pgrep: it stays "engramd". */
    if (gettid() != getpid())
        (void)prctl(PR_SET_NAME, role_names[role]);
}

enum thread_role
thread_current(void)
{
    return role_here;
}
