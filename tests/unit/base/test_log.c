#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"

/* Standard error goes to a file while a test runs; what came there is read back. */
static int real_stderr, capture;

static int
capture_begin(void **state)
{
    char path[] = "/tmp/test_log.XXXXXX";
    real_stderr = dup(STDERR_FILENO);
    capture = mkstemp(path);
    (void)unlink(path);
    (void)unsetenv("JOURNAL_STREAM");
    return dup2(capture, STDERR_FILENO) < 0;
}

static int
capture_end(void **state)
{
    (void)dup2(real_stderr, STDERR_FILENO);
    (void)close(capture);
    return close(real_stderr);
}

static size_t
captured(char *out, size_t out_size)
{
    ssize_t got = pread(capture, out, out_size - 1, 0);
    out[got > 0 ? got : 0] = '\0';
    return got > 0 ? (size_t)got : 0;
}

static void
a_line_carries_time_and_level(void **state)
{
    char out[500];
    log_open(LOG_LEVEL_INFO);
    log_warning("disk %d slow", 3);
    captured(out, sizeof out);
    int year, month, day, hour, minute, second, ms, end = 0;
    assert_int_equal(sscanf(out, "%4d-%2d-%2dT%2d:%2d:%2d.%3dZ warning disk 3 slow\n%n", &year,
                            &month, &day, &hour, &minute, &second, &ms, &end),
                     7);
    assert_int_equal(end, strlen(out));
    assert_true(year >= 2023 && month <= 12 && day <= 31);
}

static void
lines_below_the_level_are_not_written(void **state)
{
    char out[500];
    log_open(LOG_LEVEL_WARNING);
    log_info("unseen");
    log_debug("unseen");
    assert_int_equal(captured(out, sizeof out), 0);
    log_set_level(LOG_LEVEL_DEBUG);
    log_debug("seen");
    assert_true(captured(out, sizeof out) > 0);
    assert_non_null(strstr(out, "debug seen\n"));
}

static void
under_the_journal_a_line_has_a_priority_and_no_time(void **state)
{
    char out[500], stream[100];
    struct stat status;
    assert_int_equal(fstat(STDERR_FILENO, &status), 0);
    (void)snprintf(stream, sizeof stream, "%ju:%ju", (uintmax_t)status.st_dev,
                   (uintmax_t)status.st_ino);
    assert_int_equal(setenv("JOURNAL_STREAM", stream, 1), 0);
    log_open(LOG_LEVEL_INFO);
    log_error("gone");
    captured(out, sizeof out);
    assert_string_equal(out, "<3>gone\n");
}

static void
a_journal_that_is_not_our_stderr_does_not_count(void **state)
{
    char out[500];
    assert_int_equal(setenv("JOURNAL_STREAM", "8:12345", 1), 0);
    log_open(LOG_LEVEL_INFO);
    log_error("gone");
    captured(out, sizeof out);
    assert_non_null(strstr(out, "Z error gone\n"));
}

static void
a_request_cannot_forge_a_line(void **state)
{
    char out[500];
    log_open(LOG_LEVEL_INFO);
    log_info("field '%s'", "x\n<0>panic\033[2J");
    size_t length = captured(out, sizeof out);
    assert_ptr_equal(strchr(out, '\n'), out + length - 1);
    assert_non_null(strstr(out, "x\\n<0>panic\\x1b[2J'"));
}

static void
a_line_of_any_length_is_one_line_and_shows_its_cut(void **state)
{
    static char text[9000], out[9000];
    for (size_t length = 3900; length < 4300; length += 13) {
        assert_int_equal(ftruncate(capture, 0), 0);
        assert_int_equal(lseek(capture, 0, SEEK_SET), 0);
        memset(text, length % 2 ? 'x' : '\n', length);
        text[length] = '\0';
        log_open(LOG_LEVEL_INFO);
        log_info("%s", text);
        size_t size = captured(out, sizeof out);
        assert_ptr_equal(strchr(out, '\n'), out + size - 1);
        bool complete = length % 2 && length < 4000;
        assert_int_equal(strcmp(out + size - 4, "...\n") == 0, !complete);
    }
}

#define LOG_TEST(name) cmocka_unit_test_setup_teardown(name, capture_begin, capture_end)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        LOG_TEST(a_line_carries_time_and_level),
        LOG_TEST(lines_below_the_level_are_not_written),
        LOG_TEST(under_the_journal_a_line_has_a_priority_and_no_time),
        LOG_TEST(a_journal_that_is_not_our_stderr_does_not_count),
        LOG_TEST(a_request_cannot_forge_a_line),
        LOG_TEST(a_line_of_any_length_is_one_line_and_shows_its_cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
