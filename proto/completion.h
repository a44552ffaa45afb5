/* completion: the body of POST /v1/completions, checked field by field, and its answers.
 * Contract: OpenAI's API and specs, http-api, sections 0 and 1. Pure.                             */
#ifndef PROTO_COMPLETION_H
#define PROTO_COMPLETION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/buf.h"
#include "proto/api_error.h"

enum { COMPLETION_MAX_STOP = 16, COMPLETION_MAX_LOGPROBS = 20, COMPLETION_MAX_N = 128,
       COMPLETION_MAX_STOP_IDS = 256 };

struct completion_prompt {
    const char *text; /* NULL: ids are given */
    size_t text_size;
    const int32_t *ids;
    size_t n_ids;
};
struct completion_bias {
    int32_t token;
    float bias;
};
struct completion_stop {
    const char *text;
    size_t size;
};

struct completion_request {
    const char *model; /* NULL: not given */
    int n_prompts;
    struct completion_prompt *prompts;
    int64_t max_tokens; /* -1: not given */
    int64_t min_tokens;
    /* NaN: not given (the model's default applies). */
    double temperature, top_p, min_p, repetition_penalty;
    int64_t top_k; /* -1: not given */
    double presence_penalty, frequency_penalty;
    bool has_seed;
    int64_t seed;
    int n; /* choices per prompt */
    int logprobs; /* -1: none; 0: chosen token only; 1..20 */
    bool echo, stream, include_usage, continuous_usage, ignore_eos, include_stop;
    bool return_tokens_as_ids, skip_special_tokens, engram_off;
    bool add_special_tokens; /* put the tokenizer's template (a BOS, say) around text prompts */
    int n_stop;
    struct completion_stop stop[COMPLETION_MAX_STOP];
    int n_stop_ids;
    int32_t *stop_ids;
    int n_bias;
    struct completion_bias *bias;
    const char *user;
    int n_ignored; /* unknown fields, for x-engramd-ignored-fields */
    const char **ignored;
};

struct completion_limits {
    int vocab;          /* ids must be in [0, vocab) */
    int max_prompts;    /* strings or id lists in one request */
    int64_t max_context;
    bool strict;        /* unknown fields are an error */
    const char *const *model_names; /* accepted names, NULL-terminated; aliases included */
};

/* 0, or the negated HTTP status with *error filled. Strings live in the arena. */
int completion_parse(struct arena *arena, const char *body, size_t body_size,
                     const struct completion_limits *limits, struct completion_request **ret_request,
                     struct api_error *error);

/* One token's log-probabilities as the legacy shape wants them. */
struct completion_top {
    const char *text; /* any bytes; invalid UTF-8 is written as "bytes:\x.." */
    size_t size;
    int32_t id;
    float logprob;
};
struct completion_logprob {
    const char *text;
    size_t size;
    int32_t id;
    float logprob;      /* NaN: null (first prompt token) */
    int64_t text_offset; /* in characters */
    int n_top;
    const struct completion_top *top;
};

struct completion_usage {
    int64_t prompt_tokens, completion_tokens, cached_tokens;
};

struct completion_choice {
    int index;
    const char *text; /* UTF-8 */
    size_t text_size;
    const char *finish_reason; /* NULL: null */
    const char *stop_text;     /* vLLM's stop_reason: the stop string ... */
    int32_t stop_id;           /* ... or the token id; -1: null */
    bool has_logprobs;         /* logprobs object, else null */
    bool tokens_as_ids;        /* "token_id:17" instead of text */
    bool with_top;             /* top_logprobs is an array, else null */
    int n_logprobs;
    const struct completion_logprob *logprobs;
};

struct completion_meta {
    const char *id;    /* "cmpl-..." */
    const char *model;
    int64_t created;
    const char *fingerprint; /* system_fingerprint */
};

/* The whole answer of a request that does not stream. */
void completion_write(struct buf *out, const struct completion_meta *meta, int n_choices,
                      const struct completion_choice *choices, const struct completion_usage *usage);
/* One SSE event "data: {...}\n\n" with one choice; usage only when given. */
void completion_write_event(struct buf *out, const struct completion_meta *meta,
                            const struct completion_choice *choice,
                            const struct completion_usage *usage);
/* The usage event: "choices": []. */
void completion_write_usage_event(struct buf *out, const struct completion_meta *meta,
                                  const struct completion_usage *usage);
/* "data: {"error":...}\n\n" */
void completion_write_error_event(struct buf *out, const struct api_error *error);
extern const char completion_done_event[]; /* "data: [DONE]\n\n" */

#endif
