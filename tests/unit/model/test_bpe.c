/* Merges against the plainest reading of the rule: look for the lowest rank, merge the leftmost,
 * repeat. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/bpe.h"

enum { MAX_MERGES = 400 };

struct merge_row {
    int left, right, result;
};

/* A vocabulary over the letters a..d with random merges. */
struct fixture {
    struct token_table table;
    struct bpe bpe;
    struct merge_row merge[MAX_MERGES];
    int n_merges;
};

static uint32_t
next_random(uint32_t *seed)
{
    *seed = *seed * 1664525 + 1013904223;
    return *seed >> 8;
}

static void
fixture_make(struct fixture *f, uint32_t seed, int n_merges)
{
    *f = (struct fixture){0};
    for (int i = 0; i < 4; i++) {
        char letter = (char)('a' + i);
        assert_int_equal(token_table_add(&f->table, i, &letter, 1, TOKEN_MODEL, 100000, NULL), 0);
    }
    assert_int_equal(bpe_init(&f->bpe, MAX_MERGES, NULL), 0);
    int next_id = 4;
    for (int tries = 0; f->n_merges < n_merges && tries < 20 * n_merges; tries++) {
        int left = (int)(next_random(&seed) % (uint32_t)next_id);
        int right = (int)(next_random(&seed) % (uint32_t)next_id);
        bool known = false;
        for (int i = 0; i < f->n_merges; i++)
            known |= f->merge[i].left == left && f->merge[i].right == right;
        size_t left_bytes, right_bytes;
        char joined[64];
        const char *a = token_table_bytes(&f->table, left, &left_bytes);
        const char *b = token_table_bytes(&f->table, right, &right_bytes);
        if (known || left_bytes + right_bytes > 12)
            continue;
        memcpy(joined, a, left_bytes);
        memcpy(joined + left_bytes, b, right_bytes);
        /* Two merges may give the same token. */
        int id = token_table_find_bytes(&f->table, joined, left_bytes + right_bytes, false);
        if (id < 0) {
            id = next_id++;
            assert_int_equal(token_table_add(&f->table, id, joined, left_bytes + right_bytes,
                                             TOKEN_MODEL, 100000, NULL),
                             0);
        }
        bpe_add(&f->bpe, left, right, id);
        f->merge[f->n_merges++] = (struct merge_row){left, right, id};
    }
    assert_int_equal(token_table_freeze(&f->table, NULL), 0);
    bpe_bytes(&f->bpe, &f->table);
}

static void
fixture_release(struct fixture *f)
{
    token_table_release(&f->table);
    bpe_release(&f->bpe);
}

static int
plain_bpe(const struct fixture *f, const char *text, int size, int *id)
{
    int n = size;
    for (int i = 0; i < n; i++)
        id[i] = text[i] - 'a';
    for (;;) {
        int best = -1, best_rank = f->n_merges;
        for (int i = 0; i + 1 < n; i++) {
            for (int rank = 0; rank < best_rank; rank++) {
                if (f->merge[rank].left == id[i] && f->merge[rank].right == id[i + 1]) {
                    best = i;
                    best_rank = rank;
                }
            }
        }
        if (best < 0)
            return n;
        id[best] = f->merge[best_rank].result;
        memmove(id + best + 1, id + best + 2, (size_t)(n - best - 2) * sizeof *id);
        n--;
    }
}

static void
check_text(const struct fixture *f, const char *text, int size)
{
    int *expected = malloc((size_t)size * sizeof *expected);
    struct token_ids ids = {0};
    assert_non_null(expected);
    int n = plain_bpe(f, text, size, expected);
    assert_int_equal(bpe_encode(&f->bpe, &f->table, text, (size_t)size, &ids, NULL), 0);
    assert_int_equal(ids.count, n);
    for (int i = 0; i < n; i++)
        assert_int_equal(ids.id[i], expected[i]);
    free(ids.id);
    free(expected);
}

static void
short_and_long_words_merge_by_rank_from_the_left(void **state)
{
    uint32_t seed = 1;
    for (uint32_t round = 0; round < 60; round++) {
        struct fixture f;
        fixture_make(&f, round, 1 + (int)(round * 6));
        for (int i = 0; i < 40; i++) {
            /* The border between the two ways is at 64. */
            char text[200];
            int size = 1 + (int)(next_random(&seed) % (i < 20 ? 20 : 150));
            size = i == 38 ? 64 : i == 39 ? 65 : size;
            int letters = 1 + (int)(next_random(&seed) % 4);
            for (int k = 0; k < size; k++)
                text[k] = (char)('a' + next_random(&seed) % (uint32_t)letters);
            check_text(&f, text, size);
            check_text(&f, text, size); /* and once more, with the marks that the first left */
        }
        fixture_release(&f);
    }
}

