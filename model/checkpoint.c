#include "model/checkpoint.h"

#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/arena.h"
#include "base/check.h"
#include "model/safetensors.h"
#include "model/shard_index.h"

static const char single_name[] = "model.safetensors";
static const char index_name[] = "model.safetensors.index.json";

struct file {
    const char *path;
    int fd;
    uint64_t size_bytes;
    int n_tensors;
    struct tensor *tensors; /* by offset; moved into checkpoint->tensors when all files are read */
};

struct checkpoint {
    struct arena *arena; /* tensors of each file, names, paths */
    int n_files;
    struct file *files;
    int n_tensors;
    struct tensor *tensors; /* sorted by name */
};

/* Reads up to `size` bytes; fewer only at the end of the file. 0 or -errno. */
static int
read_at(int fd, void *dst, size_t size, uint64_t offset, size_t *ret_read)
{
    size_t have = 0;
    while (have < size) {
        ssize_t n = pread(fd, (char *)dst + have, size - have, (off_t)(offset + have));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            break;
        have += (size_t)n;
    }
    *ret_read = have;
    return 0;
}

static int
open_file(struct file *file, struct err *err)
{
    /* O_NONBLOCK so that a FIFO or a device does not hang the start; off again for the readers. */
    file->fd = open(file->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file->fd < 0)
        return err_errno(err, errno, "cannot open %s", file->path);
    struct stat st;
    if (fstat(file->fd, &st) < 0)
        return err_errno(err, errno, "cannot stat %s", file->path);
    if (!S_ISREG(st.st_mode))
        return err_set(err, EBADMSG, "%s is not a regular file", file->path);
    if (fcntl(file->fd, F_SETFL, 0) < 0)
        return err_errno(err, errno, "cannot set flags of %s", file->path);
    file->size_bytes = (uint64_t)st.st_size;
    return 0;
}

static void
free_bytes(uint8_t **bytes)
{
    free(*bytes);
}

static int
read_header(struct checkpoint *checkpoint, int number, struct err *err)
{
    struct file *file = &checkpoint->files[number];
    uint8_t prefix[SAFETENSORS_PREFIX_BYTES] = {0};
    size_t have = 0, size;
    int r = read_at(file->fd, prefix, sizeof prefix, 0, &have);
    if (r < 0)
        return err_errno(err, -r, "cannot read %s", file->path);
    r = safetensors_header_size(prefix, file->size_bytes, &size, err);
    if (r < 0) {
        (void)err_context(err, "%s", file->path);
        return r;
    }
    uint8_t *header __attribute__((cleanup(free_bytes))) = malloc(size);
    if (!header)
        return err_set(err, ENOMEM, "%s: out of memory", file->path);
    r = read_at(file->fd, header, size, sizeof prefix, &have);
    if (r < 0)
        return err_errno(err, -r, "cannot read %s", file->path);
    if (have != size)
        return err_set(err, EBADMSG, "%s shrank while it was read", file->path);
    r = safetensors_parse((const char *)header, size, file->size_bytes, number, checkpoint->arena,
                          &file->tensors, &file->n_tensors, err);
    if (r < 0)
        (void)err_context(err, "%s", file->path);
    return r;
}

static int
open_files(struct checkpoint *checkpoint, const char *folder, const struct shard_index *index,
           struct err *err)
{
    int n = index ? shard_index_n_shards(index) : 1;
    int64_t n_tensors = 0;
    checkpoint->files = arena_array(checkpoint->arena, (size_t)n, sizeof *checkpoint->files);
    if (!checkpoint->files)
        return err_set(err, ENOMEM, "%s: out of memory", folder);
    for (int i = 0; i < n; i++) {
        char path[PATH_MAX];
        struct file *file = &checkpoint->files[i];
        int length = snprintf(path, sizeof path, "%s/%s", folder,
                              index ? shard_index_shard(index, i) : single_name);
        if (length < 0 || (size_t)length >= sizeof path)
            return err_set(err, ENAMETOOLONG, "%s: path is too long", folder);
        file->path = arena_strndup(checkpoint->arena, path, (size_t)length);
        file->fd = -1;
        checkpoint->n_files = i + 1; /* from here on checkpoint_close closes it */
        if (!file->path)
            return err_set(err, ENOMEM, "%s: out of memory", folder);
        int r = open_file(file, err);
        if (r >= 0)
            r = read_header(checkpoint, i, err);
        if (r < 0)
            return r;
        n_tensors += file->n_tensors;
        if (n_tensors > SHARD_INDEX_MAX_TENSORS)
            return err_set(err, EBADMSG, "%s: more than %d tensors", folder,
                           SHARD_INDEX_MAX_TENSORS);
    }
    return 0;
}

