/* kernels_avx2: the kernels in vectors of 8 floats, for CPUs with AVX2 and FMA. */
#include "gpu/host/host_kernels.h"

#include <immintrin.h>
#include <string.h>

typedef __m256 vf;
typedef float f4 __attribute__((vector_size(16)));

enum { W = 8, TILE_ROWS = 2, MIX_ROWS = 2 };

#define INLINE static inline __attribute__((always_inline))

INLINE vf
v_set1(float a)
{
    return _mm256_set1_ps(a);
}
INLINE vf
v_load(const float *p)
{
    return _mm256_loadu_ps(p);
}
INLINE __m256i
lane_mask(int n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
INLINE vf
v_load_n(const float *p, int n)
{
    return _mm256_maskload_ps(p, lane_mask(n));
}
INLINE void
v_store(float *p, vf v)
{
    _mm256_storeu_ps(p, v);
}
INLINE void
v_store_n(float *p, vf v, int n)
{
    _mm256_maskstore_ps(p, lane_mask(n), v);
}
INLINE vf
v_bf16(const uint16_t *p)
{
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
INLINE vf
v_bf16_n(const uint16_t *p, int n)
{
    uint16_t half[W] = {0};
    memcpy(half, p, (size_t)n * sizeof *p);
    return v_bf16(half);
}
INLINE vf
v_fma(vf a, vf b, vf c)
{
    return _mm256_fmadd_ps(a, b, c);
}
INLINE vf
v_max(vf a, vf b)
{
    return _mm256_max_ps(a, b);
}
INLINE vf
v_min(vf a, vf b)
{
    return _mm256_min_ps(a, b);
}
INLINE vf
v_zero_below(vf a, float limit, vf b)
{
    return _mm256_andnot_ps(_mm256_cmp_ps(a, _mm256_set1_ps(limit), _CMP_LT_OQ), b);
}
INLINE vf
v_ldexp(vf p, vf n)
{
    __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}
/* Four sums at once; lane i of the result is the sum of argument i. One tree: neighbours, pairs of
 * neighbours, halves. */
INLINE f4
v_sum4(vf a, vf b, vf c, vf d)
{
    __m256 quads = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
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
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
}
INLINE bool
v_finite(vf a)
{
    __m256i top = _mm256_set1_epi32(0x7f800000);
    __m256i bits = _mm256_and_si256(_mm256_castps_si256(a), top);
    return _mm256_movemask_epi8(_mm256_cmpeq_epi32(bits, top)) == 0;
}

#define KERNELS_TABLE     kernels_avx2
#define KERNELS_BLAS_ROWS 0
#define KERNELS_NAME      "avx2"
#include "gpu/host/kernels_body.h"
