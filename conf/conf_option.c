/* conf_option: see conf_option.h. */
#include "conf/conf_option.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

const struct conf_option conf_options[CONF_OPTIONS] = {
#define CONF_TEXT(id_, section_, key_, def_, form_, live_, help_)                                  \
    {.section = section_,                                                                          \
     .key = key_,                                                                                  \
     .kind = CONF_KIND_TEXT,                                                                       \
     .form = form_,                                                                                \
     .liveness = live_,                                                                            \
     .def = def_,                                                                                  \
     .help = help_,                                                                                \
     .offset = offsetof(struct conf, id_)},
#define CONF_WORD(id_, section_, key_, def_, words_, live_, help_)                                 \
    {.section = section_,                                                                          \
     .key = key_,                                                                                  \
     .kind = CONF_KIND_WORD,                                                                       \
     .liveness = live_,                                                                            \
     .def = def_,                                                                                  \
     .words = words_,                                                                              \
     .help = help_,                                                                                \
     .offset = offsetof(struct conf, id_)},
#define CONF_BOUNDED(id_, section_, key_, kind_, def_, min_, max_, live_, help_)                   \
    {.section = section_,                                                                          \
     .key = key_,                                                                                  \
     .kind = kind_,                                                                                \
     .liveness = live_,                                                                            \
     .def = def_,                                                                                  \
     .min = min_,                                                                                  \
     .max = max_,                                                                                  \
     .help = help_,                                                                                \
     .offset = offsetof(struct conf, id_)},
#define CONF_INT(id, section, key, def, min, max, live, help)                                      \
    CONF_BOUNDED(id, section, key, CONF_KIND_INT, #def, #min, #max, live, help)
#define CONF_REAL(id, section, key, def, min, max, live, help)                                     \
    CONF_BOUNDED(id, section, key, CONF_KIND_REAL, #def, #min, #max, live, help)
#define CONF_SIZE(id, section, key, def, min, max, live, help)                                     \
    CONF_BOUNDED(id, section, key, CONF_KIND_SIZE, def, min, max, live, help)
#define CONF_TIME(id, section, key, def, min, max, live, help)                                     \
    CONF_BOUNDED(id, section, key, CONF_KIND_TIME, def, min, max, live, help)
#define CONF_BOOL(id, section, key, def, live, help)                                               \
    CONF_BOUNDED(id, section, key, CONF_KIND_BOOL, #def, NULL, NULL, live, help)
#include "conf/options.h"
};

int
conf_option_find(const char *section, const char *key)
{
    for (int i = 0; i < CONF_OPTIONS; i++)
        if (strcmp(conf_options[i].section, section) == 0 && strcmp(conf_options[i].key, key) == 0)
            return i;
    return -ENOENT;
}

const char *
conf_option_name(int option, char out[CONF_NAME_BYTES])
{
    const struct conf_option *o = &conf_options[option];
    (void)snprintf(out, CONF_NAME_BYTES, "%s%s%s", o->section, *o->section ? "." : "", o->key);
    return out;
}

int
conf_option_find_name(const char *name)
{
    char known[CONF_NAME_BYTES];
    for (int i = 0; i < CONF_OPTIONS; i++)
        if (strcmp(conf_option_name(i, known), name) == 0)
            return i;
    return -ENOENT;
}

bool
conf_section_exists(const char *section)
{
    for (int i = 0; i < CONF_OPTIONS; i++)
        if (strcmp(conf_options[i].section, section) == 0)
            return true;
    return false;
}

enum { CONF_TYPED_BYTES = CONF_NAME_BYTES };

static int
least(int a, int b)
{
    return a < b ? a : b;
}

/* Insertions, deletions, replacements and swaps of neighbours that turn a into b, case apart
 * (restricted Damerau-Levenshtein distance). Both shorter than CONF_TYPED_BYTES. */
static int
edit_distance(const char *a, const char *b)
{
    int rows[3][CONF_TYPED_BYTES + 1];
    int *before = rows[0], *above = rows[1], *here = rows[2];
    int a_length = (int)strlen(a), b_length = (int)strlen(b);
    for (int j = 0; j <= b_length; j++)
        above[j] = j;
    for (int i = 1; i <= a_length; i++) {
        here[0] = i;
        for (int j = 1; j <= b_length; j++) {
            int x = tolower((unsigned char)a[i - 1]), y = tolower((unsigned char)b[j - 1]);
            here[j] = least(least(above[j] + 1, here[j - 1] + 1), above[j - 1] + (x != y));
            if (i > 1 && j > 1 && x == tolower((unsigned char)b[j - 2]) &&
                y == tolower((unsigned char)a[i - 2]))
                here[j] = least(here[j], before[j - 2] + 1);
        }
        int *free_row = before;
        before = above;
        above = here;
        here = free_row;
    }
    return above[b_length];
}

/* How far off a typed name may be and still be taken for a slip. */
static int
slip_limit(const char *typed)
{
    int third = (int)strlen(typed) / 3;
    return third < 1 ? 1 : third > 4 ? 4 : third;
}

int
conf_option_nearest(const char *section, const char *key)
{
    char typed[CONF_TYPED_BYTES], known[CONF_NAME_BYTES];
    if (snprintf(typed, sizeof typed, "%s%s%s", section, *section ? "." : "", key) >=
        (int)sizeof typed)
        return -ENOENT;
    int best = -ENOENT, best_cost = slip_limit(typed) + 1;
    for (int i = 0; i < CONF_OPTIONS; i++) {
        int cost = edit_distance(typed, conf_option_name(i, known));
        /* Within its own section a key is compared with keys alone: server.port is not server.host.
         */
        if (strcmp(conf_options[i].section, section) == 0 &&
            edit_distance(key, conf_options[i].key) > slip_limit(key))
            continue;
        /* The right key under the wrong section is a likely slip, however far the sections are. */
        if (strcasecmp(conf_options[i].key, key) == 0)
            cost = least(cost, 1);
        if (cost < best_cost) {
            best = i;
            best_cost = cost;
        }
    }
    return best;
}

const char *
conf_section_nearest(const char *section)
{
    const char *best = NULL;
    if (strlen(section) >= CONF_TYPED_BYTES)
        return NULL;
    int best_cost = slip_limit(section) + 1;
    for (int i = 0; i < CONF_OPTIONS; i++) {
        int cost = edit_distance(section, conf_options[i].section);
        if (*conf_options[i].section && cost < best_cost) {
            best = conf_options[i].section;
            best_cost = cost;
        }
    }
    return best;
}
