/* admin_client: one HTTP/1.1 request over the admin socket of engramd, blocking.
 *
 * A connection per request ("connection: close"). Everything the other side sends is bounded: head,
 * body, and the time the whole exchange may take. Thread: none. */
#ifndef TOOLS_ADMIN_CLIENT_H
#define TOOLS_ADMIN_CLIENT_H

#include <stddef.h>

#include "base/buf.h"
#include "base/err.h"

enum { ADMIN_MAX_HEAD_BYTES = 1 << 16, ADMIN_MAX_BODY_BYTES = 1 << 24 };

/* Sends `method path` with an optional JSON body (NULL: none) to the UNIX socket at socket_path.
 * Returns the status, 200..599; the body is appended to `out` (which the caller frees) and is not
 * NUL-terminated. -ETIMEDOUT after timeout_s seconds; -EPROTO when the answer is not HTTP, is cut
 * short or too large; -ENOENT, -ECONNREFUSED, -EACCES ... as connect(2); text in err. */
int admin_request(const char *socket_path, const char *method, const char *path, const char *body,
                  int timeout_s, struct buf *out, struct err *err);

#endif
