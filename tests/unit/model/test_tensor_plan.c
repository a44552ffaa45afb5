#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdbool.h>

#include "model/tensor_plan.h"
#include "tests/unit/model/scratch_folder.h"

/* A tensor to write. */
struct spec {
    const char *name, *dtype;
    int rank;
    int dim[4];
};

/* hidden 8, heads 2 of 6, 1 KV head, intermediate 10, vocab 20, 2 layers, tables of 4 columns of 4
 */
#define LAYER(l)                                                                                   \
    {"model.layers." l ".input_layernorm.weight", "BF16", 1, {8}},                                 \
        {"model.layers." l ".self_attn.q_proj.weight", "BF16", 2, {12, 8}},                        \
        {"model.layers." l ".self_attn.k_proj.weight", "BF16", 2, {6, 8}},                         \
        {"model.layers." l ".self_attn.v_proj.weight", "BF16", 2, {6, 8}},                         \
        {"model.layers." l ".self_attn.o_proj.weight", "BF16", 2, {8, 12}},                        \
        {"model.layers." l ".self_attn.q_norm.weight", "BF16", 1, {6}},                            \
        {"model.layers." l ".self_attn.k_norm.weight", "BF16", 1, {6}},                            \
        {"model.layers." l ".post_attention_layernorm.weight", "F32", 1, {8}},                     \
        {"model.layers." l ".mlp.gate_proj.weight", "F16", 2, {10, 8}},                            \
        {"model.layers." l ".mlp.up_proj.weight", "BF16", 2, {10, 8}},                             \
    {                                                                                              \
        "model.layers." l ".mlp.down_proj.weight", "BF16", 2,                                      \
        {                                                                                          \
            8, 10                                                                                  \
        }                                                                                          \
    }

static const struct spec engram_model[] = {
    {"model.embed_tokens.weight", "BF16", 2, {20, 8}},
    {"model.norm.weight", "BF16", 1, {8}},
    {"lm_head.weight", "BF16", 2, {20, 8}},
    LAYER("0"),
    LAYER("1"),
    {"model.layers.1.engram.table.weight", "F8_E4M3", 2, {100, 4}},
    {"model.layers.1.engram.table.scale", "F8_E8M0", 2, {100, 2}},
    {"model.layers.1.engram.key_proj.weight", "BF16", 2, {8, 16}},
    {"model.layers.1.engram.key_proj.bias", "BF16", 1, {8}},
    {"model.layers.1.engram.value_proj.weight", "BF16", 2, {8, 16}},
    {"model.layers.1.engram.value_proj.bias", "BF16", 1, {8}},
    {"model.layers.1.engram.key_norm.weight", "BF16", 2, {1, 8}},
    {"model.layers.1.engram.query_norm.weight", "BF16", 1, {8}},
    {"model.layers.1.engram.conv_norm.weight", "BF16", 2, {1, 8}},
    {"model.layers.1.engram.conv.weight", "BF16", 3, {8, 1, 4}},
};
enum { N_ENGRAM = sizeof engram_model / sizeof engram_model[0] };

static struct model_shape
engram_shape(void)
{
    return (struct model_shape){.family = FAMILY_ENGRAM,
                                .vocab = 20,
                                .hidden = 8,
                                .layers = 2,
                                .heads = 2,
                                .kv_heads = 1,
                                .head_dim = 6,
                                .intermediate = 10,
                                .qk_norm = true,
                                .engram = {.n_layers = 1,
                                           .max_order = 3,
                                           .heads = 2,
                                           .head_dim = 4,
                                           .conv_kernel = 4,
                                           .table_dtype = DTYPE_F8_E4M3,
                                           .scale_group = 2,
                                           .table = {{.layer = 1, .rows = 100}}}};
}

