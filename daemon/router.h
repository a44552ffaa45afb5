/* router: which endpoint answers a request, and the small ones: models, health, metrics, tiers.
 * Thread: loop.                                                                               */
#ifndef DAEMON_ROUTER_H
#define DAEMON_ROUTER_H

#include "daemon/daemon.h"

void router_handle(void *daemon, struct http_conn *conn, struct http_request *request);

#endif
