/* kernels_body: the text of a table of kernels, included once per instruction set after the
 * definition of vf, W, TILE_ROWS, MIX_ROWS and the v_ functions. Compiled with -ffp-contract=off:
 * whether a product is rounded is decided by v_fma, never by the optimiser, or two tiles could
 * differ. */
#ifndef GPU_HOST_KERNELS_BODY_H
#define GPU_HOST_KERNELS_BODY_H

#include <math.h>
#include <string.h>

/* The first n (1 or more; 4 at most) of four floats. */
INLINE f4
f4_load(const float *p, int n)
{
    f4 v = {0};

    if (n >= 4)
        memcpy(&v, p, sizeof v);
    else
        for (int i = 0; i < n; i++)
            v[i] = p[i];
    return v;
}
INLINE void
f4_store(float *p, f4 v, int n)
{
    if (n >= 4)
        memcpy(p, &v, sizeof v);
    else
        for (int i = 0; i < n; i++)
            p[i] = v[i];
}

/* --- dot products
 * --------------------------------------------------------------------------------- */

INLINE vf
load_weight(const void *w, ptrdiff_t at, bool bf16)
{
    return bf16 ? v_bf16((const uint16_t *)w + at) : v_load((const float *)w + at);
}
INLINE vf
load_weight_n(const void *w, ptrdiff_t at, int n, bool bf16)
{
    return bf16 ? v_bf16_n((const uint16_t *)w + at, n) : v_load_n((const float *)w + at, n);
}

/* W products of every row with every column. */
INLINE void
dot_step(const void *weights, const ptrdiff_t *w, const float *const *x, vf *sum, int k, int n_rows,
         int n_cols, bool bf16)
{
    vf column[8];

#pragma GCC unroll 8
    for (int c = 0; c < n_cols; c++)
        column[c] = load_weight(weights, w[c] + k, bf16);
#pragma GCC unroll 6
    for (int r = 0; r < n_rows; r++) {
        vf value = v_load(x[r] + k);
#pragma GCC unroll 8
        for (int c = 0; c < n_cols; c++)
            sum[r * n_cols + c] = v_fma(value, column[c], sum[r * n_cols + c]);
    }
}

/* Asks for a share of the weights of the tile that starts at first_col, in rising order of
 * addresses: a tile is one piece of memory, but its own loads jump from row to row of it, in which
 * the hardware sees no stream. Called at every second step of k, for as many bytes as the two steps
 * use. */
INLINE void
prefetch_tile(const struct dot_args *a, int first_col, int n_cols, int k, bool bf16)
{
    enum { LINE = 64 };
    size_t size = bf16 ? sizeof(uint16_t) : sizeof(float);
    const char *at = (const char *)a->w +
                     ((size_t)first_col * (size_t)a->w_stride + (size_t)k * (size_t)n_cols) * size;

    if (first_col + n_cols > a->n_cols)
        return;
#pragma GCC unroll 16
    for (size_t line = 0; line < 2 * W * size * (size_t)n_cols; line += LINE)
        __builtin_prefetch(at + line);
}

/* One tile of n_rows x n_cols sums, both known to the compiler; columns at and past last repeat it,
 * so that an edge goes through the same code. ahead: columns to prefetch at, 0: none. */
