/* Ids, texts and compressed ids of the tokenizers library (tests/golden/make_tokenizer_cases.py),
 * replayed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <jansson.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "model/compressed_ids.h"
#include "model/tokenizer.h"
#include "tests/unit/model/shared_data.h"

#define GOLDEN "tests/golden/tokenizer/"

static json_t *golden;
static const char *const names[] = {"deepseek_v3", "qwen2", "glm_4_6", "demo", "tiny", "flags"};
enum { N_NAMES = sizeof names / sizeof *names };
static struct tokenizer *loaded[N_NAMES]; /* NULL: its file is not there */

static char *
tokenizer_file(const char *name, size_t *ret_size)
{
    char path[300];
    (void)snprintf(path, sizeof path, GOLDEN "%s/tokenizer.json", name);
    char *json = file_read(path, ret_size);
    if (!json && strcmp(name, "demo") == 0)
        json = file_read("models/demo/tokenizer.json", ret_size);
    (void)snprintf(path, sizeof path, "tokenizers/%s/tokenizer.json", name);
    return json ? json : shared_data_read(path, ret_size);
}

static int
load_all(void **state)
{
    json_error_t error;
    golden = json_load_file(GOLDEN "cases.json", 0, &error);
    assert_non_null(golden);
    for (int i = 0; i < N_NAMES; i++) {
        size_t size;
        char *json = tokenizer_file(names[i], &size);
        if (!json)
            continue;
        struct err err = ERR_INIT;
        int r = tokenizer_parse(&loaded[i], json, size, 1 << 20, &err);
        free(json);
        if (r < 0)
            fail_msg("%s: %s", names[i], err.text);
    }
    return 0;
}

static int
free_all(void **state)
{
    for (int i = 0; i < N_NAMES; i++)
        loaded[i] = tokenizer_free(loaded[i]);
    json_decref(golden);
    return 0;
}

static const struct tokenizer *
tokenizer_of(json_t *row)
{
    const char *name = json_string_value(json_object_get(row, "tokenizer"));
    for (int i = 0; i < N_NAMES; i++) {
        if (strcmp(name, names[i]) == 0)
            return loaded[i];
    }
    fail_msg("unknown tokenizer %s", name);
    return NULL;
}

static char *
base64_decode(const char *text, size_t *ret_size)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    size_t length = strlen(text), size = 0;
    char *out = malloc(length + 1);
    uint32_t bits = 0;
    int n_bits = 0;
    assert_non_null(out);
    for (size_t i = 0; i < length && text[i] != '='; i++) {
        bits = bits << 6 | (uint32_t)(strchr(digits, text[i]) - digits);
        n_bits += 6;
        if (n_bits >= 8) {
            n_bits -= 8;
            out[size++] = (char)(bits >> n_bits);
        }
    }
    *ret_size = size;
    return out;
}

static void
single_texts_encode_as_the_library_does(void **state)
{
    size_t i, wrong = 0, checked = 0;
    json_t *row;
    json_array_foreach(json_object_get(golden, "cases"), i, row)
    {
        const struct tokenizer *tokenizer = tokenizer_of(row);
        if (!tokenizer)
            continue;
        size_t size;
        char *text = base64_decode(json_string_value(json_object_get(row, "text_b64")), &size);
        json_t *expected = json_object_get(row, "ids");
        struct err err = ERR_INIT;
        int32_t *ids;
        int64_t n = tokenizer_encode(tokenizer, text, size, 0, &ids, &err);
        bool same = n == (int64_t)json_array_size(expected);
        for (int64_t k = 0; same && k < n; k++)
            same = ids[k] == json_integer_value(json_array_get(expected, (size_t)k));
        if (!same) {
            wrong++;
            print_error("%s, %s: %lld ids %s\n",
                        json_string_value(json_object_get(row, "tokenizer")),
                        json_string_value(json_object_get(row, "name")), (long long)n, err.text);
        }
        checked++;
        free(ids);
        free(text);
    }
    assert_true(checked > 50);
    assert_int_equal(wrong, 0);
}

/* Pushes ids one by one and compares what comes out in all. */
static bool
detokenizes_to(const struct tokenizer *tokenizer, json_t *ids, const char *expected, size_t size)
{
    struct detokenizer d = {.tokenizer = tokenizer};
    size_t i, used = 0, capacity = size + 1024;
    char *out = malloc(capacity + 400000);
    json_t *id;
    assert_non_null(out);
    json_array_foreach(ids, i, id)
    {
        assert_true(used <= capacity);
        used += detokenizer_push(&d, (int)json_integer_value(id), out + used, 400000);
    }
    used += detokenizer_flush(&d, out + used, 400000);
    bool same = used == size && memcmp(out, expected, size) == 0;
    free(out);
    return same;
}

