#include "proto/completion_fields.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "proto/json_body.h"

enum { STOP_MAX_BYTES = 4096 };

int
completion_type_error(struct completion_reader *reader, const char *path, const char *expected,
                      const json_t *value)
{
    return api_error_set(reader->error, 400, "invalid_type", path,
                         "Invalid type for '%.80s': expected %s, but got %s instead.", path,
                         expected, json_body_kind(value));
}

int
completion_no_memory(struct completion_reader *reader)
{
    return api_error_set(reader->error, 503, "out_of_memory", NULL, "The server is out of memory.");
}

static int
value_error(struct completion_reader *reader, const char *path, const char *what)
{
    return api_error_set(reader->error, 400, "invalid_value", path, "Invalid value for '%.80s': %s",
                         path, what);
}

int
completion_read_bool(struct completion_reader *reader, const char *path, const json_t *value,
                     bool *ret_value)
{
    if (!json_is_boolean(value))
        return completion_type_error(reader, path, "a boolean", value);
    *ret_value = json_is_true(value);
    return 0;
}

int
completion_read_int(struct completion_reader *reader, const char *path, const json_t *value,
                    int64_t low, int64_t high, int64_t *ret_value)
{
    int64_t number;

    if (!json_is_integer(value))
        return completion_type_error(reader, path, "an integer", value);
    number = json_integer_value(value);
    if (number < low || number > high)
        return api_error_set(reader->error, 400, "invalid_value", path,
                             "Invalid value for '%.80s': %" PRId64 " is not between %" PRId64
                             " and %" PRId64 ".",
                             path, number, low, high);
    *ret_value = number;
    return 0;
}

int
completion_read_number(struct completion_reader *reader, const char *path, const json_t *value,
                       double low, double high, bool open, double *ret_value)
{
    double number;

    if (!json_is_number(value))
        return completion_type_error(reader, path, "a number", value);
    number = json_number_value(value);
    /* Written so that a NaN, should a parser ever yield one, is refused. */
    if (!(number >= low && number <= high) || (open && number <= low))
        return api_error_set(reader->error, 400, "invalid_value", path,
                             "Invalid value for '%.80s': %g is not between %g%s and %g.", path,
                             number, low, open ? " (exclusive)" : "", high);
    *ret_value = number;
    return 0;
}

/* The bytes of a JSON string, copied and NUL-terminated. */
static const char *
copy_string(struct completion_reader *reader, const json_t *value)
{
    size_t size = json_string_length(value);
    char *copy = arena_alloc(reader->arena, size + 1);

    if (copy)
        memcpy(copy, json_string_value(value), size);
    return copy;
}

int
completion_read_text(struct completion_reader *reader, const char *path, const json_t *value,
                     const char **ret_text)
{
    if (!json_is_string(value))
        return completion_type_error(reader, path, "a string", value);
    if (strlen(json_string_value(value)) != json_string_length(value))
        return value_error(reader, path, "it has a NUL character.");
    *ret_text = copy_string(reader, value);
    return *ret_text ? 0 : completion_no_memory(reader);
}

static int
read_prompt_text(struct completion_reader *reader, const char *path, const json_t *value,
                 struct completion_prompt *prompt)
{
    if (json_string_length(value) == 0)
        return value_error(reader, path, "a prompt must not be empty.");
    prompt->text_size = json_string_length(value);
    prompt->text = copy_string(reader, value);
    return prompt->text ? 0 : completion_no_memory(reader);
}

static int
read_prompt_ids(struct completion_reader *reader, const char *path, const json_t *list,
                struct completion_prompt *prompt)
{
    size_t n_ids = json_array_size(list);
    char id_path[JSON_PATH_BYTES];
    int32_t *ids;

