#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/unit/model/config_case.h"

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

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_engram_object_is_read_and_its_constants_derived),
        cmocka_unit_test(layers_may_be_listed_in_any_order),
        cmocka_unit_test(an_engram_model_without_the_object_is_plain),
        cmocka_unit_test(the_engram_object_is_checked_field_by_field),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
