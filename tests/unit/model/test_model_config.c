#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdbool.h>
#include <sys/stat.h>

#include "model/model_config.h"
#include "tests/unit/model/scratch_folder.h"

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

static int
parse(struct model_config *config, const char *text, const char *generation, struct err *err)
{
    return model_config_parse(config, text, strlen(text), generation,
                              generation ? strlen(generation) : 0, err);
}

static struct model_config
accepted_with(const char *text, const char *generation)
{
    struct model_config config;
    struct err err = ERR_INIT;
    memset(&config, 0xa5, sizeof config);
    if (parse(&config, text, generation, &err) != 0)
        fail_msg("%s: %s", text, err.text);
    return config;
}

static struct model_config
accepted(const char *text)
{
    return accepted_with(text, NULL);
}

static void
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

static void
refused(const char *text, const char *message)
{
    refused_with(text, NULL, message);
}

/* `base` with one more field. */
static const char *
with(const char *base, const char *field)
{
    static char text[4][3000];
    static int turn;
    turn = (turn + 1) % 4;
    (void)snprintf(text[turn], sizeof text[turn], "{%s,%s}", base, field);
    return text[turn];
}

/* The Engram config with the first occurrence of `from` replaced. */
static const char *
engram_with(const char *from, const char *to)
{
    static char text[3000];
    const char *all = "{\"model_type\":\"engram\"," SIZES ",\"engram\":{" ENGRAM "}}";
    const char *at = strstr(all, from);
    assert_non_null(at);
    (void)snprintf(text, sizeof text, "%.*s%s%s", (int)(at - all), all, to, at + strlen(from));
    return text;
}

static void
absent_fields_of_qwen3_mean_what_transformers_means(void **state)
{
    struct model_config config = accepted("{" QWEN3 "}");
    const struct model_shape *s = &config.shape;
    assert_int_equal(s->family, FAMILY_QWEN3);
    assert_int_equal(s->vocab, 1000);
    assert_int_equal(s->hidden, 64);
    assert_int_equal(s->layers, 4);
    assert_int_equal(s->heads, 4);
    assert_int_equal(s->kv_heads, 2);
    assert_int_equal(s->head_dim, 128);
    assert_int_equal(s->intermediate, 96);
    assert_int_equal(s->max_position, 32768);
    assert_true(s->norm_eps == 1e-6f);
    assert_true(s->qk_norm);
    assert_false(s->tied_embeddings);
    assert_false(s->attention_bias);
    assert_false(s->mlp_bias);
    assert_int_equal(s->rope.kind, ROPE_DEFAULT);
    assert_true(s->rope.theta == 10000);
    assert_int_equal(s->engram.n_layers, 0);
    assert_int_equal(config.n_eos, 0);
    assert_int_equal(config.bos, -1);
    assert_true(config.temperature == 1 && config.top_p == 1 && config.min_p == 0);
    assert_true(config.top_k == 0 && config.repetition_penalty == 1);
    assert_string_equal(config.unknown, "");
}

static void
absent_fields_of_llama_mean_what_transformers_means(void **state)
{
    struct model_config config = accepted("{" LLAMA "}");
    assert_int_equal(config.shape.family, FAMILY_LLAMA);
    assert_int_equal(config.shape.head_dim, 16);
    assert_int_equal(config.shape.max_position, 2048);
    assert_false(config.shape.qk_norm);
    assert_int_equal(config.n_eos, 1);
    assert_int_equal(config.eos[0], 2);
    assert_int_equal(config.bos, 1);
    config = accepted(with(LLAMA, "\"eos_token_id\":null,\"bos_token_id\":null"));
    assert_int_equal(config.n_eos, 0);
    assert_int_equal(config.bos, -1);
    config = accepted("{\"model_type\":\"llama\",\"vocab_size\":2,\"hidden_size\":64,"
                      "\"num_hidden_layers\":1,\"num_attention_heads\":4,\"intermediate_size\":1}");
    assert_int_equal(config.shape.kv_heads, 4);
    assert_int_equal(config.n_eos, 0); /* its default, 2, is not a token here */
    refused(with(QWEN3, "\"hidden_size\":64"), "duplicate");
}

