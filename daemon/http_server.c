#include "daemon/http_server.h"

#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"

enum { READ_BUFFER = 64 * 1024, BACKLOG_MAX = 256 * 1024, LINGER_BYTES = 64 * 1024 * 1024 };
enum { TICK_MS = 100, MAX_LISTENERS = 2 };
static const uint64_t linger_ns = 2000 * 1000 * 1000ull;

enum conn_state { CONN_READING, CONN_BUSY, CONN_LINGER, CONN_CLOSED };

struct http_conn {
    union {
        uv_handle_t handle;
        uv_stream_t stream;
        uv_tcp_t tcp;
        uv_pipe_t pipe;
    } u;
    struct http_server *server;
    struct http_conn *prev, *next;
    enum conn_state state;
    bool admin, reading, streaming;
    struct http_parser *parser;
    struct buf backlog; /* bytes not parsed yet, from backlog_at on */
    size_t backlog_at;
    bool processing; /* conn_process is on the stack */
    /* The request in progress. */
    bool head_only, keep_alive, http10;
    char request_id[136];
    struct http_callbacks callbacks;
    /* Deadlines: of the state, and of output that does not move. */
    uint64_t deadline_ns, write_deadline_ns, last_write_ns;
    size_t write_queue_bytes;
    size_t lingered_bytes;
};

struct http_server {
    struct http_server_options options;
    uv_timer_t tick;
    union {
        uv_handle_t handle;
        uv_stream_t stream;
        uv_tcp_t tcp;
        uv_pipe_t pipe;
    } listener[MAX_LISTENERS];
    int n_listeners;
    struct http_conn *conns;
    int n_conns;
    bool draining, closing;
    uint64_t next_id;
    char read_buffer[READ_BUFFER];
};

static void conn_process(struct http_conn *conn);
static void conn_linger(struct http_conn *conn);

static void
on_conn_closed(uv_handle_t *handle)
{
    struct http_conn *conn = handle->data;

    http_parser_free(conn->parser);
    buf_free(&conn->backlog);
    free(conn);
}

static void
conn_close(struct http_conn *conn)
{
    struct http_server *server = conn->server;

    if (conn->state == CONN_CLOSED)
        return;
    struct http_callbacks callbacks = conn->callbacks;
    bool busy = conn->state == CONN_BUSY;

    conn->state = CONN_CLOSED;
    conn->callbacks = (struct http_callbacks){0};
    if (conn->prev)
        conn->prev->next = conn->next;
    else
        server->conns = conn->next;
    if (conn->next)
        conn->next->prev = conn->prev;
    server->n_conns--;
    metrics_set(server->options.metrics, METRIC_ID_http_connections, 0, server->n_conns);
    if (server->n_conns == 0)
        uv_timer_stop(&server->tick);
    uv_close(&conn->u.handle, on_conn_closed);
    if (busy && callbacks.gone)
        callbacks.gone(callbacks.arg);
}

static void
on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *ret_buf)
{
    struct http_conn *conn = handle->data;

    (void)suggested;
    *ret_buf = uv_buf_init(conn->server->read_buffer, READ_BUFFER);
}

static void
on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    struct http_conn *conn = stream->data;

    if (n == 0)
        return;
    if (n == UV_EOF && conn->state != CONN_BUSY && uv_stream_get_write_queue_size(stream) > 0) {
        /* It has said all it wanted and still takes its answer. */
        if (conn->state == CONN_READING)
            conn_linger(conn);
        uv_read_stop(stream);
        conn->reading = false;
        return;
    }
    if (n < 0) {
        /* A client that closes its sending side while we work has gone: that is how the SDKs
         * cancel. */
        conn_close(conn);
        return;
    }
    switch (conn->state) {
    case CONN_READING:
    case CONN_BUSY:
        buf_append(&conn->backlog, buf->base, (size_t)n);
        if (conn->backlog.failed) {
            conn_close(conn);
            return;
        }
        conn_process(conn);
        if (conn->state == CONN_BUSY && conn->backlog.size_bytes > BACKLOG_MAX / 2) {
            uv_read_stop(stream);
            conn->reading = false;
        }
        break;
    case CONN_LINGER:
        conn->lingered_bytes += (size_t)n;
        if (conn->lingered_bytes > LINGER_BYTES)
            conn_close(conn);
        break;
    case CONN_CLOSED:
        break;
    }
}

