/* single_rows: other ways to deliver N-gram rows, to compare with: a kernel that reads each row by itself,
 * wherever it is, pinned host memory included; and a DMA, alone or with that kernel behind it. Not used by any
 * step. */
#ifndef GPU_CUDA_SINGLE_ROWS_H
#define GPU_CUDA_SINGLE_ROWS_H

#include "gpu/device.h"

struct single_rows {
    const void *table; /* readable by the device */
    const int64_t *row; /* [n_rows] shared or device memory */
    int n_rows, row_bytes; /* bytes: a multiple of 16 */
    void *out; /* device memory, [n_rows, row_bytes] */
};

#ifdef __cplusplus
extern "C"
#endif
    /* Seconds of the kernel alone, from event to event; `repeats` runs, whose rows are behind each other
     * in row: [repeats, n_rows]. Median. 0, -EINVAL, -EIO. Exported by the plugin. Thread: engine, with
     * nothing in flight. */
    int
    engram_cuda_single_rows(struct device *device, const struct single_rows *rows, int repeats,
                            double *ret_seconds);

#ifdef __cplusplus
extern "C"
#endif
    /* Seconds of one DMA of size_bytes from pinned memory to dst in device memory and, with gather, of the
     * kernel above behind it, whose table is then dst: from the event before both to the one after. As above. */
    int
    engram_cuda_dma(struct device *device, void *dst, const void *src, size_t size_bytes,
                    const struct single_rows *gather, int repeats, double *ret_seconds);

#endif
