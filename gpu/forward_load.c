/* forward_load: getting weights onto the device: read, converted where asked, uploaded; or filled.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "gpu/forward_state.h"

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

/* Through a bounded piece of host memory: read, convert where asked, upload. */
static int
load_through(const struct forward *forward, const struct forward_staging *staging, char *dst,
             enum dtype from, enum dtype to, size_t first, size_t n, forward_read_fn read,
             void *arg, struct err *err)
{
    struct device *dev = forward->device;
    size_t from_size = dtype_size_bytes(from), to_size = dtype_size_bytes(to);
    size_t wide_size = from == to ? 0 : sizeof(float);
    size_t piece = staging->size_bytes / (from_size + wide_size) / 16 * 16;
    uint8_t *raw = staging->memory;
    float *wide = (float *)(raw + piece * from_size);
    int result = 0;

    ASSERT(piece > 0);
    for (size_t at = first; at < first + n && result >= 0; at += piece) {
        size_t now = first + n - at < piece ? first + n - at : piece;
        result = read(arg, at * from_size, raw, now * from_size, err);
        if (result >= 0 && from != to)
            convert(wide, wide, raw, from, to, now);
        if (result >= 0)
            result = dev->ops->upload(dev, dst + at * to_size, from == to ? (void *)raw : wide,
                                      now * to_size);
        if (result < 0)
            (void)err_set(err, -result, "a weight could not be put on the device");
    }
    return result < 0 ? result : 0;
}

static int
load_staged(const struct forward *forward, const struct forward_staging *staging, char *dst,
            enum dtype from, enum dtype to, size_t first, size_t n, forward_read_fn read, void *arg,
            struct err *err)
{
    if (staging)
        return load_through(forward, staging, dst, from, to, first, n, read, arg, err);
    size_t need = (n + 16) * (dtype_size_bytes(from) + (from == to ? 0 : sizeof(float)));
    struct forward_staging own = {NULL,
                                  need < FORWARD_STAGING_BYTES ? need : FORWARD_STAGING_BYTES};

    own.memory = malloc(own.size_bytes);
    if (!own.memory)
        return err_set(err, ENOMEM, "no memory to load weights");
    int result = load_through(forward, &own, dst, from, to, first, n, read, arg, err);
    free(own.memory);
    return result;
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

int
forward_load_begin(struct forward *forward, enum tensor_role role, int layer, enum dtype dtype,
                   int64_t n_elements, struct forward_loading *ret_loading, struct err *err)
{
    struct forward_loading loading = {
        .role = role,
        .layer = layer,
        .dtype = dtype,
        .n_elements = n_elements,
        .whole = role == ROLE_ENGRAM_CONV,
    };
    int rows, cols;

    if (forward_weight_shape(&forward->shape, role, layer, &rows, &cols)) {
        if (n_elements != (int64_t)rows * cols)
            return err_set(err, EINVAL, "%s of layer %d: %lld elements, expected %d x %d",
                           forward_role_name[role], layer, (long long)n_elements, rows, cols);
        if (dtype != DTYPE_F32 && dtype != DTYPE_BF16 && dtype != DTYPE_F16)
            return err_set(err, EINVAL, "%s of layer %d: type %s, expected F32, BF16 or F16",
                           forward_role_name[role], layer, dtype_name(dtype));
    }
    int result = forward_place_weight(forward, role, layer, dtype, &loading.weight, err);
    if (result < 0)
        return result;
    *ret_loading = loading;
    return 0;
}

int
forward_load_part(struct forward *forward, const struct forward_loading *loading, int64_t first,
                  int64_t n, const struct forward_staging *staging, forward_read_fn read, void *arg,
                  struct err *err)
{
    const struct weight *w = &loading->weight;
    char *data = (char *)w->data;
    size_t size = dtype_size_bytes(w->dtype);

    ASSERT(first >= 0 && n >= 0 && n <= loading->n_elements - first);
    ASSERT(!loading->whole || n == loading->n_elements);
    if (loading->role == ROLE_ENGRAM_CONV)
        return load_transposed(forward, data, loading->dtype, w->cols, w->rows, read, arg, err);
    if (loading->dtype == w->dtype && forward->device->ops->host_addressable)
        return read(arg, (uint64_t)first * size, data + (size_t)first * size, (size_t)n * size,
                    err);
    return load_staged(forward, staging, data, loading->dtype, w->dtype, (size_t)first, (size_t)n,
                       read, arg, err);
}

void
forward_load_end(struct forward *forward, struct forward_loading *loading, bool loaded)
{
    if (loaded)
        *forward_weight(forward, loading->role, loading->layer) = loading->weight;
    else
        forward_give_weight_back(forward, loading->role, &loading->weight);
    loading->weight.data = NULL;
}

int
forward_load(struct forward *forward, enum tensor_role role, int layer, enum dtype dtype,
             int64_t n_elements, forward_read_fn read, void *arg, struct err *err)
{
    struct forward_loading loading;
    int result = forward_load_begin(forward, role, layer, dtype, n_elements, &loading, err);

    if (result < 0)
        return result;
    result = forward_load_part(forward, &loading, 0, n_elements, NULL, read, arg, err);
    forward_load_end(forward, &loading, result >= 0);
    return result < 0 ? result : 0;
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
    result = forward_place_weight(forward, role, layer, DTYPE_BF16, &filled, err);
    if (result < 0)
        return result;
    result = dev->ops->fill_random(dev, (void *)filled.data, filled.dtype,
                                   (size_t)rows * (size_t)cols, seed, deviation);
    if (result < 0) {
        forward_give_weight_back(forward, role, &filled);
        return err_set(err, -result, "%s of layer %d could not be filled", forward_role_name[role],
                       layer);
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
                result =
                    forward_fill(forward, role, layer, own, norm ? 1 : 0, norm ? 0 : 0.02f, err);
        }
    if (result >= 0 && forward->device->ops->fill_random)
        result = forward->device->ops->fill_random(forward->device, forward->kv.data, DTYPE_BF16,
                                                   forward->kv_bytes / 2, seed, 1);
    return result;
}
