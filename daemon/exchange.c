#include "daemon/exchange.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "daemon/choice_text.h"
#include "proto/completion.h"

enum { MAX_PROMPTS = 1024 };
/* Log-probabilities in one answer. Each takes up to 100 bytes until the answer is out; a request of
 * a few kilobytes may ask for gigabytes of them. */
enum { MAX_SCORES = 1024 * 1024 };

struct choice_out {
    struct choice_text text;
    struct buf out;      /* text not sent yet; all of it without stream */
    struct buf logprobs; /* struct completion_logprob[], likewise */
    int64_t n_chars;     /* characters of all tokens so far: the next text_offset */
    int64_t n_tokens;
    bool begun, done; /* begun: the echoed prompt is out */
    const char *finish;
    int32_t stop_id;
};

struct exchange {
    struct daemon *daemon;
    struct exchange *prev, *next;
    struct http_conn *conn;
    struct http_request *request;
    struct completion_request *c;
    uv_work_t work;
    bool working, answered, streaming, failed;
    uint64_t received_ns;
    int64_t created; /* Unix seconds */
    char id[48];
    /* Per prompt. */
    struct job **jobs; /* [n_prompts]; NULL: not made or taken by the engine and ended */
    int32_t **ids;     /* [n_prompts] until the job takes them */
    int64_t *n_ids;
    struct err tokenise_err;
    int tokenise_status;
    int n_running; /* jobs in the engine */
    /* Per choice: prompt * n + k. */
    int n_choices, n_done;
    struct choice_out *choices;
    struct completion_usage usage;
};

static struct completion_meta
meta_of(const struct exchange *x)
{
    return (struct completion_meta){.id = x->id,
                                    .model = x->daemon->serving->name,
                                    .created = x->created,
                                    .fingerprint = "engramd-" ENGRAMD_VERSION};
}

static void
maybe_free(struct exchange *x)
{
    struct daemon *daemon = x->daemon;

    if (x->conn || x->working || x->n_running)
        return;
    for (int i = 0; i < x->n_choices; i++) {
        choice_text_fini(&x->choices[i].text);
        buf_free(&x->choices[i].out);
        buf_free(&x->choices[i].logprobs);
    }
    for (int i = 0; x->c && i < x->c->n_prompts; i++) {
        if (x->ids)
            free(x->ids[i]);
        if (x->jobs)
            job_free(x->jobs[i]);
    }
    if (x->prev)
        x->prev->next = x->next;
    else
        daemon->exchanges = x->next;
    if (x->next)
        x->next->prev = x->prev;
    http_request_free(x->request); /* its arena holds the rest */
    free(x);
    daemon_exchange_ended(daemon);
}

static void
cancel_jobs(struct exchange *x)
{
    for (int i = 0; x->jobs && i < x->c->n_prompts; i++)
        if (x->jobs[i])
            atomic_store_explicit(&x->jobs[i]->cancelled, true, memory_order_release);
    if (x->n_running)
        engine_wake(x->daemon->serving->engine);
}

static void
on_gone(void *arg)
{
    struct exchange *x = arg;

    x->conn = NULL;
    metrics_add(x->daemon->metrics, METRIC_ID_requests_cancelled_total, 0, 1);
    log_info("%s: client went away after %lld tokens", x->id,
             (long long)x->usage.completion_tokens);
    cancel_jobs(x);
    maybe_free(x);
}

/* The answer is an error: as a response, or as an event of the stream. */
static void
fail(struct exchange *x, const struct api_error *error)
{
    struct http_conn *conn = x->conn;

    cancel_jobs(x);
    if (conn == NULL)
        return;
    /* From here on the connection's end is no business of the exchange: it may be freed by then. */
    http_conn_watch(conn, &(struct http_callbacks){0});
    x->conn = NULL;
    x->failed = true;
    if (x->streaming) {
        struct buf out = {0};

        completion_write_error_event(&out, error);
        buf_text(&out, completion_done_event);
        http_stream(conn, out.data, out.size_bytes);
        buf_free(&out);
        http_stream_end(conn, true);
    } else {
        http_respond_error(conn, error);
    }
    if (error->status == 429 || error->status == 503)
        metrics_add(x->daemon->metrics, METRIC_ID_requests_rejected_total, 0, 1);
    log_info("%s: %d %s", x->id, error->status, error->message);
}

