/* text_normalizer: Unicode normalisation forms over whole texts, in linear time.
 *
 * By Unicode 9.0, as the tokenizers library does it (model/unicode9.h).
 * Decomposition and composition tables are utf8proc's. The canonical ordering is done here:
 * utf8proc sorts a run of combining marks by insertion, quadratic in text that a client chooses.
 * Thread: none; pure functions. */
#ifndef MODEL_TEXT_NORMALIZER_H
#define MODEL_TEXT_NORMALIZER_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "model/json_span.h"

enum { TEXT_NORMALIZER_MAX_FORMS = 8 };

enum text_form { TEXT_NFC, TEXT_NFD, TEXT_NFKC, TEXT_NFKD };

struct text_normalizer {
    enum text_form form[TEXT_NORMALIZER_MAX_FORMS]; /* one after the other */
    int n_forms;
};

/* The "normalizer" of tokenizer.json: null, one of the forms, Sequences of them. -ENOTSUP: another
 * kind, named; -EBADMSG. */
int text_normalizer_parse(struct text_normalizer *n, struct json_span json, struct err *err);

/* text: well-formed UTF-8. *ret_text is malloc'd, or NULL when the text is unchanged
 * (*ret_size_bytes is set either way). -ENOMEM. */
int text_normalize(const struct text_normalizer *n, const char *text, size_t size_bytes,
                   char **ret_text, size_t *ret_size_bytes, struct err *err);

/* Code points of one form, for those who go on with them. */
struct code_points {
    int32_t *cp;
    size_t count, capacity;
};
/* Replaces what is in out. -ENOMEM. */
int text_form_apply(enum text_form form, const char *text, size_t size_bytes,
                    struct code_points *out);

#endif
