/* forward_weights: which weights a model has, and where they lie on the device. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "gpu/forward_state.h"

const char *const forward_role_name[ROLE_COUNT] = {
    [ROLE_EMBED] = "embedding",
    [ROLE_FINAL_NORM] = "final norm",
    [ROLE_LM_HEAD] = "language model head",
    [ROLE_ATTN_NORM] = "attention norm",
    [ROLE_Q] = "q projection",
    [ROLE_K] = "k projection",
    [ROLE_V] = "v projection",
    [ROLE_O] = "o projection",
    [ROLE_Q_BIAS] = "q bias",
    [ROLE_K_BIAS] = "k bias",
    [ROLE_V_BIAS] = "v bias",
    [ROLE_O_BIAS] = "o bias",
    [ROLE_Q_NORM] = "q norm",
    [ROLE_K_NORM] = "k norm",
    [ROLE_MLP_NORM] = "mlp norm",
    [ROLE_GATE] = "gate projection",
    [ROLE_UP] = "up projection",
    [ROLE_DOWN] = "down projection",
    [ROLE_GATE_BIAS] = "gate bias",
    [ROLE_UP_BIAS] = "up bias",
    [ROLE_DOWN_BIAS] = "down bias",
    [ROLE_ENGRAM_KEY] = "engram key projection",
    [ROLE_ENGRAM_KEY_BIAS] = "engram key bias",
    [ROLE_ENGRAM_VALUE] = "engram value projection",
    [ROLE_ENGRAM_VALUE_BIAS] = "engram value bias",
    [ROLE_ENGRAM_KEY_NORM] = "engram key norm",
    [ROLE_ENGRAM_QUERY_NORM] = "engram query norm",
    [ROLE_ENGRAM_CONV_NORM] = "engram convolution norm",
    [ROLE_ENGRAM_CONV] = "engram convolution",
};

/* The convolution is kept [kernel, hidden], the transpose of the checkpoint's: a tap multiplies a
 * vector of channels. */
bool
forward_is_matrix(enum tensor_role role)
{
    switch (role) {
    case ROLE_EMBED:
    case ROLE_LM_HEAD:
    case ROLE_Q:
    case ROLE_K:
    case ROLE_V:
    case ROLE_O:
    case ROLE_GATE:
    case ROLE_UP:
    case ROLE_DOWN:
    case ROLE_ENGRAM_KEY:
    case ROLE_ENGRAM_VALUE:
        return true;
    default:
        return false;
    }
}

static bool
is_global(enum tensor_role role)
{
    return role == ROLE_EMBED || role == ROLE_FINAL_NORM || role == ROLE_LM_HEAD;
}

int
forward_engram_index(const struct model_shape *shape, int layer)
{
    for (int i = 0; i < shape->engram.n_layers; i++)
        if (shape->engram.table[i].layer == layer)
            return i;
    return -1;
}

