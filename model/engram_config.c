#include "model/engram_config.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "model/json_field.h"
#include "model/ngram_hash.h"

static const char where[] = "config.json: engram.";

/* A row's weights: bounds what a bundle can take, and with SIZE_MAX_PER_HEAD the bytes of a table.
 */
enum { HEAD_DIM_MAX = 4096, CONV_KERNEL_MAX = 16 };
static const int64_t SIZE_MAX_PER_HEAD = (int64_t)1 << 40;

static const char *const names[] = {"layer_ids",
                                    "max_ngram_size",
                                    "heads_per_ngram",
                                    "head_dim",
                                    "vocab_size_per_ngram",
                                    "compressed_vocab_size",
                                    "pad_token_id",
                                    "seed",
                                    "conv_kernel_size",
                                    "norm_eps",
                                    "table_dtype",
                                    "table_scale_group"};

static int
check_names(const json_t *object, struct err *err)
{
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)object, name, value)
    {
        size_t i = 0;
        while (i < sizeof names / sizeof names[0] && strcmp(names[i], name) != 0)
            i++;
        if (i == sizeof names / sizeof names[0])
            return err_set(err, EBADMSG, "%s%s is not understood", where, name);
    }
    return 0;
}

static int
parse_int(const json_t *object, const char *key, int min, int max, int *ret, struct err *err)
{
    int64_t value;
    int r = json_field_int(object, where, key, min, max, NULL, &value, err);
    if (r >= 0)
        *ret = (int)value;
    return r;
}

/* The elements of an array of integers, each in [min, max]. Returns their number. */
static int
parse_ints(const json_t *object, const char *key, int64_t min, int64_t max, int most, int64_t *ret,
           struct err *err)
{
    const json_t *array = json_field_get(object, key);
    if (!json_is_array(array))
        return err_set(err, EBADMSG, "%s%s is missing or not an array", where, key);
    size_t n = json_array_size(array);
    if (n < 1 || n > (size_t)most)
        return err_set(err, EBADMSG, "%s%s has %zu elements, not 1..%d", where, key, n, most);
    for (size_t i = 0; i < n; i++) {
        const json_t *value = json_array_get(array, i);
        if (!json_is_integer(value) || json_integer_value(value) < min ||
            json_integer_value(value) > max)
            return err_set(err, EBADMSG, "%s%s[%zu] is not an integer in %lld..%lld", where, key, i,
                           (long long)min, (long long)max);
        ret[i] = json_integer_value(value);
    }
    return (int)n;
}

static int
parse_layers(const json_t *object, int layers, struct engram_shape *engram, struct err *err)
{
    int64_t id[SHAPE_MAX_ENGRAM_LAYERS];
    int n = parse_ints(object, "layer_ids", 0, layers - 1, SHAPE_MAX_ENGRAM_LAYERS, id, err);
    if (n < 0)
        return n;
    engram->n_layers = n;
    for (int i = 0; i < n; i++) {
        engram->table[i].layer = (int)id[i];
        for (int j = 0; j < i; j++) {
            if (id[j] == id[i])
                return err_set(err, EBADMSG, "%slayer_ids names layer %d twice", where, (int)id[i]);
        }
    }
    return 0;
}

static int
parse_storage(const json_t *object, struct engram_shape *engram, struct err *err)
{
    static const int64_t none = 0;
    const char *name;
    int64_t group;
    int r = json_field_text(object, where, "table_dtype", &name, err);
    if (r >= 0)
        r = json_field_int(object, where, "table_scale_group", 1, engram->head_dim, &none, &group,
                           err);
    if (r < 0)
        return r;
    int dtype = name ? dtype_from_name(name, strlen(name)) : -EINVAL;
    if (dtype != DTYPE_F8_E4M3 && dtype != DTYPE_BF16 && dtype != DTYPE_F32)
        return err_set(err, EBADMSG, "%stable_dtype: %s is not F8_E4M3, BF16 or F32", where,
                       name ? name : "nothing");
    if (group && engram->head_dim % group)
        return err_set(err, EBADMSG, "%stable_scale_group: %lld does not divide head_dim %d", where,
                       (long long)group, engram->head_dim);
    engram->table_dtype = (enum dtype)dtype;
    engram->scale_group = dtype == DTYPE_F8_E4M3 ? (int)group : 0; /* others have no scales */
    return 0;
}

static int
by_layer(const void *left, const void *right)
{
    const struct engram_table_shape *a = left, *b = right;
    return (a->layer > b->layer) - (a->layer < b->layer);
}

static int
derive(const json_t *object, struct engram_shape *engram, struct err *err)
{
    int64_t seed, size[SHAPE_MAX_ORDERS];
    int r = json_field_int(object, where, "seed", 0, INT64_MAX, NULL, &seed, err);
    if (r < 0)
        return r;
    int n = parse_ints(object, "vocab_size_per_ngram", 1, SIZE_MAX_PER_HEAD, SHAPE_MAX_ORDERS, size,
                       err);
    if (n < 0)
        return n;
    if (n != engram->max_order - 1)
        return err_set(err, EBADMSG,
                       "%svocab_size_per_ngram has %d elements, max_ngram_size asks for %d", where,
                       n, engram->max_order - 1);
    /* The bounds above are within its own, so that there is nothing left it could refuse. */
    r = ngram_hash_derive(engram, (uint64_t)seed, size, err);
    ASSERT(r == 0);
    return r;
}

int
engram_config_parse(struct engram_shape *ret_engram, const json_t *object, int vocab, int layers,
                    struct err *err)
{
    struct engram_shape engram = {0};
    double eps;
    if (!json_is_object(object))
        return err_set(err, EBADMSG, "config.json: engram is not an object");
    int r = check_names(object, err);
    if (r >= 0)
        r = parse_layers(object, layers, &engram, err);
    if (r >= 0)
        r = parse_int(object, "max_ngram_size", 2, SHAPE_MAX_ORDER, &engram.max_order, err);
    if (r >= 0)
        r = parse_int(object, "heads_per_ngram", 1, SHAPE_MAX_HEADS_PER_NGRAM, &engram.heads, err);
    if (r >= 0)
        r = parse_int(object, "head_dim", 1, HEAD_DIM_MAX, &engram.head_dim, err);
    if (r >= 0)
        r = parse_int(object, "compressed_vocab_size", 1, vocab, &engram.compressed_vocab, err);
    if (r >= 0)
        r = parse_int(object, "pad_token_id", 0, engram.compressed_vocab - 1, &engram.pad_id, err);
    if (r >= 0)
        r = parse_int(object, "conv_kernel_size", 1, CONV_KERNEL_MAX, &engram.conv_kernel, err);
    if (r >= 0)
        r = json_field_real(object, where, "norm_eps", 0, 0.1, NULL, &eps, err);
    if (r >= 0)
        r = parse_storage(object, &engram, err);
    if (r >= 0)
        r = derive(object, &engram, err);
    if (r < 0)
        return r;
    engram.norm_eps = (float)eps;
    /* Primes were dealt in the order the layers are listed; everybody else wants layer order. */
    qsort(engram.table, (size_t)engram.n_layers, sizeof engram.table[0], by_layer);
    *ret_engram = engram;
    return 0;
}
