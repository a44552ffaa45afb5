#include "daemon/serving.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/byte_size.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/cpu_count.h"
#include "base/log.h"
#include "daemon/cuda_plugin.h"
#include "daemon/fault_option.h"
#include "daemon/memory_check.h"
#include "daemon/tier_report.h"
#include "daemon/weight_loader.h"
#include "gpu/host/host_device.h"
#include "model/compressed_ids.h"

enum { PAGE_TOKENS = 16 };

struct loading {
    struct serving *s;
    const struct serving_hooks *hooks;
    struct err *err;
};

static int
progress(const struct loading *l, const char *phase)
{
    int status = l->hooks->progress ? l->hooks->progress(l->hooks->arg, phase, 0, 0) : 0;

    return status < 0 ? err_set(l->err, -status, "loading was cancelled") : 0;
}

/* What the operator must mend in the configuration is told apart from what is wrong in a file. */
static int
as_config_error(int status)
{
    switch (status) {
    case -ENOENT:
    case -ENOTDIR:
    case -EACCES:
    case -EISDIR:
    case -ELOOP:
        return -EINVAL;
    default:
        return status;
    }
}

static int
load_model(struct loading *l)
{
    struct serving *s = l->s;
    const char *folder = s->conf->model_path;
    char path[4096];
    int status;

    if ((status = model_config_read(&s->config, folder, l->err)) < 0)
        return as_config_error(status);
    if (s->config.unknown[0])
        log_warning("config.json: fields not known and not used: %s", s->config.unknown);
    if ((status = checkpoint_open(&s->checkpoint, folder, l->err)) < 0)
        return as_config_error(status);
    if ((status = tensor_plan_make(&s->plan, &s->config.shape, s->checkpoint, l->err)) < 0)
        return status;
    for (int i = 0; i < s->plan.n_uses; i++)
        s->weight_bytes += s->plan.uses[i].tensor->size_bytes;
    for (int t = 0; t < s->config.shape.engram.n_layers; t++)
        s->table_bytes +=
            s->plan.table[t]->size_bytes + (s->plan.scale[t] ? s->plan.scale[t]->size_bytes : 0);
    if ((status = progress(l, "tokenizer")) < 0)
        return status;
    if (snprintf(path, sizeof path, "%s/tokenizer.json", folder) >= (int)sizeof path)
        return err_set(l->err, EINVAL, "model.path is too long");
    status = tokenizer_load(&s->tokenizer, path, s->config.shape.vocab, l->err);
    return as_config_error(status);
}

static int
build_compressed_ids(struct loading *l)
{
    struct serving *s = l->s;
    const struct engram_shape *engram = &s->config.shape.engram;
    int count = 0;

    if (engram->n_layers == 0)
        return 0;
    s->compressed = calloc((size_t)s->config.shape.vocab, sizeof *s->compressed);
    if (s->compressed == NULL)
        return err_set(l->err, ENOMEM, "no memory for the compressed ids");
    int status = compressed_ids_build(s->tokenizer, s->config.shape.vocab, engram->pad_id,
                                      s->compressed, &count, l->err);

    if (status < 0)
        return status;
    if (count != engram->compressed_vocab)
        return err_set(l->err, EBADMSG,
                       "config.json: engram.compressed_vocab_size is %d, but tokenizer.json has %d "
                       "compressed ids: every hash would differ",
                       engram->compressed_vocab, count);
    return 0;
}

static int
open_cpu(struct loading *l)
{
    struct serving *s = l->s;
    struct host_device_options options = {.n_threads = (int)s->conf->cpu_threads,
                                          .isa = s->conf->cpu_isa};
    int status = host_device_open(&s->device, &options, l->err);

    if (status == 0)
        log_info("device cpu: %d threads, %s kernels", host_device_threads(s->device),
                 host_device_isa(s->device));
    return status;
}

static int
open_gpu(struct loading *l, int ordinal)
{
    struct serving *s = l->s;
    int status = cuda_plugin_open(&s->device, ordinal, l->err);

    if (status < 0)
        return err_context(l->err, "device = %s", s->conf->device);
    log_info("device cuda:%d: %s", ordinal, cuda_plugin_describe(s->device));
    return 0;
}

/* A device that is named must be there. auto takes the first GPU when there is one, and says why
 * it takes the CPU when there is none; a GPU that is there and does not work is an error. */
static int
open_device(struct loading *l)
{
    const char *name = l->s->conf->device;
    struct err err = ERR_INIT;

    if (strcmp(name, "cpu") == 0)
        return open_cpu(l);
    if (strncmp(name, "cuda:", 5) == 0)
        return open_gpu(l, (int)strtol(name + 5, NULL, 10));
    int n = cuda_plugin_count(&err);
    if (n > 0)
        return open_gpu(l, 0);
    log_info("device auto: the CPU: %s", n < 0 ? err.text : "no NVIDIA GPU was found");
    return open_cpu(l);
}

