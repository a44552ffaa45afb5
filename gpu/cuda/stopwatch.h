/* stopwatch: how long something takes on the device's stream, from event to event. For measurements,
 * never within a step. */
#ifndef GPU_CUDA_STOPWATCH_H
#define GPU_CUDA_STOPWATCH_H

#include <stdlib.h>

#include "gpu/cuda/cuda_state.h"

enum { STOPWATCH_MAX_RUNS = 1024 };

static inline int
stopwatch_by_value(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;

    return (x > y) - (x < y);
}

/* Calls run(cuda, arg, i) for i from -warm_up to runs - 1; it issues to the stream and returns 0. *ret_seconds:
 * the median of those from 0 on. 0, -EINVAL, -EIO. */
static inline int
stopwatch_median(struct cuda_device *cuda, int (*run)(struct cuda_device *, const void *, int),
                 const void *arg, int warm_up, int runs, double *ret_seconds)
{
    float ms[STOPWATCH_MAX_RUNS];
    cudaEvent_t begin = NULL, end = NULL;

    if (runs < 1 || runs > STOPWATCH_MAX_RUNS)
        return -EINVAL;
    (void)cudaSetDevice(cuda->ordinal);
    int result = cudaEventCreate(&begin) | cudaEventCreate(&end);
    for (int i = -warm_up; i < runs && result == 0; i++) {
        result |= cudaEventRecord(begin, cuda->stream);
        result |= run(cuda, arg, i);
        result |= cudaEventRecord(end, cuda->stream);
        result |= cudaEventSynchronize(end);
        if (i >= 0)
            result |= cudaEventElapsedTime(&ms[i], begin, end);
    }
    if (begin)
        (void)cudaEventDestroy(begin);
    if (end)
        (void)cudaEventDestroy(end);
    if (result != 0)
        return -EIO;
    qsort(ms, (size_t)runs, sizeof *ms, stopwatch_by_value);
    *ret_seconds = ms[runs / 2] * 1e-3;
    return 0;
}

#endif
