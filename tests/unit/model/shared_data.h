/* shared_data: corpora and tokenizers that lie beside the checkout, plain or .xz. Tests skip
 * without them. */
#ifndef TESTS_SHARED_DATA_H
#define TESTS_SHARED_DATA_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SHARED_DATA "../shared/data/"

/* All a stream has, malloc'd, with a NUL behind it; NULL when that fails. */
static inline char *
stream_read(FILE *stream, size_t *ret_size)
{
    size_t size = 0, capacity = 1 << 16;
    char *data = malloc(capacity);
    while (data) {
        size_t n = fread(data + size, 1, capacity - size - 1, stream);
        size += n;
        if (n == 0)
            break;
        if (size + 1 == capacity) {
            char *grown = realloc(data, capacity *= 2);
            if (!grown)
                free(data);
            data = grown;
        }
    }
    if (data)
        data[size] = '\0';
    *ret_size = size;
    return data;
}

static inline char *
file_read(const char *path, size_t *ret_size)
{
    FILE *stream = fopen(path, "rb");
    char *data = stream ? stream_read(stream, ret_size) : NULL;
    if (stream)
        (void)fclose(stream);
    return data;
}

/* The file of that name under the shared data, unpacked; NULL, with a message, when it is not
 * there. */
static inline char *
shared_data_read(const char *name, size_t *ret_size)
{
    char path[512], command[600];
    (void)snprintf(path, sizeof path, SHARED_DATA "%s", name);
    char *data = file_read(path, ret_size);
    if (data)
        return data;
    (void)snprintf(path, sizeof path, SHARED_DATA "%s.xz", name);
    FILE *there = fopen(path, "rb");
    if (there) {
        (void)fclose(there);
        (void)snprintf(command, sizeof command, "xz -dc '%s'", path);
        FILE *stream = popen(command, "r");
        data = stream ? stream_read(stream, ret_size) : NULL;
        if (stream && pclose(stream) != 0) {
            free(data);
            data = NULL;
        }
    }
    if (!data)
        (void)fprintf(stderr, "skipped: no %s%s, plain or as .xz\n", SHARED_DATA, name);
    return data;
}

#endif