/* State slots of the prefix cache: one for each span that the KV pages can hold, if they fit in the
 * share of memory that memory_check.c leaves for them. */
static int
saved_states(const struct serving *s)
{
    struct forward_limits limits = s->limits;
    struct forward_sizes sizes;
    uint64_t spans =
        (uint64_t)limits.kv_pages * PAGE_TOKENS / (uint64_t)s->conf->engine_prefill_chunk;

    limits.n_states = 1;
    forward_sizes(s->device, &s->config.shape, &limits, &sizes);
    if (sizes.state_bytes == 0)
        return 0;
    uint64_t room = s->conf->engine_kv_size / MEMORY_CHECK_STATE_SHARE / sizes.state_bytes;

    return (int)(room < spans ? room : spans);
}

/* How much fits: KV pages from the budget, context from the model and the pages. */
static int
size_engine(struct loading *l)
{
    struct serving *s = l->s;
    const struct conf *conf = s->conf;
    size_t page_bytes = s->device->ops->kv_page_bytes(s->device, &s->config.shape, PAGE_TOKENS);
    uint64_t pages = conf->engine_kv_size / page_bytes;
    char size[32];

    if (pages < 1 || pages > INT32_MAX)
        return err_set(l->err, EINVAL, "engine.kv_size: %s is no room for one page of %zu bytes",
                       byte_size_format(conf->engine_kv_size, size, sizeof size), page_bytes);
    s->max_context =
        conf->engine_max_context ? (int)conf->engine_max_context : s->config.shape.max_position;
    if (s->max_context > s->config.shape.max_position)
        return err_set(l->err, EINVAL, "engine.max_context: the model was made for %d positions",
                       s->config.shape.max_position);
    if ((uint64_t)s->max_context > pages * PAGE_TOKENS)
        s->max_context = (int)(pages * PAGE_TOKENS);
    s->limits = (struct forward_limits){
        .max_rows = (int)(conf->engine_max_sequences + conf->engine_prefill_chunk),
        .max_sequences = (int)conf->engine_max_sequences,
        .n_states = (int)conf->engine_max_sequences,
        .kv_pages = (int)pages,
        .page_tokens = PAGE_TOKENS,
    };
    s->limits.max_outputs = s->limits.max_rows + s->limits.max_sequences;
    /* Page lists of one step. Without sharing there are no more entries than pages; a step that would
     * list shared ones more than twice over leaves its youngest sequences to the next. */
    int64_t each = (s->max_context + PAGE_TOKENS - 1) / PAGE_TOKENS;
    int64_t most = s->limits.max_sequences * each;
    int64_t twice = 2 * (int64_t)pages + s->limits.max_sequences;
    s->limits.max_step_pages = (int)(most < twice ? most : twice);
    if (conf->engine_prefix_cache)
        s->limits.n_states += saved_states(s);
    return 0;
}

static int
read_weights(void *arg, const struct tensor *tensor, uint64_t offset_bytes, void *dst,
             size_t size_bytes, struct err *err)
{
    return checkpoint_read(arg, tensor, offset_bytes, dst, size_bytes, err);
}

static void
will_read_weights(void *arg, const struct tensor *tensor, uint64_t offset_bytes,
                  uint64_t size_bytes)
{
    checkpoint_will_read(arg, tensor, offset_bytes, size_bytes);
}

static int
weights_progress(void *arg, uint64_t done_bytes, uint64_t total_bytes)
{
    const struct serving_hooks *hooks = ((const struct loading *)arg)->hooks;

    return hooks->progress ? hooks->progress(hooks->arg, "weights", done_bytes, total_bytes) : 0;
}

static int
load_weights(struct loading *l)
{
    struct serving *s = l->s;
    int status = forward_new(&s->forward, s->device, &s->config.shape, &s->limits, l->err);

    if (status < 0)
        return status;
    struct weight_loader_options options = {
        .forward = s->forward,
        .device = s->device,
        .uses = s->plan.uses,
        .n_uses = s->plan.n_uses,
        .source = {read_weights, will_read_weights, s->checkpoint},
        .n_threads = cpu_count(),
        .progress = weights_progress,
        .progress_arg = l,
    };

    if ((status = weight_loader_run(&options, l->err)) < 0)
        return status;
    for (int i = 0; i < s->plan.n_uses; i++) {
        const struct tensor *tensor = s->plan.uses[i].tensor;

        s->n_params += tensor->size_bytes / dtype_size_bytes(tensor->dtype);
    }
    return forward_loaded(s->forward, l->err);
}

