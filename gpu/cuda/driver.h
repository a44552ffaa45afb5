/* driver: functions of the CUDA driver that the runtime has no name for. They are looked up, not linked: the plugin is
 * to be loaded where there is no driver. Thread: engine. */
#ifndef GPU_CUDA_DRIVER_H
#define GPU_CUDA_DRIVER_H

#include <cuda.h>

#include "gpu/cuda/cuda_state.h"

/* The function as it was in this version, 12050 for 12.5; NULL: this driver is older. */
void *cuda_driver_function(const char *name, unsigned version);

/* How the copy engine finds boxes in an array of BF16 of n_dims dimensions, fastest first; what lies behind an end is 0.
 * sizes [n_dims] in elements; strides [n_dims - 1] of the others, in bytes, multiples of 16; boxes [n_dims], 64 elements of
 * the first, in shared memory with 128-byte swizzle. `at`: a multiple of 16. False: the driver refuses it. For devices with
 * an encode_tensor_map. */
bool cuda_map_boxes(const struct cuda_device *, CUtensorMap *ret_map, const void *at, int n_dims,
                    const cuuint64_t *sizes, const cuuint64_t *strides, const cuuint32_t *box);

#endif