bool
forward_weight_shape(const struct model_shape *s, enum tensor_role role, int layer, int *ret_rows,
                     int *ret_cols)
{
    int rows = 1, cols = s->hidden;
    int columns = (s->engram.max_order - 1) * s->engram.heads * s->engram.head_dim;
    bool here = true;

    if (role >= ROLE_COUNT || is_global(role) != (layer < 0) || layer >= s->layers)
        return false;
    switch (role) {
    case ROLE_EMBED:
        rows = s->vocab;
        break;
    case ROLE_LM_HEAD:
        rows = s->vocab;
        here = !s->tied_embeddings;
        break;
    case ROLE_Q:
        rows = s->heads * s->head_dim;
        break;
    case ROLE_K:
    case ROLE_V:
        rows = s->kv_heads * s->head_dim;
        break;
    case ROLE_O:
        rows = s->hidden;
        cols = s->heads * s->head_dim;
        break;
    case ROLE_Q_BIAS:
        cols = s->heads * s->head_dim;
        here = s->attention_bias;
        break;
    case ROLE_K_BIAS:
    case ROLE_V_BIAS:
        cols = s->kv_heads * s->head_dim;
        here = s->attention_bias;
        break;
    case ROLE_O_BIAS:
        here = s->attention_bias;
        break;
    case ROLE_Q_NORM:
    case ROLE_K_NORM:
        cols = s->head_dim;
        here = s->qk_norm;
        break;
    case ROLE_GATE:
    case ROLE_UP:
        rows = s->intermediate;
        break;
    case ROLE_DOWN:
        rows = s->hidden;
        cols = s->intermediate;
        break;
    case ROLE_GATE_BIAS:
    case ROLE_UP_BIAS:
        cols = s->intermediate;
        here = s->mlp_bias;
        break;
    case ROLE_DOWN_BIAS:
        here = s->mlp_bias;
        break;
    case ROLE_ENGRAM_KEY:
    case ROLE_ENGRAM_VALUE:
        rows = s->hidden;
        cols = columns;
        break;
    case ROLE_ENGRAM_CONV:
        rows = s->hidden;
        cols = s->engram.conv_kernel;
        break;
    default:
        break;
    }
    if (role >= ROLE_ENGRAM_KEY)
        here = forward_engram_index(s, layer) >= 0;
    *ret_rows = rows;
    *ret_cols = cols;
    return here;
}

struct weight *
forward_weight(struct forward *forward, enum tensor_role role, int layer)
{
    return is_global(role) ? &forward->global[role] : &forward->layer[layer][role];
}

struct qkv_weights
forward_qkv_weights(const struct forward *forward, int layer)
{
    const struct weight *w = forward->layer[layer];

    return (struct qkv_weights){
        .norm = w[ROLE_ATTN_NORM],
        .q = w[ROLE_Q],
        .k = w[ROLE_K],
        .v = w[ROLE_V],
        .q_bias = w[ROLE_Q_BIAS],
        .k_bias = w[ROLE_K_BIAS],
        .v_bias = w[ROLE_V_BIAS],
        .q_norm = w[ROLE_Q_NORM],
        .k_norm = w[ROLE_K_NORM],
    };
}

struct feed_forward_weights
forward_feed_forward_weights(const struct forward *forward, int layer)
{
    const struct weight *w = forward->layer[layer];

    return (struct feed_forward_weights){
        .norm = w[ROLE_MLP_NORM],
        .gate = w[ROLE_GATE],
        .up = w[ROLE_UP],
        .down = w[ROLE_DOWN],
        .gate_bias = w[ROLE_GATE_BIAS],
        .up_bias = w[ROLE_UP_BIAS],
        .down_bias = w[ROLE_DOWN_BIAS],
    };
}

struct weight
forward_head(const struct forward *forward)
{
    return forward->global[forward->shape.tied_embeddings ? ROLE_EMBED : ROLE_LM_HEAD];
}

size_t
forward_weight_bytes(const struct weight *w)
{
    return (size_t)w->rows * (size_t)w->cols * dtype_size_bytes(w->dtype);
}

/* Matrices that a device may want one behind the other, in this order. */
static const enum tensor_role groups[][4] = {
    {ROLE_Q, ROLE_K, ROLE_V, ROLE_COUNT},
    {ROLE_GATE, ROLE_UP, ROLE_COUNT, ROLE_COUNT},
    {ROLE_ENGRAM_KEY, ROLE_ENGRAM_VALUE, ROLE_COUNT, ROLE_COUNT},
};

static const enum tensor_role *
group_of(const struct forward *forward, enum tensor_role role)
{
    for (size_t g = 0; forward->device->ops->bf16_matrices && g < sizeof groups / sizeof *groups;
         g++)
        for (int i = 0; groups[g][i] != ROLE_COUNT; i++)
            if (groups[g][i] == role)
                return groups[g];
    return NULL;
}

static size_t
bf16_bytes(const struct forward *forward, enum tensor_role role, int layer)
{
    int rows, cols;

    (void)forward_weight_shape(&forward->shape, role, layer, &rows, &cols);
    return (size_t)rows * (size_t)cols * sizeof(uint16_t);
}

