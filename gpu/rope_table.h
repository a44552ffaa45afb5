/* rope_table: the frequencies of rotary position embedding, of every kind in base/shape.h.
 *
 * The arithmetic is that of transformers' modeling_rope_utils (functions _compute_*_parameters);
 * the results are rounded to float, as there. Thread: none; a pure function. */
#ifndef GPU_ROPE_TABLE_H
#define GPU_ROPE_TABLE_H

#include "base/err.h"
#include "base/shape.h"

/* ret_inv_freq [head_dim / 2], radians per position; ret_attention_scale multiplies sine and
 * cosine. -EINVAL: a parameter that gives no finite frequency, named in err. */
int rope_table_make(const struct rope_shape *rope, int head_dim, double *ret_inv_freq,
                    double *ret_attention_scale, struct err *err);

#endif
