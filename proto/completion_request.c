#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "proto/completion_fields.h"
#include "proto/json_body.h"

enum {
    MAX_IGNORED = 32,
    IGNORED_NAME_BYTES = 64,
    /* What fields other than the prompt may hold together. */
    OTHER_SCALARS = 65536,
    OTHER_CONTAINERS = 1024,
    /* jansson needs 40 bytes for a number: 40 MB for a request of a million tokens. */
    MOST_SCALARS = 1024 * 1024,
};

/* One row per field. Offsets are into struct completion_request. */
enum field_kind {
    FIELD_READ,        /* read() takes it */
    FIELD_BOOL,        /* offset: bool */
    FIELD_INT,         /* offset: int64_t, [low, high] */
    FIELD_NUMBER,      /* offset: double, [low, high] */
    FIELD_OPEN_NUMBER, /* offset: double, (low, high] */
    FIELD_HARMLESS,    /* changes no answer: accepted, whatever it holds */
    /* Would change the answer and is not offered: refused, unless it has the value that asks for
       nothing. */
    FIELD_REFUSED,        /* every value but null, false, "", [] and {} */
    FIELD_REFUSED_NUMBER, /* every value but the number `low` */
};

struct field {
    const char *name;
    enum field_kind kind;
    size_t offset;
    double low, high;
    completion_field_fn *read;
};

static completion_field_fn read_model, read_best_of, read_n, read_logprobs, read_top_k, read_seed,
    read_stream_options, read_response_format, read_engram, read_user, read_unsent_output;

#define READ(field, reader)                                                                        \
    {                                                                                              \
        .name = (field), .kind = FIELD_READ, .read = (reader)                                      \
    }
#define AT(member) offsetof(struct completion_request, member)
#define BOOL(field, member)                                                                        \
    {                                                                                              \
        .name = (field), .kind = FIELD_BOOL, .offset = AT(member)                                  \
    }
#define RANGE(field, number, member, least, most)                                                  \
    {                                                                                              \
        .name = (field), .kind = (number), .offset = AT(member), .low = (least), .high = (most)    \
    }
#define HARMLESS(field)                                                                            \
    {                                                                                              \
        .name = (field), .kind = FIELD_HARMLESS                                                    \
    }
#define REFUSED(field)                                                                             \
    {                                                                                              \
        .name = (field), .kind = FIELD_REFUSED                                                     \
    }
#define REFUSED_UNLESS(field, number)                                                              \
    {                                                                                              \
        .name = (field), .kind = FIELD_REFUSED_NUMBER, .low = (number)                             \
    }