struct output {
    uv_write_t request;
    struct http_conn *conn;
    char data[];
};

static void
on_written(uv_write_t *request, int status)
{
    struct output *output = (struct output *)request;
    struct http_conn *conn = output->conn;

    if (status < 0 && status != UV_ECANCELED)
        conn_close(conn);
    free(output);
}

/* Sends bytes; closes the connection when they cannot be queued. */
static void
conn_send(struct http_conn *conn, const char *data, size_t size)
{
    uint64_t now = clock_now_ns();

    if (conn->state == CONN_CLOSED || size == 0)
        return;
    size_t queued = uv_stream_get_write_queue_size(&conn->u.stream);

    if (queued == 0) {
        uv_buf_t direct = uv_buf_init((char *)data, (unsigned)size);
        int written = uv_try_write(&conn->u.stream, &direct, 1);

        conn->last_write_ns = now;
        if (written > 0) {
            data += written;
            size -= (size_t)written;
        } else if (written < 0 && written != UV_EAGAIN) {
            conn_close(conn);
            return;
        }
        if (size == 0)
            return;
        conn->write_deadline_ns = now + conn->server->options.write_timeout_ns;
    }
    /* A whole answer may be larger than the bound; a stream that piles up behind a slow client not.
     */
    if (conn->streaming && queued + size > conn->server->options.max_output_bytes) {
        conn_close(conn);
        return;
    }
    struct output *output = malloc(sizeof *output + size);

    if (output == NULL) {
        conn_close(conn);
        return;
    }
    output->conn = conn;
    memcpy(output->data, data, size);
    uv_buf_t buf = uv_buf_init(output->data, (unsigned)size);

    if (uv_write(&output->request, &conn->u.stream, &buf, 1, on_written) < 0) {
        free(output);
        conn_close(conn);
        return;
    }
    conn->write_queue_bytes = uv_stream_get_write_queue_size(&conn->u.stream);
}

static void
on_shutdown(uv_shutdown_t *request, int status)
{
    (void)status;
    free(request);
}

/* Ends our side and reads on for a while, so that the client gets the answer instead of a reset. */
static void
conn_linger(struct http_conn *conn)
{
    uv_shutdown_t *request = malloc(sizeof *request);

    if (request == NULL || uv_shutdown(request, &conn->u.stream, on_shutdown) < 0) {
        free(request);
        conn_close(conn);
        return;
    }
    conn->state = CONN_LINGER;
    conn->deadline_ns = clock_now_ns() + linger_ns;
    if (!conn->reading && uv_read_start(&conn->u.stream, on_alloc, on_read) == 0)
        conn->reading = true;
}

static void
count_response(struct http_conn *conn, int status)
{
    metrics_add(conn->server->options.metrics, METRIC_ID_http_requests_total,
                status < 300   ? 0
                : status < 500 ? 1
                               : 2,
                1);
}

/* The response is complete: the next request, or the end. */
static void
conn_finish(struct http_conn *conn)
{
    if (conn->state != CONN_BUSY)
        return;
    conn->callbacks = (struct http_callbacks){0};
    conn->streaming = false;
    if (!conn->keep_alive) {
        conn_linger(conn);
        return;
    }
    conn->state = CONN_READING;
    conn->deadline_ns = clock_now_ns() + conn->server->options.idle_timeout_ns;
    conn_process(conn);
}

