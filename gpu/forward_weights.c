/* forward_weights: which weights a model has, and getting them onto the device. */
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "gpu/forward_state.h"

static const char *const role_name[ROLE_COUNT] = {
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

static size_t
weight_bytes(const struct weight *w)
{
    return (size_t)w->rows * (size_t)w->cols * dtype_size_bytes(w->dtype);
}

static void
widen(float *out, const uint8_t *from, enum dtype dtype, size_t n)
{
    uint16_t bits;

    for (size_t i = 0; i < n; i++) {
        if (dtype == DTYPE_F32) {
            memcpy(&out[i], from + 4 * i, 4);
            continue;
        }
        memcpy(&bits, from + 2 * i, 2);
        out[i] = dtype == DTYPE_BF16 ? dtype_bf16(bits) : dtype_f16(bits);
    }
}

/* Elements as they come to the type they are kept in: F32, or BF16. out may be where wide is. */
static void
convert(void *out, float *wide, const uint8_t *from, enum dtype dtype, enum dtype to, size_t n)
{
    widen(wide, from, dtype, n);
    if (to == DTYPE_F32)
        return;
    for (size_t i = 0; i < n; i++) {
        uint16_t bits = dtype_to_bf16(wide[i]);

        memcpy((char *)out + 2 * i, &bits, 2);
    }
}

/* Pieces large enough for the disk and the link to run at their rate. */
enum { STAGE_ELEMENTS = 4 << 20 };

/* Through a bounded piece of host memory: read, convert where asked, upload. */
static int
load_staged(const struct forward *forward, char *dst, enum dtype from, enum dtype to, size_t n,
            forward_read_fn read, void *arg, struct err *err)
{
    struct device *dev = forward->device;
    size_t from_size = dtype_size_bytes(from), to_size = dtype_size_bytes(to);
    size_t piece = n < STAGE_ELEMENTS ? n : STAGE_ELEMENTS;
    uint8_t *raw = malloc(piece * from_size);
    float *wide = from == to ? NULL : malloc(piece * sizeof *wide);
    int result = 0;

    if (!raw || (from != to && !wide))
        result = err_set(err, ENOMEM, "no memory to load weights");
    for (size_t at = 0; at < n && result >= 0; at += piece) {
        size_t now = n - at < piece ? n - at : piece;
        result = read(arg, at * from_size, raw, now * from_size, err);
        if (result >= 0 && wide)
            convert(wide, wide, raw, from, to, now);
        if (result >= 0)
            result =
                dev->ops->upload(dev, dst + at * to_size, wide ? (void *)wide : raw, now * to_size);
        if (result < 0)
            (void)err_set(err, -result, "a weight could not be put on the device");
    }
    free(raw);
    free(wide);
    return result < 0 ? result : 0;
}

/* [hidden, kernel] as read to [kernel, hidden] on the device: a tap multiplies a vector of
 * channels. Small: kernel is 4. */
static int
load_transposed(const struct forward *forward, void *dst, enum dtype from, int rows, int cols,
                forward_read_fn read, void *arg, struct err *err)
{
    struct device *dev = forward->device;
    size_t n = (size_t)rows * (size_t)cols;
    uint8_t *raw = malloc(n * dtype_size_bytes(from));
    float *wide = malloc(n * sizeof *wide), *turned = malloc(n * sizeof *turned);
    int result = 0;

    if (!raw || !wide || !turned)
        result = err_set(err, ENOMEM, "no memory to load a convolution");
    else
        result = read(arg, 0, raw, n * dtype_size_bytes(from), err);
    if (result >= 0) {
        widen(wide, raw, from, n);
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < cols; c++)
                turned[(size_t)c * (size_t)rows + (size_t)r] =
                    wide[(size_t)r * (size_t)cols + (size_t)c];
        result = dev->ops->upload(dev, dst, turned, n * sizeof *turned);
    }
    free(raw);
    free(wide);
    free(turned);
    if (result < 0)
        return err_set(err, -result, "a weight could not be put on the device");
    return 0;
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

/* Where a weight is to go, and as what; -EINVAL when the model has none or it is there already. */
static int
place_weight(struct forward *forward, enum tensor_role role, int layer, enum dtype dtype,
             struct weight *ret_weight, struct err *err)
{
    int rows, cols;

    if (!forward_weight_shape(&forward->shape, role, layer, &rows, &cols))
        return err_set(err, EINVAL, "weight role %d of layer %d: this model has none", (int)role,
                       layer);
    if (forward_weight(forward, role, layer)->data)
        return err_set(err, EINVAL, "%s of layer %d is loaded already", role_name[role], layer);
    struct weight w = {NULL, DTYPE_F32, rows, cols};
    if (forward_is_matrix(role) && (dtype == DTYPE_BF16 || forward->device->ops->bf16_matrices))
        w.dtype = DTYPE_BF16;
    if (role == ROLE_ENGRAM_CONV) {
        w.rows = cols;
        w.cols = rows;
    }
    w.data = weight_memory(forward, role, layer, weight_bytes(&w));
    if (!w.data)
        return err_set(err, ENOMEM, "%s of layer %d: no device memory for %zu bytes",
                       role_name[role], layer, weight_bytes(&w));
    *ret_weight = w;
    return 0;
}

static void
give_weight_back(struct forward *forward, enum tensor_role role, const struct weight *w)
{
    if (w->data && !group_of(forward, role))
        forward->device->ops->free(forward->device, (void *)w->data, weight_bytes(w));
}

int
forward_load(struct forward *forward, enum tensor_role role, int layer, enum dtype dtype,
             int64_t n_elements, forward_read_fn read, void *arg, struct err *err)
{
    struct device *dev = forward->device;
    struct weight loaded;
    int rows, cols, result;

    if (forward_weight_shape(&forward->shape, role, layer, &rows, &cols)) {
        if (n_elements != (int64_t)rows * cols)
            return err_set(err, EINVAL, "%s of layer %d: %lld elements, expected %d x %d",
                           role_name[role], layer, (long long)n_elements, rows, cols);
        if (dtype != DTYPE_F32 && dtype != DTYPE_BF16 && dtype != DTYPE_F16)
            return err_set(err, EINVAL, "%s of layer %d: type %s, expected F32, BF16 or F16",
                           role_name[role], layer, dtype_name(dtype));
    }
    result = place_weight(forward, role, layer, dtype, &loaded, err);
    if (result < 0)
        return result;
    void *data = (void *)loaded.data;
    if (role == ROLE_ENGRAM_CONV)
        result = load_transposed(forward, data, dtype, rows, cols, read, arg, err);
    else if (dtype == loaded.dtype && dev->ops->host_addressable)
        result = read(arg, 0, data, weight_bytes(&loaded), err);
    else
        result =
            load_staged(forward, data, dtype, loaded.dtype, (size_t)n_elements, read, arg, err);
    if (result < 0) {
        give_weight_back(forward, role, &loaded);
        return result;
    }
    *forward_weight(forward, role, layer) = loaded;
    return 0;
}

/* Values of a random model, for a device that makes none itself: uniform, of this deviation. */
struct random_source {
    uint64_t seed;
    float mean, deviation;
};

static int
read_random(void *arg, uint64_t offset_bytes, void *dst, size_t size_bytes, struct err *err)
{
    const struct random_source *source = arg;
    float *out = dst;

    for (size_t i = 0; i < size_bytes / sizeof *out; i++) {
        uint64_t x = source->seed + (offset_bytes / sizeof *out + i) * 0x9e3779b97f4a7c15u;

        x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
        x = (x ^ x >> 27) * 0x94d049bb133111ebu;
        x ^= x >> 31;
        out[i] =
            source->mean + source->deviation * sqrtf(3.0f) * ((float)(x >> 40) / 8388608.0f - 1.0f);
    }
    return 0;
}

int
forward_fill(struct forward *forward, enum tensor_role role, int layer, uint64_t seed, float mean,
             float deviation, struct err *err)
{
    struct device *dev = forward->device;
    struct random_source source = {seed, mean, deviation};
    struct weight filled;
    int rows, cols, result;

    if (!forward_weight_shape(&forward->shape, role, layer, &rows, &cols))
        return err_set(err, EINVAL, "weight role %d of layer %d: this model has none", (int)role,
                       layer);
    if (!dev->ops->fill_random || mean != 0 || !forward_is_matrix(role))
        return forward_load(forward, role, layer, DTYPE_F32, (int64_t)rows * cols, read_random,
                            &source, err);
    result = place_weight(forward, role, layer, DTYPE_BF16, &filled, err);
    if (result < 0)
        return result;
    result = dev->ops->fill_random(dev, (void *)filled.data, filled.dtype,
                                   (size_t)rows * (size_t)cols, seed, deviation);
    if (result < 0) {
        give_weight_back(forward, role, &filled);
        return err_set(err, -result, "%s of layer %d could not be filled", role_name[role], layer);
    }
    *forward_weight(forward, role, layer) = filled;
    return 0;
}

static bool
is_norm(enum tensor_role role)
{
    switch (role) {
    case ROLE_FINAL_NORM:
    case ROLE_ATTN_NORM:
    case ROLE_MLP_NORM:
    case ROLE_Q_NORM:
    case ROLE_K_NORM:
    case ROLE_ENGRAM_KEY_NORM:
    case ROLE_ENGRAM_QUERY_NORM:
    case ROLE_ENGRAM_CONV_NORM:
        return true;
    default:
        return false;
    }
}

int
forward_fill_all(struct forward *forward, uint64_t seed, struct err *err)
{
    int result = 0;

    for (int layer = -1; layer < forward->shape.layers; layer++)
        for (int role = 0; role < ROLE_COUNT && result >= 0; role++) {
            uint64_t own = seed + (uint64_t)(layer + 1) * ROLE_COUNT + (uint64_t)role;
            bool norm = is_norm(role);
            int rows, cols;

            if (forward_weight_shape(&forward->shape, role, layer, &rows, &cols))
                result = forward_fill(forward, role, layer, own, norm ? 1 : 0, norm ? 0 : 0.02f,
                                      err);
        }
    if (result >= 0 && forward->device->ops->fill_random)
        result = forward->device->ops->fill_random(forward->device, forward->kv.data, DTYPE_BF16,
                                                   forward->kv_bytes / 2, seed, 1);
    return result;
}

int
forward_loaded(const struct forward *forward, struct err *err)
{
    for (int layer = -1; layer < forward->shape.layers; layer++)
        for (int role = 0; role < ROLE_COUNT; role++) {
            int rows, cols;
            if (forward_weight_shape(&forward->shape, role, layer, &rows, &cols) &&
                !forward_weight((struct forward *)forward, role, layer)->data)
                return err_set(err, EINVAL, "%s of layer %d is missing", role_name[role], layer);
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
            give_weight_back(forward, role, w);
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
