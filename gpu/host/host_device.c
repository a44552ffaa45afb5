#include "gpu/host/host_device.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/flag.h"
#include "gpu/host/host_state.h"

/* OpenBLAS starts threads of its own unless told not to; other BLAS libraries lack the function. */
extern void openblas_set_num_threads(int n_threads) __attribute__((weak));

static void *
memory_alloc(struct device *dev, size_t size_bytes)
{
    return host_memory_alloc(&host_of(dev)->memory, size_bytes);
}

static void
memory_free(struct device *dev, void *memory, size_t size_bytes)
{
    host_memory_free(&host_of(dev)->memory, memory, size_bytes);
}

static int
memory_copy(struct device *dev, void *dst, const void *src, size_t size_bytes)
{
    memcpy(dst, src, size_bytes);
    return 0;
}

static int
memory_copy_stream(struct device *dev, void *dst, const void *src, size_t size_bytes,
                   struct stream *stream)
{
    return memory_copy(dev, dst, src, size_bytes);
}

static int
host_reserve(struct device *dev, const struct model_shape *shape,
             const struct device_limits *limits)
{
    struct host_device *host = host_of(dev);
    size_t n = (size_t)limits->max_outputs;

    host->output_row = calloc(n, sizeof *host->output_row);
    host->params = calloc(n, sizeof *host->params);
    host->slot_token = calloc((size_t)limits->n_states + 1, sizeof *host->slot_token);
    host->n_states = limits->n_states;
    return host->output_row && host->params && host->slot_token ? 0 : -ENOMEM;
}

static int
host_begin_step(struct device *dev, const struct forward_step *step, struct step_view *ret_view,
                struct stream *stream)
{
    struct host_device *host = host_of(dev);

    for (int i = 0; i < step->n_outputs; i++) {
        host->output_row[i] = step->outputs[i].row;
        host->params[i] = step->outputs[i].params;
    }
    *ret_view = (struct step_view){.batch = step->batch,
                                   .n_outputs = step->n_outputs,
                                   .output_row = host->output_row,
                                   .params = host->params,
                                   .results = step->results};
    for (int i = 0; i < SHAPE_MAX_ENGRAM_LAYERS; i++) {
        const struct forward_engram *e = &step->engram[i];

        ret_view->engram[i] = (struct bundle_source){e->address, e->mix, e->weights, e->scales};
        step->report->waited_ns[i] = 0;
    }
    return STEP_ISSUE;
}

static int
host_end_step(struct device *dev, const struct forward_step *step, int status,
              struct stream *stream)
{
    struct host_device *host = host_of(dev);

    /* A void row tells its slot token 0: whoever asks finds a token of the vocabulary. */
    for (int i = 0; i < step->n_outputs && status >= 0; i++) {
        int32_t slot = host->params[i].slot, token = step->results[i].token;

        if (slot >= 0 && slot < host->n_states)
            host->slot_token[slot] = token < 0 ? 0 : token;
    }
    step->report->status = status;
    __atomic_store_n(&step->report->done, step->step, __ATOMIC_RELEASE);
    return 0;
}

static int
host_wait_rows(struct device *dev, const struct forward_step *step, int index,
               struct stream *stream)
{
    const struct forward_engram *e = &step->engram[index];
    int result = 0;

    if (e->ready && flag_read(e->ready) < e->ready_value) {
        uint64_t start_ns = clock_now_ns();

        result = flag_wait(e->ready, e->ready_value, 20000, step->wait_timeout_ns);
        step->report->waited_ns[index] = clock_now_ns() - start_ns;
    }
    return result;
}

static int
host_poll(struct device *dev, struct stream *stream)
{
    return 1;
}

static int
host_synchronize(struct device *dev, struct stream *stream)
{
    return 0;
}

static struct device *
host_close(struct device *dev)
{
    if (!dev)
        return NULL;
    struct host_device *host = host_of(dev);
    host->pool = pool_free(host->pool);
    free(host->scratch);
    free(host->output_row);
    free(host->params);
    free(host->slot_token);
    host_memory_close(&host->memory);
    free(host);
    return NULL;
}

static const struct device_ops host_ops = {
    .name = "cpu",
    .activation = DTYPE_F32,
    .logit_block_bytes = 8 << 20,
    .alloc = memory_alloc,
    .free = memory_free,
    .alloc_shared = memory_alloc,
    .free_shared = memory_free,
    .upload = memory_copy,
    .download = memory_copy,
    .copy = memory_copy_stream,
    .host_addressable = true,
    .kv_page_bytes = host_kv_page_bytes,
    .embed = host_embed,
    .rms_norm = host_rms_norm,
    .matmul = host_matmul,
    .matmul_group = host_matmul_group,
    .matmul_rows = host_matmul_rows,
    .rope_angles = host_rope_angles,
    .rope = host_rope,
    .kv_write = host_kv_write,
    .attention = host_attention,
    .silu_mul = host_silu_mul,
    .kv_copy_page = host_kv_copy_page,
    .reserve = host_reserve,
    .begin_step = host_begin_step,
    .end_step = host_end_step,
    .wait_rows = host_wait_rows,
    .poll = host_poll,
    .engram_gather = host_engram_gather,
    .engram_fuse = host_engram_fuse,
    .engram_keep = host_engram_keep,
    .sample = host_sample,
    .synchronize = host_synchronize,
    .close = host_close,
};

static const struct host_kernels *
kernels_find(const char *isa)
{
    bool any = strcmp(isa, "auto") == 0;

#ifdef GPU_HOST_X86
    __builtin_cpu_init();
    if ((any || strcmp(isa, "avx512") == 0) && __builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma"))
        return &kernels_avx512;
    if ((any || strcmp(isa, "avx2") == 0) && __builtin_cpu_supports("avx2") &&
        __builtin_cpu_supports("fma"))
        return &kernels_avx2;
#endif
    return any || strcmp(isa, "portable") == 0 ? &kernels_portable : NULL;
}

int
host_device_open(struct device **ret_device, const struct host_device_options *options,
                 struct err *err)
{
    const char *isa = options->isa ? options->isa : "auto";
    const struct host_kernels *kernels = kernels_find(isa);

    if (!kernels)
        return err_set(err, EINVAL, "instruction set '%s': this CPU or build lacks it", isa);
    struct host_device *host = calloc(1, sizeof *host);
    if (!host)
        return err_set(err, ENOMEM, "no memory for the CPU backend");
    host->device.ops = &host_ops;
    if (options->round_activations) {
        host->ops = host_ops;
        host_round_activations(&host->ops);
        host->device.ops = &host->ops;
    }
    host->kernels = kernels;
    host_memory_init(&host->memory);
    int result = pool_new(&host->pool, options->n_threads, err);
    if (result < 0) {
        (void)host_close(&host->device);
        return result;
    }
    host->n_threads = pool_threads(host->pool);
    size_t scratch_bytes = (size_t)host->n_threads * sizeof *host->scratch;
    host->scratch = aligned_alloc(64, (scratch_bytes + 63) / 64 * 64);
    if (!host->scratch) {
        result = err_set(err, ENOMEM, "no memory for the scratch of %d threads", host->n_threads);
        (void)host_close(&host->device);
        return result;
    }
    if (openblas_set_num_threads)
        openblas_set_num_threads(1);
    *ret_device = &host->device;
    return 0;
}

const char *
host_device_isa(const struct device *device)
{
    return ((const struct host_device *)(const void *)device)->kernels->name;
}

int
host_device_threads(const struct device *device)
{
    return ((const struct host_device *)(const void *)device)->n_threads;
}
