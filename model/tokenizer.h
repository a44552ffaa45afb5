/* tokenizer: tokenizer.json of the byte-level BPE kind, exact against the Hugging Face library.
 *
 * Understands: BPE models (merges as strings or pairs, ignore_merges; byte_fallback, fuse_unk,
 * dropout, affixes refused), added tokens (special, lstrip, rstrip, single_word, normalized),
 * normalizers NFC/NFD/NFKC/NFKD/Sequence, pre_tokenizers Sequence/Split (Regex or String; Isolated,
 * Removed, MergedWithPrevious, MergedWithNext, Contiguous; invert)/ByteLevel/Digits,
 * post_processors ByteLevel/TemplateProcessing/Sequence, decoder ByteLevel. Anything else is an
 * error naming it (truncation and padding are the caller's matter and not looked at). Input that is
 * not UTF-8 is read as Python's bytes.decode("utf-8", "replace"). Thread: read-only after load;
 * encode may run on many threads at once.                            */
#ifndef MODEL_TOKENIZER_H
#define MODEL_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct tokenizer;

/* vocab: the model's vocab_size; ids at or past it in the file are an error. -EBADMSG: a file that
 * lies, field and token are named; -ENOTSUP: one that asks for what is not understood, named;
 * -ENOENT ...: as open(2); -ENOMEM. */
int tokenizer_load(struct tokenizer **ret_tokenizer, const char *path, int vocab, struct err *err);
int tokenizer_parse(struct tokenizer **ret_tokenizer, const char *json, size_t size, int vocab,
                    struct err *err);
struct tokenizer *tokenizer_free(struct tokenizer *tokenizer);

/* Encodes text without adding tokens. *ret_ids is malloc'd, the caller frees it. Returns the count;
 * -ENOMEM, -E2BIG past max_tokens (0: no limit), -ELOOP: a pattern of the file backtracks too much
 * on this text, -EILSEQ: a byte the file has no token for. Linear in the length of the text but for
 * the merges of one pre-token, which are n log n; a file whose patterns scan far ahead for each
 * short match can spoil that, those of known models do not. */
int64_t tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t size_bytes,
                         size_t max_tokens, int32_t **ret_ids, struct err *err);

/* What the file's post-processor puts around a single text (a BOS, say); tokenizer_encode does not.
 * The ids belong to the tokenizer. */
void tokenizer_template(const struct tokenizer *tokenizer, const int32_t **ret_before,
                        int *ret_n_before, const int32_t **ret_after, int *ret_n_after);

/* Highest id in the file + 1 (the model's vocab may be padded beyond it). */
int tokenizer_size(const struct tokenizer *tokenizer);
/* The bytes token `id` decodes to (NULL, 0 for an id the file does not have). An added token's
 * characters that are in the byte alphabet count as bytes too, as in the library's decoder. */
const char *tokenizer_bytes(const struct tokenizer *tokenizer, int id, size_t *ret_size);
bool tokenizer_is_special(const struct tokenizer *tokenizer, int id);
/* content: the text of an added token or a vocabulary string as the file has it (byte alphabet: a
 * space is U+0120). -1 when there is no such token. */
int tokenizer_find(const struct tokenizer *tokenizer, const char *content, size_t size);

/* Incremental detokenisation: gives out text in whole UTF-8 characters only. Broken bytes that
 * cannot become a character any more come out as U+FFFD, one per maximal broken part, as Python
 * does. Special tokens are skipped when skip_special. */
struct detokenizer {
    const struct tokenizer *tokenizer;
    bool skip_special;
    char pending[8];
    int n_pending;
};
/* Appends what token `id` completes to out; returns the bytes written. out must hold
 * detokenizer_bound(size of the token's bytes). */
size_t detokenizer_push(struct detokenizer *d, int id, char *out, size_t out_size);
/* What is left at the end: pending bytes as U+FFFD. */
size_t detokenizer_flush(struct detokenizer *d, char *out, size_t out_size);
static inline size_t
detokenizer_bound(size_t token_bytes)
{
    return 3 * (token_bytes + 8);
}

#endif
