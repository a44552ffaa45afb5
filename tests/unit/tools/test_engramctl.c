/* The binary itself, against a socket of the test. ENGRAMCTL is its path. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sysexits.h>

#include "tests/unit/tools/fake_engramd.h"

static char out[8192], complaint[8192];

static void
read_all(int fd, char *text, size_t size)
{
    size_t have = 0;
    for (ssize_t n; have < size - 1 && (n = read(fd, text + have, size - 1 - have)) > 0;)
        have += (size_t)n;
    text[have] = '\0';
    (void)close(fd);
}

/* Runs engramctl with up to 7 arguments; its exit code, its output in `out` and `complaint`. */
static int
run(const char *a, const char *b, const char *c, const char *d, const char *e)
{
    const char *binary = getenv("ENGRAMCTL");
    char *argv[] = {(char *)"engramctl", (char *)a, (char *)b, (char *)c,
                    (char *)d,           (char *)e, NULL};
    int to[2], err[2], status;
    assert_int_equal(pipe(to), 0);
    assert_int_equal(pipe(err), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        (void)dup2(to[1], STDOUT_FILENO);
        (void)dup2(err[1], STDERR_FILENO);
        (void)close(to[0]), (void)close(to[1]), (void)close(err[0]), (void)close(err[1]);
        (void)execv(binary, argv);
        _exit(127);
    }
    (void)close(to[1]);
    (void)close(err[1]);
    read_all(to[0], out, sizeof out);
    read_all(err[0], complaint, sizeof complaint);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

#define TIERS                                                                                      \
    "{\"tiers\":[{\"name\":\"ram\",\"budget_bytes\":8589934592,\"used_bytes\":1024,\"hits\":1,"    \
    "\"misses\":1,\"hit_rate\":0.5,\"bytes\":9,\"evictions\":0,\"sets\":[]}]}"
#define OK "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n"

static void
tiers_prints_a_table(void **state)
{
    struct fake_engramd fake = {.answer = OK TIERS};
    fake_start(&fake);
    assert_int_equal(run("tiers", "--socket", fake.path, NULL, NULL), 0);
    fake_stop(&fake);
    assert_int_equal(strncmp(fake.request, "GET /v1/tiers HTTP/1.1\r\n", 24), 0);
    assert_non_null(strstr(out, "\nram                        8GiB       1KiB"));
    assert_string_equal(complaint, "");
}

static void
json_is_printed_as_it_came(void **state)
{
    struct fake_engramd fake = {.answer = OK TIERS};
    fake_start(&fake);
    assert_int_equal(run("--json", "--socket", fake.path, "tiers", NULL), 0);
    fake_stop(&fake);
    assert_string_equal(out, TIERS "\n");
}

static void
set_sends_a_patch(void **state)
{
    struct fake_engramd fake = {.answer = OK TIERS};
    char socket[130];
    fake_start(&fake);
    (void)snprintf(socket, sizeof socket, "--socket=%s", fake.path);
    assert_int_equal(run(socket, "tiers", "--set=ram=8GiB", "--set", "hbm=1048576"), 0);
    fake_stop(&fake);
    assert_int_equal(strncmp(fake.request, "PATCH /v1/tiers HTTP/1.1\r\n", 26), 0);
    assert_non_null(
        strstr(fake.request, "\r\n\r\n{\"tiers\":{\"ram\":\"8GiB\",\"hbm\":\"1048576\"}}"));
    assert_non_null(strstr(out, "8GiB"));
}

static void
a_refusal_is_told_and_exits_1(void **state)
{
    struct fake_engramd fake = {
        .answer =
            "HTTP/1.1 400 Bad Request\r\n\r\n{\"error\":{\"message\":\"Unknown tier: 'disk'\"}}"};
    fake_start(&fake);
    assert_int_equal(run("tiers", "--set", "disk=1GiB", "--socket", fake.path), 1);
    fake_stop(&fake);
    assert_string_equal(out, "");
    assert_string_equal(complaint, "engramctl: engramd says: Unknown tier: 'disk' (HTTP 400)\n");
}

static void
status_is_in_the_exit_code(void **state)
{
    struct fake_engramd ready = {.answer = OK "{\"status\":\"ok\",\"checks\":[]}"};
    struct fake_engramd loading = {
        .answer =
            "HTTP/1.1 503 Service Unavailable\r\n\r\n{\"status\":\"model_loading\",\"checks\":"
            "[{\"name\":\"model\",\"ok\":false,\"detail\":\"weights\"}]}"};
    struct fake_engramd missing = {.answer = "HTTP/1.1 404 Not Found\r\n\r\n"};
    fake_start(&ready);
    assert_int_equal(run("status", "--socket", ready.path, NULL, NULL), 0);
    fake_stop(&ready);
    assert_string_equal(out, "ok\n");
    assert_int_equal(strncmp(ready.request, "GET /readyz?verbose HTTP/1.1\r\n", 30), 0);
    fake_start(&loading);
    assert_int_equal(run("status", "--socket", loading.path, NULL, NULL), 1);
    fake_stop(&loading);
    assert_string_equal(out, "model_loading\n  NO   model        weights\n");
    fake_start(&missing);
    assert_int_equal(run("status", "--socket", missing.path, NULL, NULL), 1);
    fake_stop(&missing);
    assert_string_equal(complaint, "engramctl: engramd says: HTTP 404\n");
}

static void
failures_have_their_own_exit_codes(void **state)
{
    struct fake_engramd silent = {.answer = NULL}, nonsense = {.answer = OK "nonsense"},
                        other = {.answer = "hello\r\n\r\n"};
    assert_int_equal(run("tiers", "--socket", "/tmp/engramd-none.sock", NULL, NULL),
                     EX_UNAVAILABLE);
    assert_non_null(strstr(complaint, "cannot connect to /tmp/engramd-none.sock: No such file"));
    assert_non_null(strstr(complaint, "server.admin_socket"));
    fake_start(&silent);
    assert_int_equal(run("tiers", "--timeout", "1", "--socket", silent.path), EX_TEMPFAIL);
    fake_stop(&silent);
    fake_start(&nonsense);
    assert_int_equal(run("tiers", "--socket", nonsense.path, NULL, NULL), EX_PROTOCOL);
    fake_stop(&nonsense);
    fake_start(&other);
    assert_int_equal(run("tiers", "--socket", other.path, NULL, NULL), EX_PROTOCOL);
    fake_stop(&other);
}

static void
the_default_socket_follows_the_environment(void **state)
{
    struct fake_engramd fake = {.answer = OK TIERS};
    char list[200];
    fake_start(&fake);
    (void)snprintf(list, sizeof list, "%s:/elsewhere", fake.folder);
    assert_int_equal(setenv("RUNTIME_DIRECTORY", list, 1), 0);
    assert_int_equal(run("tiers", NULL, NULL, NULL, NULL), 0);
    fake_stop(&fake);
    assert_int_equal(run("tiers", NULL, NULL, NULL, NULL), EX_UNAVAILABLE); /* it is gone now */
    assert_int_equal(unsetenv("RUNTIME_DIRECTORY"), 0);
    struct stat st;
    if (stat("/run/engramd/engramctl.sock", &st) == 0)
        return; /* a real one runs here: leave it alone */
    assert_int_equal(run("tiers", NULL, NULL, NULL, NULL), EX_UNAVAILABLE);
    assert_non_null(strstr(complaint, "/run/engramd/engramctl.sock"));
}

static void
wrong_usage_is_explained(void **state)
{
    static const char *const bad[][4] = {
        {NULL},
        {"tier"},
        {"tiers", "status"},
        {"tiers", "--set"},
        {"tiers", "--set", "ram"},
        {"tiers", "--set", "=8GiB"},
        {"tiers", "--set", "ram="},
        {"tiers", "--set", "ram=lots"},
        {"tiers", "--set", "ram=-1"},
        {"tiers", "--set", "ram=1\"}"},
        {"tiers", "--set", "RAM=1GiB"},
        {"tiers", "--set=ram=1GiB", "--set=ram=2GiB"},
        {"status", "--set", "ram=1GiB"},
        {"tiers", "--timeout", "0"},
        {"tiers", "--timeout", "1s"},
        {"tiers", "--timeout", "86401"},
        {"tiers", "--what"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(run(bad[i][0], bad[i][1], bad[i][2], bad[i][3], NULL), EX_USAGE);
        assert_string_equal(out, "");
        assert_true(strlen(complaint) > 20);
    }
    assert_int_equal(run("--help", NULL, NULL, NULL, NULL), 0);
    assert_non_null(strstr(out, "Usage: engramctl"));
    assert_int_equal(run("--version", NULL, NULL, NULL, NULL), 0);
    assert_int_equal(strncmp(out, "engramctl ", 10), 0);
}

int
main(void)
{
    if (!getenv("ENGRAMCTL")) {
        print_message("skipped: ENGRAMCTL does not name the binary\n");
        return 77;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tiers_prints_a_table),
        cmocka_unit_test(json_is_printed_as_it_came),
        cmocka_unit_test(set_sends_a_patch),
        cmocka_unit_test(a_refusal_is_told_and_exits_1),
        cmocka_unit_test(status_is_in_the_exit_code),
        cmocka_unit_test(failures_have_their_own_exit_codes),
        cmocka_unit_test(the_default_socket_follows_the_environment),
        cmocka_unit_test(wrong_usage_is_explained),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
