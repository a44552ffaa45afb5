/* forward: the graph of a step, in operations of the device. */
#include "gpu/forward.h"

#include "base/check.h"
#include "gpu/forward_state.h"

/* What the kernels rely on. Cheap beside a step, and a wrong index would read or write anywhere. */
static int
check_step(const struct forward *f, const struct forward_step *step, struct err *err)
{
    const struct batch *b = &step->batch;
    int row = 0;

    if (b->n_rows < 1 || b->n_rows > f->limits.max_rows || b->n_seqs < 1 ||
        b->n_seqs > f->limits.max_sequences || b->n_decode < 0 || b->n_decode > b->n_seqs ||
        step->n_outputs < 0 || step->n_outputs > f->limits.max_outputs)
        return err_set(err, EINVAL, "step of %d rows, %d sequences, %d outputs: over the limits",
                       b->n_rows, b->n_seqs, step->n_outputs);
    for (int i = 0; i < b->n_seqs; i++) {
        const struct batch_seq *s = &b->seq[i];
        if (s->first_row != row || s->n_rows < 1 || s->n_rows > b->n_rows - row ||
            (i < b->n_decode && s->n_rows != 1) || s->context < 0 ||
            s->context > INT32_MAX - s->n_rows)
            return err_set(err, EINVAL, "sequence %d of the step: rows do not follow", i);
        if (f->shape.engram.n_layers > 0 &&
            (s->state_slot < 0 || s->state_slot >= f->limits.n_states))
            return err_set(err, EINVAL, "sequence %d of the step: state slot %d", i, s->state_slot);
        int64_t end = (int64_t)s->context + s->n_rows;
        if ((int64_t)s->n_pages * f->limits.page_tokens < end)
            return err_set(err, EINVAL, "sequence %d of the step: %d pages for %lld tokens", i,
                           s->n_pages, (long long)end);
        bool remembered = i < b->n_decode && b->token[row] == TOKEN_OF_SLOT && s->state_slot >= 0 &&
                          s->state_slot < f->limits.n_states;
        for (int r = 0; r < s->n_rows; r++, row++)
            if (b->row_seq[row] != i || b->position[row] != s->context + r ||
                (b->token[row] < 0 && !remembered) || b->token[row] >= f->shape.vocab)
                return err_set(err, EINVAL, "row %d of the step: token %d at position %d", row,
                               b->token[row], b->position[row]);
    }
    if (row != b->n_rows)
        return err_set(err, EINVAL, "%d rows of the step belong to no sequence", b->n_rows - row);
    for (int i = 0; i < step->n_outputs; i++) {
        int32_t slot = step->outputs[i].params.slot;

        if (step->outputs[i].row < 0 || step->outputs[i].row >= b->n_rows)
            return err_set(err, EINVAL, "output %d of the step: row %d", i, step->outputs[i].row);
        if (slot > 0 && slot >= f->limits.n_states) /* 0 where there are no slots: nobody asks */
            return err_set(err, EINVAL, "output %d of the step: state slot %d", i, slot);
    }
    return 0;
}

static int
run_engram(struct forward *f, const struct forward_step *step, const struct step_view *view,
           int layer, int index)
{
    struct device *dev = f->device;
    const struct device_ops *ops = dev->ops;
    const struct engram_shape *e = &f->shape.engram;
    const struct weight *w = f->layer[layer];
    const struct batch *b = &view->batch;
    struct wide_sizes sizes = forward_wide_sizes(dev, &f->shape, f->limits.max_rows);
    char *rows = f->scratch.wide, *key = rows + sizes.rows, *value = key + sizes.vector;
    struct matmul_part parts[2] = {
        {key, w[ROLE_ENGRAM_KEY], w[ROLE_ENGRAM_KEY_BIAS]},
        {value, w[ROLE_ENGRAM_VALUE], w[ROLE_ENGRAM_VALUE_BIAS]},
    };
    struct engram_weights weights = {
        .key = w[ROLE_ENGRAM_KEY],
        .key_bias = w[ROLE_ENGRAM_KEY_BIAS],
        .value = w[ROLE_ENGRAM_VALUE],
        .value_bias = w[ROLE_ENGRAM_VALUE_BIAS],
        .key_norm = w[ROLE_ENGRAM_KEY_NORM],
        .query_norm = w[ROLE_ENGRAM_QUERY_NORM],
        .conv_norm = w[ROLE_ENGRAM_CONV_NORM],
        .conv = w[ROLE_ENGRAM_CONV],
    };
    int result = ops->wait_rows(dev, step, index, NULL);

    if (result >= 0)
        result = ops->engram_gather(dev, rows, &view->engram[index], index, e, b, NULL);
    if (result >= 0)
        result = ops->matmul_group(dev, parts, 2, rows, b, NULL);
    if (result >= 0)
        result = ops->engram_fuse(dev, f->scratch.x, key, value, f->scratch.u[index],
                                  f->state[index], &weights, e, f->shape.hidden, b, NULL);
    return result;
}

