/* choice_text: from sampled tokens to text a client may see: whole characters only, nothing of a
 * stop string, and nothing that might still become one. Pure but for the tokenizer it reads.
 * Thread: loop.                                             */
#ifndef DAEMON_CHOICE_TEXT_H
#define DAEMON_CHOICE_TEXT_H

#include "base/buf.h"
#include "model/tokenizer.h"
#include "proto/completion.h"

struct choice_text {
    struct detokenizer detokenizer;
    const struct completion_stop *stop; /* [n_stop], borrowed */
    int n_stop;
    bool include_stop; /* the stop string stays in the text */
    struct buf held;   /* text that may be the beginning of a stop string */
    int matched;       /* index of the stop string that was found, or -1 */
};

void choice_text_init(struct choice_text *text, const struct tokenizer *tokenizer,
                      bool skip_special, const struct completion_stop *stop, int n_stop,
                      bool include_stop);
void choice_text_fini(struct choice_text *text);
/* Appends what the token makes certain to out. True: a stop string is complete, `matched` says
 * which, and no more tokens may be pushed. */
bool choice_text_push(struct choice_text *text, int32_t token, struct buf *out);
/* The end without a stop string: what was held comes out, broken bytes as U+FFFD. */
void choice_text_flush(struct choice_text *text, struct buf *out);

#endif
