/* plugin: what libengram-cuda.so exports beside the table of operations. C. */
#ifndef GPU_CUDA_PLUGIN_H
#define GPU_CUDA_PLUGIN_H

#include "gpu/device.h"

/* Changes whenever struct device_ops or anything it points to does: plugin and daemon must agree. */
enum { ENGRAM_CUDA_ABI = 3 };

#ifdef __cplusplus
extern "C" {
#endif

extern const int engram_cuda_abi;
/* Number of GPUs the driver shows, 0 if there are none; -ENODEV with the reason when there is no
 * usable driver. */
int engram_cuda_count(struct err *err);
/* -ENODEV: no such GPU, or one this build has no code for; -EIO, -ENOMEM. */
int engram_cuda_open(struct device **ret_device, int ordinal, struct err *err);
/* "NVIDIA H200, compute 9.0, 132 SMs, 139.7 GiB"; static per device. */
const char *engram_cuda_describe(const struct device *device);

#ifdef __cplusplus
}
#endif

#endif
