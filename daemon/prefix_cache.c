#include "daemon/prefix_cache.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"

enum { NONE = -1 };

struct entry {
    uint32_t gen;
    bool used, engram_off;
    int32_t parent; /* NONE: the first span */
    int n_children;
    int state;
    uint64_t hash, step;
    int32_t newer, older; /* in the list; older: next free one when not used */
    int32_t chain;        /* of its bucket */
};

struct prefix_cache {
    struct prefix_options options;
    struct entry *entries; /* [n] */
    int32_t *tokens;       /* [n, span_tokens] */
    int32_t *pages;        /* [n, span_pages] */
    int32_t *buckets;      /* [n_buckets] a power of two */
    int *states;           /* stack of free state slots */
    int n, n_buckets, n_states;
    int32_t newest, oldest, free;
};

struct prefix_cache *
prefix_cache_new(const struct prefix_options *options)
{
    struct prefix_cache *c = calloc(1, sizeof *c);

    if (c == NULL)
        return NULL;
    c->options = *options;
    c->n = kv_pages_n(options->pages) / options->span_pages;
    c->n_states = options->n_states;
    for (c->n_buckets = 16; c->n_buckets < 2 * c->n;)
        c->n_buckets *= 2;
    size_t n = (size_t)c->n + 1;

    c->entries = calloc(n, sizeof *c->entries);
    c->tokens = calloc(n, (size_t)options->span_tokens * sizeof *c->tokens);
    c->pages = calloc(n, (size_t)options->span_pages * sizeof *c->pages);
    c->buckets = calloc((size_t)c->n_buckets, sizeof *c->buckets);
    c->states = calloc((size_t)c->n_states + 1, sizeof *c->states);
    if (!c->entries || !c->tokens || !c->pages || !c->buckets || !c->states) {
        return prefix_cache_free(c);
    }
    for (int i = 0; i < c->n_buckets; i++)
        c->buckets[i] = NONE;
    for (int i = 0; i < c->n_states; i++)
        c->states[i] = options->first_state + c->n_states - 1 - i;
    for (int i = 0; i < c->n; i++)
        c->entries[i].older = i + 1 < c->n ? i + 1 : NONE;
    c->free = c->n ? 0 : NONE;
    c->newest = c->oldest = NONE;
    return c;
}

/* ------------------------------------------------------------------ list and buckets */

static void
unlink_entry(struct prefix_cache *c, int32_t at)
{
    struct entry *e = &c->entries[at];

    *(e->newer == NONE ? &c->newest : &c->entries[e->newer].older) = e->older;
    *(e->older == NONE ? &c->oldest : &c->entries[e->older].newer) = e->newer;
}

/* Behind `newer`; NONE: in front of all. */
static void
link_entry(struct prefix_cache *c, int32_t at, int32_t newer)
{
    struct entry *e = &c->entries[at];

    e->newer = newer;
    e->older = newer == NONE ? c->newest : c->entries[newer].older;
    *(e->newer == NONE ? &c->newest : &c->entries[e->newer].older) = at;
    *(e->older == NONE ? &c->oldest : &c->entries[e->older].newer) = at;
}

/* The entry and those before it, the first span to the very front (P1). */
static void
touch(struct prefix_cache *c, int32_t at)
{
    for (; at != NONE; at = c->entries[at].parent) {
        unlink_entry(c, at);
        link_entry(c, at, NONE);
    }
}

static uint64_t
hash_span(const struct prefix_cache *c, int32_t parent, bool engram_off, const int32_t *tokens)
{
    uint64_t h = parent == NONE ? 0x9e3779b97f4a7c15u + engram_off : c->entries[parent].hash;

    for (int i = 0; i < c->options.span_tokens; i++) {
        h = (h ^ (uint32_t)tokens[i]) * 0xff51afd7ed558ccdu;
        h ^= h >> 32;
    }
    return h;
}

static int32_t *
bucket_of(const struct prefix_cache *c, uint64_t hash)
{
    return &c->buckets[hash & (uint64_t)(c->n_buckets - 1)];
}

static int32_t
find_span(const struct prefix_cache *c, int32_t parent, bool engram_off, const int32_t *tokens)
{
    size_t span = (size_t)c->options.span_tokens;
    uint64_t hash = hash_span(c, parent, engram_off, tokens);

    for (int32_t at = *bucket_of(c, hash); at != NONE; at = c->entries[at].chain) {
        const struct entry *e = &c->entries[at];

        if (e->hash == hash && e->parent == parent && e->engram_off == engram_off &&
            memcmp(c->tokens + (size_t)at * span, tokens, span * sizeof *tokens) == 0)
            return at;
    }
    return NONE;
}

static int32_t *
pages_of(const struct prefix_cache *c, int32_t at)
{
    return c->pages + (size_t)at * (size_t)c->options.span_pages;
}

static bool
is_idle(const struct prefix_cache *c, int32_t at)
{
    return kv_pages_owners(c->options.pages, *pages_of(c, at)) == 1;
}

