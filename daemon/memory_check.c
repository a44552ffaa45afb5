#include "daemon/memory_check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/byte_size.h"

/* Stacks, tokenizer, buffers: what the process takes besides. */
static const uint64_t overhead_bytes = 64ull << 20;
/* The same with a CUDA context in the process. */
static const uint64_t gpu_overhead_bytes = 1ull << 30;

/* memory.max of one cgroup folder; UINT64_MAX: none. */
static uint64_t
cgroup_limit(const char *folder)
{
    char path[4200];
    unsigned long long limit = UINT64_MAX;

    snprintf(path, sizeof path, "%s/memory.max", folder);
    FILE *file = fopen(path, "re");

    if (file == NULL)
        return UINT64_MAX;
    if (fscanf(file, "%llu", &limit) != 1)
        limit = UINT64_MAX; /* "max" */
    fclose(file);
    return limit;
}

uint64_t
memory_limit_bytes(void)
{
    uint64_t limit = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    char line[4096], folder[4150];
    FILE *file = fopen("/proc/self/cgroup", "re");

    if (file == NULL)
        return limit;
    while (fgets(line, sizeof line, file)) {
        if (strncmp(line, "0::/", 4) != 0)
            continue;
        line[strcspn(line, "\n")] = 0;
        snprintf(folder, sizeof folder, "/sys/fs/cgroup%s", line + 3);
        /* A parent's limit binds too. */
        for (char *end; strlen(folder) >= strlen("/sys/fs/cgroup");) {
            uint64_t here = cgroup_limit(folder);

            if (here < limit)
                limit = here;
            end = strrchr(folder, '/');
            *end = 0;
        }
    }
    fclose(file);
    return limit;
}

/* What a budget nobody asked for will come to: bundles plus their index stay under twice the
 * tables. */
static uint64_t
real_need(const struct serving *s, uint64_t budget)
{
    return budget < 2 * s->table_bytes ? budget : 2 * s->table_bytes;
}

/* The KV cache, and the Engram states that go with it. */
static uint64_t
kv_need(const struct serving *s)
{
    bool states = s->conf->engine_prefix_cache && s->config.shape.engram.n_layers > 0;
    uint64_t kv = s->conf->engine_kv_size;

    return kv + (states ? kv / MEMORY_CHECK_STATE_SHARE : 0);
}

/* Working memory of a step. */
static uint64_t
step_need(const struct serving *s)
{
    struct forward_sizes sizes;

    forward_sizes(s->device, &s->config.shape, &s->limits, &sizes);
    return sizes.scratch_bytes;
}

/* What runs on a GPU: weights, KV cache and the HBM tier in its memory. `held`: what of them is
 * there already. */
static int
check_gpu(const struct serving *s, uint64_t hbm, uint64_t need_hbm, uint64_t held, struct err *err)
{
    uint64_t unused = 0, total = 0;
    uint64_t steps = step_need(s);
    uint64_t need = s->weight_bytes + kv_need(s) + need_hbm + steps + overhead_bytes;
    char text[6][32];
    int status = s->device->ops->memory_info(s->device, &unused, &total);

    if (status < 0)
        return err_set(err, -status, "the GPU does not say how much memory it has");
    uint64_t limit = unused + held;
    if (need <= limit)
        return 0;
    return err_set(err, EINVAL,
                   "weights %s + engine.kv_size %s + tier.hbm.size %s + working memory %s need %s, but "
                   "%s of the GPU's memory are to be had",
                   byte_size_format(s->weight_bytes, text[0], sizeof text[0]),
                   byte_size_format(s->conf->engine_kv_size, text[1], sizeof text[1]),
                   byte_size_format(hbm, text[2], sizeof text[2]),
                   byte_size_format(steps, text[3], sizeof text[3]),
                   byte_size_format(need, text[4], sizeof text[4]),
                   byte_size_format(limit, text[5], sizeof text[5]));
}

/* need_hbm, need_ram: what of the budgets counts. held_hbm: of the GPU's memory, what is ours. */
static int
check(const struct serving *s, uint64_t hbm, uint64_t need_hbm, uint64_t ram, uint64_t need_ram,
      uint64_t held_hbm, struct err *err)
{
    uint64_t limit = memory_limit_bytes();
    char text[6][32];

    if (s->device->ops->memory_info) {
        int status = check_gpu(s, hbm, need_hbm, held_hbm, err);

        if (status < 0)
            return status;
        if (need_ram + gpu_overhead_bytes <= limit)
            return 0;
        return err_set(err, EINVAL,
                       "tier.ram.size %s and %s for the process are more than the %s it may use",
                       byte_size_format(ram, text[0], sizeof text[0]),
                       byte_size_format(gpu_overhead_bytes, text[1], sizeof text[1]),
                       byte_size_format(limit, text[2], sizeof text[2]));
    }
    uint64_t need = s->weight_bytes + kv_need(s) + need_hbm + need_ram + overhead_bytes;
    if (need <= limit)
        return 0;
    return err_set(err, EINVAL,
                   "weights %s + engine.kv_size %s + tier.hbm.size %s + tier.ram.size %s need %s, "
                   "but this process may use %s",
                   byte_size_format(s->weight_bytes, text[0], sizeof text[0]),
                   byte_size_format(s->conf->engine_kv_size, text[1], sizeof text[1]),
                   byte_size_format(hbm, text[2], sizeof text[2]),
                   byte_size_format(ram, text[3], sizeof text[3]),
                   byte_size_format(need, text[4], sizeof text[4]),
                   byte_size_format(limit, text[5], sizeof text[5]));
}

int
memory_check_start(const struct serving *s, struct err *err)
{
    uint64_t hbm = s->conf->tier_hbm_size, ram = s->conf->tier_ram_size;
    struct conf *built_in;
    int status = conf_new(&built_in, err);

    if (status < 0)
        return status;
    status = check(s, hbm, hbm == built_in->tier_hbm_size ? real_need(s, hbm) : hbm, ram,
                   ram == built_in->tier_ram_size ? real_need(s, ram) : ram, 0, err);
    conf_free(built_in);
    return status;
}

/* Within the bounds of the option? */
static int
check_option(const char *option, uint64_t bytes, struct err *err)
{
    char assignment[64];
    struct conf *scratch;
    int status = conf_new(&scratch, err);

    if (status < 0)
        return status;
    snprintf(assignment, sizeof assignment, "%s=%lluB", option, (unsigned long long)bytes);
    status = conf_set(scratch, assignment, err);
    conf_free(scratch);
    return status;
}

int
memory_check_resize(const struct serving *s, uint64_t hbm, uint64_t ram, struct err *err)
{
    bool asked_hbm = hbm != UINT64_MAX, asked_ram = ram != UINT64_MAX;
    struct tiers_stats stats;
    int status = asked_hbm ? check_option("tier.hbm.size", hbm, err) : 0;

    if (status == 0 && asked_ram)
        status = check_option("tier.ram.size", ram, err);
    if (status < 0)
        return status;
    resolver_stats(s->resolver, &stats);
    if (!asked_hbm)
        hbm = stats.tier[TIER_HBM].budget_bytes;
    if (!asked_ram)
        ram = stats.tier[TIER_RAM].budget_bytes;
    return check(s, hbm, asked_hbm ? hbm : real_need(s, hbm), ram,
                 asked_ram ? ram : real_need(s, ram),
                 s->weight_bytes + kv_need(s) + step_need(s) + stats.tier[TIER_HBM].used_bytes, err);
}