static void
a_merge_given_twice_has_the_later_rank(void **state)
{
    struct fixture f = {0};
    static const char *const tokens[] = {"a", "b", "ab", "aa"};
    for (int i = 0; i < 4; i++)
        assert_int_equal(
            token_table_add(&f.table, i, tokens[i], strlen(tokens[i]), TOKEN_MODEL, 10, NULL), 0);
    assert_int_equal(bpe_init(&f.bpe, 3, NULL), 0);
    bpe_add(&f.bpe, 0, 1, 2);
    bpe_add(&f.bpe, 0, 0, 3);
    bpe_add(&f.bpe, 0, 1, 2);
    assert_int_equal(token_table_freeze(&f.table, NULL), 0);
    bpe_bytes(&f.bpe, &f.table);
    struct token_ids ids = {0};
    assert_int_equal(bpe_encode(&f.bpe, &f.table, "aab", 3, &ids, NULL), 0);
    assert_int_equal(ids.count, 2);
    assert_int_equal(ids.id[0], 3);
    assert_int_equal(ids.id[1], 1);
    free(ids.id);
    fixture_release(&f);
}

static void
a_token_that_merges_cannot_reach_is_not_given_out_unless_they_are_ignored(void **state)
{
    struct fixture f = {0};
    static const char *const tokens[] = {"a", "b", "c", "abc"};
    for (int i = 0; i < 4; i++)
        assert_int_equal(
            token_table_add(&f.table, i, tokens[i], strlen(tokens[i]), TOKEN_MODEL, 10, NULL), 0);
    assert_int_equal(bpe_init(&f.bpe, 0, NULL), 0);
    assert_int_equal(token_table_freeze(&f.table, NULL), 0);
    bpe_bytes(&f.bpe, &f.table);
    struct token_ids ids = {0};
    for (int i = 0; i < 2; i++)
        assert_int_equal(bpe_encode(&f.bpe, &f.table, "abc", 3, &ids, NULL), 0);
    assert_int_equal(ids.count, 6);
    ids.count = 0;
    f.bpe.ignore_merges = true;
    assert_int_equal(bpe_encode(&f.bpe, &f.table, "abc", 3, &ids, NULL), 0);
    assert_int_equal(ids.count, 1);
    assert_int_equal(ids.id[0], 3);
    free(ids.id);
    fixture_release(&f);
}

static void
a_byte_without_a_token_is_an_error(void **state)
{
    struct fixture f;
    fixture_make(&f, 3, 20);
    char text[100];
    memset(text, 'a', sizeof text);
    text[99] = 'z';
    for (size_t size = 1; size <= sizeof text; size++) {
        struct err err = ERR_INIT;
        struct token_ids ids = {0};
        assert_int_equal(bpe_encode(&f.bpe, &f.table, text + sizeof text - size, size, &ids, &err),
                         -EILSEQ);
        assert_non_null(strstr(err.text, "0x7A"));
        free(ids.id);
    }
    fixture_release(&f);
}

static void
a_limit_is_met_and_not_passed(void **state)
{
    struct fixture f;
    fixture_make(&f, 0, 0); /* no merges: as many tokens as bytes */
    char text[100];
    memset(text, 'b', sizeof text);
    for (size_t size = 1; size <= sizeof text; size++) {
        struct token_ids ids = {.limit = size};
        assert_int_equal(bpe_encode(&f.bpe, &f.table, text, size, &ids, NULL), 0);
        assert_int_equal(ids.count, size);
        ids.count = 0;
        ids.limit = size - 1;
        if (size > 1)
            assert_int_equal(bpe_encode(&f.bpe, &f.table, text, size, &ids, NULL), -E2BIG);
        free(ids.id);
    }
    fixture_release(&f);
}

static void
a_vocabulary_without_a_token_is_no_division_by_zero(void **state)
{
    struct fixture f = {0};
    assert_int_equal(bpe_init(&f.bpe, 0, NULL), 0);
    assert_int_equal(token_table_freeze(&f.table, NULL), 0);
    bpe_bytes(&f.bpe, &f.table);
    struct token_ids ids = {.limit = 5};
    assert_int_equal(bpe_encode(&f.bpe, &f.table, "abc", 3, &ids, NULL), -EILSEQ);
    assert_int_equal(bpe_encode(&f.bpe, &f.table, "", 0, &ids, NULL), 0);
    free(ids.id);
    fixture_release(&f);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(short_and_long_words_merge_by_rank_from_the_left),
        cmocka_unit_test(a_merge_given_twice_has_the_later_rank),
        cmocka_unit_test(a_token_that_merges_cannot_reach_is_not_given_out_unless_they_are_ignored),
        cmocka_unit_test(a_byte_without_a_token_is_an_error),
        cmocka_unit_test(a_limit_is_met_and_not_passed),
        cmocka_unit_test(a_vocabulary_without_a_token_is_no_division_by_zero),
    };
    return cmocka_run_group_tests_name("bpe", tests, NULL, NULL);
}
