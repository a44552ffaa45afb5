/* cluster: what thread blocks have from Hopper on: barriers in shared memory that count arrivals and the bytes of
 * copies, copies of whole boxes of a matrix, and another block's shared memory. Nothing before compute capability 9.0
 * calls these. */
#ifndef GPU_CUDA_CLUSTER_H
#define GPU_CUDA_CLUSTER_H

#include <cuda.h>

#include "gpu/cuda/mma.h"

/* For `count` arrivals a phase. */
__device__ static inline void
counter_open(shared_address counter, int count)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(counter), "r"(count) : "memory");
}

/* Once the counters of this thread are open: copies may use them; other threads after a barrier of the block. */
__device__ static inline void
counters_opened(void)
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ static inline void
counter_arrive(shared_address counter)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(counter) : "memory");
}

/* An arrival, and this phase is not over before copies have brought so many bytes. */
__device__ static inline void
counter_arrive_for(shared_address counter, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(counter), "r"(bytes)
                 : "memory");
}

/* Until the phase of this parity is over. */
__device__ static inline void
counter_wait(shared_address counter, uint32_t parity)
{
    uint32_t over;

    do {
        asm volatile("{\n\t.reg .pred p;\n\t"
                     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\t"
                     "selp.u32 %0, 1, 0, p;\n\t}"
                     : "=r"(over)
                     : "r"(counter), "r"(parity)
                     : "memory");
    } while (!over);
}

/* Where boxes with 128-byte swizzle may begin: the first such place from this one on. */
enum { BOX_ALIGN_BYTES = 1024 };
__device__ static inline shared_address
box_aligned(shared_address at)
{
    return at + (BOX_ALIGN_BYTES - at % BOX_ALIGN_BYTES) % BOX_ALIGN_BYTES;
}

/* What becomes of a copied line in L2. */
#define LEAVES_FIRST UINT64_C(0x12f0000000000000)
#define LEAVES_LAST UINT64_C(0x14f0000000000000)

/* One thread: the box of the map that begins at these elements, to shared memory; its bytes are counted. */
__device__ static inline void
copy_box_2d(shared_address to, const CUtensorMap *map, int c0, int c1, shared_address counter,
            uint64_t policy)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::"
                 "cache_hint [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(to),
                 "l"(map), "r"(counter), "r"(c0), "r"(c1), "l"(policy)
                 : "memory");
}

__device__ static inline void
copy_box_3d(shared_address to, const CUtensorMap *map, int c0, int c1, int c2, shared_address counter,
            uint64_t policy)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::"
                 "cache_hint [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(to),
                 "l"(map), "r"(counter), "r"(c0), "r"(c1), "r"(c2), "l"(policy)
                 : "memory");
}

__device__ static inline void
copy_box_4d(shared_address to, const CUtensorMap *map, int c0, int c1, int c2, int c3,
            shared_address counter, uint64_t policy)
{
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::"
                 "cache_hint [%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(to),
                 "l"(map), "r"(counter), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "l"(policy)
                 : "memory");
}

/* All threads of all blocks of the cluster; what they wrote before is visible behind it. */
__device__ static inline void
cluster_barrier(void)
{
    asm volatile("barrier.cluster.arrive.release.aligned;\n\t"
                 "barrier.cluster.wait.acquire.aligned;" ::
                     : "memory");
}

/* Four floats at the same place of the shared memory of block `rank` of the cluster. */
__device__ static inline float4
load_cluster_16(shared_address at, int rank)
{
    uint32_t there;
    float4 v;

    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(rank));
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "r"(there)
                 : "memory");
    return v;
}

#endif