static void
write_head(struct http_conn *conn, struct buf *out, int status, const char *content_type,
           const char *extra, long long content_length)
{
    if (conn->server->draining)
        conn->keep_alive = false;
    http_write_head(out, &(struct http_response_head){
                             .status = status,
                             .content_type = content_type,
                             .content_length = content_length,
                             .request_id = conn->request_id,
                             .extra = extra,
                             .keep_alive = conn->keep_alive,
                             .http10 = conn->http10,
                         });
    count_response(conn, status);
}

void
http_respond(struct http_conn *conn, int status, const char *content_type, const char *extra,
             const char *body, size_t body_size)
{
    ASSERT(conn->state == CONN_BUSY && !conn->streaming);
    conn->callbacks = (struct http_callbacks){0};

    struct buf out = {0};

    write_head(conn, &out, status, content_type, extra, (long long)body_size);
    if (!conn->head_only)
        buf_append(&out, body, body_size);
    if (out.failed)
        conn_close(conn);
    else
        conn_send(conn, out.data, out.size_bytes);
    buf_free(&out);
    conn_finish(conn);
}

void
http_respond_error(struct http_conn *conn, const struct api_error *error)
{
    struct buf body = {0}, extra = {0};

    api_error_body(&body, error);
    if (error->retry_after_s)
        buf_printf(&extra, "retry-after: %d\r\n", error->retry_after_s);
    if (error->no_retry)
        buf_text(&extra, "x-should-retry: false\r\n");
    if (error->allow)
        buf_printf(&extra, "allow: %s\r\n", error->allow);
    if (error->status == 401)
        buf_text(&extra, "www-authenticate: Bearer\r\n");
    buf_text(&extra, "access-control-allow-origin: *\r\n");
    buf_append(&extra, "", 1);
    http_respond(conn, error->status, "application/json", extra.data, body.data, body.size_bytes);
    buf_free(&body);
    buf_free(&extra);
}

void
http_stream_begin(struct http_conn *conn, const char *content_type, const char *extra)
{
    ASSERT(conn->state == CONN_BUSY && !conn->streaming);
    if (conn->http10)
        conn->keep_alive = false;

    struct buf out = {0};

    write_head(conn, &out, 200, content_type, extra, -1);
    conn_send(conn, out.data, out.size_bytes);
    buf_free(&out);
    conn->streaming = true;
}

void
http_stream(struct http_conn *conn, const char *data, size_t size)
{
    if (conn->state != CONN_BUSY || size == 0)
        return;
    if (conn->http10) {
        conn_send(conn, data, size);
        return;
    }
    struct buf out = {0};

    http_write_chunk(&out, data, size);
    conn_send(conn, out.data, out.size_bytes);
    buf_free(&out);
}

void
http_stream_end(struct http_conn *conn, bool clean)
{
    if (conn->state != CONN_BUSY)
        return;
    conn->callbacks = (struct http_callbacks){0};
    if (!clean) {
        conn_close(conn);
        return;
    }
    if (!conn->http10) {
        struct buf out = {0};

        http_write_last_chunk(&out);
        conn_send(conn, out.data, out.size_bytes);
        buf_free(&out);
    }
    conn_finish(conn);
}

const char *
http_conn_request_id(const struct http_conn *conn)
{
    return conn->request_id;
}

bool
http_conn_is_admin(const struct http_conn *conn)
{
    return conn->admin;
}

void
http_conn_watch(struct http_conn *conn, const struct http_callbacks *callbacks)
{
    conn->callbacks = *callbacks;
}

/* The client's own x-request-id when it is harmless, else one of ours. */
static void
set_request_id(struct http_conn *conn, const struct http_request *request)
{
    const char *id = request ? http_request_header(request, "x-request-id") : NULL;
    size_t length = id ? strlen(id) : 0;
    bool good = length > 0 && length < sizeof conn->request_id;

    for (size_t i = 0; good && i < length; i++)
        good = id[i] > 0x20 && id[i] < 0x7f;
    if (good)
        memcpy(conn->request_id, id, length + 1);
    else
        snprintf(conn->request_id, sizeof conn->request_id, "req-%08x%08llx",
                 (unsigned)(clock_now_ns() >> 12), (unsigned long long)conn->server->next_id++);
}

