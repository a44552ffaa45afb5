/* bench_host: speed of the CPU backend on a random model of a given shape: decode at several batch
 * sizes and prefill at several lengths, with the share of the read bandwidth this machine shows.
 *
 *   bench_host [key=value ...]
 *   hidden layers heads kv_heads head_dim intermediate vocab   shape (default: the demo model's)
 *   dtype=bf16|f32  engram=0|1  threads  isa  context (tokens before decoding)  seconds (per
 * figure)
 *
 * Figures are the best of many repetitions: a shared machine only ever makes them worse. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/pool.h"
#include "gpu/forward.h"
#include "gpu/host/host_device.h"

enum { MAX_ROWS = 512, PAGE_TOKENS = 16 };

struct bench {
    struct model_shape shape;
    enum dtype dtype;
    int threads, context;
    const char *isa;
    double seconds;
    struct device *device;
    struct forward *forward;
    uint64_t weight_bytes; /* read by one decoded token */
};

struct option {
    const char *name;
    int *value;
};

static int
parse(struct bench *b, int argc, char **argv)
{
    struct model_shape *s = &b->shape;
    int bf16 = 1, engram = 1, seconds = 1;
    const struct option options[] = {
        {"hidden", &s->hidden},     {"layers", &s->layers},     {"heads", &s->heads},
        {"kv_heads", &s->kv_heads}, {"head_dim", &s->head_dim}, {"intermediate", &s->intermediate},
        {"vocab", &s->vocab},       {"threads", &b->threads},   {"context", &b->context},
        {"engram", &engram},        {"seconds", &seconds},
    };

    for (int i = 1; i < argc; i++) {
        char *equals = strchr(argv[i], '=');
        bool known = false;
        if (!equals)
            return -1;
        *equals = '\0';
        if (strcmp(argv[i], "isa") == 0) {
            b->isa = equals + 1;
            continue;
        }
        if (strcmp(argv[i], "dtype") == 0) {
            bf16 = strcmp(equals + 1, "bf16") == 0;
            continue;
        }
        for (size_t o = 0; o < sizeof options / sizeof *options; o++)
            if (strcmp(argv[i], options[o].name) == 0) {
                *options[o].value = atoi(equals + 1);
                known = true;
            }
        if (!known)
            return -1;
    }
    b->dtype = bf16 ? DTYPE_BF16 : DTYPE_F32;
    b->seconds = seconds;
    if (engram) {
        s->engram = (struct engram_shape){.n_layers = s->layers > 3 ? 2 : 1,
                                          .max_order = 3,
                                          .heads = 8,
                                          .head_dim = 16,
                                          .conv_kernel = 4,
                                          .norm_eps = 1e-6f,
                                          .table_dtype = DTYPE_F8_E4M3,
                                          .scale_group = 16};
        s->engram.table[0].layer = 1 < s->layers ? 1 : 0;
        s->engram.table[1].layer = 3;
    }
    return 0;
}

static uint64_t random_state = 1;

static int
read_random(void *arg, uint64_t offset_bytes, void *dst, size_t size_bytes, struct err *err)
{
    const struct bench *b = arg;
    float scale = 1.0f / sqrtf((float)b->shape.hidden);
    size_t size = dtype_size_bytes(b->dtype);

    for (size_t i = 0; i < size_bytes / size; i++) {
        random_state = random_state * 6364136223846793005u + 1442695040888963407u;
        float value = ((float)(random_state >> 40) / 8388608.0f - 1) * scale;
        uint16_t half = dtype_to_bf16(value);
        memcpy((char *)dst + i * size, size == 2 ? (void *)&half : &value, size);
    }
    return 0;
}