static struct checkpoint *
checkpoint_of(const struct spec *specs, int n)
{
    static char header[60000];
    char shape[80];
    size_t used = 1, end = 0;
    header[0] = '{';
    for (int i = 0; i < n; i++) {
        int64_t bytes = (int64_t)dtype_size_bytes(
            (enum dtype)dtype_from_name(specs[i].dtype, strlen(specs[i].dtype)));
        size_t at = 0;
        shape[0] = '\0';
        for (int d = 0; d < specs[i].rank; d++) {
            at += (size_t)snprintf(shape + at, sizeof shape - at, "%s%d", d ? "," : "",
                                   specs[i].dim[d]);
            bytes *= specs[i].dim[d];
        }
        used += (size_t)snprintf(
            header + used, sizeof header - used,
            "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}", i ? "," : "",
            specs[i].name, specs[i].dtype, shape, end, end + (size_t)bytes);
        end += (size_t)bytes;
    }
    (void)snprintf(header + used, sizeof header - used, "}");
    assert_int_equal(scratch_write_safetensors("model.safetensors", header, end), 0);
    struct checkpoint *checkpoint = NULL;
    struct err err = ERR_INIT;
    if (checkpoint_open(&checkpoint, scratch_folder, &err) != 0)
        fail_msg("%s", err.text);
    return checkpoint;
}

static void
refused(const struct model_shape *shape, const struct spec *specs, int n, const char *name,
        const char *message)
{
    struct checkpoint *checkpoint = checkpoint_of(specs, n);
    struct tensor_plan plan = {.n_uses = 77};
    struct err err = ERR_INIT;
    assert_int_equal(tensor_plan_make(&plan, shape, checkpoint, &err), -EBADMSG);
    assert_int_equal(plan.n_uses, 77);
    if (!strstr(err.text, name) || !strstr(err.text, message))
        fail_msg("\"%s\" does not say \"%s\" and \"%s\"", err.text, name, message);
    (void)checkpoint_close(checkpoint);
}

static const struct tensor *
tensor_of(const struct tensor_plan *plan, enum tensor_role role, int layer)
{
    const struct tensor *found = NULL;
    for (int i = 0; i < plan->n_uses; i++) {
        if (plan->uses[i].role == role && plan->uses[i].layer == layer) {
            assert_null(found); /* once */
            found = plan->uses[i].tensor;
        }
    }
    return found;
}

static void
every_tensor_gets_its_role(void **state)
{
    struct model_shape shape = engram_shape();
    struct checkpoint *checkpoint = checkpoint_of(engram_model, N_ENGRAM);
    struct tensor_plan plan;
    struct err err = ERR_INIT;
    assert_int_equal(tensor_plan_make(&plan, &shape, checkpoint, &err), 0);
    assert_int_equal(plan.n_uses, N_ENGRAM - 2);
    static const struct {
        enum tensor_role role;
        int layer;
        const char *name;
    } want[] = {
        {ROLE_EMBED, -1, "model.embed_tokens.weight"},
        {ROLE_FINAL_NORM, -1, "model.norm.weight"},
        {ROLE_LM_HEAD, -1, "lm_head.weight"},
        {ROLE_ATTN_NORM, 0, "model.layers.0.input_layernorm.weight"},
        {ROLE_Q, 1, "model.layers.1.self_attn.q_proj.weight"},
        {ROLE_K, 1, "model.layers.1.self_attn.k_proj.weight"},
        {ROLE_V, 1, "model.layers.1.self_attn.v_proj.weight"},
        {ROLE_O, 1, "model.layers.1.self_attn.o_proj.weight"},
        {ROLE_Q_NORM, 0, "model.layers.0.self_attn.q_norm.weight"},
        {ROLE_K_NORM, 0, "model.layers.0.self_attn.k_norm.weight"},
        {ROLE_MLP_NORM, 0, "model.layers.0.post_attention_layernorm.weight"},
        {ROLE_GATE, 0, "model.layers.0.mlp.gate_proj.weight"},
        {ROLE_UP, 0, "model.layers.0.mlp.up_proj.weight"},
        {ROLE_DOWN, 0, "model.layers.0.mlp.down_proj.weight"},
        {ROLE_ENGRAM_KEY, 1, "model.layers.1.engram.key_proj.weight"},
        {ROLE_ENGRAM_KEY_BIAS, 1, "model.layers.1.engram.key_proj.bias"},
        {ROLE_ENGRAM_VALUE, 1, "model.layers.1.engram.value_proj.weight"},
        {ROLE_ENGRAM_VALUE_BIAS, 1, "model.layers.1.engram.value_proj.bias"},
        {ROLE_ENGRAM_KEY_NORM, 1, "model.layers.1.engram.key_norm.weight"},
        {ROLE_ENGRAM_QUERY_NORM, 1, "model.layers.1.engram.query_norm.weight"},
        {ROLE_ENGRAM_CONV_NORM, 1, "model.layers.1.engram.conv_norm.weight"},
        {ROLE_ENGRAM_CONV, 1, "model.layers.1.engram.conv.weight"},
    };
    for (size_t i = 0; i < sizeof want / sizeof want[0]; i++) {
        const struct tensor *tensor = tensor_of(&plan, want[i].role, want[i].layer);
        assert_non_null(tensor);
        assert_string_equal(tensor->name, want[i].name);
    }
    assert_null(tensor_of(&plan, ROLE_ENGRAM_KEY, 0));
    assert_null(tensor_of(&plan, ROLE_Q_BIAS, 0));
    assert_string_equal(plan.table[0]->name, "model.layers.1.engram.table.weight");
    assert_string_equal(plan.scale[0]->name, "model.layers.1.engram.table.scale");
    assert_null(plan.table[1]);
    tensor_plan_free(&plan);
    assert_null(plan.uses);
    tensor_plan_free(&plan);
    (void)checkpoint_close(checkpoint);
}

