#include "model/shard_index.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "model/json_field.h"

enum { INDEX_MAX_BYTES = 256 << 20, NAME_MAX_BYTES = 255 };

struct shard_index {
    json_t *root; /* owns all texts */
    const json_t *map;
    int n_shards;
    const char **shard; /* sorted, distinct */
};

static int
by_text(const void *left, const void *right)
{
    return strcmp(*(const char *const *)left, *(const char *const *)right);
}

static bool
is_plain_name(const char *name)
{
    size_t length = strlen(name);
    return length > 0 && length <= NAME_MAX_BYTES && name[0] != '.' && !strchr(name, '/');
}

/* Collects the distinct shard names, sorted. */
static int
collect_shards(struct shard_index *index, const char *path, struct err *err)
{
    size_t count = json_object_size(index->map), i = 0;
    index->shard = calloc(count, sizeof *index->shard);
    if (!index->shard)
        return err_set(err, ENOMEM, "%s: out of memory", path);
    const char *tensor;
    json_t *file;
    json_object_foreach((json_t *)index->map, tensor, file)
    {
        if (!json_is_string(file) || !is_plain_name(json_string_value(file)))
            return err_set(err, EBADMSG, "%s: weight_map.%s is not a plain file name", path,
                           tensor);
        index->shard[i++] = json_string_value(file);
    }
    qsort(index->shard, count, sizeof *index->shard, by_text);
    int n = 0;
    for (i = 0; i < count; i++) {
        if (n == 0 || strcmp(index->shard[n - 1], index->shard[i]) != 0)
            index->shard[n++] = index->shard[i];
    }
    if (n > SHARD_INDEX_MAX_SHARDS)
        return err_set(err, EBADMSG, "%s: %d shards, more than the limit of %d", path, n,
                       SHARD_INDEX_MAX_SHARDS);
    index->n_shards = n;
    return 0;
}

int
shard_index_load(struct shard_index **ret_index, const char *path, struct err *err)
{
    struct shard_index *index = calloc(1, sizeof *index);
    if (!index)
        return err_set(err, ENOMEM, "%s: out of memory", path);
    int r =
        json_field_load(&index->root, path, INDEX_MAX_BYTES, SHARD_INDEX_MAX_TENSORS + 1000, err);
    if (r >= 0) {
        index->map = json_object_get(index->root, "weight_map");
        if (!json_is_object(index->map) || json_object_size(index->map) == 0)
            r = err_set(err, EBADMSG, "%s: weight_map is missing, empty or not an object", path);
        else
            r = collect_shards(index, path, err);
    }
    if (r < 0) {
        (void)shard_index_free(index);
        return r;
    }
    *ret_index = index;
    return 0;
}

struct shard_index *
shard_index_free(struct shard_index *index)
{
    if (index) {
        json_decref(index->root);
        free(index->shard);
        free(index);
    }
    return NULL;
}

int
shard_index_n_shards(const struct shard_index *index)
{
    return index->n_shards;
}

const char *
shard_index_shard(const struct shard_index *index, int shard)
{
    ASSERT(shard >= 0 && shard < index->n_shards);
    return index->shard[shard];
}

int
shard_index_n_tensors(const struct shard_index *index)
{
    return (int)json_object_size(index->map);
}

int
shard_index_find(const struct shard_index *index, const char *tensor)
{
    const char *file = json_string_value(json_object_get(index->map, tensor));
    if (!file)
        return -ENOENT;
    const char **found =
        bsearch(&file, index->shard, (size_t)index->n_shards, sizeof *index->shard, by_text);
    ASSERT(found);
    return (int)(found - index->shard);
}

const char *
shard_index_missing(const struct shard_index *index, int (*is_there)(void *arg, const char *tensor),
                    void *arg)
{
    const char *tensor;
    json_t *file;
    json_object_foreach((json_t *)index->map, tensor, file)
    {
        if (!is_there(arg, tensor))
            return tensor;
    }
    return NULL;
}
