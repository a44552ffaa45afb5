/* check: assertions that are always on, and which thread may be here.
 *
 * ASSERT aborts with file, line and expression: a broken invariant is a bug of ours, never an
 * answer to input. Input is answered with struct err (base/err.h).                           */
#ifndef BASE_CHECK_H
#define BASE_CHECK_H

_Noreturn void check_failed(const char *file, int line, const char *expr);

#define ASSERT(expr) ((expr) ? (void)0 : check_failed(__FILE__, __LINE__, #expr))

/* The named threads of the daemon. THREAD_ANY is a thread nobody named (tests, tools). */
enum thread_role {
    THREAD_ANY,
    THREAD_LOOP,
    THREAD_ENGINE,
    THREAD_RESOLVER,
    THREAD_RING,
    THREAD_WORKER,
    THREAD_BACKGROUND,
};

/* Names the calling thread for the kernel (ps, gdb) and for ASSERT_THREAD. The resolver and the ring also ask for
 * short time slices. */
void thread_enter(enum thread_role role);
enum thread_role thread_current(void);

/* Passes on the named thread and on threads nobody named. */
#define ASSERT_THREAD(role) ASSERT(thread_current() == (role) || thread_current() == THREAD_ANY)

#endif
