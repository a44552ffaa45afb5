#include "model/model_config.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "model/config_keys.h"
#include "model/engram_config.h"
#include "model/json_field.h"
#include "model/rope_config.h"

enum { CONFIG_MAX_BYTES = 4 << 20, CONFIG_MAX_VALUES = 1 << 17 };

/* Bounds of the shape. Any two of these multiplied fit int64_t with room for a dtype; heads *
 * head_dim and the like fit int. */
enum {
    VOCAB_MAX = 1 << 24,
    HIDDEN_MAX = 1 << 16,
    HEADS_MAX = 1 << 10,
    HEAD_DIM_MAX = 1 << 10,
    INTERMEDIATE_MAX = 1 << 20,
    POSITION_MAX = 1 << 24
};

static const char where[] = "config.json: ";

static const struct family {
    const char *model_type, *architecture;
    enum model_family family;
} families[] = {
    {"engram", "EngramForCausalLM", FAMILY_ENGRAM},
    {"qwen3", "Qwen3ForCausalLM", FAMILY_QWEN3},
    {"llama", "LlamaForCausalLM", FAMILY_LLAMA},
};

static int
parse_family(const json_t *config, struct model_shape *shape, struct err *err)
{
    const char *type;
    int r = json_field_text(config, where, "model_type", &type, err);
    if (r < 0)
        return r;
    const struct family *family = NULL;
    for (size_t i = 0; type && i < sizeof families / sizeof families[0]; i++) {
        if (strcmp(families[i].model_type, type) == 0)
            family = &families[i];
    }
    if (!family)
        return err_set(err, EBADMSG, "%smodel_type: %s is not supported (engram, qwen3, llama are)",
                       where, type ? type : "nothing");
    const json_t *list = json_field_get(config, "architectures");
    if (list && (!json_is_array(list) || json_array_size(list) > 16))
        return err_set(err, EBADMSG, "%sarchitectures is not a short array", where);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *name = json_string_value(json_array_get(list, i));
        if (!name || strcmp(name, family->architecture) != 0)
            return err_set(err, EBADMSG, "%sarchitectures: %s does not go with model_type %s",
                           where, name ? name : "something", type);
    }
    shape->family = family->family;
    return 0;
}

/* A size that must be there. */
static int
parse_size(const json_t *config, const char *key, int max, int *ret, struct err *err)
{
    int64_t value;
    int r = json_field_int(config, where, key, 1, max, NULL, &value, err);
    if (r >= 0)
        *ret = (int)value;
    return r;
}

static int
parse_attention(const json_t *config, struct model_shape *shape, struct err *err)
{
    bool llama = shape->family == FAMILY_LLAMA;
    int64_t heads = shape->heads, kv_heads, head_dim;
    /* Qwen3's config class has a number here where the field is absent; null means `heads`. */
    int64_t kv_absent = llama || json_object_get(config, "num_key_value_heads") ? heads : 32;
    int64_t dim_absent = llama ? shape->hidden / heads : 128;
    int r =
        json_field_int(config, where, "num_key_value_heads", 1, heads, &kv_absent, &kv_heads, err);
    if (r >= 0)
        r = json_field_int(config, where, "head_dim", 2, HEAD_DIM_MAX, &dim_absent, &head_dim, err);
    if (r >= 0)
        r = json_field_bool(config, where, "attention_bias", false, &shape->attention_bias, err);
    if (r < 0)
        return r;
    if (kv_heads > heads || heads % kv_heads)
        return err_set(err, EBADMSG,
                       "%snum_key_value_heads: %lld does not divide num_attention_heads %d", where,
                       (long long)kv_heads, shape->heads);
    if (!json_field_get(config, "head_dim") && llama && shape->hidden % heads)
        return err_set(err, EBADMSG,
                       "%shidden_size: %d is not a multiple of num_attention_heads %d", where,
                       shape->hidden, shape->heads);
    if (head_dim % 2 || head_dim < 2 || head_dim > HEAD_DIM_MAX)
        return err_set(err, EBADMSG, "%shead_dim: %lld is not an even number in 2..%d", where,
                       (long long)head_dim, HEAD_DIM_MAX);
    shape->kv_heads = (int)kv_heads;
    shape->head_dim = (int)head_dim;
    shape->qk_norm = !llama;
    return 0;
}

