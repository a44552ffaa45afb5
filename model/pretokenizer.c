/* pretokenizer: see pretokenizer.h. */
#include "model/pretokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "base/utf8_scan.h"

struct pretoken_run {
    const struct pretokenizer *p;
    struct split_matcher *matcher;
    pretoken_fn *fn;
    void *arg;
    struct err *err;
};

static int run_stage(struct pretoken_run *run, int n, const char *text, size_t size_bytes);

/* A part of the piece that a stage is cutting. */
struct part {
    size_t start, end;
    bool matched;
};

/* One stage at work on one piece. */
struct cut {
    struct pretoken_run *run;
    int stage;
    const char *text;
    struct part held; /* not handed on yet, since the next part may join it */
    bool holds;
};

static int
cut_emit(struct cut *cut, struct part part)
{
    return run_stage(cut->run, cut->stage + 1, cut->text + part.start, part.end - part.start);
}

static int
cut_flush(struct cut *cut)
{
    if (!cut->holds)
        return 0;
    cut->holds = false;
    return cut_emit(cut, cut->held);
}

/* Whether part, a neighbour of the held one, joins it. */
static bool
cut_joins(enum split_behavior behavior, struct part held, struct part part)
{
    switch (behavior) {
    case SPLIT_MERGED_WITH_PREVIOUS:
        return part.matched && !held.matched;
    case SPLIT_MERGED_WITH_NEXT:
        return !part.matched && held.matched;
    case SPLIT_CONTIGUOUS:
        return part.matched == held.matched;
    default:
        return false;
    }
}

static int
cut_part(struct cut *cut, struct part part)
{
    const struct pretoken_stage *stage = &cut->run->p->stage[cut->stage];
    part.matched ^= stage->invert;
    if (stage->behavior == SPLIT_ISOLATED)
        return cut_emit(cut, part);
    if (stage->behavior == SPLIT_REMOVED)
        return part.matched ? 0 : cut_emit(cut, part);
    if (cut->holds && cut_joins(stage->behavior, cut->held, part)) {
        cut->held.end = part.end;
        cut->held.matched = part.matched;
        return 0;
    }
    int r = cut_flush(cut);
    cut->held = part;
    cut->holds = true;
    return r;
}

/* All matches from left to right and what lies between them. An empty match counts, but not right
 * behind the match before it. */
static int
cut_piece(struct pretoken_run *run, int n, const char *text, size_t size_bytes)
{
    struct cut cut = {.run = run, .stage = n, .text = text};
    size_t from = 0, done = 0, last_end = SIZE_MAX, start, end;
    int r = 0;
    while (from <= size_bytes) {
        r = split_pattern_find(run->p->stage[n].pattern, run->matcher, text, size_bytes, from,
                               &start, &end, run->err);
        if (r <= 0)
            break;
        if (start == end && end == last_end) {
            uint32_t cp;
            from += from < size_bytes ? (size_t)utf8_next(text + from, size_bytes - from, &cp) : 1;
            continue;
        }
        r = done < start ? cut_part(&cut, (struct part){done, start, false}) : 0;
        if (r == 0)
            r = cut_part(&cut, (struct part){start, end, true});
        if (r < 0)
            return r;
        from = done = last_end = end;
    }
    if (r >= 0 && done < size_bytes)
        r = cut_part(&cut, (struct part){done, size_bytes, false});
    return r < 0 ? r : cut_flush(&cut);
}

static int
prefix_piece(struct pretoken_run *run, int n, const char *text, size_t size_bytes)
{
    if (text[0] == ' ')
        return run_stage(run, n + 1, text, size_bytes);
    char *spaced = malloc(size_bytes + 1);
    if (!spaced)
        return err_errno(run->err, ENOMEM, "a piece of %zu bytes", size_bytes);
    spaced[0] = ' ';
    memcpy(spaced + 1, text, size_bytes);
    int r = run_stage(run, n + 1, spaced, size_bytes + 1);
    free(spaced);
    return r;
}

static int
run_stage(struct pretoken_run *run, int n, const char *text, size_t size_bytes)
{
    if (size_bytes == 0)
        return 0;
    if (n == run->p->n_stages)
        return run->fn(run->arg, text, size_bytes, run->err);
    if (!run->p->stage[n].pattern)
        return prefix_piece(run, n, text, size_bytes);
    return cut_piece(run, n, text, size_bytes);
}

int
pretokenizer_run(const struct pretokenizer *p, struct split_matcher *matcher, const char *text,
                 size_t size_bytes, pretoken_fn *fn, void *arg, struct err *err)
{
    struct pretoken_run run = {p, matcher, fn, arg, err};
    return run_stage(&run, 0, text, size_bytes);
}

void
pretokenizer_release(struct pretokenizer *p)
{
    for (int i = 0; i < p->n_stages; i++)
        p->stage[i].pattern = split_pattern_free(p->stage[i].pattern);
    p->n_stages = 0;
}
