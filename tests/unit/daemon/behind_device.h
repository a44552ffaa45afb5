/* behind_device: a device that runs behind the host, as a GPU does: steps, and copies between them,
 * are queued and run later by a thread of its own, on the forward pass of the CPU backend. Tests say
 * when. What a step points to is read when it runs, so that a buffer that was changed too early shows
 * in the tokens (and in ThreadSanitizer). */
#ifndef TESTS_UNIT_DAEMON_BEHIND_DEVICE_H
#define TESTS_UNIT_DAEMON_BEHIND_DEVICE_H

#include "gpu/forward.h"

struct behind;

/* below and on_below, a loaded forward pass on it, are borrowed. */
struct behind *behind_open(struct device *below, struct forward *on_below);
void behind_stop(struct behind *behind); /* runs what is queued, ends the thread; accepts NULL */
struct behind *behind_close(struct behind *behind); /* after behind_stop; accepts NULL */
struct device *behind_device(struct behind *behind);
/* The forward pass on this device: states are copied between its slots. Once, before any step. */
void behind_bind(struct behind *behind, struct forward *forward);

/* Steps from this one on wait for behind_release. Probes count as step 0, here and below. */
void behind_hold(struct behind *behind, uint64_t step);
void behind_release(struct behind *behind);
/* Instead of running, this step ends as one whose rows did not come. */
void behind_time_out(struct behind *behind, uint64_t step);
/* From this step on nothing is run, and the device has an error. */
void behind_fail(struct behind *behind, uint64_t step);
/* Each step takes this much longer. */
void behind_slow(struct behind *behind, unsigned microseconds);

struct behind_counts {
    uint64_t issued, begun; /* number of the newest step */
    uint64_t remembered;    /* rows issued with TOKEN_OF_SLOT */
    uint64_t probes, probes_begun; /* issued; not held any more */
};
struct behind_counts behind_counts(struct behind *behind);

#endif
