/* flag: a 64-bit word one thread raises and another waits on, bounded in time.
 *
 * The word only grows. flag_raise stores with release order and wakes sleepers; flag_wait returns once
 * the word is at least `value` (acquire), after spinning for spin_ns and then sleeping on a futex. This
 * is the host form of the word a CUDA stream waits on (DESIGN D3).                                  */
#ifndef BASE_FLAG_H
#define BASE_FLAG_H

#include <stdatomic.h>
#include <stdint.h>

struct flag {
    _Atomic uint64_t word;     /* first: a GPU polls it by the flag's address */
    _Atomic uint32_t epoch;    /* futex word: changes with every raise; pairs with flag_wait */
    _Atomic uint32_t sleepers; /* pairs with flag_raise */
};

void flag_raise(struct flag *flag, uint64_t value); /* no effect when the word is already higher */
/* 0, or -ETIMEDOUT after timeout_ns (UINT64_MAX: no limit). */
int flag_wait(struct flag *flag, uint64_t value, uint64_t spin_ns, uint64_t timeout_ns);
static inline uint64_t
flag_read(struct flag *flag)
{
    return atomic_load_explicit(&flag->word, memory_order_acquire);
}

#endif
