/* cpu_count: see cpu_count.h. */
#include "base/cpu_count.h"

#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CPU_COUNT_PATH_BYTES = 4096, CPU_COUNT_MOST = 65536, CPU_COUNT_MOST_PERIOD_US = 1000000 };

/* cpu.max of one group: "max 100000" or "quota period" in microseconds. 0 when there is no quota.
 */
static int
quota_of_group(const char *folder)
{
    char path[CPU_COUNT_PATH_BYTES + 16];
    unsigned long long quota, period;
    (void)snprintf(path, sizeof path, "%s/cpu.max", folder);
    FILE *file = fopen(path, "re");
    if (!file)
        return 0;
    int fields = fscanf(file, "%19llu %19llu", &quota, &period);
    (void)fclose(file);
    if (fields != 2 || quota == 0 || period == 0 || period > CPU_COUNT_MOST_PERIOD_US ||
        quota / period >= CPU_COUNT_MOST)
        return 0;
    return (int)((quota + period - 1) / period);
}

int
cpu_count_quota(const char *root, const char *self)
{
    char folder[CPU_COUNT_PATH_BYTES];
    int least = 0;
    /* One line per hierarchy; that of version 2 has number 0 and no controllers. */
    while (strncmp(self, "0::/", 4) != 0) {
        self = strchr(self, '\n');
        if (!self)
            return 0;
        self++;
    }
    size_t root_bytes = strlen(root);
    int path_bytes = (int)strcspn(self + 3, "\n");
    if (snprintf(folder, sizeof folder, "%s%.*s", root, path_bytes, self + 3) >= (int)sizeof folder)
        return 0;
    for (;;) {
        int quota = quota_of_group(folder);
        if (quota && (!least || quota < least))
            least = quota;
        char *slash = strrchr(folder, '/');
        if (!slash || (size_t)(slash - folder) < root_bytes)
            return least;
        *slash = '\0';
    }
}

static int
cpus_allowed(void)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0)
        return CPU_COUNT(&set);
    long online = sysconf(_SC_NPROCESSORS_ONLN); /* more CPUs than the set has room for */
    return online > 0 && online <= CPU_COUNT_MOST ? (int)online : 1;
}

int
cpu_count(void)
{
    char self[CPU_COUNT_PATH_BYTES];
    int cpus = cpus_allowed(), quota = 0;
    FILE *file = fopen("/proc/self/cgroup", "re");
    if (file) {
        self[fread(self, 1, sizeof self - 1, file)] = '\0';
        (void)fclose(file);
        quota = cpu_count_quota("/sys/fs/cgroup", self);
    }
    return quota && quota < cpus ? quota : cpus;
}
