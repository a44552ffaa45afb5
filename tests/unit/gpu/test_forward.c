/* The whole forward pass against a double precision reference, on every instruction set, and the
 * promise that neighbours, chunks and threads change no bit. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "gpu/host/host_device.h"
#include "tests/unit/gpu/model_fixture.h"

enum { N = 150, PAGE = 16, PAGES = 64 };
static const char *const isas[] = {"portable", "avx2", "avx512"};
static int32_t tokens[4][N];
static const int32_t pages_a[] = {3, 9, 1, 0, 12, 7, 30, 31, 32, 8};
static const int32_t pages_b[] = {40, 41, 42, 43, 44, 45, 46, 47, 48, 49};
static const int32_t pages_c[] = {50, 51, 52, 53, 54, 55, 56, 57, 58, 59};

struct rig {
    struct device *device;
    struct forward *forward;
};

/* False where this CPU lacks the instruction set. */
static bool
rig_open(struct rig *rig, const struct model_fixture *m, const char *isa, int n_threads,
         enum dtype dtype)
{
    struct host_device_options options = {.n_threads = n_threads, .isa = isa};
    struct forward_limits limits = {N, 8, 8, PAGES, PAGE, N, 0};
    struct err err = ERR_INIT;

    if (host_device_open(&rig->device, &options, &err) < 0) {
        assert_int_equal(err.code, -EINVAL);
        return false;
    }
    if (forward_new(&rig->forward, rig->device, &m->shape, &limits, &err) < 0 ||
        fixture_load(m, rig->forward, dtype, &err) < 0)
        fail_msg("%s", err.text);
    return true;
}

static void
rig_close(struct rig *rig)
{
    forward_free(rig->forward);
    rig->device->ops->close(rig->device);
}

static void
run(struct rig *rig, const struct model_fixture *m, const struct step_part *parts, int n_parts,
    int n_decode, float *logits)
{
    struct err err = ERR_INIT;

    if (fixture_step(m, rig->forward, parts, n_parts, n_decode, logits, NULL, &err) < 0)
        fail_msg("%s", err.text);
}

static struct step_part
part_of(int which, int context, int n_rows)
{
    return (struct step_part){
        .tokens = tokens[which],
        .context = context,
        .n_rows = n_rows,
        .state_slot = which,
        .pages = which == 0   ? pages_a
                 : which == 1 ? pages_b
                              : pages_c,
        .n_pages = 10,
        .all_outputs = true,
    };
}

static void
check(const float *logits, const double *reference, int n, int vocab, const char *what)
{
    for (int t = 0; t < n; t++) {
        double error = fixture_error(logits + t * vocab, reference + t * vocab, vocab);
        if (!(error < 1e-4))
            fail_msg("%s: position %d is off by %g", what, t, error);
    }
}

static void
check_kind(enum fixture_kind kind, enum dtype dtype)
{
    struct model_fixture m;
    fixture_make(&m, kind, 5);
    size_t vocab = (size_t)m.shape.vocab;
    double *reference = calloc(N * vocab, sizeof *reference);
    float *logits = calloc(N * vocab, sizeof *logits);
    assert_true(reference && logits);
    fixture_reference(&m, tokens[0], N, false, reference);
    for (int i = 0; i < 3; i++) {
        struct rig rig;
        if (!rig_open(&rig, &m, isas[i], 2, dtype))
            continue;
        struct step_part whole = part_of(0, 0, N);
        run(&rig, &m, &whole, 1, 0, logits);
        check(logits, reference, N, m.shape.vocab, isas[i]);
        for (int t = 0; t < N; t++) {
            struct step_part one = part_of(0, t, 1);
            run(&rig, &m, &one, 1, 1, logits + (size_t)t * vocab);
        }
        check(logits, reference, N, m.shape.vocab, isas[i]);
        for (int t = 0, n = 1; t < N; t += n, n = n * 2 + 1) {
            struct step_part chunk = part_of(0, t, N - t < n ? N - t : n);
            run(&rig, &m, &chunk, 1, 0, logits + (size_t)t * vocab);
        }
        check(logits, reference, N, m.shape.vocab, isas[i]);
        rig_close(&rig);
    }
    free(reference);
    free(logits);
    fixture_free(&m);
}

static void
an_engram_model_matches_the_reference_however_it_is_cut(void **state)
{
    check_kind(FIXTURE_ENGRAM, DTYPE_BF16);
}

static void
a_qwen3_model_matches_the_reference_however_it_is_cut(void **state)
{
    check_kind(FIXTURE_QWEN3, DTYPE_F32);
}

static void
a_llama_model_with_biases_matches_the_reference_however_it_is_cut(void **state)
{
    check_kind(FIXTURE_LLAMA_BIAS, DTYPE_BF16);
}

/* A script of steps: two sequences alone, then the same two mixed with a third. */
static void
neighbours_and_threads_change_no_bit(void **state)
{
    struct model_fixture m;
    fixture_make(&m, FIXTURE_ENGRAM, 9);
    size_t vocab = (size_t)m.shape.vocab;
    float *alone = calloc(2 * N * vocab, sizeof *alone);
    float *mixed = calloc(4 * N * vocab, sizeof *mixed);
    assert_true(alone && mixed);
    for (int i = 0; i < 3; i++)
        for (int n_threads = 1; n_threads <= 3; n_threads++) {
            struct rig rig;
            if (!rig_open(&rig, &m, isas[i], n_threads, DTYPE_BF16))
                continue;
            if (n_threads == 1) {
                struct step_part a = part_of(0, 0, 40), b = part_of(1, 0, 21);
                run(&rig, &m, &a, 1, 0, alone);
                run(&rig, &m, &b, 1, 0, alone + 60 * vocab);
                for (int t = 0; t < 10; t++) {
                    a = part_of(0, 40 + t, 1);
                    run(&rig, &m, &a, 1, 1, alone + (size_t)(40 + t) * vocab);
                }
            }
            /* a: prefill beside c; decode beside b's prefill and c's decode. */
            struct step_part first[2] = {part_of(2, 0, 33), part_of(0, 0, 40)};
            run(&rig, &m, first, 2, 0, mixed);
            assert_memory_equal(mixed + 33 * vocab, alone, 40 * vocab * sizeof *alone);
            for (int t = 0; t < 10; t++) {
                struct step_part three[3] = {part_of(2, 33 + t, 1), part_of(0, 40 + t, 1),
                                             part_of(1, 0, 21)};
                run(&rig, &m, three, 3, 2, mixed);
                assert_memory_equal(mixed + vocab, alone + (size_t)(40 + t) * vocab,
                                    vocab * sizeof *alone);
                assert_memory_equal(mixed + 2 * vocab, alone + 60 * vocab,
                                    21 * vocab * sizeof *alone);
            }
            rig_close(&rig);
        }
    free(alone);
    free(mixed);
    fixture_free(&m);
}

int
main(void)
{
    for (int s = 0; s < 4; s++)
        for (int t = 0; t < N; t++)
            tokens[s][t] = (s * 37 + t * t * 13 + t * 7) % 101;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_engram_model_matches_the_reference_however_it_is_cut),
        cmocka_unit_test(a_qwen3_model_matches_the_reference_however_it_is_cut),
        cmocka_unit_test(a_llama_model_with_biases_matches_the_reference_however_it_is_cut),
        cmocka_unit_test(neighbours_and_threads_change_no_bit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
