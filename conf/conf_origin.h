/* conf_origin: where each value came from, and putting a value into a struct conf. Private to
 * conf/. */
#ifndef CONF_CONF_ORIGIN_H
#define CONF_CONF_ORIGIN_H

#include "conf/conf_value.h"

enum conf_source { CONF_BUILT_IN, CONF_FROM_FILE, CONF_FROM_SET };

struct conf_origin {
    enum conf_source source;
    char *file; /* of CONF_FROM_FILE */
    int line;
};

struct conf_origins {
    struct conf_origin of[CONF_OPTIONS];
};

/* Parses text and stores it with its origin, unless what is there came from a stronger source. A
 * text of a stronger source is still checked. -EINVAL as conf_value_parse, -ENOMEM; conf is
 * unchanged then.   */
int conf_assign(struct conf *conf, int option, const char *text, enum conf_source source,
                const char *file, int line, struct err *err);

#endif