static int
warm_up(struct loading *l)
{
    uint64_t begin = clock_now_ns();
    int n = forward_warm_up(l->s->forward, l->err);

    if (n > 0)
        log_info("warmed up %d products in %.0f ms", n, (double)(clock_now_ns() - begin) * 1e-6);
    return n < 0 ? n : 0;
}

static int
open_cold_store(struct loading *l)
{
    struct serving *s = l->s;
    const struct conf *conf = s->conf;
    struct nvme_file files[SHAPE_MAX_ENGRAM_LAYERS * 2 + 64];
    int n_files = checkpoint_n_files(s->checkpoint);
    struct nvme_file *all = n_files <= (int)(sizeof files / sizeof *files)
                                ? files
                                : calloc((size_t)n_files, sizeof *all);
    struct fault_option fault;
    int status = fault_option_parse(conf->tier_nvme_fault, &fault, l->err);

    if (all == NULL)
        return err_set(l->err, ENOMEM, "no memory for %d files", n_files);
    for (int i = 0; i < n_files; i++)
        all[i] = (struct nvme_file){.path = checkpoint_file_path(s->checkpoint, i),
                                    .size_bytes = checkpoint_file_size(s->checkpoint, i)};
    struct nvme_options options = {
        .depth = (int)conf->tier_nvme_depth,
        .direct = conf->tier_nvme_direct,
        .retries = (int)conf->tier_nvme_retries,
        .notify = resolver_notify,
        .notify_arg = s->resolver,
    };

    if (status == 0)
        status = nvme_store_open(&s->cold, all, n_files, &options, l->err);
    if (all != files)
        free(all);
    if (status < 0)
        return status;
    log_info("tables on disk: %s", nvme_store_describe(s->cold));
    if (fault.faulty) {
        struct cold_store *below = s->cold;

        log_warning("tier.nvme.fault is set: reads fail on purpose");
        status = fault_store_open(&s->cold, below, &fault.plan);
    }
    if (status == 0 && fault.delay_ns) {
        struct cold_store *below = s->cold;

        log_warning("tier.nvme.fault is set: reads are slowed on purpose");
        status = delay_store_open(&s->cold, below, fault.delay_ns, resolver_notify, s->resolver);
    }
    return status < 0 ? err_set(l->err, -status, "cannot stack the stores of tier.nvme.fault") : 0;
}

static int
read_table(void *arg, int table, bool scales, uint64_t offset_bytes, void *dst, size_t size_bytes,
           void *buffer, struct err *err)
{
    const struct serving *s = arg;
    const struct tensor *tensor = scales ? s->plan.scale[table] : s->plan.table[table];

    return table_reader_read(s->table_reader, tensor, offset_bytes, dst, size_bytes, buffer, err);
}

static int
make_residence(struct loading *l)
{
    struct serving *s = l->s;
    struct residence_options options = {
        .resolver = s->resolver,
        .device = s->device,
        .n_tables = s->config.shape.engram.n_layers,
        .source = {read_table, s},
        .ram_bytes = s->conf->tier_ram_size,
    };

    for (int t = 0; t < options.n_tables; t++)
        options.table[t] = (struct residence_table){
            s->plan.table[t]->size_bytes, s->plan.scale[t] ? s->plan.scale[t]->size_bytes : 0};
    int status =
        table_reader_new(&s->table_reader, s->checkpoint, s->conf->tier_nvme_direct, l->err);

    return status < 0 ? status : residence_new(&s->residence, &options, l->err);
}

static int
start_tiers(struct loading *l)
{
    struct serving *s = l->s;
    const struct engram_shape *engram = &s->config.shape.engram;
    int status;

    if (engram->n_layers == 0)
        return 0;
    if ((status = resolver_new(&s->resolver, &s->config.shape, s->compressed, l->err)) < 0 ||
        (status = open_cold_store(l)) < 0)
        return status;
    struct tiers_options options = {
        .engram = *engram,
        .cold = s->cold,
        .hbm_memory = chunk_ops_of_device(s->device, false),
        .ram_memory = chunk_ops_of_device(s->device, true),
        .hbm_budget_bytes = s->conf->tier_hbm_size,
        .ram_budget_bytes = s->conf->tier_ram_size,
        .row_share = s->conf->tier_ram_row_share,
        .max_step_rows = s->limits.max_rows,
        .steps_in_flight = ENGINE_STEPS_IN_FLIGHT,
    };

    if (s->conf->tier_ram_tables) {
        if ((status = make_residence(l)) < 0)
            return status;
        residence_reserve(s->residence, &options);
    }
    if (!s->device->ops->host_addressable) {
        if ((status = chunk_pool_new(&s->hbm_pool, s->device, false, resolver_notify, s->resolver,
                                     l->err)) < 0 ||
            (status = chunk_pool_new(&s->ram_pool, s->device, true, resolver_notify, s->resolver,
                                     l->err)) < 0)
            return status;
        options.hbm_memory = chunk_pool_ops(s->hbm_pool);
        options.ram_memory = chunk_pool_ops(s->ram_pool);
    }
    for (int t = 0; t < engram->n_layers; t++) {
        const struct tensor *table = s->plan.table[t], *scale = s->plan.scale[t];

        options.table[t].weight_file = table->file;
        options.table[t].weight_offset_bytes = table->offset_bytes;
        if (scale) {
            options.table[t].scale_file = scale->file;
            options.table[t].scale_offset_bytes = scale->offset_bytes;
        }
    }
    tier_report_register(s->metrics, &s->config.shape);
    status = resolver_start(s->resolver, &options, l->err);
    if (status >= 0 && s->hbm_pool) {
        chunk_pool_wait(s->hbm_pool, false);
        chunk_pool_wait(s->ram_pool, false);
    }
    return status;
}

