#include "daemon/choice_text.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"

void
choice_text_init(struct choice_text *t, const struct tokenizer *tokenizer, bool skip_special,
                 const struct completion_stop *stop, int n_stop, bool include_stop)
{
    *t = (struct choice_text){
        .detokenizer = {.tokenizer = tokenizer, .skip_special = skip_special},
        .stop = stop,
        .n_stop = n_stop,
        .include_stop = include_stop,
        .matched = -1,
    };
}

void
choice_text_fini(struct choice_text *t)
{
    buf_free(&t->held);
}

/* The stop string that is complete first in the held text; ties go to the longer one. */
static bool
find_stop(struct choice_text *t, size_t *ret_begin, size_t *ret_end)
{
    t->matched = -1;
    for (int i = 0; i < t->n_stop; i++) {
        const char *at = memmem(t->held.data, t->held.size_bytes, t->stop[i].text, t->stop[i].size);

        if (at == NULL)
            continue;
        size_t begin = (size_t)(at - t->held.data), end = begin + t->stop[i].size;

        if (t->matched < 0 || end < *ret_end || (end == *ret_end && begin < *ret_begin)) {
            t->matched = i;
            *ret_begin = begin;
            *ret_end = end;
        }
    }
    return t->matched >= 0;
}

/* Bytes at the end of the held text that are a proper prefix of some stop string. */
static size_t
held_back(const struct choice_text *t)
{
    size_t longest = 0;

    for (int i = 0; i < t->n_stop; i++) {
        size_t most = t->stop[i].size - 1;

        if (most > t->held.size_bytes)
            most = t->held.size_bytes;
        for (size_t n = most; n > longest; n--)
            if (memcmp(t->held.data + t->held.size_bytes - n, t->stop[i].text, n) == 0) {
                longest = n;
                break;
            }
    }
    return longest;
}

static void
emit(struct choice_text *t, size_t size, struct buf *out)
{
    buf_append(out, t->held.data, size);
    memmove(t->held.data, t->held.data + size, t->held.size_bytes - size);
    t->held.size_bytes -= size;
}

/* Detokenises into held. */
static void
hold(struct choice_text *t, int32_t token, bool flush)
{
    size_t size = 0;

    if (!flush)
        (void)tokenizer_bytes(t->detokenizer.tokenizer, token, &size);
    size_t bound = detokenizer_bound(size);
    char small[512], *text = bound <= sizeof small ? small : malloc(bound);

    if (text == NULL) {
        t->held.failed = true;
        return;
    }
    size = flush ? detokenizer_flush(&t->detokenizer, text, bound)
                 : detokenizer_push(&t->detokenizer, token, text, bound);
    buf_append(&t->held, text, size);
    if (text != small)
        free(text);
}

bool
choice_text_push(struct choice_text *t, int32_t token, struct buf *out)
{
    size_t begin = 0, end = 0;

    ASSERT(t->matched < 0);
    hold(t, token, false);
    if (t->held.size_bytes == 0)
        return false;
    if (find_stop(t, &begin, &end)) {
        emit(t, t->include_stop ? end : begin, out);
        return true;
    }
    emit(t, t->held.size_bytes - held_back(t), out);
    return false;
}

void
choice_text_flush(struct choice_text *t, struct buf *out)
{
    hold(t, 0, true);
    if (t->held.size_bytes)
        emit(t, t->held.size_bytes, out);
}