/* Memory of a weight: its own, or its part of its group's, which whoever comes first takes. Weights
 * of a group are loaded by any threads. */
static void *
weight_memory(struct forward *forward, enum tensor_role role, int layer, size_t bytes)
{
    struct device *dev = forward->device;
    const enum tensor_role *group = group_of(forward, role);
    size_t before = 0, whole = 0;

    if (!group)
        return dev->ops->alloc(dev, bytes);
    for (int i = 0; group[i] != ROLE_COUNT; i++) {
        before = group[i] == role ? whole : before;
        whole += bf16_bytes(forward, group[i], layer);
    }
    pthread_mutex_lock(&forward->lock);
    void **base = &forward->group[layer][group[0]];
    if (!*base)
        *base = dev->ops->alloc(dev, whole);
    void *memory = *base ? (char *)*base + before : NULL;
    pthread_mutex_unlock(&forward->lock);
    return memory;
}

int
forward_place_weight(struct forward *forward, enum tensor_role role, int layer, enum dtype dtype,
                     struct weight *ret_weight, struct err *err)
{
    int rows, cols;

    if (!forward_weight_shape(&forward->shape, role, layer, &rows, &cols))
        return err_set(err, EINVAL, "weight role %d of layer %d: this model has none", (int)role,
                       layer);
    if (forward_weight(forward, role, layer)->data)
        return err_set(err, EINVAL, "%s of layer %d is loaded already", forward_role_name[role],
                       layer);
    struct weight w = {NULL, DTYPE_F32, rows, cols};
    if (forward_is_matrix(role) && (dtype == DTYPE_BF16 || forward->device->ops->bf16_matrices))
        w.dtype = DTYPE_BF16;
    if (role == ROLE_ENGRAM_CONV) {
        w.rows = cols;
        w.cols = rows;
    }
    w.data = weight_memory(forward, role, layer, forward_weight_bytes(&w));
    if (!w.data)
        return err_set(err, ENOMEM, "%s of layer %d: no device memory for %zu bytes",
                       forward_role_name[role], layer, forward_weight_bytes(&w));
    *ret_weight = w;
    return 0;
}

void
forward_give_weight_back(struct forward *forward, enum tensor_role role, const struct weight *w)
{
    if (w->data && !group_of(forward, role))
        forward->device->ops->free(forward->device, (void *)w->data, forward_weight_bytes(w));
}

int
forward_loaded(const struct forward *forward, struct err *err)
{
    for (int layer = -1; layer < forward->shape.layers; layer++)
        for (int role = 0; role < ROLE_COUNT; role++) {
            int rows, cols;
            if (forward_weight_shape(&forward->shape, role, layer, &rows, &cols) &&
                !forward_weight((struct forward *)forward, role, layer)->data)
                return err_set(err, EINVAL, "%s of layer %d is missing", forward_role_name[role],
                               layer);
        }
    return 0;
}

void
forward_weights_free(struct forward *forward)
{
    struct device *dev = forward->device;

    for (int layer = forward->layer ? forward->shape.layers - 1 : -1; layer >= -1; layer--)
        for (int role = 0; role < ROLE_COUNT; role++) {
            if (is_global(role) != (layer < 0))
                continue;
            struct weight *w = forward_weight(forward, role, layer);
            forward_give_weight_back(forward, role, w);
            w->data = NULL;
        }
    for (int layer = 0; forward->group && layer < forward->shape.layers; layer++)
        for (size_t g = 0; g < sizeof groups / sizeof *groups; g++) {
            size_t whole = 0;

            if (!forward->group[layer][groups[g][0]])
                continue;
            for (int i = 0; groups[g][i] != ROLE_COUNT; i++)
                whole += bf16_bytes(forward, groups[g][i], layer);
            dev->ops->free(dev, forward->group[layer][groups[g][0]], whole);
        }
}