/* Every layer must see the whole context: sliding windows are not implemented. */
static int
check_full_attention(const json_t *config, const struct model_shape *shape, struct err *err)
{
    const json_t *types = json_field_get(config, "layer_types");
    if (types && (!json_is_array(types) || json_array_size(types) != (size_t)shape->layers))
        return err_set(err, EBADMSG, "%slayer_types is not an array of num_hidden_layers elements",
                       where);
    for (size_t i = 0; i < json_array_size(types); i++) {
        const char *type = json_string_value(json_array_get(types, i));
        if (!type || strcmp(type, "full_attention") != 0)
            return err_set(err, EBADMSG,
                           "%slayer_types[%zu]: %s is not supported (full_attention is)", where, i,
                           type ? type : "this");
    }
    /* Llama has no use_sliding_window: a window that is given is meant. */
    bool used;
    int r = json_field_bool(config, where, "use_sliding_window", shape->family == FAMILY_LLAMA,
                            &used, err);
    if (r >= 0 && used && json_field_get(config, "sliding_window"))
        return err_set(err, EBADMSG, "%ssliding_window: windows are not supported", where);
    return r;
}

static int
parse_mlp(const json_t *config, struct model_shape *shape, struct err *err)
{
    const char *activation;
    int r = parse_size(config, "intermediate_size", INTERMEDIATE_MAX, &shape->intermediate, err);
    if (r >= 0)
        r = json_field_text(config, where, "hidden_act", &activation, err);
    if (r >= 0)
        r = json_field_bool(config, where, "mlp_bias", false, &shape->mlp_bias, err);
    if (r < 0)
        return r;
    if (activation && strcmp(activation, "silu") != 0)
        return err_set(err, EBADMSG, "%shidden_act: %s is not supported (silu is)", where,
                       activation);
    if (shape->mlp_bias && shape->family != FAMILY_LLAMA)
        return err_set(err, EBADMSG, "%smlp_bias: only model_type llama has such biases", where);
    return 0;
}

static int
parse_shape(const json_t *config, struct model_shape *shape, struct err *err)
{
    static const double usual_eps = 1e-6;
    double eps;
    int r = parse_family(config, shape, err);
    if (r >= 0)
        r = parse_size(config, "vocab_size", VOCAB_MAX, &shape->vocab, err);
    if (r >= 0)
        r = parse_size(config, "hidden_size", HIDDEN_MAX, &shape->hidden, err);
    if (r >= 0)
        r = parse_size(config, "num_hidden_layers", SHAPE_MAX_LAYERS, &shape->layers, err);
    if (r >= 0)
        r = parse_size(config, "num_attention_heads", HEADS_MAX, &shape->heads, err);
    if (r >= 0)
        r = parse_attention(config, shape, err);
    if (r >= 0)
        r = check_full_attention(config, shape, err);
    if (r >= 0)
        r = parse_mlp(config, shape, err);
    if (r >= 0)
        r = json_field_real(config, where, "rms_norm_eps", 0, 0.1, &usual_eps, &eps, err);
    if (r >= 0)
        r = json_field_bool(config, where, "tie_word_embeddings", false, &shape->tied_embeddings,
                            err);
    int64_t position, usual_position = shape->family == FAMILY_LLAMA ? 2048 : 32768;
    if (r >= 0)
        r = json_field_int(config, where, "max_position_embeddings", 1, POSITION_MAX,
                           &usual_position, &position, err);
    if (r >= 0)
        r = rope_config_parse(&shape->rope, config, (int)position, err);
    if (r < 0)
        return r;
    shape->norm_eps = (float)eps;
    shape->max_position = (int)position;

    /* Without the object, a checkpoint of the family is a plain Qwen3 model. */
    const json_t *engram = json_field_get(config, "engram");
    if (engram && shape->family != FAMILY_ENGRAM)
        return err_set(err, EBADMSG, "%sengram: only model_type engram has such an object", where);
    return engram ? engram_config_parse(&shape->engram, engram, shape->vocab, shape->layers, err)
                  : 0;
}

static int
add_eos(const json_t *value, const char *from, struct model_config *config, struct err *err)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0 ||
        json_integer_value(value) >= config->shape.vocab)
        return err_set(err, EBADMSG, "%seos_token_id: not a token id below vocab_size %d", from,
                       config->shape.vocab);
    int id = (int)json_integer_value(value);
    for (int i = 0; i < config->n_eos; i++) {
        if (config->eos[i] == id)
            return 0;
    }
    if (config->n_eos == CONFIG_MAX_EOS)
        return err_set(err, EBADMSG, "%seos_token_id: more than %d ids", from, CONFIG_MAX_EOS);
    config->eos[config->n_eos++] = id;
    return 0;
}

