/* The forward pass at its edges: what it refuses, what happens when a read or the rows of an Engram
 * layer fail, forks, and sequences without Engram. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/flag.h"
#include "gpu/host/host_device.h"
#include "tests/unit/gpu/model_fixture.h"

enum { N = 40, PAGE = 16 };
static int32_t tokens[N];
static const int32_t pages[2][4] = {{0, 2, 4, 6}, {1, 3, 5, 7}};
static const struct forward_limits limits = {.max_rows = N,
                                             .max_sequences = 4,
                                             .n_states = 3,
                                             .kv_pages = 8,
                                             .page_tokens = PAGE,
                                             .max_outputs = N};

struct rig {
    struct model_fixture m;
    struct device *device;
    struct forward *forward;
    size_t vocab;
};

static void
rig_open(struct rig *rig, enum fixture_kind kind)
{
    struct host_device_options options = {.n_threads = 2, .isa = "auto"};
    struct err err = ERR_INIT;

    fixture_make(&rig->m, kind, 3);
    rig->vocab = (size_t)rig->m.shape.vocab;
    if (host_device_open(&rig->device, &options, &err) < 0 ||
        forward_new(&rig->forward, rig->device, &rig->m.shape, &limits, &err) < 0 ||
        fixture_load(&rig->m, rig->forward, DTYPE_BF16, &err) < 0)
        fail_msg("%s", err.text);
}

static void
rig_close(struct rig *rig)
{
    (void)forward_free(rig->forward);
    (void)rig->device->ops->close(rig->device);
    fixture_free(&rig->m);
}

static struct step_part
part_of(int which, int context, int n_rows)
{
    return (struct step_part){.tokens = tokens,
                              .context = context,
                              .n_rows = n_rows,
                              .state_slot = which,
                              .pages = pages[which],
                              .n_pages = 4,
                              .all_outputs = true};
}

static void
run(struct rig *rig, struct step_part part, float *logits)
{
    struct err err = ERR_INIT;

    if (fixture_step(&rig->m, rig->forward, &part, 1, part.n_rows == 1, logits, NULL, &err) < 0)
        fail_msg("%s", err.text);
}

static void
a_fork_continues_with_the_same_bits(void **state)
{
    struct rig rig;
    static float origin[N * 101], fork[N * 101];

    rig_open(&rig, FIXTURE_ENGRAM);
    run(&rig, part_of(0, 0, 20), origin);
    assert_int_equal(forward_copy_state(rig.forward, 1, 0), 0);
    assert_int_equal(forward_copy_page(rig.forward, pages[1][0], pages[0][0]), 0);
    assert_int_equal(forward_copy_page(rig.forward, pages[1][1], pages[0][1]), 0);
    run(&rig, part_of(1, 20, 20), fork);
    run(&rig, part_of(0, 20, 20), origin);
    assert_memory_equal(origin, fork, 20 * rig.vocab * sizeof *fork);
    assert_int_equal(forward_copy_state(rig.forward, 3, 0), -EINVAL);
    assert_int_equal(forward_copy_state(rig.forward, 0, -1), -EINVAL);
    assert_int_equal(forward_copy_page(rig.forward, 8, 0), -EINVAL);
    assert_int_equal(forward_copy_page(rig.forward, 0, -1), -EINVAL);
    rig_close(&rig);
}

static void
a_sequence_without_engram_is_the_plain_model(void **state)
{
    struct rig rig;
    static float logits[N * 101];
    static double reference[N * 101];
    struct step_part part = part_of(0, 0, N);

    rig_open(&rig, FIXTURE_ENGRAM);
    part.engram_off = 1;
    run(&rig, part, logits);
    fixture_reference(&rig.m, tokens, N, true, reference);
    for (int t = 0; t < N; t++)
        assert_true(fixture_error(logits + (size_t)t * rig.vocab, reference + (size_t)t * rig.vocab,
                                  101) < 1e-4);
    fixture_reference(&rig.m, tokens, N, false, reference);
    assert_true(fixture_error(logits, reference, 101) > 0.01); /* the module does matter */
    rig_close(&rig);
}