static int
by_name(const void *left, const void *right)
{
    const struct tensor *a = left, *b = right;
    return strcmp(a->name, b->name);
}

/* One list of all files' tensors, sorted by name. Within a file names are distinct already. */
static int
merge_tensors(struct checkpoint *checkpoint, const char *folder, struct err *err)
{
    size_t count = 0;
    for (int i = 0; i < checkpoint->n_files; i++)
        count += (size_t)checkpoint->files[i].n_tensors;
    struct tensor *all = malloc((count ? count : 1) * sizeof *all);
    if (!all)
        return err_set(err, ENOMEM, "%s: out of memory", folder);
    checkpoint->tensors = all;
    for (int i = 0; i < checkpoint->n_files; i++) {
        struct file *file = &checkpoint->files[i];
        memcpy(all + checkpoint->n_tensors, file->tensors, (size_t)file->n_tensors * sizeof *all);
        checkpoint->n_tensors += file->n_tensors;
        file->tensors = NULL;
    }
    qsort(all, count, sizeof *all, by_name);
    for (int i = 1; i < checkpoint->n_tensors; i++) {
        if (strcmp(all[i - 1].name, all[i].name) == 0)
            return err_set(err, EBADMSG, "tensor %s is both in %s and in %s", all[i].name,
                           checkpoint->files[all[i - 1].file].path,
                           checkpoint->files[all[i].file].path);
    }
    return 0;
}

static int
is_in_checkpoint(void *arg, const char *tensor)
{
    return checkpoint_find(arg, tensor) != NULL;
}

/* Index and shards must agree both ways. */
static int
check_index(const struct checkpoint *checkpoint, const struct shard_index *index,
            const char *index_path, struct err *err)
{
    for (int i = 0; i < checkpoint->n_tensors; i++) {
        const struct tensor *tensor = &checkpoint->tensors[i];
        int shard = shard_index_find(index, tensor->name);
        if (shard < 0)
            return err_set(err, EBADMSG, "%s: tensor %s is not in %s",
                           checkpoint->files[tensor->file].path, tensor->name, index_path);
        if (shard != tensor->file)
            return err_set(err, EBADMSG, "%s: tensor %s is in %s, but the index says %s",
                           index_path, tensor->name, checkpoint->files[tensor->file].path,
                           shard_index_shard(index, shard));
    }
    if (shard_index_n_tensors(index) == checkpoint->n_tensors)
        return 0;
    const char *missing = shard_index_missing(index, is_in_checkpoint, (void *)checkpoint);
    ASSERT(missing);
    return err_set(err, EBADMSG, "%s: tensor %s is not in %s", index_path, missing,
                   shard_index_shard(index, shard_index_find(index, missing)));
}

static bool
exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 || errno != ENOENT;
}

static int
open_folder(struct checkpoint *checkpoint, const char *folder, struct err *err)
{
    char single[PATH_MAX], index_path[PATH_MAX];
    int length = snprintf(index_path, sizeof index_path, "%s/%s", folder, index_name);
    if (length < 0 || (size_t)length >= sizeof index_path)
        return err_set(err, ENAMETOOLONG, "%s: path is too long", folder);
    (void)snprintf(single, sizeof single, "%s/%s", folder, single_name);
    struct shard_index *index = NULL;
    if (exists(index_path)) {
        /* Which of the two was meant cannot be told, and they may hold different weights. */
        if (exists(single))
            return err_set(err, EBADMSG, "%s has both %s and %s; keep one", folder, single_name,
                           index_name);
        int r = shard_index_load(&index, index_path, err);
        if (r < 0)
            return r;
    }
    int r = open_files(checkpoint, folder, index, err);
    if (r >= 0)
        r = merge_tensors(checkpoint, folder, err);
    if (r >= 0 && index)
        r = check_index(checkpoint, index, index_path, err);
    (void)shard_index_free(index);
    return r;
}

