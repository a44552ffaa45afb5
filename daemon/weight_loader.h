/* weight_loader: gets a checkpoint's weights onto the device with several threads at once.
 *
 * The tensors, in the order in which they lie in the files, are cut into pieces. The caller takes
 * device memory for one tensor after the other; the threads take the pieces of those that have
 * some, in order, so that the disk sees long reads, several at a time and almost sequential, and
 * load each through staging memory of their own.
 *
 * Reads go through the page cache and stay there, where memory is short the first to go: a second
 * daemon of the same model, or a restart, finds them. Refused: O_DIRECT, as tensors do not begin at
 * a block, so that the CPU would copy every byte all the same (docs/measurements.md); and
 * POSIX_FADV_SEQUENTIAL, with which threads that share a descriptor read more slowly than without:
 * each announces its piece instead.
 *
 * Thread: the caller's, which also makes every call of progress, and up to WEIGHT_LOADER_THREADS
 * that end before weight_loader_run returns. */
#ifndef DAEMON_WEIGHT_LOADER_H
#define DAEMON_WEIGHT_LOADER_H

#include "gpu/forward.h"
#include "model/tensor_plan.h"

/* Each thread has one piece under way: together what the disk is asked for at a time. */
enum { WEIGHT_LOADER_THREADS = 8, WEIGHT_LOADER_PIECE_BYTES = 8 << 20 };

/* Where the bytes come from; both are called by any thread. */
struct weight_source {
    int (*read)(void *arg, const struct tensor *tensor, uint64_t offset_bytes, void *dst,
                size_t size_bytes, struct err *err);
    /* These bytes will be read soon. NULL: nobody needs to know. */
    void (*will_read)(void *arg, const struct tensor *tensor, uint64_t offset_bytes,
                      uint64_t size_bytes);
    void *arg;
};

struct weight_loader_options {
    struct forward *forward;
    struct device *device;
    const struct tensor_use *uses;
    int n_uses;
    struct weight_source source;
    int n_threads;      /* 0, or none can be started: the caller loads alone */
    size_t piece_bytes; /* 0: WEIGHT_LOADER_PIECE_BYTES */
    /* Bytes loaded and in all: 0 of them first, all of them last, never fewer than before, and ten
     * times a second even when nothing moves. Negative: loading ends with that status. */
    int (*progress)(void *arg, uint64_t done_bytes, uint64_t total_bytes);
    void *progress_arg;
};

/* The first error, of whichever thread, ends all; err names the tensor. */
int weight_loader_run(const struct weight_loader_options *options, struct err *err);

#endif
