/* Attention over the paged cache against double precision: odd sizes, long contexts, any page size;
 * and the same bits whatever the tile, the chunk and the number of threads. */
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

static const char *const isas[] = {"portable", "avx2", "avx512"};

static uint64_t seed = 1;
static float
noise(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(seed >> 32) / 2147483648.0f;
}

struct shape {
    int heads, kv_heads, dim, page_tokens, n;
};

struct rig {
    struct shape s;
    struct model_shape model;
    float *q, *k, *v, *out; /* [n, heads or kv_heads, dim] */
    double *want;
    int32_t *pages, *position, *row_seq, *token;
    struct kv_cache kv;
    int n_pages;
};

static void *
array(size_t n, size_t size)
{
    void *p = calloc(n, size);
    assert_non_null(p);
    return p;
}

static void
reference(struct rig *r)
{
    const struct shape *s = &r->s;
    double *p = array((size_t)s->n, sizeof *p);

    for (int t = 0; t < s->n; t++)
        for (int h = 0; h < s->heads; h++) {
            int g = h / (s->heads / s->kv_heads);
            const float *q = r->q + (t * s->heads + h) * s->dim;
            double *want = r->want + (t * s->heads + h) * s->dim, top = -INFINITY, sum = 0;
            for (int j = 0; j <= t; j++) {
                const float *k = r->k + (j * s->kv_heads + g) * s->dim;
                p[j] = 0;
                for (int d = 0; d < s->dim; d++)
                    p[j] += (double)q[d] * (double)k[d];
                p[j] /= sqrt(s->dim);
                top = fmax(top, p[j]);
            }
            for (int j = 0; j <= t; j++)
                sum += p[j] = exp(p[j] - top);
            for (int j = 0; j <= t; j++)
                for (int d = 0; d < s->dim; d++)
                    want[d] += p[j] / sum * (double)r->v[(j * s->kv_heads + g) * s->dim + d];
        }
    free(p);
}

static void
rig_make(struct rig *r, const struct shape *s, float scale)
{
    *r = (struct rig){.s = *s};
    size_t n = (size_t)s->n, q = n * (size_t)s->heads * (size_t)s->dim;
    size_t kv = n * (size_t)s->kv_heads * (size_t)s->dim;
    r->model = (struct model_shape){
        .heads = s->heads, .kv_heads = s->kv_heads, .head_dim = s->dim, .layers = 2};
    r->q = array(q, sizeof *r->q);
    r->out = array(q, sizeof *r->out);
    r->want = array(q, sizeof *r->want);
    r->k = array(kv, sizeof *r->k);
    r->v = array(kv, sizeof *r->v);
    for (size_t i = 0; i < q; i++)
        r->q[i] = scale * noise();
    for (size_t i = 0; i < kv; i++) {
        r->k[i] = scale * noise();
        r->v[i] = noise();
    }
    r->n_pages = (s->n + s->page_tokens - 1) / s->page_tokens;
    r->pages = array((size_t)r->n_pages, sizeof *r->pages);
    for (int i = 0; i < r->n_pages; i++)
        r->pages[i] = 2 * (r->n_pages - 1 - i) + 1; /* backwards, with gaps */
    r->kv = (struct kv_cache){NULL, 2 * r->n_pages, s->page_tokens, 2, s->kv_heads, s->dim};
    r->position = array(n, sizeof *r->position);
    r->row_seq = array(n, sizeof *r->row_seq);
    r->token = array(n, sizeof *r->token);
    reference(r);
}

static void
rig_free(struct rig *r)
{
    free(r->q);
    free(r->k);
    free(r->v);
    free(r->out);
    free(r->want);
    free(r->pages);
    free(r->position);
    free(r->row_seq);
    free(r->token);
}

/* Writes and attends rows [at, at + n) as one segment (or one decoded row) of a sequence. */
static void
chunk(struct rig *r, struct device *dev, int at, int n)
{
    size_t q = (size_t)at * (size_t)r->s.heads * (size_t)r->s.dim;
    size_t kv = (size_t)at * (size_t)r->s.kv_heads * (size_t)r->s.dim;
    struct batch_seq seq = {.n_rows = n, .context = at, .n_pages = r->n_pages, .pages = r->pages};
    struct batch batch = {n, 1, n == 1, r->token, r->position, r->row_seq, &seq};

    for (int i = 0; i < n; i++)
        r->position[i] = at + i;
    assert_int_equal(dev->ops->kv_write(dev, &r->kv, 1, r->k + kv, r->v + kv, &batch, NULL), 0);
    assert_int_equal(
        dev->ops->attention(dev, r->out + q, r->q + q, &r->kv, 1, &r->model, &batch, NULL), 0);
}

