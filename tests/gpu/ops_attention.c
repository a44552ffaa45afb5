/* kv_write, attention and kv_copy_page: what one device wrote is read by its own attention. */
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "tests/gpu/ops_rig.h"

enum { MAX_SEQS = 40, LAYERS = 2, LAYER = 1, MAX_PAGES = 2048, QUICK_TOKENS = 300 };
#define BOUND_ATTENTION 1.2e-2 /* weights and result are rounded to BF16 */

struct heads {
    int heads, kv_heads, dim, page_tokens;
};

struct cache {
    struct rig rig;
    struct heads h;
    struct kv_cache kv[SIDES];
    size_t bytes[SIDES];
    int32_t pages[MAX_SEQS][MAX_PAGES];
    int n_taken; /* pages given to sequences so far */
};

static void
cache_open(struct cache *c, const struct heads *h, int max_rows, int n_pages)
{
    struct model_shape shape = {.vocab = 1009,
                                .hidden = 64,
                                .layers = LAYERS,
                                .heads = h->heads,
                                .kv_heads = h->kv_heads,
                                .head_dim = h->dim,
                                .intermediate = 64};
    struct device_limits limits = {.max_rows = max_rows,
                                   .max_sequences = MAX_SEQS,
                                   .max_outputs = 4,
                                   .n_states = 4,
                                   .max_step_pages = n_pages,
                                   .page_tokens = h->page_tokens};

    memset(c, 0, sizeof *c);
    rig_open(&c->rig, &shape, &limits);
    c->h = *h;
    for (int s = 0; s < SIDES; s++) {
        struct device *dev = c->rig.side[s].dev;

        c->bytes[s] = (size_t)n_pages * dev->ops->kv_page_bytes(dev, &shape, h->page_tokens);
        c->kv[s] = (struct kv_cache){dev->ops->alloc(dev, c->bytes[s]),
                                     n_pages,
                                     h->page_tokens,
                                     LAYERS,
                                     h->kv_heads,
                                     h->dim};
        ASSERT(c->kv[s].data);
    }
}

static void
cache_close(struct cache *c)
{
    for (int s = 0; s < SIDES; s++)
        c->rig.side[s].dev->ops->free(c->rig.side[s].dev, c->kv[s].data, c->bytes[s]);
    rig_close(&c->rig);
}

/* Pages for a sequence of that many tokens, strewn over the cache. */
static struct ops_seq
sequence(struct cache *c, int index, int context, int n_rows)
{
    int n = (context + n_rows + c->h.page_tokens - 1) / c->h.page_tokens;
    int n_pages = c->kv[HOST].n_pages;

    ASSERT(n <= MAX_PAGES && c->n_taken + n <= n_pages);
    for (int i = 0; i < n; i++, c->n_taken++)
        c->pages[index][i] = n_pages % 7 ? (int32_t)(c->n_taken * 7ll % n_pages) : c->n_taken;
    return (struct ops_seq){
        .n_rows = n_rows, .context = context, .pages = c->pages[index], .n_pages = n};
}

/* Writes random keys and values of a batch of sequences. */
static void
write_keys(struct cache *c, const struct ops_seq *seqs, int n_seqs, int n_decode)
{
    struct rig *rig = &c->rig;
    int64_t width = (int64_t)c->h.kv_heads * c->h.dim;

    rig_batch(rig, seqs, n_seqs, n_decode);
    struct twin *k = rig_twin(rig, CONTENT_ACTIVATION, rig->n_rows, width, 1.7f, 0);
    struct twin *v = rig_twin(rig, CONTENT_ACTIVATION, rig->n_rows, width, 1.7f, 0);
    rig_begin(rig, NULL, 0);
    for (int s = 0; s < SIDES; s++) {
        struct ops_side *side = &rig->side[s];
        rig_did(rig, s,
                side->dev->ops->kv_write(side->dev, &c->kv[s], LAYER, k->at[s], v->at[s],
                                         &side->view.batch, NULL));
    }
    rig_end(rig);
    rig_reset(rig);
}

