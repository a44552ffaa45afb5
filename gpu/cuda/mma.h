/* mma: the instructions attention is made of that C++ has no form for: tensor-core products, loads of
 * their operands from shared memory, copies to shared memory that do not pass through registers.
 *
 * "Fragment" as in the PTX manual, g = lane / 4, t = lane % 4, two BF16 in a register, lower index in
 * the lower half:
 *   A [16 x 16], row-major     a0: (g, 2t), a1: (g + 8, 2t), a2: (g, 2t + 8), a3: (g + 8, 2t + 8)
 *   B [16 x 8]                 b0: (2t, g), b1: (2t + 8, g); the pair is along the first index
 *   C, D [16 x 8] F32          c0, c1: (g, 2t), (g, 2t + 1), c2, c3: (g + 8, 2t), (g + 8, 2t + 1)
 * Every function here but the copies is called by all 32 lanes of a warp. */
#ifndef GPU_CUDA_MMA_H
#define GPU_CUDA_MMA_H

#include <stdint.h>
#include <string.h>

#include "gpu/cuda/bf16_pair.h"
#include "gpu/cuda/launch.h"

typedef uint32_t shared_address; /* within the shared window: one register, immediate offsets */

/* The lower, or upper, halves of two registers as one register: one PRMT. */
__device__ static inline uint32_t
low_halves(uint32_t first, uint32_t second)
{
    return (first & 0xffffu) | (second << 16);
}

__device__ static inline uint32_t
high_halves(uint32_t first, uint32_t second)
{
    return (first >> 16) | (second & 0xffff0000u);
}


__device__ static inline shared_address
shared_address_of(const void *pointer)
{
    return (uint32_t)__cvta_generic_to_shared(pointer);
}

/* d += a b */
__device__ static inline void
mma_bf16(float *d, const uint32_t *a, uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Four 8 x 8 matrices of BF16. Lane i gives the address of row i % 8 of matrix i / 8, 16 bytes, and
 * gets elements (g, 2t), (g, 2t + 1) of each. */
__device__ static inline void
ldmatrix_x4(uint32_t *r, shared_address row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row));
}

/* The same of the matrices transposed: elements (2t, g), (2t + 1, g). */
__device__ static inline void
ldmatrix_x4_trans(uint32_t *r, shared_address row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row));
}

/* An 8 x 8 matrix held as elements (g, 2t), (g, 2t + 1): elements (2t, g), (2t + 1, g) of it. */
__device__ static inline uint32_t
transpose_8x8(uint32_t pair)
{
    uint32_t result;

    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(pair));
    return result;
}

/* As cp_async_16, but zeros where wanted is false; `from` stays an address that may be read. */
__device__ static inline void
cp_async_16_or_zero(shared_address to, const void *from, bool wanted)
{
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to),
                 "l"(__cvta_generic_to_global(from)), "r"(wanted ? 16 : 0)
                 : "memory");
}

/* 16 bytes, both sides aligned to 16. Complete after cp_async_wait, for other threads after a barrier
 * behind it. */
__device__ static inline void
cp_async_16(shared_address to, const void *from)
{
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to),
                 "l"(__cvta_generic_to_global(from))
                 : "memory");
}

/* What this thread has issued since the last commit becomes a group. */
__device__ static inline void
cp_async_commit(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Until at most PENDING of the latest groups are unfinished. */
template <int PENDING>
__device__ static inline void
cp_async_wait(void)
{
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

/* 16 bytes that are read once: past L1. Volatile, so that loads are issued in the order they are
 * written in: the order is the pipeline. */
__device__ static inline uint4
load_once_16(const void *from)
{
    uint4 v;

    asm volatile("ld.global.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(__cvta_generic_to_global(from)));
    return v;
}

/* 2^x, denormal results as 0: one instruction. */
__device__ static inline float
fast_exp2(float x)
{
    float y;

    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#endif
