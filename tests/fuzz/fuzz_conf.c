/* fuzz_conf: bytes as a configuration file and as a --set. Whatever was accepted must print as a
 * file that reads back as the same values. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "conf/conf_value.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
same_values(const struct conf *a, const struct conf *b)
{
    struct buf x = {0}, y = {0};
    for (int i = 0; i < CONF_OPTIONS; i++) {
        buf_reset(&x);
        buf_reset(&y);
        conf_value_render(&conf_options[i], a, &x);
        conf_value_render(&conf_options[i], b, &y);
        ASSERT(x.size_bytes == y.size_bytes);
        ASSERT(x.size_bytes == 0 || memcmp(x.data, y.data, x.size_bytes) == 0);
    }
    buf_free(&x);
    buf_free(&y);
}

static void
read_back(const struct conf *conf)
{
    char *text = NULL;
    size_t size = 0;
    struct conf *again = NULL;
    struct buf mistakes = {0};
    FILE *out = open_memstream(&text, &size);
    ASSERT(out);
    conf_print_values(conf, out);
    ASSERT(fclose(out) == 0);
    ASSERT(conf_new(&again, NULL) == 0);
    int n = conf_read_text(again, "printed", text, size, &mistakes);
    buf_append(&mistakes, "", 1);
    if (n == 0)
        same_values(conf, again);
    else /* "a=b" is printed as "a = b", which may be the two bytes too many */
        ASSERT(strstr(mistakes.data, "at most"));
    (void)conf_free(again);
    buf_free(&mistakes);
    free(text);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct conf *conf = NULL;
    struct buf mistakes = {0};
    ASSERT(conf_new(&conf, NULL) == 0);
    int n = conf_read_text(conf, "fuzz", (const char *)data, size, &mistakes);
    ASSERT(n >= 0);
    ASSERT((n == 0) == (mistakes.size_bytes == 0));
    read_back(conf);

    char *assignment = malloc(size + 1);
    struct err err = ERR_INIT;
    ASSERT(assignment);
    memcpy(assignment, data, size);
    assignment[size] = '\0';
    int result = conf_set(conf, assignment, &err);
    ASSERT(result == 0 || (result == -EINVAL && err.text[0]));
    free(assignment);
    buf_free(&mistakes);
    (void)conf_free(conf);
    return 0;
}
