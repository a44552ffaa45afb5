/* wgmma: products of a warpgroup (Hopper): d [64, n] F32 += a [64, 16] b [16, n], a and b in shared memory.
 *
 * d: warp w of the four has rows 16 w .. 16 w + 15, as fragments of mma.h, n / 8 of them side by side. a and b^T are
 * rows of 128 bytes as a copy with 128-byte swizzle leaves them, 8 rows a KiB, aligned to a KiB. Products are
 * asynchronous: wgmma_fence() before the first behind a change of d, wgmma_commit() behind the last; wgmma_wait before
 * d is read or the shared memory given away. */
#ifndef GPU_CUDA_WGMMA_H
#define GPU_CUDA_WGMMA_H

#include "gpu/cuda/mma.h"

__device__ static inline void
wgmma_fence(void)
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ static inline void
wgmma_commit(void)
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Until at most PENDING of the latest groups are unfinished. */
template <int PENDING>
__device__ static inline void
wgmma_wait(void)
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

/* 16 of the 64 columns of rows that begin at `at`: columns begin at multiples of 16. */
__device__ static inline uint64_t
wgmma_matrix(shared_address at)
{
    /* Address, stride between groups of 8 rows, swizzle; a block of a cluster has its rank in the upper bits. */
    return (uint64_t)(at >> 4 & 0x3fff) | UINT64_C(1) << 16 | (uint64_t)(1024 >> 4) << 32 |
           UINT64_C(1) << 62;
}

#define WGMMA_D(i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define WGMMA_D4(i) WGMMA_D(i), WGMMA_D(i + 1), WGMMA_D(i + 2), WGMMA_D(i + 3)
#define WGMMA(n, registers, a_b)                                                                   \
    "wgmma.mma_async.sync.aligned.m64n" n "k16.f32.bf16.bf16 {" registers "}, " a_b ", 1, 1, 1, 0, 0;"

/* n = 8 NT */
template <int NT>
__device__ static inline void
wgmma_bf16(float (*d)[4], uint64_t a, uint64_t b)
{
    static_assert(NT == 1 || NT == 2 || NT == 4 || NT == 8);
    if constexpr (NT == 1)
        asm volatile(WGMMA("8", "%0, %1, %2, %3", "%4, %5") : WGMMA_D(0) : "l"(a), "l"(b));
    else if constexpr (NT == 2)
        asm volatile(WGMMA("16", "%0, %1, %2, %3, %4, %5, %6, %7", "%8, %9")
                     : WGMMA_D(0), WGMMA_D(1)
                     : "l"(a), "l"(b));
    else if constexpr (NT == 4)
        asm volatile(WGMMA("32",
                           "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15",
                           "%16, %17")
                     : WGMMA_D4(0)
                     : "l"(a), "l"(b));
    else
        asm volatile(WGMMA("64",
                           "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                           "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, "
                           "%30, %31",
                           "%32, %33")
                     : WGMMA_D4(0), WGMMA_D4(4)
                     : "l"(a), "l"(b));
}

#endif