/* A step whose second Engram layer never becomes ready, then the same step again. */
static void
rows_that_come_too_late_end_the_step_and_it_can_be_redone(void **state)
{
    struct rig rig;
    struct flag now = {0}, never = {0};
    static float want[N * 101], have[N * 101];
    static struct bundle_address address[2][N * 2];
    static int32_t row_seq[N], position[N];
    struct sample_result results[N];
    struct forward_output outputs[N];
    struct batch_seq seq = {
        .n_rows = 20, .context = 20, .state_slot = 1, .n_pages = 4, .pages = pages[1]};
    struct err err = ERR_INIT;

    rig_open(&rig, FIXTURE_ENGRAM);
    run(&rig, part_of(0, 0, 20), want);
    run(&rig, part_of(0, 20, 20), want);
    run(&rig, part_of(1, 0, 20), have);
    for (int i = 0; i < 20; i++) {
        position[i] = 20 + i;
        outputs[i] = (struct forward_output){i, {.forced = -1}};
        for (int t = 0; t < 2; t++)
            for (int o = 2; o <= 3; o++)
                address[t][i * 2 + o - 2].source =
                    rig.m.bundles + fixture_bundle(&rig.m, tokens, 20 + i, t, o) *
                                        engram_bundle_bytes(&rig.m.shape.engram);
    }
    flag_raise(&now, 7);
    struct forward_step step = {
        .batch = {20, 1, 0, tokens + 20, position, row_seq, &seq},
        .engram = {{.address = address[0], .ready = &now, .ready_value = 7},
                   {.address = address[1], .ready = &never, .ready_value = 1}},
        .wait_timeout_ns = 3000000,
        .n_outputs = 20,
        .outputs = outputs,
        .results = results,
        .logits = have,
    };
    memset(have, 0, sizeof have);
    results[0].token = -77;
    assert_int_equal(forward_run(rig.forward, &step, &err), -ETIMEDOUT);
    assert_non_null(strstr(err.text, "layer 2"));
    assert_true(step.engram[0].waited_ns == 0);
    assert_true(step.engram[1].waited_ns >= 3000000);
    assert_true(results[0].token == -77 && have[0] == 0);
    flag_raise(&never, 1);
    err = ERR_INIT;
    assert_int_equal(forward_run(rig.forward, &step, &err), 0);
    assert_int_equal(forward_wait(rig.forward, &step, &err), 0);
    assert_int_equal(forward_poll(rig.forward, &step, &err), 1);
    assert_memory_equal(want, have, 20 * rig.vocab * sizeof *want);
    /* A device that runs behind says it in the report alone, after the step was issued. */
    step.report->status = -ETIMEDOUT;
    step.report->waited_ns[1] = 12345;
    assert_int_equal(forward_wait(rig.forward, &step, &err), -ETIMEDOUT);
    assert_true(step.engram[1].waited_ns == 12345);
    step.report->waited_ns[1] = 54321;
    assert_int_equal(forward_poll(rig.forward, &step, &err), -ETIMEDOUT);
    assert_true(step.engram[1].waited_ns == 54321);
    /* The device has finished and knows nothing of the step. */
    step.step++;
    assert_int_equal(forward_poll(rig.forward, &step, &err), -EIO);
    rig_close(&rig);
}

static int
read_f16(void *arg, uint64_t offset_bytes, void *dst, size_t size_bytes, struct err *err)
{
    static const uint16_t bits[4] = {0x3c00, 0xc000, 0x3555, 0x0001};

    for (size_t i = 0; i < size_bytes / 2; i++)
        memcpy((char *)dst + 2 * i, &bits[(offset_bytes / 2 + i) % 4], 2);
    return 0;
}
static int
read_fails(void *arg, uint64_t offset_bytes, void *dst, size_t size_bytes, struct err *err)
{
    return err_set(err, EIO, "the disk is gone");
}

