/* bf16_pair: two BF16 in one word, the first in the lower half. */
#ifndef GPU_CUDA_BF16_PAIR_H
#define GPU_CUDA_BF16_PAIR_H

#include <stdint.h>
#include <string.h>

#include "gpu/cuda/launch.h"

__device__ static inline uint32_t
pack_bf16(float low, float high)
{
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    uint32_t bits;

    memcpy(&bits, &pair, sizeof bits);
    return bits;
}

__device__ static inline float
low_bf16(uint32_t pair)
{
    return __uint_as_float(pair << 16);
}

__device__ static inline float
high_bf16(uint32_t pair)
{
    return __uint_as_float(pair & 0xffff0000u);
}

#endif
