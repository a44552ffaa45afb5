/* conf_value: see conf_value.h. */
#include "conf/conf_value.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/byte_size.h"
#include "base/check.h"
#include "base/duration.h"
#include "base/escape.h"

/* A description for messages; the longest row fits. */
struct description {
    char text[200];
};

static struct description
describe(const struct conf_option *option)
{
    struct description result = {.text = ""};
    struct buf out = {.limit_bytes = sizeof result.text - 1};
    conf_value_describe(option, &out);
    if (out.size_bytes)
        memcpy(result.text, out.data, out.size_bytes);
    buf_free(&out);
    return result;
}

void
conf_value_describe(const struct conf_option *option, struct buf *out)
{
    switch (option->kind) {
    case CONF_KIND_TEXT:
        buf_text(out, option->form == CONF_PATH      ? "a path"
                      : option->form == CONF_ADDRESS ? "host:port or [v6]:port"
                      : option->form == CONF_DEVICE  ? "cpu, auto or cuda:N"
                                                     : "a text");
        return;
    case CONF_KIND_WORD:
        buf_text(out, "one of ");
        for (const char *at = option->words; *at; at++) {
            if (*at == ' ')
                buf_text(out, ", ");
            else
                buf_append(out, at, 1);
        }
        return;
    case CONF_KIND_BOOL:
        buf_text(out, "true or false");
        return;
    case CONF_KIND_INT:
        buf_printf(out, "a whole number from %s to %s", option->min, option->max);
        return;
    case CONF_KIND_REAL:
        buf_printf(out, "a number from %s to %s", option->min, option->max);
        return;
    case CONF_KIND_SIZE:
        buf_printf(out, "a size from %s to %s", option->min, option->max);
        return;
    case CONF_KIND_TIME:
        buf_printf(out, "a time from %s to %s", option->min, option->max);
        return;
    }
}

static int
refuse(const struct conf_option *option, const char *text, struct err *err)
{
    if (*text == '\0')
        return err_set(err, EINVAL, "has no value: expected %s", describe(option).text);
    return err_set(err, EINVAL, "'%.80s': expected %s", text, describe(option).text);
}

/* Decimal, with a sign if need be; nothing else. */
static int
whole_parse(const char *text, int64_t *ret_whole)
{
    const char *digits = *text == '-' ? text + 1 : text;
    if (*digits == '\0' || digits[strspn(digits, "0123456789")] != '\0')
        return -EINVAL;
    errno = 0;
    long long whole = strtoll(text, NULL, 10);
    if (errno)
        return -ERANGE;
    *ret_whole = whole;
    return 0;
}

/* Decimal with a fraction and an exponent if need be; finite. */
static int
real_parse(const char *text, double *ret_real)
{
    char *end;
    if (*text == '\0' || text[strspn(text, "0123456789+-.eE")] != '\0')
        return -EINVAL;
    double real = strtod(text, &end);
    if (*end != '\0' || !isfinite(real))
        return -EINVAL;
    *ret_real = real;
    return 0;
}

static int
amount_parse(enum conf_kind kind, const char *text, uint64_t *ret_amount)
{
    return kind == CONF_KIND_SIZE ? byte_size_parse(text, ret_amount, NULL)
                                  : duration_parse(text, ret_amount, NULL);
}

/* Host and port as they are written; whether the host can be bound is found out at start. */
static bool
is_address(const char *text)
{
    const char *colon = strrchr(text, ':');
    int64_t port;
    if (!colon || colon == text || colon[1] == '-' || strlen(colon + 1) > 5 ||
        whole_parse(colon + 1, &port) < 0 || port > 65535)
        return false;
    size_t host_bytes = (size_t)(colon - text);
    if (text[0] == '[') /* the address itself is checked by who binds it */
        return host_bytes > 2 && colon[-1] == ']' &&
               strspn(text + 1, "0123456789abcdefABCDEF:.%") >= host_bytes - 2;
    return strcspn(text, ":[] /\t") == host_bytes;
}

static bool
is_device(const char *text)
{
    if (strcmp(text, "cpu") == 0 || strcmp(text, "auto") == 0)
        return true;
    size_t digits = strncmp(text, "cuda:", 5) == 0 ? strspn(text + 5, "0123456789") : 0;
    return digits >= 1 && digits <= 4 && text[5 + digits] == '\0';
}

