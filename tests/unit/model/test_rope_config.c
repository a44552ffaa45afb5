#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/unit/model/config_case.h"

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

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_forms_of_rope_parameters_are_read),
        cmocka_unit_test(rope_that_is_not_understood_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
