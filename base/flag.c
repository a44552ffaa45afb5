/* flag: see flag.h.
 *
 * The raiser changes word, then epoch, then reads sleepers; the waiter counts itself in sleepers,
 * reads epoch, then reads word. All of these are sequentially consistent, so either the waiter sees
 * the new word, or its futex call sees the new epoch, or the raiser sees the sleeper. */
#include "base/flag.h"

#include <errno.h>
#include <stddef.h>

#include "base/clock.h"
#include "base/futex.h"

_Static_assert(offsetof(struct flag, word) == 0, "a GPU polls the word by the flag's address");

enum { FLAG_PAUSES_PER_LOOK = 32 };

void
flag_raise(struct flag *flag, uint64_t value)
{
    uint64_t now = atomic_load_explicit(&flag->word, memory_order_relaxed);
    do {
        if (now >= value)
            return;
    } while (!atomic_compare_exchange_weak(&flag->word, &now, value));
    atomic_fetch_add(&flag->epoch, 1);
    if (atomic_load(&flag->sleepers))
        futex_wake_all(&flag->epoch);
}

int
flag_wait(struct flag *flag, uint64_t value, uint64_t spin_ns, uint64_t timeout_ns)
{
    if (flag_read(flag) >= value)
        return 0;
    uint64_t start_ns = clock_now_ns(), waited_ns = 0;
    uint64_t spin_end_ns = spin_ns < timeout_ns ? spin_ns : timeout_ns;
    while (waited_ns < spin_end_ns) {
        for (int i = 0; i < FLAG_PAUSES_PER_LOOK; i++) {
            if (flag_read(flag) >= value)
                return 0;
            futex_pause();
        }
        waited_ns = clock_now_ns() - start_ns;
    }
    int result = 0;
    atomic_fetch_add(&flag->sleepers, 1);
    for (;;) {
        uint32_t epoch = atomic_load(&flag->epoch);
        if (atomic_load(&flag->word) >= value)
            break;
        waited_ns = clock_now_ns() - start_ns;
        if (waited_ns >= timeout_ns) {
            result = -ETIMEDOUT;
            break;
        }
        futex_wait(&flag->epoch, epoch,
                   timeout_ns == UINT64_MAX ? UINT64_MAX : timeout_ns - waited_ns);
    }
    atomic_fetch_sub(&flag->sleepers, 1);
    return result;
}
