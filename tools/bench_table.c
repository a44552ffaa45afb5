#include "tools/bench_table.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/pool.h"

enum { PIECE = 8 << 20 };

/* One pass over the table by all CPUs. */
struct pass {
    struct bench_table *table;
    int fd;
    int error;
};

static void
run_pass(struct pass *pass, pool_fn fn, const char *what)
{
    struct pool *pool;
    struct err err = ERR_INIT;

    if (pool_new(&pool, 0, &err) < 0)
        bench_fail(what, &err);
    pool_run(pool, fn, pass);
    pool_free(pool);
    if (pass->error) {
        (void)err_errno(&err, pass->error, "%s", what);
        bench_fail("the table", &err);
    }
}

static void
slice(const struct pass *pass, int part, int n_parts, long *ret_begin, long *ret_end)
{
    pool_slice((long)pass->table->size_bytes, PIECE, part, n_parts, ret_begin, ret_end);
}

/* Bytes that are no NaN as E4M3, neither 0x7f nor 0xff; two of them as BF16 are smaller than 2. */
static void
fill_part(void *arg, int part, int n_parts)
{
    struct pass *pass = arg;
    uint64_t *out = pass->table->host, x = (uint64_t)part * 0x9e3779b97f4a7c15u + 1;
    long begin, end;

    slice(pass, part, n_parts, &begin, &end);
    for (long i = begin / 8; i < end / 8; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        out[i] = x & 0xbfbfbfbfbfbfbfbfu;
    }
}

static void
write_part(void *arg, int part, int n_parts)
{
    struct pass *pass = arg;
    const char *from = pass->table->host;
    long begin, end;

    slice(pass, part, n_parts, &begin, &end);
    for (long at = begin; at < end;) {
        size_t n = (size_t)(end - at < PIECE ? end - at : PIECE);
        ssize_t done = pwrite(pass->fd, from + at, n, at);

        if (done <= 0) {
            pass->error = done < 0 ? errno : ENOSPC;
            return;
        }
        at += done;
    }
}

void
bench_table_open(struct bench_table *t, struct device *device, const struct engram_shape *engram)
{
    struct pass pass = {.table = t};

    /* Whole pages, so that the file can be written past the page cache. */
    *t = (struct bench_table){
        .device = device,
        .size_bytes = ((uint64_t)engram->table[0].rows * (uint64_t)engram_row_weight_bytes(engram) +
                       4095) /
                      4096 * 4096,
    };
    t->host = device->ops->alloc_shared(device, t->size_bytes);
    if (t->host == NULL) {
        fprintf(stderr, "engram-bench: no memory for a table of %.1f GB\n",
                (double)t->size_bytes * 1e-9);
        exit(1);
    }
    run_pass(&pass, fill_part, "filling it");
}

void
bench_table_to_device(struct bench_table *t)
{
    const struct device_ops *ops = t->device->ops;

    if (t->on_device)
        return;
    t->on_device = ops->alloc(t->device, t->size_bytes);
    if (t->on_device == NULL ||
        ops->upload(t->device, t->on_device, t->host, t->size_bytes) < 0) {
        fprintf(stderr, "engram-bench: a table of %.1f GB does not fit the device\n",
                (double)t->size_bytes * 1e-9);
        exit(1);
    }
}

void
bench_table_drop_device(struct bench_table *t)
{
    if (t->on_device)
        t->device->ops->free(t->device, t->on_device, t->size_bytes);
    t->on_device = NULL;
}

void
bench_table_to_file(struct bench_table *t, const char *path)
{
    struct pass pass = {.table = t};
    struct stat status;

    if (t->path)
        return;
    t->path = strdup(path);
    if (stat(path, &status) == 0 && (uint64_t)status.st_size == t->size_bytes)
        return;
    bool aligned = (uintptr_t)t->host % 4096 == 0;
    pass.fd = aligned ? open(path, O_CREAT | O_WRONLY | O_DIRECT | O_CLOEXEC, 0644) : -1;
    if (!aligned || (pass.fd < 0 && errno == EINVAL)) /* or a file system without O_DIRECT */
        pass.fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
    if (pass.fd < 0 || ftruncate(pass.fd, (off_t)t->size_bytes) < 0) {
        fprintf(stderr, "engram-bench: %s: %s\n", path, strerror(errno));
        exit(1);
    }
    run_pass(&pass, write_part, "writing it");
    (void)fsync(pass.fd);
    close(pass.fd);
}

void
bench_table_close(struct bench_table *t)
{
    bench_table_drop_device(t);
    if (t->host)
        t->device->ops->free_shared(t->device, t->host, t->size_bytes);
    free(t->path);
    *t = (struct bench_table){0};
}
