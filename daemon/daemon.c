#include "daemon/daemon.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/byte_size.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "daemon/exchange.h"
#include "daemon/memory_check.h"
#include "daemon/router.h"
#include "daemon/signals.h"
#include "daemon/tier_report.h"

enum { STATUS_INTERVAL_MS = 5000, NOTIFY_NS = 1000000000, EXIT_DEVICE = 70 };

/* The manager hears of each phase, and of bytes that moved: a start that stands still runs into its
 * time limit. */
static void
notify_progress(struct daemon *d, const char *phase, bool new_phase, uint64_t done_bytes)
{
    struct load_progress *p = &d->progress;
    uint64_t now_ns = clock_now_ns();
    char text[160];

    if (!new_phase && (done_bytes == d->notified_bytes || now_ns - d->notified_ns < NOTIFY_NS))
        return;
    d->notified_bytes = done_bytes;
    d->notified_ns = now_ns;
    if (done_bytes)
        notify_send(d->notify, "STATUS=Loading %s\nEXTEND_TIMEOUT_USEC=30000000",
                    load_progress_text(&p->figures, text, sizeof text));
    else
        notify_send(d->notify, "STATUS=Loading %s\nEXTEND_TIMEOUT_USEC=30000000", phase);
}

static int
on_progress(void *arg, const char *phase, uint64_t done_bytes, uint64_t total_bytes)
{
    struct daemon *d = arg;
    bool new_phase = atomic_exchange(&d->load_phase, phase) != phase;

    atomic_store(&d->load_permille,
                 total_bytes ? (int)((double)done_bytes * 1000 / (double)total_bytes) : 0);
    if (atomic_load(&d->load_cancelled))
        return -ECANCELED;
    if (total_bytes)
        load_progress_step(&d->progress, done_bytes, total_bytes, clock_now_ns());
    notify_progress(d, phase, new_phase, done_bytes);
    if (new_phase)
        log_debug("loading %s", phase);
    return 0;
}

static void
on_heartbeat(void *arg)
{
    notify_watchdog(((struct daemon *)arg)->notify);
}

