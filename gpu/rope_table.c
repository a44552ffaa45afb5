#include "gpu/rope_table.h"

#include <math.h>

static double
clamp(double value, double low, double high)
{
    return value < low ? low : value > high ? high : value;
}

/* 0.1 m ln(s) + 1, the temperature of YaRN (arXiv 2309.00071, section 3.4). */
static double
yarn_mscale(double scale, double mscale)
{
    return scale <= 1 ? 1 : 0.1 * mscale * log(scale) + 1;
}

/* The dimension whose wave makes n_rotations over the original context. */
static double
correction_dim(const struct rope_shape *rope, double n_rotations, int dim)
{
    return dim * log(rope->original_max_position / (n_rotations * 2 * M_PI)) /
           (2 * log(rope->theta));
}

/* Blends interpolated (slow) and original (fast) frequencies along a ramp between two dimensions.
 */
static double
make_yarn(const struct rope_shape *rope, int dim, double *inv_freq)
{
    double low = correction_dim(rope, rope->beta_fast > 0 ? rope->beta_fast : 32, dim);
    double high = correction_dim(rope, rope->beta_slow > 0 ? rope->beta_slow : 1, dim);

    if (rope->truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, dim - 1);
    if (low == high)
        high += 0.001;
    for (int i = 0; i < dim / 2; i++) {
        double extrapolated = 1 - clamp((i - low) / (high - low), 0, 1);
        inv_freq[i] = inv_freq[i] / rope->factor * (1 - extrapolated) + inv_freq[i] * extrapolated;
    }
    if (rope->attention_factor != 0)
        return rope->attention_factor;
    if (rope->mscale != 0 && rope->mscale_all_dim != 0)
        return yarn_mscale(rope->factor, rope->mscale) /
               yarn_mscale(rope->factor, rope->mscale_all_dim);
    return yarn_mscale(rope->factor, 1);
}

/* Long waves are divided by the factor, short ones kept, those between blended. */
static void
make_llama3(const struct rope_shape *rope, int dim, double *inv_freq)
{
    double original = rope->original_max_position;
    double low = rope->low_freq_factor, high = rope->high_freq_factor;

    for (int i = 0; i < dim / 2; i++) {
        double wave = 2 * M_PI / inv_freq[i];
        if (wave > original / low) {
            inv_freq[i] /= rope->factor;
        } else if (wave >= original / high) {
            double smooth = (original / wave - low) / (high - low);
            inv_freq[i] = (1 - smooth) * inv_freq[i] / rope->factor + smooth * inv_freq[i];
        }
    }
}

int
rope_table_make(const struct rope_shape *rope, int head_dim, double *ret_inv_freq,
                double *ret_attention_scale, struct err *err)
{
    double scale = 1;

    if (head_dim < 2 || head_dim % 2 != 0)
        return err_set(err, EINVAL, "head_dim %d: rotation needs an even number", head_dim);
    if (!(rope->theta > 0) || rope->theta == 1)
        return err_set(err, EINVAL, "rope_theta %g: expected a positive number but 1", rope->theta);
    if (rope->kind != ROPE_DEFAULT && !(rope->factor > 0))
        return err_set(err, EINVAL, "rope factor %g: expected a positive number", rope->factor);
    if ((rope->kind == ROPE_YARN || rope->kind == ROPE_LLAMA3) &&
        !(rope->original_max_position > 0))
        return err_set(err, EINVAL,
                       "original_max_position_embeddings %g: expected a positive number",
                       rope->original_max_position);
    if (rope->kind == ROPE_LLAMA3 &&
        !(rope->low_freq_factor > 0 && rope->high_freq_factor > rope->low_freq_factor))
        return err_set(err, EINVAL,
                       "low_freq_factor %g, high_freq_factor %g: expected 0 < low < high",
                       rope->low_freq_factor, rope->high_freq_factor);
    for (int i = 0; i < head_dim / 2; i++)
        ret_inv_freq[i] = 1 / pow(rope->theta, 2.0 * i / head_dim);
    switch (rope->kind) {
    case ROPE_DEFAULT:
        break;
    case ROPE_LINEAR:
        for (int i = 0; i < head_dim / 2; i++)
            ret_inv_freq[i] /= rope->factor;
        break;
    case ROPE_YARN:
        scale = make_yarn(rope, head_dim, ret_inv_freq);
        break;
    case ROPE_LLAMA3:
        make_llama3(rope, head_dim, ret_inv_freq);
        break;
    }
    for (int i = 0; i < head_dim / 2; i++) {
        ret_inv_freq[i] = (double)(float)ret_inv_freq[i];
        if (!isfinite(ret_inv_freq[i]))
            return err_set(err, EINVAL, "rope parameters give no finite frequency");
    }
    if (!isfinite(scale))
        return err_set(err, EINVAL, "rope parameters give no finite attention factor");
    *ret_attention_scale = scale;
    return 0;
}
