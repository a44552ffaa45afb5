/* unicode9: what Unicode 9.0 knows, the version the tokenizers library normalises by.
 *
 * Its normalisation crate (unicode-normalization-alignments 0.1.12) has tables of 9.0 and no other.
 * A mark or a composed letter added later is a plain character to it: no class, no decomposition,
 * no mark. utf8proc has the tables of the day, so what it says of such characters is put aside.
 * Properties of older ones do not change (Unicode's stability policy). Thread: none; pure
 * functions.                                                                     */
#ifndef MODEL_UNICODE9_H
#define MODEL_UNICODE9_H

#include <stdbool.h>
#include <stdint.h>

/* False for code points of which normalisation must know nothing; of those without any property in
 * question the answer means nothing. */
bool unicode9_knows(int32_t cp);
/* General category Mn, Mc or Me in Unicode 9.0. */
bool unicode9_is_mark(int32_t cp);

#endif
