#include "daemon/sequence.h"

#include <errno.h>
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

/* Pages of all that the host knows of the sequence. */
static int
take_pages(struct sequence *s, int n_shared, struct kv_pages *pages, int page_tokens)
{
    int64_t known = s->job->n_prompt + s->n_generated, most = s->job->n_prompt + s->job->max_tokens;

    s->prefill_end = (int32_t)(s->job->n_prompt + (s->n_generated ? s->n_generated - 1 : 0));
    s->max_pages = (int)((most + page_tokens - 1) / page_tokens);
    s->pages = calloc((size_t)s->max_pages + 1, sizeof *s->pages);
    if (s->pages == NULL)
        return -ENOMEM;
    int n_pages = (int)((known + page_tokens - 1) / page_tokens);
    int status = kv_pages_take(pages, n_pages - n_shared, s->pages + n_shared);

    if (status < 0)
        return status;
    for (int i = 0; i < n_shared; i++)
        s->pages[i] = -1;
    s->n_pages = n_pages;
    s->room_tokens = n_pages * page_tokens;
    return 0;
}

int
sequence_reserve(struct sequence *s, struct job *job, int choice, int n_shared,
                 struct kv_pages *pages, int page_tokens)
{
    int64_t tokens = job->n_prompt + job->max_tokens;
    int status = -ENOMEM;

    ASSERT(s->phase == SEQUENCE_FREE);
    *s = (struct sequence){.phase = SEQUENCE_RESERVED, .job = job, .choice = choice};
    s->generated = calloc((size_t)job->max_tokens + 1, sizeof *s->generated);
    if (s->generated == NULL)
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
    status = take_pages(s, n_shared, pages, page_tokens);
    if (status < 0)
        goto fail;
    return 0;
fail:
    sequence_release(s, pages);
    return status;
}

int
sequence_resume(struct sequence *s, struct job *job, struct parked_choice *parked, int n_shared,
                struct kv_pages *pages, int page_tokens)
{
    ASSERT(s->phase == SEQUENCE_FREE);
    *s = (struct sequence){.phase = SEQUENCE_RESERVED,
                           .job = job,
                           .choice = parked->choice,
                           .n_generated = parked->n_generated};
    int status = take_pages(s, n_shared, pages, page_tokens);

    if (status < 0) {
        sequence_release(s, pages);
        return status;
    }
    s->generated = parked->generated;
    s->counts = parked->counts;
    s->n_counts = parked->n_counts;
    s->max_counts = parked->max_counts;
    *parked = (struct parked_choice){.choice = s->choice};
    return 0;
}

int
sequence_grow(struct sequence *s, struct kv_pages *pages, int page_tokens)
{
    ASSERT(s->n_pages < s->max_pages);
    int status = kv_pages_take(pages, 1, s->pages + s->n_pages);

    if (status < 0)
        return status;
    s->n_pages++;
    s->room_tokens += page_tokens;
    return 0;
}

void
sequence_park(struct sequence *s, struct parked_choice *ret_parked)
{
    *ret_parked = (struct parked_choice){.choice = s->choice,
                                         .n_generated = s->n_generated,
                                         .generated = s->generated,
                                         .counts = s->counts,
                                         .n_counts = s->n_counts,
                                         .max_counts = s->max_counts};
    s->generated = NULL;
    s->counts = NULL;
}

void
parked_choice_fini(struct parked_choice *parked)
{
    free(parked->generated);
    free(parked->counts);
    *parked = (struct parked_choice){0};
}

void
sequence_release(struct sequence *s, struct kv_pages *pages)
{
    for (int i = 0; i < s->n_pages; i++)
        if (s->pages[i] >= 0)
            kv_pages_give(pages, s->pages[i]);
    free(s->pages);
    free(s->generated);
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
sequence_wants_row(const struct sequence *s)
{
    return s->phase == SEQUENCE_DECODE && s->n_generated + s->n_pending < s->job->max_tokens &&
           (s->n_pending == 0 || s->counts == NULL);
}

bool
sequence_may_decode(const struct sequence *s)
{
    return sequence_wants_row(s) && s->context < s->room_tokens;
}

int
sequence_chunk_rows(const struct sequence *s, int prefill_chunk)
{
    int end = s->context < s->job->n_prompt ? s->job->n_prompt : s->prefill_end;
    int rest = end - s->context;

    ASSERT(s->phase == SEQUENCE_PREFILL && rest > 0);
    return rest < prefill_chunk ? rest : prefill_chunk;
}

int32_t
sequence_token(const struct sequence *s, int64_t position)
{
    int n_prompt = s->job->n_prompt;

    ASSERT(position >= 0 && position < n_prompt + s->n_generated);
    return position < n_prompt ? s->job->prompt[position] : s->generated[position - n_prompt];
}

void
sequence_prefilled(struct sequence *s, const struct engram_shape *engram, const int32_t *compressed)
{
    int64_t known = s->job->n_prompt + s->n_generated;

    ASSERT(s->context == s->prefill_end && s->n_pending == 0);
    s->phase = SEQUENCE_DECODE;
    if (s->n_generated)
        s->next_token = s->generated[s->n_generated - 1];
    for (int k = 0; k < engram->max_order && compressed; k++)
        s->recent[k] = known > k ? compressed[sequence_token(s, known - 1 - k)] : engram->pad_id;
}

void
sequence_append(struct sequence *s, int32_t token, const int32_t *compressed)
{
    s->next_token = token;
    s->generated[s->n_generated++] = token;
    if (compressed) {
        memmove(s->recent + 1, s->recent, (SHAPE_MAX_ORDER - 1) * sizeof *s->recent);
        s->recent[0] = compressed[token];
    }
    if (s->counts)
        count_of(s, token)->in_output++;
}

void
sequence_fork(struct sequence *child, const struct sequence *parent, int n_shared,
              struct kv_pages *pages, const struct engram_shape *engram, const int32_t *compressed)
{
    ASSERT(child->phase == SEQUENCE_RESERVED && child->n_pages >= n_shared);
    ASSERT(parent->context == parent->job->n_prompt);
    for (int i = 0; i < n_shared; i++) {
        ASSERT(child->pages[i] < 0);
        kv_pages_share(pages, parent->pages[i]);
        child->pages[i] = parent->pages[i];
    }
    child->context = parent->context;
    child->last_step = parent->last_step;
    if (child->counts && child->n_generated == 0) {
        memcpy(child->counts, parent->counts, (size_t)parent->n_counts * sizeof *child->counts);
        child->n_counts = parent->n_counts;
    }
    if (child->context == child->prefill_end)
        sequence_prefilled(child, engram, compressed);
    else
        child->phase = SEQUENCE_PREFILL;
}
