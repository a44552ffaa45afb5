#include "daemon/batch.h"

#include "base/check.h"

struct cursor {
    struct step_buffer *b;
    const struct batch_options *options;
    struct batch_use *uses;
    const struct sequence *sequences;
    const int *order;
    int n_order;
    int n_rows, n_seqs, n_pages, n_outputs;
};

static void
put_output(struct cursor *c, int row, const struct sample_params *params, int slot, int choice,
           int prompt_index)
{
    ASSERT(c->n_outputs < c->b->max_outputs);
    c->b->outputs[c->n_outputs] = (struct forward_output){.row = row, .params = *params};
    c->uses[c->n_outputs++] =
        (struct batch_use){.slot = slot, .choice = choice, .prompt_index = prompt_index};
}

static int
slot_of_choice(const struct cursor *c, const struct job *job, int choice)
{
    for (int i = 0; i < c->n_order; i++) {
        const struct sequence *s = &c->sequences[c->order[i]];

        if (s->job == job && s->choice == choice)
            return c->order[i];
    }
    return -1;
}

/* The parameters of the token that choice, which is in `slot`, samples next. */
static struct sample_params
sampling(const struct sequence *s, int choice, int slot)
{
    int64_t n_before = s->n_generated + s->n_pending;
    const struct job *job = s->job;
    struct sample_params p = job->params;

    p.seed = job->seed[choice];
    p.draw = (uint64_t)n_before;
    p.forced = -1;
    p.slot = slot;
    p.replay = job->replay ? &job->replay[n_before] : NULL;
    p.counts = s->counts;
    p.n_counts = s->n_counts;
    if (n_before < job->min_tokens) {
        p.banned = job->stop_ids;
        p.n_banned = job->n_stop_ids;
    }
    return p;
}

static int
pages_of(const struct cursor *c, const struct sequence *s, int n_rows)
{
    return (s->context + n_rows + c->options->page_tokens - 1) / c->options->page_tokens;
}

/* Whether the step's page lists have room: sequences that share pages each list them. */
static bool
fits(const struct cursor *c, const struct sequence *s, int n_rows)
{
    return c->n_pages + pages_of(c, s, n_rows) <= c->b->max_pages;
}

static void
put_sequence(struct cursor *c, const struct sequence *s, int slot, int n_rows)
{
    struct step_buffer *b = c->b;
    int n_pages = pages_of(c, s, n_rows);

    ASSERT(c->n_seqs < b->max_sequences && c->n_rows + n_rows <= b->max_rows);
    ASSERT(n_pages <= s->n_pages && c->n_pages + n_pages <= b->max_pages);
    b->seq[c->n_seqs] = (struct batch_seq){
        .first_row = c->n_rows,
        .n_rows = n_rows,
        .context = s->context,
        .state_slot = slot,
        .engram_off = s->job->engram_off,
        .n_pages = n_pages,
        .pages = b->pages + c->n_pages,
    };
    for (int i = 0; i < n_pages; i++)
        b->pages[c->n_pages++] = s->pages[i];
    c->n_seqs++;
}

static void
put_row(struct cursor *c, int32_t token, int32_t position)
{
    c->b->token[c->n_rows] = token;
    c->b->position[c->n_rows] = position;
    c->b->row_seq[c->n_rows] = c->n_seqs - 1;
    if (c->b->skip)
        c->b->skip[c->n_rows] = (uint8_t)c->b->seq[c->n_seqs - 1].engram_off;
    if (c->b->awaits)
        c->b->awaits[c->n_rows] = -1;
    c->n_rows++;
}

static void
put_decode(struct cursor *c, const struct sequence *s, int slot)
{
    const struct engram_shape *engram = &c->options->shape->engram;
    struct sample_params params = sampling(s, s->choice, slot);
    bool pending = s->n_pending > 0;
    int row = c->n_rows;

    put_sequence(c, s, slot, 1);
    put_output(c, row, &params, slot, s->choice, 0);
    put_row(c, pending ? TOKEN_OF_SLOT : s->next_token, s->context);
    if (!c->options->compressed)
        return;
    int32_t *ids = c->b->ngram_ids + row * engram->max_order;

    for (int k = 0; k < engram->max_order; k++)
        ids[k] = !pending ? s->recent[k] : k ? s->recent[k - 1] : engram->pad_id;
    if (pending && !s->job->engram_off) {
        ASSERT(s->n_pending == 1); /* those before it are in recent */
        c->b->awaits[row] = s->pending_output;
        c->b->n_awaits++;
    }
}

static void
put_chunk(struct cursor *c, const struct sequence *s, int slot, int n_rows)
{
    const struct engram_shape *engram = &c->options->shape->engram;
    const struct job *job = s->job;
    bool fresh = s->n_generated == 0; /* else all of the prompt's outputs have been taken */

    put_sequence(c, s, slot, n_rows);
    for (int i = 0; i < n_rows; i++) {
        int at = s->context + i;

        if (c->options->compressed)
            for (int k = 0; k < engram->max_order; k++)
                c->b->ngram_ids[c->n_rows * engram->max_order + k] =
                    at >= k ? c->options->compressed[sequence_token(s, at - k)] : engram->pad_id;
        if (fresh && job->score_prompt && at + 1 < job->n_prompt) {
            struct sample_params score = {.forced = job->prompt[at + 1],
                                          .slot = -1,
                                          .n_top = job->params.n_top,
                                          .temperature = 1,
                                          .top_p = 1,
                                          .repetition_penalty = 1};

            put_output(c, c->n_rows, &score, slot, -1, at + 1);
        }
        if (fresh && at + 1 == job->n_prompt && job->max_tokens > 0)
            for (int choice = 0; choice < job->n_choices; choice++) {
                int of = slot_of_choice(c, job, choice);
                struct sample_params params = sampling(s, choice, of);

                put_output(c, c->n_rows, &params, of, choice, 0);
            }
        put_row(c, sequence_token(s, at), at);
    }
}

int
batch_compose(struct step_buffer *b, const struct sequence *sequences, const int *order,
              int n_order, const struct batch_options *options, struct batch_use *uses)
{
    struct cursor c = {.b = b,
                       .options = options,
                       .uses = uses,
                       .sequences = sequences,
                       .order = order,
                       .n_order = n_order};
    int room = options->prefill_chunk;

    b->n_awaits = 0;
    for (int i = 0; i < n_order; i++)
        if (sequence_may_decode(&sequences[order[i]]) && fits(&c, &sequences[order[i]], 1))
            put_decode(&c, &sequences[order[i]], order[i]);
    int n_decode = c.n_rows;

    for (int i = 0; i < n_order; i++) {
        const struct sequence *s = &sequences[order[i]];

        if (s->phase != SEQUENCE_PREFILL)
            continue;
        /* Chunks end at multiples of the chunk size of the sequence itself, never where room ends.
         */
        int n_rows = sequence_chunk_rows(s, options->prefill_chunk);

        if (n_rows > room || !fits(&c, s, n_rows))
            break;
        room -= n_rows;
        put_chunk(&c, s, order[i], n_rows);
    }
    b->forward.batch = (struct batch){
        .n_rows = c.n_rows,
        .n_seqs = c.n_seqs,
        .n_decode = n_decode,
        .token = b->token,
        .position = b->position,
        .row_seq = b->row_seq,
        .seq = b->seq,
    };
    b->forward.n_outputs = c.n_outputs;
    b->forward.outputs = b->outputs;
    b->forward.results = b->results;
    b->forward.logits = NULL;
    return c.n_rows;
}
