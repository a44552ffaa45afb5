#include "model/safetensors.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "model/json_field.h"

/* Values of the JSON per tensor: its object, dtype, shape, offsets, and TENSOR_MAX_RANK dims. Real
 * headers have about 8; the bound keeps the tree jansson builds within a few hundred bytes a
 * tensor. */
enum { VALUES_PER_TENSOR = 16, METADATA_VALUES = 1 << 16 };

static uint64_t
read_u64(const uint8_t *bytes)
{
    uint64_t value = 0;
    for (int i = 7; i >= 0; i--)
        value = value << 8 | bytes[i];
    return value;
}

int
safetensors_header_size(const uint8_t prefix[SAFETENSORS_PREFIX_BYTES], uint64_t file_size,
                        size_t *ret_size_bytes, struct err *err)
{
    if (file_size < SAFETENSORS_PREFIX_BYTES + 2)
        return err_set(err, EBADMSG, "truncated: %llu bytes are too few for a safetensors header",
                       (unsigned long long)file_size);
    uint64_t size = read_u64(prefix);
    if (size > SAFETENSORS_MAX_HEADER_BYTES)
        return err_set(err, EBADMSG,
                       "not a safetensors file: header length %llu is more than the limit of %d",
                       (unsigned long long)size, SAFETENSORS_MAX_HEADER_BYTES);
    if (size > file_size - SAFETENSORS_PREFIX_BYTES)
        return err_set(err, EBADMSG, "truncated: header length %llu, but the file has %llu bytes",
                       (unsigned long long)size, (unsigned long long)file_size);
    if (size < 2)
        return err_set(err, EBADMSG, "header length %llu is too small for a JSON object",
                       (unsigned long long)size);
    *ret_size_bytes = (size_t)size;
    return 0;
}

static int
check_metadata(const json_t *metadata, struct err *err)
{
    if (!json_is_object(metadata))
        return err_set(err, EBADMSG, "__metadata__: not an object");
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)metadata, key, value)
    {
        if (!json_is_string(value))
            return err_set(err, EBADMSG, "__metadata__.%s: not a string", key);
    }
    return 0;
}

static int
parse_shape(const json_t *shape, struct tensor *tensor, uint64_t *ret_bytes, struct err *err)
{
    if (!json_is_array(shape))
        return err_set(err, EBADMSG, "tensor %s: shape is missing or not an array", tensor->name);
    size_t rank = json_array_size(shape);
    if (rank > TENSOR_MAX_RANK)
        return err_set(err, EBADMSG, "tensor %s: rank %zu is more than %d", tensor->name, rank,
                       TENSOR_MAX_RANK);
    tensor->rank = (int)rank;
    uint64_t bytes = dtype_size_bytes(tensor->dtype);
    for (size_t i = 0; i < rank; i++) {
        const json_t *dim = json_array_get(shape, i);
        if (!json_is_integer(dim) || json_integer_value(dim) < 0)
            return err_set(err, EBADMSG, "tensor %s: shape[%zu] is not a non-negative integer",
                           tensor->name, i);
        tensor->dim[i] = json_integer_value(dim);
        /* Also with a later zero: a shape whose product of the others overflows is a lie. */
        if (__builtin_mul_overflow(bytes, (uint64_t)tensor->dim[i], &bytes) || bytes > INT64_MAX)
            return err_set(err, EBADMSG, "tensor %s: the shape overflows 63 bits", tensor->name);
    }
    *ret_bytes = bytes;
    return 0;
}

static int
parse_offsets(const json_t *offsets, struct tensor *tensor, uint64_t data_bytes, struct err *err)
{
    const json_t *begin = json_array_get(offsets, 0), *end = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(begin) || !json_is_integer(end) ||
        json_integer_value(begin) < 0 || json_integer_value(end) < json_integer_value(begin))
        return err_set(err, EBADMSG, "tensor %s: data_offsets is not a pair [begin, end]",
                       tensor->name);
    if ((uint64_t)json_integer_value(end) > data_bytes)
        return err_set(
            err, EBADMSG,
            "tensor %s: data_offsets end at %lld, but the file has %llu bytes of data (truncated?)",
            tensor->name, (long long)json_integer_value(end), (unsigned long long)data_bytes);
    tensor->offset_bytes = (uint64_t)json_integer_value(begin);
    tensor->size_bytes = (uint64_t)json_integer_value(end) - tensor->offset_bytes;
    return 0;
}

static int
parse_tensor(const json_t *object, struct tensor *tensor, uint64_t data_bytes, struct err *err)
{
    if (!json_is_object(object))
        return err_set(err, EBADMSG, "tensor %s: not an object", tensor->name);
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)object, key, value)
    {
        if (strcmp(key, "dtype") != 0 && strcmp(key, "shape") != 0 &&
            strcmp(key, "data_offsets") != 0)
            return err_set(err, EBADMSG, "tensor %s: unknown field %s", tensor->name, key);
    }
    const json_t *name = json_object_get(object, "dtype");
    if (!json_is_string(name))
        return err_set(err, EBADMSG, "tensor %s: dtype is missing or not a string", tensor->name);
    int dtype = dtype_from_name(json_string_value(name), json_string_length(name));
    if (dtype < 0)
        return err_set(err, EBADMSG, "tensor %s: dtype %s is not supported", tensor->name,
                       json_string_value(name));
    tensor->dtype = (enum dtype)dtype;
    uint64_t bytes = 0;
    int r = parse_shape(json_object_get(object, "shape"), tensor, &bytes, err);
    if (r >= 0)
        r = parse_offsets(json_object_get(object, "data_offsets"), tensor, data_bytes, err);
    if (r < 0)
        return r;
    if (bytes != tensor->size_bytes)
        return err_set(
            err, EBADMSG, "tensor %s: data_offsets span %llu bytes, dtype and shape %llu",
            tensor->name, (unsigned long long)tensor->size_bytes, (unsigned long long)bytes);
    return 0;
}

