/* bench_model: random models of known shapes, and what they cost at least. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <unistd.h>

#include "base/byte_size.h"
#include "base/cpu_count.h"
#include "daemon/cuda_plugin.h"
#include "gpu/cuda/ceilings.h"
#include "gpu/host/host_device.h"
#include "tools/bench.h"

static const struct {
    const char *name;
    int vocab, hidden, layers, heads, kv_heads, head_dim, intermediate;
    bool tied;
} shapes[] = {
    {"qwen3-0.6b", 151936, 1024, 28, 16, 8, 128, 3072, true},
    {"qwen3-4b", 151936, 2560, 36, 32, 8, 128, 9728, true},
    {"qwen3-8b", 151936, 4096, 36, 32, 8, 128, 12288, false},
    {"tiny", 16384, 64, 3, 4, 2, 16, 128, true},
};

int
bench_shape(const char *name, struct model_shape *ret_shape, struct err *err)
{
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        if (strcmp(name, shapes[i].name) == 0) {
            *ret_shape = (struct model_shape){
                .family = FAMILY_QWEN3,
                .vocab = shapes[i].vocab,
                .hidden = shapes[i].hidden,
                .layers = shapes[i].layers,
                .heads = shapes[i].heads,
                .kv_heads = shapes[i].kv_heads,
                .head_dim = shapes[i].head_dim,
                .intermediate = shapes[i].intermediate,
                .max_position = 40960,
                .norm_eps = 1e-6f,
                .qk_norm = true,
                .tied_embeddings = shapes[i].tied,
                .rope = {.kind = ROPE_DEFAULT, .theta = 1e6},
            };
            return 0;
        }
    return err_set(err, EINVAL, "'%s' is no shape; there are qwen3-0.6b, qwen3-4b, qwen3-8b, tiny",
                   name);
}

static uint64_t
layer_elements(const struct model_shape *s)
{
    uint64_t q = (uint64_t)s->heads * (uint64_t)s->head_dim;
    uint64_t kv = (uint64_t)s->kv_heads * (uint64_t)s->head_dim;
    uint64_t hidden = (uint64_t)s->hidden;

    return hidden * (2 * q + 2 * kv + 3 * (uint64_t)s->intermediate);
}

uint64_t
bench_weight_bytes(const struct model_shape *s)
{
    uint64_t head = (uint64_t)s->vocab * (uint64_t)s->hidden;
    uint64_t columns =
        (uint64_t)(s->engram.max_order > 1 ? s->engram.max_order - 1 : 0) *
        (uint64_t)s->engram.heads * (uint64_t)s->engram.head_dim;
    uint64_t engram = (uint64_t)s->engram.n_layers * 2 * columns * (uint64_t)s->hidden;

    return 2 * ((uint64_t)s->layers * layer_elements(s) + head + engram);
}

uint64_t
bench_kv_bytes(const struct device *device, const struct model_shape *shape)
{
    enum { PAGE_TOKENS = 16 };

    return device->ops->kv_page_bytes(device, shape, PAGE_TOKENS) / PAGE_TOKENS;
}

double
bench_token_flop(const struct model_shape *s)
{
    return 2.0 * (double)s->layers * (double)layer_elements(s);
}

int
bench_device(const char *name, struct device **ret_device, struct err *err)
{
    struct host_device_options host = {0};
    char *end;

    if (strcmp(name, "auto") == 0)
        name = cuda_plugin_count(err) > 0 ? "cuda:0" : "cpu";
    if (strcmp(name, "cpu") == 0)
        return host_device_open(ret_device, &host, err);
    if (strncmp(name, "cuda:", 5) == 0) {
        long ordinal = strtol(name + 5, &end, 10);

        if (name[5] && !*end && ordinal >= 0 && ordinal < 1024)
            return cuda_plugin_open(ret_device, (int)ordinal, err);
    }
    return err_set(err, EINVAL, "device '%s' is not cpu, cuda:N or auto", name);
}

/* As the kernel calls it, without what would end a string of JSON. */
static const char *
cpu_model(char *model, size_t size)
{
    FILE *file = fopen("/proc/cpuinfo", "re");
    char line[256];

    snprintf(model, size, "unknown");
    while (file && fgets(line, sizeof line, file))
        if (strncmp(line, "model name", 10) == 0 && strchr(line, ':')) {
            snprintf(model, size, "%s", strchr(line, ':') + 2);
            model[strcspn(model, "\n\"\\")] = 0;
            break;
        }
    if (file)
        fclose(file);
    return model;
}

const char *
bench_device_text(const struct device *device)
{
    static char text[512];
    bool cpu = strcmp(device->ops->name, "cpu") == 0;
    uint64_t memory = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    char size[32], model[128];

    snprintf(text, sizeof text, "%s%s; %d CPUs (%s), %s", cpu ? "cpu, " : "",
             cpu ? host_device_isa(device) : cuda_plugin_describe(device), cpu_count(),
             cpu_model(model, sizeof model), byte_size_format(memory, size, sizeof size));
    return text;
}

int
bench_limits(struct device *device, struct bench_limits *ret_limits, struct err *err)
{
    struct cuda_ceilings ceilings;
    int (*measure)(struct device *, struct cuda_ceilings *) = NULL;

    if (strcmp(device->ops->name, "cuda") != 0)
        return bench_host_limits(ret_limits, err);
    *(void **)&measure = cuda_plugin_symbol("engram_cuda_ceilings");
    int status = measure ? measure(device, &ceilings) : -ENOSYS;
    if (status < 0)
        return err_errno(err, -status, "cannot measure the limits of the GPU");
    *ret_limits = (struct bench_limits){ceilings.read_bytes_per_s, ceilings.bf16_flop_per_s,
                                        ceilings.to_device_bytes_per_s};
    return 0;
}

double
bench_least_seconds(const struct device *device, const struct model_shape *shape,
                    const struct bench_limits *limits, double steps, double context,
                    double prompt_tokens)
{
    double weights = (double)bench_weight_bytes(shape), kv = (double)bench_kv_bytes(device, shape);

    return (steps * weights + context * kv) / limits->read_bytes_per_s +
           prompt_tokens * bench_token_flop(shape) / limits->flop_per_s;
}

const char *
bench_share_text(double least_s, double seconds, bool json, char *text, size_t size)
{
    if (json)
        snprintf(text, size, "%.4f", least_s / seconds);
    else
        snprintf(text, size, "%.1f%%", 100 * least_s / seconds);
    return text;
}

bool
bench_counters(struct device *device, struct cuda_counters *ret_counters)
{
    int (*counters)(struct device *, struct cuda_counters *) = NULL;

    *ret_counters = (struct cuda_counters){0};
    if (strcmp(device->ops->name, "cuda") == 0)
        *(void **)&counters = cuda_plugin_symbol("engram_cuda_counters");
    return counters && counters(device, ret_counters) == 0;
}

static int
by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

double
bench_median(double *values, int n)
{
    qsort(values, (size_t)n, sizeof *values, by_value);
    return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}
