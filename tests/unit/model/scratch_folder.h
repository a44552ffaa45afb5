/* scratch_folder: a temporary folder of one test, and safetensors files in it. */
#ifndef TESTS_SCRATCH_FOLDER_H
#define TESTS_SCRATCH_FOLDER_H

#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char scratch_folder[64];

static inline const char *
scratch_path(const char *name)
{
    static char path[4][400];
    static int turn;
    turn = (turn + 1) % 4;
    (void)snprintf(path[turn], sizeof path[turn], "%s/%s", scratch_folder, name);
    return path[turn];
}

/* Setup and teardown of cmocka. */
static inline int
scratch_make(void **state)
{
    (void)state;
    (void)snprintf(scratch_folder, sizeof scratch_folder, "/tmp/engramd-test-XXXXXX");
    return mkdtemp(scratch_folder) ? 0 : -1;
}

static inline int
scratch_remove(void **state)
{
    (void)state;
    DIR *dir = opendir(scratch_folder);
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            (void)remove(scratch_path(entry->d_name));
    }
    if (dir)
        (void)closedir(dir);
    return rmdir(scratch_folder);
}

static inline int
scratch_write(const char *name, const void *bytes, size_t size)
{
    int fd = open(scratch_path(name), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0)
        return -1;
    ssize_t written = write(fd, bytes, size);
    return close(fd) == 0 && written == (ssize_t)size ? 0 : -1;
}

static inline int
scratch_write_text(const char *name, const char *text)
{
    return scratch_write(name, text, strlen(text));
}

/* The bytes of a safetensors file: length, header, then data_bytes bytes that count 0, 1, 2 ...
 * The caller frees them. */
static inline uint8_t *
safetensors_bytes(const char *header, size_t data_bytes, size_t *ret_size)
{
    size_t length = strlen(header);
    uint8_t *bytes = malloc(8 + length + data_bytes);
    for (int i = 0; i < 8; i++)
        bytes[i] = (uint8_t)((uint64_t)length >> 8 * i);
    memcpy(bytes + 8, header, length);
    for (size_t i = 0; i < data_bytes; i++)
        bytes[8 + length + i] = (uint8_t)i;
    *ret_size = 8 + length + data_bytes;
    return bytes;
}

static inline int
scratch_write_safetensors(const char *name, const char *header, size_t data_bytes)
{
    size_t size;
    uint8_t *bytes = safetensors_bytes(header, data_bytes, &size);
    int r = scratch_write(name, bytes, size);
    free(bytes);
    return r;
}

#endif