/* project_qkv and the feed-forward part of a device that does not have them. */
static int
compose_qkv(struct forward *f, void *q, const struct qkv_weights *w, int layer,
            const struct batch *b)
{
    struct device *dev = f->device;
    const struct device_ops *ops = dev->ops;
    const struct model_shape *s = &f->shape;
    struct forward_scratch *sc = &f->scratch;
    struct wide_sizes sizes = forward_wide_sizes(dev, s, f->limits.max_rows);
    char *k = (char *)sc->wide + 2 * sizes.q, *v = k + sizes.kv;
    struct matmul_part parts[3] = {
        {q, w->q, w->q_bias}, {k, w->k, w->k_bias}, {v, w->v, w->v_bias}};
    int result = ops->rms_norm(dev, sc->h, sc->x, w->norm, b->n_rows, s->hidden, s->norm_eps, NULL);

    if (result >= 0)
        result = ops->matmul_group(dev, parts, 3, sc->h, b, NULL);
    if (result >= 0 && s->qk_norm)
        result = ops->rms_norm(dev, q, q, w->q_norm, (int64_t)b->n_rows * s->heads, s->head_dim,
                               s->norm_eps, NULL);
    if (result >= 0 && s->qk_norm)
        result = ops->rms_norm(dev, k, k, w->k_norm, (int64_t)b->n_rows * s->kv_heads, s->head_dim,
                               s->norm_eps, NULL);
    if (result >= 0)
        result = ops->rope(dev, q, k, s, sc->angles, b, NULL);
    if (result >= 0)
        result = ops->kv_write(dev, &f->kv, layer, k, v, b, NULL);
    return result;
}

static int
compose_feed_forward(struct forward *f, const struct feed_forward_weights *w, const struct batch *b)
{
    struct device *dev = f->device;
    const struct device_ops *ops = dev->ops;
    const struct model_shape *s = &f->shape;
    struct forward_scratch *sc = &f->scratch;
    struct wide_sizes sizes = forward_wide_sizes(dev, s, f->limits.max_rows);
    char *gate = sc->wide, *up = gate + sizes.intermediate;
    struct matmul_part parts[2] = {{gate, w->gate, w->gate_bias}, {up, w->up, w->up_bias}};
    int result = ops->rms_norm(dev, sc->h, sc->x, w->norm, b->n_rows, s->hidden, s->norm_eps, NULL);

    if (result >= 0)
        result = ops->matmul_group(dev, parts, 2, sc->h, b, NULL);
    if (result >= 0)
        result = ops->silu_mul(dev, gate, gate, up, (int64_t)b->n_rows * s->intermediate, NULL);
    if (result >= 0)
        result = ops->matmul(dev, sc->x, gate, w->down, w->down_bias, true, b, NULL);
    return result;
}

/* finish_layer of a device that does not have it. */
static int
compose_layer_end(struct forward *f, const void *attended, const struct layer_end_weights *w,
                  const struct batch *b)
{
    struct device *dev = f->device;
    int result =
        dev->ops->matmul(dev, f->scratch.x, attended, w->o, w->o_bias, true, b, NULL);

    return result < 0 ? result : compose_feed_forward(f, &w->feed_forward, b);
}