static void
a_real_qwen3_config_is_read(void **state)
{
    struct model_config config = accepted_with(
        "{\"architectures\":[\"Qwen3ForCausalLM\"],\"attention_bias\":false,"
        "\"attention_dropout\":0.0,\"bos_token_id\":151643,\"eos_token_id\":151645,"
        "\"head_dim\":128,\"hidden_act\":\"silu\",\"hidden_size\":2560,\"initializer_range\":0.02,"
        "\"intermediate_size\":9728,\"max_position_embeddings\":262144,\"max_window_layers\":36,"
        "\"model_type\":\"qwen3\",\"num_attention_heads\":32,\"num_hidden_layers\":36,"
        "\"num_key_value_heads\":8,\"rms_norm_eps\":1e-06,\"rope_scaling\":null,"
        "\"rope_theta\":5000000,\"sliding_window\":null,\"tie_word_embeddings\":true,"
        "\"torch_dtype\":\"bfloat16\",\"transformers_version\":\"4.51.0\",\"use_cache\":true,"
        "\"use_sliding_window\":false,\"vocab_size\":151936}",
        "{\"bos_token_id\":151643,\"do_sample\":true,\"eos_token_id\":[151645,151643],"
        "\"pad_token_id\":151643,\"temperature\":0.7,\"top_k\":20,\"top_p\":0.8,"
        "\"transformers_version\":\"4.51.0\"}");
    assert_int_equal(config.shape.kv_heads, 8);
    assert_true(config.shape.rope.theta == 5000000);
    assert_true(config.shape.tied_embeddings);
    assert_int_equal(config.n_eos, 2);
    assert_int_equal(config.eos[0], 151645);
    assert_int_equal(config.eos[1], 151643);
    assert_int_equal(config.bos, 151643);
    assert_true(config.temperature == 0.7 && config.top_p == 0.8 && config.top_k == 20);
    assert_string_equal(config.unknown, "");
}

static void
family_and_architecture_must_go_together(void **state)
{
    (void)accepted(with(QWEN3, "\"architectures\":[\"Qwen3ForCausalLM\"]"));
    (void)accepted(with(QWEN3, "\"architectures\":[]"));
    (void)accepted(with(QWEN3, "\"architectures\":null"));
    refused(with(QWEN3, "\"architectures\":[\"LlamaForCausalLM\"]"), "architectures: Llama");
    refused(with(QWEN3, "\"architectures\":[\"Qwen3ForCausalLM\",\"X\"]"), "architectures: X");
    refused(with(QWEN3, "\"architectures\":[1]"), "architectures");
    refused(with(QWEN3, "\"architectures\":\"Qwen3ForCausalLM\""), "architectures");
    refused("{\"model_type\":\"qwen3_moe\"," SIZES "}", "model_type: qwen3_moe is not supported");
    refused("{\"model_type\":7," SIZES "}", "model_type: expected a string");
    refused("{" SIZES "}", "model_type");
}

static void
sizes_must_be_there_and_within_bounds(void **state)
{
    static const struct {
        const char *key;
        long long max;
    } size[] = {{"vocab_size", 1 << 24},
                {"hidden_size", 1 << 16},
                {"num_hidden_layers", SHAPE_MAX_LAYERS},
                {"num_attention_heads", 1024},
                {"intermediate_size", 1 << 20}};
    enum { N = sizeof size / sizeof size[0] };
    static const char *const bad[] = {
        "0", "-1", "1.0", "1e3", "\"64\"", "true", "[64]", "2147483648", "9223372036854775807"};
    char text[1000];
    for (int i = 0; i < N; i++) {
        for (size_t b = 0; b < sizeof bad / sizeof bad[0] + 3; b++) {
            size_t used = (size_t)snprintf(text, sizeof text,
                                           "{\"model_type\":\"qwen3\",\"num_key_value_heads\":1");
            for (int j = 0; j < N; j++) {
                char value[40] = "16";
                if (j == i && b < sizeof bad / sizeof bad[0])
                    (void)snprintf(value, sizeof value, "%s", bad[b]);
                else if (j == i)
                    (void)snprintf(value, sizeof value, "%lld",
                                   size[i].max + (b == sizeof bad / sizeof bad[0]));
                if (j != i || b <= sizeof bad / sizeof bad[0] + 1)
                    used += (size_t)snprintf(text + used, sizeof text - used, ",\"%s\":%s",
                                             size[j].key, value);
            }
            (void)snprintf(text + used, sizeof text - used, "}");
            if (b == sizeof bad / sizeof bad[0] + 1)
                (void)accepted(text); /* the limit itself */
            else
                refused(text, size[i].key);
        }
    }
    refused(with(QWEN3, "\"max_position_embeddings\":0"), "max_position_embeddings");
    refused(with(QWEN3, "\"max_position_embeddings\":16777217"), "max_position_embeddings");
    refused(with(QWEN3, "\"rms_norm_eps\":-1e-6"), "rms_norm_eps");
    refused(with(QWEN3, "\"rms_norm_eps\":\"1e-6\""), "rms_norm_eps");
    refused(with(QWEN3, "\"rms_norm_eps\":1e999"), "JSON");
    refused(with(QWEN3, "\"rms_norm_eps\":NaN"), "JSON");
}

