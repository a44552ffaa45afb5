#include "daemon/memory_check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/byte_size.h"

/* Stacks, tokenizer, buffers: what the process takes besides. */
static const uint64_t overhead_bytes = 64ull << 20;

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

/* A budget beyond the tables is never filled: bundles plus their index stay under twice the tables.
 */
static uint64_t
real_need(const struct serving *s, uint64_t budget)
{
    return budget < 2 * s->table_bytes ? budget : 2 * s->table_bytes;
}

static int
check(const struct serving *s, uint64_t hbm, uint64_t ram, struct err *err)
{
    uint64_t limit = memory_limit_bytes();
    uint64_t need = s->weight_bytes + s->conf->engine_kv_size + real_need(s, hbm) +
                    real_need(s, ram) + overhead_bytes;
    char text[6][32];

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
    return check(s, s->conf->tier_hbm_size, s->conf->tier_ram_size, err);
}

int
memory_check_resize(const struct serving *s, uint64_t hbm, uint64_t ram, struct err *err)
{
    struct tiers_stats stats;

    resolver_stats(s->resolver, &stats);
    return check(s, hbm == UINT64_MAX ? stats.tier[TIER_HBM].budget_bytes : hbm,
                 ram == UINT64_MAX ? stats.tier[TIER_RAM].budget_bytes : ram, err);
}
