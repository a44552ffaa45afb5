/* engine_pages: who has the KV pages. Thread: engine. */
#include "base/check.h"
#include "daemon/engine_state.h"

bool
engine_make_room(struct engine *e, int n)
{
    return kv_pages_n_free(e->pages) >= n;
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
