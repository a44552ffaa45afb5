#include "daemon/router.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/log.h"
#include "daemon/exchange.h"
#include "daemon/memory_check.h"
#include "daemon/tier_report.h"
#include "proto/api_json.h"

typedef void (*endpoint_fn)(struct daemon *d, struct http_conn *conn, struct http_request *request);

/* Every answer may be read by any page: there are no credentials here. */
static const char cors[] = "access-control-allow-origin: *\r\n"
                           "access-control-expose-headers: x-request-id\r\n";

static void
respond_json(struct http_conn *conn, int status, const char *extra, struct buf *body)
{
    char headers[256];

    snprintf(headers, sizeof headers, "%s%s", cors, extra ? extra : "");
    http_respond(conn, status, "application/json", headers, body->data, body->size_bytes);
    buf_free(body);
}

static void
refuse_unready(struct daemon *d, struct http_conn *conn, struct http_request *request)
{
    struct api_error error = {0};

    if (d->state == DAEMON_LOADING)
        api_error_set(&error, 503, "model_loading", "", "the model is loading");
    else
        api_error_set(&error, 503, "draining", "", "the server is shutting down");
    error.retry_after_s = d->state == DAEMON_LOADING ? 1 : 5;
    http_request_free(request);
    http_respond_error(conn, &error);
}

static void
completions(struct daemon *d, struct http_conn *conn, struct http_request *request)
{
    if (d->state != DAEMON_SERVING)
        refuse_unready(d, conn, request);
    else
        exchange_begin(d, conn, request);
}

static struct api_model
model_of(const struct serving *s)
{
    return (struct api_model){.id = s->name,
                              .created = s->created,
                              .max_model_len = s->max_context,
                              .n_params = (int64_t)s->n_params,
                              .size_bytes = (int64_t)(s->weight_bytes + s->table_bytes),
                              .vocab = s->config.shape.vocab};
}

static void
models(struct daemon *d, struct http_conn *conn, struct http_request *request)
{
    static const char prefix[] = "/v1/models/";
    struct buf body = {0};

    if (d->serving == NULL) {
        refuse_unready(d, conn, request);
        return;
    }
    struct api_model model = model_of(d->serving);

    if (strncmp(request->path, prefix, sizeof prefix - 1) != 0) {
        api_models_write(&body, &model, 1);
    } else if (strcmp(request->path + sizeof prefix - 1, model.id) == 0) {
        api_model_write(&body, &model);
    } else {
        struct api_error error = {0};

        api_error_set(&error, 404, "model_not_found", "model", "no model '%.200s' is served here",
                      request->path + sizeof prefix - 1);
        http_request_free(request);
        http_respond_error(conn, &error);
        return;
    }
    http_request_free(request);
    respond_json(conn, 200, NULL, &body);
}

static void
readyz(struct daemon *d, struct http_conn *conn, struct http_request *request)
{
    struct engine_load load = {0};
    struct buf body = {0};
    char loading[96];

    if (d->serving)
        engine_load(d->serving->engine, &load);
    snprintf(loading, sizeof loading, "%s %.1f%%", d->load_phase ? d->load_phase : "starting",
             d->load_permille / 10.0);
    bool ready = d->state == DAEMON_SERVING && load.fault == 0;
    struct api_check checks[] = {
        {"model", d->serving != NULL, d->serving ? d->serving->name : loading},
        {"device", load.fault == 0, load.fault ? "failed" : d->conf->device},
        {"accepting", d->state == DAEMON_SERVING,
         d->state == DAEMON_SERVING   ? "yes"
         : d->state == DAEMON_LOADING ? "loading"
                                      : "draining"},
    };
    bool verbose = strstr(request->query, "verbose") != NULL;
    const char *status = ready                        ? "ok"
                         : d->state == DAEMON_LOADING ? "model_loading"
                         : load.fault                 ? "device_unavailable"
                                                      : "draining";

    http_request_free(request);
    if (!ready && !verbose) {
        struct api_error error = {0};

        api_error_set(&error, 503, status, "", "not ready: %s", status);
        error.retry_after_s = 1;
        http_respond_error(conn, &error);
        return;
    }
    api_ready_write(&body, status, checks, verbose ? (int)(sizeof checks / sizeof *checks) : 0);
    respond_json(conn, ready ? 200 : 503, ready ? NULL : "retry-after: 1\r\n", &body);
}

