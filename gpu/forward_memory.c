/* forward_memory: what a forward pass holds on the device, how much that is, and what it refuses to
 * be. */
#include <stdlib.h>

#include "gpu/forward_state.h"
#include "gpu/rope_table.h"

static size_t
align64(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

struct wide_sizes
forward_wide_sizes(const struct device *dev, const struct model_shape *s, int max_rows)
{
    size_t row = (size_t)max_rows * dtype_size_bytes(dev->ops->activation);
    size_t lookup = (size_t)(s->engram.max_order > 0 ? s->engram.max_order - 1 : 0) *
                    (size_t)s->engram.heads * (size_t)s->engram.head_dim;
    struct wide_sizes w = {
        .rows = s->engram.n_layers > 0 ? align64(row * lookup) : 0,
        .vector = s->engram.n_layers > 0 ? align64(row * (size_t)s->hidden) : 0,
        .q = align64(row * (size_t)s->heads * (size_t)s->head_dim),
        .kv = align64(row * (size_t)s->kv_heads * (size_t)s->head_dim),
        .intermediate = align64(row * (size_t)s->intermediate),
    };
    size_t engram = w.rows + 2 * w.vector, attention = 2 * w.q + 2 * w.kv;
    w.whole = 2 * w.intermediate;
    w.whole = engram > w.whole ? engram : w.whole;
    w.whole = attention > w.whole ? attention : w.whole;
    return w;
}

/* Of one block of logits; at least one, whatever the vocabulary. */
static int
logit_rows_of(const struct device *dev, const struct model_shape *s,
              const struct forward_limits *limits)
{
    enum { MOST_ROWS = 1024 };
    size_t fit =
        dev->ops->logit_block_bytes / ((size_t)(s->vocab > 0 ? s->vocab : 1) * sizeof(float));
    int rows = fit < MOST_ROWS ? (int)fit : MOST_ROWS;

    rows = rows < limits->max_outputs ? rows : limits->max_outputs;
    return rows > 0 ? rows : 1;
}

size_t
forward_ring_bytes(const struct model_shape *s)
{
    return (size_t)(s->engram.conv_kernel - 1) * (size_t)s->engram.max_order * (size_t)s->hidden *
           sizeof(float);
}

/* max_step_pages 0: every sequence may list every page. */
static struct device_limits
device_limits_of(const struct forward_limits *l)
{
    int all = l->kv_pages > INT32_MAX / l->max_sequences ? INT32_MAX
                                                         : l->kv_pages * l->max_sequences;

    return (struct device_limits){.max_rows = l->max_rows,
                                  .max_sequences = l->max_sequences,
                                  .max_outputs = l->max_outputs,
                                  .n_states = l->n_states,
                                  .max_step_pages = l->max_step_pages ? l->max_step_pages : all,
                                  .page_tokens = l->page_tokens};
}

void
forward_sizes(const struct device *device, const struct model_shape *shape,
              const struct forward_limits *limits, struct forward_sizes *ret_sizes)
{
    struct forward_sizes sizes = {0};
    size_t activation = dtype_size_bytes(device->ops->activation);
    size_t rows = (size_t)limits->max_rows, hidden = (size_t)shape->hidden;
    size_t engram_layers = (size_t)shape->engram.n_layers;

    for (int layer = -1; layer < shape->layers; layer++)
        for (int role = 0; role < ROLE_COUNT; role++) {
            int n, m;
            if (forward_weight_shape(shape, role, layer, &n, &m))
                sizes.weight_bytes += (uint64_t)n * (uint64_t)m * (forward_is_matrix(role) ? 2 : 4);
        }
    sizes.kv_bytes =
        (uint64_t)limits->kv_pages * device->ops->kv_page_bytes(device, shape, limits->page_tokens);
    if (engram_layers > 0)
        sizes.state_bytes = engram_layers * (uint64_t)limits->n_states * forward_ring_bytes(shape);
    sizes.scratch_bytes =
        rows * hidden * (sizeof(float) + activation) +
        forward_wide_sizes(device, shape, limits->max_rows).whole +
        rows * (size_t)shape->head_dim * sizeof(float) +
        engram_layers * rows * hidden * sizeof(float) +
        2 * (size_t)logit_rows_of(device, shape, limits) * (size_t)shape->vocab * sizeof(float);
    if (device->ops->reserve_bytes) {
        struct device_limits own = device_limits_of(limits);

        sizes.scratch_bytes += device->ops->reserve_bytes(device, shape, &own);
    }
    *ret_sizes = sizes;
}

/* Every number that sizes something or divides, so that nothing below can overflow or trap. */
static int
check_shape(const struct model_shape *s, const struct forward_limits *l, struct err *err)
{
    const struct engram_shape *e = &s->engram;
    enum { MOST = 1 << 20, MOST_VOCAB = 1 << 24 };

    if (s->vocab < 1 || s->vocab > MOST_VOCAB || s->hidden < 1 || s->hidden > MOST ||
        s->layers < 1 || s->layers > SHAPE_MAX_LAYERS || s->intermediate < 1 ||
        s->intermediate > MOST)
        return err_set(
            err, EINVAL,
            "model of vocabulary %d, width %d, %d layers, feed-forward %d: out of bounds", s->vocab,
            s->hidden, s->layers, s->intermediate);
    if (s->heads < 1 || s->heads > 4096 || s->kv_heads < 1 || s->heads % s->kv_heads != 0 ||
        s->head_dim < 2 || s->head_dim > FORWARD_MAX_HEAD_DIM || s->head_dim % 2 != 0)
        return err_set(err, EINVAL,
                       "attention of %d heads, %d KV heads, dimension %d: out of bounds", s->heads,
                       s->kv_heads, s->head_dim);
    if (l->max_rows < 1 || l->max_rows > MOST || l->max_sequences < 1 ||
        l->max_sequences > l->max_rows || l->kv_pages < 1 || l->page_tokens < 1 ||
        l->page_tokens > MOST || l->max_outputs < 1 || l->max_outputs > 2 * MOST)
        return err_set(err, EINVAL,
                       "limits of %d rows, %d sequences, %d outputs, %d pages of %d tokens: out of "
                       "bounds",
                       l->max_rows, l->max_sequences, l->max_outputs, l->kv_pages, l->page_tokens);
    if (e->n_layers == 0)
        return 0;
    if (e->n_layers < 0 || e->n_layers > SHAPE_MAX_ENGRAM_LAYERS || e->max_order < 2 ||
        e->max_order > SHAPE_MAX_ORDER || e->heads < 1 || e->heads > SHAPE_MAX_HEADS_PER_NGRAM ||
        e->head_dim < 1 || e->head_dim > MOST || e->conv_kernel < 2 || e->conv_kernel > 64 ||
        e->scale_group < 0 || (e->scale_group > 0 && e->head_dim % e->scale_group != 0) ||
        (e->table_dtype != DTYPE_F32 && e->table_dtype != DTYPE_BF16 &&
         e->table_dtype != DTYPE_F8_E4M3))
        return err_set(err, EINVAL, "Engram shape out of bounds");
    if (l->n_states < 1)
        return err_set(err, EINVAL, "a model with Engram layers needs state slots");
    return 0;
}

static int
alloc_step(struct forward *f)
{
    struct device *dev = f->device;
    const struct device_ops *ops = dev->ops;
    const struct model_shape *s = &f->shape;
    struct forward_scratch *sc = &f->scratch;
    size_t rows = (size_t)f->limits.max_rows, hidden = (size_t)s->hidden;
    size_t activation = dtype_size_bytes(ops->activation);
    bool ok = true;

    sc->logit_rows = logit_rows_of(dev, s, &f->limits);
    sc->wide_bytes = forward_wide_sizes(dev, s, f->limits.max_rows).whole;
    size_t logit_bytes = (size_t)sc->logit_rows * (size_t)s->vocab * sizeof(float);
    ok &= (sc->x = ops->alloc(dev, rows * hidden * sizeof *sc->x)) != NULL;
    ok &= (sc->h = ops->alloc(dev, rows * hidden * activation)) != NULL;
    ok &= (sc->wide = ops->alloc(dev, sc->wide_bytes)) != NULL;
    ok &= (sc->angles = ops->alloc(dev, rows * (size_t)s->head_dim * sizeof(float))) != NULL;
    ok &= (sc->logits = ops->alloc(dev, logit_bytes)) != NULL;
    ok &= (sc->sorted = ops->alloc(dev, logit_bytes)) != NULL;
    ok &= (f->report = ops->alloc_shared(dev, sizeof *f->report)) != NULL;
    f->kv_bytes = (size_t)f->limits.kv_pages * ops->kv_page_bytes(dev, s, f->limits.page_tokens);
    f->kv = (struct kv_cache){NULL,      f->limits.kv_pages, f->limits.page_tokens,
                              s->layers, s->kv_heads,        s->head_dim};
    ok &= (f->kv.data = ops->alloc(dev, f->kv_bytes)) != NULL;
    for (int i = 0; i < s->engram.n_layers; i++) {
        f->state_bytes = (size_t)f->limits.n_states * forward_ring_bytes(s);
        ok &= (sc->u[i] = ops->alloc(dev, rows * hidden * sizeof(float))) != NULL;
        ok &= (f->state[i] = ops->alloc(dev, f->state_bytes)) != NULL;
    }
    struct device_limits limits = device_limits_of(&f->limits);
    ok = ok && ops->reserve(dev, s, &limits) >= 0;
    return ok ? 0 : -ENOMEM;
}

struct forward *
forward_free(struct forward *f)
{
    if (!f)
        return NULL;
    struct device *dev = f->device;
    const struct device_ops *ops = dev->ops;
    struct forward_scratch *sc = &f->scratch;
    size_t rows = (size_t)f->limits.max_rows, hidden = (size_t)f->shape.hidden;
    size_t activation = dtype_size_bytes(ops->activation);
    size_t logit_bytes = (size_t)sc->logit_rows * (size_t)f->shape.vocab * sizeof(float);

    forward_weights_free(f);
    ops->free(dev, sc->x, rows * hidden * sizeof *sc->x);
    ops->free(dev, sc->h, rows * hidden * activation);
    ops->free(dev, sc->wide, sc->wide_bytes);
    ops->free(dev, sc->angles, rows * (size_t)f->shape.head_dim * sizeof(float));
    ops->free(dev, sc->logits, logit_bytes);
    ops->free(dev, sc->sorted, logit_bytes);
    ops->free_shared(dev, f->report, sizeof *f->report);
    ops->free(dev, f->kv.data, f->kv_bytes);
    for (int i = 0; i < f->shape.engram.n_layers; i++) {
        ops->free(dev, sc->u[i], rows * hidden * sizeof(float));
        ops->free(dev, f->state[i], f->state_bytes);
    }
    free(f->layer);
    free(f->group);
    (void)pthread_mutex_destroy(&f->lock);
    free(f);
    return NULL;
}

int
forward_new(struct forward **ret_forward, struct device *device, const struct model_shape *shape,
            const struct forward_limits *limits, struct err *err)
{
    int result = check_shape(shape, limits, err);

    if (result < 0)
        return result;
    struct forward *f = calloc(1, sizeof *f);
    if (!f)
        return err_set(err, ENOMEM, "no memory for the forward pass");
    f->device = device;
    f->shape = *shape;
    f->limits = *limits;
    f->limits.max_step_pages = device_limits_of(limits).max_step_pages;
    f->layer = calloc((size_t)shape->layers, sizeof *f->layer);
    f->group = calloc((size_t)shape->layers, sizeof *f->group);
    (void)pthread_mutex_init(&f->lock, NULL);
    result = rope_table_make(&shape->rope, shape->head_dim, f->inv_freq, &f->attention_scale, err);
    if (result >= 0 && (!f->layer || !f->group || alloc_step(f) < 0))
        result = err_set(err, ENOMEM, "no device memory for %d KV pages and a step of %d rows",
                         limits->kv_pages, limits->max_rows);
    if (result < 0) {
        (void)forward_free(f);
        return result;
    }
    *ret_forward = f;
    return 0;
}
