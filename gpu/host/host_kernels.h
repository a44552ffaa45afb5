/* host_kernels: the inner loops of the CPU backend, one table per instruction set.
 *
 * kernels_body.h is the one text of all three tables; kernels_portable.c, kernels_avx2.c and
 * kernels_avx512.c give it vectors of 4, 8 and 16 floats. Within a table every result is a function
 * of its own inputs alone: a dot product has one accumulator vector, filled in rising order of k,
 * and one fixed tree that adds its lanes, whatever tile of rows and columns computed it. Between
 * tables the orders differ, so results agree only to rounding. Thread: none; pure functions over
 * memory of the caller.                                          */
#ifndef GPU_HOST_HOST_KERNELS_H
#define GPU_HOST_HOST_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* n_rows x n_cols dot products: out[r * out_stride + c] = x_r . w_c (+ bias[c]) (+ out when
 * accumulate), x_r = x + (row ? row[r] : r) * x_stride, w_c = w + c * w_stride; strides in
 * elements. Each sum is made as ((dot + bias) + out). */
struct dot_args {
    float *out;
    ptrdiff_t out_stride;
    const float *x;
    ptrdiff_t x_stride;
    const int32_t *row; /* NULL: consecutive */
    int n_rows;
    const void *w; /* uint16_t (bf16) or float */
    ptrdiff_t w_stride;
    int n_cols;
    int k;
    const float *bias; /* NULL: none */
    bool accumulate;
};

struct host_kernels {
    const char *name;
    /* Prefill segments of this many rows and more are faster by BLAS than by dot_*; 0: none are. */
    int blas_rows;
    void (*dot_bf16)(const struct dot_args *args);
    void (*dot_f32)(const struct dot_args *args);
    void (*widen_bf16)(float *dst, const uint16_t *src, size_t n);
    /* sum of a[i] * b[i], in lanes, then the fixed tree. */
    float (*dot)(const float *a, const float *b, int n);
    /* out = x / sqrt(mean(x^2) + eps) * weight; out may be x. Returns 1 / sqrt(...). */
    float (*rms_norm)(float *out, const float *x, const float *weight, int dim, float eps);
    /* out = silu(gate) * up */
    void (*silu_mul)(float *out, const float *gate, const float *up, size_t n);
    /* x += silu(y) */
    void (*silu_add)(float *x, const float *y, size_t n);
    /* out = a * scale; out may be a. */
    void (*scale)(float *out, const float *a, float scale, size_t n);
    /* acc += a * b elementwise. */
    void (*mul_add)(float *acc, const float *a, const float *b, size_t n);
    /* Largest of n > 0 values; *ret_finite false if any is NaN or infinite (then the result is
     * void). */
    float (*max)(const float *x, size_t n, bool *ret_finite);
    /* out[i] = exp((x[i] - max) * scale); returns their sum in lanes of 4096 element blocks, the
     * blocks added in double. out may be x, or NULL when only the sum is wanted. */
    double (*exp_sum)(float *out, const float *x, size_t n, float max, float scale);
    /* acc_q[d] = acc_q[d] * keep[q] + sum over j, in rising order, of p[q][j] * v[j][d], for n_q
     * rows: acc_q = acc + q * acc_stride, p[q] = p + q * p_stride, v[j] = v + j * v_stride. */
    void (*mix)(float *acc, ptrdiff_t acc_stride, const float *keep, int n_q, const float *p,
                ptrdiff_t p_stride, const float *v, ptrdiff_t v_stride, int n_keys, int dim);
};

extern const struct host_kernels kernels_portable;
#ifdef GPU_HOST_X86
extern const struct host_kernels kernels_avx2;
extern const struct host_kernels kernels_avx512;
#endif

#endif
