/* forward: the forward pass of the dense families with Engram layers, over any device.
 *
 * Owns the weights on the device, the KV cache, the Engram states and the scratch of a step, all
 * sized at creation; a step allocates nothing. Thread: engine (creation: any one thread; loading:
 * any threads, one or more, before the first step).        */
#ifndef GPU_FORWARD_H
#define GPU_FORWARD_H

#include "base/shape.h"
#include "base/tensor_role.h"
#include "gpu/device.h"

struct forward;

struct forward_limits {
    int max_rows;      /* rows of a step */
    int max_sequences; /* sequences of a step */
    int n_states;      /* Engram state slots */
    int kv_pages, page_tokens;
    int max_outputs;    /* sampled or scored rows of a step */
    int max_step_pages; /* entries of all page lists of a step; 0: max_sequences * kv_pages */
};

/* Bytes of weights, KV, states and scratch, the device's own included, this would take, before taking them. Weights as from a
 * BF16 checkpoint; matrices in F32 or F16 take twice as much. */
struct forward_sizes {
    uint64_t weight_bytes, kv_bytes, state_bytes, scratch_bytes;
};
void forward_sizes(const struct device *device, const struct model_shape *shape,
                   const struct forward_limits *limits, struct forward_sizes *ret_sizes);

int forward_new(struct forward **ret_forward, struct device *device,
                const struct model_shape *shape, const struct forward_limits *limits,
                struct err *err);                      /* -ENOMEM, -EINVAL */
struct forward *forward_free(struct forward *forward); /* accepts NULL, returns NULL */

/* Loads one tensor: read(arg, offset_bytes, dst, size_bytes, err) delivers its bytes, which arrive
 * as dtype and are kept so (F16 is widened to F32); a device with bf16_matrices keeps every matrix
 * as BF16. Norm weights, biases and convolution weights are kept as F32. Different weights may be
 * loaded by different threads at a time. */
typedef int (*forward_read_fn)(void *arg, uint64_t offset_bytes, void *dst, size_t size_bytes,
                               struct err *err);
int forward_load(struct forward *forward, enum tensor_role role, int layer, enum dtype dtype,
                 int64_t n_elements, forward_read_fn read, void *arg, struct err *err);

/* The same in parts. begin takes the weight's device memory, then any threads load its parts, each
 * element once, then end puts it in its place, or, not loaded, gives the memory back: the
 * loading is over either way. begin and end of different weights may run in different threads. */
struct forward_loading {
    enum tensor_role role;
    int layer;
    enum dtype dtype; /* as it comes */
    int64_t n_elements;
    bool whole;           /* it takes one part only */
    struct weight weight; /* where it goes, and as what */
};
/* One thread's memory to read and convert in, where the device cannot be read into; kept from part
 * to part, of alloc_shared so that uploads run at the link's rate. NULL: taken for each part. */
enum { FORWARD_STAGING_BYTES = 8 << 20 };
struct forward_staging {
    void *memory;
    size_t size_bytes; /* 1 KiB at least */
};
int forward_load_begin(struct forward *forward, enum tensor_role role, int layer, enum dtype dtype,
                       int64_t n_elements, struct forward_loading *ret_loading, struct err *err);
int forward_load_part(struct forward *forward, const struct forward_loading *loading, int64_t first,
                      int64_t n, const struct forward_staging *staging, forward_read_fn read,
                      void *arg, struct err *err);
void forward_load_end(struct forward *forward, struct forward_loading *loading, bool loaded);

/* In place of loading: values of a random model, the same for a seed on one device, of this mean and
 * deviation. For benchmarks. */
int forward_fill(struct forward *forward, enum tensor_role role, int layer, uint64_t seed,
                 float mean, float deviation, struct err *err);
/* Every weight of a random model: norms 1, all else of mean 0 and deviation 0.02;
 * a device that can (fill_random) fills the KV cache too. */
int forward_fill_all(struct forward *forward, uint64_t seed, struct err *err);
/* -EINVAL naming the first weight that is missing. */
int forward_loaded(const struct forward *forward, struct err *err);

/* After loading and before the first step: a device that would choose algorithms or load code in the steps that first
 * need them does so now. Without it steps are as right, and some of them slow. How many it has chosen, 0 where there
 * is nothing to choose; or the device's error. Thread: any one. */
int forward_warm_up(struct forward *forward, struct err *err);

/* Issues one step; a device that runs behind has not finished it when this returns: forward_poll or
 * forward_wait tell how it ended. Steps run in the order of their issue; the next may be issued
 * before this one has ended. The lists that sample_params point to are the caller's again at once.
 * -ETIMEDOUT, here or there: an Engram layer's rows did not
 * come in time, nothing was sampled, and KV and states of the step's sequences are as if it had not
 * run far: the caller ends or redoes them. */
int forward_run(struct forward *forward, struct forward_step *step, struct err *err);
/* True: the step has ended; its results and its report are there. */
static inline bool
forward_done(const struct forward_step *step)
{
    return step_report_done(step->report, step->step);
}
/* 0: not yet. 1: it ended well. -ETIMEDOUT as above; or the device's error, also when the step will
 * never end because of it. Never waits. Fills in how long the step stood before each layer. */
int forward_poll(struct forward *forward, struct forward_step *step, struct err *err);
/* Waits for everything that was issued, and says how `step`, the last of it, ended: 0, -ETIMEDOUT as
 * above, or the device's error. Fills in how long it stood before each layer. */
int forward_wait(struct forward *forward, struct forward_step *step, struct err *err);

/* A fork: copies Engram states and, for the last partial page, KV. */
int forward_copy_state(struct forward *forward, int dst_slot, int src_slot);
int forward_copy_page(struct forward *forward, int dst_page, int src_page);

#endif
