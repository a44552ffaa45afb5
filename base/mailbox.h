/* mailbox: a bounded queue of pointers, many senders, one receiver.
 *
 * A message belongs to the receiver once mailbox_send returned 0. The receiver sleeps either in
 * mailbox_receive (futex/condition variable) or, if it has an event loop, by polling mailbox_fd (an
 * eventfd readable while messages may be waiting). Closing wakes everybody; what was queued can still
 * be received.                                                                                      */
#ifndef BASE_MAILBOX_H
#define BASE_MAILBOX_H

#include <stdint.h>

struct mailbox;

/* capacity: most messages held at a time. */
struct mailbox *mailbox_new(unsigned capacity);
/* 0; -EAGAIN when full; -EPIPE when closed. Never blocks. */
int mailbox_send(struct mailbox *mailbox, void *message);
/* Next message, or NULL at timeout (0: do not wait; UINT64_MAX: no limit) or when closed and empty. */
void *mailbox_receive(struct mailbox *mailbox, uint64_t timeout_ns);
/* An eventfd owned by the mailbox. Made on first call. The receiver reads it to clear it. */
int mailbox_fd(struct mailbox *mailbox);
/* Wakes a receiver that waits, without a message. */
void mailbox_wake(struct mailbox *mailbox);
void mailbox_close(struct mailbox *mailbox);
/* The mailbox must be empty of messages that own memory. Accepts NULL, returns NULL. */
struct mailbox *mailbox_free(struct mailbox *mailbox);

#endif
