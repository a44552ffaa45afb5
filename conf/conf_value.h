/* conf_value: the text of one option to its value and back. Private to conf/. Pure but for the
 * memory of texts. */
#ifndef CONF_CONF_VALUE_H
#define CONF_CONF_VALUE_H

#include "conf/conf_option.h"

union conf_value {
    char *text; /* CONF_KIND_TEXT and CONF_KIND_WORD: malloc'ed, the caller's */
    int64_t whole;
    double real;
    uint64_t amount; /* bytes or nanoseconds */
    bool truth;
};

/* Reads text as a value of the row and checks its bounds. -EINVAL: err says what was wrong and what
 * was expected, without the option's name. -ENOMEM. */
int conf_value_parse(const struct conf_option *option, const char *text,
                     union conf_value *ret_value, struct err *err);
/* The text that parses to the value in conf. Texts come as they are, without quotes. */
void conf_value_render(const struct conf_option *option, const struct conf *conf, struct buf *out);
/* What a value may be: "a size from 0B to 16TiB", "one of auto, avx2", ... */
void conf_value_describe(const struct conf_option *option, struct buf *out);

#endif
