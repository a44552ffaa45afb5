/* err: the text that goes with a negative errno.
 *
 * A function that can fail takes `struct err *err` last, returns 0 or more on success and -errno on
 * failure, and has filled err by then. The first error wins: a caller may add context in front with
 * err_context, never replace. err may be NULL where the caller does not care for the text.
 * Thread: none; a struct err belongs to its caller.                                                */
#ifndef BASE_ERR_H
#define BASE_ERR_H

#include <errno.h>
#include <stdarg.h>

struct err {
    int code;       /* negative errno of the first error; 0 while there is none */
    char text[500]; /* UTF-8, one line, NUL-terminated; control characters are escaped */
};

#define ERR_INIT ((struct err){0})

/* Records the first error and returns -code. code is a positive errno. */
int err_set(struct err *err, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* The same with ": strerror(code)" behind the text. */
int err_errno(struct err *err, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* Puts "context: " in front of the text; returns err->code. */
int err_context(struct err *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