static int
run_layer(struct forward *f, const struct batch *b, int layer)
{
    struct device *dev = f->device;
    const struct device_ops *ops = dev->ops;
    const struct model_shape *s = &f->shape;
    struct forward_scratch *sc = &f->scratch;
    struct wide_sizes sizes = forward_wide_sizes(dev, s, f->limits.max_rows);
    char *q = sc->wide, *attended = q + sizes.q;
    struct qkv_weights qkv = forward_qkv_weights(f, layer);
    struct layer_end_weights end = {
        .o = f->layer[layer][ROLE_O],
        .o_bias = f->layer[layer][ROLE_O_BIAS],
        .feed_forward = forward_feed_forward_weights(f, layer),
    };
    int result = ops->project_qkv
                     ? ops->project_qkv(dev, q, sc->x, &qkv, sc->angles, &f->kv, layer, s, b, NULL)
                     : compose_qkv(f, q, &qkv, layer, b);

    /* Never over an Engram layer, whether or not this batch has a use for it: a row's bits would depend on it. */
    if (layer + 1 < s->layers && forward_engram_index(s, layer + 1) < 0)
        end.next_norm = f->layer[layer + 1][ROLE_ATTN_NORM];
    if (result >= 0)
        result = ops->attention(dev, attended, q, &f->kv, layer, s, b, NULL);
    if (result < 0)
        return result;
    return ops->finish_layer ? ops->finish_layer(dev, sc->x, attended, &end, s, b, NULL)
                             : compose_layer_end(f, attended, &end, b);
}

/* Logits and tokens of the rows asked for, a block of rows at a time. */
static int
run_outputs(struct forward *f, const struct forward_step *step, const struct step_view *view)
{
    struct device *dev = f->device;
    const struct device_ops *ops = dev->ops;
    const struct model_shape *s = &f->shape;
    struct forward_scratch *sc = &f->scratch;
    struct weight head = forward_head(f);
    size_t vocab = (size_t)s->vocab;

    if (view->n_outputs == 0)
        return 0;
    int result = ops->rms_norm(dev, sc->h, sc->x, f->global[ROLE_FINAL_NORM], view->batch.n_rows,
                               s->hidden, s->norm_eps, NULL);
    for (int at = 0; at < view->n_outputs && result >= 0; at += sc->logit_rows) {
        int n = view->n_outputs - at < sc->logit_rows ? view->n_outputs - at : sc->logit_rows;
        result = ops->matmul_rows(dev, sc->logits, sc->h, view->output_row + at, n, head, NULL);
        if (result >= 0 && step->logits) {
            int wanted = step->n_outputs - at < n ? step->n_outputs - at : n;
            result = ops->synchronize(dev, NULL);
            if (result >= 0 && wanted > 0)
                result = ops->download(dev, step->logits + (size_t)at * vocab, sc->logits,
                                       (size_t)wanted * vocab * sizeof(float));
        }
        if (result >= 0)
            result = ops->sample(dev, sc->logits, sc->sorted, s->vocab, view->params + at, n,
                                 view->results + at, NULL);
    }
    return result;
}

/* The operations of a step. -ETIMEDOUT (host): *ret_late is the layer whose rows did not come. */
static int
issue(struct forward *f, const struct forward_step *step, const struct step_view *view,
      int *ret_late)
{
    struct device *dev = f->device;
    const struct device_ops *ops = dev->ops;
    const struct batch *b = &view->batch;
    bool engram = f->shape.engram.n_layers > 0 && batch_any_engram(&step->batch);
    int result = ops->embed(dev, f->scratch.x, f->global[ROLE_EMBED], b, NULL);

    if (result >= 0)
        result = ops->rope_angles(dev, f->scratch.angles, f->shape.head_dim, f->inv_freq,
                                  f->attention_scale, b, NULL);
    for (int layer = 0; layer < f->shape.layers && result >= 0; layer++) {
        int index = engram ? forward_engram_index(&f->shape, layer) : -1;
        if (index >= 0)
            result = run_engram(f, step, view, layer, index);
        if (result == -ETIMEDOUT)
            *ret_late = layer;
        if (result >= 0)
            result = run_layer(f, b, layer);
    }
    /* Only now: until here a step can be given up and redone with the states as they were. */
    for (int i = 0; engram && i < f->shape.engram.n_layers && result >= 0; i++)
        result = ops->engram_keep(dev, f->state[i], f->scratch.u[i], &f->shape.engram,
                                  f->shape.hidden, b, NULL);
    if (result >= 0)
        result = run_outputs(f, step, view);
    return result;
}

