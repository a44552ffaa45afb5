/* json_check: typed members of JSON objects, with messages that name object and member.
 * Thread: none; pure functions. */
#ifndef MODEL_JSON_CHECK_H
#define MODEL_JSON_CHECK_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"
#include "model/json_span.h"

/* The member "type" as a string; -EBADMSG when it is not there. where: "pre_tokenizer", "decoder".
 */
int json_check_type(struct json_span object, const char *where, struct json_span *ret_type,
                    struct err *err);
/* -ENOTSUP naming the first member that is not in names (NULL ends the list): a setting nobody
 * reads would change the result in silence. ret_values (may be NULL) gets the value of each name,
 * one pass for all.  */
int json_check_members(struct json_span object, const char *where, const char *const *names,
                       struct json_span *ret_values, struct err *err);
/* A boolean member, or fallback when it is absent or null. -EBADMSG for another kind. */
int json_check_bool(struct json_span object, const char *where, const char *name, bool fallback,
                    bool *ret_value, struct err *err);
/* A string member without its escapes, malloc'd and NUL-terminated. -EBADMSG when it is none. */
int json_check_string(struct json_span object, const char *where, const char *name, char **ret_text,
                      size_t *ret_size_bytes, struct err *err);
/* -EBADMSG "where is a number where an object belongs". */
int json_check_kind(struct json_span span, enum json_kind kind, const char *where, struct err *err);
/* -ENOTSUP "where: type is not supported". */
int json_check_refuse(struct json_span type, const char *where, struct err *err);

#endif
