/* json_check: see json_check.h. */
#include "model/json_check.h"

#include <stdlib.h>

/* As much of a value as a message can take. */
static int
shown(struct json_span span)
{
    return span.size_bytes > 100 ? 100 : (int)span.size_bytes;
}

int
json_check_kind(struct json_span span, enum json_kind kind, const char *where, struct err *err)
{
    if (json_span_kind(span) == kind)
        return 0;
    return err_set(err, EBADMSG, "%s is %s where %s belongs", where,
                   json_kind_text(json_span_kind(span)), json_kind_text(kind));
}

int
json_check_type(struct json_span object, const char *where, struct json_span *ret_type,
                struct err *err)
{
    int r = json_check_kind(object, JSON_OBJECT, where, err);
    if (r < 0)
        return r;
    *ret_type = json_span_member(object, "type");
    if (json_span_kind(*ret_type) != JSON_STRING)
        return err_set(err, EBADMSG, "%s: \"type\" is %s where a string belongs", where,
                       json_kind_text(json_span_kind(*ret_type)));
    return 0;
}

int
json_check_refuse(struct json_span type, const char *where, struct err *err)
{
    return err_set(err, ENOTSUP, "%s: type %.*s is not supported", where, shown(type), type.text);
}

int
json_check_members(struct json_span object, const char *where, const char *const *names,
                   struct json_span *ret_values, struct err *err)
{
    struct json_walk walk = json_walk(object);
    struct json_span key, value;
    for (int i = 0; ret_values && names[i]; i++)
        ret_values[i] = (struct json_span){0};
    while (json_walk_next(&walk, &key, &value)) {
        int i = 0;
        while (names[i] && !json_span_is(key, names[i]))
            i++;
        if (!names[i])
            return err_set(err, ENOTSUP, "%s: %.*s is not supported", where, shown(key), key.text);
        if (ret_values)
            ret_values[i] = value;
    }
    return 0;
}

int
json_check_bool(struct json_span object, const char *where, const char *name, bool fallback,
                bool *ret_value, struct err *err)
{
    struct json_span value = json_span_member(object, name);
    enum json_kind kind = json_span_kind(value);
    if (kind == JSON_NONE || kind == JSON_NIL) {
        *ret_value = fallback;
        return 0;
    }
    if (!json_span_bool(value, ret_value))
        return err_set(err, EBADMSG, "%s: \"%s\" is %s where a boolean belongs", where, name,
                       json_kind_text(json_span_kind(value)));
    return 0;
}

int
json_check_string(struct json_span object, const char *where, const char *name, char **ret_text,
                  size_t *ret_size_bytes, struct err *err)
{
    struct json_span value = json_span_member(object, name);
    if (json_span_kind(value) != JSON_STRING)
        return err_set(err, EBADMSG, "%s: \"%s\" is %s where a string belongs", where, name,
                       json_kind_text(json_span_kind(value)));
    char *text = malloc(value.size_bytes);
    if (!text)
        return err_errno(err, ENOMEM, "%s: \"%s\"", where, name);
    *ret_size_bytes = json_span_string(value, text);
    text[*ret_size_bytes] = '\0';
    *ret_text = text;
    return 0;
}
