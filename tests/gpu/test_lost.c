/* A GPU that is lost: an error that stays, provoked for real. Whatever is asked of the device from then on is
 * an error and neither a crash nor a wait, and it can still be closed. Such an error lasts until its process
 * ends, so each test is a process of its own, started by one that never touches CUDA and judges how it ended.
 * Exit status 77 where there is no GPU. How it is run: tests/gpu/README.md. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/flag.h"
#include "daemon/cuda_plugin.h"
#include "tests/gpu/ops_rig.h"

enum { SKIPPED = 77, ROWS = 2, HIDDEN = 64, PATIENCE_S = 60, AT_ONCE_MS = 5000 };

/* In the first page, where nothing is ever mapped, on the host or on the device; at a boundary of any load. */
static void *const nowhere = (void *)0x100;

static int n_wrong;

#define EXPECT(condition)                                                                          \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            printf("%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);                         \
            n_wrong++;                                                                             \
        }                                                                                          \
    } while (0)

/* Of the same, that it does not take long. */
#define EXPECT_AT_ONCE(condition)                                                                  \
    do {                                                                                           \
        uint64_t begin_ns = clock_now_ns();                                                        \
                                                                                                   \
        EXPECT(condition);                                                                         \
        EXPECT(clock_now_ns() - begin_ns < AT_ONCE_MS * 1000000ull);                               \
    } while (0)

/* ------------------------------------------------------------------ a device with a step begun */

/* A rig, and what a step of it uses on the CUDA device. */
struct victim {
    struct rig rig;
    struct device *dev;
    const struct device_ops *ops;
    struct twin *table, *weight, *x, *out, *rows;
    struct bundle_address *address;
    struct flag *ready;
};

static struct model_shape
small_shape(void)
{
    struct model_shape shape = {.vocab = 1009,
                                .hidden = HIDDEN,
                                .layers = 1,
                                .heads = 1,
                                .kv_heads = 1,
                                .head_dim = 64,
                                .intermediate = 64,
                                .norm_eps = 1e-6f};

    shape.engram = (struct engram_shape){.n_layers = 1,
                                         .max_order = 2,
                                         .heads = 4,
                                         .head_dim = 64,
                                         .conv_kernel = 4,
                                         .norm_eps = 1e-6f,
                                         .table_dtype = DTYPE_BF16};
    shape.engram.table[0].rows = 1024;
    for (int h = 0; h < shape.engram.heads; h++) {
        shape.engram.table[0].prime[0][h] = 61;
        shape.engram.table[0].row_base[0][h] = 61 * h;
    }
    return shape;
}

/* The rows of the Engram layer are nowhere; `there`: they are said to have come. */
static void
begin(struct victim *v, bool there)
{
    if (there)
        flag_raise(v->ready, 1);
    for (int s = 0; s < SIDES; s++)
        v->rig.side[s].step.engram[0] =
            (struct forward_engram){.address = v->address, .ready = v->ready, .ready_value = 1};
    rig_plain_batch(&v->rig, ROWS, true);
    rig_begin(&v->rig, NULL, 0);
    ASSERT(v->rig.status == 0);
}

static void
open_victim(struct victim *v)
{
    static const struct device_limits limits = {.max_rows = 8,
                                                .max_sequences = 8,
                                                .max_outputs = 8,
                                                .n_states = 8,
                                                .max_step_pages = 8,
                                                .page_tokens = 16};
    struct model_shape shape = small_shape();

    memset(v, 0, sizeof *v);
    rig_open(&v->rig, &shape, &limits);
    v->dev = v->rig.side[CUDA].dev;
    v->ops = v->dev->ops;
    v->table = rig_twin(&v->rig, CONTENT_MATRIX, shape.vocab, HIDDEN, 1, 0);
    v->weight = rig_twin(&v->rig, CONTENT_VECTOR, 1, HIDDEN, 1, 0);
    v->x = rig_twin(&v->rig, CONTENT_F32, ROWS, HIDDEN, 1, 0);
    v->out = rig_twin(&v->rig, CONTENT_ACTIVATION, ROWS, HIDDEN, 0, 0);
    v->rows = rig_twin(&v->rig, CONTENT_ACTIVATION, ROWS, 4 * 64, 0, 0);
    v->address = rig_shared(&v->rig, CUDA, ROWS * sizeof *v->address);
    v->ready = rig_shared(&v->rig, CUDA, sizeof *v->ready);
    for (int i = 0; i < ROWS; i++)
        v->address[i] = (struct bundle_address){.source = nowhere};
}

