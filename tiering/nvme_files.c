/* nvme_files: see nvme_files.h.
 *
 * O_DIRECT is a wish: some file systems refuse it at open (overlay on tmpfs), some at the first
 * read, some only for the last, partial page. So a file counts as direct only after its first and
 * its last page were really read that way; otherwise it is opened again without. The read unit is 4
 * KiB even where 512 B would be allowed: a disk does as many of one as of the other per second, and
 * rows that share a page share the read. */
#include "tiering/nvme_files.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/check.h"

enum { PAGE_BYTES = 4096, PAGE_BYTES_MAX = 65536, N_FILES_MAX = 1 << 15 };

/* Alignment direct reads of this file need; 0: it does not do them, or asks too much. */
static uint32_t
direct_alignment(int fd)
{
#ifdef STATX_DIOALIGN
    struct statx info;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &info) == 0 &&
        (info.stx_mask & STATX_DIOALIGN)) {
        uint32_t offset = info.stx_dio_offset_align, memory = info.stx_dio_mem_align;
        if (offset == 0 || offset > PAGE_BYTES_MAX || (offset & (offset - 1)) ||
            memory > PAGE_BYTES)
            return 0;
        return offset < PAGE_BYTES ? PAGE_BYTES : offset;
    }
#endif
    return PAGE_BYTES;
}

/* Whether the page that begins at offset can be read through fd as far as the file goes. */
static bool
page_reads(int fd, void *buffer, uint32_t page_bytes, uint64_t offset, uint64_t size)
{
    ssize_t got = pread(fd, buffer, page_bytes, (off_t)offset);
    uint64_t want = size - offset < page_bytes ? size - offset : page_bytes;
    /* Any other failure is the disk's and is reported by the reads that meet it. */
    return got < 0 ? errno != EINVAL && errno != EOPNOTSUPP : (uint64_t)got >= want;
}

static bool
direct_works(int fd, uint64_t size, uint32_t *ret_page_bytes)
{
    uint32_t page_bytes = direct_alignment(fd);
    if (page_bytes == 0)
        return false;
    void *buffer = NULL;
    if (posix_memalign(&buffer, page_bytes, page_bytes) != 0)
        return false;
    uint64_t last = size ? (size - 1) / page_bytes * page_bytes : 0;
    bool works = page_reads(fd, buffer, page_bytes, 0, size) &&
                 (last == 0 || page_reads(fd, buffer, page_bytes, last, size));
    free(buffer);
    if (works)
        *ret_page_bytes = page_bytes;
    return works;
}

static int
check_file(int fd, const struct nvme_file *file, struct err *err)
{
    struct stat info;
    if (fstat(fd, &info) < 0)
        return err_errno(err, errno, "%s", file->path);
    if (!S_ISREG(info.st_mode))
        return err_set(err, EINVAL, "%s: not a regular file", file->path);
    if ((uint64_t)info.st_size != file->size_bytes)
        return err_set(err, EINVAL, "%s: has %llu bytes, expected %llu", file->path,
                       (unsigned long long)info.st_size, (unsigned long long)file->size_bytes);
    return 0;
}

static int
open_one(struct nvme_files *files, int i, const struct nvme_file *file, bool direct,
         struct err *err)
{
    /* Looked at before it is opened, because opening a FIFO would wait for a writer. */
    struct stat info;
    if (stat(file->path, &info) < 0)
        return err_errno(err, errno, "%s", file->path);
    if (!S_ISREG(info.st_mode))
        return err_set(err, EINVAL, "%s: not a regular file", file->path);

    uint32_t page_bytes = PAGE_BYTES;
    int fd = direct ? open(file->path, O_RDONLY | O_CLOEXEC | O_DIRECT) : -1;
    if (fd >= 0) {
        if (direct_works(fd, (uint64_t)info.st_size, &page_bytes)) {
            files->n_direct++;
        } else {
            (void)close(fd);
            fd = -1;
        }
    }
    if (fd < 0) {
        fd = open(file->path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            return err_errno(err, errno, "%s", file->path);
        /* Rows are scattered: the kernel's read-ahead would fetch pages nobody asked for. */
        (void)posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
    }
    files->fd[i] = fd;
    files->size_bytes[i] = file->size_bytes;
    if (page_bytes > files->page_bytes)
        files->page_bytes = page_bytes;
    return check_file(fd, file, err);
}

int
nvme_files_open(struct nvme_files *ret_files, const struct nvme_file *files, int n, bool direct,
                struct err *err)
{
    if (n < 1 || n > N_FILES_MAX)
        return err_set(err, EINVAL, "%d table files: expected 1 to %d", n, N_FILES_MAX);
    struct nvme_files opened = {.n = n, .page_bytes = PAGE_BYTES};
    opened.fd = calloc((size_t)n, sizeof *opened.fd);
    opened.size_bytes = calloc((size_t)n, sizeof *opened.size_bytes);
    int code = 0;
    if (!opened.fd || !opened.size_bytes)
        code = err_set(err, ENOMEM, "no memory for the list of table files");
    for (int i = 0; opened.fd && i < n; i++)
        opened.fd[i] = -1;
    for (int i = 0; code == 0 && i < n; i++)
        code = open_one(&opened, i, &files[i], direct, err);
    if (code < 0) {
        nvme_files_close(&opened);
        return code;
    }
    *ret_files = opened;
    return 0;
}

void
nvme_files_close(struct nvme_files *files)
{
    for (int i = 0; files->fd && i < files->n; i++)
        if (files->fd[i] >= 0)
            (void)close(files->fd[i]);
    free(files->fd);
    free(files->size_bytes);
    *files = (struct nvme_files){0};
}
