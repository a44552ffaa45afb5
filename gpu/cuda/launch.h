/* launch: how a kernel is started, and what every kernel does first.
 *
 * Kernels of a step follow each other by programmatic dependent launch: the next one's blocks may
 * start while this one runs, so every kernel calls dependency_wait() in every thread before it reads or
 * writes anything that an earlier kernel of the stream wrote or reads. Only loads of weights (which no
 * kernel writes) may come before it: they then overlap the kernel before, and fill the memory's time
 * between the two. And loads of what the step's first kernels leave (the arrays of the batch, angles), where a
 * kernel between them and this one lets its successor in behind its own wait, as all do but skinny's: embedding,
 * norms and attention.
 *
 * dependency_wait() lets the next kernel in once it has waited itself. dependency_launch() before it
 * does so earlier, which only pays for kernels that fill the machine evenly: blocks that come in
 * while some multiprocessors are taken and others are not are dealt unevenly, and the step is slower
 * (docs/measurements.md). */
#ifndef GPU_CUDA_LAUNCH_H
#define GPU_CUDA_LAUNCH_H

#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>
#include <utility>

#define DYNAMIC_SHARED(type, name) extern __shared__ __align__(128) type name[]

__device__ static inline void
dependency_launch(void)
{
#if __CUDA_ARCH__ >= 900
    cudaTriggerProgrammaticLaunchCompletion();
#endif
}

__device__ static inline void
dependency_wait(void)
{
#if __CUDA_ARCH__ >= 900
    cudaGridDependencySynchronize();
    cudaTriggerProgrammaticLaunchCompletion();
#endif
}

/* 0, or -EIO with the error left for cudaGetLastError. `dependent`: the kernel obeys the rule above
 * and so may start early. */
int cuda_launch_status(cudaError_t error);

template <typename... Params, typename... Args>
static inline int
launch_kernel(bool dependent, void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
              cudaStream_t stream, Args &&...args)
{
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute attribute = {};

    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = dependent ? 1 : 0;
    return cuda_launch_status(cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...));
}

/* LAUNCH(kernel, grid, block, shared bytes, stream, arguments...): 0 or -EIO. The kernel obeys the rule above. */
#define LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                     \
    launch_kernel(true, kernel, grid, block, shared_bytes, stream, ##__VA_ARGS__)

/* Puts every kernel of the file that this one is in on the device. Once per file, when the device is opened.
 * How many; one that cannot be loaded, or with a driver before 12.5 none, is when it is first launched. */
int cuda_load_kernels(const void *kernel);
#define LOAD_KERNELS(cuda, kernel) ((cuda)->kernels += cuda_load_kernels((const void *)(kernel)))

/* Once per kernel, when the device is opened: dynamic shared memory beyond 48 KiB. 0 or -EIO. */
#define ALLOW_SHARED(kernel, bytes)                                                                \
    cuda_launch_status(                                                                            \
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)(bytes)))

#endif