static void
write_extra_headers(const struct exchange *x, struct buf *extra)
{
    buf_text(extra, "access-control-allow-origin: *\r\n"
                    "access-control-expose-headers: x-request-id\r\n");
    if (x->streaming)
        buf_text(extra, "cache-control: no-cache\r\nx-accel-buffering: no\r\n");
    else
        buf_printf(extra, "openai-processing-ms: %llu\r\n",
                   (unsigned long long)((clock_now_ns() - x->received_ns) / 1000000));
    if (x->c->n_ignored) {
        buf_text(extra, "x-engramd-ignored-fields: ");
        for (int i = 0; i < x->c->n_ignored && i < 16; i++) {
            const char *name = x->c->ignored[i];

            buf_text(extra, i ? ", " : "");
            for (int k = 0; name[k] && k < 64; k++)
                buf_printf(extra, "%c", name[k] > 0x20 && name[k] < 0x7f ? name[k] : '?');
        }
        buf_text(extra, "\r\n");
    }
    buf_append(extra, "", 1);
}

static void
begin_stream(struct exchange *x)
{
    struct buf extra = {0};

    if (x->streaming || x->conn == NULL)
        return;
    x->streaming = true;
    write_extra_headers(x, &extra);
    http_stream_begin(x->conn, "text/event-stream; charset=utf-8", extra.data);
    buf_free(&extra);
}

/* Nothing was written for a while: a comment of its own keeps proxies from giving up. */
static void
on_idle(void *arg)
{
    struct exchange *x = arg;

    if (!x->c->stream || x->conn == NULL)
        return;
    begin_stream(x);
    if (x->conn)
        http_stream(x->conn, ": ping\n\n", 8);
}

static int64_t
count_chars(const char *text, size_t size)
{
    int64_t n = 0;

    for (size_t i = 0; i < size; i++)
        n += ((unsigned char)text[i] & 0xc0) != 0x80;
    return n;
}

/* Appends the log-probability record of one token. scores NULL: null (the first prompt token). */
static void
put_logprob(struct exchange *x, struct choice_out *ch, int32_t token,
            const struct sample_result *scores)
{
    const struct tokenizer *tokenizer = x->daemon->serving->tokenizer;
    struct completion_logprob record = {
        .id = token, .logprob = scores ? scores->logprob : NAN, .text_offset = ch->n_chars};

    record.text = tokenizer_bytes(tokenizer, token, &record.size);
    ch->n_chars += count_chars(record.text, record.size);
    if (x->c->logprobs < 0)
        return;
    if (scores && scores->n_top > 0) {
        struct completion_top *top =
            arena_array(x->request->arena, (size_t)scores->n_top + 1, sizeof *top);

        if (top == NULL) {
            ch->logprobs.failed = true;
            return;
        }
        record.top = top;
        /* The chosen token is always among them. */
        bool chosen = false;

        for (int i = 0; i < scores->n_top; i++) {
            int32_t id = scores->top_token[i];

            top[i].text = tokenizer_bytes(tokenizer, id, &top[i].size);
            top[i].id = id;
            top[i].logprob = scores->top_logprob[i];
            chosen |= id == token;
        }
        record.n_top = scores->n_top;
        if (!chosen)
            top[record.n_top++] = (struct completion_top){
                .text = record.text, .size = record.size, .id = token, .logprob = record.logprob};
    }
    buf_append(&ch->logprobs, &record, sizeof record);
}

