/* config_case: texts of config.json, and what their parsing must give. */
#ifndef TESTS_CONFIG_CASE_H
#define TESTS_CONFIG_CASE_H

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/model_config.h"

#define SIZES                                                                                      \
    "\"vocab_size\":1000,\"hidden_size\":64,\"num_hidden_layers\":4,\"num_attention_heads\":4,"    \
    "\"num_key_value_heads\":2,\"intermediate_size\":96"
#define QWEN3 "\"model_type\":\"qwen3\"," SIZES
#define LLAMA "\"model_type\":\"llama\"," SIZES
#define ENGRAM                                                                                     \
    "\"layer_ids\":[1,3],\"max_ngram_size\":3,\"heads_per_ngram\":4,\"head_dim\":16,"              \
    "\"vocab_size_per_ngram\":[5000,7000],\"compressed_vocab_size\":1000,\"pad_token_id\":2,"      \
    "\"seed\":0,\"conv_kernel_size\":4,\"norm_eps\":1e-6,\"table_dtype\":\"F8_E4M3\","             \
    "\"table_scale_group\":8"

static inline int
parse(struct model_config *config, const char *text, const char *generation, struct err *err)
{
    return model_config_parse(config, text, strlen(text), generation,
                              generation ? strlen(generation) : 0, err);
}

static inline struct model_config
accepted_with(const char *text, const char *generation)
{
    struct model_config config;
    struct err err = ERR_INIT;
    memset(&config, 0xa5, sizeof config);
    if (parse(&config, text, generation, &err) != 0)
        fail_msg("%s: %s", text, err.text);
    return config;
}

static inline struct model_config
accepted(const char *text)
{
    return accepted_with(text, NULL);
}

static inline void
refused_with(const char *text, const char *generation, const char *message)
{
    struct model_config config, before;
    struct err err = ERR_INIT;
    memset(&config, 0xa5, sizeof config);
    before = config;
    assert_int_equal(parse(&config, text, generation, &err), -EBADMSG);
    assert_int_equal(err.code, -EBADMSG);
    assert_memory_equal(&config, &before, sizeof config);
    if (!strstr(err.text, message))
        fail_msg("%s: \"%s\" does not say \"%s\"", text, err.text, message);
}

static inline void
refused(const char *text, const char *message)
{
    refused_with(text, NULL, message);
}

/* `base` with one more field. */
static inline const char *
with(const char *base, const char *field)
{
    static char text[4][3000];
    static int turn;
    turn = (turn + 1) % 4;
    (void)snprintf(text[turn], sizeof text[turn], "{%s,%s}", base, field);
    return text[turn];
}

/* The Engram config with the first occurrence of `from` replaced. */
static inline const char *
engram_with(const char *from, const char *to)
{
    static char text[3000];
    const char *all = "{\"model_type\":\"engram\"," SIZES ",\"engram\":{" ENGRAM "}}";
    const char *at = strstr(all, from);
    assert_non_null(at);
    (void)snprintf(text, sizeof text, "%.*s%s%s", (int)(at - all), all, to, at + strlen(from));
    return text;
}

#endif
