/* conf_print: the options as a sample file, as --help and as they are. */
#include <string.h>

#include "base/escape.h"
#include "conf/conf_origin.h"

enum { PRINT_COLUMNS = 96 };

/* Words of text in lines of at most PRINT_COLUMNS, each after `indent`; the first line continues
 * one that is already `used` columns wide. Counts bytes: help texts are ASCII. */
static void
print_wrapped(FILE *out, const char *text, const char *indent, int used)
{
    int column = used;
    for (const char *at = text; *at;) {
        int word = (int)strcspn(at, " ");
        if (column + 1 + word > PRINT_COLUMNS && column > (int)strlen(indent)) {
            (void)fprintf(out, "\n%s", indent);
            column = (int)strlen(indent);
        } else if (at != text) {
            (void)fputc(' ', out);
            column++;
        }
        (void)fprintf(out, "%.*s", word, at);
        column += word;
        at += word;
        at += *at == ' ';
    }
    (void)fputc('\n', out);
}

/* Help text, what may be written, and whether it takes effect while serving. */
static void
print_about(FILE *out, const struct conf_option *option, const char *indent, int used)
{
    struct buf text = {0};
    buf_text(&text, option->help);
    if (option->kind != CONF_KIND_TEXT || option->form != CONF_ANY) {
        buf_text(&text, " Expected: ");
        conf_value_describe(option, &text);
        buf_text(&text, ".");
    }
    if (option->liveness == CONF_LIVE)
        buf_text(&text, " Can be changed while serving.");
    buf_append(&text, "", 1);
    print_wrapped(out, text.failed ? option->help : text.data, indent, used);
    buf_free(&text);
}

/* Opens the section of the row where it differs from the one before. */
static void
print_section(FILE *out, int option)
{
    const char *section = conf_options[option].section;
    if (*section && (option == 0 || strcmp(section, conf_options[option - 1].section) != 0))
        (void)fprintf(out, "\n[%s]\n", section);
}

void
conf_print_sample(FILE *out)
{
    (void)fputs(
        "# Configuration of engramd. Every option is listed with its built-in value; remove the '#'"
        " in\n# front of a key to set it. --set section.key=value overrides this file.\n"
        "# Sizes: B, KiB, MiB, GiB, TiB. Times: ns, us, ms, s, m, h, d. A comment starts with # or"
        "\n# ; at the begin of a line or behind a space. Values are written without quotes.\n",
        out);
    for (int i = 0; i < CONF_OPTIONS; i++) {
        const struct conf_option *option = &conf_options[i];
        print_section(out, i);
        (void)fputs("\n# ", out);
        print_about(out, option, "# ", 2);
        (void)fprintf(out, "#%s =%s%s\n", option->key, *option->def ? " " : "", option->def);
    }
}

void
conf_print_help(FILE *out)
{
    char name[CONF_NAME_BYTES];
    for (int i = 0; i < CONF_OPTIONS; i++) {
        const struct conf_option *option = &conf_options[i];
        (void)fprintf(out, "  %s=%s\n", conf_option_name(i, name),
                      *option->def ? option->def : "(empty)");
        (void)fputs("        ", out);
        print_about(out, option, "        ", 8);
    }
}

static void
print_origin(FILE *out, const struct conf_origin *origin)
{
    char file[600];
    if (origin->source == CONF_FROM_FILE) {
        (void)escape_text(file, sizeof file, origin->file, strlen(origin->file));
        (void)fprintf(out, "%s:%d", file, origin->line);
    } else {
        (void)fputs(origin->source == CONF_FROM_SET ? "--set" : "built-in", out);
    }
}

void
conf_print_values(const struct conf *conf, FILE *out)
{
    struct buf value = {0};
    for (int i = 0; i < CONF_OPTIONS; i++) {
        const struct conf_option *option = &conf_options[i];
        print_section(out, i);
        buf_reset(&value);
        conf_value_render(option, conf, &value);
        if (value.failed) { /* better no line than a wrong value */
            (void)fprintf(out, "# %s: no memory\n", option->key);
            continue;
        }
        int width = fprintf(out, "%s = %.*s", option->key, (int)value.size_bytes,
                            value.size_bytes ? value.data : "");
        (void)fprintf(out, "%*s # ", width < 40 ? 40 - width : 0, "");
        print_origin(out, &conf->origins->of[i]);
        (void)fputc('\n', out);
    }
    buf_free(&value);
}