/* ------------------------------------------------------------------ what hurts a device */

static int
norm(struct victim *v, const void *x)
{
    return v->ops->rms_norm(v->dev, v->out->at[CUDA], x, twin_weight(v->weight, CUDA), ROWS, HIDDEN,
                            1e-6f, NULL);
}

static int
embed(struct victim *v, void *out)
{
    return v->ops->embed(v->dev, out, twin_weight(v->table, CUDA), &v->rig.side[CUDA].view.batch,
                         NULL);
}

static int
gather(struct victim *v)
{
    struct ops_side *side = &v->rig.side[CUDA];
    int status = v->ops->wait_rows(v->dev, &side->step, 0, NULL);

    return status < 0 ? status
                      : v->ops->engram_gather(v->dev, v->rows->at[CUDA], &side->view.engram[0], 0,
                                              &v->rig.shape.engram, &side->view.batch, NULL);
}

static int
read_nowhere(struct victim *v)
{
    return norm(v, nowhere);
}

static int
write_nowhere(struct victim *v)
{
    return embed(v, nowhere);
}

/* ------------------------------------------------------------------ what is left of it */

static int
upload_and_download(struct victim *v, bool up)
{
    char bytes[64] = {0};

    return up ? v->ops->upload(v->dev, v->x->at[CUDA], bytes, sizeof bytes)
              : v->ops->download(v->dev, bytes, v->x->at[CUDA], sizeof bytes);
}

static void
expect_lost(struct victim *v)
{
    struct ops_side *side = &v->rig.side[CUDA];
    uint64_t free_bytes, total_bytes;

    for (int i = 0; i < 3; i++) {
        EXPECT_AT_ONCE(v->ops->poll(v->dev, NULL) < 0);
        EXPECT_AT_ONCE(v->ops->synchronize(v->dev, NULL) < 0);
        EXPECT_AT_ONCE(v->ops->probe(v->dev, NULL) < 0);
    }
    EXPECT_AT_ONCE(norm(v, v->x->at[CUDA]) < 0);
    EXPECT_AT_ONCE(embed(v, v->x->at[CUDA]) < 0);
    EXPECT_AT_ONCE(gather(v) < 0);
    EXPECT_AT_ONCE(v->ops->end_step(v->dev, &side->step, 0, NULL) < 0);
    EXPECT(side->report->done != side->step.step);
    side->step.step++;
    EXPECT_AT_ONCE(v->ops->begin_step(v->dev, &side->step, &side->view, NULL) < 0);
    EXPECT_AT_ONCE(upload_and_download(v, true) < 0);
    EXPECT_AT_ONCE(upload_and_download(v, false) < 0);
    EXPECT_AT_ONCE(
        v->ops->copy(v->dev, v->out->at[CUDA], v->x->at[CUDA], v->out->bytes[CUDA], NULL) < 0);
    EXPECT_AT_ONCE(v->ops->alloc(v->dev, 4096) == NULL);
    EXPECT_AT_ONCE(v->ops->alloc_shared(v->dev, 4096) == NULL);
    EXPECT_AT_ONCE(v->ops->memory_info(v->dev, &free_bytes, &total_bytes) < 0);
    EXPECT_AT_ONCE(v->ops->poll(v->dev, NULL) < 0);
}

