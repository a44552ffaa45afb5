/* engramd: arguments, configuration, exit codes. Everything else is daemon_run. */
#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "conf/conf.h"
#include "daemon/daemon.h"

enum { EXIT_CONFIG = 78, EXIT_USAGE = 64 };

static const char usage[] =
    "Usage: engramd [--config FILE] [--set SECTION.KEY=VALUE]...\n"
    "Serves a Transformer with Engram conditional memory over HTTP.\n"
    "\n"
    "  --config FILE            configuration (default: built-in values)\n"
    "  --set SECTION.KEY=VALUE  one option, over the file; may be repeated\n"
    "  --check-config           check the configuration and the model's folder, then exit: 0 or "
    "78\n"
    "  --print-config           print a configuration file with every option and exit\n"
    "  --print-values           print the effective values and where they come from, and exit\n"
    "  --version, --help\n";

enum {
    OPTION_CONFIG = 1,
    OPTION_SET,
    OPTION_CHECK,
    OPTION_PRINT,
    OPTION_VALUES,
    OPTION_VERSION,
    OPTION_HELP
};

static const struct option options[] = {
    {"config", required_argument, NULL, OPTION_CONFIG},
    {"set", required_argument, NULL, OPTION_SET},
    {"check-config", no_argument, NULL, OPTION_CHECK},
    {"print-config", no_argument, NULL, OPTION_PRINT},
    {"print-values", no_argument, NULL, OPTION_VALUES},
    {"version", no_argument, NULL, OPTION_VERSION},
    {"help", no_argument, NULL, OPTION_HELP},
    {0},
};

static enum log_level
level_of(const char *name)
{
    return strcmp(name, "error") == 0     ? LOG_LEVEL_ERROR
           : strcmp(name, "warning") == 0 ? LOG_LEVEL_WARNING
           : strcmp(name, "debug") == 0   ? LOG_LEVEL_DEBUG
                                          : LOG_LEVEL_INFO;
}

struct arguments {
    const char *config;
    bool check, print_sample, print_values;
};

/* Files first, then --set in order, whatever the order on the command line. 0, or an exit code. */
static int
read_conf(struct conf *conf, int argc, char **argv, struct arguments *a)
{
    struct buf mistakes = {0};
    struct err err = ERR_INIT;
    int status = 0;

    if (a->config && conf_read_file(conf, a->config, &mistakes, &err) < 0) {
        fprintf(stderr, "engramd: %s\n", err.text);
        return EXIT_CONFIG;
    }
    optind = 1;
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;)
        if (c == OPTION_SET) {
            struct err mistake = ERR_INIT;

            if (conf_set(conf, optarg, &mistake) < 0)
                buf_printf(&mistakes, "--set %s: %s\n", optarg, mistake.text);
        }
    if (mistakes.size_bytes == 0 && !a->print_sample && !a->print_values)
        (void)conf_check(conf, &mistakes);
    if (mistakes.size_bytes) {
        fprintf(stderr, "%.*s", (int)mistakes.size_bytes, mistakes.data);
        status = EXIT_CONFIG;
    }
    buf_free(&mistakes);
    return status;
}

int
main(int argc, char **argv)
{
    struct arguments a = {0};
    struct conf *conf;
    struct err err = ERR_INIT;

    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;)
        switch (c) {
        case OPTION_CONFIG:
            a.config = optarg;
            break;
        case OPTION_SET:
            break;
        case OPTION_CHECK:
            a.check = true;
            break;
        case OPTION_PRINT:
            a.print_sample = true;
            break;
        case OPTION_VALUES:
            a.print_values = true;
            break;
        case OPTION_VERSION:
            puts("engramd " ENGRAMD_VERSION);
            return 0;
        case OPTION_HELP:
            fputs(usage, stdout);
            fputs("\nOptions of the configuration (SECTION.KEY):\n\n", stdout);
            conf_print_help(stdout);
            return 0;
        default:
            fprintf(stderr, "engramd: see engramd --help\n");
            return EXIT_USAGE;
        }
    if (optind < argc) {
        fprintf(stderr, "engramd: unexpected argument '%s'; see engramd --help\n", argv[optind]);
        return EXIT_USAGE;
    }
    if (conf_new(&conf, &err) < 0) {
        fprintf(stderr, "engramd: %s\n", err.text);
        return 71;
    }
    int status = read_conf(conf, argc, argv, &a);
    bool at_once = false;

    if (status == 0 && a.print_sample)
        conf_print_sample(stdout);
    else if (status == 0 && a.print_values)
        conf_print_values(conf, stdout);
    else if (status == 0 && a.check)
        fprintf(stderr, "engramd: the configuration is good\n");
    else if (status == 0) {
        log_open(level_of(conf->log_level));
        status = daemon_run(conf, &at_once);
        if (at_once)
            _exit(status); /* nor what the driver does when a process exits */
    }
    conf_free(conf);
    return status;
}