/* The tokens before the step, a sequence at a time. */
static void
write_context(struct cache *c, const struct ops_seq *seqs, int n_seqs)
{
    for (int i = 0; i < n_seqs; i++) {
        struct ops_seq before = seqs[i];

        before.n_rows = before.context;
        before.context = 0;
        if (before.n_rows > 0)
            write_keys(c, &before, 1, 0);
    }
}

/* Writes the step's own keys and attends. Returns what CUDA computed, to be freed. */
static float *
attend(struct cache *c, const struct ops_seq *seqs, int n_seqs, int n_decode, const char *what)
{
    struct rig *rig = &c->rig;
    int64_t width = (int64_t)c->h.heads * c->h.dim, kv_width = (int64_t)c->h.kv_heads * c->h.dim;

    rig_batch(rig, seqs, n_seqs, n_decode);
    struct twin *k = rig_twin(rig, CONTENT_ACTIVATION, rig->n_rows, kv_width, 1.7f, 0);
    struct twin *v = rig_twin(rig, CONTENT_ACTIVATION, rig->n_rows, kv_width, 1.7f, 0);
    struct twin *q = rig_twin(rig, CONTENT_ACTIVATION, rig->n_rows, width, 3, 0);
    struct twin *out = rig_twin(rig, CONTENT_ACTIVATION, rig->n_rows, width, 0, 0);
    rig_begin(rig, NULL, 0);
    for (int s = 0; s < SIDES; s++) {
        struct ops_side *side = &rig->side[s];
        const struct device_ops *ops = side->dev->ops;
        rig_did(rig, s,
                ops->kv_write(side->dev, &c->kv[s], LAYER, k->at[s], v->at[s], &side->view.batch,
                              NULL));
        rig_did(rig, s,
                ops->attention(side->dev, out->at[s], q->at[s], &c->kv[s], LAYER, &rig->shape,
                               &side->view.batch, NULL));
    }
    rig_end(rig);
    ops_report(rig, "attention", twin_error(rig, out), BOUND_ATTENTION,
               "%s, heads %d/%d of %d, pages of %d", what, c->h.heads, c->h.kv_heads, c->h.dim,
               c->h.page_tokens);
    float *values = twin_values(rig, out, CUDA);
    rig_reset(rig);
    return values;
}

static void
check_decode(const struct heads *h)
{
    static const int contexts[] = {1, 15, 16, 255, 256, 257, 1000, 5000};
    struct cache *c = malloc(sizeof *c);
    struct ops_seq seqs[MAX_SEQS];
    int n = ops_options.quick ? 5 : 8;

    ASSERT(c);
    cache_open(c, h, ops_options.quick ? QUICK_TOKENS : 5001, 7000 / h->page_tokens + 17);
    for (int i = 0; i < n; i++)
        seqs[i] = sequence(c, i, contexts[i], 1);
    write_context(c, seqs, n);
    free(attend(c, seqs, n, n, "decode at 1 15 16 255 256 257 1000 5000"));
    /* Alone: the longest. Its own last key is written again. */
    free(attend(c, &seqs[n - 1], 1, 1, n == 8 ? "decode at 5000" : "decode at 256"));
    seqs[0].context = 0;
    free(attend(c, seqs, 1, 1, "decode at 0"));
    cache_close(c);
    free(c);
}

/* More rows than a backend's kernel for few takes, some of them in several pieces. */
static void
check_many(const struct heads *h)
{
    static const int contexts[] = {0, 1, 15, 16, 17, 100, 255, 256, 300, 254, 600, 1000};
    int kinds = ops_options.quick ? 9 : 12;
    struct cache *c = malloc(sizeof *c);
    struct ops_seq seqs[MAX_SEQS];

    ASSERT(c);
    cache_open(c, h, 1001, 10000 / h->page_tokens + 57);
    for (int i = 0; i < MAX_SEQS; i++)
        seqs[i] = sequence(c, i, contexts[i % kinds], 1);
    write_context(c, seqs, MAX_SEQS);
    free(attend(c, seqs, MAX_SEQS, MAX_SEQS, "decode of 40 at 0 to 300 or 1000"));
    free(attend(c, seqs, 33, 33, "decode of 33 at 0 to 300 or 1000"));
    free(attend(c, &seqs[1], 8, 8, "decode of 8 at 1 to 300"));
    cache_close(c);
    free(c);
}

