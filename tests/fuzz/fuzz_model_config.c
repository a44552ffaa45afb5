/* fuzz_model_config: bytes up to the first NUL as config.json, those behind it as
 * generation_config.json. Whatever is accepted must be within the bounds that the rest of the
 * program multiplies by. */
#include <stdint.h>
#include <string.h>

#include "base/check.h"
#include "model/model_config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
check_engram(const struct engram_shape *e, const struct model_shape *s)
{
    ASSERT(e->max_order >= 2 && e->max_order <= SHAPE_MAX_ORDER);
    ASSERT(e->heads >= 1 && e->heads <= SHAPE_MAX_HEADS_PER_NGRAM);
    ASSERT(e->compressed_vocab >= 1 && e->compressed_vocab <= s->vocab);
    ASSERT(e->pad_id >= 0 && e->pad_id < e->compressed_vocab);
    ASSERT(engram_bundle_bytes(e) > 0);
    ASSERT(e->scale_group >= 0 && (!e->scale_group || e->head_dim % e->scale_group == 0));
    for (int t = 0; t < e->n_layers; t++) {
        int64_t bytes, rows = 0;
        ASSERT(e->table[t].layer >= 0 && e->table[t].layer < s->layers);
        ASSERT(t == 0 || e->table[t - 1].layer < e->table[t].layer);
        for (int o = 0; o < e->max_order - 1; o++) {
            for (int h = 0; h < e->heads; h++) {
                ASSERT(e->table[t].row_base[o][h] == rows);
                ASSERT(e->table[t].prime[o][h] >= 2);
                rows += e->table[t].prime[o][h];
            }
        }
        ASSERT(rows == e->table[t].rows);
        ASSERT(!__builtin_mul_overflow(rows, (int64_t)engram_row_weight_bytes(e), &bytes));
    }
}

static void
check_config(const struct model_config *c)
{
    const struct model_shape *s = &c->shape;
    ASSERT(s->vocab >= 1 && s->hidden >= 1 && s->layers >= 1 && s->layers <= SHAPE_MAX_LAYERS);
    ASSERT(s->heads >= 1 && s->kv_heads >= 1 && s->heads % s->kv_heads == 0);
    ASSERT(s->head_dim >= 2 && s->head_dim % 2 == 0 && s->intermediate >= 1);
    int product;
    ASSERT(!__builtin_mul_overflow(s->heads, s->head_dim, &product));
    ASSERT(s->max_position >= 1 && s->norm_eps >= 0 && s->norm_eps <= 1);
    ASSERT(s->rope.theta >= 1 && s->rope.theta <= 1e18 && s->rope.factor >= 1);
    ASSERT(s->rope.original_max_position >= 1);
    ASSERT(c->n_eos >= 0 && c->n_eos <= CONFIG_MAX_EOS);
    for (int i = 0; i < c->n_eos; i++)
        ASSERT(c->eos[i] >= 0 && c->eos[i] < s->vocab);
    ASSERT(c->bos >= -1 && c->bos < s->vocab);
    ASSERT(c->temperature >= 0 && c->top_p >= 0 && c->top_p <= 1 && c->min_p >= 0 && c->min_p <= 1);
    ASSERT(c->top_k >= 0 && c->repetition_penalty > 0);
    ASSERT(memchr(c->unknown, '\0', sizeof c->unknown));
    if (s->engram.n_layers)
        check_engram(&s->engram, s);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *text = (const char *)data;
    const char *end = size ? memchr(text, '\0', size) : NULL;
    size_t first = end ? (size_t)(end - text) : size;
    struct model_config config;
    struct err err = ERR_INIT;
    int r = model_config_parse(&config, text, first, end ? end + 1 : NULL,
                               end ? size - first - 1 : 0, &err);
    ASSERT(r == 0 || (r == -EBADMSG && err.code == r && err.text[0]));
    if (r == 0)
        check_config(&config);
    return 0;
}
