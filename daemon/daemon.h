/* daemon: what the loop thread owns, and how the process lives: load, serve, drain, end.
 *
 *     LOADING --loaded--> SERVING --SIGTERM--> DRAINING --idle or timeout--> ENDING
 *        | failed                 | device fault, second signal ------------> ENDING
 *        +----------------------------------------------------------------> ENDING
 *
 * A device that failed, or that does not end its last step in time, is left as it is: nothing that may
 * wait for it is freed, and the process ends at once.
 *
 * Thread: loop, but for what is marked.                                                          */
#ifndef DAEMON_DAEMON_H
#define DAEMON_DAEMON_H

#include <pthread.h>
#include <stdatomic.h>
#include <uv.h>

#include "base/metric.h"
#include "conf/conf.h"
#include "daemon/http_server.h"
#include "daemon/load_progress.h"
#include "daemon/notify.h"
#include "daemon/serving.h"

enum daemon_state { DAEMON_LOADING, DAEMON_SERVING, DAEMON_DRAINING, DAEMON_ENDING };

struct exchange;

struct daemon {
    uv_loop_t loop;
    const struct conf *conf;
    struct metrics *metrics;
    struct notify *notify;
    struct http_server *server;
    char address[80]; /* in use, with the port */
    enum daemon_state state;
    struct serving *serving;    /* NULL until loaded */
    struct exchange *exchanges; /* open ones, a list owned by exchange.c */
    int n_works;                /* uv works under way */
    uint64_t start_ns, next_completion;
    int exit_code;

    uv_timer_t drain_timer, status_timer;
    uv_poll_t engine_poll;
    bool engine_polled;
    uv_async_t loaded; /* background to loop */
    pthread_t loader;
    bool loader_started, load_done;

    /* Background thread. */
    struct load_progress progress;
    uint64_t notified_ns, notified_bytes;
    /* Background thread writes, loop reads after `loaded`. */
    struct serving *load_result;
    int load_status;
    struct err load_err;
    /* Background thread writes, anyone reads. */
    _Atomic(const char *) load_phase;
    _Atomic int load_permille;
    /* Loop writes, background thread reads. */
    _Atomic bool load_cancelled;
};

/* Runs until it ends; returns the exit code. *ret_at_once: threads still run and use conf, and the
 * process is to end by _exit. */
int daemon_run(const struct conf *conf, bool *ret_at_once);
/* The last exchange may have ended: goes on with draining. */
void daemon_exchange_ended(struct daemon *daemon);

#endif
