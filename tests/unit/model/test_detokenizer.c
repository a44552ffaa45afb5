/* Bytes pushed in every way of cutting them come out as the whole decoded at once. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/utf8_scan.h"
#include "tests/unit/model/tokenizer_fixture.h"

static struct tokenizer *bytes_only;

static int
load(void **state)
{
    struct fixture_parts parts = {
        .added =
            "{\"id\":300,\"content\":\"<s>\",\"special\":true},{\"id\":301,\"content\":\"中 x\"},"
            "{\"id\":303,\"content\":\"\\u00e9\\u00e9\"}",
        .vocab = ",\"\xc3\xa4\xc2\xb8\":257"}; /* bytes E4 B8 */
    struct err err = ERR_INIT;
    if (fixture_parse(&bytes_only, &parts, 1000, &err) < 0)
        fail_msg("%s", err.text);
    return 0;
}

static int
unload(void **state)
{
    bytes_only = tokenizer_free(bytes_only);
    return 0;
}

static size_t
push_all(const int *ids, size_t n, bool skip_special, char *out)
{
    struct detokenizer d = {.tokenizer = bytes_only, .skip_special = skip_special};
    size_t used = 0;
    for (size_t i = 0; i < n; i++) {
        size_t size;
        (void)tokenizer_bytes(bytes_only, ids[i], &size);
        size_t written = detokenizer_push(&d, ids[i], out + used, detokenizer_bound(size));
        /* Whole characters only, at every step. */
        assert_true(utf8_valid(out + used, written));
        used += written;
    }
    return used + detokenizer_flush(&d, out + used, 3);
}

static void
check_bytes(const uint8_t *bytes, size_t size)
{
    int ids[64];
    char out[64 * 3 + 64], *expected;
    size_t expected_size;
    for (size_t i = 0; i < size; i++)
        ids[i] = bytes[i];
    size_t used = push_all(ids, size, false, out);
    assert_int_equal(utf8_repair((const char *)bytes, size, &expected, &expected_size), 0);
    assert_int_equal(used, expected_size);
    assert_memory_equal(out, expected ? expected : (const char *)bytes, used);
    free(expected);
}

static void
any_bytes_come_out_as_python_replaces_them(void **state)
{
    /* Every string of up to four of the bytes that matter. */
    static const uint8_t pick[] = {'a',  0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC1,
                                   0xC2, 0xDF, 0xE0, 0xE4, 0xED, 0xF0, 0xF4, 0xF5};
    for (int i = 0; i < 1 << 16; i++) {
        uint8_t bytes[4] = {pick[i & 15], pick[i >> 4 & 15], pick[i >> 8 & 15], pick[i >> 12]};
        for (size_t size = 1; size <= 4; size++)
            check_bytes(bytes, size);
    }
    uint32_t seed = 7;
    for (int round = 0; round < 20000; round++) {
        uint8_t bytes[40];
        for (size_t i = 0; i < sizeof bytes; i++) {
            seed = seed * 1664525 + 1013904223;
            bytes[i] = seed >> 30 ? pick[seed >> 8 & 15] : (uint8_t)(seed >> 12);
        }
        check_bytes(bytes, sizeof bytes);
    }
}

static void
check_ids(const int *ids, size_t n, bool skip_special, const char *expected)
{
    char out[500];
    size_t used = push_all(ids, n, skip_special, out);
    assert_int_equal(used, strlen(expected));
    assert_memory_equal(out, expected, used);
}

static void
characters_wait_for_their_last_byte(void **state)
{
    struct detokenizer d = {.tokenizer = bytes_only};
    char out[100];
    assert_int_equal(detokenizer_push(&d, 257, out, sizeof out), 0);
    assert_int_equal(detokenizer_push(&d, 0xAD, out, sizeof out), 3);
    assert_memory_equal(out, "中", 3);
    assert_int_equal(detokenizer_flush(&d, out, sizeof out), 0);
    assert_int_equal(detokenizer_push(&d, 257, out, sizeof out), 0);
    assert_int_equal(detokenizer_push(&d, 257, out, sizeof out), 3);
    assert_memory_equal(out, UTF8_REPLACEMENT, 3);
    assert_int_equal(detokenizer_flush(&d, out, sizeof out), 3);
    assert_memory_equal(out, UTF8_REPLACEMENT, 3);
    assert_int_equal(detokenizer_flush(&d, out, sizeof out), 0);
}

static void
added_tokens_come_out_verbatim_and_special_ones_if_wanted(void **state)
{
    static const int ids[] = {'a', 300, 301, 'b'};
    check_ids(ids, 4, false, "a<s>中 xb");
    check_ids(ids, 4, true, "a中 xb");
}

static void
a_skipped_token_does_not_cut_a_character(void **state)
{
    static const int ids[] = {257, 300, 0xAD};
    check_ids(ids, 3, true, "中");
    check_ids(ids, 3, false, UTF8_REPLACEMENT "<s>" UTF8_REPLACEMENT);
}

static void
added_tokens_within_the_byte_alphabet_are_bytes(void **state)
{
    static const int ids[] = {303};
    check_ids(ids, 1, false, UTF8_REPLACEMENT UTF8_REPLACEMENT); /* bytes E9 E9 */
}

static void
ids_that_are_not_there_say_nothing(void **state)
{
    static const int ids[] = {257, -1, 302, 999999, INT32_MIN, 0xAD};
    check_ids(ids, 6, false, "中");
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_bytes_come_out_as_python_replaces_them),
        cmocka_unit_test(characters_wait_for_their_last_byte),
        cmocka_unit_test(added_tokens_come_out_verbatim_and_special_ones_if_wanted),
        cmocka_unit_test(a_skipped_token_does_not_cut_a_character),
        cmocka_unit_test(added_tokens_within_the_byte_alphabet_are_bytes),
        cmocka_unit_test(ids_that_are_not_there_say_nothing),
    };
    return cmocka_run_group_tests_name("detokenizer", tests, load, unload);
}
