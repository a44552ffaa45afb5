/* notify: the service manager's protocol: one datagram to $NOTIFY_SOCKET per message; nothing where
 * there is none. Thread: any; a message is one sendto. */
#ifndef DAEMON_NOTIFY_H
#define DAEMON_NOTIFY_H

#include <stdint.h>

struct notify;

/* Reads NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID. Never NULL unless memory is out. */
struct notify *notify_open(void);
struct notify *notify_close(struct notify *notify); /* accepts NULL, returns NULL */
void notify_send(struct notify *notify, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* Half the watchdog's period; 0 without a watchdog. */
uint64_t notify_watchdog_ns(const struct notify *notify);
/* WATCHDOG=1, at most once per quarter of the period. One thread (engine). */
void notify_watchdog(struct notify *notify);

#endif
