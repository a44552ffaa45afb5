#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/batch.h"
#include "gpu/host/host_device.h"

enum { PAGE = 4, CHUNK = 8, SEQUENCES = 6, VOCAB = 100 };

struct bench {
    struct device *device;
    struct model_shape shape;
    struct forward_limits limits;
    struct step_buffer buffer;
    struct kv_pages *pages;
    struct sequence sequences[SEQUENCES];
    int order[SEQUENCES];
    int32_t compressed[VOCAB];
    struct batch_options options;
    struct batch_use uses[64];
};

static struct job *
new_job(int n_prompt, int n_choices, int64_t max_tokens)
{
    struct job *job = calloc(1, sizeof *job);

    job->n_prompt = n_prompt;
    job->n_choices = n_choices;
    job->max_tokens = max_tokens;
    job->params.repetition_penalty = 1;
    job->prompt = calloc((size_t)n_prompt + 1, sizeof *job->prompt);
    for (int i = 0; i < n_prompt; i++)
        job->prompt[i] = i + 1;
    for (int k = 0; k < n_choices; k++)
        job->seed[k] = 1000u + (unsigned)k;
    return job;
}

static int
set_up(void **state)
{
    struct bench *b = calloc(1, sizeof *b);
    struct host_device_options options = {.n_threads = 1, .isa = "portable"};
    struct err err = ERR_INIT;

    assert_int_equal(host_device_open(&b->device, &options, &err), 0);
    b->shape.engram = (struct engram_shape){.n_layers = 1, .max_order = 3, .pad_id = 77};
    b->limits = (struct forward_limits){.max_rows = SEQUENCES + CHUNK,
                                        .max_sequences = SEQUENCES,
                                        .max_outputs = 2 * SEQUENCES + CHUNK};
    assert_int_equal(
        step_buffer_init(&b->buffer, b->device, &b->shape, &b->limits, 64, &err), 0);
    b->pages = kv_pages_new(64);
    for (int i = 0; i < VOCAB; i++)
        b->compressed[i] = 2 * i;
    b->options = (struct batch_options){.shape = &b->shape,
                                        .compressed = b->compressed,
                                        .page_tokens = PAGE,
                                        .prefill_chunk = CHUNK};
    *state = b;
    return 0;
}

static int
tear_down(void **state)
{
    struct bench *b = *state;

    for (int i = 0; i < SEQUENCES; i++)
        if (b->sequences[i].phase != SEQUENCE_FREE) {
            struct job *job = b->sequences[i].job;

            sequence_release(&b->sequences[i], b->pages);
            job_free(job);
        }
    assert_int_equal(kv_pages_n_free(b->pages), 64);
    step_buffer_fini(&b->buffer, b->device, &b->shape);
    kv_pages_free(b->pages);
    b->device->ops->close(b->device);
    free(b);
    return 0;
}

static struct sequence *
put(struct bench *b, int slot, enum sequence_phase phase, int n_prompt, int n_choices)
{
    struct sequence *s = &b->sequences[slot];

    assert_int_equal(
        sequence_reserve(s, new_job(n_prompt, n_choices, 10), 0, 0, b->pages, PAGE), 0);
    while (s->n_pages < s->max_pages)
        assert_int_equal(sequence_grow(s, b->pages, PAGE), 0);
    s->phase = phase;
    if (phase == SEQUENCE_DECODE)
        s->context = n_prompt;
    return s;
}

static int
compose(struct bench *b, int n)
{
    for (int i = 0; i < n; i++)
        b->order[i] = i;
    return batch_compose(&b->buffer, b->sequences, b->order, n, &b->options, b->uses);
}

static void
decode_rows_come_first_and_carry_their_history(void **state)
{
    struct bench *b = *state;
    struct sequence *prefill = put(b, 0, SEQUENCE_PREFILL, 3, 1);
    struct sequence *decode = put(b, 1, SEQUENCE_DECODE, 5, 1);

    decode->next_token = 42;
    decode->recent[0] = 84, decode->recent[1] = 10, decode->recent[2] = 8;
    decode->n_generated = 7;
    assert_int_equal(compose(b, 2), 4);
    assert_int_equal(b->buffer.forward.batch.n_decode, 1);
    assert_int_equal(b->buffer.token[0], 42);
    assert_int_equal(b->buffer.position[0], 5);
    assert_int_equal(b->buffer.seq[0].state_slot, 1);
    assert_int_equal(b->buffer.seq[0].n_pages, 2);
    assert_int_equal(b->buffer.ngram_ids[1], 10);
    assert_int_equal(b->buffer.outputs[0].params.draw, 7);
    /* The prompt's rows: before its start there is only the pad id. */
    assert_int_equal(b->buffer.token[1], prefill->job->prompt[0]);
    assert_int_equal(b->buffer.ngram_ids[3], b->compressed[1]);
    assert_int_equal(b->buffer.ngram_ids[4], 77);
    assert_int_equal(b->buffer.ngram_ids[2 * 3 + 1], b->compressed[1]);
    assert_int_equal(b->buffer.forward.n_outputs, 2);
    assert_int_equal(b->buffer.outputs[1].row, 3);
}