/* The echoed prompt, before anything else of the choice. */
static void
begin_choice(struct exchange *x, const struct job *job, struct choice_out *ch)
{
    const struct completion_prompt *prompt = &x->c->prompts[job->index];

    if (ch->begun)
        return;
    ch->begun = true;
    if (!x->c->echo) {
        /* Offsets count from the start of the prompt, whether or not it is echoed. */
        for (int i = 0; i < job->n_prompt; i++) {
            size_t size;
            const char *bytes =
                tokenizer_bytes(x->daemon->serving->tokenizer, job->prompt[i], &size);

            ch->n_chars += count_chars(bytes, size);
        }
        return;
    }
    if (prompt->text) {
        buf_append(&ch->out, prompt->text, prompt->text_size);
    } else {
        struct choice_text text;

        choice_text_init(&text, x->daemon->serving->tokenizer, x->c->skip_special_tokens, NULL, 0,
                         false);
        for (int i = 0; i < job->n_prompt; i++)
            choice_text_push(&text, job->prompt[i], &ch->out);
        choice_text_flush(&text, &ch->out);
        choice_text_fini(&text);
    }
    for (int i = 0; i < job->n_prompt; i++)
        put_logprob(x, ch, job->prompt[i], i && job->prompt_scores ? &job->prompt_scores[i] : NULL);
}

static struct completion_choice
choice_of(const struct exchange *x, int index)
{
    const struct choice_out *ch = &x->choices[index];

    return (struct completion_choice){
        .index = index,
        .text = ch->out.data ? ch->out.data : "",
        .text_size = ch->out.size_bytes,
        .finish_reason = ch->finish,
        .stop_text = ch->text.matched >= 0 ? x->c->stop[ch->text.matched].text : NULL,
        .stop_id = ch->stop_id,
        .has_logprobs = x->c->logprobs >= 0,
        .tokens_as_ids = x->c->return_tokens_as_ids,
        .with_top = x->c->logprobs > 0,
        .n_logprobs = (int)(ch->logprobs.size_bytes / sizeof(struct completion_logprob)),
        .logprobs = (const struct completion_logprob *)ch->logprobs.data,
    };
}

/* Sends what the choice has gathered as one event. */
static void
send_event(struct exchange *x, int index)
{
    struct choice_out *ch = &x->choices[index];
    struct completion_meta meta = meta_of(x);
    struct completion_choice choice = choice_of(x, index);
    struct buf out = {0};

    begin_stream(x);
    completion_write_event(&out, &meta, &choice, x->c->continuous_usage ? &x->usage : NULL);
    if (x->conn)
        http_stream(x->conn, out.data, out.size_bytes);
    buf_free(&out);
    buf_reset(&ch->out);
    buf_reset(&ch->logprobs);
}

/* All choices are done: the whole answer, or the end of the stream. */
static void
answer(struct exchange *x)
{
    struct http_conn *conn = x->conn;
    struct completion_meta meta = meta_of(x);
    struct buf out = {0}, extra = {0};

    if (conn == NULL)
        return;
    http_conn_watch(conn, &(struct http_callbacks){0});
    if (x->c->stream) {
        if (x->c->include_usage)
            completion_write_usage_event(&out, &meta, &x->usage);
        buf_text(&out, completion_done_event);
        http_stream(conn, out.data, out.size_bytes);
        x->conn = NULL;
        http_stream_end(conn, true);
    } else {
        struct completion_choice *choices =
            arena_array(x->request->arena, (size_t)x->n_choices, sizeof *choices);
        bool failed = choices == NULL;

        for (int i = 0; i < x->n_choices && !failed; i++) {
            choices[i] = choice_of(x, i);
            failed = x->choices[i].out.failed || x->choices[i].logprobs.failed;
        }
        if (!failed)
            completion_write(&out, &meta, x->n_choices, choices, &x->usage);
        if (failed || out.failed) {
            struct api_error error = {0};

            api_error_set(&error, 500, "internal_error", "", "no memory for the answer");
            fail(x, &error);
        } else {
            write_extra_headers(x, &extra);
            x->conn = NULL;
            http_respond(conn, 200, "application/json", extra.data, out.data, out.size_bytes);
        }
    }
    buf_free(&out);
    buf_free(&extra);
    log_info("%s: 200, %lld prompt tokens, %lld completion tokens, %.1f ms", x->id,
             (long long)x->usage.prompt_tokens, (long long)x->usage.completion_tokens,
             (double)(clock_now_ns() - x->received_ns) * 1e-6);
}

static void
finish_choice(struct exchange *x, int index, const char *finish)
{
    struct choice_out *ch = &x->choices[index];

    ch->finish = finish;
    ch->done = true;
    x->n_done++;
    metrics_add(x->daemon->metrics, METRIC_ID_requests_total, finish[0] == 'l', 1);
    metrics_observe(x->daemon->metrics, METRIC_ID_e2e_request_latency_seconds, 0,
                    (double)(clock_now_ns() - x->received_ns) * 1e-9);
}