static int
hurt_and_look(int (*hurt)(struct victim *))
{
    struct err err = ERR_INIT;
    struct device *again = NULL;
    struct victim v;

    open_victim(&v);
    EXPECT_AT_ONCE(v.ops->probe(v.dev, NULL) == 0);
    EXPECT(v.ops->synchronize(v.dev, NULL) == 0);
    EXPECT(v.ops->poll(v.dev, NULL) == 1);
    begin(&v, true);
    int issued = hurt(&v), status = v.ops->synchronize(v.dev, NULL);

    printf("issuing said %d, synchronize says %d\n", issued, status);
    EXPECT(status < 0);
    expect_lost(&v);
    /* Frees everything, and closes. */
    EXPECT_AT_ONCE((rig_close(&v.rig), true));
    EXPECT_AT_ONCE(cuda_plugin_open(&again, 0, &err) < 0 && again == NULL);
    printf("opened again: %s\n", err.text);
    return n_wrong != 0;
}

/* A step that waits for rows which do not come, a second long (rig_begin): neither poll nor probe waits
 * for it. */
static int
look_at_work(void)
{
    struct victim v;

    open_victim(&v);
    uint64_t begin_ns = clock_now_ns();
    begin(&v, false);
    EXPECT(v.ops->wait_rows(v.dev, &v.rig.side[CUDA].step, 0, NULL) == 0);
    for (int i = 0; i < 5; i++) {
        EXPECT(v.ops->poll(v.dev, NULL) == 0);
        EXPECT(v.ops->probe(v.dev, NULL) == 0);
        usleep(50000);
    }
    EXPECT(clock_now_ns() - begin_ns < 700 * 1000000ull);
    EXPECT(v.ops->synchronize(v.dev, NULL) == 0);
    EXPECT(v.ops->poll(v.dev, NULL) == 1);
    rig_close(&v.rig);
    return n_wrong != 0;
}

/* ------------------------------------------------------------------ processes */

static int
read_fault(void)
{
    return hurt_and_look(read_nowhere);
}

static int
write_fault(void)
{
    return hurt_and_look(write_nowhere);
}

static int
gather_fault(void)
{
    return hurt_and_look(gather);
}

static int
count_gpus(void)
{
    struct err err = ERR_INIT;
    int n = cuda_plugin_count(&err);

    if (n <= 0)
        printf("skipped: %s\n", n < 0 ? err.text : "the driver shows no GPU");
    return n > 0 ? 0 : SKIPPED;
}

/* The exit status of a process that does this, the driver's own end included; -1: a signal ended it. */
static int
status_of(int (*what)(void))
{
    int status;

    (void)fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        (void)alarm(PATIENCE_S);
        exit(what());
    }
    while (waitpid(child, &status, 0) < 0)
        assert_int_equal(errno, EINTR);
    if (WIFEXITED(status))
        return WEXITSTATUS(status);
    printf("ended by signal %d%s\n", WTERMSIG(status),
           WTERMSIG(status) == SIGALRM ? ": it took too long" : "");
    return -1;
}

static void
after_a_read_of_unmapped_memory_everything_is_an_error_and_close_returns(void **state)
{
    assert_int_equal(status_of(read_fault), 0);
}

static void
after_a_write_to_unmapped_memory_everything_is_an_error_and_close_returns(void **state)
{
    assert_int_equal(status_of(write_fault), 0);
}

static void
after_a_gather_of_rows_that_are_nowhere_everything_is_an_error_and_close_returns(void **state)
{
    assert_int_equal(status_of(gather_fault), 0);
}

static void
a_device_at_work_is_looked_at_without_a_wait(void **state)
{
    assert_int_equal(status_of(look_at_work), 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_device_at_work_is_looked_at_without_a_wait),
        cmocka_unit_test(after_a_read_of_unmapped_memory_everything_is_an_error_and_close_returns),
        cmocka_unit_test(after_a_write_to_unmapped_memory_everything_is_an_error_and_close_returns),
        cmocka_unit_test(
            after_a_gather_of_rows_that_are_nowhere_everything_is_an_error_and_close_returns),
    };

    if (status_of(count_gpus) == SKIPPED)
        return SKIPPED;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
