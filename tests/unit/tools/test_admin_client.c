#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/clock.h"
#include "tests/unit/tools/fake_engramd.h"
#include "tools/admin_client.h"

#define OK "HTTP/1.1 200 OK\r\n"

/* The status for an answer; the body as text in *out. */
static int
ask(struct fake_engramd *fake, const char *body, char *out, size_t out_size, struct err *err)
{
    struct buf got = {0};
    fake_start(fake);
    int r = admin_request(fake->path, body ? "PATCH" : "GET", "/v1/tiers", body, 5, &got, err);
    fake_stop(fake);
    if (out)
        (void)snprintf(out, out_size, "%.*s", (int)got.size_bytes, got.data ? got.data : "");
    buf_free(&got);
    return r;
}

static void
gives(const char *answer, int status, const char *body)
{
    for (size_t step = 0; step < 2; step++) { /* at once, and byte by byte */
        struct fake_engramd fake = {.answer = answer, .step_bytes = step};
        struct err err = ERR_INIT;
        char got[200];
        int r = ask(&fake, NULL, got, sizeof got, &err);
        if (r != status)
            fail_msg("%d (%s) for %s", r, err.text, answer);
        assert_string_equal(got, body);
    }
}

static void
refused(const char *answer, const char *message)
{
    struct fake_engramd fake = {.answer = answer};
    struct err err = ERR_INIT;
    char got[10];
    int r = ask(&fake, NULL, got, sizeof got, &err);
    if (r != -EPROTO || !strstr(err.text, message))
        fail_msg("%d (%s) for %s", r, err.text, answer);
    assert_string_equal(got, "");
}

static void
a_request_says_what_it_wants(void **state)
{
    struct fake_engramd fake = {.answer = OK "content-length: 2\r\n\r\n{}", .keep_open = true};
    char got[10];
    assert_int_equal(ask(&fake, "{\"tiers\":{\"ram\":\"8GiB\"}}", got, sizeof got, NULL), 200);
    assert_string_equal(got, "{}");
    assert_int_equal(strncmp(fake.request, "PATCH /v1/tiers HTTP/1.1\r\n", 26), 0);
    assert_non_null(strstr(fake.request, "\r\nhost: localhost\r\n"));
    assert_non_null(strstr(fake.request, "\r\nconnection: close\r\n"));
    assert_non_null(strstr(fake.request, "\r\ncontent-type: application/json\r\n"));
    assert_non_null(strstr(fake.request, "\r\ncontent-length: 24\r\n"));
    assert_non_null(strstr(fake.request, "\r\n\r\n{\"tiers\":{\"ram\":\"8GiB\"}}"));
}

static void
a_get_has_no_body(void **state)
{
    struct fake_engramd fake = {.answer = OK "content-length: 0\r\n\r\n"};
    assert_int_equal(ask(&fake, NULL, NULL, 0, NULL), 200);
    assert_int_equal(strncmp(fake.request, "GET /v1/tiers HTTP/1.1\r\n", 24), 0);
    assert_null(strstr(fake.request, "content-"));
}

static void
every_kind_of_body_is_read(void **state)
{
    gives(OK "Content-Length:  5 \r\n\r\nhello", 200, "hello");
    gives(OK "content-length: 5\r\n\r\nhello and more", 200, "hello");
    gives(OK "\r\nuntil the end", 200, "until the end");
    gives("HTTP/1.0 200\r\n\r\n", 200, "");
    gives(OK "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n7;x=y\r\n, world\r\n0\r\n\r\n", 200,
          "hello, world");
    gives(OK "Transfer-Encoding: chunked\r\n\r\nB\r\nhello world\r\n0\r\nx: y\r\n\r\n", 200,
          "hello world");
    gives("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Wait\r\na: b\r\n\r\n" OK
          "content-length: 2\r\n\r\nok",
          200, "ok");
    gives("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 3\r\n\r\nno!", 503, "no!");
    gives("HTTP/1.1 204 No Content\r\ncontent-length: 3\r\n\r\n", 204, "");
}

static void
answers_that_are_not_http_are_refused(void **state)
{
    refused("", "ends too early");
    refused("SSH-2.0-OpenSSH\r\n\r\n", "not HTTP");
    refused("HTTP/1.1 2x0 OK\r\n\r\n", "not HTTP");
    refused("HTTP/1.1 999 OK\r\n\r\n", "not HTTP");
    refused("HTTP/2 200 OK\r\n\r\n", "not HTTP");
    refused("HTTP/1.1 2000\r\n\r\n", "not HTTP");
    refused("HTTP/1.1", "ends too early");
    refused(OK "content-length: 5\r\n", "ends too early");
    refused(OK "content-length: 5\r\n\r\nhell", "ends too early");
    refused("HTTP/1.1 100 Continue\r\n\r\n", "ends too early");
    refused(OK "content-length: -1\r\n\r\n", "bad content-length");
    refused(OK "content-length: 5x\r\n\r\nhello", "bad content-length");
    refused(OK "content-length: \r\n\r\nhello", "bad content-length");
    refused(OK "content-length: 5\r\ncontent-length: 5\r\n\r\nhello", "bad content-length");
    refused(OK "content-length: 16777217\r\n\r\n", "bad content-length");
    refused(OK "content-length: 18446744073709551621\r\n\r\nhello", "bad content-length");
    refused(OK "transfer-encoding: gzip\r\n\r\n", "unknown transfer-encoding");
    refused(OK "transfer-encoding: chunked\r\n\r\n5\r\nhell", "ends too early");
    refused(OK "transfer-encoding: chunked\r\n\r\n5\r\nhello", "ends too early");
    refused(OK "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", "ends too early");
    refused(OK "transfer-encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n", "bad chunk");
    refused(OK "transfer-encoding: chunked\r\n\r\nx\r\n\r\n", "bad chunk");
    refused(OK "transfer-encoding: chunked\r\n\r\n\r\n\r\n", "bad chunk");
    refused(OK "transfer-encoding: chunked\r\n\r\nffffffffffffffff5\r\nhello\r\n0\r\n\r\n",
            "bad chunk");
}

