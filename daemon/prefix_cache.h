/* prefix_cache: KV pages of prompts, kept after their sequences end, for prompts that begin alike.
 *
 * An entry is a span of tokens behind the span of its parent, the pages that hold their KV, and for
 * a model with Engram layers a state slot with the convolution's ring as it was at the span's end.
 * The ring is not in the KV cache, and it cannot be had by computing a few tokens again: their
 * hidden states depend on the ring before them, and so on back to the first token. So it is copied
 * (forward_copy_state) when the span has been computed: (kernel - 1) * max_order * hidden floats for
 * each Engram layer and span; serving.c says how many there may be.
 *
 * A span ends at multiples of prefill_chunk of its sequence (and of a page): what is behind it is
 * computed in the same chunks as without reuse, with the same result, bit for bit. Entries are
 * found by a hash of parent and tokens, and compared token by token.
 *
 * The entries form trees in one list, most recent first:
 * P1  a parent stands before its children, so the last entry has none.
 * P2  each page of an entry has the cache as an owner, and the sequences that use it. Who uses an
 *     entry's pages uses its parent's too, so a child of an idle entry (no owner but the cache) is
 *     idle: going from the end, the first idle entry has no children.
 * P3  only idle entries are evicted. A reference held by who uses the pages therefore stays good,
 *     but for prefix_cache_forget, after which it fails by its generation.
 * P4  an entry is found when the step that computed it has ended well. The pages and the state of
 *     one that is evicted have no step in flight: later writes to them are issued behind it.
 * Bookkeeping only. Thread: engine.                                                             */
#ifndef DAEMON_PREFIX_CACHE_H
#define DAEMON_PREFIX_CACHE_H

#include <stdbool.h>
#include <stdint.h>

#include "gpu/kv_pages.h"

struct prefix_cache;

struct prefix_ref {
    int32_t entry; /* < 0: none, the parent of first spans */
    uint32_t gen;
};

struct prefix_options {
    struct kv_pages *pages; /* borrowed */
    int span_tokens, span_pages;
    int first_state, n_states; /* state slots that are the cache's own */
};

struct prefix_cache *prefix_cache_new(const struct prefix_options *options); /* NULL: no memory */
struct prefix_cache *prefix_cache_free(struct prefix_cache *cache); /* pages go as they are */

/* How many spans of the prompt there are, of steps up to done_step; the last of them. They become
 * the most recent. engram_off: prompts with and without have nothing in common. */
int prefix_cache_find(struct prefix_cache *cache, const int32_t *tokens, int n_tokens,
                      bool engram_off, uint64_t done_step, struct prefix_ref *ret_last);
/* The pages of an entry and those before it, each with one more owner: [n_spans * span_pages]. */
void prefix_cache_share(struct prefix_cache *cache, struct prefix_ref last, int n_spans,
                        int32_t *ret_pages);
/* State slot of an entry; -1: it has none. */
int prefix_cache_state(const struct prefix_cache *cache, struct prefix_ref ref);
/* Adds a span that `step` computes, of a sequence that uses the parent's pages. False: it is there
 * already, the parent is gone, or no state is to be had. */
bool prefix_cache_add(struct prefix_cache *cache, struct prefix_ref parent, const int32_t *tokens,
                      bool engram_off, const int32_t *pages, uint64_t step, bool with_state,
                      struct prefix_ref *ret_ref);
/* Gives back the pages of the least recent idle entry; false: there is none. */
bool prefix_cache_evict(struct prefix_cache *cache);
/* This step failed: what it and steps behind it were to compute is not there. */
void prefix_cache_forget(struct prefix_cache *cache, uint64_t step);
int prefix_cache_idle_pages(const struct prefix_cache *cache);

#endif
