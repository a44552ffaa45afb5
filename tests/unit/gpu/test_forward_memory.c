/* What the forward pass allocates and when: nothing in a step, exactly what forward_sizes says on
 * the device, and every failure is reported. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "gpu/host/host_device.h"
#include "tests/unit/gpu/model_fixture.h"

/* --- counting and failing allocations (the linker turns every call of ours to these) */

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);

static int n_allocations, fail_at = -1;

static bool
fails(void)
{
    return n_allocations++ == fail_at;
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
__wrap_aligned_alloc(size_t alignment, size_t size)
{
    return fails() ? NULL : __real_aligned_alloc(alignment, size);
}

/* --- a device whose memory the host cannot write */

static struct device_ops apart_ops;
static uint64_t apart_bytes;

static void
apart_free(struct device *dev, void *memory, size_t size_bytes)
{
    if (memory)
        apart_bytes -= size_bytes;
    free(memory);
}
static void *
apart_alloc(struct device *dev, size_t size_bytes)
{
    void *memory = calloc(1, size_bytes);
    apart_bytes += memory ? size_bytes : 0;
    return memory;
}

/* --- a device whose allocations fail in turn with all others */

static struct device_ops failing_ops;
static void *(*alloc_of_host)(struct device *, size_t);

static void *
failing_alloc(struct device *dev, size_t size_bytes)
{
    return fails() ? NULL : alloc_of_host(dev, size_bytes);
}

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
a_step_allocates_nothing(void **state)
{
    struct rig rig;
    static float logits[N * 101];

    rig_open(&rig, FIXTURE_ENGRAM);
    run(&rig, part_of(0, 0, 20), logits);
    int before = n_allocations;
    run(&rig, part_of(0, 20, 19), logits);
    run(&rig, part_of(0, 39, 1), logits);
    assert_int_equal(n_allocations, before);
    assert_true(before > 20); /* the counter counts */
    rig_close(&rig);
}

static void
every_failed_allocation_is_reported_and_leaks_nothing(void **state)
{
    for (int at = 0;; at++) {
        struct host_device_options options = {.n_threads = 2, .isa = "auto"};
        struct model_fixture m;
        struct device *device = NULL;
        struct forward *forward = NULL;
        struct err err = ERR_INIT;

        fixture_make(&m, FIXTURE_ENGRAM, 3);
        n_allocations = 0;
        fail_at = at;
        int result = host_device_open(&device, &options, &err);
        if (result >= 0) {
            failing_ops = *device->ops;
            alloc_of_host = failing_ops.alloc;
            failing_ops.alloc = failing_ops.alloc_shared = failing_alloc;
            device->ops = &failing_ops;
            result = forward_new(&forward, device, &m.shape, &limits, &err);
        }
        if (result >= 0)
            result = fixture_load(&m, forward, DTYPE_F32, &err);
        fail_at = -1;
        if (result < 0) {
            /* A weight that could not be loaded leaves the others in place: the load may go on. */
            assert_int_equal(result, -ENOMEM);
            assert_int_equal(err.code, -ENOMEM);
        }
        (void)forward_free(forward);
        if (device)
            (void)device->ops->close(device);
        fixture_free(&m);
        if (result >= 0) {
            assert_true(at > 50);
            break;
        }
    }
}

static void
weights_reach_a_device_the_host_cannot_write(void **state)
{
    struct host_device_options options = {.n_threads = 2, .isa = "auto"};
    static float want[N * 101], have[N * 101];
    struct rig rig, apart;
    struct err err = ERR_INIT;

    rig_open(&rig, FIXTURE_ENGRAM);
    run(&rig, part_of(0, 0, N), want);
    fixture_make(&apart.m, FIXTURE_ENGRAM, 3);
    assert_int_equal(host_device_open(&apart.device, &options, &err), 0);
    apart_ops = *apart.device->ops;
    apart_ops.alloc = apart_alloc;
    apart_ops.free = apart_free;
    apart_ops.host_addressable = false;
    apart.device->ops = &apart_ops;
    assert_int_equal(forward_new(&apart.forward, apart.device, &apart.m.shape, &limits, &err), 0);
    struct forward_sizes sizes;
    forward_sizes(apart.device, &apart.m.shape, &limits, &sizes);
    uint64_t step_bytes = sizes.kv_bytes + sizes.state_bytes + sizes.scratch_bytes;
    assert_true(apart_bytes == step_bytes);
    assert_int_equal(fixture_load(&apart.m, apart.forward, DTYPE_BF16, &err), 0);
    assert_true(apart_bytes == step_bytes + sizes.weight_bytes);
    run(&apart, part_of(0, 0, N), have);
    assert_memory_equal(want, have, N * rig.vocab * sizeof *want);
    rig_close(&apart);
    assert_true(apart_bytes == 0);
    rig_close(&rig);
}

int
main(void)
{
    for (int t = 0; t < N; t++)
        tokens[t] = (t * t * 13 + t * 7 + 5) % 101;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_step_allocates_nothing),
        cmocka_unit_test(every_failed_allocation_is_reported_and_leaks_nothing),
        cmocka_unit_test(weights_reach_a_device_the_host_cannot_write),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
