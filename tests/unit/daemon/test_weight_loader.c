#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "base/check.h"
#include "daemon/weight_loader.h"
#include "gpu/forward_state.h"
#include "gpu/host/host_device.h"

enum { MAX_TENSORS = 64 };

/* A model whose tensors lie in two files in an order unlike that of their use, and a source that
 * makes up their bytes. */
struct rig {
    struct model_shape shape;
    struct device_ops ops;
    struct device *device;
    struct forward *forward;
    struct tensor tensor[MAX_TENSORS];
    char name[MAX_TENSORS][32];
    struct tensor_use use[MAX_TENSORS];
    int n;
    uint64_t total_bytes;

    _Atomic uint64_t bytes_read, bytes_announced;
    const struct tensor *bad; /* fails from this offset on */
    uint64_t bad_offset;
    int delay_ms;

    pthread_t caller;
    int n_calls;
    uint64_t last_done, last_total, cancel_at;
    bool cancel_now, cancelled;
};

/* pthread_create that succeeds so many times; -1: always. */
static _Thread_local int threads_left = -1;
int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*main)(void *),
                          void *arg);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*main)(void *),
                          void *arg);

int
__wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*main)(void *),
                      void *arg)
{
    if (threads_left == 0)
        return EAGAIN;
    threads_left -= threads_left > 0;
    return __real_pthread_create(thread, attr, main, arg);
}

static int
make_up(void *arg, const struct tensor *tensor, uint64_t offset_bytes, void *dst, size_t size_bytes,
        struct err *err)
{
    struct rig *rig = arg;
    uint8_t *out = dst;

    assert_true(offset_bytes + size_bytes <= tensor->size_bytes);
    if (rig->delay_ms)
        (void)nanosleep(&(struct timespec){0, rig->delay_ms * 1000000l}, NULL);
    if (tensor == rig->bad && offset_bytes + size_bytes > rig->bad_offset)
        return err_set(err, EIO, "the disk is gone");
    for (size_t i = 0; i < size_bytes; i++) {
        uint64_t x = (tensor->offset_bytes + offset_bytes + i) * 0x9e3779b97f4a7c15u;
        /* The exponent's upper bits are off: no NaN, whose bits a conversion may change. */
        out[i] = (uint8_t)(x >> 56) & 0xbf;
    }
    atomic_fetch_add(&rig->bytes_read, size_bytes);
    return 0;
}

static void
announced(void *arg, const struct tensor *tensor, uint64_t offset_bytes, uint64_t size_bytes)
{
    atomic_fetch_add(&((struct rig *)arg)->bytes_announced, size_bytes);
}

static int
progress(void *arg, uint64_t done_bytes, uint64_t total_bytes)
{
    struct rig *rig = arg;

    assert_true(pthread_equal(rig->caller, pthread_self()));
    assert_false(rig->cancelled);
    assert_true(rig->n_calls > 0 || done_bytes == 0);
    assert_true(done_bytes >= rig->last_done && done_bytes <= total_bytes);
    rig->n_calls++;
    rig->last_done = done_bytes;
    rig->last_total = total_bytes;
    if (rig->cancel_now || (rig->cancel_at && done_bytes >= rig->cancel_at)) {
        rig->cancelled = true;
        return -ECANCELED;
    }
    return 0;
}

static struct forward *
make_forward(const struct rig *rig, struct device *device)
{
    struct forward_limits limits = {.max_rows = 4,
                                    .max_sequences = 2,
                                    .n_states = 2,
                                    .kv_pages = 4,
                                    .page_tokens = 16,
                                    .max_outputs = 4};
    struct forward *forward;
    struct err err = ERR_INIT;

    if (forward_new(&forward, device, &rig->shape, &limits, &err) < 0)
        fail_msg("%s", err.text);
    return forward;
}