static void
check_shape(const struct shape *s, float scale, double tolerance)
{
    struct rig r;
    rig_make(&r, s, scale);
    size_t n_out = (size_t)s->n * (size_t)s->heads * (size_t)s->dim;
    float *whole = array(n_out, sizeof *whole);

    for (int i = 0; i < 3 * 2; i++) {
        struct host_device_options options = {.n_threads = 1 + i % 2 * 2, .isa = isas[i / 2]};
        struct device *dev;
        if (host_device_open(&dev, &options, NULL) < 0)
            continue;
        size_t bytes =
            (size_t)r.kv.n_pages * dev->ops->kv_page_bytes(dev, &r.model, s->page_tokens);
        r.kv.data = dev->ops->alloc(dev, bytes);
        assert_non_null(r.kv.data);
        chunk(&r, dev, 0, s->n);
        for (size_t j = 0; j < n_out; j++)
            assert_true(fabs((double)r.out[j] - r.want[j]) < tolerance);
        if (i % 2 == 0)
            memcpy(whole, r.out, n_out * sizeof *whole);
        assert_memory_equal(r.out, whole, n_out * sizeof *whole); /* threads */
        memset(r.out, 0, n_out * sizeof *r.out);
        for (int at = 0, n = 1; at < s->n; at += n, n = n % 37 + 6)
            chunk(&r, dev, at, s->n - at < n ? s->n - at : n);
        assert_memory_equal(r.out, whole, n_out * sizeof *whole);
        memset(r.out, 0, n_out * sizeof *r.out);
        for (int at = 0; at < s->n; at++)
            chunk(&r, dev, at, 1);
        assert_memory_equal(r.out, whole, n_out * sizeof *whole);
        dev->ops->free(dev, r.kv.data, bytes);
        (void)dev->ops->close(dev);
    }
    free(whole);
    rig_free(&r);
}

static void
any_shape_matches_double_precision_and_any_cut_gives_the_same_bits(void **state)
{
    static const struct shape shapes[] = {
        {4, 2, 64, 16, 150}, {1, 1, 2, 1, 70},   {6, 2, 12, 7, 100},  {16, 1, 80, 64, 90},
        {17, 1, 8, 16, 80},  {40, 2, 16, 5, 66}, {3, 3, 130, 13, 65}, {2, 1, 512, 128, 130},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        check_shape(&shapes[i], 1, 2e-6);
}

static void
scores_far_apart_stay_exact_through_the_running_maximum(void **state)
{
    check_shape(&(struct shape){2, 1, 64, 16, 200}, 12, 2e-4);
}

static void
a_context_of_thousands_of_tokens_matches(void **state)
{
    check_shape(&(struct shape){2, 1, 16, 16, 1500}, 1, 2e-6);
}

static void
a_page_is_copied_with_all_layers(void **state)
{
    struct host_device_options options = {.n_threads = 1, .isa = "auto"};
    struct model_shape model = {.heads = 2, .kv_heads = 2, .head_dim = 4, .layers = 3};
    struct device *dev;

    assert_int_equal(host_device_open(&dev, &options, NULL), 0);
    size_t page = dev->ops->kv_page_bytes(dev, &model, 8);
    assert_int_equal(page, 3 * 2 * 2 * 4 * 8 * sizeof(float));
    struct kv_cache kv = {dev->ops->alloc(dev, 3 * page), 3, 8, 3, 2, 4};
    assert_non_null(kv.data);
    memset((char *)kv.data + page, 7, page);
    assert_int_equal(dev->ops->kv_copy_page(dev, &kv, 2, 1, NULL), 0);
    assert_memory_equal((char *)kv.data + 2 * page, (char *)kv.data + page, page);
    for (size_t i = 0; i < page; i++)
        assert_int_equal(((char *)kv.data)[i], 0);
    dev->ops->free(dev, kv.data, 3 * page);
    (void)dev->ops->close(dev);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_shape_matches_double_precision_and_any_cut_gives_the_same_bits),
        cmocka_unit_test(scores_far_apart_stay_exact_through_the_running_maximum),
        cmocka_unit_test(a_context_of_thousands_of_tokens_matches),
        cmocka_unit_test(a_page_is_copied_with_all_layers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