/* Alive as long as the loop answers: the engine's life is the watchdog's business. */
static void
livez(struct daemon *d, struct http_conn *conn, struct http_request *request)
{
    struct buf body = {0};

    (void)d;
    http_request_free(request);
    api_ready_write(&body, "ok", NULL, 0);
    respond_json(conn, 200, NULL, &body);
}

static void
metrics(struct daemon *d, struct http_conn *conn, struct http_request *request)
{
    struct buf body = {0};
    struct engine_load load;

    if (d->serving == NULL) {
        refuse_unready(d, conn, request);
        return;
    }
    http_request_free(request);
    engine_load(d->serving->engine, &load);
    metrics_set(d->metrics, METRIC_ID_num_requests_running, 0, load.running);
    metrics_set(d->metrics, METRIC_ID_num_requests_waiting, 0, load.waiting);
    metrics_set(d->metrics, METRIC_ID_kv_cache_usage_ratio, 0, load.kv_usage);
    tier_report_update(d->metrics, d->serving);
    metrics_render(d->metrics, &body);
    http_respond(conn, 200, "text/plain; version=0.0.4; charset=utf-8", cors, body.data,
                 body.size_bytes);
    buf_free(&body);
}

/* A resize may free or touch gigabytes: not on the loop. */
struct resize {
    uv_work_t work;
    struct daemon *daemon;
    struct http_conn *conn; /* NULL: the client went away */
    struct api_tier_sizes sizes;
    int status;
};

static void
resize_gone(void *arg)
{
    ((struct resize *)arg)->conn = NULL;
}

static void
resize_work(uv_work_t *work)
{
    struct resize *r = work->data;

    const struct serving *s = r->daemon->serving;

    r->status = s->residence
                    ? residence_resize(s->residence, r->sizes.hbm_bytes, r->sizes.ram_bytes)
                    : resolver_resize(s->resolver, r->sizes.hbm_bytes, r->sizes.ram_bytes);
}

static void
resize_done(uv_work_t *work, int status)
{
    struct resize *r = work->data;
    struct daemon *d = r->daemon;

    (void)status;
    d->n_works--;
    if (r->conn && r->status < 0) {
        struct api_error error = {0};

        api_error_set(&error, 503, "busy", "", "the resolver is busy; try again");
        error.retry_after_s = 1;
        http_respond_error(r->conn, &error);
    } else if (r->conn) {
        struct buf body = {0};

        tier_report_json(&body, d->serving);
        respond_json(r->conn, 200, NULL, &body);
    }
    free(r);
    daemon_exchange_ended(d);
}

static void
patch_tiers(struct daemon *d, struct http_conn *conn, struct http_request *request)
{
    struct resize *r = calloc(1, sizeof *r);
    struct api_error error = {0};
    struct err err = ERR_INIT;

    if (r == NULL)
        api_error_set(&error, 500, "internal_error", "", "no memory");
    else if (d->serving->resolver == NULL)
        api_error_set(&error, 400, "invalid_value", "tiers", "the model has no N-gram tables");
    else if (api_tier_sizes_parse(request->body, request->body_size, &r->sizes, &error) == 0 &&
             memory_check_resize(d->serving, r->sizes.hbm_bytes, r->sizes.ram_bytes, &err) < 0)
        api_error_set(&error, 400, "invalid_value", "tiers", "%s", err.text);
    http_request_free(request);
    if (error.status) {
        free(r);
        http_respond_error(conn, &error);
        return;
    }
    r->daemon = d;
    r->conn = conn;
    r->work.data = r;
    http_conn_watch(conn, &(struct http_callbacks){.gone = resize_gone, .arg = r});
    d->n_works++;
    log_info("tiers: new sizes asked for through the admin socket");
    if (uv_queue_work(&d->loop, &r->work, resize_work, resize_done) < 0) {
        r->status = -EAGAIN;
        resize_done(&r->work, 0);
    }
}

