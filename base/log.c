/* log: see log.h. */
#include "base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/escape.h"

enum { LOG_MESSAGE_BYTES = 4000 };
enum log_style { LOG_PLAIN, LOG_TERMINAL, LOG_JOURNAL };

/* Set by log_open before the threads start; the level may change later. */
static enum log_style log_style = LOG_PLAIN;
static _Atomic int log_lowest = LOG_LEVEL_INFO; /* pairs with log_set_level */

/* systemd.exec(5): JOURNAL_STREAM is "device:inode" of the stream, and a program must compare them,
 * as its standard error may have been redirected since. */
static bool
log_is_journal(void)
{
    const char *stream = getenv("JOURNAL_STREAM");
    struct stat status;
    char here[64];
    if (!stream || fstat(STDERR_FILENO, &status) != 0)
        return false;
    (void)snprintf(here, sizeof here, "%ju:%ju", (uintmax_t)status.st_dev,
                   (uintmax_t)status.st_ino);
    return strcmp(here, stream) == 0;
}

void
log_open(enum log_level lowest)
{
    log_style = log_is_journal() ? LOG_JOURNAL : isatty(STDERR_FILENO) ? LOG_TERMINAL : LOG_PLAIN;
    log_set_level(lowest);
}

void
log_set_level(enum log_level lowest)
{
    atomic_store_explicit(&log_lowest, (int)lowest, memory_order_relaxed);
}

static const char *
log_level_name(enum log_level level)
{
    return level <= LOG_LEVEL_ERROR     ? "error"
           : level <= LOG_LEVEL_WARNING ? "warning"
           : level <= LOG_LEVEL_INFO    ? "info"
                                        : "debug";
}

static const char *
log_colour(enum log_level level)
{
    return level <= LOG_LEVEL_ERROR     ? "\033[31m"
           : level <= LOG_LEVEL_WARNING ? "\033[33m"
           : level <= LOG_LEVEL_INFO    ? ""
                                        : "\033[2m";
}

static size_t
log_head(char *out, size_t out_size, enum log_level level)
{
    if (log_style == LOG_JOURNAL)
        return (size_t)snprintf(out, out_size, "<%d>", (int)level);
    struct timespec now;
    struct tm utc;
    char when[32] = "";
    (void)clock_gettime(CLOCK_REALTIME, &now);
    if (gmtime_r(&now.tv_sec, &utc))
        (void)strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%S", &utc);
    return (size_t)snprintf(out, out_size, "%s%s%s.%03ldZ %s ",
                            log_style == LOG_TERMINAL ? "\r\033[K" : "",
                            log_style == LOG_TERMINAL ? log_colour(level) : "", when,
                            now.tv_nsec / 1000000, log_level_name(level));
}

void
log_line(enum log_level level, const char *format, ...)
{
    if ((int)level > atomic_load_explicit(&log_lowest, memory_order_relaxed))
        return;
    int saved_errno = errno;
    char message[LOG_MESSAGE_BYTES], line[LOG_MESSAGE_BYTES + 128];
    va_list args;
    va_start(args, format);
    int wanted = vsnprintf(message, sizeof message, format, args);
    va_end(args);
    size_t length = wanted < 0                        ? 0
                    : (size_t)wanted < sizeof message ? (size_t)wanted
                                                      : sizeof message - 1;
    size_t used = log_head(line, 100, level);
    size_t room = sizeof line - 16 - used; /* the tail below always fits */
    size_t escaped = escape_text(line + used, room, message, length);
    /* A cut is shown. */
    bool cut = (size_t)(wanted < 0 ? 0 : wanted) > length || escaped + 8 > room;
    used += escaped;
    const char *tail =
        log_style == LOG_TERMINAL ? (cut ? "...\033[0m\n" : "\033[0m\n") : (cut ? "...\n" : "\n");
    memcpy(line + used, tail, strlen(tail));
    used += strlen(tail);
    /* A log that cannot be written must not stop the daemon. */
    ssize_t written;
    do {
        written = write(STDERR_FILENO, line, used);
    } while (written < 0 && errno == EINTR);
    errno = saved_errno;
}