static const struct field fields[] = {
    /* OpenAI */
    READ("model", read_model),
    READ("prompt", completion_read_prompt),
    RANGE("max_tokens", FIELD_INT, max_tokens, 0, INT32_MAX),
    RANGE("temperature", FIELD_NUMBER, temperature, 0, 2),
    RANGE("top_p", FIELD_NUMBER, top_p, 0, 1),
    READ("n", read_n),
    READ("best_of", read_best_of),
    BOOL("echo", echo),
    READ("logprobs", read_logprobs),
    READ("logit_bias", completion_read_logit_bias),
    RANGE("presence_penalty", FIELD_NUMBER, presence_penalty, -2, 2),
    RANGE("frequency_penalty", FIELD_NUMBER, frequency_penalty, -2, 2),
    READ("seed", read_seed),
    READ("stop", completion_read_stop),
    BOOL("stream", stream),
    READ("stream_options", read_stream_options),
    READ("user", read_user),
    REFUSED("suffix"),
    /* Extras of vLLM and others that are served */
    READ("top_k", read_top_k),
    RANGE("min_p", FIELD_NUMBER, min_p, 0, 1),
    RANGE("repetition_penalty", FIELD_OPEN_NUMBER, repetition_penalty, 0, 100),
    RANGE("min_tokens", FIELD_INT, min_tokens, 0, INT32_MAX),
    BOOL("ignore_eos", ignore_eos),
    READ("stop_token_ids", completion_read_stop_ids),
    BOOL("include_stop_str_in_output", include_stop),
    BOOL("skip_special_tokens", skip_special_tokens),
    BOOL("return_tokens_as_token_ids", return_tokens_as_ids),
    BOOL("add_special_tokens", add_special_tokens),
    READ("engram", read_engram),
    /* Of no consequence for the answer */
    HARMLESS("cache_prompt"),
    HARMLESS("cache_salt"),
    HARMLESS("metadata"),
    HARMLESS("priority"),
    HARMLESS("prompt_cache_key"),
    HARMLESS("prompt_cache_retention"),
    HARMLESS("request_id"),
    HARMLESS("rid"),
    HARMLESS("safety_identifier"),
    HARMLESS("service_tier"),
    HARMLESS("spaces_between_special_tokens"),
    HARMLESS("sse_ping_interval"),
    HARMLESS("store"),
    HARMLESS("stream_interval"),
    /* Ask for more output that is not written */
    READ("response_fields", read_unsent_output),
    READ("return_progress", read_unsent_output),
    READ("return_token_ids", read_unsent_output),
    READ("timings_per_token", read_unsent_output),
    /* Other decoding than is offered */
    REFUSED("early_stopping"),
    REFUSED_UNLESS("length_penalty", 1),
    REFUSED("use_beam_search"),
    REFUSED("allowed_token_ids"),
    REFUSED("bad_words"),
    REFUSED("logits_processors"),
    REFUSED("custom_logit_processor"),
    REFUSED("prompt_embeds"),
    REFUSED("prompt_logprobs"),
    REFUSED("repetition_detection"),
    REFUSED("stop_regex"),
    REFUSED("thinking_token_budget"),
    REFUSED("truncate_prompt_tokens"),
    REFUSED("truncation_side"),
    REFUSED("vllm_xargs"),
    REFUSED("kv_transfer_params"),
    REFUSED("lora"),
    REFUSED("lora_path"),
    REFUSED("lora_request"),
    REFUSED_UNLESS("t_max_predict_ms", 0),
    /* Structured output */
    READ("response_format", read_response_format),
    REFUSED("structured_outputs"),
    REFUSED("structural_tag"),
    REFUSED("guided_choice"),
    REFUSED("guided_decoding"),
    REFUSED("guided_decoding_backend"),
    REFUSED("guided_grammar"),
    REFUSED("guided_json"),
    REFUSED("guided_regex"),
    REFUSED("guided_whitespace_pattern"),
    REFUSED("grammar"),
    REFUSED("json_schema"),
    REFUSED("regex"),
    REFUSED("ebnf"),
    /* Samplers of llama.cpp, with the values that switch them off */
    REFUSED_UNLESS("dry_multiplier", 0),
    REFUSED_UNLESS("dynatemp_range", 0),
    REFUSED_UNLESS("mirostat", 0),
    REFUSED_UNLESS("mirostat_mode", 0),
    REFUSED_UNLESS("repeat_penalty", 1),
    REFUSED("samplers"),
    REFUSED_UNLESS("tfs", 1),
    REFUSED_UNLESS("tfs_z", 1),
    REFUSED_UNLESS("top_a", 0),
    REFUSED_UNLESS("top_n_sigma", -1),
    REFUSED_UNLESS("typical_p", 1),
    REFUSED_UNLESS("xtc_probability", 0),
    /* Names other APIs have for what is called differently here */
    REFUSED("input"),
    REFUSED("max_completion_tokens"),
    REFUSED("max_new_tokens"),
    REFUSED("max_output_tokens"),
    REFUSED("messages"),
    REFUSED_UNLESS("min_new_tokens", 0),
    REFUSED("n_predict"),
    REFUSED_UNLESS("n_probs", 0),
    REFUSED("reasoning_effort"),
    REFUSED("tools"),
    REFUSED("top_logprobs"),
};

static int
unsupported(struct completion_reader *reader, const char *path, const char *more)
{
    return api_error_set(reader->error, 400, "unsupported_parameter", path,
                         "'%.80s' is not supported by this server.%s", path, more);
}

/* Notes a field that has no effect. The list goes into a response header, so a name is reduced to
 * letters, digits and a few signs. */
static int
ignore_field(struct completion_reader *reader, const char *name)
{
    struct completion_request *request = reader->request;
    char *copy;
    size_t size = strnlen(name, IGNORED_NAME_BYTES);

    if (reader->limits->strict)
        return api_error_set(reader->error, 400, "unknown_parameter", name,
                             "Unknown parameter: '%.80s'.", name);
    if (request->n_ignored == MAX_IGNORED)
        return 0;
    copy = arena_alloc(reader->arena, size + 1);
    if (!copy)
        return completion_no_memory(reader);
    for (size_t i = 0; i < size; i++) {
        char c = name[i];
        bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                     c == '_' || c == '-' || c == '.';

        copy[i] = plain ? c : '?';
    }
    request->ignored[request->n_ignored++] = copy;
    return 0;
}

