/* kernels_portable: the kernels in vectors of 4 floats by the compiler's own vector types: SSE2,
 * NEON or scalar code, whatever the target has. Products are rounded before they are added: without
 * an instruction for it, a fused multiply-add would be a library call. */
#include "gpu/host/host_kernels.h"

#include <string.h>

typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));
typedef uint32_t vu __attribute__((vector_size(16)));
typedef uint16_t vh __attribute__((vector_size(8)));
typedef float f4 __attribute__((vector_size(16)));

enum { W = 4, TILE_ROWS = 2, MIX_ROWS = 2 };

#define INLINE static inline __attribute__((always_inline))

INLINE vf
v_set1(float a)
{
    return (vf){a, a, a, a};
}
INLINE vf
v_load(const float *p)
{
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE vf
v_load_n(const float *p, int n)
{
    vf v = {0};
    memcpy(&v, p, (size_t)n * sizeof *p);
    return v;
}
INLINE void
v_store(float *p, vf v)
{
    memcpy(p, &v, sizeof v);
}
INLINE void
v_store_n(float *p, vf v, int n)
{
    memcpy(p, &v, (size_t)n * sizeof *p);
}
INLINE vf
v_bf16(const uint16_t *p)
{
    vh half;
    memcpy(&half, p, sizeof half);
    return (vf)(__builtin_convertvector(half, vu) << 16);
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
    return a * b + c;
}
INLINE vf
v_select(vi mask, vf yes, vf no)
{
    return (vf)((mask & (vi)yes) | (~mask & (vi)no));
}
INLINE vf
v_max(vf a, vf b)
{
    return v_select(a > b, a, b);
}
INLINE vf
v_min(vf a, vf b)
{
    return v_select(a < b, a, b);
}
/* 0 where a < limit, else b. */
INLINE vf
v_zero_below(vf a, float limit, vf b)
{
    return v_select(a < v_set1(limit), v_set1(0), b);
}
/* p * 2^n for integral n in [-126, 127]. */
INLINE vf
v_ldexp(vf p, vf n)
{
    vi exponent = (__builtin_convertvector(n, vi) + 127) << 23;
    return p * (vf)exponent;
}
INLINE float
v_sum(vf a)
{
    return (a[0] + a[2]) + (a[1] + a[3]);
}
INLINE f4
v_sum4(vf a, vf b, vf c, vf d)
{
    return (f4){v_sum(a), v_sum(b), v_sum(c), v_sum(d)};
}
INLINE float
v_max_lane(vf a)
{
    float m = a[0];
    for (int i = 1; i < W; i++)
        m = a[i] > m ? a[i] : m;
    return m;
}
/* True when |a| <= largest float in every lane. */
INLINE bool
v_finite(vf a)
{
    vu bits = (vu)a & 0x7f800000u;
    vi bad = bits == 0x7f800000u;
    return (bad[0] | bad[1] | bad[2] | bad[3]) == 0;
}

#define KERNELS_TABLE     kernels_portable
#define KERNELS_BLAS_ROWS 4
#define KERNELS_NAME      "portable"
#include "gpu/host/kernels_body.h"
