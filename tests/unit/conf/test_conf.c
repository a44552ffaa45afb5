#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>

#include "conf/conf.h"
#include "conf/conf_option.h"

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

/* What conf_print_* writes, to be freed. Not inlined: gcc 12 then mistakes the text for the
 * variable that held its address. */
static char *__attribute__((noinline))
printed(void (*print)(const struct conf *, FILE *), const struct conf *conf)
{
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    assert_non_null(out);
    print(conf, out);
    assert_int_equal(fclose(out), 0);
    return text;
}

static void
print_sample(const struct conf *conf, FILE *out)
{
    conf_print_sample(out);
}

static void
print_help(const struct conf *conf, FILE *out)
{
    conf_print_help(out);
}

static void
built_in_values_are_those_of_the_table(void **state)
{
    struct conf *conf = ((struct fixture *)*state)->conf;
    assert_string_equal(conf->server_listen, "127.0.0.1:8080");
    assert_string_equal(conf->device, "auto");
    assert_string_equal(conf->model_path, "");
    assert_int_equal(conf->tier_hbm_size, 1ull << 30);
    assert_int_equal(conf->server_read_timeout, 30000000000);
    assert_int_equal(conf->engine_max_sequences, 64);
    assert_true(conf->tier_nvme_direct);
    assert_false(conf->server_strict_requests);
}

static void
set_takes_every_kind_of_value(void **state)
{
    struct conf *conf = ((struct fixture *)*state)->conf;
    assert_int_equal(conf_set(conf, "tier.hbm.size=1GiB", NULL), 0);
    assert_int_equal(conf_set(conf, " tier.ram.size = 0 ", NULL), 0);
    assert_int_equal(conf_set(conf, "device=cuda:12", NULL), 0);
    assert_int_equal(conf_set(conf, "server.listen=[::1]:0", NULL), 0);
    assert_int_equal(conf_set(conf, "engine.max_sequences=4096", NULL), 0);
    assert_int_equal(conf_set(conf, "tier.nvme.timeout=1ms", NULL), 0);
    assert_int_equal(conf_set(conf, "tier.nvme.direct=Off", NULL), 0);
    assert_int_equal(conf_set(conf, "log.level=debug", NULL), 0);
    assert_int_equal(conf_set(conf, "model.path=/a=b #c", NULL), 0);
    assert_int_equal(conf->tier_hbm_size, 1ull << 30);
    assert_int_equal(conf->tier_ram_size, 0);
    assert_string_equal(conf->device, "cuda:12");
    assert_string_equal(conf->server_listen, "[::1]:0");
    assert_int_equal(conf->engine_max_sequences, 4096);
    assert_int_equal(conf->tier_nvme_timeout, 1000000);
    assert_false(conf->tier_nvme_direct);
    assert_string_equal(conf->log_level, "debug");
    assert_string_equal(conf->model_path, "/a=b #c");
    assert_int_equal(conf_set(conf, "model.path=", NULL), 0);
    assert_string_equal(conf->model_path, "");
}