static bool
is_good(const struct prefix_cache *c, struct prefix_ref ref)
{
    return ref.entry < 0 || (c->entries[ref.entry].used && c->entries[ref.entry].gen == ref.gen);
}

static void
remove_entry(struct prefix_cache *c, int32_t at)
{
    struct entry *e = &c->entries[at];
    int32_t *link = bucket_of(c, e->hash);

    ASSERT(e->used && e->n_children == 0);
    while (*link != at)
        link = &c->entries[*link].chain;
    *link = e->chain;
    unlink_entry(c, at);
    if (e->parent != NONE)
        c->entries[e->parent].n_children--;
    for (int i = 0; i < c->options.span_pages; i++)
        kv_pages_give(c->options.pages, pages_of(c, at)[i]);
    if (e->state >= 0)
        c->states[c->n_states++] = e->state;
    e->used = false;
    e->gen++;
    e->older = c->free;
    c->free = at;
}

struct prefix_cache *
prefix_cache_free(struct prefix_cache *c)
{
    if (c == NULL)
        return NULL;
    free(c->entries);
    free(c->tokens);
    free(c->pages);
    free(c->buckets);
    free(c->states);
    free(c);
    return NULL;
}

/* ------------------------------------------------------------------ the cache */

int
prefix_cache_find(struct prefix_cache *c, const int32_t *tokens, int n_tokens, bool engram_off,
                  uint64_t done_step, struct prefix_ref *ret_last)
{
    int span = c->options.span_tokens, n = 0;
    int32_t last = NONE;

    for (; (n + 1) * (int64_t)span <= n_tokens; n++) {
        int32_t at = find_span(c, last, engram_off, tokens + (size_t)n * (size_t)span);

        if (at == NONE || c->entries[at].step > done_step)
            break;
        last = at;
    }
    touch(c, last);
    *ret_last = (struct prefix_ref){last, last == NONE ? 0 : c->entries[last].gen};
    return n;
}

void
prefix_cache_share(struct prefix_cache *c, struct prefix_ref last, int n_spans, int32_t *ret_pages)
{
    int span = c->options.span_pages;

    ASSERT(is_good(c, last));
    for (int32_t at = last.entry; n_spans-- > 0; at = c->entries[at].parent) {
        ASSERT(at != NONE);
        for (int i = 0; i < span; i++) {
            kv_pages_share(c->options.pages, pages_of(c, at)[i]);
            ret_pages[n_spans * span + i] = pages_of(c, at)[i];
        }
    }
}

int
prefix_cache_state(const struct prefix_cache *c, struct prefix_ref ref)
{
    ASSERT(ref.entry >= 0 && is_good(c, ref));
    return c->entries[ref.entry].state;
}

bool
prefix_cache_add(struct prefix_cache *c, struct prefix_ref parent, const int32_t *tokens,
                 bool engram_off, const int32_t *pages, uint64_t step, bool with_state,
                 struct prefix_ref *ret_ref)
{
    size_t span = (size_t)c->options.span_tokens;

    if (!is_good(c, parent) || find_span(c, parent.entry, engram_off, tokens) != NONE)
        return false;
    while (c->free == NONE || (with_state && c->n_states == 0))
        if (!prefix_cache_evict(c))
            return false;
    ASSERT(is_good(c, parent)); /* in use (P3) */

    int32_t at = c->free;
    struct entry *e = &c->entries[at];

    c->free = e->older;
    *e = (struct entry){.gen = e->gen,
                        .used = true,
                        .engram_off = engram_off,
                        .parent = parent.entry,
                        .state = with_state ? c->states[--c->n_states] : -1,
                        .hash = hash_span(c, parent.entry, engram_off, tokens),
                        .step = step};
    memcpy(c->tokens + (size_t)at * span, tokens, span * sizeof *tokens);
    for (int i = 0; i < c->options.span_pages; i++) {
        kv_pages_share(c->options.pages, pages[i]);
        pages_of(c, at)[i] = pages[i];
    }
    e->chain = *bucket_of(c, e->hash);
    *bucket_of(c, e->hash) = at;
    if (e->parent != NONE)
        c->entries[e->parent].n_children++;
    link_entry(c, at, NONE);
    touch(c, at);
    *ret_ref = (struct prefix_ref){at, e->gen};
    return true;
}

bool
prefix_cache_evict(struct prefix_cache *c)
{
    for (int32_t at = c->oldest; at != NONE; at = c->entries[at].newer)
        if (is_idle(c, at)) {
            remove_entry(c, at);
            return true;
        }
    return false;
}

void
prefix_cache_forget(struct prefix_cache *c, uint64_t step)
{
    for (int32_t at = c->oldest, newer; at != NONE; at = newer) {
        newer = c->entries[at].newer;
        if (c->entries[at].step >= step) /* its children's are greater still */
            remove_entry(c, at);
    }
}

int
prefix_cache_idle_pages(const struct prefix_cache *c)
{
    int n = 0;

    for (int32_t at = c->oldest; at != NONE; at = c->entries[at].newer)
        n += is_idle(c, at) ? c->options.span_pages : 0;
    return n;
}