static void
take_waits(const struct forward *f, struct forward_step *step)
{
    for (int i = 0; i < f->shape.engram.n_layers; i++)
        step->engram[i].waited_ns = step->report->waited_ns[i];
}

int
forward_run(struct forward *f, struct forward_step *step, struct err *err)
{
    struct device *dev = f->device;
    struct step_view view;
    int late = -1;

    ASSERT_THREAD(THREAD_ENGINE);
    int result = check_step(f, step, err);
    if (result < 0)
        return result;
    if (!step->report)
        step->report = f->report;
    if (step->report == f->report)
        step->step = ++f->own_steps;
    result = dev->ops->begin_step(dev, step, &view, NULL);
    if (result == STEP_REPLAYED)
        return 0;
    if (result >= 0) {
        result = issue(f, step, &view, &late);
        int ended = dev->ops->end_step(dev, step, result, NULL);
        result = result < 0 ? result : ended;
    }
    if (result == -ETIMEDOUT) {
        take_waits(f, step);
        return err_set(err, ETIMEDOUT, "rows of Engram layer %d did not come in time", late);
    }
    if (result < 0)
        return err_errno(err, -result, "the device failed during a step");
    return 0;
}

/* How a step ended whose report is there: 0 or -ETIMEDOUT. */
static int
conclude(const struct forward *f, struct forward_step *step, struct err *err)
{
    take_waits(f, step);
    if (step->report->status == -ETIMEDOUT)
        return err_set(err, ETIMEDOUT, "rows of an Engram layer did not come in time");
    return 0;
}

int
forward_poll(struct forward *f, struct forward_step *step, struct err *err)
{
    /* First the device: once it has finished, the report is there. */
    int polled = forward_done(step) ? 1 : f->device->ops->poll(f->device, NULL);

    if (polled < 0)
        return err_errno(err, -polled, "the device failed during a step");
    if (polled == 0)
        return 0;
    if (!forward_done(step))
        return err_set(err, EIO, "the device lost a step");
    int result = conclude(f, step, err);
    return result < 0 ? result : 1;
}

int
forward_wait(struct forward *f, struct forward_step *step, struct err *err)
{
    int result = f->device->ops->synchronize(f->device, NULL);

    if (result < 0)
        return err_errno(err, -result, "the device failed during a step");
    return conclude(f, step, err);
}

int
forward_copy_state(struct forward *f, int dst_slot, int src_slot)
{
    size_t bytes;

    if (dst_slot < 0 || dst_slot >= f->limits.n_states || src_slot < 0 ||
        src_slot >= f->limits.n_states)
        return -EINVAL;
    if (f->shape.engram.n_layers == 0 || dst_slot == src_slot)
        return 0;
    bytes = forward_ring_bytes(&f->shape);
    for (int i = 0; i < f->shape.engram.n_layers; i++) {
        char *state = (char *)f->state[i];
        int result = f->device->ops->copy(f->device, state + (size_t)dst_slot * bytes,
                                          state + (size_t)src_slot * bytes, bytes, NULL);
        if (result < 0)
            return result;
    }
    return 0;
}

int
forward_copy_page(struct forward *f, int dst_page, int src_page)
{
    if (dst_page < 0 || dst_page >= f->limits.kv_pages || src_page < 0 ||
        src_page >= f->limits.kv_pages)
        return -EINVAL;
    return f->device->ops->kv_copy_page(f->device, &f->kv, dst_page, src_page, NULL);
}
