/* nvme_ring: the device side of the NVMe store: page buffers and reads into them.
 *
 * io_uring with registered files and buffers where the kernel grants them, each given up by itself
 * where it does not; one pread at a time where there is no io_uring at all
 * (kernel.io_uring_disabled, seccomp of containers, kernels before 5.6). Thread: ring, for
 * everything (io_uring is told that there is a single issuer). Another thread wakes it from
 * nvme_ring_wait by writing to wake_fd, an eventfd.                                           */
#ifndef TIERING_NVME_RING_H
#define TIERING_NVME_RING_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct nvme_ring;

struct nvme_done {
    int slot;
    int result; /* bytes read, or -errno */
};

/* fds are borrowed. use_uring false: pread, for tests. */
int nvme_ring_open(struct nvme_ring **ret_ring, const int *fds, int n_fds, int depth,
                   uint32_t buffer_bytes, int wake_fd, bool use_uring, struct err *err);
struct nvme_ring *nvme_ring_close(struct nvme_ring *ring); /* nothing in flight; accepts NULL */

/* Slots that can be in flight at a time: depth, or 1 without io_uring. */
int nvme_ring_depth(const struct nvme_ring *ring);
void *nvme_ring_buffer(const struct nvme_ring *ring, int slot); /* [buffer_bytes], page-aligned */
/* Queues a read into the slot's buffer; offset and size are the device's multiples. */
void nvme_ring_read(struct nvme_ring *ring, int slot, int file, uint64_t offset_bytes,
                    uint32_t size_bytes);
/* Submits what is queued; with `block`, returns once a read is done or wake_fd was written. */
void nvme_ring_wait(struct nvme_ring *ring, bool block);
/* Finished reads, up to max; does not block. */
int nvme_ring_reap(struct nvme_ring *ring, struct nvme_done *ret_done, int max);
/* "io_uring, registered files, registered buffers" and what it lacks. */
const char *nvme_ring_describe(const struct nvme_ring *ring);

#endif