static void
answers_without_end_are_refused(void **state)
{
    size_t size = (size_t)40 << 20;
    char *bytes = malloc(size);
    struct fake_engramd head = {.answer = bytes, .answer_size = size};
    struct err err = ERR_INIT;
    memset(bytes, 'a', size);
    assert_int_equal(ask(&head, NULL, NULL, 0, &err), -EPROTO);
    assert_non_null(strstr(err.text, "head is too large"));
    err = ERR_INIT;
    struct fake_engramd body = {.answer = bytes, .answer_size = size};
    memcpy(bytes, OK "\r\n", sizeof OK "\r\n" - 1);
    assert_int_equal(ask(&body, NULL, NULL, 0, &err), -EPROTO);
    assert_non_null(strstr(err.text, "larger than"));
    free(bytes);
}

static void
silence_ends_at_the_timeout(void **state)
{
    struct fake_engramd silent = {.answer = NULL},
                        half = {.answer = OK "content-length: 9\r\n\r\nhalf", .keep_open = true};
    struct fake_engramd *each[] = {&silent, &half};
    for (int i = 0; i < 2; i++) {
        struct err err = ERR_INIT;
        struct buf got = {0};
        fake_start(each[i]);
        uint64_t start = clock_now_ns();
        assert_int_equal(admin_request(each[i]->path, "GET", "/", NULL, 1, &got, &err), -ETIMEDOUT);
        uint64_t took_ms = (clock_now_ns() - start) / 1000000;
        assert_in_range(took_ms, 900, 5000);
        assert_non_null(strstr(err.text, "in time"));
        buf_free(&got);
        fake_stop(each[i]);
    }
}

static void
sockets_that_are_not_there_are_named(void **state)
{
    struct buf got = {0};
    struct err err = ERR_INIT;
    char deep[300];
    assert_int_equal(admin_request("/tmp/engramd-none.sock", "GET", "/", NULL, 1, &got, &err),
                     -ENOENT);
    assert_non_null(strstr(err.text, "cannot connect to /tmp/engramd-none.sock: No such file"));
    memset(deep, 'd', sizeof deep);
    deep[sizeof deep - 1] = '\0';
    assert_int_equal(admin_request(deep, "GET", "/", NULL, 1, &got, NULL), -ENAMETOOLONG);
    assert_int_equal(admin_request("", "GET", "/", NULL, 1, &got, NULL), -ENAMETOOLONG);
    assert_int_equal(admin_request("/tmp", "GET", "/", NULL, 1, &got, NULL), -ECONNREFUSED);
}

/* A queue of connections nobody accepts must not hang past the timeout. */
static void
a_full_queue_ends_at_the_timeout(void **state)
{
    struct fake_engramd fake = {.answer = NULL};
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd[64], n = 0;
    struct buf got = {0};
    (void)snprintf(fake.folder, sizeof fake.folder, "/tmp/engramd-test-XXXXXX");
    assert_non_null(mkdtemp(fake.folder));
    (void)snprintf(address.sun_path, sizeof address.sun_path, "%s/s", fake.folder);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(listener, 1), 0);
    for (; n < 64; n++) {
        fd[n] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (connect(fd[n], (struct sockaddr *)&address, sizeof address) < 0)
            break;
    }
    assert_in_range(n, 1, 63);
    assert_int_equal(admin_request(address.sun_path, "GET", "/", NULL, 1, &got, NULL), -ETIMEDOUT);
    for (int i = 0; i <= n; i++)
        (void)close(fd[i]);
    (void)close(listener);
    assert_int_equal(unlink(address.sun_path), 0);
    assert_int_equal(rmdir(fake.folder), 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_request_says_what_it_wants),
        cmocka_unit_test(a_get_has_no_body),
        cmocka_unit_test(every_kind_of_body_is_read),
        cmocka_unit_test(answers_that_are_not_http_are_refused),
        cmocka_unit_test(answers_without_end_are_refused),
        cmocka_unit_test(silence_ends_at_the_timeout),
        cmocka_unit_test(sockets_that_are_not_there_are_named),
        cmocka_unit_test(a_full_queue_ends_at_the_timeout),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
