#include "tools/admin_client.h"

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"

/* What a response head says about the body behind it. */
struct head {
    int status;
    size_t size_bytes; /* head and empty line */
    bool chunked, has_length;
    uint64_t length;
};

static void
close_fd(const int *fd)
{
    if (*fd >= 0)
        (void)close(*fd);
}

static int
cut_short(struct err *err)
{
    return err_set(err, EPROTO, "the answer ends too early");
}

/* Until the socket is ready for `events`, an error or the deadline. */
static int
wait_for(int fd, short events, uint64_t deadline_ns, struct err *err)
{
    for (;;) {
        uint64_t now = clock_now_ns();
        struct pollfd poll_fd = {.fd = fd, .events = events};
        if (now >= deadline_ns)
            return err_set(err, ETIMEDOUT, "no answer in time");
        uint64_t left_ms = (deadline_ns - now) / 1000000 + 1;
        int n = poll(&poll_fd, 1, left_ms > 60000 ? 60000 : (int)left_ms);
        if (n > 0)
            return 0;
        if (n < 0 && errno != EINTR)
            return err_errno(err, errno, "cannot wait for the socket");
    }
}

static int
connect_to(const char *path, uint64_t deadline_ns, struct err *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = strlen(path);
    if (length == 0 || length >= sizeof address.sun_path)
        return err_set(err, ENAMETOOLONG, "%s is not a path of 1 to %zu bytes", path,
                       sizeof address.sun_path - 1);
    memcpy(address.sun_path, path, length + 1);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return err_errno(err, errno, "cannot make a socket");
    /* A UNIX socket is connected at once, or its queue is full (EAGAIN): then try again. */
    while (connect(fd, (struct sockaddr *)&address, sizeof address) < 0) {
        int code = errno;
        if (code == EINTR)
            continue;
        if (code != EAGAIN) {
            (void)close(fd);
            return err_errno(err, code, "cannot connect to %s", path);
        }
        if (clock_now_ns() >= deadline_ns) {
            (void)close(fd);
            return err_set(err, ETIMEDOUT, "%s does not accept the connection", path);
        }
        (void)poll(NULL, 0, 20);
    }
    return fd;
}

