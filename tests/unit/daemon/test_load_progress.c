#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/log.h"
#include "daemon/load_progress.h"

static const uint64_t gib = (uint64_t)1 << 30, s_ns = 1000000000;

static const char *
bar(uint64_t done, uint64_t total, double rate, int columns)
{
    static char out[200];
    struct load_figures figures = {done, total, rate};

    return load_progress_bar(&figures, columns, out, sizeof out);
}

static void
a_bar_says_share_size_rate_and_time_left(void **state)
{
    assert_string_equal(bar(69 * gib / 10, 161 * gib / 10, 2.1 * (double)gib, 120),
                        "weights  [############..................]   42 %  6.9 / 16.1 GiB  "
                        "2.1 GiB/s  eta 4 s");
    assert_string_equal(bar(0, 3000, 0, 80),
                        "weights  [..............................]    0 %  0.0 / 2.9 KiB");
    assert_string_equal(bar(500, 500, 250, 90),
                        "weights  [##############################]  100 %  500 / 500 B  250.0 B/s  "
                        "eta 0 s");
}

static void
without_a_rate_neither_rate_nor_time_is_said(void **state)
{
    assert_string_equal(bar(gib, 2 * gib, 0, 120),
                        "weights  [###############...............]   50 %  1.0 / 2.0 GiB");
    assert_string_equal(bar(gib, 2 * gib, -1, 120), bar(gib, 2 * gib, 0, 120));
}

static void
nothing_to_load_is_all_loaded(void **state)
{
    assert_string_equal(bar(0, 0, 0, 120),
                        "weights  [##############################]  100 %  0 / 0 B");
}

static void
almost_all_is_not_a_hundred_percent(void **state)
{
    assert_non_null(strstr(bar(1000 * gib - 1, 1000 * gib, 0, 120), "  99 %"));
}

static void
more_than_all_is_no_more_than_a_hundred_percent(void **state)
{
    assert_string_equal(
        bar(20, 10, 5, 120),
        "weights  [##############################]  100 %  20 / 10 B  5.0 B/s  eta 0 s");
}

static void
a_long_time_is_said_in_minutes_or_hours(void **state)
{
    assert_non_null(strstr(bar(0, 600, 1, 120), "eta 10 min"));
    assert_non_null(strstr(bar(0, 36000, 1, 120), "eta 10 h"));
}

static void
a_narrow_terminal_gets_the_shorter_bar_and_then_less_and_less(void **state)
{
    char wide[200];

    snprintf(wide, sizeof wide, "%s", bar(gib, 2 * gib, (double)gib, 200));
    assert_int_equal(strlen(wide),
                     strlen("weights  []   50 %  1.0 / 2.0 GiB  1.0 GiB/s  eta 1 s") + 30);
    assert_string_equal(bar(gib, 2 * gib, (double)gib, 70),
                        "weights  [########.........]   50 %  1.0 / 2.0 GiB  1.0 GiB/s  eta 1 s");
    assert_string_equal(bar(gib, 2 * gib, (double)gib, 56),
                        "weights   50 %  1.0 / 2.0 GiB  1.0 GiB/s  eta 1 s");
    assert_string_equal(bar(gib, 2 * gib, (double)gib, 45),
                        "weights   50 %  1.0 / 2.0 GiB  1.0 GiB/s");
    assert_string_equal(bar(gib, 2 * gib, (double)gib, 30), "weights   50 %  1.0 / 2.0 GiB");
    assert_string_equal(bar(gib, 2 * gib, (double)gib, 14), "weights   50 %");
    assert_string_equal(bar(gib, 2 * gib, (double)gib, 7), "weights");
    assert_string_equal(bar(gib, 2 * gib, (double)gib, 0), "");
    for (int columns = -1; columns < 150; columns++)
        assert_true((int)strlen(bar(gib, 2 * gib, (double)gib, columns)) <=
                    (columns > 0 ? columns : 0));
}

static void
the_log_says_the_same(void **state)
{
    char out[200];
    struct load_figures figures = {gib, 4 * gib, 0.5 * (double)gib};

    assert_string_equal(load_progress_text(&figures, out, sizeof out),
                        "weights: 25 %, 1.0 / 4.0 GiB, 512.0 MiB/s, eta 6 s");
    figures.bytes_per_s = 0;
    assert_string_equal(load_progress_text(&figures, out, sizeof out),
                        "weights: 25 %, 1.0 / 4.0 GiB");
}

