#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/choice_text.h"

/* A tokenizer of single bytes: id = position in the byte alphabet, so any text is one token a byte, and
 * every split point between tokens is exercised. */
static struct tokenizer *tokenizer;
static int32_t id_of_byte[256];

static int
load(void **state)
{
    struct err err = ERR_INIT;

    (void)state;
    assert_int_equal(
        tokenizer_load(&tokenizer, "tests/golden/engram_tiny/tokenizer.json", 384, &err), 0);
    for (int id = 0; id < tokenizer_size(tokenizer); id++) {
        size_t size;
        const char *bytes = tokenizer_bytes(tokenizer, id, &size);

        if (bytes && size == 1)
            id_of_byte[(unsigned char)bytes[0]] = id;
    }
    return 0;
}

static int
unload(void **state)
{
    (void)state;
    tokenizer_free(tokenizer);
    return 0;
}

/* Pushes text byte by byte; returns what came out, which the caller frees, and in *ret_used how many bytes
 * were pushed. */
static char *
run(const char *text, const char *const *stops, int n_stops, bool include, size_t *ret_used)
{
    struct completion_stop stop[8] = {0};
    struct choice_text t;
    struct buf out = {0};
    size_t i;

    for (int k = 0; k < n_stops; k++)
        stop[k] = (struct completion_stop){.text = stops[k], .size = strlen(stops[k])};
    choice_text_init(&t, tokenizer, true, stop, n_stops, include);
    for (i = 0; text[i]; i++)
        if (choice_text_push(&t, id_of_byte[(unsigned char)text[i]], &out)) {
            i++;
            break;
        }
    if (t.matched < 0)
        choice_text_flush(&t, &out);
    choice_text_fini(&t);
    buf_append(&out, "", 1);
    if (ret_used)
        *ret_used = i;
    return out.data;
}

static void
expect(const char *text, const char *const *stops, int n_stops, const char *wanted, size_t used)
{
    size_t n;
    char *got = run(text, stops, n_stops, false, &n);

    assert_string_equal(got, wanted);
    assert_int_equal(n, used);
    free(got);
}

static void
text_without_stop_strings_passes_whole(void **state)
{
    expect("hello \xe4\xbd\xa0!", NULL, 0, "hello \xe4\xbd\xa0!", 10);
}

static void
a_stop_string_across_tokens_ends_the_text_before_it(void **state)
{
    const char *stops[] = {"END"};

    expect("one END two", stops, 1, "one ", 7);
}

static void
the_beginning_of_a_stop_string_that_dies_is_released(void **state)
{
    const char *stops[] = {"ENDING"};

    expect("one END two", stops, 1, "one END two", 11);
    expect("one ENDIN", stops, 1, "one ENDIN", 9);
}

static void
a_stop_string_that_begins_inside_its_own_beginning_is_found(void **state)
{
    const char *stops[] = {"aab"};

    expect("aaaab", stops, 1, "aa", 5);
}

static void
the_stop_string_that_is_complete_first_wins(void **state)
{
    const char *stops[] = {"three", "two t"};

    expect("one two three", stops, 2, "one ", 9);
}

static void
a_stop_string_may_be_kept(void **state)
{
    const char *stops[] = {"\n\n"};
    char *got = run("a\n\nb", stops, 1, true, NULL);

    assert_string_equal(got, "a\n\n");
    free(got);
}

static void
a_character_cut_in_half_waits_and_a_broken_one_comes_out_replaced(void **state)
{
    struct choice_text t;
    struct buf out = {0};

    choice_text_init(&t, tokenizer, true, NULL, 0, false);
    assert_false(choice_text_push(&t, id_of_byte[0xe4], &out));
    assert_false(choice_text_push(&t, id_of_byte[0xbd], &out));
    assert_int_equal(out.size_bytes, 0);
    choice_text_flush(&t, &out);
    assert_int_equal(out.size_bytes, 3);
    assert_memory_equal(out.data, "\xef\xbf\xbd", 3);
    buf_free(&out);
    choice_text_fini(&t);
}

static void
nothing_of_a_stop_string_is_ever_seen_at_any_moment(void **state)
{
    const char *text = "abcabcabdabcabcabcx", *stop_text = "abcabcabcx";
    struct completion_stop stop = {.text = stop_text, .size = strlen(stop_text)};
    struct choice_text t;
    struct buf out = {0};
    bool matched = false;

    choice_text_init(&t, tokenizer, true, &stop, 1, false);
    for (size_t i = 0; text[i] && !matched; i++) {
        matched = choice_text_push(&t, id_of_byte[(unsigned char)text[i]], &out);
        /* What is out is a prefix of the final text. */
        assert_true(out.size_bytes <= 9);
        if (out.size_bytes)
            assert_memory_equal(out.data, "abcabcabd", out.size_bytes);
    }
    assert_true(matched);
    assert_int_equal(out.size_bytes, 9);
    buf_free(&out);
    choice_text_fini(&t);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_without_stop_strings_passes_whole),
        cmocka_unit_test(a_stop_string_across_tokens_ends_the_text_before_it),
        cmocka_unit_test(the_beginning_of_a_stop_string_that_dies_is_released),
        cmocka_unit_test(a_stop_string_that_begins_inside_its_own_beginning_is_found),
        cmocka_unit_test(the_stop_string_that_is_complete_first_wins),
        cmocka_unit_test(a_stop_string_may_be_kept),
        cmocka_unit_test(a_character_cut_in_half_waits_and_a_broken_one_comes_out_replaced),
        cmocka_unit_test(nothing_of_a_stop_string_is_ever_seen_at_any_moment),
    };
    return cmocka_run_group_tests(tests, load, unload);
}