static int
load(struct bench *b, struct err *err)
{
    struct forward_limits limits = {MAX_ROWS, 64, 64, 0, PAGE_TOKENS, 64, 0};
    struct forward_sizes sizes;
    const struct model_shape *s = &b->shape;

    limits.kv_pages = 64 * ((b->context + 64) / PAGE_TOKENS + 2) + MAX_ROWS / PAGE_TOKENS + 1;
    int result = forward_new(&b->forward, b->device, s, &limits, err);
    int engram_columns = (s->engram.max_order - 1) * s->engram.heads * s->engram.head_dim;
    for (int layer = -1; layer < s->layers && result >= 0; layer++)
        for (int role = 0; role < ROLE_COUNT && result >= 0; role++) {
            bool global = role == ROLE_EMBED || role == ROLE_FINAL_NORM || role == ROLE_LM_HEAD;
            bool has_table = false;
            int64_t h = s->hidden, q = s->heads * s->head_dim, kv = s->kv_heads * s->head_dim, n;
            if (global != (layer < 0) || role == ROLE_LM_HEAD)
                continue;
            for (int e = 0; e < s->engram.n_layers; e++)
                has_table |= s->engram.table[e].layer == layer;
            if (role >= ROLE_ENGRAM_KEY && !has_table)
                continue;
            switch (role) {
            case ROLE_EMBED:
                n = (int64_t)s->vocab * h;
                break;
            case ROLE_Q:
            case ROLE_O:
                n = q * h;
                break;
            case ROLE_K:
            case ROLE_V:
                n = kv * h;
                break;
            case ROLE_Q_NORM:
            case ROLE_K_NORM:
                n = s->head_dim;
                break;
            case ROLE_GATE:
            case ROLE_UP:
            case ROLE_DOWN:
                n = (int64_t)s->intermediate * h;
                break;
            case ROLE_Q_BIAS:
            case ROLE_K_BIAS:
            case ROLE_V_BIAS:
            case ROLE_O_BIAS:
            case ROLE_GATE_BIAS:
            case ROLE_UP_BIAS:
            case ROLE_DOWN_BIAS:
                continue;
            case ROLE_ENGRAM_KEY:
            case ROLE_ENGRAM_VALUE:
                n = h * engram_columns;
                break;
            case ROLE_ENGRAM_CONV:
                n = h * s->engram.conv_kernel;
                break;
            default:
                n = h;
            }
            result = forward_load(b->forward, role, layer, b->dtype, n, read_random, b, err);
            b->weight_bytes += (uint64_t)n * dtype_size_bytes(b->dtype);
        }
    forward_sizes(b->device, s, &limits, &sizes);
    if (result >= 0)
        printf("%.1f MB of weights, %.1f MB KV, %.1f MB scratch\n", (double)b->weight_bytes / 1e6,
               (double)sizes.kv_bytes / 1e6, (double)sizes.scratch_bytes / 1e6);
    return result < 0 ? result : forward_loaded(b->forward, err);
}

static struct {
    int32_t token[MAX_ROWS], position[MAX_ROWS], row_seq[MAX_ROWS];
    struct batch_seq seq[64];
    struct bundle_address address[MAX_ROWS * 2];
    uint8_t bundle[4096];
    struct forward_output output[64];
    struct sample_result result[64];
} memory;

/* One step of n_seqs sequences of n_rows rows each behind context tokens; best time in ns. */
static double
time_step(struct bench *b, int n_seqs, int n_rows, int context, const struct sample_params *params)
{
    int pages_each = (context + n_rows + PAGE_TOKENS - 1) / PAGE_TOKENS;
    int32_t *pages = calloc((size_t)(pages_each * n_seqs), sizeof *pages);
    struct err err = ERR_INIT;
    double best = INFINITY;

    if (!pages)
        return NAN;
    for (int i = 0; i < pages_each * n_seqs; i++)
        pages[i] = i;
    for (int i = 0; i < n_seqs; i++) {
        memory.seq[i] = (struct batch_seq){.first_row = i * n_rows,
                                           .n_rows = n_rows,
                                           .context = context,
                                           .state_slot = i,
                                           .n_pages = pages_each,
                                           .pages = pages + i * pages_each};
        for (int r = 0; r < n_rows; r++) {
            int row = i * n_rows + r;
            memory.token[row] = (row * 31) % b->shape.vocab;
            memory.position[row] = context + r;
            memory.row_seq[row] = i;
            for (int o = 0; o < 2; o++)
                memory.address[row * 2 + o].source = memory.bundle;
        }
        memory.output[i] = (struct forward_output){i * n_rows + n_rows - 1, *params};
    }
    struct forward_step step = {
        .batch = {n_seqs * n_rows, n_seqs, n_rows == 1 ? n_seqs : 0, memory.token, memory.position,
                  memory.row_seq, memory.seq},
        .n_outputs = n_seqs,
        .outputs = memory.output,
        .results = memory.result,
    };
    step.engram[0].address = step.engram[1].address = memory.address;
    uint64_t start = clock_now_ns();
    for (int i = 0; i < 5 || (double)(clock_now_ns() - start) < b->seconds * 1e9; i++) {
        uint64_t before = clock_now_ns();
        if (forward_run(b->forward, &step, &err) < 0) {
            fprintf(stderr, "%s\n", err.text);
            break;
        }
        best = fmin(best, (double)(clock_now_ns() - before));
    }
    free(pages);
    return best;
}

