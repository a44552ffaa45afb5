/* engram_config: the object `engram` of config.json (specs, "Checkpoint family engram"). Every
 * field must be there, table_scale_group only with scales; an unknown one is an error. */
#ifndef MODEL_ENGRAM_CONFIG_H
#define MODEL_ENGRAM_CONFIG_H

#include <jansson.h>

#include "base/err.h"
#include "base/shape.h"

/* vocab, layers: of the backbone. Derives primes, multipliers and rows too. -EBADMSG. */
int engram_config_parse(struct engram_shape *ret_engram, const json_t *object, int vocab,
                        int layers, struct err *err);

#endif