/* Refuses what is no request and ends the connection. */
static void
conn_fail(struct http_conn *conn, const struct api_error *error)
{
    conn->state = CONN_BUSY;
    conn->deadline_ns = UINT64_MAX;
    conn->keep_alive = false;
    conn->head_only = conn->http10 = false;
    set_request_id(conn, NULL);
    http_respond_error(conn, error);
}

static void
conn_request(struct http_conn *conn, struct http_request *request)
{
    conn->state = CONN_BUSY;
    conn->deadline_ns = UINT64_MAX;
    conn->keep_alive = request->keep_alive;
    conn->head_only = request->method == HTTP_HEAD_;
    conn->http10 = request->http10;
    set_request_id(conn, request);
    conn->server->options.handler(conn->server->options.arg, conn, request);
}

/* Gives the parser what has arrived, request by request while they are answered at once. A loop,
 * not a recursion: thousands of pipelined requests fit one packet. */
static void
conn_process(struct http_conn *conn)
{
    if (conn->processing)
        return;
    conn->processing = true;
    while (conn->state == CONN_READING && conn->backlog_at < conn->backlog.size_bytes) {
        struct http_request *request = NULL;
        struct api_error error = {0};
        size_t consumed = 0;

        if (http_parser_idle(conn->parser))
            conn->deadline_ns = clock_now_ns() + conn->server->options.read_timeout_ns;

        enum http_event event = http_parser_feed(
            conn->parser, conn->backlog.data + conn->backlog_at,
            conn->backlog.size_bytes - conn->backlog_at, &consumed, &request, &error);

        conn->backlog_at += consumed;
        if (event == HTTP_CONTINUE)
            conn_send(conn, "HTTP/1.1 100 Continue\r\n\r\n", 25);
        else if (event == HTTP_FAILED)
            conn_fail(conn, &error);
        else if (event == HTTP_REQUEST)
            conn_request(conn, request);
    }
    if (conn->backlog_at) {
        conn->backlog.size_bytes -= conn->backlog_at;
        memmove(conn->backlog.data, conn->backlog.data + conn->backlog_at,
                conn->backlog.size_bytes);
        conn->backlog_at = 0;
    }
    conn->processing = false;
    if (!conn->reading && conn->backlog.size_bytes <= BACKLOG_MAX / 2 &&
        (conn->state == CONN_READING || conn->state == CONN_BUSY)) {
        conn->reading = uv_read_start(&conn->u.stream, on_alloc, on_read) == 0;
        if (!conn->reading)
            conn_close(conn);
    }
}

static void
on_timeout(struct http_conn *conn)
{
    if (conn->state == CONN_READING && !http_parser_idle(conn->parser)) {
        struct api_error error = {0};

        api_error_set(&error, 408, "request_timeout", "", "the request did not arrive in time");
        conn_fail(conn, &error);
    } else {
        conn_close(conn);
    }
}

static void
on_tick(uv_timer_t *timer)
{
    struct http_server *server = timer->data;
    uint64_t now = clock_now_ns();

    for (struct http_conn *conn = server->conns, *next; conn; conn = next) {
        size_t queued = uv_stream_get_write_queue_size(&conn->u.stream);

        next = conn->next;
        if (queued != conn->write_queue_bytes) {
            conn->write_queue_bytes = queued;
            conn->write_deadline_ns = now + server->options.write_timeout_ns;
        }
        /* The time of what comes after an answer begins when the answer is out. */
        if (queued > 0 && conn->state == CONN_LINGER)
            conn->deadline_ns = now + linger_ns;
        else if (queued > 0 && conn->state == CONN_READING && http_parser_idle(conn->parser))
            conn->deadline_ns = now + server->options.idle_timeout_ns;
        if (queued > 0 && now > conn->write_deadline_ns)
            conn_close(conn);
        else if (conn->state != CONN_BUSY && now > conn->deadline_ns)
            on_timeout(conn);
        else if (conn->state == CONN_BUSY && conn->callbacks.idle && queued == 0 &&
                 now > conn->last_write_ns + server->options.ping_interval_ns)
            conn->callbacks.idle(conn->callbacks.arg);
    }
}

