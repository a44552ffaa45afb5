/* json_span: a JSON text checked once, then read in place.
 *
 * tokenizer.json holds half a million small values; a tree of them costs twenty times the file.
 * Here a value is a pair of pointers into the text. json_span_open checks the whole text (grammar,
 * UTF-8, escapes including lone surrogates, depth); everything after works on text known to be good
 * and cannot fail but for values of another type than asked for. Thread: none. The text must
 * outlive the spans.                                                    */
#ifndef MODEL_JSON_SPAN_H
#define MODEL_JSON_SPAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

enum json_kind {
    JSON_NONE,
    JSON_NIL,
    JSON_BOOL,
    JSON_NUMBER,
    JSON_STRING,
    JSON_ARRAY,
    JSON_OBJECT
};

/* One value without the white space around it; text NULL: no value (a member that is not there). */
struct json_span {
    const char *text;
    size_t size_bytes;
};

/* 0, or -EBADMSG with the byte offset and what was expected there. */
int json_span_open(struct json_span *ret_span, const char *text, size_t size_bytes,
                   struct err *err);
enum json_kind json_span_kind(struct json_span span);
/* "nothing", "null", "a boolean", ... for messages. */
const char *json_kind_text(enum json_kind kind);

/* Walks the members of an object or the elements of an array; of other kinds there are none. */
struct json_walk {
    const char *at, *end;
    bool is_object;
};
struct json_walk json_walk(struct json_span span);
/* False at the end. key is the string of the member; no value for an array. */
bool json_walk_next(struct json_walk *walk, struct json_span *ret_key, struct json_span *ret_value);

/* The last member of that (plain ASCII) name, as every JSON reader takes it; no value when there is
 * none. */
struct json_span json_span_member(struct json_span object, const char *name);
/* The span is a string equal to text. */
bool json_span_is(struct json_span span, const char *text);
/* A string's content without its escapes, to out (span.size_bytes of room is enough: no escape is
 * shorter than what it stands for). Returns the length; the span must be a string. */
size_t json_span_string(struct json_span span, char *out);
/* A number written as a plain integer that fits; else false. */
bool json_span_integer(struct json_span span, int64_t *ret_value);
bool json_span_bool(struct json_span span, bool *ret_value);

#endif
