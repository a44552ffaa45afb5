/* kernels_body: the text of a table of kernels, included once per instruction set after the
 * definition of vf, W, TILE_ROWS, MIX_ROWS and the v_ functions. Compiled with -ffp-contract=off:
 * whether a product is rounded is decided by v_fma, never by the optimiser, or two tiles could
 * differ. */
#ifndef GPU_HOST_KERNELS_BODY_H
#define GPU_HOST_KERNELS_BODY_H

#include <math.h>

#include "gpu/host/kernels_dot.h"

static float
dot(const float *a, const float *b, int n)
{
    vf sum = v_set1(0);
    int i = 0;
    for (; i + W <= n; i += W)
        sum = v_fma(v_load(a + i), v_load(b + i), sum);
    if (i < n)
        sum = v_fma(v_load_n(a + i, n - i), v_load_n(b + i, n - i), sum);
    return v_sum(sum);
}

static void
widen_bf16(float *dst, const uint16_t *src, size_t n)
{
    size_t i = 0;
    for (; i + W <= n; i += W)
        v_store(dst + i, v_bf16(src + i));
    if (i < n)
        v_store_n(dst + i, v_bf16_n(src + i, (int)(n - i)), (int)(n - i));
}

/* e^x to about 2 ulp: x = n ln 2 + r, |r| <= ln 2 / 2, a polynomial of degree 6 in r (minimax
 * coefficients near the Taylor ones), times 2^n. 0 below -87.3 (the smallest normal number), and
 * the value at 88 above it. NaN gives a finite value: callers check for it before. */
INLINE vf
v_exp(vf x)
{
    vf bounded = v_min(v_max(x, v_set1(-87.0f)), v_set1(88.0f));
    /* Adding 1.5 * 2^23 leaves the nearest integer in the low bits of the sum. */
    vf n = v_fma(bounded, v_set1(1.44269504088896341f), v_set1(12582912.0f)) - v_set1(12582912.0f);
    vf r = v_fma(n, v_set1(-0.693359375f), bounded);
    r = v_fma(n, v_set1(2.12194440e-4f), r);
    vf p = v_set1(1.9875691500e-4f);
    p = v_fma(p, r, v_set1(1.3981999507e-3f));
    p = v_fma(p, r, v_set1(8.3334519073e-3f));
    p = v_fma(p, r, v_set1(4.1665795894e-2f));
    p = v_fma(p, r, v_set1(1.6666665459e-1f));
    p = v_fma(p, r, v_set1(5.0000001201e-1f));
    p = v_fma(p, r * r, r + v_set1(1.0f));
    return v_zero_below(x, -87.0f, v_ldexp(p, n));
}

INLINE vf
v_silu(vf x)
{
    return x / (v_set1(1.0f) + v_exp(v_set1(0) - x));
}

static void
silu_mul(float *out, const float *gate, const float *up, size_t n)
{
    size_t i = 0;
    for (; i + W <= n; i += W)
        v_store(out + i, v_silu(v_load(gate + i)) * v_load(up + i));
    if (i < n) {
        int rest = (int)(n - i);
        v_store_n(out + i, v_silu(v_load_n(gate + i, rest)) * v_load_n(up + i, rest), rest);
    }
}

static void
silu_add(float *x, const float *y, size_t n)
{
    size_t i = 0;
    for (; i + W <= n; i += W)
        v_store(x + i, v_load(x + i) + v_silu(v_load(y + i)));
    if (i < n) {
        int rest = (int)(n - i);
        v_store_n(x + i, v_load_n(x + i, rest) + v_silu(v_load_n(y + i, rest)), rest);
    }
}

static double
exp_sum(float *out, const float *x, size_t n, float max, float scale)
{
    enum { BLOCK = 4096 };
    double total = 0;
    vf top = v_set1(max), factor = v_set1(scale);

    for (size_t begin = 0; begin < n; begin += BLOCK) {
        size_t end = n - begin < BLOCK ? n : begin + BLOCK, i = begin;
        vf sum = v_set1(0);
        for (; i + W <= end; i += W) {
            vf e = v_exp((v_load(x + i) - top) * factor);
            sum = sum + e;
            if (out)
                v_store(out + i, e);
        }
        if (i < end) {
            float rest[W] = {0};
            v_store(rest, v_exp((v_load_n(x + i, (int)(end - i)) - top) * factor));
            for (size_t lane = end - i; lane < W; lane++)
                rest[lane] = 0;
            sum = sum + v_load(rest);
            if (out)
                v_store_n(out + i, v_load(rest), (int)(end - i));
        }
        total += (double)v_sum(sum);
    }
    return total;
}

static float
rms_norm(float *out, const float *x, const float *weight, int dim, float eps)
{
    float inverse = 1.0f / sqrtf(dot(x, x, dim) / (float)dim + eps);
    vf factor = v_set1(inverse);
    int i = 0;
    for (; i + W <= dim; i += W)
        v_store(out + i, v_load(x + i) * factor * v_load(weight + i));
    if (i < dim)
        v_store_n(out + i, v_load_n(x + i, dim - i) * factor * v_load_n(weight + i, dim - i),
                  dim - i);
    return inverse;
}

