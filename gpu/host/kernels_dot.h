/* kernels_dot: tiles of dot products, the part of the kernels where the time goes. Included by
 * kernels_body.h, once per instruction set; what is said there holds here. */
#ifndef GPU_HOST_KERNELS_DOT_H
#define GPU_HOST_KERNELS_DOT_H

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

/* ThreadSanitizer is told once what a product reads and writes, but for the weights, which nobody writes while there are
 * steps; being asked at every load would be most of its time. */
#ifdef __SANITIZE_THREAD__
void __tsan_read_range(void *at, long size);
void __tsan_write_range(void *at, long size);
#define TOLD __attribute__((no_sanitize("thread")))

static void
tell(const struct dot_args *a)
{
    for (int r = 0; r < a->n_rows; r++) {
        ptrdiff_t row = a->row ? a->row[r] : r;

        __tsan_read_range((void *)(a->x + row * a->x_stride), (long)sizeof *a->x * a->k);
        __tsan_write_range(a->out + r * a->out_stride, (long)sizeof *a->out * a->n_cols);
    }
}
#else
#define TOLD
#define tell(args) (void)0
#endif

TOLD static void
dot_bf16(const struct dot_args *args)
{
    tell(args);
    dot_all(args, true);
}

TOLD static void
dot_f32(const struct dot_args *args)
{
    tell(args);
    dot_all(args, false);
}

#endif
