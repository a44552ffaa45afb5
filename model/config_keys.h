/* config_keys: which fields of config.json and generation_config.json may be there.
 *
 * Understood fields and those that cannot change a result pass. A field known to change the
 * arithmetic of some model passes only with the value that changes nothing (num_experts 0,
 * partial_rotary_factor 1, ...); with any other value it is an error that names it. Null is always
 * neutral. Names that begin with "_" pass. The rest is listed for a warning. */
#ifndef MODEL_CONFIG_KEYS_H
#define MODEL_CONFIG_KEYS_H

#include <jansson.h>
#include <stddef.h>

#include "base/err.h"

/* Appends the names nobody knows to `unknown` (NUL-terminated, kept within unknown_size). -EBADMSG.
 */
int config_keys_check(const json_t *config, char *unknown, size_t unknown_size, struct err *err);
void config_keys_check_generation(const json_t *generation, char *unknown, size_t unknown_size);

#endif
