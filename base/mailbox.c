/* mailbox: see mailbox.h. A ring under a mutex: messages are requests and steps, not rows, so the
 * lock is taken a few thousand times a second at most. */
#include "base/mailbox.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"

struct mailbox {
    pthread_mutex_t lock;
    pthread_cond_t arrived; /* on CLOCK_MONOTONIC */
    /* Everything below is guarded by lock. */
    unsigned capacity, first, count;
    bool closed, woken;
    int fd; /* -1 until asked for */
    void *messages[];
};

struct mailbox *
mailbox_new(unsigned capacity)
{
    ASSERT(capacity > 0);
    struct mailbox *mailbox = calloc(1, sizeof *mailbox + capacity * sizeof(void *));
    if (!mailbox)
        return NULL;
    pthread_condattr_t monotonic;
    if (pthread_condattr_init(&monotonic) != 0) {
        free(mailbox);
        return NULL;
    }
    ASSERT(pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC) == 0);
    ASSERT(pthread_mutex_init(&mailbox->lock, NULL) == 0);
    ASSERT(pthread_cond_init(&mailbox->arrived, &monotonic) == 0);
    (void)pthread_condattr_destroy(&monotonic);
    mailbox->capacity = capacity;
    mailbox->fd = -1;
    return mailbox;
}

/* Called with the lock held, so that mailbox_fd cannot miss it. */
static void
mailbox_stir(struct mailbox *mailbox)
{
    (void)pthread_cond_broadcast(&mailbox->arrived);
    if (mailbox->fd >= 0) {
        uint64_t one = 1;
        /* Fails only when the counter is full, and then the descriptor is readable anyway. */
        ssize_t written = write(mailbox->fd, &one, sizeof one);
        (void)written;
    }
}

int
mailbox_send(struct mailbox *mailbox, void *message)
{
    int result = 0;
    (void)pthread_mutex_lock(&mailbox->lock);
    if (mailbox->closed) {
        result = -EPIPE;
    } else if (mailbox->count == mailbox->capacity) {
        result = -EAGAIN;
    } else {
        unsigned place =
            (unsigned)(((uint64_t)mailbox->first + mailbox->count) % mailbox->capacity);
        mailbox->messages[place] = message;
        mailbox->count++;
        mailbox_stir(mailbox);
    }
    (void)pthread_mutex_unlock(&mailbox->lock);
    return result;
}

/* Sleeps until there is something to look at; the lock is held before and after. */
static void
mailbox_sleep(struct mailbox *mailbox, uint64_t timeout_ns)
{
    uint64_t now_ns = clock_now_ns();
    bool forever = timeout_ns > INT64_MAX - now_ns;
    uint64_t end_ns = forever ? 0 : now_ns + timeout_ns;
    struct timespec end = {.tv_sec = (time_t)(end_ns / 1000000000u),
                           .tv_nsec = (long)(end_ns % 1000000000u)};
    while (mailbox->count == 0 && !mailbox->closed && !mailbox->woken) {
        if (forever)
            (void)pthread_cond_wait(&mailbox->arrived, &mailbox->lock);
        else if (pthread_cond_timedwait(&mailbox->arrived, &mailbox->lock, &end) == ETIMEDOUT)
            break;
    }
}

void *
mailbox_receive(struct mailbox *mailbox, uint64_t timeout_ns)
{
    void *message = NULL;
    (void)pthread_mutex_lock(&mailbox->lock);
    if (timeout_ns)
        mailbox_sleep(mailbox, timeout_ns);
    mailbox->woken = false;
    if (mailbox->count) {
        message = mailbox->messages[mailbox->first];
        mailbox->first = mailbox->first + 1 == mailbox->capacity ? 0 : mailbox->first + 1;
        mailbox->count--;
    }
    (void)pthread_mutex_unlock(&mailbox->lock);
    return message;
}

int
mailbox_fd(struct mailbox *mailbox)
{
    (void)pthread_mutex_lock(&mailbox->lock);
    if (mailbox->fd < 0) {
        bool stirred = mailbox->count || mailbox->closed || mailbox->woken;
        mailbox->fd = eventfd(stirred, EFD_NONBLOCK | EFD_CLOEXEC);
    }
    int result = mailbox->fd >= 0 ? mailbox->fd : -errno;
    (void)pthread_mutex_unlock(&mailbox->lock);
    return result;
}

void
mailbox_wake(struct mailbox *mailbox)
{
    (void)pthread_mutex_lock(&mailbox->lock);
    mailbox->woken = true;
    mailbox_stir(mailbox);
    (void)pthread_mutex_unlock(&mailbox->lock);
}

void
mailbox_close(struct mailbox *mailbox)
{
    (void)pthread_mutex_lock(&mailbox->lock);
    mailbox->closed = true;
    mailbox_stir(mailbox);
    (void)pthread_mutex_unlock(&mailbox->lock);
}

struct mailbox *
mailbox_free(struct mailbox *mailbox)
{
    if (!mailbox)
        return NULL;
    if (mailbox->fd >= 0)
        (void)close(mailbox->fd);
    (void)pthread_cond_destroy(&mailbox->arrived);
    (void)pthread_mutex_destroy(&mailbox->lock);
    free(mailbox);
    return NULL;
}