static int
read_model(struct completion_reader *reader, const char *path, const json_t *value)
{
    int bad = completion_read_text(reader, path, value, &reader->request->model);
    const char *const *name = reader->limits->model_names;

    if (bad < 0 || !name)
        return bad;
    for (; *name; name++)
        if (strcmp(*name, reader->request->model) == 0)
            return 0;
    return api_error_set(reader->error, 404, "model_not_found", path,
                         "The model '%.100s' does not exist.", reader->request->model);
}

static int
read_user(struct completion_reader *reader, const char *path, const json_t *value)
{
    return completion_read_text(reader, path, value, &reader->request->user);
}

static int
read_n(struct completion_reader *reader, const char *path, const json_t *value)
{
    int64_t n;
    int bad = completion_read_int(reader, path, value, 1, COMPLETION_MAX_N, &n);

    if (bad < 0)
        return bad;
    reader->request->n = (int)n;
    return 0;
}

/* Compared with n once all fields are read. */
static int
read_best_of(struct completion_reader *reader, const char *path, const json_t *value)
{
    return completion_read_int(reader, path, value, 0, INT32_MAX, &reader->best_of);
}

static int
read_logprobs(struct completion_reader *reader, const char *path, const json_t *value)
{
    int64_t logprobs;
    int bad = completion_read_int(reader, path, value, 0, COMPLETION_MAX_LOGPROBS, &logprobs);

    if (bad < 0)
        return bad;
    reader->request->logprobs = (int)logprobs;
    return 0;
}

/* -1 and 0 both ask for no limit; -1 in the request struct means that nobody asked. */
static int
read_top_k(struct completion_reader *reader, const char *path, const json_t *value)
{
    int64_t top_k;
    int bad = completion_read_int(reader, path, value, -1, INT32_MAX, &top_k);

    if (bad < 0)
        return bad;
    reader->request->top_k = top_k < 0 ? 0 : top_k;
    return 0;
}

static int
read_seed(struct completion_reader *reader, const char *path, const json_t *value)
{
    reader->request->has_seed = true;
    return completion_read_int(reader, path, value, INT64_MIN, INT64_MAX, &reader->request->seed);
}

static int
read_stream_options(struct completion_reader *reader, const char *path, const json_t *value)
{
    json_t *object = (json_t *)value; /* iterated, not changed */
    const char *key;
    json_t *option;

    if (!json_is_object(value))
        return completion_type_error(reader, path, "an object", value);
    reader->stream_options = true;
    json_object_foreach(object, key, option)
    {
        struct completion_request *request = reader->request;
        char option_path[JSON_PATH_BYTES];
        bool obfuscation; /* padding against traffic analysis: accepted, as OpenAI's SDKs send it */
        int bad;

        snprintf(option_path, sizeof option_path, "%s.%.70s", path, key);
        if (json_is_null(option))
            continue;
        if (strcmp(key, "include_usage") == 0)
            bad = completion_read_bool(reader, option_path, option, &request->include_usage);
        else if (strcmp(key, "continuous_usage_stats") == 0)
            bad = completion_read_bool(reader, option_path, option, &request->continuous_usage);
        else if (strcmp(key, "include_obfuscation") == 0)
            bad = completion_read_bool(reader, option_path, option, &obfuscation);
        else
            bad = ignore_field(reader, option_path);
        if (bad < 0)
            return bad;
    }
    return 0;
}

/* {"type": "text"} is what every client without structured output asks for. */
static int
read_response_format(struct completion_reader *reader, const char *path, const json_t *value)
{
    const char *type = json_string_value(json_object_get(value, "type"));

    return type && strcmp(type, "text") == 0 ? 0 : unsupported(reader, path, "");
}

static int
read_engram(struct completion_reader *reader, const char *path, const json_t *value)
{
    bool on;
    int bad = completion_read_bool(reader, path, value, &on);

    if (bad < 0)
        return bad;
    reader->request->engram_off = !on;
    return 0;
}

static int
read_unsent_output(struct completion_reader *reader, const char *path, const json_t *value)
{
    return json_is_false(value) ? 0 : ignore_field(reader, path);
}

static bool
asks_for_nothing(const json_t *value)
{
    return json_is_false(value) || (json_is_string(value) && json_string_length(value) == 0) ||
           (json_is_array(value) && json_array_size(value) == 0) ||
           (json_is_object(value) && json_object_size(value) == 0);
}

