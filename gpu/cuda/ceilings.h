/* ceilings: what this GPU can do at most, measured now: the limits that benchmarks compare with. */
#ifndef GPU_CUDA_CEILINGS_H
#define GPU_CUDA_CEILINGS_H

#include "gpu/device.h"

struct cuda_ceilings {
    double read_bytes_per_s;    /* of device memory, 4 GiB read in order by every multiprocessor */
    double bf16_flop_per_s;     /* BF16 product of 8192 x 8192 x 8192 by cuBLASLt, F32 sums */
    double to_device_bytes_per_s; /* from pinned host memory by one DMA of 1 GiB */
};

#ifdef __cplusplus
extern "C"
#endif
    /* Medians of several runs; takes 4 GiB of device memory and 1 GiB of pinned memory for a moment.
     * -ENOMEM, -EIO. Exported by the plugin. Thread: engine, with nothing in flight. */
    int
    engram_cuda_ceilings(struct device *device, struct cuda_ceilings *ret_ceilings);

#endif
