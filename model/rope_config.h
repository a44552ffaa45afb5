/* rope_config: the rotary position fields of config.json.
 *
 * The new form is one object `rope_parameters` {rope_type, rope_theta, ...}; the old one
 * `rope_theta` beside `rope_scaling` {rope_type or type, ...}. Both forms at once, unknown fields,
 * fields of another type and types other than default, linear, yarn and llama3 are errors.
 * Defaults: transformers 5, modeling_rope_utils; YaRN: arXiv 2309.00071. */
#ifndef MODEL_ROPE_CONFIG_H
#define MODEL_ROPE_CONFIG_H

#include <jansson.h>

#include "base/err.h"
#include "base/shape.h"

/* max_position: max_position_embeddings. -EBADMSG. */
int rope_config_parse(struct rope_shape *ret_rope, const json_t *config, int max_position,
                      struct err *err);

#endif
