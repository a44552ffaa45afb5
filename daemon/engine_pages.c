/* engine_pages: who has the KV pages. Thread: engine. */
#include "base/check.h"
#include "daemon/engine_state.h"

bool
engine_make_room(struct engine *e, int n)
{
    int n_free = kv_pages_n_free(e->pages);

    if (n_free >= n)
        return true;
    if (e->prefix == NULL || n_free + prefix_cache_idle_pages(e->prefix) < n)
        return false;
    while (kv_pages_n_free(e->pages) < n) {
        bool evicted = prefix_cache_evict(e->prefix);

        ASSERT(evicted); /* P2 */
    }
    return true;
}

int
engine_used_pages(const struct engine *e)
{
    return kv_pages_n(e->pages) - kv_pages_n_free(e->pages) -
           (e->prefix ? prefix_cache_idle_pages(e->prefix) : 0);
}

static bool
has_state(const struct engine *e, const struct job *job)
{
    return e->options.shape->engram.n_layers > 0 && !job->engram_off;
}

int
engine_find_prefix(struct engine *e, struct job *job, struct prefix_ref *ret_ref)
{
    bool told = job->parked && job->parked[0].n_generated > 0;

    *ret_ref = (struct prefix_ref){.entry = -1};
    if (e->prefix == NULL || (job->score_prompt && !told))
        return 0;
    int n = prefix_cache_find(e->prefix, job->prompt, job->n_prompt - 1, job->engram_off,
                              e->done_step, ret_ref);

    if (n)
        prefix_cache_share(e->prefix, *ret_ref, n, e->found_pages);
    return n;
}

void
engine_use_prefix(struct engine *e, struct sequence *s, struct prefix_ref ref, int n_spans)
{
    int n_pages = n_spans * e->span_pages;

    ASSERT(s->phase == SEQUENCE_PREFILL && s->context == 0);
    if (n_spans == 0)
        return;
    for (int i = 0; i < n_pages; i++) {
        ASSERT(s->pages[i] < 0);
        s->pages[i] = e->found_pages[i];
    }
    s->context = n_pages * e->batch.page_tokens;
    s->prefix = ref;
    s->n_spans = n_spans;
    if (has_state(e, s->job))
        (void)forward_copy_state(e->options.forward, (int)(s - e->sequences),
                                 prefix_cache_state(e->prefix, ref));
}

void
engine_give_back_prefix(struct engine *e, int n_spans)
{
    for (int i = 0; i < n_spans * e->span_pages; i++)
        kv_pages_give(e->pages, e->found_pages[i]);
}

void
engine_keep_prefix(struct engine *e, struct sequence *s)
{
    const struct job *job = s->job;
    int n = s->n_spans, span = e->span_pages * e->batch.page_tokens;
    struct prefix_ref parent = n ? s->prefix : (struct prefix_ref){.entry = -1};

    /* Only behind what it uses of the cache itself (P2). */
    if (e->prefix == NULL || s->context > job->n_prompt || s->context != (n + 1) * (int64_t)span ||
        !prefix_cache_add(e->prefix, parent, job->prompt + (int64_t)n * span, job->engram_off,
                          s->pages + (int64_t)n * e->span_pages, s->last_step, has_state(e, job),
                          &s->prefix))
        return;
    s->n_spans++;
    if (has_state(e, job))
        (void)forward_copy_state(e->options.forward, prefix_cache_state(e->prefix, s->prefix),
                                 (int)(s - e->sequences));
}

/* A page for the next row of a sequence: false when it has to wait for one. May preempt any job
 * that is not older than its own, its own included. */
static bool
give_page(struct engine *e, struct sequence *s)
{
    const struct job *job = s->job;

    while (!engine_make_room(e, 1)) {
        if (e->n_draining)
            return false; /* there are pages to come (E6) */

        struct job *youngest = e->sequences[e->order[e->n_order - 1]].job;

        if (youngest == e->sequences[e->order[0]].job) {
            /* Alone: admit has seen that all its pages are there. */
            ASSERT(!"a job alone has its pages");
            return false;
        }
        engine_preempt(e, youngest);
        if (youngest == job)
            return false;
    }
    return sequence_grow(s, e->pages, e->batch.page_tokens) == 0;
}

void
engine_give_pages(struct engine *e)
{
    for (int i = 0; i < e->n_order; i++) {
        struct sequence *s = &e->sequences[e->order[i]];

        if (sequence_wants_row(s) && !sequence_may_decode(s) && !give_page(e, s))
            return;
    }
}
