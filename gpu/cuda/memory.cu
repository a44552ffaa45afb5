/* memory: device memory, and host memory that the device reads and writes at the same address.
 *
 * Copies and fills go by streams of their own, so that they neither wait for the steps nor hold them
 * up; each returns when it is done. Large pieces of host memory are anonymous huge pages, touched by
 * several threads and then registered: 9 to 19 times faster than cudaHostAlloc for many GiB, and read
 * as fast. Thread: any. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "gpu/cuda/cuda_state.h"

static const size_t huge_page_bytes = (size_t)2 << 20;
static const size_t own_mapping_bytes = (size_t)1 << 20; /* from here on not by cudaHostAlloc */
static const size_t register_bytes = (size_t)1 << 30;    /* registered at a time */

enum { TOUCH_THREADS = 12 };

/* Copies of several threads run beside each other, so that the link does not stand still between
 * two: each takes the next stream. Two that meet on one wait for both, and no worse. */
enum { COPY_STREAMS = 8 };

struct cuda_memory {
    cudaStream_t stream[COPY_STREAMS];
    unsigned next; /* atomic; counts copies and fills */
};

int
cuda_memory_open(struct cuda_device *cuda)
{
    cuda->memory = (struct cuda_memory *)calloc(1, sizeof *cuda->memory);
    if (!cuda->memory)
        return -ENOMEM;
    for (int i = 0; i < COPY_STREAMS; i++) {
        int result = cuda_launch_status(
            cudaStreamCreateWithFlags(&cuda->memory->stream[i], cudaStreamNonBlocking));

        if (result < 0)
            return result;
    }
    return 0;
}

void
cuda_memory_close(struct cuda_device *cuda)
{
    for (int i = 0; cuda->memory && i < COPY_STREAMS; i++)
        if (cuda->memory->stream[i])
            (void)cudaStreamDestroy(cuda->memory->stream[i]);
    free(cuda->memory);
    cuda->memory = NULL;
}

static bool
use(struct device *dev)
{
    return cudaSetDevice(cuda_of(dev)->ordinal) == cudaSuccess;
}

static cudaStream_t
next_stream(struct device *dev)
{
    struct cuda_memory *memory = cuda_of(dev)->memory;

    return memory->stream[__atomic_fetch_add(&memory->next, 1, __ATOMIC_RELAXED) % COPY_STREAMS];
}

static int
wait_for(cudaStream_t stream)
{
    return cuda_launch_status(cudaStreamSynchronize(stream));
}

void *
cuda_alloc(struct device *dev, size_t size_bytes)
{
    cudaStream_t stream = next_stream(dev);
    void *memory = NULL;

    if (!use(dev) || cudaMalloc(&memory, size_bytes ? size_bytes : 1) != cudaSuccess) {
        (void)cudaGetLastError(); /* no memory is an answer, not a fault */
        return NULL;
    }
    if (cudaMemsetAsync(memory, 0, size_bytes, stream) != cudaSuccess || wait_for(stream) < 0) {
        (void)cudaFree(memory);
        return NULL;
    }
    return memory;
}

void
cuda_free(struct device *dev, void *memory, size_t size_bytes)
{
    if (memory && use(dev))
        (void)cudaFree(memory);
}

struct touch {
    char *at;
    size_t n_pages;
};

static void *
touch_main(void *arg)
{
    struct touch *t = (struct touch *)arg;

    for (size_t i = 0; i < t->n_pages; i++)
        ((volatile char *)t->at)[i * huge_page_bytes] = 0;
    /* Where there are no huge pages the rest of each is touched by registering. */
    return NULL;
}

static void
touch(char *map, size_t size_bytes)
{
    struct touch part[TOUCH_THREADS];
    pthread_t thread[TOUCH_THREADS];
    bool started[TOUCH_THREADS] = {};
    size_t n_pages = size_bytes / huge_page_bytes, done = 0;

    for (int i = 0; i < TOUCH_THREADS; i++) {
        size_t end = n_pages * (size_t)(i + 1) / TOUCH_THREADS;

        part[i] = {map + done * huge_page_bytes, end - done};
        done = end;
        started[i] = pthread_create(&thread[i], NULL, touch_main, &part[i]) == 0;
        if (!started[i])
            (void)touch_main(&part[i]);
    }
    for (int i = 0; i < TOUCH_THREADS; i++)
        if (started[i])
            (void)pthread_join(thread[i], NULL);
}

static size_t
mapping_bytes(size_t size_bytes)
{
    return (size_bytes + huge_page_bytes - 1) / huge_page_bytes * huge_page_bytes;
}

static void
unregister(char *map, size_t registered)
{
    for (size_t at = 0; at < registered; at += register_bytes)
        (void)cudaHostUnregister(map + at);
}

/* A mapping at a huge page's boundary, or, of more than one registration, at a multiple of
 * register_bytes, so that copy_now can tell where registrations meet. More is reserved and the ends are
 * given back. */
