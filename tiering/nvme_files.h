/* nvme_files: opening the files that hold tables, and how they may be read.
 * Thread: whoever opens the store. */
#ifndef TIERING_NVME_FILES_H
#define TIERING_NVME_FILES_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "tiering/cold_store.h"

struct nvme_files {
    int n;
    int *fd;              /* [n] */
    uint64_t *size_bytes; /* [n] */
    int n_direct;         /* files opened with O_DIRECT */
    uint32_t page_bytes;  /* unit of reads: 4096, more where a file system asks for it */
};

/* -EINVAL: not a regular file, or of another size than stated. */
int nvme_files_open(struct nvme_files *ret_files, const struct nvme_file *files, int n, bool direct,
                    struct err *err);
void nvme_files_close(struct nvme_files *files);

#endif
