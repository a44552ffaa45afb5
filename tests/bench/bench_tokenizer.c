/* bench_tokenizer: how fast tokenizers load, encode and detokenise. Built with the tests, not run
 * by them.
 *
 *     build/tests/bench/bench_tokenizer [FILE...]
 *
 * FILE: plain text or .xz (default: some of ../shared/data/corpus). For each tokenizer of
 * ../shared/data: time and resident memory of loading, then per file bytes, tokens, MB/s of one
 * thread (the best of ROUNDS) encoding, detokenising, and encoding in pieces of PROMPT_BYTES. */
#include <malloc.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>

#include "model/tokenizer.h"
#include "tests/unit/model/shared_data.h"

enum { ROUNDS = 3, FILE_BYTES = 4 << 20, PROMPT_BYTES = 2000 };

/* Time on the processor: other work on the machine does not count. */
static uint64_t
thread_ns(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static double
seconds_since(uint64_t start_ns)
{
    return (double)(thread_ns() - start_ns) / 1e9;
}

static long
resident_kib(void)
{
    long pages = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (f && fscanf(f, "%ld %ld", &pages, &resident) != 2)
        resident = 0;
    if (f)
        (void)fclose(f);
    return resident * (sysconf(_SC_PAGESIZE) / 1024);
}

static double
encode_rate(const struct tokenizer *tokenizer, const char *text, size_t size, size_t step,
            int64_t *ret_tokens)
{
    double best = 1e9;
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t start_ns = thread_ns();
        *ret_tokens = 0;
        for (size_t at = 0; at < size; at += step) {
            int32_t *ids;
            int64_t n = tokenizer_encode(tokenizer, text + at, size - at < step ? size - at : step,
                                         0, &ids, NULL);
            *ret_tokens += n > 0 ? n : 0;
            free(ids);
        }
        double seconds = seconds_since(start_ns);
        best = seconds < best ? seconds : best;
    }
    return (double)size / 1e6 / best;
}

static double
detokenize_rate(const struct tokenizer *tokenizer, const char *text, size_t size)
{
    int32_t *ids;
    int64_t n = tokenizer_encode(tokenizer, text, size, 0, &ids, NULL);
    struct detokenizer d = {.tokenizer = tokenizer};
    static char out[1 << 18];
    uint64_t start_ns = thread_ns();
    for (int64_t i = 0; i < n; i++)
        (void)detokenizer_push(&d, ids[i], out, sizeof out);
    double seconds = seconds_since(start_ns);
    free(ids);
    return (double)size / 1e6 / seconds;
}

static void
bench_file(const struct tokenizer *tokenizer, const char *name)
{
    size_t size = 0;
    char *text =
        name[0] == '/' || name[0] == '.' ? file_read(name, &size) : shared_data_read(name, &size);
    if (!text)
        return;
    size = size < FILE_BYTES ? size : FILE_BYTES;
    int64_t tokens, ignored;
    double whole = encode_rate(tokenizer, text, size, size, &tokens);
    double prompts = encode_rate(tokenizer, text, size, PROMPT_BYTES, &ignored);
    (void)printf("  %-32s %8zu bytes %8lld tokens  %6.2f MB/s  in prompts %6.2f  back %6.2f\n",
                 name, size, (long long)tokens, whole, prompts,
                 detokenize_rate(tokenizer, text, size));
    free(text);
}

int
main(int argc, char **argv)
{
    static const char *const tokenizers[] = {"deepseek_v3", "qwen2", "glm_4_6"};
    static const char *const corpora[] = {
        "corpus/en_valid.txt",     "corpus/en_web_bible.txt",        "corpus/zh_xiyou_ji.txt",
        "corpus/multi_udhr.jsonl", "prompts/chat_prompts_cc0.jsonl", "corpus/en_zh_tatoeba.tsv",
    };
    for (size_t i = 0; i < sizeof tokenizers / sizeof *tokenizers; i++) {
        char name[100];
        size_t size;
        (void)snprintf(name, sizeof name, "tokenizers/%s/tokenizer.json", tokenizers[i]);
        char *json = shared_data_read(name, &size);
        if (!json)
            continue;
        struct err err = ERR_INIT;
        struct tokenizer *tokenizer;
        (void)malloc_trim(0);
        long before_kib = resident_kib();
        uint64_t start_ns = thread_ns();
        if (tokenizer_parse(&tokenizer, json, size, 1 << 20, &err) < 0) {
            (void)fprintf(stderr, "%s: %s\n", name, err.text);
            return 1;
        }
        (void)printf("%s: %.1f ms to parse, %.1f MiB resident\n", tokenizers[i],
                     1e3 * seconds_since(start_ns), (double)(resident_kib() - before_kib) / 1024);
        free(json);
        if (argc > 1) {
            for (int k = 1; k < argc; k++)
                bench_file(tokenizer, argv[k]);
        } else {
            for (size_t k = 0; k < sizeof corpora / sizeof *corpora; k++)
                bench_file(tokenizer, corpora[k]);
        }
        tokenizer = tokenizer_free(tokenizer);
    }
    return 0;
}
