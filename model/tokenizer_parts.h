/* tokenizer_parts: what a tokenizer is made of. Private to tokenizer*.c, detokenizer.c,
 * compressed_ids.c. */
#ifndef MODEL_TOKENIZER_PARTS_H
#define MODEL_TOKENIZER_PARTS_H

#include "model/added_tokens.h"
#include "model/bpe.h"
#include "model/pretokenizer.h"
#include "model/text_normalizer.h"
#include "model/token_table.h"

struct tokenizer {
    struct token_table table;
    struct text_normalizer normalizer;
    struct added_tokens added;
    struct pretokenizer pretokenizer;
    struct bpe bpe;
    struct token_ids before, after; /* what the post-processor puts around a text */
};

/* Fills a zeroed tokenizer from the text of tokenizer.json. What was filled stays on failure, for
 * the caller to release. -EBADMSG, -ENOTSUP, -ENOMEM. */
int tokenizer_json_read(struct tokenizer *tokenizer, const char *json, size_t size_bytes, int vocab,
                        struct err *err);

#endif
