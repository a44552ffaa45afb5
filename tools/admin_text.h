/* admin_text: the JSON answers of engramd as text for people. Pure: JSON in, text out.
 *
 * Fields that are missing or of another type print as "-": a newer or older engramd is still
 * readable. Text of the other side is escaped, so it cannot play with the terminal. */
#ifndef TOOLS_ADMIN_TEXT_H
#define TOOLS_ADMIN_TEXT_H

#include <stddef.h>

#include "base/buf.h"
#include "base/err.h"

/* The answer of GET or PATCH /v1/tiers as a table. -EPROTO when it is not such an answer. */
int admin_text_tiers(const char *json, size_t size_bytes, struct buf *out, struct err *err);
/* The answer of GET /readyz?verbose. -EPROTO. */
int admin_text_status(const char *json, size_t size_bytes, struct buf *out, struct err *err);
/* The message of {"error": {"message": ...}}, or "HTTP status" where there is none. */
void admin_text_error(int status, const char *json, size_t size_bytes, struct buf *out);

#endif