static void
tiers(struct daemon *d, struct http_conn *conn, struct http_request *request)
{
    struct buf body = {0};

    if (d->serving == NULL) {
        refuse_unready(d, conn, request);
        return;
    }
    if (request->method == HTTP_PATCH_) {
        patch_tiers(d, conn, request);
        return;
    }
    http_request_free(request);
    tier_report_json(&body, d->serving);
    respond_json(conn, 200, NULL, &body);
}

static const struct route {
    const char *path;
    const char *allow, *admin_allow; /* on the TCP port, on the admin socket */
    endpoint_fn endpoint;
} routes[] = {
    {"/v1/completions", "POST, OPTIONS", "POST, OPTIONS", completions},
    {"/v1/models", "GET, HEAD, OPTIONS", "GET, HEAD, OPTIONS", models},
    {"/v1/models/*", "GET, HEAD, OPTIONS", "GET, HEAD, OPTIONS", models},
    {"/v1/tiers", "GET, HEAD, OPTIONS", "GET, HEAD, PATCH, OPTIONS", tiers},
    {"/health", "GET, HEAD, OPTIONS", "GET, HEAD, OPTIONS", readyz},
    {"/v1/health", "GET, HEAD, OPTIONS", "GET, HEAD, OPTIONS", readyz},
    {"/readyz", "GET, HEAD, OPTIONS", "GET, HEAD, OPTIONS", readyz},
    {"/livez", "GET, HEAD, OPTIONS", "GET, HEAD, OPTIONS", livez},
    {"/metrics", "GET, HEAD, OPTIONS", "GET, HEAD, OPTIONS", metrics},
};

static const struct route *
find_route(const char *path)
{
    for (size_t i = 0; i < sizeof routes / sizeof *routes; i++) {
        size_t length = strlen(routes[i].path);

        if (strcmp(routes[i].path, path) == 0)
            return &routes[i];
        if (routes[i].path[length - 1] == '*' && strncmp(routes[i].path, path, length - 1) == 0 &&
            path[length - 1])
            return &routes[i];
    }
    return NULL;
}

/* A word of a comma-separated list. */
static bool
allows(const char *list, const char *method)
{
    size_t length = strlen(method);

    for (const char *at = list; (at = strstr(at, method)) != NULL; at += length)
        if ((at == list || at[-1] == ' ') && (at[length] == ',' || at[length] == 0))
            return true;
    return false;
}

void
router_handle(void *daemon, struct http_conn *conn, struct http_request *request)
{
    struct daemon *d = daemon;
    const struct route *route = find_route(request->path);
    struct api_error error = {0};

    if (route == NULL) {
        api_error_set(&error, 404, "unknown_url", "", "unknown URL: %.16s %.200s",
                      request->method_name, request->path);
    } else {
        const char *allow = http_conn_is_admin(conn) ? route->admin_allow : route->allow;

        if (request->method == HTTP_OPTIONS_) {
            char extra[2048];

            snprintf(extra, sizeof extra, "allow: %s\r\n%s", allow, http_cors_preflight_headers);
            http_request_free(request);
            http_respond(conn, 204, NULL, extra, NULL, 0);
            return;
        }
        if (!allows(allow, request->method_name)) {
            api_error_set(&error, 405, "method_not_allowed", "", "%.16s is not allowed here; %s is",
                          request->method_name, allow);
            error.allow = allow;
        }
    }
    if (error.status) {
        http_request_free(request);
        http_respond_error(conn, &error);
        return;
    }
    route->endpoint(d, conn, request);
}