static void *
load_main(void *arg)
{
    struct daemon *d = arg;
    struct serving_hooks hooks = {.progress = on_progress,
                                  .heartbeat = on_heartbeat,
                                  .heartbeat_ns = notify_watchdog_ns(d->notify) / 2,
                                  .arg = d};

    sigset_t all;

    /* Signals are the loop's; every thread made from here on inherits this. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, NULL);
    thread_enter(THREAD_BACKGROUND);
    d->progress = load_progress_open();
    d->load_status = serving_load(&d->load_result, d->conf, d->metrics, &hooks, &d->load_err);
    load_progress_end(&d->progress);
    uv_async_send(&d->loaded);
    return NULL;
}

static void
close_handle(uv_handle_t *handle)
{
    if (!uv_is_closing(handle))
        uv_close(handle, NULL);
}

/* Closes every handle of the loop, so that uv_run returns once the last work is done. Two stay open
 * while others may still use them: `loaded` until the loader is done, engine_poll until the last
 * job has ended. */
static void
end(struct daemon *d, int exit_code)
{
    if (d->state == DAEMON_ENDING)
        return;
    d->state = DAEMON_ENDING;
    d->exit_code = exit_code;
    if (d->serving)
        engine_hurry(d->serving->engine);
    exchange_cancel_all(d, 503, "server_shutdown", "the server is shutting down");
    http_server_close(d->server);
    signals_ignore();
    close_handle((uv_handle_t *)&d->drain_timer);
    close_handle((uv_handle_t *)&d->status_timer);
    atomic_store(&d->load_cancelled, true);
    if (!d->loader_started || d->load_done)
        close_handle((uv_handle_t *)&d->loaded);
    daemon_exchange_ended(d);
}

/* Drained, or out of patience. Runs from the loop, never inside a connection's callback. */
static void
on_drain_timer(uv_timer_t *timer)
{
    struct daemon *d = timer->data;

    if (d->exchanges || d->n_works)
        log_warning("shutdown timeout: cancelling what still runs");
    end(d, 0);
}

void
daemon_exchange_ended(struct daemon *d)
{
    if (d->state == DAEMON_DRAINING && d->exchanges == NULL && d->n_works == 0)
        uv_timer_start(&d->drain_timer, on_drain_timer, 0, 0);
    if (d->state == DAEMON_ENDING && d->exchanges == NULL && d->engine_polled)
        close_handle((uv_handle_t *)&d->engine_poll);
}

static void
on_signal(void *arg, int number)
{
    struct daemon *d = arg;

    if (number == SIGHUP) {
        log_warning("SIGHUP: nothing is reloaded; tier sizes change through engramctl, the rest "
                    "needs a restart");
        return;
    }
    if (d->state == DAEMON_ENDING)
        return;
    if (d->state != DAEMON_SERVING) {
        log_info("signal %d: ending now", number);
        notify_send(d->notify, "STOPPING=1\nSTATUS=Ending");
        end(d, d->state == DAEMON_LOADING ? 0 : d->exit_code);
        return;
    }
    log_info("signal %d: draining for at most %.1f s", number,
             (double)d->conf->server_shutdown_timeout * 1e-9);
    notify_send(d->notify, "STOPPING=1\nSTATUS=Draining\nEXTEND_TIMEOUT_USEC=%llu",
                (unsigned long long)(d->conf->server_shutdown_timeout / 1000 + 5000000));
    d->state = DAEMON_DRAINING;
    http_server_drain(d->server);
    uv_timer_start(&d->drain_timer, on_drain_timer, d->conf->server_shutdown_timeout / 1000000, 0);
    daemon_exchange_ended(d);
}

static void
on_engine(uv_poll_t *poll, int status, int events)
{
    struct daemon *d = poll->data;
    struct engine *engine = d->serving->engine;
    struct engine_load load;
    struct job_block *block;
    uint64_t wakes;

    (void)status;
    (void)events;
    if (read(engine_fd(engine), &wakes, sizeof wakes) < 0 && errno != EAGAIN)
        log_error("the engine's event descriptor cannot be read");
    while ((block = engine_collect(engine)) != NULL) {
        for (int i = 0; i < block->n_events; i++)
            exchange_event(d, &block->event[i]);
        engine_recycle(engine, block);
    }
    engine_load(engine, &load);
    if (load.fault && d->state != DAEMON_ENDING) {
        log_error("the compute device failed (%s): ending", strerror(-load.fault));
        notify_send(d->notify, "STATUS=The compute device failed\nERRNO=%d", -load.fault);
        /* The engine's word on them may still be on its way. */
        exchange_cancel_all(d, 500, "internal_error", "the compute device failed");
        end(d, EXIT_DEVICE);
    }
}

static void
on_status_timer(uv_timer_t *timer)
{
    struct daemon *d = timer->data;
    struct engine_load load;

    if (d->state != DAEMON_SERVING)
        return;
    engine_load(d->serving->engine, &load);
    notify_send(d->notify, "STATUS=Serving %s: %d running, %d waiting", d->serving->name,
                load.running, load.waiting);
}

static void
on_loaded(uv_async_t *async)
{
    struct daemon *d = async->data;
    double seconds = (double)(clock_now_ns() - d->start_ns) * 1e-9;
    char weights[32], tables[32];

    d->load_done = true;
    if (d->state == DAEMON_ENDING) {
        close_handle((uv_handle_t *)&d->loaded);
        return;
    }
    if (d->load_status < 0) {
        log_error("%s", d->load_err.text);
        notify_send(d->notify, "STATUS=%s\nERRNO=%d", d->load_err.text, -d->load_status);
        end(d, serving_exit_code(d->load_status));
        return;
    }
    d->serving = d->load_result;
    d->load_result = NULL;
    if (uv_poll_init(&d->loop, &d->engine_poll, engine_fd(d->serving->engine)) < 0) {
        log_error("cannot poll the engine");
        end(d, 71);
        return;
    }
    d->engine_poll.data = d;
    d->engine_polled = true;
    uv_poll_start(&d->engine_poll, UV_READABLE, on_engine);
    d->state = DAEMON_SERVING;
    metrics_set(d->metrics, METRIC_ID_model_load_seconds, 0, seconds);
    log_info("%s: %llu parameters, weights %s, N-gram tables %s, context %d", d->serving->name,
             (unsigned long long)d->serving->n_params,
             byte_size_format(d->serving->weight_bytes, weights, sizeof weights),
             byte_size_format(d->serving->table_bytes, tables, sizeof tables),
             d->serving->max_context);
    log_info("serving %s on http://%s after %.2f s", d->serving->name, d->address, seconds);
    notify_send(d->notify, "READY=1\nSTATUS=Serving %s", d->serving->name);
    if (notify_watchdog_ns(d->notify))
        uv_timer_start(&d->status_timer, on_status_timer, STATUS_INTERVAL_MS, STATUS_INTERVAL_MS);
}

/* The admin socket: where the configuration says, else systemd's runtime directory, else none. */
static int
listen_admin(struct daemon *d, struct err *err)
{
    const char *runtime = getenv("RUNTIME_DIRECTORY");
    char path[512];

    if (d->conf->server_admin_socket[0])
        return http_server_listen_unix(d->server, d->conf->server_admin_socket, err);
    if (runtime == NULL)
        return 0;
    snprintf(path, sizeof path, "%.*s/engramctl.sock", (int)strcspn(runtime, ":"), runtime);
    return http_server_listen_unix(d->server, path, err);
}

static void
register_metrics(struct metrics *m)
{
    (void)metrics_series(m, METRIC_ID_http_requests_total, "code=\"2xx\"");
    (void)metrics_series(m, METRIC_ID_http_requests_total, "code=\"4xx\"");
    (void)metrics_series(m, METRIC_ID_http_requests_total, "code=\"5xx\"");
    (void)metrics_series(m, METRIC_ID_requests_total, "finished_reason=\"stop\"");
    (void)metrics_series(m, METRIC_ID_requests_total, "finished_reason=\"length\"");
    (void)metrics_series(m, METRIC_ID_build_info, "version=\"" ENGRAMD_VERSION "\"");
    metrics_set(m, METRIC_ID_build_info, 0, 1);
    metrics_set(m, METRIC_ID_start_time_seconds, 0, (double)clock_unix_seconds());
}

static int
set_up(struct daemon *d, struct err *err)
{
    const struct conf *conf = d->conf;
    struct http_server_options options = {
        .loop = &d->loop,
        .handler = router_handle,
        .arg = d,
        .limits = {.max_head_bytes = conf->server_max_header_size,
                   .max_body_bytes = conf->server_max_body_size,
                   .max_headers = 128},
        .max_connections = (int)conf->server_max_connections,
        .max_output_bytes = conf->server_max_output_buffer,
        .read_timeout_ns = conf->server_read_timeout,
        .idle_timeout_ns = conf->server_idle_timeout,
        .write_timeout_ns = conf->server_write_timeout,
        .ping_interval_ns = conf->server_ping_interval,
        .metrics = d->metrics,
    };

    uv_timer_init(&d->loop, &d->drain_timer);
    uv_timer_init(&d->loop, &d->status_timer);
    uv_async_init(&d->loop, &d->loaded, on_loaded);
    d->drain_timer.data = d->status_timer.data = d->loaded.data = d;

    int status = signals_open(&d->loop, on_signal, d);

    if (status < 0)
        return err_errno(err, -status, "cannot watch for signals");
    status = http_server_new(&d->server, &options, err);
    if (status == 0)
        status = http_server_listen_tcp(d->server, conf->server_listen, d->address,
                                        sizeof d->address, err);
    if (status == 0)
        status = listen_admin(d, err);
    if (status < 0)
        return status;
    status = pthread_create(&d->loader, NULL, load_main, d);
    if (status != 0)
        return err_errno(err, status, "cannot start the loader thread");
    d->loader_started = true;
    return 0;
}

/* True: the device is not to be touched any more. */
static bool
device_lost(struct daemon *d)
{
    int status = d->serving ? serving_stop(d->serving) : 0;

    if (status == 0)
        return false;
    if (d->exit_code != EXIT_DEVICE) {
        log_error("the compute device failed or does not answer (%s): ending without it",
                  strerror(-status));
        notify_send(d->notify, "STATUS=The compute device does not answer\nERRNO=%d", -status);
    }
    return true;
}

int
daemon_run(const struct conf *conf, bool *ret_at_once)
{
    struct daemon *d = calloc(1, sizeof *d);
    struct err err = ERR_INIT;

    *ret_at_once = false;
    if (d == NULL)
        return 71;
    signal(SIGPIPE, SIG_IGN);
    thread_enter(THREAD_LOOP);
    d->conf = conf;
    d->start_ns = clock_now_ns();
    d->metrics = metrics_new();
    d->notify = notify_open();
    if (d->metrics == NULL || d->notify == NULL || uv_loop_init(&d->loop) < 0) {
        log_error("no memory for the daemon");
        return 71;
    }
    register_metrics(d->metrics);
    notify_send(d->notify, "STATUS=Starting");
    int status = set_up(d, &err);

    if (status < 0) {
        log_error("%s", err.text);
        notify_send(d->notify, "STATUS=%s\nERRNO=%d", err.text, -status);
        if (d->server) {
            end(d, serving_exit_code(status));
        } else {
            d->exit_code = serving_exit_code(status);
            close_handle((uv_handle_t *)&d->loaded);
        }
    }
    uv_run(&d->loop, UV_RUN_DEFAULT);
    if (d->loader_started)
        pthread_join(d->loader, NULL);
    *ret_at_once = device_lost(d);
    if (*ret_at_once)
        return EXIT_DEVICE;
    serving_free(d->serving);
    serving_free(d->load_result);
    int exit_code = d->exit_code;

    http_server_free(d->server);
    signals_close();
    uv_run(&d->loop, UV_RUN_DEFAULT);
    uv_loop_close(&d->loop);
    notify_close(d->notify);
    metrics_free(d->metrics);
    free(d);
    return exit_code;
}
