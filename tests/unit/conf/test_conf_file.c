#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "conf/conf.h"

struct fixture {
    struct conf *conf;
    struct buf mistakes;
};

static int
set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    *state = f;
    return conf_new(&f->conf, NULL);
}

static int
tear_down(void **state)
{
    struct fixture *f = *state;
    conf_free(f->conf);
    buf_free(&f->mistakes);
    free(f);
    return 0;
}

/* Reads text (which may have NUL bytes) and compares all mistakes with what is wanted. */
static void
expect(struct fixture *f, const char *text, size_t size, const char *wanted)
{
    int lines = 0;
    for (const char *at = wanted; (at = strchr(at, '\n')); at++)
        lines++;
    buf_reset(&f->mistakes);
    int n = conf_read_text(f->conf, "c", text, size, &f->mistakes);
    buf_append(&f->mistakes, "", 1);
    assert_string_equal(f->mistakes.data, wanted);
    assert_int_equal(n, lines);
}
#define EXPECT(text, wanted) expect(*state, text, sizeof text - 1, wanted)

static void
a_file_sets_options_of_its_sections(void **state)
{
    struct conf *conf = ((struct fixture *)*state)->conf;
    EXPECT("device=cpu\n"
           "# a comment\n"
           "; another\n"
           "\n"
           "  [tier.hbm]   # hot\n"
           "\tsize = 1 MiB\t; inline\n"
           "[server]\n"
           "listen = [::1]:80\n"
           "[tier.ram]\n"
           "size = 2MiB",
           "");
    assert_string_equal(conf->device, "cpu");
    assert_int_equal(conf->tier_hbm_size, 1 << 20);
    assert_int_equal(conf->tier_ram_size, 2 << 20);
    assert_string_equal(conf->server_listen, "[::1]:80");
}

static void
an_empty_file_is_no_mistake(void **state)
{
    EXPECT("", "");
    EXPECT("\n\n", "");
    EXPECT("# only this", "");
    EXPECT("\xEF\xBB\xBF", "");
}

static void
every_mistake_is_reported_with_its_line(void **state)
{
    EXPECT("[tier.rma]\n"
           "x = 1\n"
           "[tier.ram]\n"
           "sise = 3\n"
           "size = 8 Gib!\n"
           "[log]\n"
           "level = inf\n"
           "[model]\n"
           "listen = x\n"
           "device = cpu\n"
           "[]\n"
           "[zzzzzz]\n",
           "c:1: unknown section '[tier.rma]': did you mean '[tier.ram]'?\n"
           "c:4: unknown option 'tier.ram.sise': did you mean 'tier.ram.size'?\n"
           "c:5: tier.ram.size: '8 Gib!': expected a size from 0B to 16TiB\n"
           "c:7: log.level: 'inf': expected one of error, warning, info, debug\n"
           "c:9: unknown option 'model.listen': did you mean 'server.listen'?\n"
           "c:10: unknown option 'model.device': did you mean 'device', before the first section?\n"
           "c:11: unknown section '[]'\n"
           "c:12: unknown section '[zzzzzz]'\n");
}

static void
a_key_set_twice_in_a_file_is_a_mistake_even_across_sections(void **state)
{
    EXPECT("[tier.ram]\nsize = 1MiB\n[tier.hbm]\nsize = 1MiB\n[tier.ram]\nsize = 2MiB\n",
           "c:6: tier.ram.size is set twice: first on line 2\n");
    EXPECT("[tier.ram]\nsize = x\nsize = 2MiB\n",
           "c:2: tier.ram.size: 'x': expected a size from 0B to 16TiB\n"
           "c:3: tier.ram.size is set twice: first on line 2\n");
    /* Another file may. */
    EXPECT("[tier.ram]\nsize = 2MiB\n", "");
}

static void
lines_that_are_no_option_are_refused(void **state)
{
    EXPECT("hbm\n= 3\n[tier.ram\n[server] x\n[log\nlevel = info\nx]\n",
           "c:1: expected 'key = value', '[section]' or a comment\n"
           "c:2: expected 'key = value', '[section]' or a comment\n"
           "c:3: expected ']' at the end of the section header\n"
           "c:4: expected ']' at the end of the section header\n"
           "c:5: expected ']' at the end of the section header\n");
    EXPECT("device: cpu\n", "c:1: expected 'key = value', '[section]' or a comment\n");
    EXPECT("device: x = cpu\n", "c:1: expected 'key = value', '[section]' or a comment\n");
}

static void
an_indented_line_is_a_line_of_its_own(void **state)
{
    /* inih may be built to take it for more of the value above. */
    EXPECT("[tier.ram]\nsize = 1MiB\n  2MiB\n",
           "c:3: expected 'key = value', '[section]' or a comment\n");
    assert_int_equal(((struct fixture *)*state)->conf->tier_ram_size, 1 << 20);
    EXPECT("[tier.ram]\n  size = 3MiB\n  # x\n", "");
}