/* like_a_gpu: loaded through host memory, matrices as BF16 and in groups. */
static struct rig *
rig_new(enum dtype dtype, bool like_a_gpu)
{
    struct host_device_options options = {.n_threads = 1, .isa = "auto"};
    struct rig *rig = calloc(1, sizeof *rig);
    struct err err = ERR_INIT;
    uint64_t at[2] = {1000, 64};

    assert_non_null(rig);
    rig->caller = pthread_self();
    rig->shape = (struct model_shape){
        .family = FAMILY_ENGRAM,
        .vocab = 501,
        .hidden = 48,
        .layers = 3,
        .heads = 6,
        .kv_heads = 2,
        .head_dim = 12,
        .intermediate = 70,
        .max_position = 4096,
        .norm_eps = 1e-6f,
        .qk_norm = true,
        .tied_embeddings = true,
        .rope = {.kind = ROPE_DEFAULT, .theta = 10000},
        .engram = {.n_layers = 1,
                   .max_order = 3,
                   .heads = 4,
                   .head_dim = 8,
                   .conv_kernel = 4,
                   .norm_eps = 1e-6f,
                   .table_dtype = DTYPE_F8_E4M3,
                   .scale_group = 4,
                   .table = {{.layer = 1}}},
    };
    assert_int_equal(host_device_open(&rig->device, &options, &err), 0);
    rig->ops = *rig->device->ops;
    rig->device->ops = &rig->ops;
    if (like_a_gpu) {
        rig->ops.host_addressable = false;
        rig->ops.bf16_matrices = true;
    }
    for (int layer = 2; layer >= -1; layer--)
        for (int role = 0; role < ROLE_COUNT; role++) {
            int rows, cols, i = rig->n;

            if (!forward_weight_shape(&rig->shape, role, layer, &rows, &cols))
                continue;
            assert_true(i < MAX_TENSORS);
            snprintf(rig->name[i], sizeof rig->name[i], "tensor.%d.%d", layer, role);
            rig->tensor[i] = (struct tensor){.name = rig->name[i], .dtype = dtype, .file = i % 2};
            rig->tensor[i].size_bytes = (uint64_t)rows * (uint64_t)cols * dtype_size_bytes(dtype);
            rig->tensor[i].offset_bytes = at[i % 2];
            at[i % 2] += rig->tensor[i].size_bytes;
            rig->use[i] = (struct tensor_use){role, layer, &rig->tensor[i]};
            rig->total_bytes += rig->tensor[i].size_bytes;
            rig->n++;
        }
    rig->forward = make_forward(rig, rig->device);
    return rig;
}

static void
rig_free(struct rig *rig)
{
    (void)forward_free(rig->forward);
    (void)rig->device->ops->close(rig->device);
    free(rig);
}

static int
load(struct rig *rig, int n_threads, size_t piece_bytes, struct err *err)
{
    struct weight_loader_options options = {
        .forward = rig->forward,
        .device = rig->device,
        .uses = rig->use,
        .n_uses = rig->n,
        .source = {make_up, announced, rig},
        .n_threads = n_threads,
        .piece_bytes = piece_bytes,
        .progress = progress,
        .progress_arg = rig,
    };

    *err = ERR_INIT;
    return weight_loader_run(&options, err);
}

static int
read_whole(void *arg, uint64_t offset_bytes, void *dst, size_t size_bytes, struct err *err)
{
    const struct tensor_use *use = ((void **)arg)[1];

    return make_up(((void **)arg)[0], use->tensor, offset_bytes, dst, size_bytes, err);
}

/* Against the same weights loaded whole, one after the other, on a device of their own. */
static void
check_same(struct rig *rig)
{
    struct host_device_options options = {.n_threads = 1, .isa = "auto"};
    struct device *device;
    struct err err = ERR_INIT;

    assert_int_equal(host_device_open(&device, &options, &err), 0);
    device->ops = &rig->ops;
    struct forward *other = make_forward(rig, device);
    assert_int_equal(forward_loaded(rig->forward, &err), 0);
    for (int i = 0; i < rig->n; i++) {
        const struct tensor_use *use = &rig->use[i];
        enum dtype dtype = use->tensor->dtype;
        void *arg[2] = {rig, (void *)use};

        assert_int_equal(forward_load(other, use->role, use->layer, dtype,
                                      (int64_t)(use->tensor->size_bytes / dtype_size_bytes(dtype)),
                                      read_whole, arg, &err),
                         0);
        const struct weight *a = forward_weight(rig->forward, use->role, use->layer);
        const struct weight *b = forward_weight(other, use->role, use->layer);

        assert_int_equal(a->dtype, b->dtype);
        assert_memory_equal(a->data, b->data, forward_weight_bytes(b));
    }
    (void)forward_free(other);
    (void)device->ops->close(device);
}

