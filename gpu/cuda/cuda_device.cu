/* cuda_device: opening and closing a GPU; its table of operations. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/cuda/cuda_state.h"
#include "gpu/cuda/plugin.h"

extern "C" {
const int engram_cuda_abi = ENGRAM_CUDA_ABI;
}

int
cuda_launch_status(cudaError_t error)
{
    return error == cudaSuccess ? 0 : -EIO;
}

__global__ static void
probe_kernel(int *out)
{
    dependency_wait();
    if (out)
        *out = 1;
}

static int
cuda_synchronize(struct device *dev, struct stream *stream)
{
    return cuda_launch_status(cudaStreamSynchronize(cuda_of(dev)->stream));
}

static int
cuda_poll(struct device *dev, struct stream *stream)
{
    cudaError_t error = cudaStreamQuery(cuda_of(dev)->stream);

    return error == cudaSuccess ? 1 : error == cudaErrorNotReady ? 0 : -EIO;
}

static int
cuda_probe(struct device *dev, struct stream *stream)
{
    struct cuda_device *cuda = cuda_of(dev);
    cudaError_t error = cudaSetDevice(cuda->ordinal); /* of this thread */

    return error == cudaSuccess ? LAUNCH(probe_kernel, 1, 1, 0, cuda->stream, (int *)NULL)
                                : cuda_launch_status(error);
}

static int
cuda_memory_info(struct device *dev, uint64_t *ret_free_bytes, uint64_t *ret_total_bytes)
{
    size_t unused = 0, total = 0;

    if (cudaSetDevice(cuda_of(dev)->ordinal) != cudaSuccess ||
        cudaMemGetInfo(&unused, &total) != cudaSuccess)
        return -EIO;
    *ret_free_bytes = unused;
    *ret_total_bytes = total;
    return 0;
}

static struct device *
cuda_close(struct device *dev)
{
    struct cuda_device *cuda = cuda_of(dev);

    if (!dev)
        return NULL;
    if (cuda->stream)
        (void)cudaStreamSynchronize(cuda->stream);
    cuda_steps_free(cuda);
    cuda->gemms = cuda_gemms_free(cuda->gemms);
    cuda_memory_close(cuda);
    if (cuda->stream)
        (void)cudaStreamDestroy(cuda->stream);
    free((void *)cuda->device.ops);
    free(cuda);
    return NULL;
}

static const struct device_ops *
make_ops(void)
{
    struct device_ops *ops = (struct device_ops *)calloc(1, sizeof *ops);

    if (!ops)
        return NULL;
    ops->name = "cuda";
    ops->activation = DTYPE_BF16;
    ops->bf16_matrices = true;
    ops->logit_block_bytes = (size_t)512 << 20;
    ops->alloc = cuda_alloc;
    ops->free = cuda_free;
    ops->alloc_shared = cuda_alloc_shared;
    ops->free_shared = cuda_free_shared;
    ops->upload = cuda_upload;
    ops->download = cuda_download;
    ops->copy = cuda_copy;
    ops->memory_info = cuda_memory_info;
    ops->host_addressable = false;
    ops->reserve = cuda_reserve;
    ops->reserve_bytes = cuda_reserve_bytes;
    ops->fill_random = cuda_fill_random;
    ops->kv_page_bytes = cuda_kv_page_bytes;
    ops->begin_step = cuda_begin_step;
    ops->end_step = cuda_end_step;
    ops->embed = cuda_embed;
    ops->rms_norm = cuda_rms_norm;
    ops->matmul = cuda_matmul;
    ops->matmul_group = cuda_matmul_group;
    ops->matmul_rows = cuda_matmul_rows;
    ops->rope_angles = cuda_rope_angles;
    ops->rope = cuda_rope;
    ops->kv_write = cuda_kv_write;
    ops->attention = cuda_attention;
    ops->silu_mul = cuda_silu_mul;
    ops->kv_copy_page = cuda_kv_copy_page;
    ops->wait_rows = cuda_wait_rows;
    ops->engram_gather = cuda_engram_gather;
    ops->engram_fuse = cuda_engram_fuse;
    ops->engram_keep = cuda_engram_keep;
    ops->sample = cuda_sample;
    ops->project_qkv = cuda_project_qkv;
    ops->finish_layer = cuda_finish_layer;
    ops->warm_up = cuda_warm_up;
    ops->synchronize = cuda_synchronize;
    ops->poll = cuda_poll;
    ops->probe = cuda_probe;
    ops->close = cuda_close;
    return ops;
}

