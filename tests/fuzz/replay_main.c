/* replay_main: runs a fuzzer's entry over files and folders of inputs without libFuzzer, so that
 * every corpus is a plain test with any compiler. Each input is also tried cut short and with bytes
 * changed by a fixed pseudo-random sequence: the same inputs at every run.
 *
 *   replay_x [--mutations=N] FILE|FOLDER... */
#include <dirent.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MOST_INPUT_BYTES = 1 << 24 };

static long n_files, n_runs;

/* In memory of exactly this size, so that a sanitizer sees a read past the end. */
static void
run(const uint8_t *data, size_t size)
{
    uint8_t *copy = malloc(size ? size : 1);
    if (!copy) {
        fprintf(stderr, "replay: no memory for %zu bytes\n", size);
        exit(1);
    }
    memcpy(copy, data, size);
    (void)LLVMFuzzerTestOneInput(copy, size);
    free(copy);
    n_runs++;
}

static uint64_t random_state;

/* xorshift64* */
static uint64_t
random_next(void)
{
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return random_state * 0x2545F4914F6CDD1Dull;
}

static void
run_mutations(uint8_t *data, size_t size, int n)
{
    uint8_t *work = malloc(size);
    if (!work || size == 0) {
        free(work);
        return;
    }
    for (int i = 0; i < n; i++) {
        memcpy(work, data, size);
        size_t used = size;
        if (i % 3 == 0) { /* cut: at n places spread over the input */
            used = (size_t)((double)size * i / n);
        } else {
            int changes = 1 + (int)(random_next() % 4);
            for (int c = 0; c < changes; c++) {
                uint64_t random = random_next();
                uint8_t *at = &work[random_next() % size];
                *at = random % 3 == 0   ? (uint8_t)(random >> 8)
                      : random % 3 == 1 ? (uint8_t)(*at ^ 1u << (random >> 8) % 8)
                                        : work[(random >> 8) % size];
            }
        }
        run(work, used);
    }
    free(work);
}

static int
replay_file(const char *path, int mutations)
{
    FILE *file = fopen(path, "rb");
    uint8_t *data = malloc(MOST_INPUT_BYTES);
    if (!file || !data) {
        fprintf(stderr, "replay: %s: %s\n", path, strerror(errno));
        if (file)
            (void)fclose(file);
        free(data);
        return 1;
    }
    size_t size = fread(data, 1, MOST_INPUT_BYTES, file);
    (void)fclose(file);
    n_files++;
    run(data, size);
    random_state = 0x9E3779B97F4A7C15ull ^ size;
    run_mutations(data, size, mutations);
    free(data);
    return 0;
}

static int
not_hidden(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

static int
replay(const char *path, int mutations)
{
    struct stat status;
    if (stat(path, &status) != 0) {
        fprintf(stderr, "replay: %s: %s\n", path, strerror(errno));
        return 1;
    }
    if (!S_ISDIR(status.st_mode))
        return replay_file(path, mutations);
    struct dirent **entries;
    int n = scandir(path, &entries, not_hidden, alphasort), result = n < 0;
    for (int i = 0; i < n; i++) {
        char inner[4096];
        if (snprintf(inner, sizeof inner, "%s/%s", path, entries[i]->d_name) < (int)sizeof inner)
            result |= replay_file(inner, mutations);
        free(entries[i]);
    }
    if (n >= 0)
        free(entries);
    return result;
}

int
main(int argc, char **argv)
{
    int mutations = 200, result = 0;
    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], "--mutations=", 12) == 0)
            mutations = (int)strtol(argv[i] + 12, NULL, 10);
        else
            result |= replay(argv[i], mutations);
    }
    printf("%ld files, %ld runs\n", n_files, n_runs);
    /* A corpus that was not found must not pass. */
    return result || n_files == 0;
}
