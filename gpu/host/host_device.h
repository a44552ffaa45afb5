/* host_device: the CPU backend, complete, and the definition of correct.
 * BLAS (one thread per call, columns split over our pool) for prefill segments, own vector kernels
 * for decode rows; AVX-512, AVX2 or portable C chosen at run time. */
#ifndef GPU_HOST_HOST_DEVICE_H
#define GPU_HOST_HOST_DEVICE_H

#include "base/err.h"
#include "gpu/device.h"

struct host_device_options {
    int n_threads;   /* 0: one per CPU */
    const char *isa; /* "auto", "avx512", "avx2", "portable" */
    /* For tests: matrices are BF16, and every activation that gpu/cuda would keep as BF16 is
     * rounded to it (rounding.c). What such a device's results should be compared with. */
    bool round_activations;
};

/* -EINVAL: an instruction set this CPU lacks, named in err. */
int host_device_open(struct device **ret_device, const struct host_device_options *options,
                     struct err *err);
const char *host_device_isa(const struct device *device);
int host_device_threads(const struct device *device);

#endif
