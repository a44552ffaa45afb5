#include "daemon/notify.h"

#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"

struct notify {
    int fd; /* -1: no service manager listens */
    struct sockaddr_un address;
    socklen_t address_length;
    uint64_t watchdog_ns; /* the manager's period, 0: none */
    uint64_t last_watchdog_ns;
};

struct notify *
notify_open(void)
{
    struct notify *n = calloc(1, sizeof *n);
    const char *path = getenv("NOTIFY_SOCKET"), *usec = getenv("WATCHDOG_USEC"),
               *pid = getenv("WATCHDOG_PID");

    if (n == NULL)
        return NULL;
    n->fd = -1;
    if (path == NULL || (path[0] != '/' && path[0] != '@') ||
        strlen(path) >= sizeof n->address.sun_path)
        return n;
    n->address.sun_family = AF_UNIX;
    memcpy(n->address.sun_path, path, strlen(path));
    if (path[0] == '@')
        n->address.sun_path[0] = 0;
    n->address_length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path));
    n->fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (usec && (pid == NULL || strtol(pid, NULL, 10) == getpid()))
        n->watchdog_ns = strtoull(usec, NULL, 10) * 1000;
    return n;
}

struct notify *
notify_close(struct notify *n)
{
    if (n && n->fd >= 0)
        close(n->fd);
    free(n);
    return NULL;
}

void
notify_send(struct notify *n, const char *format, ...)
{
    char text[1024];
    va_list args;

    if (n->fd < 0)
        return;
    va_start(args, format);
    int length = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (length < 0)
        return;
    if (length >= (int)sizeof text)
        length = sizeof text - 1;
    /* A manager that does not listen is no reason to stop serving, and one that is slow no reason
     * to load more slowly: what only informs is dropped when its queue is full. */
    int flags = MSG_NOSIGNAL | (strncmp(text, "STATUS=", 7) == 0 ? MSG_DONTWAIT : 0);

    (void)sendto(n->fd, text, (size_t)length, flags, (const struct sockaddr *)&n->address,
                 n->address_length);
}

uint64_t
notify_watchdog_ns(const struct notify *n)
{
    return n->watchdog_ns / 2;
}

void
notify_watchdog(struct notify *n)
{
    uint64_t now = clock_now_ns();

    if (n->watchdog_ns == 0 || now - n->last_watchdog_ns < n->watchdog_ns / 4)
        return;
    n->last_watchdog_ns = now;
    notify_send(n, "WATCHDOG=1");
}
