/* single_rows: see single_rows.h. 16 bytes a thread, neighbouring threads in one row. */
#include <stdlib.h>

#include "gpu/cuda/cuda_state.h"
#include "gpu/cuda/single_rows.h"

enum { THREADS = 256, MAX_REPEATS = 1024 };

__global__ static void
__launch_bounds__(THREADS) single_rows_kernel(uint4 *out, const uint4 *table, const int64_t *row,
                                              int64_t n_units, int row_units)
{
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;

    if (i < n_units) {
        int64_t r = i / row_units;
        out[i] = table[row[r] * row_units + (i - r * row_units)];
    }
}

static int
by_value(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;

    return (x > y) - (x < y);
}

/* Runs run(cuda, arg, i) `repeats` times between two events each; the median. */
static int
time_runs(struct cuda_device *cuda, int (*run)(struct cuda_device *, const void *, int),
          const void *arg, int repeats, double *ret_seconds)
{
    float ms[MAX_REPEATS];
    cudaEvent_t begin = NULL, end = NULL;

    if (repeats < 1 || repeats > MAX_REPEATS)
        return -EINVAL;
    (void)cudaSetDevice(cuda->ordinal);
    int result = cudaEventCreate(&begin) | cudaEventCreate(&end);
    for (int i = 0; i < repeats && result == 0; i++) {
        result |= cudaEventRecord(begin, cuda->stream);
        result |= run(cuda, arg, i);
        result |= cudaEventRecord(end, cuda->stream);
        result |= cudaEventSynchronize(end);
        result |= cudaEventElapsedTime(&ms[i], begin, end);
    }
    if (begin)
        (void)cudaEventDestroy(begin);
    if (end)
        (void)cudaEventDestroy(end);
    if (result != 0)
        return -EIO;
    qsort(ms, (size_t)repeats, sizeof *ms, by_value);
    *ret_seconds = ms[repeats / 2] * 1e-3;
    return 0;
}

static int
run_rows(struct cuda_device *cuda, const void *arg, int i)
{
    const struct single_rows *a = (const struct single_rows *)arg;
    int64_t n_units = (int64_t)a->n_rows * (a->row_bytes / 16);

    single_rows_kernel<<<(unsigned)((n_units + THREADS - 1) / THREADS), THREADS, 0,
                         cuda->stream>>>((uint4 *)a->out, (const uint4 *)a->table,
                                         a->row + (int64_t)i * a->n_rows, n_units,
                                         a->row_bytes / 16);
    return cudaGetLastError();
}

extern "C" int
engram_cuda_single_rows(struct device *dev, const struct single_rows *a, int repeats,
                        double *ret_seconds)
{
    if (a->row_bytes % 16 || a->n_rows < 1)
        return -EINVAL;
    return time_runs(cuda_of(dev), run_rows, a, repeats, ret_seconds);
}

struct dma {
    void *dst;
    const void *src;
    size_t size_bytes;
};

static int
run_dma(struct cuda_device *cuda, const void *arg, int i)
{
    const struct dma *a = (const struct dma *)arg;

    return cudaMemcpyAsync(a->dst, a->src, a->size_bytes, cudaMemcpyHostToDevice, cuda->stream);
}

extern "C" int
engram_cuda_dma(struct device *dev, void *dst, const void *src, size_t size_bytes, int repeats,
                double *ret_seconds)
{
    struct dma a = {dst, src, size_bytes};

    return time_runs(cuda_of(dev), run_dma, &a, repeats, ret_seconds);
}
