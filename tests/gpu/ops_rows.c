/* Operations that work row by row: embed, rms_norm, rope_angles, rope, silu_mul. */
#include <math.h>

#include "tests/gpu/ops_rig.h"

static const struct device_limits limits = {.max_rows = 320,
                                            .max_sequences = 320,
                                            .max_outputs = 4,
                                            .n_states = 4,
                                            .max_step_pages = 4,
                                            .page_tokens = 16};

static struct model_shape
shape_of(int hidden, int heads, int kv_heads, int head_dim)
{
    return (struct model_shape){.vocab = 1009,
                                .hidden = hidden,
                                .layers = 1,
                                .heads = heads,
                                .kv_heads = kv_heads,
                                .head_dim = head_dim,
                                .intermediate = 4 * hidden,
                                .norm_eps = 1e-6f};
}

static void
check_embed(struct rig *rig, int n_rows)
{
    const struct model_shape *m = &rig->shape;
    struct twin *table = rig_twin(rig, CONTENT_MATRIX, m->vocab, m->hidden, 1, 0);
    struct twin *out = rig_twin(rig, CONTENT_F32, n_rows, m->hidden, 0, 0);

    rig_plain_batch(rig, n_rows, n_rows <= 8);
    rig_begin(rig, NULL, 0);
    for (int s = 0; s < SIDES; s++) {
        struct ops_side *side = &rig->side[s];
        rig_did(rig, s,
                side->dev->ops->embed(side->dev, out->at[s], twin_weight(table, s),
                                      &side->view.batch, NULL));
    }
    rig_end(rig);
    ops_report(rig, "embed", twin_error(rig, out), BOUND_EXACT, "%d rows of %d", n_rows, m->hidden);
    rig_reset(rig);
}

static void
check_norm(struct rig *rig, int n_rows, float scale)
{
    const struct model_shape *m = &rig->shape;
    struct twin *x = rig_twin(rig, CONTENT_F32, n_rows, m->hidden, scale, 0);
    struct twin *w = rig_twin(rig, CONTENT_VECTOR, 1, m->hidden, 0.5f, 1);
    struct twin *out = rig_twin(rig, CONTENT_ACTIVATION, n_rows, m->hidden, 0, 0);

    rig_plain_batch(rig, n_rows, n_rows <= 8);
    rig_begin(rig, NULL, 0);
    for (int s = 0; s < SIDES; s++) {
        struct ops_side *side = &rig->side[s];
        rig_did(rig, s,
                side->dev->ops->rms_norm(side->dev, out->at[s], x->at[s], twin_weight(w, s), n_rows,
                                         m->hidden, m->norm_eps, NULL));
    }
    rig_end(rig);
    ops_report(rig, "rms_norm", twin_error(rig, out), BOUND_BF16, "%d rows of %d, values to %g",
               n_rows, m->hidden, (double)scale);
    rig_reset(rig);
}

static void
check_head_norm(struct rig *rig, int n_rows)
{
    const struct model_shape *m = &rig->shape;
    int64_t groups = (int64_t)n_rows * m->heads;
    struct twin *x = rig_twin(rig, CONTENT_ACTIVATION, groups, m->head_dim, 2, 0);
    struct twin *w = rig_twin(rig, CONTENT_VECTOR, 1, m->head_dim, 0.5f, 1);

    rig_plain_batch(rig, n_rows, n_rows <= 8);
    rig_begin(rig, NULL, 0);
    for (int s = 0; s < SIDES; s++) {
        struct ops_side *side = &rig->side[s];
        rig_did(rig, s,
                side->dev->ops->rms_norm(side->dev, x->at[s], x->at[s], twin_weight(w, s), groups,
                                         m->head_dim, m->norm_eps, NULL));
    }
    rig_end(rig);
    ops_report(rig, "rms_norm", twin_error(rig, x), BOUND_BF16,
               "in place, %d rows of %d heads of %d", n_rows, m->heads, m->head_dim);
    rig_reset(rig);
}

