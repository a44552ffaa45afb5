/* checkpoint: the safetensors files of a model folder, single or sharded with an index.
 *
 * Opening reads and checks every header: offsets, dtypes, shapes, overlaps, holes, duplicate names,
 * file sizes. Nothing in a header is trusted. Files stay open (read-only) until checkpoint_close;
 * nothing is mapped. Thread: any for reading after open. */
#ifndef MODEL_CHECKPOINT_H
#define MODEL_CHECKPOINT_H

#include <stddef.h>
#include <stdint.h>

#include "base/dtype.h"
#include "base/err.h"

enum { TENSOR_MAX_RANK = 8 };

struct tensor {
    const char *name; /* owned by the checkpoint */
    enum dtype dtype;
    int rank;
    int64_t dim[TENSOR_MAX_RANK];
    int file;              /* index for checkpoint_file_* */
    uint64_t offset_bytes; /* from the start of the file */
    uint64_t size_bytes;
};

struct checkpoint;

/* -EBADMSG: a file that lies or is truncated; -ENOENT ...: as open(2). err names file and tensor.
 */
int checkpoint_open(struct checkpoint **ret_checkpoint, const char *folder, struct err *err);
struct checkpoint *checkpoint_close(struct checkpoint *checkpoint); /* accepts NULL, returns NULL */

int checkpoint_n_tensors(const struct checkpoint *checkpoint);
const struct tensor *checkpoint_tensor(const struct checkpoint *checkpoint,
                                       int i); /* sorted by name */
const struct tensor *checkpoint_find(const struct checkpoint *checkpoint, const char *name);
int checkpoint_n_files(const struct checkpoint *checkpoint);
const char *checkpoint_file_path(const struct checkpoint *checkpoint, int file);
int checkpoint_file_fd(const struct checkpoint *checkpoint, int file);
uint64_t checkpoint_file_size(const struct checkpoint *checkpoint, int file);
/* Reads size_bytes from offset within the tensor. -EIO on a short file. */
int checkpoint_read(const struct checkpoint *checkpoint, const struct tensor *tensor,
                    uint64_t offset_bytes, void *dst, size_t size_bytes, struct err *err);
/* Tells the kernel that these bytes will be read soon: it queues the reads and returns. Bytes that
 * are not there are not asked for. */
void checkpoint_will_read(const struct checkpoint *checkpoint, const struct tensor *tensor,
                          uint64_t offset_bytes, uint64_t size_bytes);

/* The header parser alone, for the fuzzer: text of file_size bytes in all, header first. */
int safetensors_check(const uint8_t *bytes, size_t size_bytes, uint64_t file_size, struct err *err);

#endif
