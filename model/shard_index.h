/* shard_index: model.safetensors.index.json, which tensor lies in which shard.
 *
 * Shards are named by plain file names beside the index; a name that leaves the folder is refused.
 */
#ifndef MODEL_SHARD_INDEX_H
#define MODEL_SHARD_INDEX_H

#include "base/err.h"

enum { SHARD_INDEX_MAX_SHARDS = 4096, SHARD_INDEX_MAX_TENSORS = 1 << 20 };

struct shard_index;

/* -ENOENT when there is no such file; -EBADMSG with path and field in err. */
int shard_index_load(struct shard_index **ret_index, const char *path, struct err *err);
struct shard_index *shard_index_free(struct shard_index *index); /* accepts NULL, returns NULL */

int shard_index_n_shards(const struct shard_index *index);
const char *shard_index_shard(const struct shard_index *index, int shard); /* sorted by name */
int shard_index_n_tensors(const struct shard_index *index);
/* The shard the index names for this tensor; -ENOENT when the index does not list it. */
int shard_index_find(const struct shard_index *index, const char *tensor);
/* A name the index gives and `is_there` refuses, or NULL. */
const char *shard_index_missing(const struct shard_index *index,
                                int (*is_there)(void *arg, const char *tensor), void *arg);

#endif
