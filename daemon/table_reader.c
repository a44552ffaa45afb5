#include "daemon/table_reader.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/check.h"

struct table_reader {
    const struct checkpoint *checkpoint;
    int n_files;
    int fd[]; /* with O_DIRECT; -1: the file system has none */
};

int
table_reader_new(struct table_reader **ret_reader, const struct checkpoint *checkpoint, bool direct,
                 struct err *err)
{
    int n = checkpoint_n_files(checkpoint);
    struct table_reader *r = malloc(sizeof *r + (size_t)n * sizeof *r->fd);

    if (r == NULL)
        return err_set(err, ENOMEM, "no memory to read tables");
    r->checkpoint = checkpoint;
    r->n_files = n;
    for (int i = 0; i < n; i++) {
        char path[64]; /* the very file that is open, whatever has its name now */

        snprintf(path, sizeof path, "/proc/self/fd/%d", checkpoint_file_fd(checkpoint, i));
        r->fd[i] = direct ? open(path, O_RDONLY | O_CLOEXEC | O_DIRECT) : -1;
    }
    *ret_reader = r;
    return 0;
}

struct table_reader *
table_reader_free(struct table_reader *r)
{
    for (int i = 0; r && i < r->n_files; i++)
        if (r->fd[i] >= 0)
            close(r->fd[i]);
    free(r);
    return NULL;
}

/* True: the bytes are there. False: to be read in another way, which also names the error. */
static bool
read_direct(int fd, uint64_t at, void *dst, size_t size_bytes, uint8_t *buffer)
{
    uint64_t begin = at / TABLE_READER_ALIGN * TABLE_READER_ALIGN;
    size_t skip = (size_t)(at - begin), want = skip + size_bytes, done = 0;
    size_t whole = (want + TABLE_READER_ALIGN - 1) / TABLE_READER_ALIGN * TABLE_READER_ALIGN;

    while (done < want) {
        ssize_t n = pread(fd, buffer + done, whole - done, (off_t)(begin + done));

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        done += (size_t)n;
        if (done < want && done % TABLE_READER_ALIGN)
            return false; /* the file has become shorter */
    }
    memcpy(dst, buffer + skip, size_bytes);
    return true;
}

int
table_reader_read(struct table_reader *r, const struct tensor *tensor, uint64_t offset_bytes,
                  void *dst, size_t size_bytes, void *buffer, struct err *err)
{
    uint64_t at = tensor->offset_bytes + offset_bytes;

    ASSERT(size_bytes <= TABLE_READER_PIECE_BYTES);
    if (buffer && r->fd[tensor->file] >= 0 &&
        read_direct(r->fd[tensor->file], at, dst, size_bytes, buffer))
        return 0;
    int status = checkpoint_read(r->checkpoint, tensor, offset_bytes, dst, size_bytes, err);

    (void)posix_fadvise(checkpoint_file_fd(r->checkpoint, tensor->file), (off_t)at,
                        (off_t)size_bytes, POSIX_FADV_DONTNEED);
    return status;
}
