#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <sys/stat.h>

#include "tests/unit/model/config_case.h"
#include "tests/unit/model/scratch_folder.h"

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
        cmocka_unit_test(eos_comes_from_the_generation_config_first),
        cmocka_unit_test(sampling_defaults_are_bounded),
        cmocka_unit_test(text_that_is_not_a_json_object_is_refused),
        cmocka_unit_test(every_truncation_is_refused),
        cmocka_unit_test(every_single_byte_mutation_is_answered),
        SCRATCH(files_are_read_from_the_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