static int
read_field(struct completion_reader *reader, const struct field *field, const json_t *value)
{
    char *member = (char *)reader->request + field->offset;

    switch (field->kind) {
    case FIELD_READ:
        return field->read(reader, field->name, value);
    case FIELD_BOOL:
        return completion_read_bool(reader, field->name, value, (bool *)member);
    case FIELD_INT:
        return completion_read_int(reader, field->name, value, (int64_t)field->low,
                                   (int64_t)field->high, (int64_t *)(void *)member);
    case FIELD_NUMBER:
    case FIELD_OPEN_NUMBER:
        return completion_read_number(reader, field->name, value, field->low, field->high,
                                      field->kind == FIELD_OPEN_NUMBER, (double *)(void *)member);
    case FIELD_HARMLESS:
        return 0;
    case FIELD_REFUSED:
        return asks_for_nothing(value) ? 0 : unsupported(reader, field->name, "");
    case FIELD_REFUSED_NUMBER:
        return json_is_number(value) && json_number_value(value) == field->low
                   ? 0
                   : unsupported(reader, field->name, "");
    }
    return 0;
}

static const struct field *
find_field(const char *name)
{
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++)
        if (strcmp(fields[i].name, name) == 0)
            return &fields[i];
    return NULL;
}

/* What is only wrong together. */
static int
check_together(struct completion_reader *reader)
{
    struct completion_request *request = reader->request;

    if (request->n_prompts == 0)
        return api_error_set(reader->error, 400, "missing_required_parameter", "prompt",
                             "Missing required parameter: 'prompt'.");
    if (reader->best_of >= 0 && reader->best_of != request->n)
        return unsupported(reader, "best_of", " It must equal 'n'.");
    if ((int64_t)request->n * request->n_prompts > reader->limits->max_prompts)
        return api_error_set(
            reader->error, 400, "invalid_value", "n",
            "Invalid value for 'n': %d choices for each of %d prompts, and at most "
            "%d choices are allowed in one request.",
            request->n, request->n_prompts, reader->limits->max_prompts);
    if (reader->stream_options && !request->stream)
        return api_error_set(reader->error, 400, "invalid_value", "stream_options",
                             "Invalid value for 'stream_options': only allowed when 'stream' is "
                             "true.");
    if (request->max_tokens >= 0 && request->min_tokens > request->max_tokens)
        return api_error_set(reader->error, 400, "invalid_value", "min_tokens",
                             "Invalid value for 'min_tokens': it is larger than 'max_tokens'.");
    return 0;
}

static int
read_object(struct completion_reader *reader, json_t *object)
{
    struct completion_request *request = reader->request;
    const char *name;
    json_t *value;

    *request = (struct completion_request){
        .max_tokens = -1,
        .temperature = NAN,
        .top_p = NAN,
        .min_p = NAN,
        .repetition_penalty = NAN,
        .top_k = -1,
        .n = 1,
        .logprobs = -1,
        .skip_special_tokens = true,
        .add_special_tokens = true,
    };
    request->ignored = arena_array(reader->arena, MAX_IGNORED, sizeof *request->ignored);
    if (!request->ignored)
        return completion_no_memory(reader);
    json_object_foreach(object, name, value)
    {
        const struct field *field = find_field(name);
        int bad = 0;

        if (field && !json_is_null(value))
            bad = read_field(reader, field, value);
        else if (!field)
            bad = ignore_field(reader, name);
        if (bad < 0)
            return bad;
    }
    return check_together(reader);
}

int
completion_parse(struct arena *arena, const char *body, size_t body_size,
                 const struct completion_limits *limits, struct completion_request **ret_request,
                 struct api_error *error)
{
    struct completion_reader reader = {
        .arena = arena, .limits = limits, .error = error, .best_of = -1};
    uint64_t scalars, room;
    json_t *object;
    int bad;

    ASSERT(limits->vocab > 0 && limits->max_prompts > 0 && limits->max_context > 0);
    /* Every id of every prompt, and room to say which of them is too long. */
    if (__builtin_mul_overflow((uint64_t)limits->max_context + 1, (uint64_t)limits->max_prompts,
                               &scalars) ||
        scalars > MOST_SCALARS)
        scalars = MOST_SCALARS;
    room = (uint64_t)limits->max_prompts + OTHER_CONTAINERS;
    bad = json_body_load(body, body_size, scalars + OTHER_SCALARS, room, &object, error);
    if (bad < 0)
        return bad;
    reader.request = arena_alloc(arena, sizeof *reader.request);
    bad = reader.request ? read_object(&reader, object) : completion_no_memory(&reader);
    json_decref(object);
    if (bad < 0)
        return bad;
    *ret_request = reader.request;
    return 0;
}
