/* json_body: a request body as a JSON object, bounded before jansson allocates for it. Internal to proto/.
 * Thread: none. Errors: a negated HTTP status with *error filled.                                  */
#ifndef PROTO_JSON_BODY_H
#define PROTO_JSON_BODY_H

#include <jansson.h>
#include <stddef.h>

#include "proto/api_error.h"

enum { JSON_BODY_MAX_DEPTH = 64, JSON_PATH_BYTES = 96 };

/* max_scalars bounds numbers, strings and literals, max_containers arrays and objects: what jansson
 * allocates is tens of bytes for two bytes of text. Duplicate keys, NaN, Infinity, broken UTF-8 and
 * everything but one object are refused. *ret_object is the caller's to json_decref. */
int json_body_load(const char *body, size_t size, size_t max_scalars, size_t max_containers,
                   json_t **ret_object, struct api_error *error);
/* The dotted path of the value at or just before offset, "logit_bias.50256" or "prompt.2.5"; "" outside
 * of the top-level object's members. text need only be valid JSON up to offset. */
void json_body_path(const char *text, size_t offset, char path[JSON_PATH_BYTES]);
/* "a string", "an object": what a message calls the value. */
const char *json_body_kind(const json_t *value);

#endif