static void
every_missing_tensor_is_named(void **state)
{
    struct model_shape shape = engram_shape();
    struct spec specs[N_ENGRAM];
    for (int i = 0; i < N_ENGRAM; i++) {
        memcpy(specs, engram_model, sizeof specs);
        specs[i] = specs[N_ENGRAM - 1];
        refused(&shape, specs, N_ENGRAM - 1, engram_model[i].name, "is missing");
    }
}

static void
every_wrong_shape_is_named(void **state)
{
    struct model_shape shape = engram_shape();
    struct spec specs[N_ENGRAM];
    for (int i = 0; i < N_ENGRAM; i++) {
        for (int d = 0; d < engram_model[i].rank; d++) {
            memcpy(specs, engram_model, sizeof specs);
            specs[i].dim[d] += specs[i].dim[d] == 1 ? 1 : -1;
            refused(&shape, specs, N_ENGRAM, engram_model[i].name, "expected [");
        }
        memcpy(specs, engram_model, sizeof specs);
        specs[i].dim[specs[i].rank++] = 2;
        refused(&shape, specs, N_ENGRAM, engram_model[i].name, "expected [");
        memcpy(specs, engram_model, sizeof specs);
        specs[i].rank = 0;
        refused(&shape, specs, N_ENGRAM, engram_model[i].name, "shape []");
    }
    /* transposed */
    memcpy(specs, engram_model, sizeof specs);
    specs[4].dim[0] = 8, specs[4].dim[1] = 12;
    refused(&shape, specs, N_ENGRAM, specs[4].name, "shape [8, 12], expected [12, 8]");
}

static void
every_wrong_dtype_is_named(void **state)
{
    struct model_shape shape = engram_shape();
    struct spec specs[N_ENGRAM];
    for (int i = 0; i < N_ENGRAM; i++) {
        bool table = strstr(engram_model[i].name, ".table.") != NULL;
        static const char *const bad[] = {"F64", "I8", "F8_E4M3", "F8_E8M0", "BF16"};
        for (int b = 0; b < 5; b++) {
            if (strcmp(bad[b], engram_model[i].dtype) == 0 || (!table && b == 4))
                continue;
            memcpy(specs, engram_model, sizeof specs);
            specs[i].dtype = bad[b];
            refused(&shape, specs, N_ENGRAM, engram_model[i].name, "expected");
        }
    }
}

static void
unexpected_tensors_are_named(void **state)
{
    static const char *const extra[] = {"model.layers.2.input_layernorm.weight",
                                        "model.layers.0.self_attn.q_proj.bias",
                                        "model.layers.0.engram.table.weight",
                                        "model.layers.0.self_attn.q_proj.weight_scale",
                                        "model.layers.00.mlp.up_proj.weight",
                                        "lm_head.bias",
                                        "rotary_emb.inv_freq.x",
                                        "xrotary_emb.inv_freq"};
    struct model_shape shape = engram_shape();
    struct spec specs[N_ENGRAM + 1];
    memcpy(specs, engram_model, sizeof engram_model);
    for (size_t i = 0; i < sizeof extra / sizeof extra[0]; i++) {
        specs[N_ENGRAM] = (struct spec){extra[i], "BF16", 1, {8}};
        refused(&shape, specs, N_ENGRAM + 1, extra[i], "is not expected");
    }
}

