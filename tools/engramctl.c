/* engramctl: looks at a running engramd and changes its tier sizes, over the admin socket.
 * Exit codes are in the help text below; the numbers from 64 on are those of sysexits.h. */
#include <errno.h>
#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "base/byte_size.h"
#include "base/err.h"
#include "tools/admin_client.h"
#include "tools/admin_text.h"

enum { MAX_SETS = 8, TIMEOUT_MAX_S = 86400 };

static const char help[] =
    "Usage: engramctl [OPTION]... COMMAND\n"
    "\n"
    "Commands:\n"
    "  tiers    show budget, use and hits of each tier, per layer and N-gram order\n"
    "  status   say whether engramd is ready, and why not\n"
    "\n"
    "Options:\n"
    "  --set TIER=SIZE    tiers: give hbm or ram another budget first, for example ram=8GiB;\n"
    "                     may be repeated. Takes effect while engramd serves.\n"
    "  --json             print the answer as engramd sent it\n"
    "  --socket PATH      admin socket of engramd; default $RUNTIME_DIRECTORY/engramctl.sock,\n"
    "                     or /run/engramd/engramctl.sock without that variable\n"
    "  --timeout SECONDS  longest wait for the answer (60)\n"
    "  --help, --version\n"
    "\n"
    "Exit code: 0 done, and for status: ready. 1 engramd refused, or is not ready. 64 wrong\n"
    "usage. 69 engramd cannot be reached. 75 no answer in time. 76 the answer is not understood.\n"
    "77 no permission for the socket.\n";

struct tier_size {
    const char *text; /* "ram=8GiB" */
    size_t name_length;
};

struct options {
    const char *command, *socket;
    bool json;
    int timeout_s;
    int n_sets;
    struct tier_size set[MAX_SETS];
};

static int
complain(int code, const char *what, const char *detail)
{
    (void)fprintf(stderr, "engramctl: %s%s%s\n", what, detail ? ": " : "", detail ? detail : "");
    return code;
}

/* Names are ASCII letters so that they need no escaping; which tiers there are, engramd knows. */
static int
add_set(struct options *options, const char *text)
{
    struct err err = ERR_INIT;
    uint64_t bytes;
    size_t length = strspn(text, "abcdefghijklmnopqrstuvwxyz");
    if (length == 0 || text[length] != '=')
        return complain(EX_USAGE, "--set takes TIER=SIZE, for example ram=8GiB, not", text);
    if (byte_size_parse(text + length + 1, &bytes, &err) < 0)
        return complain(EX_USAGE, "--set", err.text);
    for (int i = 0; i < options->n_sets; i++) {
        if (options->set[i].name_length == length &&
            memcmp(options->set[i].text, text, length) == 0)
            return complain(EX_USAGE, "--set names a tier twice", text);
    }
    if (options->n_sets == MAX_SETS)
        return complain(EX_USAGE, "too many --set", NULL);
    options->set[options->n_sets++] = (struct tier_size){text, length};
    return 0;
}

static int
set_timeout(struct options *options, const char *text)
{
    char *end;
    errno = 0;
    long seconds = strtol(text, &end, 10);
    if (errno || end == text || *end || seconds < 1 || seconds > TIMEOUT_MAX_S)
        return complain(EX_USAGE, "--timeout takes a number of seconds from 1 to 86400, not", text);
    options->timeout_s = (int)seconds;
    return 0;
}

/* 0: go on; else the exit code + 1. */
static int
parse_options(struct options *options, int argc, char **argv)
{
    enum { HELP = 256, VERSION, JSON, SET, SOCKET, TIMEOUT };
    static const struct option names[] = {{"help", no_argument, NULL, HELP},
                                          {"version", no_argument, NULL, VERSION},
                                          {"json", no_argument, NULL, JSON},
                                          {"set", required_argument, NULL, SET},
                                          {"socket", required_argument, NULL, SOCKET},
                                          {"timeout", required_argument, NULL, TIMEOUT},
                                          {NULL, 0, NULL, 0}};
    int option, code = 0;
    while (code == 0 && (option = getopt_long(argc, argv, "", names, NULL)) != -1) {
        switch (option) {
        case HELP:
            (void)fputs(help, stdout);
            return 1;
        case VERSION:
            (void)puts("engramctl " ENGRAMD_VERSION);
            return 1;
        case JSON:
            options->json = true;
            break;
        case SET:
            code = add_set(options, optarg);
            break;
        case SOCKET:
            options->socket = optarg;
            break;
        case TIMEOUT:
            code = set_timeout(options, optarg);
            break;
        default: /* getopt has said what is wrong */
            code = EX_USAGE;
        }
    }
    if (code)
        return code + 1;
    if (optind != argc - 1)
        return 1 + complain(EX_USAGE,
                            optind == argc ? "which command? try --help"
                                           : "one command at a time; try --help",
                            NULL);
    options->command = argv[optind];
    if (strcmp(options->command, "tiers") != 0 && strcmp(options->command, "status") != 0)
        return 1 + complain(EX_USAGE, "unknown command (tiers, status)", options->command);
    if (options->n_sets && strcmp(options->command, "tiers") != 0)
        return 1 + complain(EX_USAGE, "--set belongs to tiers", NULL);
    return 0;
}

