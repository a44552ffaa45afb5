/* fuzz_tokenizer: tokenizer.json, then a text through it. Input: the file, a 0x00 byte, the text.
 *
 * A file that is understood must hold what the header promises: ids within the vocabulary, text
 * that comes back whole in UTF-8, compressed ids without a gap. A broken text also goes through a
 * fixed tokenizer.  */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/utf8_scan.h"
#include "model/compressed_ids.h"
#include "model/tokenizer.h"
#include "tests/unit/model/tokenizer_fixture.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { VOCAB = 600, MAX_TOKENS = 100000 };

static void
check_decoding(const struct tokenizer *tokenizer, const int32_t *ids, int64_t n)
{
    struct detokenizer d = {.tokenizer = tokenizer};
    for (int64_t i = 0; i < n; i++) {
        size_t bytes;
        ASSERT(ids[i] >= 0 && ids[i] < tokenizer_size(tokenizer));
        ASSERT(tokenizer_bytes(tokenizer, ids[i], &bytes));
        char *out = malloc(detokenizer_bound(bytes));
        if (!out)
            return;
        size_t written = detokenizer_push(&d, ids[i], out, detokenizer_bound(bytes));
        ASSERT(written <= detokenizer_bound(bytes) && utf8_valid(out, written));
        free(out);
    }
    char rest[3];
    ASSERT(detokenizer_flush(&d, rest, sizeof rest) <= sizeof rest);
}

static void
check_text(const struct tokenizer *tokenizer, const char *text, size_t size)
{
    int32_t *ids;
    struct err err = ERR_INIT;
    int64_t n = tokenizer_encode(tokenizer, text, size, MAX_TOKENS, &ids, &err);
    if (n < 0) {
        ASSERT(!ids && err.code == n && err.text[0]);
        return;
    }
    ASSERT(ids && n <= MAX_TOKENS);
    check_decoding(tokenizer, ids, n);
    free(ids);
}

static void
check_compressed(const struct tokenizer *tokenizer)
{
    int32_t map[VOCAB], count = 0, seen = 0;
    if (compressed_ids_build(tokenizer, VOCAB, 0, map, &count, NULL) < 0)
        return;
    for (int id = 0; id < VOCAB; id++) {
        /* Dealt in order: each is an old one or the next. */
        ASSERT(map[id] >= 0 && map[id] <= seen);
        seen += map[id] == seen;
    }
    ASSERT(count == seen);
}

static const struct tokenizer *
fixed_tokenizer(void)
{
    static struct tokenizer *fixed;
    static const struct fixture_parts parts = {
        .vocab = ",\"aa\":256,\"aaa\":257,\"\xc4\xa0"
                 "a\":258",
        .merges = "\"a a\",\"aa a\",\"\xc4\xa0 a\"",
        .added = "{\"id\":300,\"content\":\"<s>\",\"lstrip\":true},"
                 "{\"id\":301,\"content\":\"b\\u00e9\",\"rstrip\":true,\"single_word\":true}",
        .normalizer = "{\"type\":\"NFC\"}",
        .pre_tokenizer = FIXTURE_WORDS,
    };
    if (!fixed && fixture_parse(&fixed, &parts, VOCAB, NULL) < 0)
        abort();
    return fixed;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *nul = size ? memchr(data, 0, size) : NULL;
    size_t json_size = nul ? (size_t)(nul - data) : size;
    const char *text = nul ? (const char *)nul + 1 : "a \xff text <s> b\xc3\xa9 12";
    size_t text_size = nul ? size - json_size - 1 : strlen(text);
    struct tokenizer *tokenizer = NULL;
    struct err err = ERR_INIT;
    int r = tokenizer_parse(&tokenizer, (const char *)data, json_size, VOCAB, &err);
    if (r < 0) {
        ASSERT(!tokenizer && err.code == r && err.text[0]);
    } else {
        ASSERT(tokenizer_size(tokenizer) <= VOCAB);
        check_text(tokenizer, text, text_size);
        check_compressed(tokenizer);
        tokenizer = tokenizer_free(tokenizer);
    }
    check_text(fixed_tokenizer(), text, text_size);
    return 0;
}