static void
scale(float *out, const float *a, float by, size_t n)
{
    vf factor = v_set1(by);
    size_t i = 0;
    for (; i + W <= n; i += W)
        v_store(out + i, v_load(a + i) * factor);
    if (i < n)
        v_store_n(out + i, v_load_n(a + i, (int)(n - i)) * factor, (int)(n - i));
}

static void
mul_add(float *acc, const float *a, const float *b, size_t n)
{
    size_t i = 0;
    for (; i + W <= n; i += W)
        v_store(acc + i, v_fma(v_load(a + i), v_load(b + i), v_load(acc + i)));
    if (i < n) {
        int rest = (int)(n - i);
        v_store_n(acc + i,
                  v_fma(v_load_n(a + i, rest), v_load_n(b + i, rest), v_load_n(acc + i, rest)),
                  rest);
    }
}

static float
max(const float *x, size_t n, bool *ret_finite)
{
    bool finite = true;
    float best = x[0];
    size_t i = 0;
    if (n >= W) {
        vf top = v_load(x);
        for (; i + W <= n; i += W) {
            vf value = v_load(x + i);
            finite &= v_finite(value);
            top = v_max(value, top);
        }
        best = v_max_lane(top);
    }
    for (; i < n; i++) {
        finite &= isfinite(x[i]) != 0;
        best = x[i] > best ? x[i] : best;
    }
    *ret_finite = finite;
    return best;
}

/* A tile of n_q rows and n_v vectors of the head dimension stays in registers over all keys. */
INLINE void
mix_tile(float *acc, ptrdiff_t acc_stride, const float *keep, int n_q, const float *p,
         ptrdiff_t p_stride, const float *v, ptrdiff_t v_stride, int n_keys, int n_v)
{
    vf sum[16];
#pragma GCC unroll 4
    for (int q = 0; q < n_q; q++)
#pragma GCC unroll 4
        for (int i = 0; i < n_v; i++)
            sum[q * n_v + i] = v_load(acc + q * acc_stride + i * W) * v_set1(keep[q]);
    for (int j = 0; j < n_keys; j++) {
        vf value[4];
#pragma GCC unroll 4
        for (int i = 0; i < n_v; i++)
            value[i] = v_load(v + j * v_stride + i * W);
#pragma GCC unroll 4
        for (int q = 0; q < n_q; q++) {
            vf weight = v_set1(p[q * p_stride + j]);
#pragma GCC unroll 4
            for (int i = 0; i < n_v; i++)
                sum[q * n_v + i] = v_fma(weight, value[i], sum[q * n_v + i]);
        }
    }
#pragma GCC unroll 4
    for (int q = 0; q < n_q; q++)
#pragma GCC unroll 4
        for (int i = 0; i < n_v; i++)
            v_store(acc + q * acc_stride + i * W, sum[q * n_v + i]);
}

static void
mix(float *acc, ptrdiff_t acc_stride, const float *keep, int n_q, const float *p,
    ptrdiff_t p_stride, const float *v, ptrdiff_t v_stride, int n_keys, int dim)
{
    for (int q = 0; q < n_q;) {
        int rows = n_q - q >= MIX_ROWS ? MIX_ROWS : 1;
        float *to = acc + q * acc_stride;
        const float *from = p + q * p_stride;
        int d = 0;
        for (; d + 4 * W <= dim; d += 4 * W) {
            if (rows == MIX_ROWS)
                mix_tile(to + d, acc_stride, keep + q, MIX_ROWS, from, p_stride, v + d, v_stride,
                         n_keys, 4);
            else
                mix_tile(to + d, acc_stride, keep + q, 1, from, p_stride, v + d, v_stride, n_keys,
                         4);
        }
        for (; d + W <= dim; d += W) {
            if (rows == MIX_ROWS)
                mix_tile(to + d, acc_stride, keep + q, MIX_ROWS, from, p_stride, v + d, v_stride,
                         n_keys, 1);
            else
                mix_tile(to + d, acc_stride, keep + q, 1, from, p_stride, v + d, v_stride, n_keys,
                         1);
        }
        if (d < dim) {
            int n = dim - d;
            for (int r = 0; r < rows; r++) {
                float *at = to + r * acc_stride + d;
                vf sum = v_load_n(at, n) * v_set1(keep[q + r]);
                for (int j = 0; j < n_keys; j++)
                    sum = v_fma(v_set1(from[r * p_stride + j]), v_load_n(v + j * v_stride + d, n),
                                sum);
                v_store_n(at, sum, n);
            }
        }
        q += rows;
    }
}

const struct host_kernels KERNELS_TABLE = {
    .name = KERNELS_NAME,
    .blas_rows = KERNELS_BLAS_ROWS,
    .dot_bf16 = dot_bf16,
    .dot_f32 = dot_f32,
    .widen_bf16 = widen_bf16,
    .dot = dot,
    .rms_norm = rms_norm,
    .silu_mul = silu_mul,
    .silu_add = silu_add,
    .scale = scale,
    .mul_add = mul_add,
    .max = max,
    .exp_sum = exp_sum,
    .mix = mix,
};

#endif