static char *
map_aligned(size_t size_bytes)
{
    size_t alignment = size_bytes > register_bytes ? register_bytes : huge_page_bytes;
    size_t whole = size_bytes + alignment;
    void *map = mmap(NULL, whole, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (map == MAP_FAILED)
        return NULL;
    size_t before = (alignment - (uintptr_t)map % alignment) % alignment;
    char *at = (char *)map + before;
    if (before)
        (void)munmap(map, before);
    if (whole - before > size_bytes)
        (void)munmap(at + size_bytes, whole - before - size_bytes);
    (void)madvise(at, size_bytes, MADV_HUGEPAGE);
    return at;
}

static void *
pinned_mapping(size_t size_bytes)
{
    size_t whole = mapping_bytes(size_bytes);
    char *map = map_aligned(whole);

    if (!map)
        return NULL;
    touch(map, whole);
    for (size_t at = 0; at < whole; at += register_bytes) {
        size_t now = whole - at < register_bytes ? whole - at : register_bytes;

        if (cudaHostRegister(map + at, now, cudaHostRegisterMapped | cudaHostRegisterPortable) !=
            cudaSuccess) {
            (void)cudaGetLastError();
            unregister(map, at);
            (void)munmap(map, whole);
            return NULL;
        }
    }
    return map;
}

void *
cuda_alloc_shared(struct device *dev, size_t size_bytes)
{
    void *memory = NULL;

    if (!use(dev))
        return NULL;
    if (size_bytes >= own_mapping_bytes)
        return pinned_mapping(size_bytes);
    if (cudaHostAlloc(&memory, size_bytes ? size_bytes : 1,
                      cudaHostAllocMapped | cudaHostAllocPortable) != cudaSuccess) {
        (void)cudaGetLastError();
        return NULL;
    }
    memset(memory, 0, size_bytes);
    return memory;
}

void
cuda_free_shared(struct device *dev, void *memory, size_t size_bytes)
{
    if (!memory || !use(dev))
        return;
    if (size_bytes < own_mapping_bytes) {
        (void)cudaFreeHost(memory);
        return;
    }
    unregister((char *)memory, mapping_bytes(size_bytes));
    (void)munmap(memory, mapping_bytes(size_bytes));
}

/* host: whichever of the two is host memory. CUDA refuses a copy that spans two registrations. */
static int
copy_now(struct device *dev, void *dst, const void *src, size_t size_bytes, const void *host,
         cudaMemcpyKind kind)
{
    cudaStream_t stream = next_stream(dev);

    if (!use(dev))
        return -EIO;
    for (size_t at = 0; at < size_bytes;) {
        size_t room = register_bytes - ((uintptr_t)host + at) % register_bytes;
        size_t now = size_bytes - at < room ? size_bytes - at : room;

        if (cudaMemcpyAsync((char *)dst + at, (const char *)src + at, now, kind, stream) !=
            cudaSuccess)
            return -EIO;
        at += now;
    }
    return wait_for(stream);
}

int
cuda_upload(struct device *dev, void *dst, const void *src, size_t size_bytes)
{
    return copy_now(dev, dst, src, size_bytes, src, cudaMemcpyHostToDevice);
}

int
cuda_download(struct device *dev, void *dst, const void *src, size_t size_bytes)
{
    return copy_now(dev, dst, src, size_bytes, dst, cudaMemcpyDeviceToHost);
}

int
cuda_copy(struct device *dev, void *dst, const void *src, size_t size_bytes, struct stream *stream)
{
    return cuda_launch_status(
        cudaMemcpyAsync(dst, src, size_bytes, cudaMemcpyDeviceToDevice, cuda_of(dev)->stream));
}

/* ------------------------------------------------------------------ random values */

__device__ static inline uint32_t
hash_of(uint64_t seed, uint64_t index)
{
    uint64_t x = seed + index * 0x9e3779b97f4a7c15ull;

    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return (uint32_t)(x >> 32);
}

/* Uniform, of mean 0 and this deviation. */
template <typename ELEMENT>
__global__ static void
random_kernel(ELEMENT *dst, size_t n, uint64_t seed, float deviation)
{
    size_t stride = (size_t)gridDim.x * blockDim.x;
    float scale = deviation * 1.7320508f / 2147483648.0f;

    dependency_wait();
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride)
        dst[i] = (ELEMENT)((float)(int32_t)hash_of(seed, i) * scale);
}

/* Codes of F8_E4M3, 16 at a time: every exponent occurs, NaN does not; the deviation is the code's. */
__global__ static void
random_codes_kernel(uint4 *dst, size_t n, uint64_t seed)
{
    size_t stride = (size_t)gridDim.x * blockDim.x;

    dependency_wait();
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) {
        uint4 v = make_uint4(hash_of(seed, 4 * i), hash_of(seed, 4 * i + 1),
                             hash_of(seed, 4 * i + 2), hash_of(seed, 4 * i + 3));

        /* Bit 6 off: magnitudes below 2. */
        dst[i] =
            make_uint4(v.x & 0xbfbfbfbfu, v.y & 0xbfbfbfbfu, v.z & 0xbfbfbfbfu, v.w & 0xbfbfbfbfu);
    }
}

int
cuda_fill_random(struct device *dev, void *dst, enum dtype dtype, size_t n, uint64_t seed,
                 float deviation)
{
    cudaStream_t stream = next_stream(dev);
    int result;

    if (!use(dev))
        return -EIO;
    if (dtype == DTYPE_BF16)
        result = LAUNCH(random_kernel<__nv_bfloat16>, 1024, 256, 0, stream, (__nv_bfloat16 *)dst, n,
                        seed, deviation);
    else if (dtype == DTYPE_F32)
        result =
            LAUNCH(random_kernel<float>, 1024, 256, 0, stream, (float *)dst, n, seed, deviation);
    else if (dtype == DTYPE_F8_E4M3 && n % 16 == 0 && (uintptr_t)dst % 16 == 0)
        result = LAUNCH(random_codes_kernel, 1024, 256, 0, stream, (uint4 *)dst, n / 16, seed);
    else
        return -EINVAL;
    return result < 0 ? result : wait_for(stream);
}