static void
known_leftovers_are_skipped(void **state)
{
    struct model_shape shape = engram_shape();
    struct spec specs[N_ENGRAM + 2];
    memcpy(specs, engram_model, sizeof engram_model);
    specs[N_ENGRAM] = (struct spec){"model.layers.0.self_attn.rotary_emb.inv_freq", "F32", 1, {3}};
    specs[N_ENGRAM + 1] = (struct spec){"model.rotary_emb.inv_freq", "F32", 1, {3}};
    shape.tied_embeddings = true; /* lm_head.weight is there all the same */
    struct checkpoint *checkpoint = checkpoint_of(specs, N_ENGRAM + 2);
    struct tensor_plan plan;
    assert_int_equal(tensor_plan_make(&plan, &shape, checkpoint, NULL), 0);
    assert_null(tensor_of(&plan, ROLE_LM_HEAD, -1));
    tensor_plan_free(&plan);
    (void)checkpoint_close(checkpoint);
}

static void
a_llama_with_biases_has_its_roles(void **state)
{
    static const struct spec llama[] = {
        {"model.embed_tokens.weight", "F32", 2, {20, 8}},
        {"model.norm.weight", "F32", 1, {8}},
        {"model.layers.0.input_layernorm.weight", "F32", 1, {8}},
        {"model.layers.0.self_attn.q_proj.weight", "F32", 2, {8, 8}},
        {"model.layers.0.self_attn.k_proj.weight", "F32", 2, {4, 8}},
        {"model.layers.0.self_attn.v_proj.weight", "F32", 2, {4, 8}},
        {"model.layers.0.self_attn.o_proj.weight", "F32", 2, {8, 8}},
        {"model.layers.0.self_attn.q_proj.bias", "F32", 1, {8}},
        {"model.layers.0.self_attn.k_proj.bias", "F32", 1, {4}},
        {"model.layers.0.self_attn.v_proj.bias", "F32", 1, {4}},
        {"model.layers.0.self_attn.o_proj.bias", "F32", 1, {8}},
        {"model.layers.0.post_attention_layernorm.weight", "F32", 1, {8}},
        {"model.layers.0.mlp.gate_proj.weight", "F32", 2, {10, 8}},
        {"model.layers.0.mlp.up_proj.weight", "F32", 2, {10, 8}},
        {"model.layers.0.mlp.down_proj.weight", "F32", 2, {8, 10}},
        {"model.layers.0.mlp.gate_proj.bias", "F32", 1, {10}},
        {"model.layers.0.mlp.up_proj.bias", "F32", 1, {10}},
        {"model.layers.0.mlp.down_proj.bias", "F32", 1, {8}},
    };
    enum { N = sizeof llama / sizeof llama[0] };
    struct model_shape shape = {.family = FAMILY_LLAMA,
                                .vocab = 20,
                                .hidden = 8,
                                .layers = 1,
                                .heads = 2,
                                .kv_heads = 1,
                                .head_dim = 4,
                                .intermediate = 10,
                                .tied_embeddings = true,
                                .attention_bias = true,
                                .mlp_bias = true};
    struct checkpoint *checkpoint = checkpoint_of(llama, N);
    struct tensor_plan plan;
    assert_int_equal(tensor_plan_make(&plan, &shape, checkpoint, NULL), 0);
    assert_int_equal(plan.n_uses, N);
    assert_string_equal(tensor_of(&plan, ROLE_K_BIAS, 0)->name, llama[8].name);
    assert_string_equal(tensor_of(&plan, ROLE_O_BIAS, 0)->name, llama[10].name);
    assert_string_equal(tensor_of(&plan, ROLE_DOWN_BIAS, 0)->name, llama[17].name);
    assert_null(tensor_of(&plan, ROLE_Q_NORM, 0));
    tensor_plan_free(&plan);
    (void)checkpoint_close(checkpoint);
    shape.mlp_bias = false;
    refused(&shape, llama, N, "mlp.down_proj.bias", "is not expected");
}