static void
take_token(struct exchange *x, const struct job_event *event)
{
    struct job *job = event->job;
    int index = job->index * x->c->n + event->choice;
    struct choice_out *ch = &x->choices[index];
    const char *finish = event->finish == JOB_STOP     ? "stop"
                         : event->finish == JOB_LENGTH ? "length"
                                                       : NULL;

    if (ch->done || x->conn == NULL)
        return;
    bool echo_first = x->c->stream && x->c->echo && !ch->begun;

    begin_choice(x, job, ch);
    if (echo_first)
        send_event(x, index);
    ch->n_tokens++;
    x->usage.completion_tokens++;
    x->usage.cached_tokens += event->n_cached;
    put_logprob(x, ch, event->result.token, &event->result);
    if (event->stop_token) {
        for (int i = 0; i < x->c->n_stop_ids; i++)
            if (x->c->stop_ids[i] == event->result.token)
                ch->stop_id = event->result.token;
    } else if (choice_text_push(&ch->text, event->result.token, &ch->out)) {
        if (finish == NULL) {
            atomic_store_explicit(&job->stop[event->choice], true, memory_order_release);
            engine_wake(x->daemon->serving->engine);
        }
        finish = "stop";
    }
    if (finish) {
        if (ch->text.matched < 0)
            choice_text_flush(&ch->text, &ch->out);
        finish_choice(x, index, finish);
    }
    if (x->c->stream)
        send_event(x, index);
}

static void
job_ended(struct exchange *x, const struct job_event *event)
{
    struct job *job = event->job;
    int index = job->index;

    if (event->error && x->conn) {
        struct api_error error = {0};

        if (event->error == -ESHUTDOWN) {
            api_error_set(&error, 503, "server_shutdown", "", "%s", event->error_text);
            error.retry_after_s = 5;
        } else {
            api_error_set(&error, 500, "internal_error", "", "%s", event->error_text);
            error.no_retry = event->error == -EDOM;
        }
        fail(x, &error);
    } else if (x->conn && job->max_tokens == 0) {
        for (int k = 0; k < x->c->n; k++) {
            begin_choice(x, job, &x->choices[index * x->c->n + k]);
            finish_choice(x, index * x->c->n + k, "length");
            if (x->c->stream)
                send_event(x, index * x->c->n + k);
        }
    }
    x->jobs[index] = job_free(job);
    x->n_running--; /* last: until here nothing frees the exchange */
}

void
exchange_event(struct daemon *daemon, const struct job_event *event)
{
    struct exchange *x = event->job->owner;

    (void)daemon;
    if (event->kind == JOB_TOKEN)
        take_token(x, event);
    else
        job_ended(x, event);
    if (x->n_done == x->n_choices && !x->failed)
        answer(x);
    maybe_free(x);
}

static uint64_t
random_seed(void)
{
    uint64_t seed = 0;

    if (getrandom(&seed, sizeof seed, 0) != sizeof seed)
        seed = clock_now_ns();
    return seed;
}

static double
given(double value, double otherwise)
{
    return isnan(value) ? otherwise : value;
}

