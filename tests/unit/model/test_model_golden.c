/* The checkpoints of tests/golden, loaded whole, and their hash constants and rows against what
 * PyTorch and numpy computed. Run from the root of the source tree. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <limits.h>

#include "model/model_config.h"
#include "model/ngram_hash.h"
#include "model/tensor_plan.h"
#include "tests/unit/model/scratch_folder.h"

#define GOLDEN "tests/golden/"

static const char *const models[] = {"qwen3_tiny",  "qwen3_yarn",  "llama_tiny",
                                     "llama3_rope", "engram_tiny", "engram_bf16"};
enum { N_MODELS = sizeof models / sizeof models[0], VOCAB = 384 };

static void
read_config(const char *model, struct model_config *config)
{
    char path[200];
    struct err err = ERR_INIT;
    (void)snprintf(path, sizeof path, GOLDEN "%s", model);
    if (model_config_read(config, path, &err) < 0)
        fail_msg("%s", err.text);
}

/* Every tensor of the folder has a role in the model its config describes. */
static void
check_plan(const char *path, const struct model_config *config)
{
    struct checkpoint *checkpoint;
    struct tensor_plan plan;
    struct err err = ERR_INIT;
    if (checkpoint_open(&checkpoint, path, &err) < 0 ||
        tensor_plan_make(&plan, &config->shape, checkpoint, &err) < 0)
        fail_msg("%s", err.text);
    int tables = 0;
    for (int t = 0; t < SHAPE_MAX_ENGRAM_LAYERS; t++)
        tables += (plan.table[t] != NULL) + (plan.scale[t] != NULL);
    assert_int_equal(plan.n_uses + tables, checkpoint_n_tensors(checkpoint));
    tensor_plan_free(&plan);
    (void)checkpoint_close(checkpoint);
}

static void
every_golden_model_loads_completely(void **state)
{
    for (int i = 0; i < N_MODELS; i++) {
        char path[200];
        struct model_config config;
        (void)snprintf(path, sizeof path, GOLDEN "%s", models[i]);
        read_config(models[i], &config);
        assert_string_equal(config.unknown, "");
        assert_int_equal(config.shape.vocab, VOCAB);
        assert_in_range(config.n_eos, 1, 2);
        assert_int_equal(config.eos[0], 383);
        check_plan(path, &config);
    }
}