    if (n_ids == 0)
        return value_error(reader, path, "a prompt must not be empty.");
    if (n_ids > (uint64_t)reader->limits->max_context)
        return api_error_set(reader->error, 400, "context_length_exceeded", "prompt",
                             "This model's maximum context length is %" PRId64
                             " tokens, but '%.80s' has %zu tokens.",
                             reader->limits->max_context, path, n_ids);
    ids = arena_array(reader->arena, n_ids, sizeof *ids);
    if (!ids)
        return completion_no_memory(reader);
    for (size_t i = 0; i < n_ids; i++) {
        const json_t *value = json_array_get(list, i);
        int64_t id = json_integer_value(value); /* 0 when it is no integer */

        /* The path is only written for an id that is wrong: prompts have many. */
        if (!json_is_integer(value) || id < 0 || id >= reader->limits->vocab) {
            snprintf(id_path, sizeof id_path, "%.70s.%zu", path, i);
            return completion_read_int(reader, id_path, value, 0, reader->limits->vocab - 1, &id);
        }
        ids[i] = (int32_t)id;
    }
    prompt->ids = ids;
    prompt->n_ids = n_ids;
    return 0;
}

/* A string, strings, ids, or lists of ids; no mixture. */
int
completion_read_prompt(struct completion_reader *reader, const char *path, const json_t *value)
{
    struct completion_request *request = reader->request;
    const json_t *first = json_array_get(value, 0); /* NULL when it is no array, or empty */
    bool single = json_is_string(value) || json_is_integer(first);
    size_t n_prompts = single ? 1 : json_array_size(value);

    if (!json_is_string(value) && !json_is_array(value))
        return completion_type_error(
            reader, path, "a string, an array of strings, or an array of token ids", value);
    if (n_prompts == 0)
        return value_error(reader, path, "a prompt must not be empty.");
    if (n_prompts > (size_t)reader->limits->max_prompts)
        return api_error_set(reader->error, 400, "invalid_value", path,
                             "Invalid value for 'prompt': %zu prompts, and at most %d are allowed.",
                             n_prompts, reader->limits->max_prompts);
    request->prompts = arena_array(reader->arena, n_prompts, sizeof *request->prompts);
    if (!request->prompts)
        return completion_no_memory(reader);
    request->n_prompts = (int)n_prompts;
    if (json_is_string(value))
        return read_prompt_text(reader, path, value, &request->prompts[0]);
    if (single)
        return read_prompt_ids(reader, path, value, &request->prompts[0]);
    for (size_t i = 0; i < n_prompts; i++) {
        const json_t *item = json_array_get(value, i);
        char item_path[JSON_PATH_BYTES];
        int bad;

        snprintf(item_path, sizeof item_path, "%.70s.%zu", path, i);
        if (json_typeof(item) != json_typeof(first))
            return completion_type_error(reader, item_path,
                                         "every element of the same type as the first", item);
        if (json_is_string(item))
            bad = read_prompt_text(reader, item_path, item, &request->prompts[i]);
        else if (json_is_array(item))
            bad = read_prompt_ids(reader, item_path, item, &request->prompts[i]);
        else
            bad = completion_type_error(reader, item_path,
                                        "a string, a token id, or an array of token ids", item);
        if (bad < 0)
            return bad;
    }
    return 0;
}

static int
read_one_stop(struct completion_reader *reader, const char *path, const json_t *value)
{
    struct completion_request *request = reader->request;
    struct completion_stop *stop = &request->stop[request->n_stop];

    if (!json_is_string(value))
        return completion_type_error(reader, path, "a string", value);
    if (json_string_length(value) == 0)
        return value_error(reader, path, "a stop string must not be empty.");
    if (json_string_length(value) > STOP_MAX_BYTES)
        return value_error(reader, path, "a stop string is longer than 4096 bytes.");
    stop->size = json_string_length(value);
    stop->text = copy_string(reader, value);
    if (!stop->text)
        return completion_no_memory(reader);
    request->n_stop++;
    return 0;
}

