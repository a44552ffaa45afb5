#include <math.h>
#include <stdio.h>
#include <string.h>

#include "proto/completion.h"
#include "proto/json_writer.h"
#include "base/utf8_scan.h"

const char completion_done_event[] = "data: [DONE]\n\n";

/* A token's name in the logprobs object: its id if the client asked, its text, or, where the token
 * is a piece of a character, its bytes spelled out as OpenAI does. */
static void
write_token(struct buf *out, bool as_id, int32_t id, const char *text, size_t size)
{
    if (as_id) {
        buf_printf(out, "\"token_id:%d\"", id);
    } else if (utf8_valid(text, size)) {
        json_write_string(out, text, size);
    } else {
        buf_text(out, "\"bytes:");
        for (size_t i = 0; i < size; i++)
            buf_printf(out, "\\\\x%02x", (unsigned char)text[i]);
        buf_text(out, "\"");
    }
}

/* NaN is null, which the first prompt token has. A token that cannot occur has minus infinity,
 * which JSON has not; clients add these numbers up, so they get OpenAI's stand-in and not a null.
 */
static void
write_logprob(struct buf *out, float logprob)
{
    json_write_float(out, isinf(logprob) ? (logprob < 0 ? -9999.0F : 0.0F) : logprob);
}

/* A total order: a value that is no number comes last. */
static float
rank(float logprob)
{
    return isnan(logprob) ? -INFINITY : logprob;
}

static bool
same_name(bool as_id, const struct completion_top *a, const struct completion_top *b)
{
    if (as_id)
        return a->id == b->id;
    return a->size == b->size && (a->size == 0 || memcmp(a->text, b->text, a->size) == 0);
}

/* One position's {name: logprob}. The token that was chosen is always among them. Tokens with equal
 * text would be the same key twice: the likeliest of them stands for all, where it was listed. */
static void
write_top(struct buf *out, const struct completion_logprob *position, bool as_id)
{
    const struct completion_top chosen = {.text = position->text,
                                          .size = position->size,
                                          .id = position->id,
                                          .logprob = position->logprob};
    bool listed = false, first = true;

    for (int i = 0; i < position->n_top; i++)
        listed = listed || position->top[i].id == position->id;
    buf_text(out, "{");
    for (int i = 0; i < position->n_top + (listed ? 0 : 1); i++) {
        const struct completion_top *top = i < position->n_top ? &position->top[i] : &chosen;
        bool shadowed = false;

        for (int j = 0; j < position->n_top + (listed ? 0 : 1) && !shadowed; j++) {
            const struct completion_top *other = j < position->n_top ? &position->top[j] : &chosen;

            if (j != i && same_name(as_id, top, other))
                shadowed = rank(other->logprob) > rank(top->logprob) ||
                           (j < i && rank(other->logprob) == rank(top->logprob));
        }
        if (shadowed)
            continue;
        if (!first)
            buf_text(out, ",");
        first = false;
        write_token(out, as_id, top->id, top->text, top->size);
        buf_text(out, ":");
        write_logprob(out, top->logprob);
    }
    buf_text(out, "}");
}

static void
write_logprobs(struct buf *out, const struct completion_choice *choice)
{
    if (!choice->has_logprobs) {
        buf_text(out, "null");
        return;
    }
    buf_text(out, "{\"tokens\":[");
    for (int i = 0; i < choice->n_logprobs; i++) {
        const struct completion_logprob *position = &choice->logprobs[i];

        if (i)
            buf_text(out, ",");
        write_token(out, choice->tokens_as_ids, position->id, position->text, position->size);
    }
    buf_text(out, "],\"token_logprobs\":[");
    for (int i = 0; i < choice->n_logprobs; i++) {
        if (i)
            buf_text(out, ",");
        write_logprob(out, choice->logprobs[i].logprob);
    }
    buf_text(out, "],\"top_logprobs\":");
    if (choice->with_top) {
        buf_text(out, "[");
        for (int i = 0; i < choice->n_logprobs; i++) {
            if (i)
                buf_text(out, ",");
            if (isnan(choice->logprobs[i].logprob))
                buf_text(out, "null");
            else
                write_top(out, &choice->logprobs[i], choice->tokens_as_ids);
        }
        buf_text(out, "]");
    } else {
        buf_text(out, "null");
    }
    buf_text(out, ",\"text_offset\":[");
    for (int i = 0; i < choice->n_logprobs; i++) {
        if (i)
            buf_text(out, ",");
        json_write_int(out, choice->logprobs[i].text_offset);
    }
    buf_text(out, "]}");
}

static void
write_choice(struct buf *out, const struct completion_choice *choice)
{
    buf_printf(out, "{\"index\":%d,\"text\":", choice->index);
    json_write_string(out, choice->text, choice->text_size);
    buf_text(out, ",\"logprobs\":");
    write_logprobs(out, choice);
    buf_text(out, ",\"finish_reason\":");
    json_write_text(out, choice->finish_reason);
    if (choice->finish_reason) {
        buf_text(out, ",\"stop_reason\":");
        if (choice->stop_text || choice->stop_id < 0)
            json_write_text(out, choice->stop_text);
        else
            json_write_int(out, choice->stop_id);
    }
    buf_text(out, "}");
}

static void
write_usage(struct buf *out, const struct completion_usage *usage)
{
    buf_text(out, ",\"usage\":{\"prompt_tokens\":");
    json_write_int(out, usage->prompt_tokens);
    buf_text(out, ",\"completion_tokens\":");
    json_write_int(out, usage->completion_tokens);
    buf_text(out, ",\"total_tokens\":");
    json_write_int(out, usage->prompt_tokens + usage->completion_tokens);
    buf_text(out, ",\"prompt_tokens_details\":{\"cached_tokens\":");
    json_write_int(out, usage->cached_tokens);
    buf_text(out, "}}");
}

/* The object up to the first choice. */
static void
write_opening(struct buf *out, const struct completion_meta *meta)
{
    buf_text(out, "{\"id\":");
    json_write_text(out, meta->id);
    buf_text(out, ",\"object\":\"text_completion\",\"created\":");
    json_write_int(out, meta->created);
    buf_text(out, ",\"model\":");
    json_write_text(out, meta->model);
    if (meta->fingerprint) {
        buf_text(out, ",\"system_fingerprint\":");
        json_write_text(out, meta->fingerprint);
    }
    buf_text(out, ",\"choices\":[");
}

void
completion_write(struct buf *out, const struct completion_meta *meta, int n_choices,
                 const struct completion_choice *choices, const struct completion_usage *usage)
{
    write_opening(out, meta);
    for (int i = 0; i < n_choices; i++) {
        if (i)
            buf_text(out, ",");
        write_choice(out, &choices[i]);
    }
    buf_text(out, "]");
    if (usage)
        write_usage(out, usage);
    buf_text(out, "}");
}

void
completion_write_event(struct buf *out, const struct completion_meta *meta,
                       const struct completion_choice *choice, const struct completion_usage *usage)
{
    buf_text(out, "data: ");
    completion_write(out, meta, 1, choice, usage);
    buf_text(out, "\n\n");
}

void
completion_write_usage_event(struct buf *out, const struct completion_meta *meta,
                             const struct completion_usage *usage)
{
    buf_text(out, "data: ");
    completion_write(out, meta, 0, NULL, usage);
    buf_text(out, "\n\n");
}

void
completion_write_error_event(struct buf *out, const struct api_error *error)
{
    buf_text(out, "data: ");
    api_error_body(out, error);
    buf_text(out, "\n\n");
}
