/* cache_hint: asks for the cache line of an address. Any address will do; nothing changes. */
#ifndef TIERING_CACHE_HINT_H
#define TIERING_CACHE_HINT_H

static inline void
cache_hint(const void *address)
{
    __builtin_prefetch(address);
    /* Without it GCC 12 finds that a function which does nothing but this has no effect, and drops
     * calls of it. */
    __asm__ volatile("");
}

#endif
