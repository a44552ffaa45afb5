/* failing_malloc: fails the nth allocation of the code under test. Link with
 *   link_args: failing_malloc_args        (meson; tests/unit/meson.build)
 * and run a scenario with failing_malloc_arm(0), (1), ... until failing_malloc_disarm says that the
 * one to fail was never reached. One file per program includes this. */
#ifndef TESTS_UNIT_FAILING_MALLOC_H
#define TESTS_UNIT_FAILING_MALLOC_H

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *old, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *old, size_t size);
char *__wrap_strdup(const char *text);

static long failing_malloc_left = -1; /* allocations that still succeed; -1: all */
static bool failing_malloc_failed;
static bool failing_malloc_alone; /* the ones behind the one that fails succeed again */

static bool
failing_malloc_now(void)
{
    if (failing_malloc_left < 0)
        return false;
    if (failing_malloc_left > 0) {
        failing_malloc_left--;
        return false;
    }
    if (failing_malloc_alone && failing_malloc_failed)
        return false;
    failing_malloc_failed = true;
    return true; /* this one and, unless alone, all that follow */
}

void *
__wrap_malloc(size_t size)
{
    return failing_malloc_now() ? NULL : __real_malloc(size);
}

void *
__wrap_calloc(size_t count, size_t size)
{
    return failing_malloc_now() ? NULL : __real_calloc(count, size);
}

void *
__wrap_realloc(void *old, size_t size)
{
    return failing_malloc_now() ? NULL : __real_realloc(old, size);
}

char *
__wrap_strdup(const char *text)
{
    size_t size = strlen(text) + 1;
    char *copy = failing_malloc_now() ? NULL : __real_malloc(size);
    return copy ? memcpy(copy, text, size) : NULL;
}

static inline void
failing_malloc_arm(long succeed)
{
    failing_malloc_left = succeed;
    failing_malloc_failed = false;
}

/* Whether an allocation was failed since failing_malloc_arm. */
static inline bool
failing_malloc_disarm(void)
{
    failing_malloc_left = -1;
    return failing_malloc_failed;
}

#endif