static void
the_largest_shape_fits_the_plan(void **state)
{
    /* 256 layers with every bias, and 8 Engram layers: the count of uses is bounded by a constant.
     */
    struct model_shape shape = {.family = FAMILY_ENGRAM,
                                .vocab = 1,
                                .hidden = 1,
                                .layers = SHAPE_MAX_LAYERS,
                                .heads = 1,
                                .kv_heads = 1,
                                .head_dim = 1,
                                .intermediate = 1,
                                .qk_norm = true,
                                .attention_bias = true,
                                .mlp_bias = true,
                                .engram = {.n_layers = SHAPE_MAX_ENGRAM_LAYERS,
                                           .max_order = 2,
                                           .heads = 1,
                                           .head_dim = 1,
                                           .conv_kernel = 1,
                                           .table_dtype = DTYPE_F8_E4M3,
                                           .scale_group = 1}};
    static const char *const suffix[] = {
        "input_layernorm.weight",  "self_attn.q_proj.weight", "self_attn.k_proj.weight",
        "self_attn.v_proj.weight", "self_attn.o_proj.weight", "self_attn.q_proj.bias",
        "self_attn.k_proj.bias",   "self_attn.v_proj.bias",   "self_attn.o_proj.bias",
        "self_attn.q_norm.weight", "self_attn.k_norm.weight", "post_attention_layernorm.weight",
        "mlp.gate_proj.weight",    "mlp.up_proj.weight",      "mlp.down_proj.weight",
        "mlp.gate_proj.bias",      "mlp.up_proj.bias",        "mlp.down_proj.bias"};
    static const char *const engram[] = {"table.weight",    "table.scale",       "key_proj.weight",
                                         "key_proj.bias",   "value_proj.weight", "value_proj.bias",
                                         "key_norm.weight", "query_norm.weight", "conv_norm.weight",
                                         "conv.weight"};
    enum { N_SUFFIX = 18, N_MODULE = 10, SIZE = 2000000 };
    char *header = malloc(SIZE);
    size_t used = 1, end = 0;
    header[0] = '{';
    for (int l = 0; l < SHAPE_MAX_LAYERS; l++) {
        for (int i = 0; i < N_SUFFIX + (l < SHAPE_MAX_ENGRAM_LAYERS ? N_MODULE : 0); i++) {
            int extra = i - N_SUFFIX;
            const char *dtype = extra == 0 ? "F8_E4M3" : extra == 1 ? "F8_E8M0" : "F16";
            size_t bytes = extra == 0 || extra == 1 ? 1 : 2;
            used +=
                (size_t)snprintf(header + used, SIZE - used,
                                 "\"model.layers.%d.%s%s\":{\"dtype\":\"%s\",\"shape\":[1],"
                                 "\"data_offsets\":[%zu,%zu]},",
                                 l, extra < 0 ? "" : "engram.",
                                 extra < 0 ? suffix[i] : engram[extra], dtype, end, end + bytes);
            end += bytes;
        }
        if (l < SHAPE_MAX_ENGRAM_LAYERS)
            shape.engram.table[l] = (struct engram_table_shape){.layer = l, .rows = 1};
    }
    for (int i = 0; i < 3; i++) {
        static const char *const name[] = {"lm_head", "model.norm", "model.embed_tokens"};
        used += (size_t)snprintf(header + used, SIZE - used,
                                 "\"%s.weight\":{\"dtype\":\"F16\",\"shape\":[1],"
                                 "\"data_offsets\":[%zu,%zu]}%s",
                                 name[i], end, end + 2, i < 2 ? "," : "}");
        end += 2;
    }
    assert_int_equal(scratch_write_safetensors("model.safetensors", header, end), 0);
    free(header);
    struct checkpoint *checkpoint;
    struct tensor_plan plan;
    struct err err = ERR_INIT;
    assert_int_equal(checkpoint_open(&checkpoint, scratch_folder, &err), 0);
    if (tensor_plan_make(&plan, &shape, checkpoint, &err) != 0)
        fail_msg("%s", err.text);
    assert_int_equal(plan.n_uses, SHAPE_MAX_LAYERS * 18 + SHAPE_MAX_ENGRAM_LAYERS * 8 + 3);
    tensor_plan_free(&plan);
    (void)checkpoint_close(checkpoint);
}

#define SCRATCH(test) cmocka_unit_test_setup_teardown(test, scratch_make, scratch_remove)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        SCRATCH(every_tensor_gets_its_role),        SCRATCH(every_missing_tensor_is_named),
        SCRATCH(every_wrong_shape_is_named),        SCRATCH(every_wrong_dtype_is_named),
        SCRATCH(unexpected_tensors_are_named),      SCRATCH(known_leftovers_are_skipped),
        SCRATCH(a_llama_with_biases_has_its_roles), SCRATCH(the_largest_shape_fits_the_plan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
