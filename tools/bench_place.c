#include "tools/bench_place.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/byte_size.h"

static int
parse_size(const char *text, struct placement_spec *spec, struct err *err)
{
    uint64_t *to = strncmp(text, "hbm=", 4) == 0   ? &spec->hbm_bytes
                   : strncmp(text, "ram=", 4) == 0 ? &spec->ram_bytes
                                                   : NULL;

    return to ? byte_size_parse(text + 4, to, err)
              : err_set(err, EINVAL, "'%s' is not hbm=SIZE or ram=SIZE", text);
}

int
placement_parse(const char *text, struct placement_spec *ret_spec, struct err *err)
{
    static const char *const names[] = {"none", "device", "host", "disk"};
    char copy[256], *save = NULL;
    int status = 0;

    *ret_spec = (struct placement_spec){.text = text};
    if (strlen(text) >= sizeof copy)
        return err_set(err, EINVAL, "'%s' is too long", text);
    memcpy(copy, text, strlen(text) + 1);
    const char *name = strtok_r(copy, ",", &save);
    int kind = 0;

    while (kind < 4 && (name == NULL || strcmp(name, names[kind]) != 0))
        kind++;
    if (kind == 4)
        return err_set(err, EINVAL, "'%s' begins with none of none, device, host, disk", text);
    ret_spec->kind = kind;
    for (const char *word; status >= 0 && (word = strtok_r(NULL, ",", &save)) != NULL;)
        status = parse_size(word, ret_spec, err);
    if (status >= 0 && ((ret_spec->hbm_bytes && kind < PLACE_HOST) ||
                        (ret_spec->ram_bytes && kind != PLACE_DISK)))
        return err_set(err, EINVAL, "'%s': that store has nothing to hold there", text);
    return status;
}

static int
open_cold(struct place *p, struct err *err)
{
    struct bench_table *table = p->options->table;
    struct nvme_options options = {
        .depth = 128, .direct = 1, .retries = 2, .notify = resolver_notify, .notify_arg = p->resolver};

    if (p->spec.kind != PLACE_DISK)
        return null_store_open(&p->cold, resolver_notify, p->resolver);
    bench_table_to_file(table, p->options->table_path);
    struct nvme_file file = {.path = table->path, .size_bytes = table->size_bytes};
    return nvme_store_open(&p->cold, &file, 1, &options, err);
}

static int
open_tiers(struct place *p, struct err *err)
{
    const struct place_options *o = p->options;
    struct tiers_options options = {
        .engram = o->shape->engram,
        .hbm_budget_bytes = p->spec.hbm_bytes,
        .ram_budget_bytes = p->spec.ram_bytes,
        .row_share = 0.9, /* as the configuration's default */
        .max_step_rows = o->limits.max_rows,
        .steps_in_flight = ENGINE_STEPS_IN_FLIGHT,
    };
    int status = resolver_new(&p->resolver, o->shape, o->compressed, err);

    if (status >= 0)
        status = open_cold(p, err);
    if (status < 0)
        return status;
    if ((status = chunk_pool_new(&p->hbm_pool, o->device, false, resolver_notify, p->resolver,
                                 err)) < 0 ||
        (status = chunk_pool_new(&p->ram_pool, o->device, true, resolver_notify, p->resolver,
                                 err)) < 0)
        return status;
    options.hbm_memory = chunk_pool_ops(p->hbm_pool);
    options.ram_memory = chunk_pool_ops(p->ram_pool);
    options.cold = p->cold;
    if (p->spec.kind == PLACE_DEVICE) {
        bench_table_to_device(o->table);
        options.resident[0] = (struct tier_resident){.weights = o->table->on_device, .device = true};
    } else if (p->spec.kind == PLACE_HOST) {
        options.resident[0] = (struct tier_resident){.weights = o->table->host};
    }
    status = resolver_start(p->resolver, &options, err);
    chunk_pool_wait(p->hbm_pool, false);
    chunk_pool_wait(p->ram_pool, false);
    return status;
}

void
place_open(struct place *p, const struct place_options *o, const struct placement_spec *spec)
{
    struct err err = ERR_INIT;

    *p = (struct place){.options = o, .spec = *spec, .shape = *o->shape};
    if (spec->kind == PLACE_NONE)
        p->shape.engram = (struct engram_shape){0};
    if (spec->kind != PLACE_NONE && open_tiers(p, &err) < 0)
        bench_fail(spec->text, &err);
    struct engine_options options = {
        .shape = &p->shape,
        .device = o->device,
        .forward = o->forward,
        .limits = o->limits,
        .resolver = p->resolver,
        .compressed = p->resolver ? o->compressed : NULL,
        .prefill_chunk = o->prefill_chunk,
        .max_queue = o->max_queue,
        .max_sequence_pages = o->max_sequence_pages,
        .row_timeout_ns = 10000000000,
        .metrics = o->metrics,
    };
    if (engine_start(&p->engine, &options, &err) < 0)
        bench_fail(spec->text, &err);
}

void
place_close(struct place *p)
{
    engine_stop(p->engine);
    resolver_stop(p->resolver);
    if (p->cold)
        p->cold->ops->close(p->cold);
    engine_free(p->engine);
    chunk_pool_free(p->hbm_pool); /* they notify the resolver */
    chunk_pool_free(p->ram_pool);
    resolver_free(p->resolver);
    bench_table_drop_device(p->options->table);
    *p = (struct place){0};
}