static void
check_rope(struct rig *rig, int n_rows, int context, double scale)
{
    const struct model_shape *m = &rig->shape;
    int dim = m->head_dim;
    struct twin *angles = rig_twin(rig, CONTENT_F32, n_rows, dim, 0, 0);
    struct twin *q = rig_twin(rig, CONTENT_ACTIVATION, n_rows, (int64_t)m->heads * dim, 2, 0);
    struct twin *k = rig_twin(rig, CONTENT_ACTIVATION, n_rows, (int64_t)m->kv_heads * dim, 2, 0);
    struct ops_seq seq = {.n_rows = n_rows, .context = context};
    double inv_freq[256];

    for (int i = 0; i < dim / 2; i++)
        inv_freq[i] = pow(1e6, -2.0 * i / dim);
    rig_batch(rig, &seq, 1, n_rows == 1);
    rig_begin(rig, NULL, 0);
    for (int s = 0; s < SIDES; s++) {
        struct ops_side *side = &rig->side[s];
        const struct device_ops *ops = side->dev->ops;
        rig_did(rig, s,
                ops->rope_angles(side->dev, angles->at[s], dim, inv_freq, scale, &side->view.batch,
                                 NULL));
        rig_did(
            rig, s,
            ops->rope(side->dev, q->at[s], k->at[s], m, angles->at[s], &side->view.batch, NULL));
    }
    rig_end(rig);
    ops_report(rig, "rope_angles", twin_error(rig, angles), 1e-6,
               "%d rows from position %d, head_dim %d, times %g", n_rows, context, dim, scale);
    ops_report(rig, "rope", twin_error(rig, q), BOUND_BF16, "q: %d rows of %d heads of %d", n_rows,
               m->heads, dim);
    ops_report(rig, "rope", twin_error(rig, k), BOUND_BF16, "k: %d rows of %d heads of %d", n_rows,
               m->kv_heads, dim);
    rig_reset(rig);
}

static void
check_silu(struct rig *rig, int64_t n_rows, int64_t n)
{
    struct twin *gate = rig_twin(rig, CONTENT_ACTIVATION, n_rows, n, 12, 0);
    struct twin *up = rig_twin(rig, CONTENT_ACTIVATION, n_rows, n, 4, 0);
    struct twin *out = rig_twin(rig, CONTENT_ACTIVATION, n_rows, n, 0, 0);

    rig_plain_batch(rig, (int)n_rows, false);
    rig_begin(rig, NULL, 0);
    for (int s = 0; s < SIDES; s++) {
        struct ops_side *side = &rig->side[s];
        rig_did(rig, s,
                side->dev->ops->silu_mul(side->dev, out->at[s], gate->at[s], up->at[s], n_rows * n,
                                         NULL));
    }
    rig_end(rig);
    ops_report(rig, "silu_mul", twin_error(rig, out), BOUND_BF16, "%d rows of %d", (int)n_rows,
               (int)n);
    rig_reset(rig);
}

void
ops_rows(void)
{
    static const struct {
        int hidden, heads, kv_heads, head_dim;
    } shapes[] = {{64, 4, 2, 16},   {4096, 32, 8, 128}, {1024, 16, 8, 64},
                  {1022, 7, 7, 80}, {2560, 8, 1, 256},  {5001, 3, 1, 50}};
    int n_shapes = ops_options.quick ? 2 : (int)(sizeof shapes / sizeof *shapes);

    for (int i = 0; i < n_shapes; i++) {
        struct model_shape shape =
            shape_of(shapes[i].hidden, shapes[i].heads, shapes[i].kv_heads, shapes[i].head_dim);
        struct rig rig;

        rig_open(&rig, &shape, &limits);
        for (int n_rows = 1; n_rows <= 300; n_rows = n_rows * 16 + 2) { /* 1, 18, 290 */
            if (ops_wanted("embed"))
                check_embed(&rig, n_rows);
            if (ops_wanted("rms_norm")) {
                check_norm(&rig, n_rows, 1);
                check_norm(&rig, n_rows, n_rows > 1 ? 1e-4f : 300);
                check_head_norm(&rig, n_rows);
            }
            if (ops_wanted("rope")) {
                check_rope(&rig, n_rows, 0, 1);
                check_rope(&rig, n_rows, 39000, 1.3);
            }
            if (ops_wanted("silu_mul"))
                check_silu(&rig, n_rows, shape.intermediate);
        }
        rig_close(&rig);
    }
}
