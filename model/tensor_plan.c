#include "model/tensor_plan.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"

enum { NAME_BYTES = 160, SHAPE_TEXT_BYTES = 200 };

/* One Engram layer has at most 10 tensors, any layer 18 others, the model 3. */
enum { MAX_USES = 3 + SHAPE_MAX_LAYERS * 18 + SHAPE_MAX_ENGRAM_LAYERS * 10 };

struct planner {
    const struct model_shape *shape;
    const struct checkpoint *checkpoint;
    struct err *err;
    bool *claimed; /* per tensor of the checkpoint */
    int n_uses;
    struct tensor_use *uses;
};

/* What is looked for: name and shape. The dtype is any of the float types unless `dtype` is set. */
struct expected {
    char name[NAME_BYTES];
    int rank;
    int64_t dim[TENSOR_MAX_RANK];
    int dtype; /* enum dtype, or -1 */
};

static void
shape_text(char *out, size_t size, int rank, const int64_t *dim)
{
    size_t used = (size_t)snprintf(out, size, "[");
    for (int i = 0; i < rank && used < size; i++)
        used +=
            (size_t)snprintf(out + used, size - used, "%s%lld", i ? ", " : "", (long long)dim[i]);
    if (used < size)
        (void)snprintf(out + used, size - used, "]");
}

/* Equal shapes; sizes of 1 count for nothing, so [M * D, 1, kernel] is [M * D, kernel], and [1, D]
 * is [D]. The bytes are the same. */
static bool
same_shape(const struct tensor *tensor, const struct expected *expected)
{
    int i = 0, j = 0;
    for (;;) {
        while (i < tensor->rank && tensor->dim[i] == 1)
            i++;
        while (j < expected->rank && expected->dim[j] == 1)
            j++;
        if (i == tensor->rank || j == expected->rank)
            return i == tensor->rank && j == expected->rank;
        if (tensor->dim[i++] != expected->dim[j++])
            return false;
    }
}

static int
check_tensor(const struct planner *planner, const struct tensor *tensor,
             const struct expected *expected)
{
    const char *path = checkpoint_file_path(planner->checkpoint, tensor->file);
    if (!same_shape(tensor, expected)) {
        char want[SHAPE_TEXT_BYTES], found[SHAPE_TEXT_BYTES];
        shape_text(want, sizeof want, expected->rank, expected->dim);
        shape_text(found, sizeof found, tensor->rank, tensor->dim);
        return err_set(planner->err, EBADMSG, "%s: tensor %s: shape %s, expected %s", path,
                       tensor->name, found, want);
    }
    if (expected->dtype >= 0 && tensor->dtype != (enum dtype)expected->dtype)
        return err_set(planner->err, EBADMSG, "%s: tensor %s: dtype %s, expected %s", path,
                       tensor->name, dtype_name(tensor->dtype),
                       dtype_name((enum dtype)expected->dtype));
    if (expected->dtype < 0 && tensor->dtype != DTYPE_BF16 && tensor->dtype != DTYPE_F16 &&
        tensor->dtype != DTYPE_F32)
        return err_set(planner->err, EBADMSG, "%s: tensor %s: dtype %s, expected BF16, F16 or F32",
                       path, tensor->name, dtype_name(tensor->dtype));
    return 0;
}

static int
claim(struct planner *planner, const struct expected *expected, const struct tensor **ret_tensor)
{
    const struct tensor *tensor = checkpoint_find(planner->checkpoint, expected->name);
    if (!tensor) {
        char want[SHAPE_TEXT_BYTES];
        shape_text(want, sizeof want, expected->rank, expected->dim);
        return err_set(planner->err, EBADMSG, "tensor %s %s is missing from the checkpoint",
                       expected->name, want);
    }
    int r = check_tensor(planner, tensor, expected);
    if (r < 0)
        return r;
    planner->claimed[tensor - checkpoint_tensor(planner->checkpoint, 0)] = true;
    *ret_tensor = tensor;
    return 0;
}

static int
use(struct planner *planner, enum tensor_role role, int layer, const struct expected *expected)
{
    const struct tensor *tensor;
    int r = claim(planner, expected, &tensor);
    if (r < 0)
        return r;
    ASSERT(planner->n_uses < MAX_USES);
    planner->uses[planner->n_uses++] =
        (struct tensor_use){.role = role, .layer = layer, .tensor = tensor};
    return 0;
}

