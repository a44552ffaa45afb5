/* counters: what the CUDA backend counts about its own steps. Read them between runs and subtract. */
#ifndef GPU_CUDA_COUNTERS_H
#define GPU_CUDA_COUNTERS_H

#include <stdint.h>

#include "gpu/device.h"

struct cuda_counters {
    uint64_t steps;         /* begun */
    uint64_t graph_replays; /* of these, by one graph launch */
    uint64_t captures;
    uint64_t syncs;  /* times the host waited for the device within a step */
    uint64_t allocs; /* of memory within a step */
    uint64_t plans_late; /* algorithms of products chosen within a step: all are when warming up */
    uint64_t kernels;    /* loaded when the device was opened */
    uint64_t gpu_busy_ns,
        gpu_span_ns; /* within steps; from the first step's begin to the last one's end */
};

#ifdef __cplusplus
extern "C"
#endif
    /* 0, -EINVAL before the forward pass was made, -EIO. Exported by the plugin. Waits for the copy of
     * the clock, so not from within a step. Thread: engine, or any while the engine is idle. */
    int
    engram_cuda_counters(struct device *device, struct cuda_counters *ret_counters);

#endif
