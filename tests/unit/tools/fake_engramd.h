/* fake_engramd: a UNIX socket in a temporary folder that takes one connection, keeps what it is
 * sent and answers with given bytes. */
#ifndef TESTS_FAKE_ENGRAMD_H
#define TESTS_FAKE_ENGRAMD_H

#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

struct fake_engramd {
    char folder[64], path[100];
    int listener;
    pthread_t thread;
    const char *answer; /* NULL: nothing, and the connection stays open until the client goes */
    size_t answer_size;
    size_t step_bytes;  /* bytes per write, with a pause behind each; 0: all at once */
    bool keep_open;     /* after the answer, until the client closes */
    char request[8192]; /* NUL-terminated */
};

/* The request has come whole: its head, and as many bytes as its content-length says. */
static inline bool
fake_has_request(const char *request)
{
    const char *end = strstr(request, "\r\n\r\n"), *length = strstr(request, "content-length: ");
    return end && (!length || strlen(end + 4) >= strtoul(length + 16, NULL, 10));
}

static inline void *
fake_main(void *arg)
{
    struct fake_engramd *fake = arg;
    int fd = accept(fake->listener, NULL, NULL);
    size_t have = 0;
    ssize_t n = 1;
    while (fd >= 0 && n > 0 && !fake_has_request(fake->request)) {
        n = read(fd, fake->request + have, sizeof fake->request - 1 - have);
        have += n > 0 ? (size_t)n : 0;
    }
    size_t step = fake->step_bytes ? fake->step_bytes : fake->answer_size;
    for (size_t at = 0; fake->answer && at < fake->answer_size; at += step) {
        size_t left = fake->answer_size - at;
        if (send(fd, fake->answer + at, left < step ? left : step, MSG_NOSIGNAL) < 0)
            break;
        if (fake->step_bytes)
            (void)usleep(200);
    }
    char byte;
    if (!fake->answer || fake->keep_open)
        (void)read(fd, &byte, 1);
    (void)close(fd);
    return NULL;
}

static inline void
fake_start(struct fake_engramd *fake)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    (void)snprintf(fake->folder, sizeof fake->folder, "/tmp/engramd-test-XXXXXX");
    assert_non_null(mkdtemp(fake->folder));
    (void)snprintf(fake->path, sizeof fake->path, "%s/engramctl.sock", fake->folder);
    (void)snprintf(address.sun_path, sizeof address.sun_path, "%s", fake->path);
    if (fake->answer && !fake->answer_size)
        fake->answer_size = strlen(fake->answer);
    fake->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fake->listener, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(fake->listener, 4), 0);
    assert_int_equal(pthread_create(&fake->thread, NULL, fake_main, fake), 0);
}

static inline void
fake_stop(struct fake_engramd *fake)
{
    (void)shutdown(fake->listener, SHUT_RDWR); /* wakes an accept nobody came to */
    assert_int_equal(pthread_join(fake->thread, NULL), 0);
    (void)close(fake->listener);
    assert_int_equal(unlink(fake->path), 0);
    assert_int_equal(rmdir(fake->folder), 0);
}

#endif
