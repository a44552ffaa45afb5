/* nvme_ring: see nvme_ring.h. */
#include "tiering/nvme_ring.h"

#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/check.h"

enum { WAKE_TAG = 0 }; /* user_data of the read of wake_fd; slots are tagged slot + 1 */

struct nvme_ring {
    bool uring_open, fixed_files, fixed_buffers;
    struct io_uring uring;
    bool wake_armed;
    uint64_t wake_count; /* what the read of wake_fd delivers */
    int wake_fd;

    int depth;
    const int *fds; /* owned copy */
    uint8_t *buffers;
    size_t buffers_bytes;
    uint32_t buffer_bytes;

    struct nvme_done ready; /* without io_uring: the read that was just done; slot -1: none */
    char describe[160];
};

static int
open_uring(struct nvme_ring *ring, int depth)
{
    /* Completions are then handled in this thread's own waits, without interrupting it (6.1 on).
     * Older kernels refuse the flags and get a plain ring. */
    struct io_uring_params params = {0};
    unsigned entries = (unsigned)depth + 1;
    params.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN;
    int code = io_uring_queue_init_params(entries, &ring->uring, &params);
    if (code == -EINVAL) {
        params = (struct io_uring_params){0};
        code = io_uring_queue_init_params(entries, &ring->uring, &params);
    }
    if (code < 0)
        return code;
    struct io_uring_probe *probe = io_uring_get_probe_ring(&ring->uring);
    bool enough = probe && io_uring_opcode_supported(probe, IORING_OP_READ);
    io_uring_free_probe(probe);
    if (!enough) {
        io_uring_queue_exit(&ring->uring);
        return -ENOSYS;
    }
    return 0;
}

static void
register_all(struct nvme_ring *ring, int n_fds)
{
    ring->fixed_files = io_uring_register_files(&ring->uring, ring->fds, (unsigned)n_fds) == 0;
    struct iovec *iov = calloc((size_t)ring->depth, sizeof *iov);
    if (iov) {
        for (int i = 0; i < ring->depth; i++) {
            iov[i].iov_base = nvme_ring_buffer(ring, i);
            iov[i].iov_len = ring->buffer_bytes;
        }
        ring->fixed_buffers =
            io_uring_register_buffers(&ring->uring, iov, (unsigned)ring->depth) == 0;
        free(iov);
    }
}

