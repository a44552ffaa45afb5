#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/unit/model/config_case.h"

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

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fields_that_would_change_the_result_are_refused),
        cmocka_unit_test(fields_nobody_knows_are_listed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