static void
a_value_may_be_empty_only_where_a_text_is_expected(void **state)
{
    EXPECT("device =\n[model]\nname =\n[tier.ram]\nsize = # none\n",
           "c:1: device has no value: expected cpu, auto or cuda:N\n"
           "c:5: tier.ram.size has no value: expected a size from 0B to 16TiB\n");
}

static void
a_comment_needs_space_before_it(void **state)
{
    struct conf *conf = ((struct fixture *)*state)->conf;
    EXPECT("[model]\nname = a#b;c\n", "");
    assert_string_equal(conf->model_name, "a#b;c");
    EXPECT("[model]\nname = a#b ;c # d\n", "");
    assert_string_equal(conf->model_name, "a#b");
}

/* Found by the fuzzer: "key =#x" was read as a value that no printed file could say. */
static void
a_value_does_not_begin_like_a_comment(void **state)
{
    EXPECT("[model]\npath =#x\nname=;y\n", "c:2: model.path: a value cannot begin with '#'\n"
                                           "c:3: model.name: a value cannot begin with ';'\n");
    EXPECT("[model]\npath = #x\n", "");
    assert_string_equal(((struct fixture *)*state)->conf->model_path, "");
}

static void
quotes_are_not_taken_into_the_value(void **state)
{
    EXPECT("[model]\npath = \"/m\"\nname = 'x'\n",
           "c:2: model.path: values are written without quotes\n"
           "c:3: model.name: values are written without quotes\n");
}

static void
bytes_that_are_no_text_are_refused(void **state)
{
    EXPECT("device = cpu\0\n[log]\nlevel = \xff\n\xFF\xFE[\0",
           "c:1: byte 13 of the line is a control character (0x00)\n"
           "c:3: byte 9 of the line is not valid UTF-8 (0xff)\n"
           "c:4: byte 1 of the line is not valid UTF-8 (0xff)\n");
    EXPECT("# broken comment \xC3(\n", "c:1: byte 18 of the line is not valid UTF-8 (0xc3)\n");
    EXPECT("device = cpu\rlevel = info\n",
           "c:1: byte 13 of the line is a control character (0x0d)\n");
    EXPECT("[model]\nname = \xE6\xA8\xA1\xE5\x9E\x8B\r\n", ""); /* UTF-8 and CR LF are fine */
    assert_string_equal(((struct fixture *)*state)->conf->model_name, "\xE6\xA8\xA1\xE5\x9E\x8B");
    EXPECT("\xEF\xBB\xBF"
           "device = cpu\n",
           "");
    EXPECT("\n\xEF\xBB\xBF"
           "device = cpu\n",
           "c:2: unknown option '\xEF\xBB\xBF"
           "device': did you "
           "mean 'device'?\n");
}

static void
a_line_too_long_for_inih_is_reported_and_never_cut(void **state)
{
    struct fixture *f = *state;
    int read = 0, refused = 0;
    for (size_t length = 100; length < 6000; length += length < 300 ? 1 : 977) {
        struct buf text = {0};
        buf_text(&text, "[model]\nname = ");
        for (size_t i = 0; i < length; i++)
            buf_text(&text, "x");
        buf_text(&text, "\n[log]\nlevel = debug\n");
        buf_reset(&f->mistakes);
        int n = conf_read_text(f->conf, "c", text.data, text.size_bytes, &f->mistakes);
        if (n == 0) {
            assert_int_equal(strlen(f->conf->model_name), length);
            assert_int_equal(refused, 0);
            read++;
        } else {
            assert_int_equal(n, 1);
            assert_memory_equal(f->mistakes.data, "c:2: the line has ", 18);
            refused++;
        }
        assert_string_equal(f->conf->log_level, "debug"); /* what follows is read */
        buf_free(&text);
    }
    assert_true(read > 50 && refused > 5);
    /* A comment or blanks do not count. */
    struct buf text = {0};
    buf_text(&text, "device = cpu");
    for (int i = 0; i < 5000; i++)
        buf_text(&text, " ");
    buf_text(&text, "#");
    for (int i = 0; i < 5000; i++)
        buf_text(&text, "x");
    assert_int_equal(conf_read_text(f->conf, "c", text.data, text.size_bytes, &f->mistakes), 0);
    buf_free(&text);
}

static void
names_of_any_length_are_unknown_and_not_taken_for_their_beginning(void **state)
{
    EXPECT(
        "[tier.ramxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx]"
        "\n"
        "size = 1\n"
        "[serverxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx]\n"
        "[tier.ram]\n"
        "sizexxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx = 1\n",
        "c:1: unknown section '[tier.ramxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...'\n"
        "c:3: unknown section '[serverxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx]'\n"
        "c:5: unknown option "
        "'tier.ram.sizexxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx'"
        "\n");
}

