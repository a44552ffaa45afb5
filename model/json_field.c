#include "model/json_field.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* jansson's lexer goes on after a failed allocation with the characters dropped that it could not
 * store: the tree may come out with "EngramForCausaLM" in it, or a string be copied past its end.
 * So while a text is parsed here, the first failure makes all later ones fail too, and is
 * remembered. Set before main, when there are no other threads; outside of json_field_parse it is
 * malloc.                  */
static _Thread_local struct {
    bool parsing, failed;
} allocation;

static void *
careful_malloc(size_t size_bytes)
{
    if (!allocation.parsing)
        return malloc(size_bytes);
    void *memory = allocation.failed ? NULL : malloc(size_bytes);
    allocation.failed = !memory;
    return memory;
}

__attribute__((constructor)) static void
set_allocator(void)
{
    json_set_alloc_funcs(careful_malloc, free);
}

/* At least the number of values in a valid text: each is first in it, or follows one of these. An
 * empty array or object counts one too many. */
static size_t
count_values(const char *text, size_t size_bytes)
{
    size_t values = 1;
    bool quoted = false;
    for (size_t i = 0; i < size_bytes; i++) {
        char c = text[i];
        if (quoted && c == '\\')
            i++;
        else if (c == '"')
            quoted = !quoted;
        else if (!quoted && (c == ',' || c == '[' || c == '{'))
            values++;
    }
    return values;
}

int
json_field_parse(json_t **ret_object, const char *text, size_t size_bytes, size_t max_values,
                 const char *name, struct err *err)
{
    if (count_values(text, size_bytes) > max_values)
        return err_set(err, EBADMSG, "%s: more than %zu JSON values", name, max_values);
    json_error_t error;
    allocation.parsing = true;
    allocation.failed = false;
    json_t *object = json_loadb(text, size_bytes, JSON_REJECT_DUPLICATES, &error);
    allocation.parsing = false;
    if (allocation.failed) {
        json_decref(object);
        return err_set(err, ENOMEM, "%s: out of memory", name);
    }
    if (!object)
        return err_set(err, EBADMSG, "%s:%d:%d: not valid JSON: %s", name, error.line, error.column,
                       error.text);
    if (!json_is_object(object)) {
        json_decref(object);
        return err_set(err, EBADMSG, "%s: not a JSON object", name);
    }
    *ret_object = object;
    return 0;
}

static void
close_fd(const int *fd)
{
    if (*fd >= 0)
        (void)close(*fd);
}

static void
free_text(char **text)
{
    free(*text);
}

int
json_field_load(json_t **ret_object, const char *path, size_t max_bytes, size_t max_values,
                struct err *err)
{
    /* O_NONBLOCK: opening a FIFO must not wait for a writer. */
    int fd __attribute__((cleanup(close_fd))) = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return err_errno(err, errno, "cannot open %s", path);
    struct stat st;
    if (fstat(fd, &st) < 0)
        return err_errno(err, errno, "cannot stat %s", path);
    if (!S_ISREG(st.st_mode))
        return err_set(err, EBADMSG, "%s is not a regular file", path);
    if ((uint64_t)st.st_size > max_bytes)
        return err_set(err, EBADMSG, "%s: %lld bytes, more than the limit of %zu", path,
                       (long long)st.st_size, max_bytes);
    size_t size = (size_t)st.st_size, have = 0;
    char *text __attribute__((cleanup(free_text))) = malloc(size ? size : 1);
    if (!text)
        return err_set(err, ENOMEM, "%s: out of memory", path);
    while (have < size) {
        ssize_t n = read(fd, text + have, size - have);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_errno(err, errno, "cannot read %s", path);
        if (n == 0)
            return err_set(err, EBADMSG, "%s shrank while it was read", path);
        have += (size_t)n;
    }
    return json_field_parse(ret_object, text, size, max_values, path, err);
}

static int
wrong_type(struct err *err, const char *where, const char *key, const char *expected,
           const json_t *found)
{
    static const char *const names[] = {
        [JSON_OBJECT] = "an object",   [JSON_ARRAY] = "an array",     [JSON_STRING] = "a string",
        [JSON_INTEGER] = "an integer", [JSON_REAL] = "a real number", [JSON_TRUE] = "true",
        [JSON_FALSE] = "false",        [JSON_NULL] = "null"};
    return err_set(err, EBADMSG, "%s%s: expected %s, found %s", where, key, expected,
                   names[json_typeof(found)]);
}

int
json_field_int(const json_t *object, const char *where, const char *key, int64_t min, int64_t max,
               const int64_t *fallback, int64_t *ret, struct err *err)
{
    const json_t *value = json_field_get(object, key);
    if (!value && !fallback)
        return err_set(err, EBADMSG, "%s%s is missing", where, key);
    if (!value) {
        *ret = *fallback;
        return 0;
    }
    if (!json_is_integer(value))
        return wrong_type(err, where, key, "an integer", value);
    int64_t number = json_integer_value(value);
    if (number < min || number > max)
        return err_set(err, EBADMSG, "%s%s: %lld is not in %lld..%lld", where, key,
                       (long long)number, (long long)min, (long long)max);
    *ret = number;
    return 0;
}

int
json_field_real(const json_t *object, const char *where, const char *key, double min, double max,
                const double *fallback, double *ret, struct err *err)
{
    const json_t *value = json_field_get(object, key);
    if (!value && !fallback)
        return err_set(err, EBADMSG, "%s%s is missing", where, key);
    if (!value) {
        *ret = *fallback;
        return 0;
    }
    if (!json_is_number(value))
        return wrong_type(err, where, key, "a number", value);
    double number = json_number_value(value);
    if (!(number >= min && number <= max))
        return err_set(err, EBADMSG, "%s%s: %.17g is not in %.17g..%.17g", where, key, number, min,
                       max);
    *ret = number;
    return 0;
}

int
json_field_bool(const json_t *object, const char *where, const char *key, bool fallback, bool *ret,
                struct err *err)
{
    const json_t *value = json_field_get(object, key);
    if (value && !json_is_boolean(value))
        return wrong_type(err, where, key, "true or false", value);
    *ret = value ? json_is_true(value) : fallback;
    return 0;
}

int
json_field_text(const json_t *object, const char *where, const char *key, const char **ret,
                struct err *err)
{
    const json_t *value = json_field_get(object, key);
    if (value && !json_is_string(value))
        return wrong_type(err, where, key, "a string", value);
    *ret = value ? json_string_value(value) : NULL;
    return 0;
}
