/* step_clock: how long the device computed and how long it stood between steps, by its own clock.
 * Device memory; written by the first and the last kernel of each step. */
#ifndef GPU_CUDA_STEP_CLOCK_H
#define GPU_CUDA_STEP_CLOCK_H

#include <stdint.h>

#include "gpu/cuda/row_load.h"

struct step_clock {
    uint64_t begun_ns, ended_ns; /* of the last step; ended 0: there was none */
    uint64_t busy_ns,
        idle_ns; /* sums: within steps; from the end of one to the begin of the next */
};

__device__ static inline void
step_clock_begin(struct step_clock *clock)
{
    clock->begun_ns = global_timer_ns();
    if (clock->ended_ns)
        clock->idle_ns += clock->begun_ns - clock->ended_ns;
}

__device__ static inline void
step_clock_end(struct step_clock *clock)
{
    clock->ended_ns = global_timer_ns();
    clock->busy_ns += clock->ended_ns - clock->begun_ns;
}

#endif
