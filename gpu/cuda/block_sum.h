/* block_sum: sums over a warp and over a block, always by the same tree. */
#ifndef GPU_CUDA_BLOCK_SUM_H
#define GPU_CUDA_BLOCK_SUM_H

#include "gpu/cuda/launch.h"

/* Every lane gets the sum of all 32; float or double. */
template <typename NUMBER>
__device__ static inline NUMBER
warp_sum(NUMBER value)
{
    for (int lanes = 16; lanes > 0; lanes /= 2)
        value += __shfl_xor_sync(0xffffffffu, value, lanes);
    return value;
}

/* Every thread gets the sum of all; blocks are whole warps. part: shared, [32]. The same array may be
 * used again after a __syncthreads. */
__device__ static inline float
block_sum(float value, float *part)
{
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, n = (int)blockDim.x / 32;

    value = warp_sum(value);
    if (lane == 0)
        part[warp] = value;
    __syncthreads();
    return warp_sum(lane < n ? part[lane] : 0.0f);
}

#endif