static void
chunks_end_at_multiples_of_the_sequence_and_never_where_the_step_is_full(void **state)
{
    struct bench *b = *state;

    put(b, 0, SEQUENCE_PREFILL, 5, 1);
    put(b, 1, SEQUENCE_PREFILL, 20, 1);
    put(b, 2, SEQUENCE_PREFILL, 2, 1);
    /* 5 rows; the second one's chunk of 8 does not fit behind them, and nothing overtakes it. */
    assert_int_equal(compose(b, 3), 5);
    b->sequences[0].phase = SEQUENCE_DECODE;
    assert_int_equal(compose(b, 3), 1 + CHUNK);
    b->sequences[1].context = 16;
    assert_int_equal(compose(b, 3), 1 + 4 + 2);
}

static void
the_last_chunk_samples_once_per_choice_with_its_seed(void **state)
{
    struct bench *b = *state;

    put(b, 0, SEQUENCE_PREFILL, 6, 3);
    assert_int_equal(compose(b, 1), 6);
    assert_int_equal(b->buffer.forward.n_outputs, 3);
    for (int k = 0; k < 3; k++) {
        assert_int_equal(b->uses[k].choice, k);
        assert_int_equal(b->buffer.outputs[k].row, 5);
        assert_int_equal(b->buffer.outputs[k].params.seed, 1000 + k);
    }
}

static void
a_scored_prompt_scores_each_token_but_the_first(void **state)
{
    struct bench *b = *state;
    struct sequence *s = put(b, 0, SEQUENCE_PREFILL, 4, 1);

    s->job->score_prompt = true;
    s->job->max_tokens = 0;
    assert_int_equal(compose(b, 1), 4);
    assert_int_equal(b->buffer.forward.n_outputs, 3);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(b->buffer.outputs[i].params.forced, s->job->prompt[i + 1]);
        assert_int_equal(b->uses[i].prompt_index, i + 1);
    }
}

static void
reserved_sequences_take_no_part(void **state)
{
    struct bench *b = *state;

    put(b, 0, SEQUENCE_RESERVED, 4, 1);
    assert_int_equal(compose(b, 1), 0);
    assert_int_equal(b->buffer.forward.n_outputs, 0);
}

static void
stop_tokens_are_banned_until_min_tokens(void **state)
{
    struct bench *b = *state;
    struct sequence *s = put(b, 0, SEQUENCE_DECODE, 4, 1);

    s->job->min_tokens = 3;
    s->job->n_stop_ids = 2;
    s->n_generated = 2;
    assert_int_equal(compose(b, 1), 1);
    assert_int_equal(b->buffer.outputs[0].params.n_banned, 2);
    s->n_generated = 3;
    assert_int_equal(compose(b, 1), 1);
    assert_int_equal(b->buffer.outputs[0].params.n_banned, 0);
}

static void
a_token_that_is_still_sampled_is_left_to_device_and_resolver(void **state)
{
    struct bench *b = *state;
    struct sequence *s = put(b, 0, SEQUENCE_DECODE, 5, 1), *off = put(b, 1, SEQUENCE_DECODE, 5, 1);

    s->recent[0] = 84, s->recent[1] = 10, s->recent[2] = 8;
    s->n_generated = 8;
    s->n_pending = off->n_pending = 1;
    s->pending_output = 3;
    s->job->min_tokens = 9;
    s->job->n_stop_ids = 1;
    off->job->engram_off = true;
    assert_int_equal(compose(b, 2), 2);
    assert_int_equal(b->buffer.token[0], TOKEN_OF_SLOT);
    assert_int_equal(b->buffer.token[1], TOKEN_OF_SLOT);
    /* Its own id comes first, in front of those known. */
    assert_int_equal(b->buffer.n_awaits, 1);
    assert_int_equal(b->buffer.awaits[0], 3);
    assert_int_equal(b->buffer.awaits[1], -1);
    assert_int_equal(b->buffer.ngram_ids[1], 84);
    assert_int_equal(b->buffer.ngram_ids[2], 10);
    /* It counts as sampled. */
    assert_int_equal(b->buffer.outputs[0].params.draw, 9);
    assert_int_equal(b->buffer.outputs[0].params.n_banned, 0);
    assert_int_equal(b->buffer.outputs[0].params.slot, 0);
    assert_int_equal(b->buffer.outputs[1].params.slot, 1);
    s->n_generated = 9; /* of 10: the last one is on its way */
    assert_int_equal(compose(b, 1), 0);
}

