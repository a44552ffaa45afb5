/* cpu_count: how many CPUs this process may use: its affinity, and in a container the quota of its
 * cgroup (rounded up), which bounds the time it gets however many CPUs it sees. At least 1. */
#ifndef BASE_CPU_COUNT_H
#define BASE_CPU_COUNT_H

int cpu_count(void);

/* The quota in whole CPUs of the cgroup v2 that self (the text of /proc/self/cgroup) names below
 * root
 * (/sys/fs/cgroup), its parents' included; 0 when there is none. Apart, so that it can be tested.
 */
int cpu_count_quota(const char *root, const char *self);

#endif