int
checkpoint_open(struct checkpoint **ret_checkpoint, const char *folder, struct err *err)
{
    struct checkpoint *checkpoint = calloc(1, sizeof *checkpoint);
    if (!checkpoint)
        return err_set(err, ENOMEM, "%s: out of memory", folder);
    checkpoint->arena = arena_new(0); /* bounded by the limits on tensors and name lengths */
    int r = checkpoint->arena ? open_folder(checkpoint, folder, err)
                              : err_set(err, ENOMEM, "%s: out of memory", folder);
    if (r < 0) {
        (void)checkpoint_close(checkpoint);
        return r;
    }
    *ret_checkpoint = checkpoint;
    return 0;
}

struct checkpoint *
checkpoint_close(struct checkpoint *checkpoint)
{
    if (checkpoint) {
        for (int i = 0; i < checkpoint->n_files; i++) {
            if (checkpoint->files[i].fd >= 0)
                (void)close(checkpoint->files[i].fd);
        }
        free(checkpoint->tensors);
        (void)arena_free(checkpoint->arena);
        free(checkpoint);
    }
    return NULL;
}

int
checkpoint_n_tensors(const struct checkpoint *checkpoint)
{
    return checkpoint->n_tensors;
}

const struct tensor *
checkpoint_tensor(const struct checkpoint *checkpoint, int i)
{
    ASSERT(i >= 0 && i < checkpoint->n_tensors);
    return &checkpoint->tensors[i];
}

const struct tensor *
checkpoint_find(const struct checkpoint *checkpoint, const char *name)
{
    struct tensor key = {.name = name};
    return bsearch(&key, checkpoint->tensors, (size_t)checkpoint->n_tensors, sizeof key, by_name);
}

int
checkpoint_n_files(const struct checkpoint *checkpoint)
{
    return checkpoint->n_files;
}

static const struct file *
file_at(const struct checkpoint *checkpoint, int file)
{
    ASSERT(file >= 0 && file < checkpoint->n_files);
    return &checkpoint->files[file];
}

const char *
checkpoint_file_path(const struct checkpoint *checkpoint, int file)
{
    return file_at(checkpoint, file)->path;
}

int
checkpoint_file_fd(const struct checkpoint *checkpoint, int file)
{
    return file_at(checkpoint, file)->fd;
}

uint64_t
checkpoint_file_size(const struct checkpoint *checkpoint, int file)
{
    return file_at(checkpoint, file)->size_bytes;
}

int
checkpoint_read(const struct checkpoint *checkpoint, const struct tensor *tensor,
                uint64_t offset_bytes, void *dst, size_t size_bytes, struct err *err)
{
    const struct file *file = file_at(checkpoint, tensor->file);
    if (offset_bytes > tensor->size_bytes || size_bytes > tensor->size_bytes - offset_bytes)
        return err_set(err, EINVAL, "%s: tensor %s has %llu bytes, none at %llu + %zu", file->path,
                       tensor->name, (unsigned long long)tensor->size_bytes,
                       (unsigned long long)offset_bytes, size_bytes);
    size_t have = 0;
    int r = read_at(file->fd, dst, size_bytes, tensor->offset_bytes + offset_bytes, &have);
    if (r < 0)
        return err_errno(err, -r, "%s: cannot read tensor %s", file->path, tensor->name);
    if (have != size_bytes)
        return err_set(err, EIO, "%s: the file ends within tensor %s", file->path, tensor->name);
    return 0;
}

void
checkpoint_will_read(const struct checkpoint *checkpoint, const struct tensor *tensor,
                     uint64_t offset_bytes, uint64_t size_bytes)
{
    uint64_t rest = offset_bytes < tensor->size_bytes ? tensor->size_bytes - offset_bytes : 0;

    if (size_bytes > rest)
        size_bytes = rest;
    if (size_bytes) /* 0 would mean: to the end of the file */
        (void)posix_fadvise(file_at(checkpoint, tensor->file)->fd,
                            (off_t)(tensor->offset_bytes + offset_bytes), (off_t)size_bytes,
                            POSIX_FADV_WILLNEED);
}
