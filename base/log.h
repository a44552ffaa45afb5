/* log: one line per event on standard error. Only daemon/ and tools/ call it.
 *
 * Under systemd (JOURNAL_STREAM names our stderr) lines carry the <N> priority prefix and no time; on a
 * terminal they carry time and level, coloured, and wipe what stands in their line (a progress bar);
 * else "time level message". Control characters in the message are escaped, so a request cannot forge a line. Thread-safe; a line is one write.          */
#ifndef BASE_LOG_H
#define BASE_LOG_H

enum log_level { LOG_LEVEL_ERROR = 3, LOG_LEVEL_WARNING = 4, LOG_LEVEL_INFO = 6, LOG_LEVEL_DEBUG = 7 };

void log_open(enum log_level lowest);
void log_set_level(enum log_level lowest);
void log_line(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define log_error(...)   log_line(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warning(...) log_line(LOG_LEVEL_WARNING, __VA_ARGS__)
#define log_info(...)    log_line(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...)   log_line(LOG_LEVEL_DEBUG, __VA_ARGS__)

#endif