static void
any_number_of_threads_and_any_pieces_load_the_same_weights(void **state)
{
    static const enum dtype dtypes[] = {DTYPE_BF16, DTYPE_F16, DTYPE_F32};
    static const size_t pieces[] = {0, 1, 1000, 4096};
    static const int threads[] = {0, 1, 2, 8, 100};

    for (int gpu = 0; gpu < 2; gpu++)
        for (size_t d = 0; d < 3; d++)
            for (size_t p = 0; p < 4; p++)
                for (size_t t = 0; t < 5; t++) {
                    struct rig *rig = rig_new(dtypes[d], gpu);
                    struct err err;

                    if (pieces[p] == 1 && (threads[t] == 0 || threads[t] == 100)) {
                        rig_free(rig); /* a lock per element: slow, and said by the others */
                        continue;
                    }
                    if (load(rig, threads[t], pieces[p], &err) < 0)
                        fail_msg("%s", err.text);
                    assert_int_equal(rig->bytes_read, rig->total_bytes);
                    assert_int_equal(rig->bytes_announced, rig->total_bytes);
                    assert_int_equal(rig->last_done, rig->total_bytes);
                    assert_int_equal(rig->last_total, rig->total_bytes);
                    check_same(rig);
                    rig_free(rig);
                }
}

static void
an_error_in_the_middle_ends_all_and_names_the_tensor(void **state)
{
    static const int threads[] = {0, 1, 4, 8};

    for (size_t t = 0; t < 4; t++) {
        struct rig *rig = rig_new(DTYPE_BF16, t % 2);
        struct err err;

        rig->bad = &rig->tensor[rig->n / 2];
        rig->bad_offset = rig->bad->size_bytes / 2;
        assert_int_equal(load(rig, threads[t], 512, &err), -EIO);
        assert_int_equal(err.code, -EIO);
        assert_non_null(strstr(err.text, rig->bad->name));
        assert_non_null(strstr(err.text, "the disk is gone"));
        assert_true(rig->bytes_read < rig->total_bytes);
        err = ERR_INIT;
        assert_int_equal(forward_loaded(rig->forward, &err), -EINVAL);
        assert_null(
            forward_weight(rig->forward, rig->use[rig->n / 2].role, rig->use[rig->n / 2].layer)
                ->data);
        rig_free(rig);
    }
}

static void
cancelling_ends_all_with_the_status(void **state)
{
    static const int threads[] = {0, 1, 8};

    for (size_t t = 0; t < 3; t++) {
        struct rig *rig = rig_new(DTYPE_F32, false);
        struct err err;

        rig->cancel_at = 1;
        rig->delay_ms = 1;
        assert_int_equal(load(rig, threads[t], 256, &err), -ECANCELED);
        assert_string_equal(err.text, "loading was cancelled");
        assert_true(rig->bytes_read < rig->total_bytes);
        rig_free(rig);
    }
}

static void
cancelled_at_once_it_takes_no_device_memory_but_for_one_tensor(void **state)
{
    struct rig *rig = rig_new(DTYPE_F32, false);
    struct err err;
    int n_loaded = 0;

    rig->cancel_now = true;
    assert_int_equal(load(rig, 0, 0, &err), -ECANCELED);
    for (int i = 0; i < rig->n; i++)
        n_loaded += forward_weight(rig->forward, rig->use[i].role, rig->use[i].layer)->data != NULL;
    assert_int_equal(n_loaded, 0);
    assert_int_equal(rig->bytes_read, 0);
    rig_free(rig);
}