static void
check_prefill(const struct heads *h)
{
    static const struct {
        int rows, context;
    } part[] = {{1, 40}, {1, 0},   {2, 7},   {17, 512},  {63, 0},    {64, 7},
                {65, 0}, {129, 7}, {300, 0}, {130, 512}, {300, 512}, {1, 512}};
    struct cache *c = malloc(sizeof *c);
    struct ops_seq seqs[MAX_SEQS];
    int n = ops_options.quick ? 5 : 12;

    ASSERT(c);
    cache_open(c, h, 1200, 3700 / h->page_tokens + 17);
    for (int i = 0; i < n; i++)
        seqs[i] = sequence(c, i, part[i].context, part[i].rows);
    write_context(c, seqs, n);
    free(attend(c, seqs, n, 1, "1 decode + prefill 1..300 at 0 7 512"));
    free(attend(c, &seqs[n - 2], 1, 0,
                ops_options.quick ? "prefill 17 at 512" : "prefill 300 at 512"));
    cache_close(c);
    free(c);
}

static void
check_copy(const struct heads *h)
{
    struct cache *c = malloc(sizeof *c);
    bool moved = true;

    ASSERT(c);
    cache_open(c, h, 64, 16);
    struct ops_seq seq = sequence(c, 0, h->page_tokens / 2, 1);
    write_context(c, &seq, 1);
    c->rig.seed = 7;
    float *before = attend(c, &seq, 1, 1, "decode before a page is copied");
    int32_t from = c->pages[0][0], to = (from + 5) % 16;
    for (int s = 0; s < SIDES; s++) {
        struct device *dev = c->rig.side[s].dev;
        rig_did(&c->rig, s, dev->ops->kv_copy_page(dev, &c->kv[s], to, from, NULL));
    }
    c->pages[0][0] = to;
    c->rig.seed = 7;
    float *after = attend(c, &seq, 1, 1, "decode from the copy");
    moved = memcmp(before, after, (size_t)h->heads * (size_t)h->dim * sizeof *before) == 0;
    ops_report_fact(&c->rig, "kv_copy_page", moved, "heads %d/%d of %d, pages of %d: same bits",
                    h->heads, h->kv_heads, h->dim, h->page_tokens);
    free(before);
    free(after);
    cache_close(c);
    free(c);
}

void
ops_attention(void)
{
    static const struct heads shapes[] = {
        {8, 2, 128, 16},  {4, 1, 80, 16},  {8, 8, 64, 16},  {8, 4, 64, 16},  {8, 2, 64, 32},
        {8, 1, 64, 16},   {16, 1, 64, 16}, {8, 8, 128, 64}, {8, 4, 128, 16}, {8, 1, 128, 16},
        {12, 1, 128, 16}, {4, 4, 256, 16}, {8, 4, 256, 16}, {8, 2, 256, 16}, {8, 1, 256, 128},
        {16, 1, 256, 16}, {6, 2, 48, 16},  {4, 2, 96, 16},  {8, 2, 128, 5},  {2, 1, 130, 16},
        {2, 1, 512, 16}};
    int n = ops_options.quick ? 2 : (int)(sizeof shapes / sizeof *shapes);

    for (int i = 0; i < n; i++) {
        if (ops_wanted("attention")) {
            check_decode(&shapes[i]);
            if (shapes[i].dim == 128)
                check_many(&shapes[i]);
            check_prefill(&shapes[i]);
        }
        if (ops_wanted("kv_copy_page"))
            check_copy(&shapes[i]);
    }
}
