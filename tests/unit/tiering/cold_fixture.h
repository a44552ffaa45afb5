/* cold_fixture: files full of null_store's bytes, and a notify one can wait for; for tests of
 * stores. */
#ifndef TESTS_COLD_FIXTURE_H
#define TESTS_COLD_FIXTURE_H

#include <errno.h>
#include <fcntl.h>
#include <semaphore.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "base/check.h"
#include "tiering/cold_store.h"

/* A wake-up that may come from any thread; the timeout turns a lost one into a failed test. */
struct bell {
    sem_t sem;
};

static inline void
bell_ring(void *arg)
{
    struct bell *bell = arg;
    (void)sem_post(&bell->sem);
}

static inline void
bell_init(struct bell *bell)
{
    (void)sem_init(&bell->sem, 0, 0);
}

/* False after 10 s. */
static inline bool
bell_wait(struct bell *bell)
{
    struct timespec until;
    (void)clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 10;
    int code;
    while ((code = sem_timedwait(&bell->sem, &until)) < 0 && errno == EINTR)
        ;
    return code == 0;
}

/* Writes size bytes of null_store's file number `file`; path is a mkstemp template. */
static inline void
write_pattern_file(char *path, int file, uint64_t size)
{
    int fd = mkstemp(path);
    ASSERT(fd >= 0);
    FILE *out = fdopen(fd, "w");
    ASSERT(out);
    for (uint64_t i = 0; i < size; i++)
        (void)putc(null_store_byte(file, i), out);
    ASSERT(fclose(out) == 0);
}

static inline uint64_t
next_random(uint64_t *state)
{
    uint64_t x = *state += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

#endif
