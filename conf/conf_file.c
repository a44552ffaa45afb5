/* conf_file: the INI file of the options. inih splits keys from values; what it would pass over in
 * silence (a line longer than its buffer, text behind a section header, a continued value, a byte
 * that is no text) is found here before it sees the line, so that its build options make no
 * difference.               */
#include <fcntl.h>
#include <ini.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/check.h"
#include "base/escape.h"
#include "conf/conf_origin.h"

enum { CONF_MOST_FILE_BYTES = 1 << 20, CONF_MOST_LISTED = 100 };

struct conf_reading {
    struct conf *conf;
    const char *name;  /* of the file, for messages */
    const char *place; /* of the file, for paths relative to it */
    const char *at, *end;
    struct buf *mistakes;
    int n_mistakes;
    int line;           /* of the line inih has now, from 1 */
    bool section_known; /* else its keys are passed over: the section is the mistake */
    bool out_of_memory;
    char section[CONF_NAME_BYTES];
    int first_line[CONF_OPTIONS]; /* where this file set the option; 0: it has not */
};

static void __attribute__((format(printf, 2, 3)))
mistake(struct conf_reading *r, const char *format, ...)
{
    char raw[700], clean[1000];
    r->n_mistakes++;
    if (r->n_mistakes > CONF_MOST_LISTED)
        return; /* conf_read_text says how many more there are */
    va_list args;
    va_start(args, format);
    (void)vsnprintf(raw, sizeof raw, format, args);
    va_end(args);
    (void)escape_text(clean, sizeof clean, r->name, strlen(r->name));
    buf_printf(r->mistakes, "%s:%d: ", clean, r->line);
    (void)escape_text(clean, sizeof clean, raw, strlen(raw));
    buf_printf(r->mistakes, "%s\n", clean);
}

/* Start of the comment in a line, or its end. A comment starts with # or ; at the line's begin or
 * behind a space or tab. */
static size_t
comment_start(const char *line, size_t length)
{
    for (size_t i = 0; i < length; i++)
        if ((line[i] == '#' || line[i] == ';') &&
            (i == 0 || line[i - 1] == ' ' || line[i - 1] == '\t'))
            return i;
    return length;
}

static bool
line_is_text(struct conf_reading *r, const char *line, size_t length)
{
    for (size_t i = 0; i < length;) {
        unsigned char byte = (unsigned char)line[i];
        size_t taken = escape_utf8_length(line + i, length - i);
        if (taken == 0) {
            mistake(r, "byte %zu of the line is not valid UTF-8 (0x%02x)", i + 1, byte);
            return false;
        }
        if ((byte < 0x20 && byte != '\t') || byte == 0x7F) {
            mistake(r, "byte %zu of the line is a control character (0x%02x)", i + 1, byte);
            return false;
        }
        i += taken;
    }
    return true;
}

static void
section_line(struct conf_reading *r, const char *line, size_t length)
{
    r->section_known = false;
    if (line[length - 1] != ']') {
        mistake(r, "expected ']' at the end of the section header");
        return;
    }
    size_t name_bytes = length - 2;
    if (name_bytes >= sizeof r->section) {
        mistake(r, "unknown section '[%.*s...'", 60, line + 1);
        return;
    }
    memcpy(r->section, line + 1, name_bytes);
    r->section[name_bytes] = '\0';
    if (name_bytes > 0 && conf_section_exists(r->section)) {
        r->section_known = true;
        return;
    }
    const char *nearest = conf_section_nearest(r->section);
    if (nearest)
        mistake(r, "unknown section '[%s]': did you mean '[%s]'?", r->section, nearest);
    else
        mistake(r, "unknown section '[%s]'", r->section);
}

/* The next line that inih shall split, without what surrounds it; false: it shall see an empty one.
 */
static bool
next_line(struct conf_reading *r, int room, const char **ret_line, size_t *ret_length)
{
    const char *line = r->at, *newline = memchr(line, '\n', (size_t)(r->end - line));
    size_t length = (size_t)((newline ? newline : r->end) - line);
    r->at = newline ? newline + 1 : r->end;
    r->line++;
    if (r->line == 1 && length >= 3 && memcmp(line, "\xEF\xBB\xBF", 3) == 0) {
        line += 3; /* a byte order mark says nothing in UTF-8 */
        length -= 3;
    }
    if (length && line[length - 1] == '\r')
        length--;
    if (!line_is_text(r, line, length))
        return false;
    length = comment_start(line, length);
    while (length && (line[length - 1] == ' ' || line[length - 1] == '\t'))
        length--;
    while (length && (*line == ' ' || *line == '\t')) {
        line++;
        length--;
    }
    if (length == 0)
        return false;
    if (*line == '[') {
        section_line(r, line, length);
        return false;
    }
    if (!r->section_known)
        return false;
    const char *equals = memchr(line, '=', length);
    if (!equals || equals == line || memchr(line, ':', (size_t)(equals - line))) {
        mistake(r, "expected 'key = value', '[section]' or a comment");
        return false;
    }
    if (length + 2 > (size_t)room) {
        mistake(r, "the line has %zu bytes; at most %d are read (--set takes longer values)",
                length, room - 2);
        return false;
    }
    *ret_line = line;
    *ret_length = length;
    return true;
}