INLINE void
dot_tile(const struct dot_args *a, int first_row, int n_rows, int first_col, int n_cols, int ahead,
         bool bf16)
{
    vf sum[6 * 4];
    const float *x[6];
    ptrdiff_t w[8];
    int k = 0, last = a->n_cols - 1;

#pragma GCC unroll 6
    for (int r = 0; r < n_rows; r++) {
        int row = a->row ? a->row[first_row + r] : first_row + r;
        x[r] = a->x + row * a->x_stride;
    }
#pragma GCC unroll 8
    for (int c = 0; c < n_cols; c++)
        w[c] = (first_col + c < last ? first_col + c : last) * a->w_stride;
#pragma GCC unroll 32
    for (int i = 0; i < n_rows * n_cols; i++)
        sum[i] = v_set1(0);
    for (; k + 2 * W <= a->k; k += 2 * W) {
        if (ahead > 0)
            prefetch_tile(a, first_col + ahead, n_cols, k, bf16);
        dot_step(a->w, w, x, sum, k, n_rows, n_cols, bf16);
        dot_step(a->w, w, x, sum, k + W, n_rows, n_cols, bf16);
    }
    if (k + W <= a->k) {
        dot_step(a->w, w, x, sum, k, n_rows, n_cols, bf16);
        k += W;
    }
    if (k < a->k) {
        int n = a->k - k;
#pragma GCC unroll 8
        for (int c = 0; c < n_cols; c++) {
            vf column = load_weight_n(a->w, w[c] + k, n, bf16);
#pragma GCC unroll 6
            for (int r = 0; r < n_rows; r++)
                sum[r * n_cols + c] = v_fma(v_load_n(x[r] + k, n), column, sum[r * n_cols + c]);
        }
    }
    int n_valid = a->n_cols - first_col;
#pragma GCC unroll 2
    for (int c = 0; c < n_cols; c += 4) {
        f4 bias = {0};
        if (a->bias)
            bias = f4_load(a->bias + first_col + c, n_valid - c);
#pragma GCC unroll 6
        for (int r = 0; r < n_rows; r++) {
            const vf *s = sum + r * n_cols + c;
            float *out = a->out + (first_row + r) * a->out_stride + first_col + c;
            f4 dots = v_sum4(s[0], s[1], s[2], s[3]);
            if (a->bias)
                dots = dots + bias;
            if (a->accumulate)
                dots = dots + f4_load(out, n_valid - c);
            f4_store(out, dots, n_valid - c);
        }
    }
}

/* Rows [first, end), columns outside, rows inside: a tile of weights is read from memory once and
 * from the first-level cache for the other rows. The first tile of rows asks for the columns to
 * come. */
INLINE void
dot_rows(const struct dot_args *a, int first, int end, int ahead, bool bf16)
{
    for (int c = 0; c < a->n_cols; c += 4) {
        int r = first, now = ahead;
        for (; r + TILE_ROWS <= end; r += TILE_ROWS, now = 0)
            dot_tile(a, r, TILE_ROWS, c, 4, now, bf16);
        if (TILE_ROWS > 4 && r + 4 <= end) {
            dot_tile(a, r, 4, c, 4, now, bf16);
            r += 4, now = 0;
        }
        if (TILE_ROWS > 2 && r + 2 <= end) {
            dot_tile(a, r, 2, c, 4, now, bf16);
            r += 2, now = 0;
        }
        if (r < end)
            dot_tile(a, r, 1, c, 4, now, bf16);
    }
}

/* How many columns ahead to ask for: about eight kilobytes of weights, which is how far memory is
 * away in time; whole tiles. 0 where rows of weights do not follow each other. */
INLINE int
columns_ahead(const struct dot_args *a, int tile_columns, bool bf16)
{
    enum { AHEAD_BYTES = 8192, MOST_TILES = 8 };
    size_t tile = (size_t)tile_columns * (size_t)a->k * (bf16 ? sizeof(uint16_t) : sizeof(float));

    if (a->w_stride != a->k)
        return 0;
    for (int tiles = 1; tiles < MOST_TILES; tiles++)
        if ((size_t)tiles * tile >= AHEAD_BYTES)
            return tiles * tile_columns;
    return MOST_TILES * tile_columns;
}

/* Rows in blocks that stay in the second-level cache while the columns pass by. */
INLINE void
dot_all(const struct dot_args *a, bool bf16)
{
    enum { BLOCK_ROWS = 96, BLOCK_FLOATS = 64 * 1024 };

    if (a->n_rows == 1) {
        int ahead = columns_ahead(a, 8, bf16);
        for (int c = 0; c < a->n_cols; c += 8)
            dot_tile(a, 0, 1, c, 8, ahead, bf16);
        return;
    }
    int ahead = columns_ahead(a, 4, bf16);
    int block = BLOCK_FLOATS / (a->k > 0 ? a->k : 1) / TILE_ROWS * TILE_ROWS;
    block = block > BLOCK_ROWS ? BLOCK_ROWS : block < 4 * TILE_ROWS ? 4 * TILE_ROWS : block;
    for (int r = 0; r < a->n_rows; r += block)
        dot_rows(a, r, a->n_rows - r < block ? a->n_rows : r + block, ahead, bf16);
}

static void
dot_bf16(const struct dot_args *args)
{
    dot_all(args, true);
}

static void
dot_f32(const struct dot_args *args)
{
    dot_all(args, false);
}

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

/* --- exp
 * ------------------------------------------------------------------------------------------ */

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

/* --- elementwise
 * ---------------------------------------------------------------------------------- */

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

/* --- attention
 * ------------------------------------------------------------------------------------ */

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