static void
heads_must_divide(void **state)
{
    refused(with("\"model_type\":\"qwen3\",\"vocab_size\":9,\"hidden_size\":64,"
                 "\"num_hidden_layers\":1,\"num_attention_heads\":4,\"intermediate_size\":9",
                 "\"num_key_value_heads\":3"),
            "num_key_value_heads: 3 does not divide");
    refused(with("\"model_type\":\"qwen3\",\"vocab_size\":9,\"hidden_size\":64,"
                 "\"num_hidden_layers\":1,\"num_attention_heads\":4,\"intermediate_size\":9",
                 "\"num_key_value_heads\":8"),
            "num_key_value_heads: 8 is not in 1..4");
    /* absent: 32 as in transformers, null: as many as heads */
    refused("{\"model_type\":\"qwen3\",\"vocab_size\":9,\"hidden_size\":64,\"num_hidden_layers\":1,"
            "\"num_attention_heads\":4,\"intermediate_size\":9}",
            "num_key_value_heads: 32");
    assert_int_equal(accepted("{\"model_type\":\"qwen3\",\"vocab_size\":9,\"hidden_size\":64,"
                              "\"num_hidden_layers\":1,\"num_attention_heads\":4,"
                              "\"intermediate_size\":9,\"num_key_value_heads\":null}")
                         .shape.kv_heads,
                     4);
    refused(with(QWEN3, "\"head_dim\":17"), "head_dim: 17 is not an even number");
    refused(with(QWEN3, "\"head_dim\":1026"), "head_dim");
    refused(with(QWEN3, "\"head_dim\":0"), "head_dim");
    refused("{\"model_type\":\"llama\",\"vocab_size\":9,\"hidden_size\":65,\"num_hidden_layers\":1,"
            "\"num_attention_heads\":4,\"intermediate_size\":9}",
            "hidden_size: 65 is not a multiple");
    refused("{\"model_type\":\"llama\",\"vocab_size\":9,\"hidden_size\":60,\"num_hidden_layers\":1,"
            "\"num_attention_heads\":4,\"intermediate_size\":9}",
            "head_dim: 15 is not an even number");
}

static void
biases_activation_and_windows(void **state)
{
    assert_true(accepted(with(QWEN3, "\"attention_bias\":true")).shape.attention_bias);
    assert_true(accepted(with(LLAMA, "\"mlp_bias\":true")).shape.mlp_bias);
    refused(with(QWEN3, "\"mlp_bias\":true"), "mlp_bias");
    refused(with(QWEN3, "\"attention_bias\":1"), "attention_bias: expected true or false");
    (void)accepted(with(QWEN3, "\"hidden_act\":\"silu\""));
    refused(with(QWEN3, "\"hidden_act\":\"gelu\""), "hidden_act: gelu is not supported");
    (void)accepted(with(QWEN3, "\"use_sliding_window\":false,\"sliding_window\":4096"));
    (void)accepted(with(QWEN3, "\"use_sliding_window\":true,\"sliding_window\":null"));
    refused(with(QWEN3, "\"use_sliding_window\":true,\"sliding_window\":4096"), "sliding_window");
    refused(with(LLAMA, "\"sliding_window\":4096"), "sliding_window");
    (void)accepted(with(QWEN3, "\"layer_types\":[\"full_attention\",\"full_attention\","
                               "\"full_attention\",\"full_attention\"]"));
    refused(with(QWEN3, "\"layer_types\":[\"full_attention\",\"sliding_attention\","
                        "\"full_attention\",\"full_attention\"]"),
            "layer_types[1]: sliding_attention");
    refused(with(QWEN3, "\"layer_types\":[\"full_attention\"]"), "layer_types");
    refused(with(QWEN3, "\"layer_types\":[1,2,3,4]"), "layer_types[0]");
}