static int
by_offset(const void *left, const void *right)
{
    const struct tensor *a = left, *b = right;
    if (a->offset_bytes != b->offset_bytes)
        return a->offset_bytes < b->offset_bytes ? -1 : 1;
    if (a->size_bytes != b->size_bytes)
        return a->size_bytes < b->size_bytes ? -1 : 1;
    return strcmp(a->name, b->name);
}

/* The tensors, in order of their data, must follow each other from the first byte to the last. */
static int
check_cover(const struct tensor *tensors, int count, uint64_t data_bytes, struct err *err)
{
    uint64_t end = 0;
    for (int i = 0; i < count; i++) {
        const struct tensor *tensor = &tensors[i];
        if (tensor->offset_bytes < end)
            return err_set(err, EBADMSG, "tensor %s overlaps tensor %s", tensor->name,
                           tensors[i - 1].name);
        if (tensor->offset_bytes > end)
            return err_set(err, EBADMSG, "a hole of %llu bytes before tensor %s",
                           (unsigned long long)(tensor->offset_bytes - end), tensor->name);
        end += tensor->size_bytes;
    }
    if (end != data_bytes)
        return err_set(err, EBADMSG, "%llu bytes behind the last tensor",
                       (unsigned long long)(data_bytes - end));
    return 0;
}

int
safetensors_parse(const char *header, size_t header_bytes, uint64_t file_size, int file,
                  struct arena *arena, struct tensor **ret_tensors, int *ret_count, struct err *err)
{
    if (header_bytes == 0 || header[0] != '{')
        return err_set(err, EBADMSG, "not a safetensors file: the header does not begin with {");
    json_auto_t *root = NULL;
    int r = json_field_parse(&root, header, header_bytes,
                             (size_t)SAFETENSORS_MAX_TENSORS * VALUES_PER_TENSOR + METADATA_VALUES,
                             "header", err);
    if (r < 0)
        return r;
    const json_t *metadata = json_object_get(root, "__metadata__");
    if (metadata && (r = check_metadata(metadata, err)) < 0)
        return r;
    size_t count = json_object_size(root) - (metadata != NULL);
    if (count > SAFETENSORS_MAX_TENSORS)
        return err_set(err, EBADMSG, "%zu tensors, more than the limit of %d", count,
                       SAFETENSORS_MAX_TENSORS);

    struct tensor *tensors = arena_array(arena, count ? count : 1, sizeof *tensors);
    if (!tensors)
        return err_set(err, ENOMEM, "out of memory");
    uint64_t data_start = SAFETENSORS_PREFIX_BYTES + (uint64_t)header_bytes;
    uint64_t data_bytes = file_size - data_start;
    int n = 0;
    const char *key;
    json_t *value;
    json_object_foreach(root, key, value)
    {
        if (value == metadata)
            continue;
        size_t length = strlen(key);
        if (length == 0 || length > SAFETENSORS_MAX_NAME_BYTES)
            return err_set(err, EBADMSG, "a tensor's name has %zu bytes, not 1..%d", length,
                           SAFETENSORS_MAX_NAME_BYTES);
        struct tensor *tensor = &tensors[n++];
        tensor->name = arena_strndup(arena, key, length);
        tensor->file = file;
        if (!tensor->name)
            return err_set(err, ENOMEM, "out of memory");
        if ((r = parse_tensor(value, tensor, data_bytes, err)) < 0)
            return r;
    }
    qsort(tensors, count, sizeof *tensors, by_offset);
    if ((r = check_cover(tensors, n, data_bytes, err)) < 0)
        return r;
    for (int i = 0; i < n; i++)
        tensors[i].offset_bytes += data_start;
    *ret_tensors = tensors;
    *ret_count = n;
    return 0;
}

int
safetensors_check(const uint8_t *bytes, size_t size_bytes, uint64_t file_size, struct err *err)
{
    size_t header_bytes;
    if (size_bytes < SAFETENSORS_PREFIX_BYTES || size_bytes > file_size)
        return err_set(err, EBADMSG, "truncated: %zu bytes of %llu", size_bytes,
                       (unsigned long long)file_size);
    int r = safetensors_header_size(bytes, file_size, &header_bytes, err);
    if (r < 0)
        return r;
    if (header_bytes > size_bytes - SAFETENSORS_PREFIX_BYTES)
        return err_set(err, EBADMSG, "truncated: a header of %zu bytes, %zu bytes are here",
                       header_bytes, size_bytes);
    struct arena *arena = arena_new(0);
    if (!arena)
        return err_set(err, ENOMEM, "out of memory");
    struct tensor *tensors;
    int count;
    r = safetensors_parse((const char *)bytes + SAFETENSORS_PREFIX_BYTES, header_bytes, file_size,
                          0, arena, &tensors, &count, err);
    (void)arena_free(arena);
    return r;
}