static void
refuse(struct http_conn *conn)
{
    struct api_error error = {0};

    api_error_set(&error, 503, "too_many_connections", "", "too many connections");
    error.retry_after_s = 1;
    conn_fail(conn, &error);
}

static void
on_connection(uv_stream_t *listener, int status)
{
    struct http_server *server = listener->data;
    struct http_conn *conn = calloc(1, sizeof *conn);

    if (status < 0 || conn == NULL) {
        free(conn);
        return;
    }
    conn->server = server;
    conn->admin = listener->type == UV_NAMED_PIPE;
    conn->backlog.limit_bytes = BACKLOG_MAX;
    conn->parser = http_parser_new(&server->options.limits);
    int made = conn->admin ? uv_pipe_init(server->options.loop, &conn->u.pipe, 0)
                           : uv_tcp_init(server->options.loop, &conn->u.tcp);

    if (made < 0 || conn->parser == NULL) {
        http_parser_free(conn->parser);
        free(conn);
        return;
    }
    conn->u.handle.data = conn;
    conn->next = server->conns;
    if (server->conns)
        server->conns->prev = conn;
    server->conns = conn;
    if (server->n_conns++ == 0)
        uv_timer_start(&server->tick, on_tick, TICK_MS, TICK_MS);
    metrics_set(server->options.metrics, METRIC_ID_http_connections, 0, server->n_conns);
    conn->last_write_ns = clock_now_ns();
    conn->deadline_ns = conn->last_write_ns + server->options.idle_timeout_ns;
    if (uv_accept(listener, &conn->u.stream) < 0 ||
        uv_read_start(&conn->u.stream, on_alloc, on_read) < 0) {
        conn_close(conn);
        return;
    }
    conn->reading = true;
    if (!conn->admin)
        uv_tcp_nodelay(&conn->u.tcp, 1);
    /* The operator gets in even when clients have taken every place. */
    if (!conn->admin && server->n_conns > server->options.max_connections)
        refuse(conn);
}

int
http_server_new(struct http_server **ret_server, const struct http_server_options *options,
                struct err *err)
{
    struct http_server *server = calloc(1, sizeof *server);

    if (server == NULL)
        return err_set(err, ENOMEM, "no memory for the HTTP server");
    server->options = *options;
    uv_timer_init(options->loop, &server->tick);
    server->tick.data = server;
    *ret_server = server;
    return 0;
}

static int
listen_on(struct http_server *server, uv_stream_t *listener, const char *name, struct err *err)
{
    int status = uv_listen(listener, 511, on_connection);

    if (status < 0)
        return err_errno(err, -status, "cannot listen on %s", name);
    server->n_listeners++;
    return 0;
}

/* Splits "host:port" or "[v6]:port". */
static int
split_address(const char *address, char *host, size_t host_size, char *port, size_t port_size)
{
    const char *colon = strrchr(address, ':');
    size_t host_length = colon ? (size_t)(colon - address) : 0;

    if (colon == NULL || host_length == 0 || strlen(colon + 1) >= port_size || colon[1] == 0)
        return -EINVAL;
    if (address[0] == '[' && address[host_length - 1] == ']') {
        address++;
        host_length -= 2;
    }
    if (host_length >= host_size)
        return -EINVAL;
    memcpy(host, address, host_length);
    host[host_length] = 0;
    memcpy(port, colon + 1, strlen(colon + 1) + 1);
    return 0;
}