static void
the_demo_model_loads_completely(void **state)
{
    struct model_config config;
    struct err err = ERR_INIT;
    if (access("models/demo/config.json", R_OK) != 0)
        skip();
    if (model_config_read(&config, "models/demo", &err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(config.shape.family, FAMILY_ENGRAM);
    assert_string_equal(config.unknown, "");
    check_plan("models/demo", &config);
}

static void
the_shapes_are_those_of_the_files(void **state)
{
    struct model_config config;
    read_config("qwen3_yarn", &config);
    assert_int_equal(config.shape.rope.kind, ROPE_YARN);
    assert_true(config.shape.rope.factor == 4 && config.shape.rope.original_max_position == 64);
    read_config("llama3_rope", &config);
    assert_int_equal(config.shape.family, FAMILY_LLAMA);
    assert_int_equal(config.shape.rope.kind, ROPE_LLAMA3);
    assert_true(config.shape.norm_eps == 1e-5f);
    read_config("qwen3_tiny", &config);
    assert_int_equal(config.shape.head_dim, 32);
    assert_false(config.shape.tied_embeddings);
    read_config("engram_tiny", &config);
    assert_true(config.temperature == 0.8);
    assert_int_equal(config.shape.engram.table[0].rows, 2138);
    assert_int_equal(config.shape.engram.table[1].rows, 2328);
    assert_int_equal(config.shape.engram.scale_group, 16);
    read_config("engram_bf16", &config);
    assert_int_equal(config.shape.engram.max_order, 4);
    assert_int_equal(config.shape.engram.table_dtype, DTYPE_BF16);
    assert_int_equal(config.shape.engram.scale_group, 0);
}

/* An I64 tensor of vectors.safetensors; the caller frees it. */
static int64_t *
vector_of(const struct checkpoint *vectors, const char *name, int64_t *ret_count)
{
    const struct tensor *tensor = checkpoint_find(vectors, name);
    assert_non_null(tensor);
    assert_int_equal(tensor->dtype, DTYPE_I64);
    int64_t *values = malloc(tensor->size_bytes);
    assert_int_equal(checkpoint_read(vectors, tensor, 0, values, tensor->size_bytes, NULL), 0);
    *ret_count = (int64_t)(tensor->size_bytes / sizeof *values);
    return values;
}

static void
check_constants(const struct checkpoint *vectors, const struct engram_shape *engram, int table)
{
    char name[64];
    int64_t n;
    const struct engram_table_shape *t = &engram->table[table];
    (void)snprintf(name, sizeof name, "multipliers_l%d", t->layer);
    int64_t *want = vector_of(vectors, name, &n);
    assert_int_equal(n, engram->max_order);
    for (int i = 0; i < n; i++)
        assert_int_equal(t->multiplier[i], want[i]);
    free(want);
    (void)snprintf(name, sizeof name, "primes_l%d", t->layer);
    want = vector_of(vectors, name, &n);
    assert_int_equal(n, (engram->max_order - 1) * engram->heads);
    for (int c = 0; c < n; c++)
        assert_int_equal(t->prime[c / engram->heads][c % engram->heads], want[c]);
    free(want);
}

static void
check_rows(const struct checkpoint *vectors, const struct engram_shape *engram, int table)
{
    char name[64];
    int64_t tokens, vocab, cells, c = 0;
    const struct engram_table_shape *t = &engram->table[table];
    (void)snprintf(name, sizeof name, "rows_l%d", t->layer);
    int64_t *ids = vector_of(vectors, "ids", &tokens);
    int64_t *map = vector_of(vectors, "compressed_map", &vocab);
    int64_t *rows = vector_of(vectors, name, &cells);
    assert_int_equal(cells, tokens * (engram->max_order - 1) * engram->heads);
    for (int64_t p = 0; p < tokens; p++) {
        int32_t window[SHAPE_MAX_ORDER];
        uint64_t mix[SHAPE_MAX_ORDERS];
        for (int k = 0; k < engram->max_order; k++)
            window[k] = p < k ? engram->pad_id : (int32_t)map[ids[p - k]];
        ngram_hash_mix(engram, table, window, mix);
        for (int order = 0; order < engram->max_order - 1; order++) {
            for (int head = 0; head < engram->heads; head++)
                assert_int_equal(t->row_base[order][head] +
                                     (int64_t)(mix[order] % (uint64_t)t->prime[order][head]),
                                 rows[c++]);
        }
    }
    free(ids);
    free(map);
    free(rows);
}

static void
hash_constants_and_rows_equal_the_reference(void **state)
{
    static const char *const engrams[] = {"engram_tiny", "engram_bf16"};
    for (int i = 0; i < 2; i++) {
        char target[PATH_MAX];
        struct model_config config;
        struct checkpoint *vectors;
        struct err err = ERR_INIT;
        read_config(engrams[i], &config);
        (void)snprintf(target, sizeof target, "%s/" GOLDEN "%s/vectors.safetensors",
                       getcwd(target + 2000, 1000), engrams[i]);
        (void)unlink(scratch_path("model.safetensors"));
        assert_int_equal(symlink(target, scratch_path("model.safetensors")), 0);
        if (checkpoint_open(&vectors, scratch_folder, &err) < 0)
            fail_msg("%s", err.text);
        for (int t = 0; t < config.shape.engram.n_layers; t++) {
            check_constants(vectors, &config.shape.engram, t);
            check_rows(vectors, &config.shape.engram, t);
        }
        (void)checkpoint_close(vectors);
    }
}

int
main(void)
{
    if (access(GOLDEN "engram_tiny/config.json", R_OK) != 0) {
        print_message("skipped: no " GOLDEN " here\n");
        return 77;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_golden_model_loads_completely),
        cmocka_unit_test(the_demo_model_loads_completely),
        cmocka_unit_test(the_shapes_are_those_of_the_files),
        cmocka_unit_test_setup_teardown(hash_constants_and_rows_equal_the_reference, scratch_make,
                                        scratch_remove),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