static void
a_sequence_waits_for_the_token_it_counts_and_for_a_page(void **state)
{
    struct bench *b = *state;
    struct sequence *s = &b->sequences[0];
    struct job *job = new_job(3, 1, 10);

    job->params.presence_penalty = 1;
    assert_int_equal(sequence_reserve(s, job, 0, 0, b->pages, PAGE), 0);
    s->phase = SEQUENCE_DECODE;
    s->context = 3;
    s->n_pending = 1;
    assert_int_equal(compose(b, 1), 0);
    s->n_pending = 0;
    assert_int_equal(compose(b, 1), 1);
    s->context = 4; /* its page is full */
    assert_int_equal(compose(b, 1), 0);
    assert_int_equal(sequence_grow(s, b->pages, PAGE), 0);
    assert_int_equal(compose(b, 1), 1);
}

static void
a_fork_shares_full_pages_and_owns_the_rest(void **state)
{
    struct bench *b = *state;
    struct sequence *parent = put(b, 0, SEQUENCE_DECODE, 6, 1), *child = &b->sequences[1];

    /* 6 tokens are 2 pages, with 10 more 4; the first is full of prompt and shared. */
    assert_int_equal(
        sequence_reserve(child, new_job(6, 1, 10), 1, 1, b->pages, PAGE), 0);
    assert_int_equal(kv_pages_n_free(b->pages), 64 - 4 - 1);
    sequence_fork(child, parent, 1, b->pages, &b->shape.engram, b->compressed);
    assert_int_equal(child->pages[0], parent->pages[0]);
    assert_int_equal(kv_pages_owners(b->pages, parent->pages[0]), 2);
    assert_int_not_equal(child->pages[1], parent->pages[1]);
    assert_int_equal(child->context, 6);
}

static void
penalties_count_prompt_and_output_apart(void **state)
{
    struct bench *b = *state;
    struct sequence *s = &b->sequences[0];
    struct job *job = new_job(3, 1, 10);

    job->params.frequency_penalty = 1;
    job->prompt[2] = job->prompt[0];
    assert_int_equal(sequence_reserve(s, job, 0, 0, b->pages, PAGE), 0);
    assert_int_equal(s->n_counts, 2);
    sequence_append(s, 50, b->compressed);
    sequence_append(s, 1, b->compressed);
    sequence_append(s, 50, b->compressed);
    assert_int_equal(s->n_counts, 3);
    assert_int_equal(s->counts[0].token, 1);
    assert_int_equal(s->counts[0].in_output, 1);
    assert_int_equal(s->counts[1].in_output, 0);
    assert_int_equal(s->counts[2].token, 50);
    assert_int_equal(s->counts[2].in_output, 2);
    assert_int_equal(s->recent[0], 100);
    assert_int_equal(s->recent[1], 2);
}

static void
a_sequence_that_does_not_fit_takes_no_page(void **state)
{
    struct bench *b = *state;
    struct job *job = new_job(1000, 1, 3);

    assert_int_equal(sequence_reserve(&b->sequences[0], job, 0, 0, b->pages, PAGE), -ENOSPC);
    assert_int_equal(kv_pages_n_free(b->pages), 64);
    assert_int_equal(b->sequences[0].phase, SEQUENCE_FREE);
    job_free(job);
}

static void
a_step_has_no_more_pages_than_its_lists_have_room_for(void **state)
{
    struct bench *b = *state;
    int all = b->buffer.max_pages;

    (void)put(b, 0, SEQUENCE_DECODE, 7, 1); /* 2 pages with the next row */
    (void)put(b, 1, SEQUENCE_DECODE, 11, 1); /* 3 */
    (void)put(b, 2, SEQUENCE_PREFILL, 5, 1); /* 2 */
    for (int room = 2; room <= 7; room++) {
        b->buffer.max_pages = room;
        int n = compose(b, 3);

        /* The oldest is always in; whoever does not fit waits for the next step. */
        assert_int_equal(b->buffer.forward.batch.n_seqs, room < 4 ? 1 : room < 5 ? 2 : room < 7 ? 2 : 3);
        assert_int_equal(n, room < 4 ? 1 : room == 4 ? 6 : room < 7 ? 2 : 7);
        assert_int_equal(b->buffer.seq[0].state_slot, 0);
    }
    b->buffer.max_pages = all;
}

int
main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(decode_rows_come_first_and_carry_their_history),
        TEST(chunks_end_at_multiples_of_the_sequence_and_never_where_the_step_is_full),
        TEST(the_last_chunk_samples_once_per_choice_with_its_seed),
        TEST(a_scored_prompt_scores_each_token_but_the_first),
        TEST(reserved_sequences_take_no_part),
        TEST(stop_tokens_are_banned_until_min_tokens),
        TEST(a_token_that_is_still_sampled_is_left_to_device_and_resolver),
        TEST(a_sequence_waits_for_the_token_it_counts_and_for_a_page),
        TEST(a_fork_shares_full_pages_and_owns_the_rest),
        TEST(penalties_count_prompt_and_output_apart),
        TEST(a_sequence_that_does_not_fit_takes_no_page),
        TEST(a_step_has_no_more_pages_than_its_lists_have_room_for),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