static void
a_wrong_set_says_what_was_expected_and_changes_nothing(void **state)
{
    static const struct {
        const char *assignment, *message;
    } rows[] = {
        {"tier.hbm.size", "'tier.hbm.size': expected section.key=value"},
        {"", "'': expected section.key=value"},
        {"=", "unknown option ''"},
        {"tier.hbm.siez=1", "unknown option 'tier.hbm.siez': did you mean 'tier.hbm.size'?"},
        {"Device=cpu", "unknown option 'Device': did you mean 'device'?"},
        {"size=1", "unknown option 'size': did you mean 'tier.hbm.size'?"},
        {"server.prot=1", "unknown option 'server.prot'"},
        {"x.y.z=1", "unknown option 'x.y.z'"},
        {"tier.hbm.size=", "tier.hbm.size has no value: expected a size from 0B to 16TiB"},
        {"tier.hbm.size=16385GiB", "tier.hbm.size: '16385GiB': expected a size from 0B to 16TiB"},
        {"tier.hbm.size=-1", "tier.hbm.size: '-1': expected a size from 0B to 16TiB"},
        {"engine.max_sequences=0",
         "engine.max_sequences: '0': expected a whole number from 1 to 4096"},
        {"engine.max_sequences=4097",
         "engine.max_sequences: '4097': expected a whole number from 1 to 4096"},
        {"engine.max_sequences=99999999999999999999",
         "engine.max_sequences: '99999999999999999999': expected a whole number from 1 to 4096"},
        {"engine.max_sequences=1.5",
         "engine.max_sequences: '1.5': expected a whole number from 1 to 4096"},
        {"engine.max_sequences=+5",
         "engine.max_sequences: '+5': expected a whole number from 1 to 4096"},
        {"server.read_timeout=30", "server.read_timeout: '30': expected a time from 100ms to 1h"},
        {"server.read_timeout=61m", "server.read_timeout: '61m': expected a time from 100ms to 1h"},
        {"tier.nvme.direct=2", "tier.nvme.direct: '2': expected true or false"},
        {"cpu.isa=sse", "cpu.isa: 'sse': expected one of auto, avx512, avx2, portable"},
        {"cpu.isa=auto avx512",
         "cpu.isa: 'auto avx512': expected one of auto, avx512, avx2, portable"},
        {"cpu.isa=avx", "cpu.isa: 'avx': expected one of auto, avx512, avx2, portable"},
        {"device=cuda:", "device: 'cuda:': expected cpu, auto or cuda:N"},
        {"device=cuda:0x", "device: 'cuda:0x': expected cpu, auto or cuda:N"},
        {"device=cuda:12345", "device: 'cuda:12345': expected cpu, auto or cuda:N"},
        {"server.listen=8080", "server.listen: '8080': expected host:port or [v6]:port"},
        {"server.listen=:8080", "server.listen: ':8080': expected host:port or [v6]:port"},
        {"server.listen=::1:80", "server.listen: '::1:80': expected host:port or [v6]:port"},
        {"server.listen=[]:80", "server.listen: '[]:80': expected host:port or [v6]:port"},
        {"server.listen=[::1:80", "server.listen: '[::1:80': expected host:port or [v6]:port"},
        {"server.listen=[::1]80", "server.listen: '[::1]80': expected host:port or [v6]:port"},
        {"server.listen=a:65536", "server.listen: 'a:65536': expected host:port or [v6]:port"},
        {"server.listen=a:-0", "server.listen: 'a:-0': expected host:port or [v6]:port"},
        {"server.listen=a b:1", "server.listen: 'a b:1': expected host:port or [v6]:port"},
        {"server.listen=a:", "server.listen: 'a:': expected host:port or [v6]:port"},
        {"model.name=a\nb", "model.name: 'a\\nb' has a control character in it"},
        {"model.name=\xff", "model.name: '\\xff' is not valid UTF-8"},
    };
    struct conf *conf = ((struct fixture *)*state)->conf;
    char *before = printed(conf_print_values, conf);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct err err = ERR_INIT;
        assert_int_equal(conf_set(conf, rows[i].assignment, &err), -EINVAL);
        assert_string_equal(err.text, rows[i].message);
    }
    char *after = printed(conf_print_values, conf);
    assert_string_equal(before, after);
    free(before);
    free(after);
}

static void
a_set_outranks_a_file_whatever_comes_first(void **state)
{
    struct fixture *f = *state;
    static const char text[] = "[tier.ram]\nsize = 3MiB\n[tier.hbm]\nsize = 4MiB\n";
    assert_int_equal(conf_set(f->conf, "tier.ram.size=5MiB", NULL), 0);
    assert_int_equal(conf_read_text(f->conf, "t", text, sizeof text - 1, &f->mistakes), 0);
    assert_int_equal(f->conf->tier_ram_size, 5 << 20);
    assert_int_equal(f->conf->tier_hbm_size, 4 << 20);
    assert_int_equal(conf_set(f->conf, "tier.hbm.size=6MiB", NULL), 0);
    assert_int_equal(f->conf->tier_hbm_size, 6 << 20);
    /* A value that loses is still checked. */
    static const char wrong[] = "[tier.ram]\nsize = 3Mb/s\n";
    assert_int_equal(conf_read_text(f->conf, "t", wrong, sizeof wrong - 1, &f->mistakes), 1);
}

