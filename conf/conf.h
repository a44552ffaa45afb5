/* conf: the options of engramd. One row per option in conf/options.h makes the struct, the parser, the
 * bounds, the sample file and --help.
 *
 * Precedence: --set over the file over the built-in value, in whatever order the calls are made. Every
 * mistake of a file is reported, each with file:line, what was expected and the nearest known name; an
 * option that has one keeps its value. Options are read at start; those marked CONF_LIVE can also be
 * changed while serving, by the admin interface, which does not come through here.
 * Thread: none; a struct conf belongs to its caller.                                                  */
#ifndef CONF_CONF_H
#define CONF_CONF_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/buf.h"
#include "base/err.h"

enum conf_liveness { CONF_RESTART, CONF_LIVE };

struct conf {
#define CONF_TEXT(id, section, key, def, form, live, help)     char *id; /* never NULL */
#define CONF_WORD(id, section, key, def, words, live, help)    char *id; /* one of the words */
#define CONF_INT(id, section, key, def, min, max, live, help)  int64_t id;
#define CONF_REAL(id, section, key, def, min, max, live, help) double id;
#define CONF_SIZE(id, section, key, def, min, max, live, help) uint64_t id; /* bytes */
#define CONF_TIME(id, section, key, def, min, max, live, help) uint64_t id; /* nanoseconds */
#define CONF_BOOL(id, section, key, def, live, help)           bool id;
#include "conf/options.h"
    struct conf_origins *origins; /* private: where each value came from */
};

/* Built-in values. */
int conf_new(struct conf **ret_conf, struct err *err);
struct conf *conf_free(struct conf *conf);

/* Reads an INI file (docs of the format: conf/README.md). Mistakes are appended to `mistakes`, one line
 * each ("file:line: ..."; past 100 only counted); returns their number, or -errno with the text in err
 * when the file cannot be read (-EFBIG: larger than 1 MiB). A relative model.path or server.admin_socket
 * is taken relative to the folder of the file. -ENOMEM also when a value could not be kept.             */
int conf_read_file(struct conf *conf, const char *path, struct buf *mistakes, struct err *err);
/* The same from memory; `name` stands for the file in messages and for relative paths. */
int conf_read_text(struct conf *conf, const char *name, const char *text, size_t size,
                   struct buf *mistakes);
/* "section.key=value"; spaces around either are dropped. -EINVAL with the text in err. A relative path is
 * taken relative to the working directory. */
int conf_set(struct conf *conf, const char *assignment, struct err *err);
/* What no single option can say. Appends a line per mistake, returns their number. */
int conf_check(const struct conf *conf, struct buf *mistakes);

void conf_print_sample(FILE *out); /* a commented configuration file with every option */
void conf_print_help(FILE *out);   /* the options part of --help */
/* Effective values as a configuration file, each with its origin as a comment: built-in, file:line or
 * --set. Reading it back gives the same values. */
void conf_print_values(const struct conf *conf, FILE *out);

#endif