static void
ids_decode_as_the_library_does(void **state)
{
    size_t i, wrong = 0;
    json_t *row;
    json_array_foreach(json_object_get(golden, "cases"), i, row)
    {
        const struct tokenizer *tokenizer = tokenizer_of(row);
        if (!tokenizer)
            continue;
        size_t size;
        char *text = base64_decode(json_string_value(json_object_get(row, "decoded_b64")), &size);
        if (!detokenizes_to(tokenizer, json_object_get(row, "ids"), text, size)) {
            wrong++;
            print_error("%s, %s\n", json_string_value(json_object_get(row, "tokenizer")),
                        json_string_value(json_object_get(row, "name")));
        }
        free(text);
    }
    assert_int_equal(wrong, 0);
}

static void
whole_files_encode_as_the_library_does(void **state)
{
    size_t i, wrong = 0, checked = 0, whole_size = 0;
    json_t *row;
    char *whole = NULL;
    const char *file = "";
    /* The rows of one file are far apart; go by file so that each is unpacked once. */
    json_t *rows = json_object_get(golden, "corpus"), *first;
    size_t n_files = 0;
    json_array_foreach(rows, i, first)
    {
        file = json_string_value(json_object_get(first, "file"));
        if (strcmp(json_string_value(json_object_get(first, "tokenizer")),
                   json_string_value(json_object_get(json_array_get(rows, 0), "tokenizer"))) != 0)
            break;
        n_files++;
        whole = shared_data_read(file, &whole_size);
        if (!whole)
            continue;
        size_t k;
        json_array_foreach(rows, k, row)
        {
            const struct tokenizer *tokenizer = tokenizer_of(row);
            if (!tokenizer || strcmp(file, json_string_value(json_object_get(row, "file"))) != 0)
                continue;
            size_t offset = (size_t)json_integer_value(json_object_get(row, "offset"));
            size_t length = (size_t)json_integer_value(json_object_get(row, "length"));
            assert_true(offset + length <= whole_size);
            int32_t *ids;
            char digest[20];
            int64_t n = tokenizer_encode(tokenizer, whole + offset, length, 0, &ids, NULL);
            (void)snprintf(digest, sizeof digest, "%016llx",
                           (unsigned long long)XXH64(ids, n > 0 ? (size_t)n * sizeof *ids : 0, 0));
            if (n != json_integer_value(json_object_get(row, "n_ids")) ||
                strcmp(digest, json_string_value(json_object_get(row, "xxh64"))) != 0) {
                wrong++;
                print_error("%s, %s: %lld ids\n",
                            json_string_value(json_object_get(row, "tokenizer")), file,
                            (long long)n);
            }
            checked++;
            free(ids);
        }
        free(whole);
    }
    assert_true(n_files > 0);
    assert_int_equal(wrong, 0);
    if (checked == 0)
        skip();
}

static void
compressed_ids_are_the_librarys(void **state)
{
    size_t i, wrong = 0;
    json_t *row;
    json_array_foreach(json_object_get(golden, "compressed"), i, row)
    {
        const struct tokenizer *tokenizer = tokenizer_of(row);
        if (!tokenizer)
            continue;
        struct err err = ERR_INIT;
        int vocab = (int)json_integer_value(json_object_get(row, "vocab")), count = 0;
        int32_t *map = malloc((size_t)vocab * sizeof *map);
        char digest[20];
        assert_non_null(map);
        assert_int_equal(tokenizer_size(tokenizer), vocab);
        assert_int_equal(compressed_ids_build(tokenizer, vocab, 2, map, &count, &err), 0);
        (void)snprintf(digest, sizeof digest, "%016llx",
                       (unsigned long long)XXH64(map, (size_t)vocab * sizeof *map, 0));
        if (count != json_integer_value(json_object_get(row, "count")) ||
            strcmp(digest, json_string_value(json_object_get(row, "xxh64"))) != 0) {
            wrong++;
            print_error("%s: %d compressed ids\n",
                        json_string_value(json_object_get(row, "tokenizer")), count);
        }
        free(map);
    }
    assert_int_equal(wrong, 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(single_texts_encode_as_the_library_does),
        cmocka_unit_test(ids_decode_as_the_library_does),
        cmocka_unit_test(whole_files_encode_as_the_library_does),
        cmocka_unit_test(compressed_ids_are_the_librarys),
    };
    return cmocka_run_group_tests_name("tokenizer_golden", tests, load_all, free_all);
}