extern "C" int
engram_cuda_count(struct err *err)
{
    int n = 0;
    cudaError_t error = cudaGetDeviceCount(&n);

    if (error == cudaErrorNoDevice)
        return 0;
    if (error != cudaSuccess)
        return err_set(err, ENODEV, "the NVIDIA driver cannot be used: %s",
                       cudaGetErrorString(error));
    return n;
}

static int
probe(struct cuda_device *cuda, const struct cudaDeviceProp *prop, struct err *err)
{
    int *out = NULL;
    cudaError_t error = cudaMalloc((void **)&out, sizeof *out);

    if (error == cudaSuccess) {
        int result = LAUNCH(probe_kernel, 1, 1, 0, cuda->stream, out);

        error = result < 0 ? cudaGetLastError() : cudaStreamSynchronize(cuda->stream);
    }
    (void)cudaFree(out);
    if (error == cudaErrorNoKernelImageForDevice)
        return err_set(err, ENODEV,
                       "GPU %d is an %s of compute capability %d.%d: this build has no code for it",
                       cuda->ordinal, prop->name, prop->major, prop->minor);
    if (error != cudaSuccess)
        return err_set(err, EIO, "GPU %d (%s) does not run a kernel: %s", cuda->ordinal, prop->name,
                       cudaGetErrorString(error));
    return 0;
}

static int
open_parts(struct cuda_device *cuda, struct err *err)
{
    cudaDeviceProp prop;
    cudaError_t error = cudaSetDevice(cuda->ordinal);

    if (error == cudaSuccess)
        error = cudaGetDeviceProperties(&prop, cuda->ordinal);
    if (error == cudaSuccess)
        error = cudaStreamCreateWithFlags(&cuda->stream, cudaStreamNonBlocking);
    if (error != cudaSuccess)
        return err_set(err, EIO, "GPU %d cannot be opened: %s", cuda->ordinal,
                       cudaGetErrorString(error));
    cuda->sm_count = prop.multiProcessorCount;
    cuda->compute_capability = prop.major * 10 + prop.minor;
    cuda->l2_bytes = (size_t)prop.l2CacheSize;
    cuda->block_shared_bytes = prop.sharedMemPerBlockOptin - 1024;
    snprintf(cuda->text, sizeof cuda->text, "%s, compute %d.%d, %d SMs, %.1f GiB", prop.name,
             prop.major, prop.minor, prop.multiProcessorCount,
             (double)prop.totalGlobalMem / (1 << 30));
    int result = probe(cuda, &prop, err);
    if (result < 0)
        return result;
    cuda_elementwise_open(cuda);
    cuda_kv_cache_open(cuda);
    cuda_steps_open(cuda);
    result = cuda_memory_open(cuda);
    if (result == 0)
        result = cuda_gemms_new(&cuda->gemms, cuda);
    if (result == 0)
        result = cuda_projection_open(cuda);
    if (result == 0)
        result = cuda_attention_decode_open(cuda);
    if (result == 0)
        result = cuda_attention_prefill_open(cuda);
    if (result == 0)
        result = cuda_engram_open(cuda);
    if (result == 0)
        result = cuda_sample_open(cuda);
    if (result < 0)
        return err_set(err, -result, "GPU %d (%s): the CUDA libraries could not be set up: %s",
                       cuda->ordinal, prop.name, cudaGetErrorString(cudaGetLastError()));
    return 0;
}

extern "C" int
engram_cuda_open(struct device **ret_device, int ordinal, struct err *err)
{
    int n = engram_cuda_count(err);

    if (n < 0)
        return n;
    if (ordinal < 0 || ordinal >= n)
        return err_set(err, ENODEV, "looked for GPU %d, found %d GPU%s", ordinal, n,
                       n == 1 ? "" : "s");
    struct cuda_device *cuda = (struct cuda_device *)calloc(1, sizeof *cuda);
    if (!cuda)
        return err_set(err, ENOMEM, "no memory for the CUDA backend");
    cuda->ordinal = ordinal;
    cuda->device.ops = make_ops();
    int result = cuda->device.ops ? open_parts(cuda, err)
                                  : err_set(err, ENOMEM, "no memory for the CUDA backend");
    if (result < 0) {
        (void)cuda_close(&cuda->device);
        return result;
    }
    *ret_device = &cuda->device;
    return 0;
}

extern "C" const char *
engram_cuda_describe(const struct device *device)
{
    return ((const struct cuda_device *)device)->text;
}
