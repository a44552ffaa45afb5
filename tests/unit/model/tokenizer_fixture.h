/* tokenizer_fixture: small tokenizer.json texts: the 256 bytes as ids 0..255 (by byte), and what a
 * test adds. */
#ifndef TESTS_TOKENIZER_FIXTURE_H
#define TESTS_TOKENIZER_FIXTURE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/byte_alphabet.h"
#include "model/tokenizer.h"

/* JSON texts, NULL for the usual. vocab: more entries, each with a comma in front. */
struct fixture_parts {
    const char *vocab, *merges, *added, *normalizer, *pre_tokenizer, *post_processor, *decoder;
    const char *model_extra; /* more members of "model", with a comma in front of each */
    const char *extra;       /* more members of the file, likewise */
};

#define FIXTURE_BYTES "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}"
#define FIXTURE_WORDS "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true}"

static inline void
fixture_vocab(char *out)
{
    for (int byte = 0; byte < 256; byte++) {
        char one = (char)byte, name[3] = "";
        name[byte_alphabet_encode(&one, 1, name)] = '\0';
        const char *escape = name[0] == '"' || name[0] == '\\' ? "\\" : "";
        out += sprintf(out, "%s\"%s%s\":%d", byte ? "," : "", escape, name, byte);
    }
}

/* malloc'd. */
static inline char *
fixture_json(const struct fixture_parts *parts)
{
    char vocab[8192];
    char *json = NULL;
    const char *pre = parts->pre_tokenizer ? parts->pre_tokenizer : FIXTURE_BYTES;
    fixture_vocab(vocab);
    if (asprintf(
            &json,
            "{\"version\":\"1.0\",\"added_tokens\":[%s],\"normalizer\":%s,\"pre_tokenizer\":%s,"
            "\"post_processor\":%s,\"decoder\":%s,\"model\":{\"type\":\"BPE\",\"vocab\":{%s%s},"
            "\"merges\":[%s]%s}%s}",
            parts->added ? parts->added : "", parts->normalizer ? parts->normalizer : "null", pre,
            parts->post_processor ? parts->post_processor : "null",
            parts->decoder ? parts->decoder : "{\"type\":\"ByteLevel\"}", vocab,
            parts->vocab ? parts->vocab : "", parts->merges ? parts->merges : "",
            parts->model_extra ? parts->model_extra : "", parts->extra ? parts->extra : "") < 0)
        abort();
    return json;
}

/* 0 or what tokenizer_parse says. */
static inline int
fixture_parse(struct tokenizer **ret_tokenizer, const struct fixture_parts *parts, int vocab,
              struct err *err)
{
    char *json = fixture_json(parts);
    int r = tokenizer_parse(ret_tokenizer, json, strlen(json), vocab, err);
    free(json);
    return r;
}

#endif
