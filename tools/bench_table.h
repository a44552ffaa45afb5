/* bench_table: an Engram table of random bytes, in host memory and, as copies, where a placement
 * wants it. */
#ifndef TOOLS_BENCH_TABLE_H
#define TOOLS_BENCH_TABLE_H

#include "tools/bench.h"

struct bench_table {
    struct device *device;
    uint64_t size_bytes;
    void *host;    /* shared memory */
    void *on_device; /* NULL until asked for */
    char *path;    /* NULL until asked for */
};

/* Exits on failure. */
void bench_table_open(struct bench_table *table, struct device *device,
                      const struct engram_shape *engram);
void bench_table_to_device(struct bench_table *table);
void bench_table_drop_device(struct bench_table *table);
/* Writes the file unless it is there in this size. */
void bench_table_to_file(struct bench_table *table, const char *path);
void bench_table_close(struct bench_table *table);

#endif