int
nvme_ring_open(struct nvme_ring **ret_ring, const int *fds, int n_fds, int depth,
               uint32_t buffer_bytes, int wake_fd, bool use_uring, struct err *err)
{
    ASSERT(depth > 0 && n_fds > 0 && buffer_bytes > 0);
    struct nvme_ring *ring = calloc(1, sizeof *ring);
    int *copy = calloc((size_t)n_fds, sizeof *copy);
    if (!ring || !copy) {
        free(ring);
        free(copy);
        return err_set(err, ENOMEM, "no memory for the NVMe store");
    }
    memcpy(copy, fds, (size_t)n_fds * sizeof *copy);
    ring->fds = copy;
    ring->wake_fd = wake_fd;
    ring->buffer_bytes = buffer_bytes;
    ring->ready.slot = -1;

    int code = use_uring ? open_uring(ring, depth) : -ENOSYS;
    ring->uring_open = code == 0;
    ring->depth = ring->uring_open ? depth : 1;
    ring->buffers_bytes = (size_t)ring->depth * buffer_bytes;
    ring->buffers =
        mmap(NULL, ring->buffers_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (ring->buffers == MAP_FAILED) {
        ring->buffers = NULL;
        (void)nvme_ring_close(ring);
        return err_set(err, ENOMEM, "no memory for %d page buffers of the NVMe store", depth);
    }
    if (ring->uring_open) {
        register_all(ring, n_fds);
        (void)snprintf(ring->describe, sizeof ring->describe, "io_uring, %s files, %s buffers",
                       ring->fixed_files ? "registered" : "unregistered",
                       ring->fixed_buffers ? "registered" : "unregistered");
    } else {
        (void)snprintf(ring->describe, sizeof ring->describe,
                       "pread one at a time (io_uring refused: %s)", strerror(-code));
    }
    *ret_ring = ring;
    return 0;
}

struct nvme_ring *
nvme_ring_close(struct nvme_ring *ring)
{
    if (!ring)
        return NULL;
    if (ring->uring_open)
        io_uring_queue_exit(&ring->uring);
    if (ring->buffers)
        (void)munmap(ring->buffers, ring->buffers_bytes);
    free((void *)ring->fds);
    free(ring);
    return NULL;
}

int
nvme_ring_depth(const struct nvme_ring *ring)
{
    return ring->depth;
}

void *
nvme_ring_buffer(const struct nvme_ring *ring, int slot)
{
    return ring->buffers + (size_t)slot * ring->buffer_bytes;
}

const char *
nvme_ring_describe(const struct nvme_ring *ring)
{
    return ring->describe;
}

void
nvme_ring_read(struct nvme_ring *ring, int slot, int file, uint64_t offset_bytes,
               uint32_t size_bytes)
{
    ASSERT(slot >= 0 && slot < ring->depth && size_bytes <= ring->buffer_bytes);
    void *buffer = nvme_ring_buffer(ring, slot);
    if (!ring->uring_open) {
        ASSERT(ring->ready.slot < 0);
        ssize_t got = pread(ring->fds[file], buffer, size_bytes, (off_t)offset_bytes);
        ring->ready = (struct nvme_done){slot, got < 0 ? -errno : (int)got};
        return;
    }
    /* One entry for each slot and one for wake_fd, so there is always a free one. */
    struct io_uring_sqe *sqe = io_uring_get_sqe(&ring->uring);
    ASSERT(sqe);
    int fd = ring->fixed_files ? file : ring->fds[file];
    if (ring->fixed_buffers)
        io_uring_prep_read_fixed(sqe, fd, buffer, size_bytes, offset_bytes, slot);
    else
        io_uring_prep_read(sqe, fd, buffer, size_bytes, offset_bytes);
    if (ring->fixed_files)
        sqe->flags |= IOSQE_FIXED_FILE;
    io_uring_sqe_set_data64(sqe, (uint64_t)slot + 1);
}

static void
wait_without_uring(struct nvme_ring *ring, bool block)
{
    uint64_t count;
    if (block && ring->ready.slot < 0)
        (void)!read(ring->wake_fd, &count, sizeof count);
}

void
nvme_ring_wait(struct nvme_ring *ring, bool block)
{
    if (!ring->uring_open) {
        wait_without_uring(ring, block);
        return;
    }
    if (block && !ring->wake_armed) {
        struct io_uring_sqe *sqe = io_uring_get_sqe(&ring->uring);
        ASSERT(sqe);
        io_uring_prep_read(sqe, ring->wake_fd, &ring->wake_count, sizeof ring->wake_count, 0);
        io_uring_sqe_set_data64(sqe, WAKE_TAG);
        ring->wake_armed = true;
    }
    int code = block ? io_uring_submit_and_wait(&ring->uring, 1) : io_uring_submit(&ring->uring);
    /* Interrupted, or the kernel is short of something (-EAGAIN, -EBUSY, -ENOMEM): entries stay
     * queued and the caller comes round again after reaping. Without anything to reap that would
     * spin. */
    if (code < 0 && code != -EINTR && io_uring_cq_ready(&ring->uring) == 0) {
        struct timespec pause = {.tv_nsec = 200000};
        (void)nanosleep(&pause, NULL);
    }
}

int
nvme_ring_reap(struct nvme_ring *ring, struct nvme_done *ret_done, int max)
{
    if (!ring->uring_open) {
        if (ring->ready.slot < 0 || max < 1)
            return 0;
        ret_done[0] = ring->ready;
        ring->ready.slot = -1;
        return 1;
    }
    int n = 0;
    struct io_uring_cqe *cqe;
    while (n < max && io_uring_peek_cqe(&ring->uring, &cqe) == 0) {
        uint64_t tag = io_uring_cqe_get_data64(cqe);
        if (tag == WAKE_TAG)
            ring->wake_armed = false;
        else
            ret_done[n++] = (struct nvme_done){(int)(tag - 1), cqe->res};
        io_uring_cqe_seen(&ring->uring, cqe);
    }
    return n;
}