/* Into path: systemd gives the directories of a unit as a list with colons; the first one counts.
 */
static const char *
default_socket(char *path, size_t size)
{
    const char *directory = getenv("RUNTIME_DIRECTORY");
    size_t length = directory ? strcspn(directory, ":") : 0;
    if (length == 0)
        return "/run/engramd/engramctl.sock";
    (void)snprintf(path, size, "%.*s/engramctl.sock", (int)length, directory);
    return path;
}

static int
exit_code(int status)
{
    switch (-status) {
    case ETIMEDOUT:
        return EX_TEMPFAIL;
    case EPROTO:
        return EX_PROTOCOL;
    case EACCES:
    case EPERM:
        return EX_NOPERM;
    default:
        return EX_UNAVAILABLE;
    }
}

static int
report_failure(int status, const struct options *options, const struct err *err)
{
    (void)complain(0, err->text, NULL);
    if (status == -ENOENT || status == -ECONNREFUSED)
        (void)fprintf(stderr,
                      "Is engramd running there? Its option server.admin_socket sets the path, "
                      "engramctl's --socket follows it (now %s).\n",
                      options->socket);
    if (status == -EACCES)
        (void)fprintf(stderr, "The socket belongs to engramd's user and group; try with sudo.\n");
    return exit_code(status);
}

/* {"tiers":{"ram":"8GiB"}}: names and sizes were checked and hold nothing to escape. */
static void
write_sizes(const struct options *options, struct buf *body)
{
    buf_text(body, "{\"tiers\":{");
    for (int i = 0; i < options->n_sets; i++) {
        const struct tier_size *set = &options->set[i];
        buf_printf(body, "%s\"%.*s\":\"%s\"", i ? "," : "", (int)set->name_length, set->text,
                   set->text + set->name_length + 1);
    }
    buf_text(body, "}}");
    buf_append(body, "", 1);
}

static int
print(const struct buf *text)
{
    if (text->failed)
        return complain(EX_OSERR, "out of memory", NULL);
    if (fwrite(text->data, 1, text->size_bytes, stdout) != text->size_bytes || fflush(stdout) != 0)
        return complain(EX_IOERR, "cannot write the output", NULL);
    return 0;
}

/* The answer for people or as it came. 0 or an exit code. */
static int
print_answer(const struct options *options, struct buf *answer,
             int (*render)(const char *, size_t, struct buf *, struct err *))
{
    struct buf text __attribute__((cleanup(buf_free))) = {0};
    struct err err = ERR_INIT;
    if (options->json) {
        buf_text(answer, "\n");
        return print(answer);
    }
    if (render(answer->data, answer->size_bytes, &text, &err) < 0)
        return complain(EX_PROTOCOL, err.text, NULL);
    return print(&text);
}

static int
refused(int status, const struct buf *answer)
{
    struct buf text __attribute__((cleanup(buf_free))) = {0};
    admin_text_error(status, answer->data, answer->size_bytes, &text);
    buf_append(&text, "", 1);
    return complain(EXIT_FAILURE, "engramd says", text.failed ? "" : text.data);
}

static int
run_tiers(const struct options *options, struct buf *answer)
{
    struct buf body __attribute__((cleanup(buf_free))) = {0};
    struct err err = ERR_INIT;
    if (options->n_sets)
        write_sizes(options, &body);
    if (body.failed)
        return complain(EX_OSERR, "out of memory", NULL);
    int status = admin_request(options->socket, options->n_sets ? "PATCH" : "GET", "/v1/tiers",
                               body.data, options->timeout_s, answer, &err);
    if (status < 0)
        return report_failure(status, options, &err);
    return status == 200 ? print_answer(options, answer, admin_text_tiers)
                         : refused(status, answer);
}

static int
run_status(const struct options *options, struct buf *answer)
{
    struct err err = ERR_INIT;
    int status = admin_request(options->socket, "GET", "/readyz?verbose", NULL, options->timeout_s,
                               answer, &err);
    if (status < 0)
        return report_failure(status, options, &err);
    if (status != 200 && status != 503)
        return refused(status, answer);
    int code = print_answer(options, answer, admin_text_status);
    return code ? code : status == 200 ? EXIT_SUCCESS : EXIT_FAILURE;
}

int
main(int argc, char **argv)
{
    struct options options = {.timeout_s = 60};
    struct buf answer __attribute__((cleanup(buf_free))) = {0};
    char path[4096];
    int done = parse_options(&options, argc, argv);
    if (done)
        return done - 1;
    if (!options.socket)
        options.socket = default_socket(path, sizeof path);
    return strcmp(options.command, "tiers") == 0 ? run_tiers(&options, &answer)
                                                 : run_status(&options, &answer);
}