/* The tensors of one decoder layer: rows and columns of 0 end a shape early. */
struct layer_tensor {
    enum tensor_role role;
    bool present;
    const char *suffix;
    int64_t rows, columns;
};

static int
use_layer_tensors(struct planner *planner, int layer, const struct layer_tensor *rows, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (!rows[i].present)
            continue;
        struct expected expected = {
            .rank = rows[i].columns ? 2 : 1, .dim = {rows[i].rows, rows[i].columns}, .dtype = -1};
        (void)snprintf(expected.name, sizeof expected.name, "model.layers.%d.%s", layer,
                       rows[i].suffix);
        int r = use(planner, rows[i].role, layer, &expected);
        if (r < 0)
            return r;
    }
    return 0;
}

static int
plan_layer(struct planner *planner, int layer)
{
    const struct model_shape *s = planner->shape;
    int64_t q = (int64_t)s->heads * s->head_dim, kv = (int64_t)s->kv_heads * s->head_dim;
    bool ab = s->attention_bias, mb = s->mlp_bias;
    const struct layer_tensor rows[] = {
        {ROLE_ATTN_NORM, true, "input_layernorm.weight", s->hidden, 0},
        {ROLE_Q, true, "self_attn.q_proj.weight", q, s->hidden},
        {ROLE_K, true, "self_attn.k_proj.weight", kv, s->hidden},
        {ROLE_V, true, "self_attn.v_proj.weight", kv, s->hidden},
        {ROLE_O, true, "self_attn.o_proj.weight", s->hidden, q},
        {ROLE_Q_BIAS, ab, "self_attn.q_proj.bias", q, 0},
        {ROLE_K_BIAS, ab, "self_attn.k_proj.bias", kv, 0},
        {ROLE_V_BIAS, ab, "self_attn.v_proj.bias", kv, 0},
        {ROLE_O_BIAS, ab, "self_attn.o_proj.bias", s->hidden, 0},
        {ROLE_Q_NORM, s->qk_norm, "self_attn.q_norm.weight", s->head_dim, 0},
        {ROLE_K_NORM, s->qk_norm, "self_attn.k_norm.weight", s->head_dim, 0},
        {ROLE_MLP_NORM, true, "post_attention_layernorm.weight", s->hidden, 0},
        {ROLE_GATE, true, "mlp.gate_proj.weight", s->intermediate, s->hidden},
        {ROLE_UP, true, "mlp.up_proj.weight", s->intermediate, s->hidden},
        {ROLE_DOWN, true, "mlp.down_proj.weight", s->hidden, s->intermediate},
        {ROLE_GATE_BIAS, mb, "mlp.gate_proj.bias", s->intermediate, 0},
        {ROLE_UP_BIAS, mb, "mlp.up_proj.bias", s->intermediate, 0},
        {ROLE_DOWN_BIAS, mb, "mlp.down_proj.bias", s->hidden, 0},
    };
    return use_layer_tensors(planner, layer, rows, sizeof rows / sizeof rows[0]);
}

static int
plan_tables(struct planner *planner, int number, struct tensor_plan *plan)
{
    const struct engram_shape *e = &planner->shape->engram;
    const struct engram_table_shape *table = &e->table[number];
    struct expected expected = {
        .rank = 2, .dim = {table->rows, e->head_dim}, .dtype = (int)e->table_dtype};
    (void)snprintf(expected.name, sizeof expected.name, "model.layers.%d.engram.table.weight",
                   table->layer);
    int r = claim(planner, &expected, &plan->table[number]);
    if (r < 0 || !e->scale_group)
        return r;
    expected.dim[1] = e->head_dim / e->scale_group;
    expected.dtype = DTYPE_F8_E8M0;
    (void)snprintf(expected.name, sizeof expected.name, "model.layers.%d.engram.table.scale",
                   table->layer);
    return claim(planner, &expected, &plan->scale[number]);
}

