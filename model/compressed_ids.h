/* compressed_ids: the map from token ids to compressed ids that Engram hashes (specs, "Compressed
 * token ids"; edge cases in the same place). Built once at load from the tokenizer. */
#ifndef MODEL_COMPRESSED_IDS_H
#define MODEL_COMPRESSED_IDS_H

#include "model/tokenizer.h"

/* Fills map[0..vocab) and *ret_count (V_c). pad_id is a compressed id (config.json's
 * pad_token_id): ids of the model beyond the tokenizer's (padding of the embedding) get it. An id that the file leaves out below its
 * highest one decodes to the empty string and is keyed so. A declared V_c that differs is the
 * caller's error to report. -EINVAL: pad_id is no compressed id; -ENOMEM. */
int compressed_ids_build(const struct tokenizer *tokenizer, int vocab, int pad_id, int32_t *map,
                         int *ret_count, struct err *err);

#endif
