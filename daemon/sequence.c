#include "daemon/sequence.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"

static bool
wants_counts(const struct sample_params *p)
{
    return p->presence_penalty != 0 || p->frequency_penalty != 0 || p->repetition_penalty != 1;
}

/* Finds or makes the entry of a token; the array has room for every token the sequence can hold. */
static struct token_count *
count_of(struct sequence *s, int32_t token)
{
    int low = 0, high = s->n_counts;

    while (low < high) {
        int middle = (low + high) / 2;

        if (s->counts[middle].token < token)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == s->n_counts || s->counts[low].token != token) {
        ASSERT(s->n_counts < s->max_counts);
        memmove(s->counts + low + 1, s->counts + low,
                (size_t)(s->n_counts++ - low) * sizeof *s->counts);
        s->counts[low] = (struct token_count){.token = token};
    }
    return &s->counts[low];
}

int
sequence_reserve(struct sequence *s, struct job *job, int choice, int n_shared,
                 struct kv_pages *pages, int page_tokens)
{
    int64_t tokens = job->n_prompt + job->max_tokens;
    int status = -ENOMEM;

    ASSERT(s->phase == SEQUENCE_FREE);
    *s = (struct sequence){.phase = SEQUENCE_RESERVED, .job = job, .choice = choice};
    s->n_pages = (int)((tokens + page_tokens - 1) / page_tokens);
    s->pages = calloc((size_t)s->n_pages + 1, sizeof *s->pages);
    if (s->pages == NULL)
        goto fail;
    if (wants_counts(&job->params)) {
        s->max_counts = (int)tokens;
        s->counts = calloc((size_t)tokens + 1, sizeof *s->counts);
        if (s->counts == NULL)
            goto fail;
        if (choice == 0)
            for (int i = 0; i < job->n_prompt; i++)
                (void)count_of(s, job->prompt[i]);
    }
    status = kv_pages_take(pages, s->n_pages - n_shared, s->pages + n_shared);
    if (status < 0)
        goto fail;
    for (int i = 0; i < n_shared; i++)
        s->pages[i] = -1;
    return 0;
fail:
    free(s->pages);
    free(s->counts);
    *s = (struct sequence){0};
    return status;
}

void
sequence_release(struct sequence *s, struct kv_pages *pages)
{
    for (int i = 0; i < s->n_pages; i++)
        if (s->pages[i] >= 0)
            kv_pages_give(pages, s->pages[i]);
    free(s->pages);
    free(s->counts);
    *s = (struct sequence){0};
}

void
sequence_drain(struct sequence *s)
{
    s->phase = SEQUENCE_DRAINING;
    s->job = NULL;
}

bool
sequence_may_decode(const struct sequence *s)
{
    return s->phase == SEQUENCE_DECODE && s->n_generated + s->n_pending < s->job->max_tokens &&
           (s->n_pending == 0 || s->counts == NULL);
}

void
sequence_prompt_issued(struct sequence *s, const struct engram_shape *engram,
                       const int32_t *compressed)
{
    const struct job *job = s->job;

    ASSERT(s->phase == SEQUENCE_PREFILL && s->context == job->n_prompt);
    s->phase = SEQUENCE_DECODE;
    for (int k = 0; k < engram->max_order && compressed; k++)
        s->recent[k] =
            job->n_prompt > k ? compressed[job->prompt[job->n_prompt - 1 - k]] : engram->pad_id;
}

void
sequence_append(struct sequence *s, int32_t token, const int32_t *compressed)
{
    s->next_token = token;
    s->n_generated++;
    if (compressed) {
        memmove(s->recent + 1, s->recent, (SHAPE_MAX_ORDER - 1) * sizeof *s->recent);
        s->recent[0] = compressed[token];
    }
    if (s->counts)
        count_of(s, token)->in_output++;
}

void
sequence_fork(struct sequence *child, const struct sequence *parent, int n_shared,
              struct kv_pages *pages)
{
    ASSERT(child->phase == SEQUENCE_RESERVED && child->n_pages == parent->n_pages);
    for (int i = 0; i < n_shared; i++) {
        ASSERT(child->pages[i] < 0);
        kv_pages_share(pages, parent->pages[i]);
        child->pages[i] = parent->pages[i];
    }
    child->phase = SEQUENCE_DECODE;
    child->context = parent->context;
    memcpy(child->recent, parent->recent, sizeof child->recent);
    if (child->counts) {
        memcpy(child->counts, parent->counts, (size_t)parent->n_counts * sizeof *child->counts);
        child->n_counts = parent->n_counts;
    }
}
