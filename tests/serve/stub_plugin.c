/* stub_plugin: what daemon/cuda_plugin.c loads, without a GPU: the CPU backend behind the plugin's
 * exports, with memory that the host is not to write and a driver that says what the test wants to hear.
 * From the environment:
 *
 *   STUB_GPUS       how many there are (1); -1: there is no driver
 *   STUB_MEMORY     free bytes of the device
 *   STUB_WARM_UP    what warm_up returns: how much was chosen, or an error; not set: the device has none
 *   STUB_FAIL_STEP  the step with which the device begins to fail, for good
 *   STUB_FAIL_FILE  so does it with the first step or probe after this file was made
 *   STUB_FAIL_HOW   launch: the step or probe is refused; silent: it is taken, and that the device is lost
 *                   is heard from then on; hang: it is taken and never ends, and who frees memory, closes
 *                   the device or synchronises waits for ever  */
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gpu/cuda/plugin.h"
#include "gpu/host/host_device.h"

const int engram_cuda_abi = ENGRAM_CUDA_ABI;

static struct device_ops ops;
static const struct device_ops *below;
static uint64_t fail_step = UINT64_MAX;
static const char *fail_file;
static bool refuse, hang;
static atomic_bool lost, stepped;

static uint64_t
number(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);

    return text ? strtoull(text, NULL, 10) : otherwise;
}

static int
memory_info(struct device *device, uint64_t *ret_free_bytes, uint64_t *ret_total_bytes)
{
    *ret_free_bytes = *ret_total_bytes = number("STUB_MEMORY", (uint64_t)64 << 30);
    return 0;
}

static bool
is_lost(uint64_t step)
{
    if (step >= fail_step || (fail_file && access(fail_file, F_OK) == 0))
        atomic_store(&lost, true);
    return atomic_load(&lost);
}

static void
wait_for_device(void)
{
    while (hang && atomic_load(&lost))
        (void)pause();
}

static int
begin_step(struct device *device, const struct forward_step *step, struct step_view *ret_view,
           struct stream *stream)
{
    atomic_store(&stepped, true);
    if (!is_lost(step->step))
        return below->begin_step(device, step, ret_view, stream);
    return refuse ? -EIO : STEP_REPLAYED;
}

/* With everything there that a product reads or writes, and before the first step. */
static int
warm_up(struct device *device, const struct step_products *p, struct stream *stream)
{
    bool there = p->qkv.q.data && p->qkv.k.data && p->qkv.v.data && p->o.data &&
                 p->feed_forward.gate.data && p->feed_forward.up.data &&
                 p->feed_forward.down.data && p->engram[0].w.data && p->engram[0].out &&
                 p->engram[1].w.data && p->engram[1].out && p->head.data && p->attended &&
                 p->rows && p->x && p->logits && p->logit_rows > 0;

    return there && !atomic_load(&stepped) ? atoi(getenv("STUB_WARM_UP")) : -EINVAL;
}

static int
probe(struct device *device, struct stream *stream)
{
    return is_lost(0) && refuse ? -EIO : 0;
}

static int
poll_device(struct device *device, struct stream *stream)
{
    if (!atomic_load(&lost))
        return below->poll(device, stream);
    return hang ? 0 : -EIO;
}

static int
synchronize(struct device *device, struct stream *stream)
{
    wait_for_device();
    return atomic_load(&lost) ? -EIO : below->synchronize(device, stream);
}

static void
free_memory(struct device *device, void *memory, size_t size_bytes)
{
    wait_for_device();
    below->free(device, memory, size_bytes);
}

static struct device *
close_device(struct device *device)
{
    wait_for_device();
    return below->close(device);
}

int
engram_cuda_count(struct err *err)
{
    const char *text = getenv("STUB_GPUS");
    int n = text ? atoi(text) : 1;

    return n < 0 ? err_set(err, ENODEV, "the driver cannot be used: it is a stub") : n;
}

int
engram_cuda_open(struct device **ret_device, int ordinal, struct err *err)
{
    struct host_device_options options = {.n_threads = 1};
    const char *how = getenv("STUB_FAIL_HOW");
    int n = engram_cuda_count(err);

    if (n < 0)
        return n;
    if (ordinal >= n)
        return err_set(err, ENODEV, "looked for GPU %d, found %d", ordinal, n);
    int status = host_device_open(ret_device, &options, err);
    if (status < 0)
        return status;
    below = (*ret_device)->ops;
    ops = *below;
    ops.name = "stub";
    ops.host_addressable = false;
    ops.memory_info = memory_info;
    ops.begin_step = begin_step;
    ops.warm_up = getenv("STUB_WARM_UP") ? warm_up : NULL;
    ops.poll = poll_device;
    ops.probe = probe;
    ops.synchronize = synchronize;
    ops.free = ops.free_shared = free_memory;
    ops.close = close_device;
    (*ret_device)->ops = &ops;
    fail_step = number("STUB_FAIL_STEP", UINT64_MAX);
    fail_file = getenv("STUB_FAIL_FILE");
    refuse = how && strcmp(how, "launch") == 0;
    hang = how && strcmp(how, "hang") == 0;
    return 0;
}

const char *
engram_cuda_describe(const struct device *device)
{
    return "stub";
}