static bool
is_word(const char *words, const char *text)
{
    size_t length = strlen(text);
    if (length == 0 || strchr(text, ' '))
        return false;
    for (const char *at = words; *at;) {
        size_t word = strcspn(at, " ");
        if (word == length && memcmp(at, text, length) == 0)
            return true;
        at += word + (at[word] == ' ');
    }
    return false;
}

static int
check_text(const struct conf_option *option, const char *text, struct err *err)
{
    size_t length = strlen(text);
    for (size_t at = 0; at < length;) {
        size_t taken = escape_utf8_length(text + at, length - at);
        if (taken == 0)
            return err_set(err, EINVAL, "'%.80s' is not valid UTF-8", text);
        if (taken == 1 && ((unsigned char)text[at] < 0x20 || text[at] == 0x7F))
            return err_set(err, EINVAL, "'%.80s' has a control character in it", text);
        at += taken;
    }
    if (option->kind == CONF_KIND_WORD)
        return is_word(option->words, text) ? 0 : refuse(option, text, err);
    bool fits = option->form == CONF_ADDRESS  ? is_address(text)
                : option->form == CONF_DEVICE ? is_device(text)
                                              : true;
    return fits ? 0 : refuse(option, text, err);
}

static int
truth_parse(const char *text, bool *ret_truth)
{
    static const char *const names[] = {"false", "true", "no", "yes", "off", "on"};
    for (int i = 0; i < 6; i++) {
        if (strcasecmp(text, names[i]) == 0) {
            *ret_truth = i % 2;
            return 0;
        }
    }
    return -EINVAL;
}

int
conf_value_parse(const struct conf_option *option, const char *text, union conf_value *ret_value,
                 struct err *err)
{
    union conf_value value = {0}, low = {0}, high = {0};
    int result = 0;
    bool within = true;
    switch (option->kind) {
    case CONF_KIND_TEXT:
    case CONF_KIND_WORD:
        result = check_text(option, text, err);
        if (result < 0)
            return result;
        value.text = strdup(text);
        if (!value.text)
            return err_errno(err, ENOMEM, "value of %zu bytes", strlen(text));
        break;
    case CONF_KIND_BOOL:
        result = truth_parse(text, &value.truth);
        break;
    case CONF_KIND_INT:
        result = whole_parse(text, &value.whole);
        ASSERT(whole_parse(option->min, &low.whole) == 0);
        ASSERT(whole_parse(option->max, &high.whole) == 0);
        within = value.whole >= low.whole && value.whole <= high.whole;
        break;
    case CONF_KIND_REAL:
        result = real_parse(text, &value.real);
        ASSERT(real_parse(option->min, &low.real) == 0);
        ASSERT(real_parse(option->max, &high.real) == 0);
        within = value.real >= low.real && value.real <= high.real;
        break;
    case CONF_KIND_SIZE:
    case CONF_KIND_TIME:
        result = amount_parse(option->kind, text, &value.amount);
        ASSERT(amount_parse(option->kind, option->min, &low.amount) == 0);
        ASSERT(amount_parse(option->kind, option->max, &high.amount) == 0);
        within = value.amount >= low.amount && value.amount <= high.amount;
        break;
    }
    if (result < 0 || !within)
        return refuse(option, text, err);
    *ret_value = value;
    return 0;
}

void
conf_value_render(const struct conf_option *option, const struct conf *conf, struct buf *out)
{
    const void *field = (const char *)conf + option->offset;
    char text[64];
    switch (option->kind) {
    case CONF_KIND_TEXT:
    case CONF_KIND_WORD:
        buf_text(out, *(char *const *)field);
        return;
    case CONF_KIND_BOOL:
        buf_text(out, *(const bool *)field ? "true" : "false");
        return;
    case CONF_KIND_INT:
        buf_printf(out, "%" PRId64, *(const int64_t *)field);
        return;
    case CONF_KIND_REAL:
        buf_printf(out, "%.17g", *(const double *)field);
        return;
    case CONF_KIND_SIZE: {
        uint64_t bytes = *(const uint64_t *)field, back = 0;
        (void)byte_size_format(bytes, text, sizeof text);
        /* What is shown must be what is meant: a form that was rounded is written out. */
        if (byte_size_parse(text, &back, NULL) < 0 || back != bytes)
            buf_printf(out, "%" PRIu64 "B", bytes);
        else
            buf_text(out, text);
        return;
    }
    case CONF_KIND_TIME:
        buf_text(out, duration_format(*(const uint64_t *)field, text, sizeof text));
        return;
    }
}
