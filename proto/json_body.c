#include "proto/json_body.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

/* The index behind the string that begins at text[at] (a quote); size when it does not end. */
static size_t
skip_string(const char *text, size_t size, size_t at)
{
    for (at++; at < size && text[at] != '"'; at++)
        if (text[at] == '\\')
            at++;
    return at < size ? at + 1 : size;
}

static bool
is_scalar_start(char c)
{
    return (c >= '0' && c <= '9') || c == '-' || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

/* Counts what a parser would allocate. Text that is not JSON may be counted wrongly, but only
 * behind the place where jansson stops reading it. */
static int
check_bounds(const char *text, size_t size, size_t max_scalars, size_t max_containers,
             struct api_error *error)
{
    size_t depth = 0, scalars = 0, containers = 0;
    bool in_word = false;

    for (size_t at = 0; at < size; at++) {
        char c = text[at];
        bool word = is_scalar_start(c) || c == '.' || c == '+';

        if (c == '"') {
            scalars++;
            at = skip_string(text, size, at) - 1;
        } else if (c == '[' || c == '{') {
            containers++;
            if (++depth > JSON_BODY_MAX_DEPTH)
                return api_error_set(error, 400, "invalid_json", NULL,
                                     "The request body is nested more than %d levels deep.",
                                     JSON_BODY_MAX_DEPTH);
        } else if ((c == ']' || c == '}') && depth) {
            depth--;
        } else if (word && !in_word) {
            scalars++;
        }
        in_word = word;
        if (scalars > max_scalars || containers > max_containers)
            return api_error_set(error, 413, "request_too_large", NULL,
                                 "The request body has more than %zu values or %zu lists.",
                                 max_scalars, max_containers);
    }
    return 0;
}

struct level {
    bool list;
    size_t index;    /* in a list */
    size_t key, end; /* in an object: the key's bytes, without the quotes */
};

static size_t
append(char *path, size_t at, const char *text, size_t size)
{
    if (at && at < JSON_PATH_BYTES - 1)
        path[at++] = '.';
    for (size_t i = 0; i < size && at < JSON_PATH_BYTES - 1; i++)
        path[at++] = text[i];
    return at;
}

void
json_body_path(const char *text, size_t offset, char path[JSON_PATH_BYTES])
{
    struct level levels[JSON_BODY_MAX_DEPTH];
    size_t depth = 0, length = 0;

    for (size_t at = 0; at < offset; at++) {
        struct level *level = depth ? &levels[depth - 1] : NULL;
        char c = text[at];

        if (c == '"') {
            size_t end = skip_string(text, offset, at);

            /* A string where a key may stand; a string value is overwritten by the next key. */
            if (level && !level->list && level->end == 0) {
                level->key = at + 1;
                level->end = end - 1;
            }
            at = end - 1;
        } else if ((c == '[' || c == '{') && depth < JSON_BODY_MAX_DEPTH) {
            levels[depth++] = (struct level){.list = c == '['};
        } else if ((c == ']' || c == '}') && depth) {
            depth--;
        } else if (c == ',' && level) {
            level->index++;
            level->key = level->end = 0;
        }
    }
    for (size_t i = 0; i < depth; i++) {
        char index[24];

        if (levels[i].list) {
            int digits = snprintf(index, sizeof index, "%zu", levels[i].index);

            length = append(path, length, index, (size_t)digits);
        } else if (levels[i].end > levels[i].key) {
            length = append(path, length, text + levels[i].key, levels[i].end - levels[i].key);
        }
    }
    path[length] = '\0';
}

static int
load_failed(const char *body, size_t size, const json_error_t *failure, struct api_error *error)
{
    char path[JSON_PATH_BYTES];
    size_t offset = failure->position > 0 ? (size_t)failure->position : 0;

    switch (json_error_code(failure)) {
    case json_error_out_of_memory:
        return api_error_set(error, 503, "out_of_memory", NULL, "The server is out of memory.");
    case json_error_numeric_overflow:
        json_body_path(body, offset < size ? offset : size, path);
        return api_error_set(error, 400, "invalid_value", path,
                             "Invalid value for '%s': the number is too large.", path);
    default:
        return api_error_set(error, 400, "invalid_json", NULL,
                             "The request body is not valid JSON: %.120s (line %d, column %d).",
                             failure->text, failure->line, failure->column);
    }
}

int
json_body_load(const char *body, size_t size, size_t max_scalars, size_t max_containers,
               json_t **ret_object, struct api_error *error)
{
    json_error_t failure;
    json_t *object;
    int bad = check_bounds(body, size, max_scalars, max_containers, error);

    if (bad < 0)
        return bad;
    object = json_loadb(body, size, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &failure);
    if (!object)
        return load_failed(body, size, &failure, error);
    if (!json_is_object(object)) {
        json_decref(object);
        return api_error_set(error, 400, "invalid_json", NULL,
                             "The request body must be a JSON object.");
    }
    *ret_object = object;
    return 0;
}

const char *
json_body_kind(const json_t *value)
{
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a number with a fraction";
    case JSON_TRUE:
    case JSON_FALSE:
        return "a boolean";
    case JSON_NULL:
        break;
    }
    return "null";
}