static int
send_all(int fd, const struct buf *request, uint64_t deadline_ns, struct err *err)
{
    size_t sent = 0;
    while (sent < request->size_bytes) {
        int r = wait_for(fd, POLLOUT, deadline_ns, err);
        if (r < 0)
            return r;
        ssize_t n =
            send(fd, request->data + sent, request->size_bytes - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        /* It may have answered and closed before it read everything: the answer tells more. */
        if (n < 0 && (errno == EPIPE || errno == ECONNRESET))
            return 0;
        if (n < 0)
            return err_errno(err, errno, "cannot send the request");
        sent += (size_t)n;
    }
    return 0;
}

/* Reads some more bytes into `in`. 0 at the end of the stream, else 1. */
static int
receive(int fd, struct buf *in, uint64_t deadline_ns, struct err *err)
{
    char bytes[16384];
    for (;;) {
        int r = wait_for(fd, POLLIN, deadline_ns, err);
        if (r < 0)
            return r;
        ssize_t n = recv(fd, bytes, sizeof bytes, MSG_DONTWAIT);
        if (n < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (n < 0)
            return err_errno(err, errno, "cannot read the answer");
        if (n == 0)
            return 0;
        buf_append(in, bytes, (size_t)n);
        if (in->failed)
            return err_set(err, EPROTO, "the answer is larger than %d bytes", ADMIN_MAX_BODY_BYTES);
        return 1;
    }
}

/* A decimal number that fills `text` but for spaces around it. */
static bool
parse_length(const char *text, size_t size, uint64_t *ret)
{
    uint64_t value = 0;
    while (size && (text[0] == ' ' || text[0] == '\t'))
        text++, size--;
    while (size && (text[size - 1] == ' ' || text[size - 1] == '\t'))
        size--;
    for (size_t i = 0; i < size; i++) {
        if (text[i] < '0' || text[i] > '9')
            return false;
        value = value * 10 + (uint64_t)(text[i] - '0');
        if (value > ADMIN_MAX_BODY_BYTES)
            return false;
    }
    *ret = value;
    return size > 0;
}

static bool
is_named(const char *line, size_t size, const char *name)
{
    size_t length = strlen(name);
    return size > length && line[length] == ':' && strncasecmp(line, name, length) == 0;
}

static int
parse_line(const char *line, size_t size, struct head *head, struct err *err)
{
    static const char length_name[] = "content-length", coding_name[] = "transfer-encoding";
    if (is_named(line, size, length_name)) {
        size_t skip = sizeof length_name;
        if (head->has_length || !parse_length(line + skip, size - skip, &head->length))
            return err_set(err, EPROTO, "the answer has a bad content-length");
        head->has_length = true;
    }
    if (is_named(line, size, coding_name)) {
        if (!memmem(line, size, "chunked", 7))
            return err_set(err, EPROTO, "the answer has an unknown transfer-encoding");
        head->chunked = true;
    }
    return 0;
}

/* "HTTP/1.1 200 OK" */
static int
parse_status(const char *line, size_t size, struct err *err)
{
    int status = 0;
    bool good = size >= 12 && memcmp(line, "HTTP/1.", 7) == 0 && line[8] == ' ' &&
                (size == 12 || line[12] == ' ');
    for (int i = 9; good && i < 12; i++) {
        good = line[i] >= '0' && line[i] <= '9';
        status = status * 10 + (line[i] - '0');
    }
    if (!good || status < 100 || status > 599)
        return err_set(err, EPROTO, "the answer is not HTTP");
    return status;
}

/* 1 when the head is complete, 0 when more bytes are needed. */
static int
parse_head(const char *data, size_t size, struct head *ret_head, struct err *err)
{
    struct head head = {0};
    const char *end = data ? memmem(data, size, "\r\n\r\n", 4) : NULL;
    if (!end)
        return size > ADMIN_MAX_HEAD_BYTES ? err_set(err, EPROTO, "the answer's head is too large")
                                           : 0;
    head.size_bytes = (size_t)(end - data) + 4;
    for (const char *line = data; line < end + 2;) {
        const char *next = memmem(line, (size_t)(end + 2 - line), "\r\n", 2);
        int r = line == data ? parse_status(line, (size_t)(next - line), err)
                             : parse_line(line, (size_t)(next - line), &head, err);
        if (r < 0)
            return r;
        if (line == data)
            head.status = r;
        line = next + 2;
    }
    *ret_head = head;
    return 1;
}

/* The size line of a chunk: hexadecimal digits, then perhaps extensions. Returns the digits, or 0.
 */
static size_t
parse_chunk_size(const char *line, size_t size, uint64_t *ret)
{
    uint64_t length = 0;
    size_t digits = 0;
    for (; digits < size; digits++) {
        char c = (char)(line[digits] | 0x20);
        int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
        if (digit < 0)
            break;
        length = length * 16 + (uint64_t)digit;
        if (length > ADMIN_MAX_BODY_BYTES)
            return 0;
    }
    *ret = length;
    return digits;
}

/* Appends the content of a whole chunked body. Trailers are nobody's business. */
static int
decode_chunks(const char *data, size_t size, struct buf *out, struct err *err)
{
    for (;;) {
        const char *line_end = memmem(data, size, "\r\n", 2);
        uint64_t length;
        if (!line_end)
            return cut_short(err);
        if (!parse_chunk_size(data, (size_t)(line_end - data), &length))
            return err_set(err, EPROTO, "the answer has a bad chunk");
        if (length == 0)
            return 0;
        size_t skip = (size_t)(line_end - data) + 2;
        if (size - skip < length + 2)
            return cut_short(err);
        if (memcmp(data + skip + length, "\r\n", 2) != 0)
            return err_set(err, EPROTO, "the answer has a bad chunk");
        buf_append(out, data + skip, (size_t)length);
        data += skip + length + 2;
        size -= skip + (size_t)length + 2;
    }
}

/* Reads until the body is complete; `in` holds what has come so far. Bodies without a length end
 * with the stream: the request asked for that. */
static int
read_body(int fd, const struct head *head, struct buf *in, uint64_t deadline_ns, struct buf *out,
          struct err *err)
{
    bool has_length = head->has_length && !head->chunked;
    uint64_t length = head->status == 204 || head->status == 304 ? 0 : head->length;
    for (;;) {
        size_t have = in->size_bytes - head->size_bytes;
        if (has_length && have >= length) {
            buf_append(out, in->data + head->size_bytes, (size_t)length);
            return 0;
        }
        int r = receive(fd, in, deadline_ns, err);
        if (r < 0)
            return r;
        if (r == 0)
            break;
    }
    const char *body = in->data + head->size_bytes;
    if (has_length)
        return cut_short(err);
    if (!head->chunked) {
        buf_append(out, body, in->size_bytes - head->size_bytes);
        return 0;
    }
    struct buf decoded __attribute__((cleanup(buf_free))) = {0};
    int r = decode_chunks(body, in->size_bytes - head->size_bytes, &decoded, err);
    if (r >= 0)
        buf_append(out, decoded.data, decoded.size_bytes);
    out->failed |= decoded.failed;
    return r;
}

static int
read_answer(int fd, struct buf *in, uint64_t deadline_ns, struct buf *out, struct err *err)
{
    struct head head = {0};
    for (;;) {
        int r = parse_head(in->data, in->size_bytes, &head, err);
        if (r < 0)
            return r;
        if (r > 0 && head.status >= 200)
            break;
        if (r > 0) { /* 1xx: another head follows */
            memmove(in->data, in->data + head.size_bytes, in->size_bytes - head.size_bytes);
            in->size_bytes -= head.size_bytes;
            continue;
        }
        r = receive(fd, in, deadline_ns, err);
        if (r <= 0)
            return r < 0 ? r : cut_short(err);
    }
    int r = read_body(fd, &head, in, deadline_ns, out, err);
    if (r >= 0 && out->failed)
        return err_set(err, ENOMEM, "no memory for the answer");
    return r < 0 ? r : head.status;
}

int
admin_request(const char *socket_path, const char *method, const char *path, const char *body,
              int timeout_s, struct buf *out, struct err *err)
{
    uint64_t deadline_ns = clock_now_ns() + (uint64_t)timeout_s * 1000000000;
    int fd __attribute__((cleanup(close_fd))) = connect_to(socket_path, deadline_ns, err);
    if (fd < 0)
        return fd;
    struct buf request __attribute__((cleanup(buf_free))) = {0};
    struct buf in __attribute__((cleanup(buf_free))) = {
        .limit_bytes = ADMIN_MAX_HEAD_BYTES + 2 * (size_t)ADMIN_MAX_BODY_BYTES};
    buf_printf(&request,
               "%s %s HTTP/1.1\r\nhost: localhost\r\nuser-agent: engramctl/" ENGRAMD_VERSION
               "\r\naccept: application/json\r\nconnection: close\r\n",
               method, path);
    if (body)
        buf_printf(&request, "content-type: application/json\r\ncontent-length: %zu\r\n",
                   strlen(body));
    buf_printf(&request, "\r\n%s", body ? body : "");
    if (request.failed)
        return err_set(err, ENOMEM, "no memory for the request");
    int r = send_all(fd, &request, deadline_ns, err);
    return r < 0 ? r : read_answer(fd, &in, deadline_ns, out, err);
}