static void
no_tensor_is_soon_loaded(void **state)
{
    struct rig *rig = rig_new(DTYPE_F32, false);
    struct err err;

    rig->n = 0;
    assert_int_equal(load(rig, 4, 0, &err), 0);
    assert_true(rig->n_calls > 0 && rig->last_total == 0);
    rig_free(rig);
}

static void
one_tensor_is_loaded_by_as_many_threads_as_there_are(void **state)
{
    struct rig *rig = rig_new(DTYPE_BF16, true);
    struct err err;
    int embed = 0;

    while (rig->use[embed].role != ROLE_EMBED)
        embed++;
    rig->use[0] = rig->use[embed];
    rig->n = 1;
    rig->total_bytes = rig->use[0].tensor->size_bytes;
    assert_int_equal(load(rig, 8, 1024, &err), 0);
    assert_int_equal(rig->bytes_read, rig->total_bytes);
    assert_non_null(forward_weight(rig->forward, ROLE_EMBED, -1)->data);
    rig_free(rig);
}

static void
where_no_thread_or_only_one_can_be_started_it_loads_all_the_same(void **state)
{
    for (int left = 0; left < 2; left++) {
        struct rig *rig = rig_new(DTYPE_BF16, true);
        struct err err;

        threads_left = left;
        assert_int_equal(load(rig, 8, 2048, &err), 0);
        threads_left = -1;
        check_same(rig);
        rig_free(rig);
    }
}

static void *
no_memory(struct device *device, size_t size_bytes)
{
    return NULL;
}

static void
without_memory_to_load_through_it_loads_all_the_same(void **state)
{
    struct rig *rig = rig_new(DTYPE_F16, true);
    struct err err;

    void *(*alloc_shared)(struct device *, size_t) = rig->ops.alloc_shared;

    rig->ops.alloc_shared = no_memory;
    assert_int_equal(load(rig, 3, 2048, &err), 0);
    rig->ops.alloc_shared = alloc_shared;
    check_same(rig);
    rig_free(rig);
}

static void
a_device_that_is_full_is_an_error_that_names_the_tensor(void **state)
{
    struct rig *rig = rig_new(DTYPE_F16, true);
    struct err err;

    rig->ops.alloc = no_memory;
    assert_int_equal(load(rig, 3, 2048, &err), -ENOMEM);
    assert_non_null(strstr(err.text, "tensor."));
    assert_non_null(strstr(err.text, "no device memory"));
    assert_int_equal(rig->bytes_read, 0);
    rig_free(rig);
}

static void
progress_is_told_while_nothing_moves(void **state)
{
    struct rig *rig = rig_new(DTYPE_BF16, false);
    struct err err;

    rig->use[0] = rig->use[rig->n - 1];
    rig->n = 1;
    rig->delay_ms = 350;
    assert_int_equal(load(rig, 2, 0, &err), 0);
    assert_true(rig->n_calls >= 5); /* begin, device memory, end, and two of three ticks */
    rig_free(rig);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_number_of_threads_and_any_pieces_load_the_same_weights),
        cmocka_unit_test(an_error_in_the_middle_ends_all_and_names_the_tensor),
        cmocka_unit_test(cancelling_ends_all_with_the_status),
        cmocka_unit_test(cancelled_at_once_it_takes_no_device_memory_but_for_one_tensor),
        cmocka_unit_test(no_tensor_is_soon_loaded),
        cmocka_unit_test(one_tensor_is_loaded_by_as_many_threads_as_there_are),
        cmocka_unit_test(where_no_thread_or_only_one_can_be_started_it_loads_all_the_same),
        cmocka_unit_test(without_memory_to_load_through_it_loads_all_the_same),
        cmocka_unit_test(a_device_that_is_full_is_an_error_that_names_the_tensor),
        cmocka_unit_test(progress_is_told_while_nothing_moves),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