int
http_server_listen_tcp(struct http_server *server, const char *address, char *ret_address,
                       size_t size, struct err *err)
{
    char host[256], port[16], name[INET6_ADDRSTRLEN] = "";
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *found = NULL;

    if (split_address(address, host, sizeof host, port, sizeof port) < 0)
        return err_set(err, EINVAL, "server.listen: '%s' is not host:port or [v6]:port", address);
    int status = getaddrinfo(host, port, &hints, &found);

    if (status != 0)
        return err_set(err, EINVAL, "server.listen: '%s': %s", address, gai_strerror(status));
    uv_tcp_t *tcp = &server->listener[server->n_listeners].tcp;

    status = uv_tcp_init(server->options.loop, tcp);
    if (status == 0) {
        tcp->data = server;
        status = uv_tcp_bind(tcp, found->ai_addr, 0);
    }
    freeaddrinfo(found);
    if (status < 0)
        return err_errno(err, -status, "cannot listen on %s", address);
    status = listen_on(server, (uv_stream_t *)tcp, address, err);
    if (status < 0)
        return status;

    struct sockaddr_storage bound;
    int length = sizeof bound;

    uv_tcp_getsockname(tcp, (struct sockaddr *)&bound, &length);
    if (bound.ss_family == AF_INET6) {
        uv_ip6_name((struct sockaddr_in6 *)&bound, name, sizeof name);
        snprintf(ret_address, size, "[%s]:%d", name,
                 ntohs(((struct sockaddr_in6 *)&bound)->sin6_port));
    } else {
        uv_ip4_name((struct sockaddr_in *)&bound, name, sizeof name);
        snprintf(ret_address, size, "%s:%d", name, ntohs(((struct sockaddr_in *)&bound)->sin_port));
    }
    return 0;
}

/* Removes a socket file left behind by a process that is gone. */
static int
remove_stale(const char *path, struct err *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct stat st;

    if (strlen(path) >= sizeof address.sun_path)
        return err_set(err, ENAMETOOLONG, "server.admin_socket: '%s' is longer than %zu bytes",
                       path, sizeof address.sun_path - 1);
    if (lstat(path, &st) < 0)
        return 0;
    if (!S_ISSOCK(st.st_mode))
        return err_set(err, EEXIST, "server.admin_socket: %s exists and is no socket", path);
    memcpy(address.sun_path, path, strlen(path) + 1);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool alive = fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0;

    if (fd >= 0)
        close(fd);
    if (alive)
        return err_set(err, EADDRINUSE, "server.admin_socket: another process listens on %s", path);
    if (unlink(path) < 0)
        return err_errno(err, errno, "server.admin_socket: cannot replace %s", path);
    return 0;
}

int
http_server_listen_unix(struct http_server *server, const char *path, struct err *err)
{
    uv_pipe_t *pipe = &server->listener[server->n_listeners].pipe;
    int status = remove_stale(path, err);

    if (status < 0)
        return status;
    status = uv_pipe_init(server->options.loop, pipe, 0);
    if (status == 0) {
        mode_t mask = umask(0117);

        pipe->data = server;
        status = uv_pipe_bind(pipe, path);
        umask(mask);
    }
    if (status < 0)
        return err_errno(err, -status, "cannot listen on %s", path);
    return listen_on(server, (uv_stream_t *)pipe, path, err);
}

void
http_server_close(struct http_server *server)
{
    if (server->closing)
        return;
    server->closing = true;
    for (int i = 0; i < server->n_listeners; i++)
        uv_close(&server->listener[i].handle, NULL);
    while (server->conns)
        conn_close(server->conns);
    uv_close((uv_handle_t *)&server->tick, NULL);
}

struct http_server *
http_server_free(struct http_server *server)
{
    free(server);
    return NULL;
}

int
http_server_n_connections(const struct http_server *server)
{
    return server->n_conns;
}

void
http_server_drain(struct http_server *server)
{
    server->draining = true;
}
