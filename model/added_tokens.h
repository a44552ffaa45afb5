/* added_tokens: the tokens that are found in text before anything else is done with it.
 *
 * Two sets, as in the library: those matched on the raw text, and (normalized) those matched, in
 * their normalised form, on the normalised text between them. Each finds the leftmost match, the
 * longest of those that begin there; a search takes at most ADDED_MAX_BYTES steps per byte of text.
 * Thread: read-only once built. */
#ifndef MODEL_ADDED_TOKENS_H
#define MODEL_ADDED_TOKENS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "model/text_normalizer.h"
#include "model/token_table.h"

enum { ADDED_MAX_BYTES = 1024 }; /* of one token's text */

struct added_node {
    uint32_t first_child, next_sibling; /* 0: none (node 0 is the root) */
    int32_t token;                      /* index in token; -1: no token ends here */
    uint8_t byte;
};

/* A trie over the texts of one set. */
struct added_trie {
    struct added_node *node;
    uint32_t count, capacity;
    uint32_t root_child[256];
};

struct added_token {
    int32_t id;
    bool single_word; /* not next to a word character */
    bool lstrip;      /* takes the white space in front of it */
    bool rstrip;
};

struct added_tokens {
    struct added_token *token;
    size_t count, capacity;
    struct added_trie raw, normalized;
};

/* The "added_tokens" of tokenizer.json: enters them in table (ids below limit) and in the sets.
 * -EBADMSG, -ENOTSUP naming the token; -ENOMEM. */
int added_tokens_parse(struct added_tokens *added, struct json_span json,
                       const struct text_normalizer *normalizer, struct token_table *table,
                       int64_t limit, struct err *err);
void added_tokens_release(struct added_tokens *added);

/* Called for each part of a text in order: id < 0: text between tokens (never empty), else a token.
 * Below 0 ends the search. */
typedef int added_fn(void *arg, int32_t id, const char *text, size_t size_bytes, struct err *err);
/* 0, or what fn returned below 0. trie: &added->raw or &added->normalized. */
int added_tokens_split(const struct added_tokens *added, const struct added_trie *trie,
                       const char *text, size_t size_bytes, added_fn *fn, void *arg,
                       struct err *err);

#endif