static void
values_are_printed_with_their_origin_and_read_back_the_same(void **state)
{
    struct fixture *f = *state;
    static const char text[] = "device = cpu\n[model]\n\npath = /m/d\n[tier.ram]\nsize=1234567\n";
    assert_int_equal(conf_read_text(f->conf, "a.conf", text, sizeof text - 1, &f->mistakes), 0);
    assert_int_equal(conf_set(f->conf, "server.read_timeout=90s", NULL), 0);
    char *first = printed(conf_print_values, f->conf);
    assert_non_null(strstr(first, "device = cpu                             # a.conf:1\n"));
    assert_non_null(
        strstr(first, "\n[model]\npath = /m/d                              # a.conf:4\n"));
    assert_non_null(strstr(first, "\nsize = 1234567B                          # a.conf:6\n"));
    assert_non_null(strstr(first, "\nread_timeout = 90s                       # --set\n"));
    assert_non_null(strstr(first, "\nlevel = info                             # built-in\n"));

    struct conf *again = NULL;
    assert_int_equal(conf_new(&again, NULL), 0);
    assert_int_equal(conf_read_text(again, "b", first, strlen(first), &f->mistakes), 0);
    for (int i = 0; i < CONF_OPTIONS; i++) {
        if (conf_options[i].kind == CONF_KIND_TEXT || conf_options[i].kind == CONF_KIND_WORD)
            assert_string_equal(*(char **)((char *)again + conf_options[i].offset),
                                *(char **)((char *)f->conf + conf_options[i].offset));
    }
    assert_int_equal(again->tier_ram_size, 1234567);
    assert_int_equal(again->server_read_timeout, 90000000000);
    conf_free(again);
    free(first);
}

static void
the_sample_names_every_option_and_reads_as_the_built_in_values(void **state)
{
    struct fixture *f = *state;
    char *sample = printed(print_sample, NULL), *help = printed(print_help, NULL);
    char *before = printed(conf_print_values, f->conf);
    assert_int_equal(conf_read_text(f->conf, "s", sample, strlen(sample), &f->mistakes), 0);
    char *after = printed(conf_print_values, f->conf);
    assert_string_equal(before, after); /* everything in it is a comment */

    /* With the '#' in front of each key removed it says the same; an empty path stays empty. */
    char line[200], name[CONF_NAME_BYTES];
    for (int i = 0; i < CONF_OPTIONS; i++) {
        (void)snprintf(line, sizeof line, "\n#%s =", conf_options[i].key);
        char *at = strstr(sample, line);
        assert_non_null(at);
        at[1] = ' ';
        (void)snprintf(line, sizeof line, "  %s=", conf_option_name(i, name));
        assert_non_null(strstr(help, line));
    }
    assert_int_equal(conf_read_text(f->conf, "s", sample, strlen(sample), &f->mistakes), 0);
    for (const char *text = sample; *text; text = strchr(text, '\n') + 1)
        assert_true(strcspn(text, "\n") <= 100);
    free(sample);
    free(help);
    free(before);
    free(after);
}

static void
what_no_single_option_can_say_is_checked_over_all(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(conf_check(f->conf, &f->mistakes), 1);
    assert_memory_equal(f->mistakes.data, "model.path is not set", 21);
    assert_int_equal(conf_set(f->conf, "model.path=x", NULL), 0);
    assert_int_equal(conf_check(f->conf, &f->mistakes), 0);
    assert_int_equal(conf_set(f->conf, "engine.max_context=8", NULL), 0);
    assert_int_equal(conf_check(f->conf, &f->mistakes), 1);
}

static void
every_row_of_the_table_is_sound(void **state)
{
    char a[CONF_NAME_BYTES], b[CONF_NAME_BYTES];
    for (int i = 0; i < CONF_OPTIONS; i++) {
        const char *name = conf_option_name(i, a);
        assert_int_equal(conf_option_find_name(name), i);
        for (int j = 0; j < i; j++)
            assert_string_not_equal(name, conf_option_name(j, b));
        /* Rows of one section stand together, else the sample would open a section twice; options
         * without a section come first, as a file has no way back to before the first one. */
        for (int j = 0; j + 1 < i; j++)
            if (strcmp(conf_options[i].section, conf_options[j].section) == 0)
                assert_string_equal(conf_options[i].section, conf_options[i - 1].section);
        if (*conf_options[i].section == '\0' && i > 0)
            assert_string_equal(conf_options[i - 1].section, "");
        size_t length = strlen(conf_options[i].help);
        assert_true(length > 10 && conf_options[i].help[length - 1] == '.');
    }
    assert_null(conf_free(NULL));
}

#define CONF_TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        CONF_TEST(built_in_values_are_those_of_the_table),
        CONF_TEST(set_takes_every_kind_of_value),
        CONF_TEST(a_wrong_set_says_what_was_expected_and_changes_nothing),
        CONF_TEST(a_set_outranks_a_file_whatever_comes_first),
        CONF_TEST(values_are_printed_with_their_origin_and_read_back_the_same),
        CONF_TEST(the_sample_names_every_option_and_reads_as_the_built_in_values),
        CONF_TEST(what_no_single_option_can_say_is_checked_over_all),
        CONF_TEST(every_row_of_the_table_is_sound),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
