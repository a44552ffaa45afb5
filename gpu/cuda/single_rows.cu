/* single_rows: see single_rows.h. 16 bytes a thread, neighbouring threads in one row. */
#include "gpu/cuda/cuda_state.h"
#include "gpu/cuda/single_rows.h"
#include "gpu/cuda/stopwatch.h"

enum { THREADS = 256 };

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
    return stopwatch_median(cuda_of(dev), run_rows, a, 0, repeats, ret_seconds);
}

struct dma {
    void *dst;
    const void *src;
    size_t size_bytes;
    const struct single_rows *gather;
};

static int
run_dma(struct cuda_device *cuda, const void *arg, int i)
{
    const struct dma *a = (const struct dma *)arg;
    int result =
        cudaMemcpyAsync(a->dst, a->src, a->size_bytes, cudaMemcpyHostToDevice, cuda->stream);

    return a->gather ? result | run_rows(cuda, a->gather, i) : result;
}

extern "C" int
engram_cuda_dma(struct device *dev, void *dst, const void *src, size_t size_bytes,
                const struct single_rows *gather, int repeats, double *ret_seconds)
{
    struct dma a = {dst, src, size_bytes, gather};

    if (gather && (gather->row_bytes % 16 || gather->n_rows < 1))
        return -EINVAL;
    return stopwatch_median(cuda_of(dev), run_dma, &a, 0, repeats, ret_seconds);
}
