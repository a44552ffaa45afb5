/* Texts made to be slow: encoding stays linear (n log n inside one word), whatever a client sends.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include <cmocka.h>

#include "model/tokenizer.h"
#include "tests/unit/model/shared_data.h"

/* Linear work on a million bytes takes well under a second, quadratic work hours; on 128 KiB a
 * hundredth of a second, and half a minute. The bounds leave room for sanitizers. */
enum { LONG_BYTES = 1 << 20, LONG_SECONDS = 60, SHORT_BYTES = 1 << 17, SHORT_SECONDS = 10 };

static double
processor_seconds(void)
{
    struct timespec now;
    assert_int_equal(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now), 0);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static bool show_times; /* test_tokenizer_hostile times */

static const char *const tokenizer_names[] = {"tiny", "flags", "deepseek_v3", "qwen2", "glm_4_6"};
enum { N_TOKENIZERS = sizeof tokenizer_names / sizeof *tokenizer_names };
static struct tokenizer *tokenizers[N_TOKENIZERS];

static int
load_all(void **state)
{
    for (int i = 0; i < N_TOKENIZERS; i++) {
        char path[200];
        size_t size;
        (void)snprintf(path, sizeof path, "tests/golden/tokenizer/%s/tokenizer.json",
                       tokenizer_names[i]);
        char *json = file_read(path, &size);
        (void)snprintf(path, sizeof path, "tokenizers/%s/tokenizer.json", tokenizer_names[i]);
        if (!json)
            json = shared_data_read(path, &size);
        if (!json)
            continue;
        assert_int_equal(tokenizer_parse(&tokenizers[i], json, size, 1 << 20, NULL), 0);
        free(json);
    }
    assert_non_null(tokenizers[0]);
    return 0;
}

static int
free_all(void **state)
{
    for (int i = 0; i < N_TOKENIZERS; i++)
        tokenizers[i] = tokenizer_free(tokenizers[i]);
    return 0;
}

/* Encodes the units over and over (head once in front, tail once behind) until there are so many
 * bytes. */
static void
encode_repeated(size_t bytes, const char *head, const char *unit, const char *tail)
{
    size_t unit_bytes = strlen(unit), size = strlen(head);
    double bound = bytes == LONG_BYTES ? LONG_SECONDS : SHORT_SECONDS;
    char *text = malloc(bytes + 1000);
    assert_non_null(text);
    memcpy(text, head, size);
    for (; size + unit_bytes <= bytes; size += unit_bytes)
        memcpy(text + size, unit, unit_bytes);
    memcpy(text + size, tail, strlen(tail));
    size += strlen(tail);
    for (int i = 0; i < N_TOKENIZERS; i++) {
        if (!tokenizers[i])
            continue;
        struct err err = ERR_INIT;
        int32_t *ids;
        double start = processor_seconds();
        int64_t n = tokenizer_encode(tokenizers[i], text, size, 0, &ids, &err);
        double seconds = processor_seconds() - start;
        if (n <= 0)
            fail_msg("%s: %s", tokenizer_names[i], err.text);
        if (seconds > bound)
            fail_msg("%s: %zu bytes of \"%s\" took %.1f s", tokenizer_names[i], size, unit,
                     seconds);
        if (show_times)
            print_message("%-12s %8zu %-24.24s %8lld ids %7.3f s\n", tokenizer_names[i], size, unit,
                          (long long)n, seconds);
        free(ids);
    }
    free(text);
}

static void
megabytes_of_one_character_stay_linear(void **state)
{
    static const char *const units[] = {" ", "\n", "a", "中", "1"};
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        encode_repeated(LONG_BYTES, "", units[i], "");
}

static void
runs_of_one_character_stay_linear(void **state)
{
    static const char *const units[] = {
        " ",    "\n",           "\r",           "\t",       "a", "A",  "1", "!",        "'", "_",
        "-",    "\xe3\x80\x80", "中",           "ー",       "é", "한", "😀", "\xcc\x81", "<", "½",
        "\x01", "\xe2\x80\x8b", "\xef\xbf\xbf", "\xc2\xa0",
    };
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        encode_repeated(SHORT_BYTES, "", units[i], "");
}

static void
joined_emoji_stay_linear(void **state)
{
    encode_repeated(LONG_BYTES, "", "👩\xe2\x80\x8d👩\xe2\x80\x8d👧\xe2\x80\x8d", "");
}

static void
spaces_that_end_in_a_letter_stay_linear(void **state)
{
    encode_repeated(SHORT_BYTES, "", " ", "x");
    encode_repeated(SHORT_BYTES, "x", "\t", "\n");
    encode_repeated(SHORT_BYTES, "", "\n ", "x");
    encode_repeated(SHORT_BYTES, "", " \n", "x");
    encode_repeated(SHORT_BYTES, "", "\r\n", " x");
}

static void
alternating_characters_stay_linear(void **state)
{
    static const char *const units[] = {
        "a ",
        " a",
        "1a",
        "a1",
        "'s",
        "'ll",
        " '",
        "!a",
        ".\n",
        "ab",
        "abcdefg",
        "a\xcc\x81",
        "\xcc\x81\xcc\xa3",
        "中a",
        "中1",
        "中,",
        "\xcc\x81 ",
        "x\xe2\x80\x8d",
        "if (x) {\n\t\t\t\treturn;\n}\n",
    };
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        encode_repeated(SHORT_BYTES, "", units[i], "");
}

static void
near_misses_of_added_tokens_stay_linear(void **state)
{
    encode_repeated(SHORT_BYTES, "", "<｜place▁holder▁no▁", "");
    encode_repeated(SHORT_BYTES, "", "<|endoftext", "");
    encode_repeated(SHORT_BYTES, "", "<|endoftext|>", "");
    encode_repeated(SHORT_BYTES, "", " <left>", "");
    encode_repeated(SHORT_BYTES, "", "<both> ", "");
    encode_repeated(SHORT_BYTES, "<right>", " ", "<left>");
    encode_repeated(SHORT_BYTES, "<both>", " \n", "x");
    encode_repeated(SHORT_BYTES, "", "word", "");
}

static void
marks_in_the_wrong_order_stay_linear(void **state)
{
    /* Sorted by insertion a run like this would take 10^11 steps. */
    char unit[1000] = "", *at = unit;
    for (int i = 0; i < 100; i++)
        at += sprintf(at, "%s", i % 2 ? "\xcc\x81" : "\xcc\xa3"); /* classes 230 and 220 */
    encode_repeated(SHORT_BYTES, "e", unit, "");
}

static void
broken_bytes_stay_linear(void **state)
{
    encode_repeated(SHORT_BYTES, "", "\xff", "");
    encode_repeated(SHORT_BYTES, "", "\xe4\xb8", "");
    encode_repeated(SHORT_BYTES, "", "\xf0\x9f\x98 ", "");
}

int
main(int argc, char **argv)
{
    show_times = argc > 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(megabytes_of_one_character_stay_linear),
        cmocka_unit_test(runs_of_one_character_stay_linear),
        cmocka_unit_test(joined_emoji_stay_linear),
        cmocka_unit_test(spaces_that_end_in_a_letter_stay_linear),
        cmocka_unit_test(alternating_characters_stay_linear),
        cmocka_unit_test(near_misses_of_added_tokens_stay_linear),
        cmocka_unit_test(marks_in_the_wrong_order_stay_linear),
        cmocka_unit_test(broken_bytes_stay_linear),
    };
    return cmocka_run_group_tests_name("tokenizer_hostile", tests, load_all, free_all);
}
