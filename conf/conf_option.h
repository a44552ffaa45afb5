/* conf_option: the rows of conf/options.h as a table, and finding a row by what somebody typed.
 * Private to conf/. Pure.                                                                      */
#ifndef CONF_CONF_OPTION_H
#define CONF_CONF_OPTION_H

#include <stddef.h>

#include "conf/conf.h"

enum conf_kind {
    CONF_KIND_TEXT,
    CONF_KIND_WORD,
    CONF_KIND_INT,
    CONF_KIND_REAL,
    CONF_KIND_SIZE,
    CONF_KIND_TIME,
    CONF_KIND_BOOL
};

/* What a CONF_TEXT has to look like. All texts are valid UTF-8 without control characters. */
enum conf_form {
    CONF_ANY,
    CONF_PATH,    /* relative to the folder of the file that names it */
    CONF_ADDRESS, /* host:port or [v6]:port */
    CONF_DEVICE,  /* cpu, auto, cuda:N */
};

struct conf_option {
    const char *section, *key; /* section "": before the first [section] */
    enum conf_kind kind;
    enum conf_form form; /* of a CONF_KIND_TEXT */
    enum conf_liveness liveness;
    const char *def, *min, *max; /* as in the row; min and max of numbers, else NULL */
    const char *words;           /* of a CONF_KIND_WORD, separated by one space; else NULL */
    const char *help;
    size_t offset; /* of the field in struct conf */
};

enum {
#define CONF_TEXT(id, ...) CONF_ID_##id,
#define CONF_WORD(id, ...) CONF_ID_##id,
#define CONF_INT(id, ...)  CONF_ID_##id,
#define CONF_REAL(id, ...) CONF_ID_##id,
#define CONF_SIZE(id, ...) CONF_ID_##id,
#define CONF_TIME(id, ...) CONF_ID_##id,
#define CONF_BOOL(id, ...) CONF_ID_##id,
#include "conf/options.h"
    CONF_OPTIONS
};

enum { CONF_NAME_BYTES = 64 }; /* room for "section.key" of any row */

extern const struct conf_option conf_options[CONF_OPTIONS];

/* Index of the row, or -ENOENT. */
int conf_option_find(const char *section, const char *key);
/* The same for "section.key", or "key" where the section is "". */
int conf_option_find_name(const char *name);
/* "section.key", or "key" where the section is "". Returns out. */
const char *conf_option_name(int option, char out[CONF_NAME_BYTES]);
bool conf_section_exists(const char *section);

/* The row whose name is nearest to what was typed, or -ENOENT when none is near. */
int conf_option_nearest(const char *section, const char *key);
/* Section nearest to what was typed, or NULL. */
const char *conf_section_nearest(const char *section);

#endif
