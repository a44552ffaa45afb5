/* signals: SIGTERM, SIGINT and SIGHUP, told to a loop.
 *
 * Not by libuv's watchers: closing one gives the signal its default action back, if only for a moment, and there are
 * threads that do not block it (a BLAS library's, made before main). An impatient signal that came then killed a
 * daemon that was ending in good order. Here a signal is heard, and from signals_ignore on it is not; nothing in between.
 * Thread: the loop's. One at a time in a process. */
#ifndef DAEMON_SIGNALS_H
#define DAEMON_SIGNALS_H

#include <uv.h>

/* 0 or -errno. The callback runs from the loop, which this does not keep alive; signals of one number that come before it
 * has run are one. */
int signals_open(uv_loop_t *loop, void (*on_signal)(void *arg, int number), void *arg);
/* From now on they do nothing, until the process ends. */
void signals_ignore(void);
/* Ignores them, too. The loop has to run once more. */
void signals_close(void);

#endif
