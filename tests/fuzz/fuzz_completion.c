/* fuzz_completion: bytes as the body of POST /v1/completions and of PATCH /v1/tiers, and as text
 * that an answer carries. What is accepted is within its bounds; what is refused has a whole error;
 * what is written is JSON. */
#include <jansson.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "proto/api_json.h"
#include "proto/completion.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const names[] = {"demo", NULL};

static void
check_json(struct buf *out)
{
    json_t *parsed;

    ASSERT(!out->failed);
    parsed = json_loadb(out->data, out->size_bytes, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, NULL);
    ASSERT(parsed);
    json_decref(parsed);
    buf_reset(out);
}

static void
check_error(const struct api_error *error, int status)
{
    struct buf out = {0};

    ASSERT(status == -error->status && error->status >= 400 && error->status < 600);
    ASSERT(error->type && error->code && error->message[0]);
    api_error_body(&out, error);
    ASSERT(out.size_bytes < 1600);
    check_json(&out);
    buf_free(&out);
}

static bool
within(double value, double low, double high)
{
    return isnan(value) || (value >= low && value <= high);
}

static void
check_request(const struct completion_request *r, const struct completion_limits *limits)
{
    ASSERT(!r->model || strcmp(r->model, "demo") == 0);
    ASSERT(r->n >= 1 && r->n_prompts >= 1 && r->n * r->n_prompts <= limits->max_prompts);
    for (int i = 0; i < r->n_prompts; i++) {
        const struct completion_prompt *prompt = &r->prompts[i];

        ASSERT(!prompt->text == !!prompt->ids);
        ASSERT(prompt->text ? prompt->text_size > 0 : prompt->n_ids > 0);
        ASSERT(prompt->n_ids <= (size_t)limits->max_context);
        for (size_t j = 0; j < prompt->n_ids; j++)
            ASSERT(prompt->ids[j] >= 0 && prompt->ids[j] < limits->vocab);
    }
    ASSERT(r->max_tokens >= -1 && r->max_tokens <= INT32_MAX && r->min_tokens >= 0);
    ASSERT(within(r->temperature, 0, 2) && within(r->top_p, 0, 1) && within(r->min_p, 0, 1));
    ASSERT(within(r->repetition_penalty, 0, 100) && r->repetition_penalty != 0);
    ASSERT(!isnan(r->presence_penalty) && within(r->presence_penalty, -2, 2));
    ASSERT(!isnan(r->frequency_penalty) && within(r->frequency_penalty, -2, 2));
    ASSERT(r->top_k >= -1 && r->logprobs >= -1 && r->logprobs <= COMPLETION_MAX_LOGPROBS);
    ASSERT(r->n_stop <= COMPLETION_MAX_STOP && r->n_stop_ids <= COMPLETION_MAX_STOP_IDS);
    for (int i = 0; i < r->n_stop; i++)
        ASSERT(r->stop[i].size > 0);
    for (int i = 0; i < r->n_stop_ids; i++)
        ASSERT(r->stop_ids[i] >= 0 && r->stop_ids[i] < limits->vocab);
    for (int i = 0; i < r->n_bias; i++)
        ASSERT(r->bias[i].token >= 0 && r->bias[i].token < limits->vocab &&
               within(r->bias[i].bias, -100, 100));
    ASSERT(!limits->strict || r->n_ignored == 0);
    for (int i = 0; i < r->n_ignored; i++)
        for (const char *c = r->ignored[i]; *c; c++)
            ASSERT(*c > 0x20 && *c < 0x7F && *c != ',' && *c != ':');
}

static void
read_completion(const char *body, size_t size, bool strict)
{
    struct completion_limits limits = {
        .vocab = 300, .max_prompts = 8, .max_context = 64, .strict = strict, .model_names = names};
    struct arena *arena = arena_new(0);
    struct completion_request *request = NULL;
    struct api_error error = {0};
    int status;

    ASSERT(arena);
    status = completion_parse(arena, body, size, &limits, &request, &error);
    if (status < 0)
        check_error(&error, status);
    else
        check_request(request, &limits);
    arena_free(arena);
}

static void
read_sizes(const char *body, size_t size)
{
    struct api_tier_sizes sizes;
    struct api_error error = {0};
    int status = api_tier_sizes_parse(body, size, &sizes, &error);

    if (status < 0)
        check_error(&error, status);
    else
        ASSERT((sizes.hbm_bytes >> 63 == 0 || sizes.hbm_bytes == UINT64_MAX) &&
               (sizes.ram_bytes >> 63 == 0 || sizes.ram_bytes == UINT64_MAX));
}

static void
write_answer(const char *text, size_t size)
{
    float value = 0;
    size_t half = size / 2;
    struct completion_top top[] = {{text, half, 1, -1.0F}, {text + half, size - half, 2, -2.0F}};
    struct completion_logprob position = {
        .text = text, .size = size, .id = 3, .n_top = 2, .top = top};
    struct completion_choice choice = {.text = text,
                                       .text_size = size,
                                       .finish_reason = "stop",
                                       .stop_id = -1,
                                       .has_logprobs = true,
                                       /* jansson reads no key with a NUL, right as it is */
                                       .with_top = !memchr(text, 0, size),
                                       .n_logprobs = 1,
                                       .logprobs = &position};
    struct completion_meta meta = {.id = "cmpl-1", .model = "demo"};
    struct buf out = {0};

    if (size >= sizeof value)
        memcpy(&value, text, sizeof value);
    position.logprob = top[0].logprob = value;
    completion_write(&out, &meta, 1, &choice, NULL);
    check_json(&out);
    buf_free(&out);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *text = (const char *)data;

    read_completion(text, size, false);
    read_completion(text, size, true);
    read_sizes(text, size);
    write_answer(size ? text : "", size);
    return 0;
}