static int
start_engine(struct loading *l)
{
    struct serving *s = l->s;
    const struct conf *conf = s->conf;
    struct engine_options options = {
        .shape = &s->config.shape,
        .device = s->device,
        .forward = s->forward,
        .limits = s->limits,
        .resolver = s->resolver,
        .compressed = s->compressed,
        .prefix_cache = conf->engine_prefix_cache,
        .prefill_chunk = (int)conf->engine_prefill_chunk,
        .max_queue = (int)conf->engine_max_queue,
        .max_sequence_pages = (s->max_context + PAGE_TOKENS - 1) / PAGE_TOKENS,
        .row_timeout_ns = conf->tier_nvme_timeout,
        .metrics = s->metrics,
        .heartbeat = l->hooks->heartbeat,
        .heartbeat_arg = l->hooks->arg,
        .heartbeat_ns = l->hooks->heartbeat_ns,
    };

    return engine_start(&s->engine, &options, l->err);
}

/* The last part of the path, "." and trailing slashes aside. */
static char *
name_of_folder(const char *path)
{
    char *full = realpath(path, NULL), *slash = full ? strrchr(full, '/') : NULL;
    char *name = strdup(slash && slash[1] ? slash + 1 : "model");

    free(full);
    return name;
}

int
serving_load(struct serving **ret_serving, const struct conf *conf, struct metrics *metrics,
             const struct serving_hooks *hooks, struct err *err)
{
    struct serving *s = calloc(1, sizeof *s);
    struct loading l = {.s = s, .hooks = hooks, .err = err};
    int status;

    if (s == NULL)
        return err_set(err, ENOMEM, "no memory for the model");
    s->conf = conf;
    s->metrics = metrics;
    s->created = clock_unix_seconds();
    s->name = conf->model_name[0] ? strdup(conf->model_name) : name_of_folder(conf->model_path);
    if ((status = progress(&l, "checkpoint")) < 0 || (status = load_model(&l)) < 0 ||
        (status = build_compressed_ids(&l)) < 0 || (status = open_device(&l)) < 0 ||
        (status = size_engine(&l)) < 0 || (status = memory_check_start(s, l.err)) < 0 ||
        (status = load_weights(&l)) < 0 || (status = warm_up(&l)) < 0 ||
        (status = start_tiers(&l)) < 0 || (status = start_engine(&l)) < 0 ||
        (s->residence && (status = residence_start(s->residence, l.err)) < 0)) {
        serving_free(s);
        return status;
    }
    *ret_serving = s;
    return 0;
}

int
serving_stop(struct serving *s)
{
    struct engine_load load;

    engine_stop(s->engine);
    engine_load(s->engine, &load);
    return load.fault;
}

struct serving *
serving_free(struct serving *s)
{
    if (s == NULL)
        return NULL;
    engine_stop(s->engine);
    residence_stop(s->residence);
    resolver_stop(s->resolver);
    if (s->cold)
        s->cold->ops->close(s->cold);
    engine_free(s->engine);
    /* Their threads tell the resolver of memory that has come; the tiers have given theirs back when it stopped. */
    chunk_pool_free(s->hbm_pool);
    chunk_pool_free(s->ram_pool);
    resolver_free(s->resolver);
    residence_free(s->residence);
    table_reader_free(s->table_reader);
    forward_free(s->forward);
    if (s->device)
        s->device->ops->close(s->device);
    free(s->compressed);
    tokenizer_free(s->tokenizer);
    tensor_plan_free(&s->plan);
    checkpoint_close(s->checkpoint);
    free(s->name);
    free(s);
    return NULL;
}

int
serving_exit_code(int status)
{
    switch (status) {
    case -EBADMSG:
    case -EIO:
        return 65;
    case -EINVAL:
    case -ENOTSUP:
    case -EADDRINUSE:
    case -EADDRNOTAVAIL:
        return 78;
    case -ENODEV:
        return 69;
    default:
        return 71;
    }
}