static char *
reading_gets(char *out, int room, void *arg)
{
    struct conf_reading *r = arg;
    const char *line;
    size_t length;
    ASSERT(room > 2);
    if (r->at == r->end)
        return NULL;
    if (!next_line(r, room, &line, &length))
        length = 0;
    if (length)
        memcpy(out, line, length);
    out[length] = '\n';
    out[length + 1] = '\0';
    return out;
}

/* A path as seen from the folder of the file that names it. malloc'ed; NULL without memory. */
static char *
path_from_file(const char *file, const char *path)
{
    const char *slash = strrchr(file, '/');
    if (*path == '\0' || *path == '/' || !slash)
        return strdup(path);
    size_t folder_bytes = (size_t)(slash - file) + 1, path_bytes = strlen(path) + 1;
    char *joined = malloc(folder_bytes + path_bytes);
    if (joined) {
        memcpy(joined, file, folder_bytes);
        memcpy(joined + folder_bytes, path, path_bytes);
    }
    return joined;
}

static void
reading_assign(struct conf_reading *r, int option, const char *text)
{
    char name[CONF_NAME_BYTES];
    struct err err = ERR_INIT;
    bool is_path =
        conf_options[option].kind == CONF_KIND_TEXT && conf_options[option].form == CONF_PATH;
    char *joined = is_path ? path_from_file(r->place, text) : NULL;
    int result = is_path && !joined ? -ENOMEM
                                    : conf_assign(r->conf, option, joined ? joined : text,
                                                  CONF_FROM_FILE, r->name, r->line, &err);
    if (result == -ENOMEM)
        r->out_of_memory = true;
    else if (result < 0)
        mistake(r, "%s%s%s", conf_option_name(option, name), *text ? ": " : " ", err.text);
    free(joined);
}

static int
reading_pair(void *arg, const char *inih_section, const char *key, const char *value)
{
    struct conf_reading *r = arg;
    char name[CONF_NAME_BYTES];
    int option = conf_option_find(r->section, key);
    if (option < 0) {
        const char *dot = *r->section ? "." : "";
        int nearest = conf_option_nearest(r->section, key);
        if (nearest < 0)
            mistake(r, "unknown option '%s%s%.80s'", r->section, dot, key);
        else
            mistake(r, "unknown option '%s%s%.80s': did you mean '%s'%s?", r->section, dot, key,
                    conf_option_name(nearest, name),
                    *r->section && !*conf_options[nearest].section ? ", before the first section"
                                                                   : "");
    } else if (r->first_line[option]) {
        mistake(r, "%s is set twice: first on line %d", conf_option_name(option, name),
                r->first_line[option]);
    } else if (*value == '"' || *value == '\'') {
        /* Taken as it stands, the quotes would become a part of a path or name. */
        mistake(r, "%s: values are written without quotes", conf_option_name(option, name));
        r->first_line[option] = r->line;
    } else if (*value == '#' || *value == ';') {
        /* "key =#x": with a space it would be a comment. One of the two would surprise. */
        mistake(r, "%s: a value cannot begin with '%c'", conf_option_name(option, name), *value);
        r->first_line[option] = r->line;
    } else {
        r->first_line[option] = r->line;
        reading_assign(r, option, value);
    }
    return 1;
}

static int
reading_run(struct conf *conf, const char *name, const char *place, const char *text, size_t size,
            struct buf *mistakes)
{
    struct conf_reading r = {.conf = conf,
                             .name = name,
                             .place = place,
                             .at = text,
                             .end = text + size,
                             .mistakes = mistakes,
                             .section_known = true};
    int result = ini_parse_stream(reading_gets, &r, reading_pair, &r);
    if (result < 0 || r.out_of_memory)
        return -ENOMEM;
    if (result > 0) { /* what we let through, inih understands; should a build of it not, say so */
        r.line = result;
        mistake(&r, "expected 'key = value', '[section]' or a comment");
    }
    if (r.n_mistakes > CONF_MOST_LISTED)
        buf_printf(mistakes, "%s: %d more mistakes\n", name, r.n_mistakes - CONF_MOST_LISTED);
    return r.n_mistakes;
}

int
conf_read_text(struct conf *conf, const char *name, const char *text, size_t size,
               struct buf *mistakes)
{
    return reading_run(conf, name, name, text, size, mistakes);
}

static int
read_whole(int fd, char *out, size_t size, size_t *ret_size)
{
    size_t used = 0;
    while (used < size) {
        ssize_t got = read(fd, out + used, size - used);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -errno;
        if (got == 0)
            break;
        used += (size_t)got;
    }
    *ret_size = used;
    return 0;
}

int
conf_read_file(struct conf *conf, const char *path, struct buf *mistakes, struct err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_errno(err, errno, "%s", path);
    size_t size = 0;
    char *place = realpath(path, NULL); /* so that the paths stay right whoever reads them where */
    char *text = malloc(CONF_MOST_FILE_BYTES + 1);
    int result = text ? read_whole(fd, text, CONF_MOST_FILE_BYTES + 1, &size) : -ENOMEM;
    (void)close(fd);
    if (result == 0 && size > CONF_MOST_FILE_BYTES)
        result = err_set(err, EFBIG, "%s: larger than 1 MiB, which no configuration is", path);
    else if (result < 0)
        result = err_errno(err, -result, "%s", path);
    else
        result = reading_run(conf, path, place ? place : path, text, size, mistakes);
    if (result == -ENOMEM)
        (void)err_errno(err, ENOMEM, "%s", path);
    free(text);
    free(place);
    return result;
}
