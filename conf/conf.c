/* conf: see conf.h. */
#include "conf/conf.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "conf/conf_origin.h"

static void
conf_store(struct conf *conf, const struct conf_option *option, union conf_value value)
{
    char *field = (char *)conf + option->offset;
    switch (option->kind) {
    case CONF_KIND_TEXT:
    case CONF_KIND_WORD:
        free(*(char **)field);
        *(char **)field = value.text;
        return;
    case CONF_KIND_BOOL:
        *(bool *)field = value.truth;
        return;
    case CONF_KIND_INT:
        *(int64_t *)field = value.whole;
        return;
    case CONF_KIND_REAL:
        *(double *)field = value.real;
        return;
    case CONF_KIND_SIZE:
    case CONF_KIND_TIME:
        *(uint64_t *)field = value.amount;
        return;
    }
}

int
conf_assign(struct conf *conf, int option, const char *text, enum conf_source source,
            const char *file, int line, struct err *err)
{
    struct conf_origin *origin = &conf->origins->of[option];
    const struct conf_option *row = &conf_options[option];
    union conf_value value;
    int result = conf_value_parse(row, text, &value, err);
    if (result < 0)
        return result;
    bool is_text = row->kind == CONF_KIND_TEXT || row->kind == CONF_KIND_WORD;
    char *file_copy = file ? strdup(file) : NULL;
    if ((file && !file_copy) || source < origin->source) {
        if (is_text)
            free(value.text);
        free(file_copy);
        return source < origin->source ? 0 : err_errno(err, ENOMEM, "name of a file");
    }
    conf_store(conf, row, value);
    free(origin->file);
    *origin = (struct conf_origin){.source = source, .file = file_copy, .line = line};
    return 0;
}

int
conf_new(struct conf **ret_conf, struct err *err)
{
    struct conf *conf = calloc(1, sizeof *conf);
    if (conf)
        conf->origins = calloc(1, sizeof *conf->origins);
    if (!conf || !conf->origins) {
        (void)conf_free(conf);
        return err_errno(err, ENOMEM, "configuration");
    }
    for (int i = 0; i < CONF_OPTIONS; i++) {
        int result = conf_assign(conf, i, conf_options[i].def, CONF_BUILT_IN, NULL, 0, err);
        ASSERT(result == 0 || result == -ENOMEM); /* else the table contradicts itself */
        if (result < 0) {
            (void)conf_free(conf);
            return result;
        }
    }
    *ret_conf = conf;
    return 0;
}

struct conf *
conf_free(struct conf *conf)
{
    if (!conf)
        return NULL;
    for (int i = 0; i < CONF_OPTIONS; i++) {
        if (conf_options[i].kind == CONF_KIND_TEXT || conf_options[i].kind == CONF_KIND_WORD)
            free(*(char **)((char *)conf + conf_options[i].offset));
        if (conf->origins)
            free(conf->origins->of[i].file);
    }
    free(conf->origins);
    free(conf);
    return NULL;
}

static char *
trim(char *text)
{
    text += strspn(text, " \t");
    size_t length = strlen(text);
    while (length && (text[length - 1] == ' ' || text[length - 1] == '\t'))
        length--;
    text[length] = '\0';
    return text;
}

static int
conf_set_parts(struct conf *conf, char *name, char *value, struct err *err)
{
    char known[CONF_NAME_BYTES];
    int option = conf_option_find_name(name);
    if (option < 0) {
        char *dot = strrchr(name, '.');
        if (dot)
            *dot = '\0';
        int nearest = dot ? conf_option_nearest(name, dot + 1) : conf_option_nearest("", name);
        if (dot)
            *dot = '.';
        if (nearest < 0)
            return err_set(err, EINVAL, "unknown option '%.80s'", name);
        return err_set(err, EINVAL, "unknown option '%.80s': did you mean '%s'?", name,
                       conf_option_name(nearest, known));
    }
    struct err why = ERR_INIT;
    int result = conf_assign(conf, option, value, CONF_FROM_SET, NULL, 0, &why);
    if (result < 0)
        return err_set(err, -result, "%s%s%s", name, *value ? ": " : " ", why.text);
    return 0;
}

int
conf_set(struct conf *conf, const char *assignment, struct err *err)
{
    char *copy = strdup(assignment);
    if (!copy)
        return err_errno(err, ENOMEM, "--set");
    char *equals = strchr(copy, '=');
    int result;
    if (equals) {
        *equals = '\0';
        result = conf_set_parts(conf, trim(copy), trim(equals + 1), err);
    } else {
        result = err_set(err, EINVAL, "'%.80s': expected section.key=value", assignment);
    }
    free(copy);
    return result;
}

int
conf_check(const struct conf *conf, struct buf *mistakes)
{
    int n = 0;
    if (*conf->model_path == '\0') {
        buf_text(mistakes, "model.path is not set: expected the folder of a checkpoint\n");
        n++;
    }
    if (conf->engine_max_context && conf->engine_default_max_tokens > conf->engine_max_context) {
        buf_text(mistakes, "engine.default_max_tokens is larger than engine.max_context\n");
        n++;
    }
    return n;
}
