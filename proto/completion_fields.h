/* completion_fields: reading single fields of a completion request. Internal to proto/.
 * Each reader returns 0, or a negated HTTP status with the error set and the field named by its dotted
 * path. Values are never JSON null here: null is the same as absent.                               */
#ifndef PROTO_COMPLETION_FIELDS_H
#define PROTO_COMPLETION_FIELDS_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "proto/completion.h"

struct completion_reader {
    struct arena *arena;
    const struct completion_limits *limits;
    struct completion_request *request;
    struct api_error *error;
    int64_t best_of;     /* -1: not given */
    bool stream_options; /* given */
    size_t max_ignored;  /* room in request->ignored */
};

typedef int completion_field_fn(struct completion_reader *reader, const char *path,
                                const json_t *value);

int completion_read_bool(struct completion_reader *reader, const char *path, const json_t *value,
                         bool *ret_value);
/* An integer within [low, high]. 1.0 is not one, true is not one. */
int completion_read_int(struct completion_reader *reader, const char *path, const json_t *value,
                        int64_t low, int64_t high, int64_t *ret_value);
/* A number within [low, high], or (low, high] when open. */
int completion_read_number(struct completion_reader *reader, const char *path, const json_t *value,
                           double low, double high, bool open, double *ret_value);
/* A string without NUL characters, copied to the arena. */
int completion_read_text(struct completion_reader *reader, const char *path, const json_t *value,
                         const char **ret_text);
/* Errors that several fields share. */
int completion_type_error(struct completion_reader *reader, const char *path, const char *expected,
                          const json_t *value);
int completion_no_memory(struct completion_reader *reader);

completion_field_fn completion_read_prompt;
completion_field_fn completion_read_stop;
completion_field_fn completion_read_stop_ids;
completion_field_fn completion_read_logit_bias;

#endif
