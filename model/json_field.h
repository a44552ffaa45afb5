/* json_field: JSON files of a checkpoint, read with bounds, and typed access to the fields of an
 * object.
 *
 * jansson builds a tree that takes many times the bytes of the text, so a text is refused when it
 * has more values than its limit, before the tree is built. Numbers are integers or finite doubles;
 * duplicate names, invalid UTF-8 and text behind the value are errors. Pure but for
 * json_field_load.
 *
 * Errors: -EBADMSG with file and field in err. `where` is what stands before a field's name in
 * messages: "config.json: engram.". */
#ifndef MODEL_JSON_FIELD_H
#define MODEL_JSON_FIELD_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/* The value of `text`, which must be an object of at most max_values values in all. */
int json_field_parse(json_t **ret_object, const char *text, size_t size_bytes, size_t max_values,
                     const char *name, struct err *err);
/* The same from a regular file of at most max_bytes; -ENOENT ... as open(2). */
int json_field_load(json_t **ret_object, const char *path, size_t max_bytes, size_t max_values,
                    struct err *err);

/* A field that is absent, or null: true, and *ret is the default. The type is wrong or the value
 * out of [min, max]: -EBADMSG. Defaults are not checked against the bounds. */
int json_field_int(const json_t *object, const char *where, const char *key, int64_t min,
                   int64_t max, const int64_t *fallback, int64_t *ret, struct err *err);
/* Integers count as reals. */
int json_field_real(const json_t *object, const char *where, const char *key, double min,
                    double max, const double *fallback, double *ret, struct err *err);
int json_field_bool(const json_t *object, const char *where, const char *key, bool fallback,
                    bool *ret, struct err *err);
/* *ret is NULL when absent or null; the text is owned by the object. */
int json_field_text(const json_t *object, const char *where, const char *key, const char **ret,
                    struct err *err);

/* NULL when the field is absent or null. */
static inline const json_t *
json_field_get(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return json_is_null(value) ? NULL : value;
}

#endif