static void
the_summary_has_size_time_and_rate(void **state)
{
    char out[200];

    assert_string_equal(load_progress_summary(16 * gib, 8 * s_ns, out, sizeof out),
                        "16.0 GiB in 8.00 s, 2.0 GiB/s");
    assert_string_equal(load_progress_summary(16 * gib, 80 * s_ns, out, sizeof out),
                        "16.0 GiB in 80.0 s, 204.8 MiB/s");
    assert_string_equal(load_progress_summary(0, 0, out, sizeof out), "0 B in 0.00 s");
    assert_string_equal(load_progress_summary(0, s_ns, out, sizeof out), "0 B in 1.00 s");
}

/* What comes to standard error when it is no terminal. */
static char *
captured(void (*run)(struct load_progress *))
{
    static char text[4000];
    char path[] = "/tmp/test_load_progress.XXXXXX";
    int real = dup(STDERR_FILENO), file = mkstemp(path);

    (void)unlink(path);
    (void)unsetenv("JOURNAL_STREAM");
    assert_true(dup2(file, STDERR_FILENO) >= 0);
    log_open(LOG_LEVEL_INFO);
    struct load_progress progress = load_progress_open();
    run(&progress);
    (void)dup2(real, STDERR_FILENO);
    ssize_t got = pread(file, text, sizeof text - 1, 0);
    (void)close(real);
    (void)close(file);
    text[got > 0 ? got : 0] = 0;
    return text;
}

static int
count(const char *text, const char *word)
{
    int n = 0;

    for (; (text = strstr(text, word)) != NULL; text++)
        n++;
    return n;
}

static void
ten_gib_at_a_tenth_per_second(struct load_progress *p)
{
    for (uint64_t i = 0; i <= 100; i++)
        load_progress_step(p, i * gib / 10, 10 * gib, 77 * s_ns + i * s_ns);
    load_progress_step(p, 10 * gib, 10 * gib, 500 * s_ns); /* a late one */
    load_progress_end(p);
}

static void
slow_loading_logs_a_line_every_tenth(void **state)
{
    const char *text = captured(ten_gib_at_a_tenth_per_second);

    assert_int_equal(count(text, "\n"), 10);
    assert_int_equal(count(text, "weights: "), 10);
    assert_int_equal(count(text, "weights: 30 %, 3.0 / 10.0 GiB, 102.4 MiB/s, eta 70 s\n"), 1);
    assert_int_equal(count(text, "weights: 10.0 GiB in 100.0 s, 102.4 MiB/s\n"), 1);
    assert_null(strchr(text, '\r'));
}

static void
ten_gib_at_one_per_second(struct load_progress *p)
{
    for (uint64_t i = 0; i <= 100; i++)
        load_progress_step(p, i * gib / 10, 10 * gib, s_ns + i * s_ns / 10);
}

static void
fast_loading_logs_a_line_every_five_seconds(void **state)
{
    const char *text = captured(ten_gib_at_one_per_second);

    assert_int_equal(count(text, "\n"), 2);
    assert_int_equal(count(text, "weights: 50 %, 5.0 / 10.0 GiB, 1.0 GiB/s, eta 5 s\n"), 1);
    assert_int_equal(count(text, "weights: 10.0 GiB in 10.0 s, 1.0 GiB/s\n"), 1);
}

static void
half_and_no_more(struct load_progress *p)
{
    load_progress_step(p, 0, 10 * gib, s_ns);
    load_progress_step(p, 5 * gib, 10 * gib, 2 * s_ns);
    load_progress_end(p);
    load_progress_end(p);
}

static void
loading_that_failed_is_not_summed_up(void **state)
{
    assert_string_equal(captured(half_and_no_more), "");
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_bar_says_share_size_rate_and_time_left),
        cmocka_unit_test(without_a_rate_neither_rate_nor_time_is_said),
        cmocka_unit_test(nothing_to_load_is_all_loaded),
        cmocka_unit_test(almost_all_is_not_a_hundred_percent),
        cmocka_unit_test(more_than_all_is_no_more_than_a_hundred_percent),
        cmocka_unit_test(a_long_time_is_said_in_minutes_or_hours),
        cmocka_unit_test(a_narrow_terminal_gets_the_shorter_bar_and_then_less_and_less),
        cmocka_unit_test(the_log_says_the_same),
        cmocka_unit_test(the_summary_has_size_time_and_rate),
        cmocka_unit_test(slow_loading_logs_a_line_every_tenth),
        cmocka_unit_test(fast_loading_logs_a_line_every_five_seconds),
        cmocka_unit_test(loading_that_failed_is_not_summed_up),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