static void
weights_are_checked_as_they_come(void **state)
{
    struct host_device_options options = {.n_threads = 1, .isa = "auto"};
    struct model_fixture m;
    struct device *device;
    struct forward *forward;
    struct err err = ERR_INIT;

    fixture_make(&m, FIXTURE_QWEN3, 3);
    assert_int_equal(host_device_open(&device, &options, &err), 0);
    assert_int_equal(forward_new(&forward, device, &m.shape, &limits, &err), 0);
    static const struct {
        int role, layer;
        enum dtype dtype;
        int64_t n;
        const char *word;
    } bad[] = {
        {ROLE_EMBED, -1, DTYPE_F32, 101 * 48 - 1, "embedding"},
        {ROLE_EMBED, 0, DTYPE_F32, 101 * 48, "has none"},
        {ROLE_Q, -1, DTYPE_F32, 72 * 48, "has none"},
        {ROLE_Q, 3, DTYPE_F32, 72 * 48, "has none"},
        {ROLE_Q, 1, DTYPE_F8_E4M3, 72 * 48, "F8_E4M3"},
        {ROLE_Q, 1, DTYPE_I32, 72 * 48, "I32"},
        {ROLE_Q, 1, DTYPE_F32, -1, "q projection of layer 1"},
        {ROLE_LM_HEAD, -1, DTYPE_F32, 101 * 48, "has none"},
        {ROLE_Q_BIAS, 0, DTYPE_F32, 72, "has none"},
        {ROLE_ENGRAM_KEY, 0, DTYPE_F32, 48 * 64, "has none"},
        {ROLE_ENGRAM_TABLE, 0, DTYPE_F32, 48 * 64, "has none"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        err = ERR_INIT;
        assert_int_equal(forward_load(forward, bad[i].role, bad[i].layer, bad[i].dtype, bad[i].n,
                                      read_f16, NULL, &err),
                         -EINVAL);
        if (!strstr(err.text, bad[i].word))
            fail_msg("case %zu: \"%s\" does not say %s", i, err.text, bad[i].word);
    }
    err = ERR_INIT;
    assert_int_equal(forward_load(forward, ROLE_Q, 1, DTYPE_F32, 72 * 48, read_fails, NULL, &err),
                     -EIO);
    assert_string_equal(err.text, "the disk is gone");
    err = ERR_INIT;
    assert_int_equal(forward_load(forward, ROLE_Q, 1, DTYPE_F16, 72 * 48, read_f16, NULL, &err), 0);
    assert_int_equal(forward_load(forward, ROLE_Q, 1, DTYPE_F16, 72 * 48, read_f16, NULL, &err),
                     -EINVAL);
    err = ERR_INIT;
    assert_int_equal(forward_loaded(forward, &err), -EINVAL);
    assert_non_null(strstr(err.text, "embedding"));
    (void)forward_free(forward);
    (void)device->ops->close(device);
    fixture_free(&m);
}

static void
a_model_or_limits_out_of_bounds_are_refused(void **state)
{
    struct host_device_options options = {.n_threads = 1, .isa = "auto"};
    struct model_fixture m;
    struct device *device;

    fixture_make(&m, FIXTURE_ENGRAM, 3);
    assert_int_equal(host_device_open(&device, &options, NULL), 0);
    for (int i = 0; i < 24; i++) {
        struct model_shape s = m.shape;
        struct forward_limits l = limits;
        struct forward *forward = NULL;
        struct err err = ERR_INIT;
        int *fields[24] = {&s.vocab,
                           &s.hidden,
                           &s.layers,
                           &s.intermediate,
                           &s.heads,
                           &s.kv_heads,
                           &s.head_dim,
                           &l.max_rows,
                           &l.max_sequences,
                           &l.n_states,
                           &l.kv_pages,
                           &l.page_tokens,
                           &l.max_outputs,
                           &s.engram.n_layers,
                           &s.engram.max_order,
                           &s.engram.heads,
                           &s.engram.head_dim,
                           &s.engram.conv_kernel,
                           &s.engram.scale_group};
        if (!fields[i])
            break;
        for (int v = 0; v < 3; v++) {
            int before = *fields[i];
            *fields[i] = v == 0 ? 0 : v == 1 ? -5 : INT32_MAX;
            bool fine = (fields[i] == &s.engram.n_layers && v == 0) ||
                        (fields[i] == &s.engram.scale_group && v == 0) ||
                        (v == 2 && (fields[i] == &l.n_states || fields[i] == &l.kv_pages));
            int result = fine ? -EINVAL : forward_new(&forward, device, &s, &l, &err);
            if (result != -EINVAL)
                fail_msg("field %d with %d: %d", i, *fields[i], result);
            *fields[i] = before;
        }
    }
    (void)device->ops->close(device);
    fixture_free(&m);
}

static void
a_step_that_does_not_fit_together_is_refused(void **state)
{
    struct rig rig;
    struct sample_result results[2];

    rig_open(&rig, FIXTURE_ENGRAM);
    for (int i = 0; i < 26; i++) {
        struct bundle_address address[2 * 4] = {{0}};
        int32_t token[4] = {1, 2, 3, 4}, position[4] = {7, 0, 1, 2}, row_seq[4] = {0, 1, 1, 1};
        struct batch_seq seq[2] = {
            {.n_rows = 1, .context = 7, .n_pages = 4, .pages = pages[0]},
            {.first_row = 1, .n_rows = 3, .state_slot = 1, .n_pages = 1, .pages = pages[1]}};
        struct forward_output outputs[2] = {{0, {.forced = -1}}, {3, {.forced = -1}}};
        struct forward_step step = {.batch = {4, 2, 1, token, position, row_seq, seq},
                                    .engram = {{.address = address}, {.address = address}},
                                    .n_outputs = 2,
                                    .outputs = outputs,
                                    .results = results};
        struct {
            int32_t *field, value;
        } change[26] = {
            {token, 1},             /* nothing wrong */
            {token, TOKEN_OF_SLOT}, /* the same: the row decodes */
            {token, TOKEN_OF_SLOT - 1},
            {&outputs[0].params.slot, 3},
            {&seq[0].state_slot, 3},
            {&token[1], -1},
            {&token[1], 101},
            {&position[2], 2},
            {&row_seq[0], 1},
            {&row_seq[3], 2},
            {&seq[0].context, -1},
            {&seq[0].context, INT32_MAX},
            {&seq[0].first_row, 1},
            {&seq[1].n_rows, 2},
            {&seq[1].n_rows, 4},
            {&seq[1].n_rows, 0},
            {&seq[1].n_pages, 0},
            {&seq[1].state_slot, 3},
            {&seq[1].state_slot, -1},
            {&step.batch.n_rows, N + 1},
            {&step.batch.n_seqs, 5},
            {&step.batch.n_decode, 2},
            {&step.batch.n_decode, -1},
            {&outputs[1].row, 4},
            {&outputs[0].row, -1},
            {&step.n_outputs, N + 1},
        };
        struct err err = ERR_INIT;
        *change[i].field = change[i].value;
        int result = forward_run(rig.forward, &step, &err);
        if (result != (i <= 1 ? 0 : -EINVAL))
            fail_msg("case %d: %d %s", i, result, err.text);
    }
    rig_close(&rig);
}

int
main(void)
{
    for (int t = 0; t < N; t++)
        tokens[t] = (t * t * 13 + t * 7 + 5) % 101;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_fork_continues_with_the_same_bits),
        cmocka_unit_test(a_sequence_without_engram_is_the_plain_model),
        cmocka_unit_test(rows_that_come_too_late_end_the_step_and_it_can_be_redone),
        cmocka_unit_test(weights_are_checked_as_they_come),
        cmocka_unit_test(a_model_or_limits_out_of_bounds_are_refused),
        cmocka_unit_test(a_step_that_does_not_fit_together_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
