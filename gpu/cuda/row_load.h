/* row_load: how kernels read what the host wrote, and table rows wherever they are.
 *
 * load_system_*: words and vectors that the host may have written since the kernel began (flags, addresses):
 * never from a cache. load_rows: 16 bytes of table rows, from HBM or over the bus; they are used once, so
 * they leave no trace in L1. Rows are written by the host before the flag that wait_rows acquired, which orders
 * these plain loads behind it; the read-only path (ld.global.nc) has no such promise. */
#ifndef GPU_CUDA_ROW_LOAD_H
#define GPU_CUDA_ROW_LOAD_H

#include <stdint.h>

#include "gpu/cuda/bf16_pair.h"
#include "gpu/cuda/launch.h"


__device__ static inline uint64_t
load_system_acquire(const uint64_t *word)
{
    uint64_t value;

    asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(word) : "memory");
    return value;
}

__device__ static inline uint64_t
load_system_u64(const uint64_t *word)
{
    uint64_t value;

    asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(word) : "memory");
    return value;
}

__device__ static inline uint4
load_system_16(const void *from)
{
    uint4 v;

    asm volatile("ld.relaxed.sys.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from)
                 : "memory");
    return v;
}

/* A word that blocks of the device tell each other: what was written before the store is there behind a load that
 * sees it. */
__device__ static inline int32_t
load_acquire(const int32_t *word)
{
    int32_t value;

    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
    return value;
}

__device__ static inline void
store_release(int32_t *word, int32_t value)
{
    asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(word), "r"(value) : "memory");
}

/* Volatile, so that the loads of a batch stay together, ahead of the first use. */
__device__ static inline uint4
load_rows(const void *from)
{
    uint4 v;

    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from)
                 : "memory");
    return v;
}

__device__ static inline uint64_t
global_timer_ns(void)
{
    uint64_t now;

    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
}

/* The driver loads a kernel when it is first named, which must not happen behind one that waits for the host. 0 or
 * -EIO. */
template <typename... Params>
static inline int
load_kernel(void (*kernel)(Params...))
{
    cudaFuncAttributes attributes;

    return cuda_launch_status(cudaFuncGetAttributes(&attributes, kernel));
}


/* Two bytes of E4M3 to floats; 0x7f and 0xff are NaN. */
__device__ static inline float2
e4m3x2_to_float2(uint32_t two)
{
#if __CUDA_ARCH__ >= 890
    uint32_t halves;
    uint16_t in = (uint16_t)two;

    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(in));
    return __half22float2(*(const __half2 *)&halves);
#else
    /* Exponent and mantissa as those of a float whose exponent is 120 too small: exact for
     * subnormals too, since the product is. */
    float2 out;
    uint32_t a = two & 0xff, b = two >> 8 & 0xff;

    out.x = __uint_as_float((a & 0x80) << 24 | (a & 0x7f) << 20) * 0x1p120f;
    out.y = __uint_as_float((b & 0x80) << 24 | (b & 0x7f) << 20) * 0x1p120f;
    out.x = (a & 0x7f) == 0x7f ? __uint_as_float(0x7fc00000) : out.x;
    out.y = (b & 0x7f) == 0x7f ? __uint_as_float(0x7fc00000) : out.y;
    return out;
#endif
}

/* 2^(bits - 127); 255 is NaN. */
__device__ static inline float
e8m0_to_float(uint32_t bits)
{
    uint32_t pattern = bits == 0 ? 0x00400000u : bits == 255 ? 0x7fc00000u : bits << 23;

    return __uint_as_float(pattern);
}

#endif
