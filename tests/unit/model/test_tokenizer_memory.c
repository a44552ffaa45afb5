/* Every allocation of loading a tokenizer, encoding and mapping its ids fails in turn: the answer
 * is -ENOMEM, or the right result where the memory was not needed; never a crash, a leak (seen by
 * the sanitizer) or a half-made result. Linked with --wrap=malloc and friends. PCRE2 and utf8proc
 * keep their own.        */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <limits.h>

#include "model/compressed_ids.h"
#include "tests/unit/model/tokenizer_fixture.h"

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *old, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *old, size_t size);

static long at = LONG_MAX, asked; /* the allocation that fails, and how many were asked for */
static bool from_then_on;         /* and all behind it */

static bool
fails(void)
{
    long number = asked++;
    return from_then_on ? number >= at : number == at;
}

void *
__wrap_malloc(size_t size)
{
    return fails() ? NULL : __real_malloc(size);
}

void *
__wrap_calloc(size_t n, size_t size)
{
    return fails() ? NULL : __real_calloc(n, size);
}

void *
__wrap_realloc(void *old, size_t size)
{
    return fails() ? NULL : __real_realloc(old, size);
}

static const char *const patterns =
    "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[a-z]{"
    "2}+|\\\\s\"},"
    "\"behavior\":\"Isolated\"},{\"type\":\"Split\",\"pattern\":{\"String\":\"-\"},\"behavior\":"
    "\"MergedWithNext\"},{\"type\":\"Digits\"},{\"type\":\"ByteLevel\"}]}";

/* Everything from the file to the map. The ids of the text come out in *ret_ids. */
static int
load_and_use(const char *json, const char *text, int64_t *ret_n, int *ret_count, struct err *err)
{
    enum { VOCAB = 400 };
    struct tokenizer *tokenizer = NULL;
    int32_t *ids = NULL, map[VOCAB];
    int r = tokenizer_parse(&tokenizer, json, strlen(json), VOCAB, err);
    if (r < 0) {
        assert_null(tokenizer);
        return r;
    }
    *ret_n = tokenizer_encode(tokenizer, text, strlen(text), 0, &ids, err);
    if (*ret_n < 0) {
        assert_null(ids);
        r = (int)*ret_n;
    }
    free(ids);
    if (r == 0)
        r = compressed_ids_build(tokenizer, VOCAB, 0, map, ret_count, err);
    tokenizer = tokenizer_free(tokenizer);
    return r;
}

static void
fail_each(bool and_all_behind_it)
{
    static const struct fixture_parts parts = {
        .vocab = ",\"ab\":256,\"abc\":257",
        .merges = "\"a b\",[\"ab\",\"c\"]",
        .normalizer = "{\"type\":\"NFC\"}",
        .added = "{\"id\":300,\"content\":\"<s>\",\"special\":true},"
                 "{\"id\":301,\"content\":\"e\\u0301!\",\"normalized\":true}",
        .post_processor =
            "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"s\"}},"
            "{\"Sequence\":{\"id\":\"A\"}}],\"special_tokens\":{\"s\":{\"ids\":[300]}}}",
    };
    char text[800] = "abc-ab 12 <s>\xff e\xcc\x81! ", *json;
    size_t length = strlen(text);
    memset(text + length, 'c', 100); /* one long word */
    memset(text + length + 100, '\0', 1);
    /* Many marks on one letter. */
    for (int i = 0; i < 40; i++)
        strcat(text, i % 2 ? "\xcc\x81" : "\xcc\xa3");
    struct fixture_parts with_patterns = parts;
    with_patterns.pre_tokenizer = patterns;
    from_then_on = and_all_behind_it;
    at = LONG_MAX;
    json = fixture_json(&with_patterns);
    asked = 0;
    int64_t n = 0, expected_n;
    int count = 0, expected_count;
    struct err err = ERR_INIT;
    if (load_and_use(json, text, &expected_n, &expected_count, &err) < 0)
        fail_msg("%s", err.text);
    long total = asked;
    assert_true(total > 50);
    int failures = 0;
    for (long i = 0; i < total; i++) {
        asked = 0;
        at = i;
        err = ERR_INIT;
        int r = load_and_use(json, text, &n, &count, &err);
        at = LONG_MAX;
        if (r == 0) {
            assert_int_equal(n, expected_n);
            assert_int_equal(count, expected_count);
        } else {
            if (r != -ENOMEM)
                fail_msg("allocation %ld: %d %s", i, r, err.text);
            assert_int_equal(err.code, -ENOMEM);
            failures++;
        }
    }
    assert_true(failures > total / 2);
    free(json);
}

static void
one_failing_allocation_is_enomem_or_not_needed(void **state)
{
    fail_each(false);
}

static void
no_memory_from_some_point_on_is_enomem_or_not_needed(void **state)
{
    fail_each(true);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_failing_allocation_is_enomem_or_not_needed),
        cmocka_unit_test(no_memory_from_some_point_on_is_enomem_or_not_needed),
    };
    return cmocka_run_group_tests_name("tokenizer_memory", tests, NULL, NULL);
}