static int
parse_eos(const json_t *object, const char *from, struct model_config *config, struct err *err)
{
    const json_t *value = json_field_get(object, "eos_token_id");
    if (!value)
        return 0;
    if (!json_is_array(value))
        return add_eos(value, from, config, err);
    for (size_t i = 0; i < json_array_size(value); i++) {
        int r = add_eos(json_array_get(value, i), from, config, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int
parse_bos(const json_t *object, const char *from, int64_t fallback, struct model_config *config,
          struct err *err)
{
    int64_t bos;
    int r = json_field_int(object, from, "bos_token_id", 0, config->shape.vocab - 1, &fallback,
                           &bos, err);
    if (r >= 0)
        config->bos = (int)bos;
    return r;
}

/* generation_config.json first, then config.json, then (absent, not null) the class's own default.
 */
static int
parse_special(const json_t *object, const json_t *generation, struct model_config *config,
              struct err *err)
{
    static const char from[] = "generation_config.json: ";
    bool llama = config->shape.family == FAMILY_LLAMA && config->shape.vocab > 2;
    bool bos_absent = !json_object_get(object, "bos_token_id");
    int r = parse_bos(object, where, llama && bos_absent ? 1 : -1, config, err);
    if (r >= 0)
        r = parse_bos(generation, from, config->bos, config, err);
    if (r >= 0)
        r = parse_eos(generation, from, config, err);
    if (r >= 0 && config->n_eos == 0)
        r = parse_eos(object, where, config, err);
    if (r >= 0 && config->n_eos == 0 && llama && !json_object_get(object, "eos_token_id"))
        config->eos[config->n_eos++] = 2;
    return r;
}

static int
parse_sampling(const json_t *generation, struct model_config *config, struct err *err)
{
    static const char from[] = "generation_config.json: ";
    static const double one = 1, zero = 0;
    static const int64_t off = 0;
    int64_t top_k;
    int r =
        json_field_real(generation, from, "temperature", 0, 100, &one, &config->temperature, err);
    if (r >= 0)
        r = json_field_real(generation, from, "top_p", 0, 1, &one, &config->top_p, err);
    if (r >= 0)
        r = json_field_real(generation, from, "min_p", 0, 1, &zero, &config->min_p, err);
    if (r >= 0)
        r = json_field_int(generation, from, "top_k", -1, INT_MAX, &off, &top_k, err);
    if (r >= 0)
        r = json_field_real(generation, from, "repetition_penalty", 0.01, 100, &one,
                            &config->repetition_penalty, err);
    if (r >= 0)
        config->top_k = top_k < 0 ? 0 : (int)top_k;
    return r;
}

/* generation may be NULL. */
static int
parse_both(struct model_config *ret_config, const json_t *object, const json_t *generation,
           struct err *err)
{
    struct model_config config = {.bos = -1};
    int r = parse_shape(object, &config.shape, err);
    if (r >= 0)
        r = config_keys_check(object, config.unknown, sizeof config.unknown, err);
    if (r >= 0)
        r = parse_special(object, generation, &config, err);
    if (r >= 0)
        r = parse_sampling(generation, &config, err);
    if (r < 0)
        return r;
    config_keys_check_generation(generation, config.unknown, sizeof config.unknown);
    *ret_config = config;
    return 0;
}

int
model_config_parse(struct model_config *ret_config, const char *config, size_t config_size,
                   const char *generation, size_t generation_size, struct err *err)
{
    json_auto_t *object = NULL, *more = NULL;
    int r = json_field_parse(&object, config, config_size, CONFIG_MAX_VALUES, "config.json", err);
    if (r >= 0 && generation)
        r = json_field_parse(&more, generation, generation_size, CONFIG_MAX_VALUES,
                             "generation_config.json", err);
    return r < 0 ? r : parse_both(ret_config, object, more, err);
}

int
model_config_read(struct model_config *ret_config, const char *folder, struct err *err)
{
    json_auto_t *object = NULL, *more = NULL;
    char path[PATH_MAX];
    if ((size_t)snprintf(path, sizeof path, "%s/generation_config.json", folder) >= sizeof path)
        return err_set(err, ENAMETOOLONG, "%s: path is too long", folder);
    struct err absent = ERR_INIT;
    int r = json_field_load(&more, path, CONFIG_MAX_BYTES, CONFIG_MAX_VALUES, &absent);
    if (r < 0 && r != -ENOENT)
        return err_set(err, -r, "%s", absent.text);
    (void)snprintf(path, sizeof path, "%s/config.json", folder);
    r = json_field_load(&object, path, CONFIG_MAX_BYTES, CONFIG_MAX_VALUES, err);
    if (r < 0)
        return r;
    r = parse_both(ret_config, object, more, err);
    if (r < 0)
        (void)err_context(err, "%s", folder);
    return r;
}
