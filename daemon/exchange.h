/* exchange: one POST /v1/completions from its body to the last byte of its answer.
 *
 *     PARSED --work--> TOKENISED --submit--> RUNNING --all choices done--> ANSWERED --jobs ended-->
 * freed
 *
 * X1  conn is NULL once the client is gone or the answer is complete.
 * X2  It is freed when conn is NULL, no work is under way and every job has ended.
 * Thread: loop; exchange_tokenise runs on libuv's pool and touches only the prompts.             */
#ifndef DAEMON_EXCHANGE_H
#define DAEMON_EXCHANGE_H

#include "daemon/daemon.h"

/* Takes the request. */
void exchange_begin(struct daemon *daemon, struct http_conn *conn, struct http_request *request);
/* One event of a job this module submitted. */
void exchange_event(struct daemon *daemon, const struct job_event *event);
/* Ends all that run with an error to their clients. */
void exchange_cancel_all(struct daemon *daemon, int status, const char *code, const char *message);

#endif