/* Everything the engine needs to know about one prompt. */
static struct job *
make_job(struct exchange *x, int i, int64_t max_tokens)
{
    const struct completion_request *c = x->c;
    const struct model_config *config = &x->daemon->serving->config;
    struct job *job = calloc(1, sizeof *job);

    if (job == NULL)
        return NULL;
    job->owner = x;
    job->index = i;
    job->received_ns = x->received_ns;
    job->prompt = x->ids[i];
    job->n_prompt = (int)x->n_ids[i];
    x->ids[i] = NULL;
    job->n_choices = c->n;
    job->max_tokens = max_tokens;
    job->min_tokens = c->min_tokens;
    job->engram_off = c->engram_off;
    job->score_prompt = c->echo && c->logprobs >= 0;
    job->params = (struct sample_params){
        .temperature = (float)given(c->temperature, config->temperature),
        .top_p = (float)given(c->top_p, config->top_p),
        .min_p = (float)given(c->min_p, config->min_p),
        .top_k = c->top_k >= 0 ? (int32_t)c->top_k : config->top_k,
        .presence_penalty = (float)c->presence_penalty,
        .frequency_penalty = (float)c->frequency_penalty,
        .repetition_penalty = (float)given(c->repetition_penalty, config->repetition_penalty),
        .forced = -1,
        .n_top = c->logprobs > 0 ? c->logprobs : 0,
        .n_bias = c->n_bias,
    };
    if (job->score_prompt)
        job->prompt_scores = calloc((size_t)job->n_prompt, sizeof *job->prompt_scores);
    job->bias = calloc((size_t)c->n_bias + 1, sizeof *job->bias);
    if (job->bias == NULL || (job->score_prompt && job->prompt_scores == NULL))
        return job_free(job);
    for (int k = 0; k < c->n_bias; k++)
        job->bias[k] = (struct logit_bias){.token = c->bias[k].token, .bias = c->bias[k].bias};
    job->params.bias = job->bias;
    for (int k = 0; k < c->n; k++)
        job->seed[k] =
            c->has_seed ? (uint64_t)c->seed + (uint64_t)k * 0x9e3779b97f4a7c15ull : random_seed();
    for (int k = 0; k < config->n_eos && !c->ignore_eos; k++)
        job->stop_ids[job->n_stop_ids++] = config->eos[k];
    for (int k = 0; k < c->n_stop_ids && job->n_stop_ids < JOB_MAX_STOP_IDS; k++)
        job->stop_ids[job->n_stop_ids++] = c->stop_ids[k];
    return job;
}

/* How many tokens the prompt may get; 0 or more, or an error about lengths. */
static int64_t
room_for(const struct exchange *x, int i, struct api_error *error)
{
    const struct serving *s = x->daemon->serving;
    int64_t n = x->n_ids[i], wanted = x->c->max_tokens;

    if (n == 0)
        return api_error_set(error, 400, "invalid_value", "prompt", "the prompt is empty");
    if (wanted < 0) {
        wanted = s->conf->engine_default_max_tokens;
        if (n < s->max_context && n + wanted > s->max_context)
            wanted = s->max_context - n;
    }
    if (wanted == 0 && !x->c->echo)
        return api_error_set(error, 400, "invalid_value", "max_tokens",
                             "max_tokens 0 makes sense with echo only");
    if (n + wanted > s->max_context)
        return api_error_set(error, 400, "context_length_exceeded", "prompt",
                             "the model's context is %d tokens; the prompt has %lld and %lld are "
                             "to be generated: %lld in all",
                             s->max_context, (long long)n, (long long)wanted,
                             (long long)(n + wanted));
    if (engine_job_pages(s->limits.page_tokens, n, wanted, x->c->n) > s->limits.kv_pages)
        return api_error_set(error, 400, "invalid_value", "n",
                             "%d choices of %lld tokens do not fit the KV cache", x->c->n,
                             (long long)(n + wanted));
    return wanted;
}

