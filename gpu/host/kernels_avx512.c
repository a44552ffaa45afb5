/* kernels_avx512: the kernels in vectors of 16 floats, for CPUs with AVX-512 F, BW, DQ and VL. The
 * bf16 dot product instruction is not used: it flushes denormals and rounds products its own way.
 */
#include "gpu/host/host_kernels.h"

#include <immintrin.h>

typedef __m512 vf;
typedef float f4 __attribute__((vector_size(16)));

enum { W = 16, TILE_ROWS = 6, MIX_ROWS = 4 };

#define INLINE static inline __attribute__((always_inline))

INLINE vf
v_set1(float a)
{
    return _mm512_set1_ps(a);
}
INLINE vf
v_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
INLINE __mmask16
lane_mask(int n)
{
    return (__mmask16)((1u << n) - 1);
}
INLINE vf
v_load_n(const float *p, int n)
{
    return _mm512_maskz_loadu_ps(lane_mask(n), p);
}
INLINE void
v_store(float *p, vf v)
{
    _mm512_storeu_ps(p, v);
}
INLINE void
v_store_n(float *p, vf v, int n)
{
    _mm512_mask_storeu_ps(p, lane_mask(n), v);
}
INLINE vf
widen(__m256i half)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
INLINE vf
v_bf16(const uint16_t *p)
{
    return widen(_mm256_loadu_si256((const __m256i *)p));
}
INLINE vf
v_bf16_n(const uint16_t *p, int n)
{
    return widen(_mm256_maskz_loadu_epi16(lane_mask(n), p));
}
INLINE vf
v_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}
INLINE vf
v_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}
INLINE vf
v_min(vf a, vf b)
{
    return _mm512_min_ps(a, b);
}
INLINE vf
v_zero_below(vf a, float limit, vf b)
{
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, _mm512_set1_ps(limit), _CMP_NLT_UQ), b);
}
INLINE vf
v_ldexp(vf p, vf n)
{
    __m512i exponent = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_mul_ps(p, _mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23)));
}
INLINE __m256
fold(vf a)
{
    return _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
}
/* Four sums at once; lane i of the result is the sum of argument i. One tree: halves, neighbours,
 * pairs of neighbours, halves. */
INLINE f4
v_sum4(vf a, vf b, vf c, vf d)
{
    __m256 quads =
        _mm256_hadd_ps(_mm256_hadd_ps(fold(a), fold(b)), _mm256_hadd_ps(fold(c), fold(d)));
    return (f4)_mm_add_ps(_mm256_castps256_ps128(quads), _mm256_extractf128_ps(quads, 1));
}
INLINE float
v_sum(vf a)
{
    return v_sum4(a, a, a, a)[0];
}
INLINE float
v_max_lane(vf a)
{
    return _mm512_reduce_max_ps(a);
}
INLINE bool
v_finite(vf a)
{
    return _mm512_fpclass_ps_mask(a, 0x99) == 0; /* quiet NaN, +inf, -inf, signalling NaN */
}

#define KERNELS_TABLE     kernels_avx512
#define KERNELS_BLAS_ROWS 0
#define KERNELS_NAME      "avx512"
#include "gpu/host/kernels_body.h"