static void
both_forms_of_rope_parameters_are_read(void **state)
{
    struct rope_shape rope =
        accepted(with(QWEN3, "\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":5e5}"))
            .shape.rope;
    assert_int_equal(rope.kind, ROPE_DEFAULT);
    assert_true(rope.theta == 5e5);
    rope = accepted(with(QWEN3, "\"rope_theta\":7e5,\"rope_scaling\":null")).shape.rope;
    assert_true(rope.theta == 7e5);
    rope = accepted(with(QWEN3,
                         "\"rope_theta\":100,\"rope_scaling\":{\"type\":\"linear\",\"factor\":2}"))
               .shape.rope;
    assert_int_equal(rope.kind, ROPE_LINEAR);
    assert_true(rope.factor == 2 && rope.theta == 100);

    rope = accepted(with(QWEN3, "\"max_position_embeddings\":40960,\"rope_scaling\":{"
                                "\"rope_type\":\"yarn\",\"type\":\"yarn\",\"factor\":4.0,"
                                "\"original_max_position_embeddings\":32768}"))
               .shape.rope;
    assert_int_equal(rope.kind, ROPE_YARN);
    assert_true(rope.factor == 4 && rope.original_max_position == 32768);
    assert_true(rope.beta_fast == 32 && rope.beta_slow == 1 && rope.truncate);
    assert_true(rope.attention_factor == 0 && rope.mscale == 0 && rope.mscale_all_dim == 0);

    rope = accepted(with(QWEN3, "\"max_position_embeddings\":163840,\"rope_parameters\":{"
                                "\"rope_type\":\"yarn\",\"factor\":null,\"rope_theta\":10000,"
                                "\"original_max_position_embeddings\":4096,\"beta_fast\":16,"
                                "\"beta_slow\":0,\"mscale\":1.0,\"mscale_all_dim\":0.5,"
                                "\"truncate\":false,\"attention_factor\":1.25}"))
               .shape.rope;
    assert_true(rope.factor == 40 && rope.beta_fast == 16 && rope.beta_slow == 1);
    assert_true(rope.mscale == 1 && rope.mscale_all_dim == 0.5 && rope.attention_factor == 1.25);
    assert_false(rope.truncate);

    rope = accepted(with(LLAMA, "\"rope_theta\":500000.0,\"max_position_embeddings\":131072,"
                                "\"rope_scaling\":{\"factor\":32.0,\"high_freq_factor\":4.0,"
                                "\"low_freq_factor\":1.0,\"original_max_position_embeddings\":8192,"
                                "\"rope_type\":\"llama3\"}"))
               .shape.rope;
    assert_int_equal(rope.kind, ROPE_LLAMA3);
    assert_true(rope.factor == 32 && rope.high_freq_factor == 4 && rope.low_freq_factor == 1);
    assert_true(rope.original_max_position == 8192);

    /* absent: the whole context; beside the object: as Phi3 writes it */
    rope = accepted(with(LLAMA, "\"max_position_embeddings\":512,\"rope_scaling\":{\"factor\":8,"
                                "\"high_freq_factor\":4,\"low_freq_factor\":1,"
                                "\"rope_type\":\"llama3\"}"))
               .shape.rope;
    assert_true(rope.original_max_position == 512);
    rope = accepted(with(QWEN3, "\"original_max_position_embeddings\":64,\"rope_scaling\":{"
                                "\"factor\":8,\"rope_type\":\"yarn\"}"))
               .shape.rope;
    assert_true(rope.original_max_position == 64);
}

static void
rope_that_is_not_understood_is_refused(void **state)
{
    static const struct {
        const char *field, *message;
    } bad[] = {
        {"\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2}", "rope_type: dynamic"},
        {"\"rope_scaling\":{\"rope_type\":\"longrope\"}", "rope_type: longrope"},
        {"\"rope_scaling\":{\"rope_type\":\"yarn\",\"type\":\"linear\",\"factor\":2}", "type says"},
        {"\"rope_scaling\":{\"rope_type\":3}", "rope_type: expected a string"},
        {"\"rope_scaling\":[]", "rope_scaling: not an object"},
        {"\"rope_scaling\":{},\"rope_parameters\":{}", "both rope_parameters and rope_scaling"},
        {"\"rope_parameters\":{\"full_attention\":{\"rope_theta\":1e4}}", "full_attention is not"},
        {"\"rope_parameters\":{\"mrope_section\":[1]}", "mrope_section is not understood"},
        {"\"rope_parameters\":{\"factor\":2}", "factor does not belong to rope type default"},
        {"\"rope_parameters\":{\"rope_type\":\"linear\"}", "factor is missing"},
        {"\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":0.5}", "factor: 0.5 is not in"},
        {"\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":2,\"beta_fast\":3}",
         "beta_fast"},
        {"\"rope_parameters\":{\"rope_theta\":1e4},\"rope_theta\":2e4", "rope_theta"},
        {"\"rope_theta\":0", "rope_theta"},
        {"\"rope_theta\":1e19", "rope_theta"},
        {"\"rope_theta\":1,\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":2}", "more than 1"},
        {"\"rope_parameters\":{\"partial_rotary_factor\":0.5}", "partial_rotary_factor"},
        {"\"partial_rotary_factor\":0.5", "partial_rotary_factor"},
        {"\"rope_parameters\":{\"rope_type\":\"yarn\",\"factor\":2,\"beta_fast\":1,\"beta_slow\":"
         "2}",
         "beta_fast"},
        {"\"rope_parameters\":{\"rope_type\":\"yarn\",\"factor\":2,\"truncate\":0}", "truncate"},
        {"\"rope_parameters\":{\"rope_type\":\"yarn\",\"original_max_position_embeddings\":65536}",
         "factor is missing and"},
        {"\"rope_parameters\":{\"rope_type\":\"yarn\",\"factor\":2,"
         "\"original_max_position_embeddings\":0}",
         "original_max_position_embeddings"},
        {"\"original_max_position_embeddings\":64,\"rope_parameters\":{\"rope_type\":\"yarn\","
         "\"factor\":2,\"original_max_position_embeddings\":65}",
         "original_max_position_embeddings"},
        {"\"rope_parameters\":{\"rope_type\":\"llama3\",\"factor\":2,\"low_freq_factor\":4,"
         "\"high_freq_factor\":4}",
         "high_freq_factor"},
        {"\"rope_parameters\":{\"rope_type\":\"llama3\",\"factor\":2,\"low_freq_factor\":4}",
         "high_freq_factor is missing"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        refused(with(QWEN3, bad[i].field), bad[i].message);
}

static void
fields_that_would_change_the_result_are_refused(void **state)
{
    static const char *const bad[] = {
        "\"quantization_config\":{\"quant_method\":\"fp8\"}",
        "\"quantization_config\":{}",
        "\"final_logit_softcapping\":30.0",
        "\"attn_logit_softcapping\":50",
        "\"logit_scale\":0.5",
        "\"num_experts\":8",
        "\"num_local_experts\":8",
        "\"n_routed_experts\":64",
        "\"moe_intermediate_size\":768",
        "\"pretraining_tp\":2",
        "\"rotary_pct\":0.25",
        "\"kv_lora_rank\":512",
        "\"attention_chunk_size\":8192",
        "\"qkv_bias\":true",
        "\"is_encoder_decoder\":true",
        "\"vision_config\":{}",
        "\"text_config\":{}",
        "\"dual_chunk_attention_config\":{\"chunk_size\":1}",
        "\"residual_multiplier\":0.22",
        "\"num_residual_streams\":4",
        "\"engram\":{}",
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        char name[64];
        (void)snprintf(name, sizeof name, "%.*s", (int)strcspn(bad[i] + 1, "\""), bad[i] + 1);
        refused(with(QWEN3, bad[i]), name);
    }
    struct model_config config = accepted(with(
        QWEN3, "\"quantization_config\":null,\"num_experts\":0,\"pretraining_tp\":1,"
               "\"logit_scale\":1.0,\"qkv_bias\":false,\"kv_lora_rank\":null,"
               "\"partial_rotary_factor\":1.0,\"is_encoder_decoder\":false,\"is_causal\":true"));
    assert_string_equal(config.unknown, "");
}

static void
fields_nobody_knows_are_listed(void **state)
{
    struct model_config config = accepted_with(
        with(QWEN3,
             "\"unsloth_fixed\":true,\"_name_or_path\":\"x\",\"nothing\":null,\"auto_map\":{}"),
        "{\"num_beams\":4,\"_from_model_config\":true,\"do_sample\":false,\"typical_p\":null}");
    assert_string_equal(config.unknown, "unsloth_fixed, auto_map, generation_config.num_beams");
    assert_true(config.temperature == 1);

    /* a thousand of them stay within the text */
    static char text[60000];
    size_t used = (size_t)snprintf(text, sizeof text, "{" QWEN3);
    for (int i = 0; i < 1000; i++)
        used += (size_t)snprintf(text + used, sizeof text - used, ",\"unknown_field_%d\":1", i);
    (void)snprintf(text + used, sizeof text - used, "}");
    config = accepted_with(text, "{\"num_beams\":4}");
    assert_in_range(strlen(config.unknown), 450, sizeof config.unknown - 1);
    assert_string_equal(config.unknown + strlen(config.unknown) - 5, ", ...");

    /* one name longer than the text */
    memset(text, 'n', 1000);
    memcpy(text, "{" QWEN3 ",\"", sizeof "{" QWEN3 ",\"" - 1);
    (void)snprintf(text + 1000, 10, "\":1}");
    assert_string_equal(accepted(text).unknown, "...");
}

static void
eos_comes_from_the_generation_config_first(void **state)
{
    struct model_config config = accepted_with(
        with(QWEN3, "\"eos_token_id\":[7,8,7],\"bos_token_id\":3"), "{\"eos_token_id\":null}");
    assert_int_equal(config.n_eos, 2);
    assert_int_equal(config.eos[1], 8);
    assert_int_equal(config.bos, 3);
    config = accepted_with(with(QWEN3, "\"eos_token_id\":7,\"bos_token_id\":3"),
                           "{\"eos_token_id\":[9],\"bos_token_id\":4}");
    assert_int_equal(config.n_eos, 1);
    assert_int_equal(config.eos[0], 9);
    assert_int_equal(config.bos, 4);
    config = accepted_with(with(QWEN3, "\"eos_token_id\":999"), "{\"eos_token_id\":[]}");
    assert_int_equal(config.eos[0], 999);

    refused(with(QWEN3, "\"eos_token_id\":1000"), "config.json: eos_token_id");
    refused(with(QWEN3, "\"eos_token_id\":-1"), "eos_token_id");
    refused(with(QWEN3, "\"eos_token_id\":[1,\"2\"]"), "eos_token_id");
    refused(with(QWEN3, "\"eos_token_id\":1.0"), "eos_token_id");
    refused(with(QWEN3, "\"bos_token_id\":1000"), "bos_token_id");
    refused_with("{" QWEN3 "}", "{\"eos_token_id\":1000}", "generation_config.json: eos_token_id");
    config = accepted(with(QWEN3, "\"eos_token_id\":[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15]"));
    assert_int_equal(config.n_eos, CONFIG_MAX_EOS);
    refused(with(QWEN3, "\"eos_token_id\":[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]"),
            "more than 16");
}

static void
sampling_defaults_are_bounded(void **state)
{
    struct model_config config =
        accepted_with("{" QWEN3 "}", "{\"temperature\":0,\"top_p\":0.5,\"top_k\":-1,\"min_p\":0.05,"
                                     "\"repetition_penalty\":1.1}");
    assert_true(config.temperature == 0 && config.top_p == 0.5 && config.top_k == 0);
    assert_true(config.min_p == 0.05 && config.repetition_penalty == 1.1);
    static const char *const bad[] = {"{\"temperature\":-0.1}",
                                      "{\"temperature\":101}",
                                      "{\"temperature\":\"1\"}",
                                      "{\"top_p\":1.1}",
                                      "{\"top_p\":-1}",
                                      "{\"min_p\":2}",
                                      "{\"top_k\":-2}",
                                      "{\"top_k\":2147483648}",
                                      "{\"top_k\":1.5}",
                                      "{\"top_k\":[1]}",
                                      "{\"repetition_penalty\":0}",
                                      "[]",
                                      "",
                                      "{\"temperature\":Infinity}"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        refused_with("{" QWEN3 "}", bad[i], "generation_config.json");
}

static void
the_engram_object_is_read_and_its_constants_derived(void **state)
{
    struct model_config config = accepted(engram_with("{", "{"));
    const struct engram_shape *e = &config.shape.engram;
    assert_int_equal(config.shape.family, FAMILY_ENGRAM);
    assert_true(config.shape.qk_norm);
    assert_int_equal(e->n_layers, 2);
    assert_int_equal(e->max_order, 3);
    assert_int_equal(e->heads, 4);
    assert_int_equal(e->head_dim, 16);
    assert_int_equal(e->conv_kernel, 4);
    assert_true(e->norm_eps == 1e-6f);
    assert_int_equal(e->table_dtype, DTYPE_F8_E4M3);
    assert_int_equal(e->scale_group, 8);
    assert_int_equal(e->compressed_vocab, 1000);
    assert_int_equal(e->pad_id, 2);
    assert_int_equal(e->table[0].layer, 1);
    assert_int_equal(e->table[0].multiplier[0], 7593627661414631);
    assert_int_equal(e->table[0].prime[1][3], 7027);
    assert_int_equal(e->table[0].rows, 5003 + 5009 + 5011 + 5021 + 7001 + 7013 + 7019 + 7027);
    assert_int_equal(e->table[1].layer, 3);
    assert_int_equal(e->table[1].prime[0][0], 5023);
}

/* The primes belong to the order of the list, the tables stand in order of layer. */
static void
layers_may_be_listed_in_any_order(void **state)
{
    struct model_config config = accepted(engram_with("[1,3]", "[3,1]"));
    const struct engram_shape *e = &config.shape.engram;
    assert_int_equal(e->table[0].layer, 1);
    assert_int_equal(e->table[0].multiplier[0], 7593627661414631);
    assert_int_equal(e->table[0].prime[0][0], 5023);
    assert_int_equal(e->table[1].layer, 3);
    assert_int_equal(e->table[1].prime[0][0], 5003);
}

static void
an_engram_model_without_the_object_is_plain(void **state)
{
    struct model_config config = accepted("{\"model_type\":\"engram\"," SIZES "}");
    assert_int_equal(config.shape.engram.n_layers, 0);
    config = accepted("{\"model_type\":\"engram\"," SIZES ",\"engram\":null}");
    assert_int_equal(config.shape.engram.n_layers, 0);
}

static void
the_engram_object_is_checked_field_by_field(void **state)
{
    static const struct {
        const char *from, *to, *message;
    } bad[] = {
        {"\"seed\":0", "\"seed\":0,\"extra\":1", "engram.extra is not understood"},
        {"\"seed\":0", "\"seed\":0,\"_note\":1", "engram._note is not understood"},
        {"\"seed\":0", "\"seed\":-1", "engram.seed"},
        {"\"seed\":0", "\"seed\":0.5", "engram.seed"},
        {"\"seed\":0", "\"seed\":null", "engram.seed is missing"},
        {"[1,3]", "[1,1]", "layer_ids names layer 1 twice"},
        {"[1,3]", "[1,4]", "layer_ids[1] is not an integer in 0..3"},
        {"[1,3]", "[-1]", "layer_ids[0]"},
        {"[1,3]", "[]", "layer_ids has 0 elements"},
        {"[1,3]", "[0,1,2,3,0,1,2,3,0]", "layer_ids has 9 elements"},
        {"[1,3]", "1", "layer_ids is missing or not an array"},
        {"\"max_ngram_size\":3", "\"max_ngram_size\":1", "max_ngram_size"},
        {"\"max_ngram_size\":3", "\"max_ngram_size\":7", "max_ngram_size"},
        {"\"max_ngram_size\":3", "\"max_ngram_size\":4", "max_ngram_size asks for 3"},
        {"\"heads_per_ngram\":4", "\"heads_per_ngram\":0", "heads_per_ngram"},
        {"\"heads_per_ngram\":4", "\"heads_per_ngram\":33", "heads_per_ngram"},
        {"\"head_dim\":16", "\"head_dim\":0", "engram.head_dim"},
        {"\"head_dim\":16", "\"head_dim\":4097", "engram.head_dim"},
        {"[5000,7000]", "[5000,0]", "vocab_size_per_ngram[1]"},
        {"[5000,7000]", "[5000,1099511627777]", "vocab_size_per_ngram[1]"},
        {"[5000,7000]", "[5000]", "max_ngram_size asks for 2"},
        {"[5000,7000]", "[5000,\"7000\"]", "vocab_size_per_ngram[1]"},
        {"\"compressed_vocab_size\":1000", "\"compressed_vocab_size\":0", "compressed_vocab_size"},
        {"\"compressed_vocab_size\":1000", "\"compressed_vocab_size\":1001",
         "compressed_vocab_size"},
        {"\"pad_token_id\":2", "\"pad_token_id\":1000", "pad_token_id"},
        {"\"pad_token_id\":2", "\"pad_token_id\":-1", "pad_token_id"},
        {"\"conv_kernel_size\":4", "\"conv_kernel_size\":0", "conv_kernel_size"},
        {"\"conv_kernel_size\":4", "\"conv_kernel_size\":17", "conv_kernel_size"},
        {"\"norm_eps\":1e-6", "\"norm_eps\":-1", "norm_eps"},
        {"\"norm_eps\":1e-6", "\"norm_eps\":null", "norm_eps is missing"},
        {"\"F8_E4M3\"", "\"F16\"", "table_dtype: F16"},
        {"\"F8_E4M3\"", "null", "table_dtype: nothing"},
        {"\"table_scale_group\":8", "\"table_scale_group\":5", "does not divide head_dim"},
        {"\"table_scale_group\":8", "\"table_scale_group\":0", "table_scale_group"},
        {"\"table_scale_group\":8", "\"table_scale_group\":17", "table_scale_group"},
        {"{" ENGRAM "}", "[]", "engram is not an object"},
        {"{" ENGRAM "}", "{}", "layer_ids is missing"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        refused(engram_with(bad[i].from, bad[i].to), bad[i].message);
    assert_int_equal(accepted(engram_with("\"table_scale_group\":8", "\"table_scale_group\":null"))
                         .shape.engram.scale_group,
                     0);
    /* Scales come with fp8 only; a group that is declared all the same says nothing. */
    assert_int_equal(accepted(engram_with("\"F8_E4M3\"", "\"BF16\"")).shape.engram.scale_group, 0);
}

static void
text_that_is_not_a_json_object_is_refused(void **state)
{
    static const char *const bad[] = {"",      "[]",   "null",
                                      "3",     "{",    "{\"model_type\":\"qwen3\",}",
                                      "{} {}", "\xff", "{\"a\":\"\xc3\x28\"}"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        refused(bad[i], "config.json");
}

static void
every_truncation_is_refused(void **state)
{
    const char *whole = engram_with("{", "{");
    for (size_t n = 0; n < strlen(whole); n++) {
        struct model_config config;
        char *part = malloc(n ? n : 1);
        memcpy(part, whole, n);
        assert_int_equal(model_config_parse(&config, part, n, NULL, 0, NULL), -EBADMSG);
        free(part);
    }
}

static void
every_single_byte_mutation_is_answered(void **state)
{
    char text[3000];
    (void)snprintf(text, sizeof text, "%s", engram_with("{", "{"));
    size_t n = strlen(text);
    for (size_t at = 0; at < n; at++) {
        char before = text[at];
        for (int value = 0; value < 256; value += 1 + (value > 0 && value < 31)) {
            struct model_config config;
            text[at] = (char)value;
            int r = model_config_parse(&config, text, n, NULL, 0, NULL);
            assert_true(r == 0 || r == -EBADMSG);
        }
        text[at] = before;
    }
}

static void
files_are_read_from_the_folder(void **state)
{
    struct model_config config;
    struct err err = ERR_INIT;
    assert_int_equal(model_config_read(&config, scratch_folder, &err), -ENOENT);
    assert_non_null(strstr(err.text, "config.json"));
    assert_int_equal(scratch_write_text("config.json", "{" QWEN3 "}"), 0);
    assert_int_equal(model_config_read(&config, scratch_folder, NULL), 0);
    assert_true(config.temperature == 1);
    assert_int_equal(scratch_write_text("generation_config.json", "{\"temperature\":0.6}"), 0);
    assert_int_equal(model_config_read(&config, scratch_folder, NULL), 0);
    assert_true(config.temperature == 0.6);

    err = ERR_INIT;
    assert_int_equal(scratch_write_text("generation_config.json", "{\"temperature\":"), 0);
    assert_int_equal(model_config_read(&config, scratch_folder, &err), -EBADMSG);
    assert_non_null(strstr(err.text, "generation_config.json:1:"));
    assert_int_equal(unlink(scratch_path("generation_config.json")), 0);
    assert_int_equal(mkdir(scratch_path("generation_config.json"), 0700), 0);
    assert_int_equal(model_config_read(&config, scratch_folder, NULL), -EBADMSG);
    assert_int_equal(rmdir(scratch_path("generation_config.json")), 0);

    err = ERR_INIT;
    assert_int_equal(scratch_write_text("config.json", "{\"model_type\":\"x\"}"), 0);
    assert_int_equal(model_config_read(&config, scratch_folder, &err), -EBADMSG);
    assert_non_null(strstr(err.text, scratch_folder));
    assert_non_null(strstr(err.text, "model_type: x"));

    /* one past the largest file that is read */
    err = ERR_INIT;
    assert_int_equal(truncate(scratch_path("config.json"), (4 << 20) + 1), 0);
    assert_int_equal(model_config_read(&config, scratch_folder, &err), -EBADMSG);
    assert_non_null(strstr(err.text, "more than the limit"));
}

#define SCRATCH(test) cmocka_unit_test_setup_teardown(test, scratch_make, scratch_remove)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(absent_fields_of_qwen3_mean_what_transformers_means),
        cmocka_unit_test(absent_fields_of_llama_mean_what_transformers_means),
        cmocka_unit_test(a_real_qwen3_config_is_read),
        cmocka_unit_test(family_and_architecture_must_go_together),
        cmocka_unit_test(sizes_must_be_there_and_within_bounds),
        cmocka_unit_test(heads_must_divide),
        cmocka_unit_test(biases_activation_and_windows),
        cmocka_unit_test(both_forms_of_rope_parameters_are_read),
        cmocka_unit_test(rope_that_is_not_understood_is_refused),
        cmocka_unit_test(fields_that_would_change_the_result_are_refused),
        cmocka_unit_test(fields_nobody_knows_are_listed),
        cmocka_unit_test(eos_comes_from_the_generation_config_first),
        cmocka_unit_test(sampling_defaults_are_bounded),
        cmocka_unit_test(the_engram_object_is_read_and_its_constants_derived),
        cmocka_unit_test(layers_may_be_listed_in_any_order),
        cmocka_unit_test(an_engram_model_without_the_object_is_plain),
        cmocka_unit_test(the_engram_object_is_checked_field_by_field),
        cmocka_unit_test(text_that_is_not_a_json_object_is_refused),
        cmocka_unit_test(every_truncation_is_refused),
        cmocka_unit_test(every_single_byte_mutation_is_answered),
        SCRATCH(files_are_read_from_the_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