static void
submit(struct exchange *x)
{
    struct serving *s = x->daemon->serving;
    struct api_error error = {0};
    int64_t n_scores = 0;

    if (x->tokenise_status == -E2BIG)
        api_error_set(&error, 400, "context_length_exceeded", "prompt",
                      "the model's context is %d tokens; the prompt alone has more",
                      s->max_context);
    else if (x->tokenise_status == -ELOOP || x->tokenise_status == -EILSEQ)
        api_error_set(&error, 400, "invalid_value", "prompt", "cannot tokenise: %s",
                      x->tokenise_err.text);
    else if (x->tokenise_status < 0)
        api_error_set(&error, 500, "internal_error", "prompt", "cannot tokenise: %s",
                      x->tokenise_err.text);
    else if (x->n_choices > s->limits.max_sequences + (int)s->conf->engine_max_queue ||
             x->c->n > s->limits.max_sequences)
        api_error_set(&error, 400, "invalid_value", "n",
                      "%d choices are more than this server takes at a time", x->n_choices);
    for (int i = 0; i < x->c->n_prompts && error.status == 0; i++) {
        int64_t room = room_for(x, i, &error);

        if (room >= 0) {
            x->jobs[i] = make_job(x, i, room);
            x->usage.prompt_tokens += x->n_ids[i];
            n_scores += (x->c->logprobs + 1) * x->c->n * (room + (x->c->echo ? x->n_ids[i] : 0));
            if (x->jobs[i] == NULL)
                api_error_set(&error, 500, "internal_error", "", "no memory for the request");
        }
    }
    if (error.status == 0 && n_scores > MAX_SCORES)
        api_error_set(&error, 400, "invalid_value", "logprobs",
                      "the answer could have %lld log-probabilities and may have %d; ask for fewer "
                      "choices, tokens or logprobs",
                      (long long)n_scores, MAX_SCORES);
    for (int i = 0; i < x->c->n_prompts && error.status == 0; i++) {
        /* The plan first: reads start while the job waits for its turn. */
        if (s->resolver && !x->c->engram_off) {
            int32_t *ids = arena_array(x->request->arena, (size_t)x->n_ids[i], sizeof *ids);

            for (int64_t k = 0; ids && k < x->n_ids[i]; k++)
                ids[k] = s->compressed[x->jobs[i]->prompt[k]];
            if (ids)
                resolver_prefetch(s->resolver, ids, (int)x->n_ids[i]);
        }
        if (engine_submit(s->engine, x->jobs[i]) < 0) {
            api_error_set(&error, 429, "queue_full", "",
                          "the queue of %lld requests is full; try again",
                          (long long)s->conf->engine_max_queue);
            error.retry_after_s = 1;
        } else {
            x->n_running++;
        }
    }
    if (error.status) {
        /* Jobs not submitted go with the exchange; submitted ones end first. */
        fail(x, &error);
        maybe_free(x);
    }
}

/* Ids of a text prompt, within the tokenizer's template (a BOS, say) unless the request says
 * otherwise. */
static int64_t
encode(struct exchange *x, const struct completion_prompt *p, int32_t **ret_ids)
{
    const struct serving *s = x->daemon->serving;
    const int32_t *before = NULL, *after = NULL;
    int n_before = 0, n_after = 0;
    int64_t n = tokenizer_encode(s->tokenizer, p->text, p->text_size, (size_t)s->max_context + 1,
                                 ret_ids, &x->tokenise_err);

    if (x->c->add_special_tokens)
        tokenizer_template(s->tokenizer, &before, &n_before, &after, &n_after);
    if (n < 0 || n_before + n_after == 0)
        return n;
    int32_t *all = realloc(*ret_ids, (size_t)(n_before + n + n_after) * sizeof *all);

    if (all == NULL)
        return err_set(&x->tokenise_err, ENOMEM, "no memory");
    memmove(all + n_before, all, (size_t)n * sizeof *all);
    memcpy(all, before, (size_t)n_before * sizeof *all);
    memcpy(all + n_before + n, after, (size_t)n_after * sizeof *all);
    *ret_ids = all;
    return n_before + n + n_after;
}

static void
tokenise(uv_work_t *work)
{
    struct exchange *x = work->data;

    for (int i = 0; i < x->c->n_prompts && x->tokenise_status >= 0; i++) {
        const struct completion_prompt *p = &x->c->prompts[i];

        if (p->text) {
            x->n_ids[i] = encode(x, p, &x->ids[i]);
            if (x->n_ids[i] < 0)
                x->tokenise_status = (int)x->n_ids[i];
            continue;
        }
        x->ids[i] = malloc((p->n_ids + 1) * sizeof **x->ids);
        if (x->ids[i] == NULL) {
            x->tokenise_status = err_set(&x->tokenise_err, ENOMEM, "no memory");
            continue;
        }
        memcpy(x->ids[i], p->ids, p->n_ids * sizeof **x->ids);
        x->n_ids[i] = (int64_t)p->n_ids;
    }
}

static void
on_tokenised(uv_work_t *work, int status)
{
    struct exchange *x = work->data;

    x->working = false;
    x->daemon->n_works--;
    if (status < 0 || x->conn == NULL)
        maybe_free(x);
    else
        submit(x);
}

