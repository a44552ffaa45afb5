/* http_server: sockets, timeouts and output of HTTP connections on libuv. What a request means is
 * its handler's business.
 *
 *     READING --request--> BUSY --response finished--> READING ...
 *        |  bad bytes, timeout      | client gone: on_gone
 *        +--------> LINGER ---------+--------> closed
 *
 * H1  A handler gets one request at a time per connection; later bytes wait.
 * H2  From the handler's call to http_respond, http_stream_end or on_gone, whichever is first, the
 *     connection is valid for it; afterwards it must not touch it.
 * Thread: loop. */
#ifndef DAEMON_HTTP_SERVER_H
#define DAEMON_HTTP_SERVER_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "base/err.h"
#include "base/metric.h"
#include "proto/http1.h"

struct http_server;
struct http_conn;

/* Takes the request (http_request_free). */
typedef void (*http_handler_fn)(void *arg, struct http_conn *conn, struct http_request *request);

struct http_server_options {
    uv_loop_t *loop;
    http_handler_fn handler;
    void *arg;
    struct http_limits limits;
    int max_connections;
    size_t max_output_bytes;
    uint64_t read_timeout_ns, idle_timeout_ns, write_timeout_ns, ping_interval_ns;
    struct metrics *metrics;
};

int http_server_new(struct http_server **ret_server, const struct http_server_options *options,
                    struct err *err);
/* "host:port", "[v6]:port"; the address in use is written to ret_address. */
int http_server_listen_tcp(struct http_server *server, const char *address, char *ret_address,
                           size_t size, struct err *err);
/* A stale socket file nobody listens on is replaced; one in use is -EADDRINUSE. Mode 0660. */
int http_server_listen_unix(struct http_server *server, const char *path, struct err *err);
/* Closes listeners and connections; done once the loop has run the close callbacks. */
void http_server_close(struct http_server *server);
struct http_server *http_server_free(struct http_server *server); /* after uv_run returned */
int http_server_n_connections(const struct http_server *server);
/* From now on every response carries Connection: close. */
void http_server_drain(struct http_server *server);

/* For handlers. extra: header lines that end in CRLF, or NULL. */
void http_respond(struct http_conn *conn, int status, const char *content_type, const char *extra,
                  const char *body, size_t body_size);
void http_respond_error(struct http_conn *conn, const struct api_error *error);
void http_stream_begin(struct http_conn *conn, const char *content_type, const char *extra);
void http_stream(struct http_conn *conn, const char *data, size_t size);
/* clean false: cut the connection without the last chunk, so that the client sees a failure. */
void http_stream_end(struct http_conn *conn, bool clean);
const char *http_conn_request_id(const struct http_conn *conn);
bool http_conn_is_admin(const struct http_conn *conn); /* came through the UNIX socket */

/* While a request is open: gone is called when the client went away, idle when nothing was written
 * for the ping interval. Cleared by the end of the response. */
struct http_callbacks {
    void (*gone)(void *arg);
    void (*idle)(void *arg);
    void *arg;
};
void http_conn_watch(struct http_conn *conn, const struct http_callbacks *callbacks);

#endif