struct sum {
    const uint64_t *words;
    size_t n;
    uint64_t total[64];
};

static void
sum_part(void *arg, int part, int n_parts)
{
    struct sum *s = arg;
    long begin, end;
    uint64_t a[16] = {0};

    pool_slice((long)s->n, 16, part, n_parts, &begin, &end);
    for (long i = begin; i + 16 <= end; i += 16)
        for (int j = 0; j < 16; j++)
            a[j] += s->words[i + j];
    for (int j = 0; j < 16; j++)
        s->total[part % 64] += a[j];
}

/* Bytes per nanosecond at which all threads read a buffer again and again. */
static double
read_bandwidth(struct bench *b, size_t bytes)
{
    struct pool *pool;
    struct sum s = {NULL, bytes / 8, {0}};
    uint64_t *words = b->device->ops->alloc(b->device, bytes);
    double best = INFINITY;

    if (!words || pool_new(&pool, b->threads, NULL) < 0)
        return NAN;
    for (size_t i = 0; i < s.n; i++)
        words[i] = i;
    s.words = words;
    for (int i = 0; i < 30; i++) {
        uint64_t start = clock_now_ns();
        pool_run(pool, sum_part, &s);
        best = fmin(best, (double)(clock_now_ns() - start));
    }
    pool_free(pool);
    b->device->ops->free(b->device, words, bytes);
    return (double)bytes / best;
}

int
main(int argc, char **argv)
{
    struct bench b = {.shape = {.family = FAMILY_QWEN3,
                                .vocab = 8192,
                                .hidden = 256,
                                .layers = 8,
                                .heads = 4,
                                .kv_heads = 2,
                                .head_dim = 64,
                                .intermediate = 704,
                                .max_position = 1 << 20,
                                .norm_eps = 1e-6f,
                                .qk_norm = true,
                                .tied_embeddings = true,
                                .rope = {.kind = ROPE_DEFAULT, .theta = 10000}},
                      .context = 64,
                      .isa = "auto"};
    struct err err = ERR_INIT;

    if (parse(&b, argc, argv) < 0) {
        fprintf(stderr, "usage: bench_host [key=value ...] (see the head of bench_host.c)\n");
        return 64;
    }
    struct host_device_options options = {.n_threads = b.threads, .isa = b.isa};
    if (host_device_open(&b.device, &options, &err) < 0 || load(&b, &err) < 0) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    double near = read_bandwidth(&b, b.weight_bytes), far = read_bandwidth(&b, 256 << 20);
    printf("%s, %d threads; reads %.1f GB/s from a buffer of the weights' size, %.1f GB/s from 256 "
           "MiB\n",
           host_device_isa(b.device), host_device_threads(b.device), near, far);
    struct sample_params greedy = {.forced = -1};
    struct sample_params drawn = {.temperature = 0.8f, .top_p = 0.95f, .forced = -1, .seed = 1};
    static const int batches[] = {1, 2, 4, 8, 16, 64}, lengths[] = {8, 16, 32, 64, 128, 512};
    for (size_t i = 0; i < sizeof batches / sizeof *batches; i++) {
        double ns = time_step(&b, batches[i], 1, b.context, &greedy);
        printf("decode of %2d: %8.3f ms, %7.0f tokens/s, %5.1f GB/s of weights, %3.0f %% of %.1f\n",
               batches[i], ns / 1e6, batches[i] * 1e9 / ns, (double)b.weight_bytes / ns,
               100 * (double)b.weight_bytes / ns / near, near);
    }
    double ns = time_step(&b, 1, 1, b.context, &drawn);
    printf("decode of  1: %8.3f ms, %7.0f tokens/s, sampled with temperature and top-p\n", ns / 1e6,
           1e9 / ns);
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        ns = time_step(&b, 1, lengths[i], 0, &greedy);
        printf("prefill of %3d: %8.3f ms, %7.0f tokens/s, %6.1f GFLOP/s\n", lengths[i], ns / 1e6,
               lengths[i] * 1e9 / ns,
               2.0 * lengths[i] * (double)b.weight_bytes / (double)dtype_size_bytes(b.dtype) / ns);
    }
    (void)forward_free(b.forward);
    (void)b.device->ops->close(b.device);
    return 0;
}