/* JSON by its name, or by curl -d, which calls every body a form when nobody says otherwise. */
static bool
json_body(const struct http_request *request)
{
    static const char *const accepted[] = {"application/json", "application/x-www-form-urlencoded"};
    const char *type = http_request_header(request, "content-type");

    for (size_t i = 0; type && i < sizeof accepted / sizeof *accepted; i++) {
        size_t length = strlen(accepted[i]);

        if (strncasecmp(type, accepted[i], length) == 0 && strchr("; ", type[length]))
            return true;
    }
    return type == NULL;
}

static int
parse(struct exchange *x, struct api_error *error)
{
    const struct serving *s = x->daemon->serving;
    const char *names[] = {s->name, NULL};
    struct completion_limits limits = {.vocab = s->config.shape.vocab,
                                       .max_prompts = MAX_PROMPTS,
                                       .max_context = s->max_context,
                                       .strict = s->conf->server_strict_requests,
                                       .model_names = names};

    if (!json_body(x->request))
        return api_error_set(error, 400, "invalid_json", "", "the body must be application/json");
    int status = completion_parse(x->request->arena, x->request->body, x->request->body_size,
                                  &limits, &x->c, error);

    if (status < 0)
        return status;
    int n_choices = x->c->n_prompts * x->c->n;

    x->jobs = arena_array(x->request->arena, (size_t)x->c->n_prompts, sizeof *x->jobs);
    x->ids = arena_array(x->request->arena, (size_t)x->c->n_prompts, sizeof *x->ids);
    x->n_ids = arena_array(x->request->arena, (size_t)x->c->n_prompts, sizeof *x->n_ids);
    x->choices = arena_array(x->request->arena, (size_t)n_choices, sizeof *x->choices);
    if (!x->jobs || !x->ids || !x->n_ids || !x->choices)
        return api_error_set(error, 500, "internal_error", "", "no memory for the request");
    x->n_choices = n_choices;
    for (int i = 0; i < n_choices; i++) {
        choice_text_init(&x->choices[i].text, s->tokenizer, x->c->skip_special_tokens, x->c->stop,
                         x->c->n_stop, x->c->include_stop);
        x->choices[i].stop_id = -1;
    }
    for (int i = 0; i < x->c->n_ignored; i++)
        metrics_add(x->daemon->metrics, METRIC_ID_ignored_fields_total, 0, 1);
    return 0;
}

void
exchange_begin(struct daemon *daemon, struct http_conn *conn, struct http_request *request)
{
    struct exchange *x = calloc(1, sizeof *x);
    struct api_error error = {0};

    if (x == NULL) {
        api_error_set(&error, 500, "internal_error", "", "no memory for the request");
        http_request_free(request);
        http_respond_error(conn, &error);
        return;
    }
    x->daemon = daemon;
    x->conn = conn;
    x->request = request;
    x->received_ns = clock_now_ns();
    x->created = clock_unix_seconds();
    x->next = daemon->exchanges;
    if (x->next)
        x->next->prev = x;
    daemon->exchanges = x;
    snprintf(x->id, sizeof x->id, "cmpl-%llx%06llx", (unsigned long long)daemon->serving->created,
             (unsigned long long)daemon->next_completion++);
    http_conn_watch(conn, &(struct http_callbacks){.gone = on_gone, .idle = on_idle, .arg = x});
    if (parse(x, &error) < 0) {
        fail(x, &error);
        maybe_free(x);
        return;
    }
    x->working = true;
    x->work.data = x;
    if (uv_queue_work(&daemon->loop, &x->work, tokenise, on_tokenised) < 0) {
        x->working = false;
        api_error_set(&error, 500, "internal_error", "", "cannot start the work");
        fail(x, &error);
        maybe_free(x);
        return;
    }
    daemon->n_works++;
}

void
exchange_cancel_all(struct daemon *daemon, int status, const char *code, const char *message)
{
    for (struct exchange *x = daemon->exchanges, *next; x; x = next) {
        struct api_error error = {0};

        next = x->next;
        api_error_set(&error, status, code, "", "%s", message);
        if (status == 503)
            error.retry_after_s = 5;
        fail(x, &error);
        maybe_free(x);
    }
}
