/* conf: the options of engramd. One row per option in conf/options.h makes the struct, the parser, the
 * bounds, the sample file, --help and the man page.
 *
 * Precedence: --set over the file over the built-in value. Every mistake of a file is reported, each
 * with file:line, what was expected and the nearest known name. Thread: loaded before the threads
 * start; afterwards read-only except LIVE options, which the admin interface changes elsewhere.     */
#ifndef CONF_CONF_H
#define CONF_CONF_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/buf.h"
#include "base/err.h"

enum conf_liveness { CONF_RESTART, CONF_LIVE };

struct conf {
#define CONF_TEXT(id, section, key, def, live, help)           char *id;
#define CONF_INT(id, section, key, def, min, max, live, help)  int64_t id;
#define CONF_REAL(id, section, key, def, min, max, live, help) double id;
#define CONF_SIZE(id, section, key, def, min, max, live, help) uint64_t id; /* bytes */
#define CONF_TIME(id, section, key, def, min, max, live, help) uint64_t id; /* nanoseconds */
#define CONF_BOOL(id, section, key, def, live, help)           bool id;
#include "conf/options.h"
};

/* Built-in values. */
int conf_new(struct conf **ret_conf, struct err *err);
struct conf *conf_free(struct conf *conf);

/* Reads an INI file. All mistakes are appended to `mistakes`, one line each ("file:line: ..."); returns
 * their number, or -errno when the file cannot be read. A relative path in model.path or a unix socket is
 * taken relative to the folder of the configuration file. */
int conf_read_file(struct conf *conf, const char *path, struct buf *mistakes, struct err *err);
/* The same from memory; `name` stands for the file in messages. This is what the fuzzer calls. */
int conf_read_text(struct conf *conf, const char *name, const char *text, size_t size,
                   struct buf *mistakes);
/* "section.key=value"; -EINVAL with the text in err. */
int conf_set(struct conf *conf, const char *assignment, struct err *err);
/* What no single option can say (e.g. server.listen is set, model.path is set). */
int conf_check(const struct conf *conf, struct buf *mistakes);

void conf_print_sample(FILE *out); /* a commented configuration file with every option */
void conf_print_help(FILE *out);   /* the options part of --help */
void conf_print_values(const struct conf *conf, FILE *out); /* effective values, with their origin */

#endif