static int
plan_engram(struct planner *planner, int number, struct tensor_plan *plan)
{
    const struct engram_shape *e = &planner->shape->engram;
    int64_t hidden = planner->shape->hidden;
    int64_t columns = (int64_t)(e->max_order - 1) * e->heads * e->head_dim;
    const struct layer_tensor rows[] = {
        {ROLE_ENGRAM_KEY, true, "engram.key_proj.weight", hidden, columns},
        {ROLE_ENGRAM_KEY_BIAS, true, "engram.key_proj.bias", hidden, 0},
        {ROLE_ENGRAM_VALUE, true, "engram.value_proj.weight", hidden, columns},
        {ROLE_ENGRAM_VALUE_BIAS, true, "engram.value_proj.bias", hidden, 0},
        {ROLE_ENGRAM_KEY_NORM, true, "engram.key_norm.weight", 1, hidden},
        {ROLE_ENGRAM_QUERY_NORM, true, "engram.query_norm.weight", 1, hidden},
        {ROLE_ENGRAM_CONV_NORM, true, "engram.conv_norm.weight", 1, hidden},
        {ROLE_ENGRAM_CONV, true, "engram.conv.weight", hidden, e->conv_kernel},
    };
    int r = use_layer_tensors(planner, e->table[number].layer, rows, sizeof rows / sizeof rows[0]);
    return r < 0 ? r : plan_tables(planner, number, plan);
}

static int
plan_model(struct planner *planner, struct tensor_plan *plan)
{
    const struct model_shape *s = planner->shape;
    struct expected embed = {
        .name = "model.embed_tokens.weight", .rank = 2, .dim = {s->vocab, s->hidden}, .dtype = -1};
    struct expected norm = {
        .name = "model.norm.weight", .rank = 1, .dim = {s->hidden}, .dtype = -1};
    struct expected head = embed;
    (void)snprintf(head.name, sizeof head.name, "lm_head.weight");
    int r = use(planner, ROLE_EMBED, -1, &embed);
    for (int layer = 0; r >= 0 && layer < s->layers; layer++)
        r = plan_layer(planner, layer);
    for (int i = 0; r >= 0 && i < s->engram.n_layers; i++)
        r = plan_engram(planner, i, plan);
    if (r >= 0)
        r = use(planner, ROLE_FINAL_NORM, -1, &norm);
    if (r >= 0 && !s->tied_embeddings)
        r = use(planner, ROLE_LM_HEAD, -1, &head);
    return r;
}

/* Tensors that older exports carry and nobody reads. */
static bool
is_harmless(const char *name, const struct model_shape *shape)
{
    static const char suffix[] = "rotary_emb.inv_freq";
    size_t length = strlen(name), tail = sizeof suffix - 1;
    if (strcmp(name, "lm_head.weight") == 0)
        return shape->tied_embeddings;
    return length > tail && name[length - tail - 1] == '.' &&
           strcmp(name + length - tail, suffix) == 0;
}

static int
check_unclaimed(const struct planner *planner)
{
    for (int i = 0; i < checkpoint_n_tensors(planner->checkpoint); i++) {
        const struct tensor *tensor = checkpoint_tensor(planner->checkpoint, i);
        if (!planner->claimed[i] && !is_harmless(tensor->name, planner->shape))
            return err_set(planner->err, EBADMSG,
                           "%s: tensor %s is not expected by the model of config.json",
                           checkpoint_file_path(planner->checkpoint, tensor->file), tensor->name);
    }
    return 0;
}

int
tensor_plan_make(struct tensor_plan *ret_plan, const struct model_shape *shape,
                 const struct checkpoint *checkpoint, struct err *err)
{
    int n = checkpoint_n_tensors(checkpoint);
    struct tensor_plan plan = {0};
    struct planner planner = {.shape = shape,
                              .checkpoint = checkpoint,
                              .err = err,
                              .claimed = calloc((size_t)n + 1, sizeof *planner.claimed),
                              .uses = calloc(MAX_USES, sizeof *planner.uses)};
    int r = planner.claimed && planner.uses ? 0 : err_set(err, ENOMEM, "out of memory");
    if (r >= 0)
        r = plan_model(&planner, &plan);
    if (r >= 0)
        r = check_unclaimed(&planner);
    free(planner.claimed);
    if (r < 0) {
        free(planner.uses);
        return r;
    }
    plan.uses = planner.uses;
    plan.n_uses = planner.n_uses;
    *ret_plan = plan;
    return 0;
}

void
tensor_plan_free(struct tensor_plan *plan)
{
    free(plan->uses);
    *plan = (struct tensor_plan){0};
}
