/* engram-bench: times the engine in this process, without HTTP: which command, then its own file. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "tools/bench.h"

static const struct {
    const char *name, *text;
    int (*run)(int argc, char **argv);
} commands[] = {
    {"serve", "a checkpoint in three placements, requests through the engine", bench_serve},
    {"decode", "decode steps of a random model, against memory bandwidth", bench_decode},
    {"prefill", "one long prompt of a random model, against the matrix rate", bench_prefill},
    {"text", "requests of real text through the engine, in several placements of the table", bench_text},
    {"rows", "delivery of rows to the GPU against reading each by itself", bench_rows},
};

int
bench_number(const char *text, int least, int most)
{
    char *end;

    errno = 0;
    long value = strtol(text, &end, 10);

    if (errno || !*text || *end || value < least || value > most) {
        fprintf(stderr, "engram-bench: '%s' is not a number from %d to %d\n", text, least, most);
        exit(BENCH_USAGE);
    }
    return (int)value;
}

void
bench_fail(const char *what, const struct err *err)
{
    fprintf(stderr, "engram-bench: %s: %s\n", what, err->text);
    exit(1);
}

static int
usage(FILE *out, int status)
{
    fputs("Usage: engram-bench COMMAND [OPTION]...; engram-bench COMMAND --help\n", out);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        fprintf(out, "  %-8s %s\n", commands[i].name, commands[i].text);
    return status;
}

int
main(int argc, char **argv)
{
    log_open(LOG_LEVEL_ERROR);
    if (argc > 1 && strcmp(argv[1], "--help") == 0)
        return usage(stdout, 0);
    for (size_t i = 0; argc > 1 && i < sizeof commands / sizeof *commands; i++)
        if (strcmp(argv[1], commands[i].name) == 0)
            return commands[i].run(argc - 1, argv + 1);
    return usage(stderr, BENCH_USAGE);
}
