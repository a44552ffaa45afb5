/* pretokenizer: cuts normalised text into the pieces that BPE works on, each by itself.
 *
 * A list of stages; each cuts every piece the one before it made, seeing nothing outside that piece
 * (so a look-ahead ends where the piece does). Pieces are handed on as they are found, nothing is
 * collected. Source of the rules: NormalizedString::split and the pre_tokenizers of the tokenizers
 * library. Thread: read-only once built; pretokenizer_run may run on many threads at once. */
#ifndef MODEL_PRETOKENIZER_H
#define MODEL_PRETOKENIZER_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"
#include "model/json_span.h"
#include "model/split_pattern.h"

enum { PRETOKENIZER_MAX_STAGES = 32 };

/* What becomes of a match and its neighbours. */
enum split_behavior {
    SPLIT_ISOLATED,             /* a piece of its own */
    SPLIT_REMOVED,              /* dropped */
    SPLIT_MERGED_WITH_PREVIOUS, /* the end of the piece before it */
    SPLIT_MERGED_WITH_NEXT,     /* the beginning of the piece after it */
    SPLIT_CONTIGUOUS,           /* neighbouring matches are one piece */
};

struct pretoken_stage {
    struct split_pattern *pattern; /* NULL: put a space in front of pieces that lack one */
    enum split_behavior behavior;
    bool invert; /* what lies between the matches counts as the match */
};

struct pretokenizer {
    struct pretoken_stage stage[PRETOKENIZER_MAX_STAGES];
    int n_stages;
};

/* The "pre_tokenizer" of tokenizer.json: Split, Digits, ByteLevel last, and Sequences of them.
 * -ENOTSUP: another kind, named; -EBADMSG, -ENOMEM. *p is released by the caller also on failure.
 */
int pretokenizer_parse(struct pretokenizer *p, struct json_span json, struct err *err);
void pretokenizer_release(struct pretokenizer *p);

/* Called for each piece in order (never empty). Below 0 ends the run. */
typedef int pretoken_fn(void *arg, const char *piece, size_t size_bytes, struct err *err);

/* Cuts text (well-formed UTF-8). What fn returned below 0, or -ELOOP, -ENOMEM (split_pattern.h). */
int pretokenizer_run(const struct pretokenizer *p, struct split_matcher *matcher, const char *text,
                     size_t size_bytes, pretoken_fn *fn, void *arg, struct err *err);

#endif