static void
mistakes_beyond_a_hundred_are_counted(void **state)
{
    struct fixture *f = *state;
    struct buf text = {0};
    for (int i = 0; i < 250; i++)
        buf_text(&text, "?\n");
    assert_int_equal(conf_read_text(f->conf, "c", text.data, text.size_bytes, &f->mistakes), 250);
    static const char tail[] = "c: 150 more mistakes\n";
    assert_memory_equal(f->mistakes.data + f->mistakes.size_bytes - (sizeof tail - 1), tail,
                        sizeof tail - 1);
    buf_free(&text);
}

static void
write_file(const char *path, const char *text, size_t size)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
}

static void
paths_are_meant_from_the_folder_of_the_file(void **state)
{
    struct fixture *f = *state;
    struct err err = ERR_INIT;
    char folder[] = "/tmp/test_conf.XXXXXX", path[100], wanted[200];
    assert_non_null(mkdtemp(folder));
    (void)snprintf(path, sizeof path, "%s/a.conf", folder);
    static const char text[] =
        "[model]\npath = ../m\n[server]\nadmin_socket = s.sock\n[tier.ram]\nsise=1\n";
    write_file(path, text, sizeof text - 1);
    assert_int_equal(conf_read_file(f->conf, path, &f->mistakes, &err), 1);
    (void)snprintf(wanted, sizeof wanted, "%s/../m", folder);
    assert_string_equal(f->conf->model_path, wanted);
    (void)snprintf(wanted, sizeof wanted, "%s/s.sock", folder);
    assert_string_equal(f->conf->server_admin_socket, wanted);
    buf_append(&f->mistakes, "", 1);
    (void)snprintf(wanted, sizeof wanted,
                   "%s:6: unknown option 'tier.ram.sise': did you mean 'tier.ram.size'?\n", path);
    assert_string_equal(f->mistakes.data, wanted);
    static const char absolute[] = "[model]\npath = /m\n[server]\nadmin_socket =\n";
    write_file(path, absolute, sizeof absolute - 1);
    assert_int_equal(conf_read_file(f->conf, path, &f->mistakes, &err), 0);
    assert_string_equal(f->conf->model_path, "/m");
    assert_string_equal(f->conf->server_admin_socket, "");
    assert_int_equal(unlink(path), 0);
    assert_int_equal(rmdir(folder), 0);
}

static void
a_file_that_cannot_be_read_is_named(void **state)
{
    struct fixture *f = *state;
    struct err err = ERR_INIT;
    assert_int_equal(conf_read_file(f->conf, "/nowhere/x.conf", &f->mistakes, &err), -ENOENT);
    assert_string_equal(err.text, "/nowhere/x.conf: No such file or directory");
    err = ERR_INIT;
    assert_int_equal(conf_read_file(f->conf, "/tmp", &f->mistakes, &err), -EISDIR);
    assert_string_equal(err.text, "/tmp: Is a directory");
    err = ERR_INIT;
    assert_int_equal(conf_read_file(f->conf, "/dev/zero", &f->mistakes, &err), -EFBIG);
    assert_non_null(strstr(err.text, "/dev/zero: larger than 1 MiB"));
    assert_int_equal(f->mistakes.size_bytes, 0);
}

static void
the_shipped_demo_configuration_is_valid(void **state)
{
    struct fixture *f = *state;
    struct err err = ERR_INIT;
    assert_int_equal(conf_read_file(f->conf, "conf/demo.conf", &f->mistakes, &err), 0);
    assert_int_equal(conf_check(f->conf, &f->mistakes), 0);
    assert_string_equal(f->conf->device, "cpu");
    assert_string_equal(f->conf->server_listen, "127.0.0.1:8080");
    assert_true(f->conf->tier_hbm_size > 0 && f->conf->tier_ram_size > f->conf->tier_hbm_size);
    size_t length = strlen(f->conf->model_path);
    assert_string_equal(f->conf->model_path + length - 15, "/../models/demo");
}

#define CONF_TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        CONF_TEST(a_file_sets_options_of_its_sections),
        CONF_TEST(an_empty_file_is_no_mistake),
        CONF_TEST(every_mistake_is_reported_with_its_line),
        CONF_TEST(a_key_set_twice_in_a_file_is_a_mistake_even_across_sections),
        CONF_TEST(lines_that_are_no_option_are_refused),
        CONF_TEST(an_indented_line_is_a_line_of_its_own),
        CONF_TEST(a_value_may_be_empty_only_where_a_text_is_expected),
        CONF_TEST(a_comment_needs_space_before_it),
        CONF_TEST(a_value_does_not_begin_like_a_comment),
        CONF_TEST(quotes_are_not_taken_into_the_value),
        CONF_TEST(bytes_that_are_no_text_are_refused),
        CONF_TEST(a_line_too_long_for_inih_is_reported_and_never_cut),
        CONF_TEST(names_of_any_length_are_unknown_and_not_taken_for_their_beginning),
        CONF_TEST(mistakes_beyond_a_hundred_are_counted),
        CONF_TEST(paths_are_meant_from_the_folder_of_the_file),
        CONF_TEST(a_file_that_cannot_be_read_is_named),
        CONF_TEST(the_shipped_demo_configuration_is_valid),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