int
completion_read_stop(struct completion_reader *reader, const char *path, const json_t *value)
{
    if (json_is_string(value))
        return read_one_stop(reader, path, value);
    if (!json_is_array(value))
        return completion_type_error(reader, path, "a string or an array of strings", value);
    if (json_array_size(value) > COMPLETION_MAX_STOP)
        return api_error_set(reader->error, 400, "invalid_value", path,
                             "Invalid value for 'stop': %zu strings, and at most %d are allowed.",
                             json_array_size(value), COMPLETION_MAX_STOP);
    for (size_t i = 0; i < json_array_size(value); i++) {
        char item_path[JSON_PATH_BYTES];
        int bad;

        snprintf(item_path, sizeof item_path, "%.70s.%zu", path, i);
        bad = read_one_stop(reader, item_path, json_array_get(value, i));
        if (bad < 0)
            return bad;
    }
    return 0;
}

int
completion_read_stop_ids(struct completion_reader *reader, const char *path, const json_t *value)
{
    struct completion_request *request = reader->request;
    size_t n_ids = json_array_size(value);

    if (!json_is_array(value))
        return completion_type_error(reader, path, "an array of token ids", value);
    if (n_ids > COMPLETION_MAX_STOP_IDS)
        return api_error_set(reader->error, 400, "invalid_value", path,
                             "Invalid value for '%.80s': %zu ids, and at most %d are allowed.",
                             path, n_ids, COMPLETION_MAX_STOP_IDS);
    request->stop_ids = arena_array(reader->arena, n_ids, sizeof *request->stop_ids);
    if (!request->stop_ids)
        return completion_no_memory(reader);
    for (size_t i = 0; i < n_ids; i++) {
        char item_path[JSON_PATH_BYTES];
        int64_t id = 0;
        int bad;

        snprintf(item_path, sizeof item_path, "%.70s.%zu", path, i);
        bad = completion_read_int(reader, item_path, json_array_get(value, i), 0,
                                  reader->limits->vocab - 1, &id);
        if (bad < 0)
            return bad;
        request->stop_ids[i] = (int32_t)id;
    }
    request->n_stop_ids = (int)n_ids;
    return 0;
}

/* A token id as an object key: plain decimal, so that no id can be spelled in two ways. */
static bool
read_id_key(const char *key, int vocab, int32_t *ret_id)
{
    int64_t id = 0;

    if (!*key || (key[0] == '0' && key[1]))
        return false;
    for (; *key; key++) {
        if (*key < '0' || *key > '9')
            return false;
        id = id * 10 + (*key - '0');
        if (id >= vocab)
            return false;
    }
    *ret_id = (int32_t)id;
    return true;
}

int
completion_read_logit_bias(struct completion_reader *reader, const char *path, const json_t *value)
{
    struct completion_request *request = reader->request;
    json_t *object = (json_t *)value; /* iterated, not changed */
    const char *key;
    json_t *bias;

    if (!json_is_object(value))
        return completion_type_error(reader, path, "an object of token ids and numbers", value);
    if (json_object_size(value) > (size_t)reader->limits->vocab)
        return value_error(reader, path, "it has more entries than the model has tokens.");
    request->bias = arena_array(reader->arena, json_object_size(value), sizeof *request->bias);
    if (!request->bias)
        return completion_no_memory(reader);
    json_object_foreach(object, key, bias)
    {
        struct completion_bias *entry = &request->bias[request->n_bias];
        char item_path[JSON_PATH_BYTES];
        double number = 0;
        int bad;

        snprintf(item_path, sizeof item_path, "%.20s.%.60s", path, key);
        if (!read_id_key(key, reader->limits->vocab, &entry->token))
            return api_error_set(reader->error, 400, "invalid_value", item_path,
                                 "Invalid value for 'logit_bias': '%.60s' is not a token id "
                                 "between 0 and %d.",
                                 key, reader->limits->vocab - 1);
        bad = completion_read_number(reader, item_path, bias, -100, 100, false, &number);
        if (bad < 0)
            return bad;
        entry->bias = (float)number;
        request->n_bias++;
    }
    return 0;
}
