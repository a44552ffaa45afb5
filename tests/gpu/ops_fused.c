/* project_qkv and finish_layer of a device that has them, against what they stand for: the CPU
 * device's operations one by one. */
#include <math.h>
#include <stdlib.h>

#include "base/check.h"
#include "tests/gpu/ops_rig.h"

enum { MAX_ROWS = 300, PAGE_TOKENS = 16, N_PAGES = 64 };
/* Several roundings to BF16, one behind the other, on CUDA alone. */
#define BOUND_FUSED 2e-2

struct fused_shape {
    int hidden, heads, kv_heads, head_dim, intermediate;
    bool qk_norm, bias, together; /* matrices of a group lie one behind the other */
};

struct fused {
    struct rig rig;
    struct fused_shape f;
    struct twin *norm, *qkv[3], *bias[3], *q_norm, *k_norm;
    struct twin *gate_up[2], *down, *gate_up_bias[2], *down_bias, *o, *o_bias;
    struct kv_cache kv[SIDES];
    size_t kv_bytes[SIDES];
};

static struct twin *
matrix(struct fused *f, int rows, int cols, float gain)
{
    return rig_twin(&f->rig, CONTENT_MATRIX, rows, cols, gain / sqrtf((float)cols), 0);
}

static struct twin *
vector(struct fused *f, int n, float scale, float offset)
{
    return rig_twin(&f->rig, CONTENT_VECTOR, 1, n, scale, offset);
}

/* Matrix i of a group, in which all lie together or not. rows: of the group's, up to ROLE i. */
static struct weight
part_of(const struct fused *f, struct twin *const *group, int side, int i, const int *rows)
{
    int first = 0;

    if (!f->f.together)
        return twin_weight(group[i], side);
    for (int k = 0; k < i; k++)
        first += rows[k];
    return twin_rows(group[0], side, first, rows[i]);
}

static void
make_group(struct fused *f, struct twin **group, const int *rows, int n, int cols)
{
    int all = 0;

    for (int i = 0; i < n; i++)
        all += rows[i];
    for (int i = 0; i < n; i++)
        group[i] =
            i > 0 && f->f.together ? NULL : matrix(f, f->f.together ? all : rows[i], cols, 2);
}

static struct qkv_weights
qkv_of(const struct fused *f, int s)
{
    const struct fused_shape *c = &f->f;
    const int rows[3] = {c->heads * c->head_dim, c->kv_heads * c->head_dim,
                         c->kv_heads * c->head_dim};

    return (struct qkv_weights){.norm = twin_weight(f->norm, s),
                                .q = part_of(f, f->qkv, s, 0, rows),
                                .k = part_of(f, f->qkv, s, 1, rows),
                                .v = part_of(f, f->qkv, s, 2, rows),
                                .q_bias = twin_weight(f->bias[0], s),
                                .k_bias = twin_weight(f->bias[1], s),
                                .v_bias = twin_weight(f->bias[2], s),
                                .q_norm = twin_weight(f->q_norm, s),
                                .k_norm = twin_weight(f->k_norm, s)};
}

static struct feed_forward_weights
feed_forward_of(const struct fused *f, int s)
{
    const int rows[2] = {f->f.intermediate, f->f.intermediate};

    return (struct feed_forward_weights){.norm = twin_weight(f->norm, s),
                                         .gate = part_of(f, f->gate_up, s, 0, rows),
                                         .up = part_of(f, f->gate_up, s, 1, rows),
                                         .down = twin_weight(f->down, s),
                                         .gate_bias = twin_weight(f->gate_up_bias[0], s),
                                         .up_bias = twin_weight(f->gate_up_bias[1], s),
                                         .down_bias = twin_weight(f->down_bias, s)};
}

static void
fused_open(struct fused *f, const struct fused_shape *c)
{
    const int q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;
    struct model_shape shape = {.vocab = 1009,
                                .hidden = c->hidden,
                                .layers = 2,
                                .heads = c->heads,
                                .kv_heads = c->kv_heads,
                                .head_dim = c->head_dim,
                                .intermediate = c->intermediate,
                                .norm_eps = 1e-6f,
                                .qk_norm = c->qk_norm,
                                .attention_bias = c->bias,
                                .mlp_bias = c->bias};
    struct device_limits limits = {.max_rows = MAX_ROWS,
                                   .max_sequences = 16,
                                   .max_outputs = 4,
                                   .n_states = 4,
                                   .max_step_pages = N_PAGES,
                                   .page_tokens = PAGE_TOKENS};

    *f = (struct fused){.f = *c};
    rig_open(&f->rig, &shape, &limits);
    f->norm = vector(f, c->hidden, 0.5f, 1);
    make_group(f, f->qkv, (const int[]){q, kv, kv}, 3, c->hidden);
    make_group(f, f->gate_up, (const int[]){c->intermediate, c->intermediate}, 2, c->hidden);
    f->down = matrix(f, c->hidden, c->intermediate, 4);
    f->o = matrix(f, c->hidden, q, 4);
    if (c->qk_norm) {
        f->q_norm = vector(f, c->head_dim, 0.5f, 1);
        f->k_norm = vector(f, c->head_dim, 0.5f, 1);
    }
    for (int i = 0; i < 3 && c->bias; i++)
        f->bias[i] = vector(f, i == 0 ? q : kv, 1, 0);
    for (int i = 0; i < 2 && c->bias; i++)
        f->gate_up_bias[i] = vector(f, c->intermediate, 1, 0);
    f->down_bias = c->bias ? vector(f, c->hidden, 1, 0) : NULL;
    f->o_bias = c->bias ? vector(f, c->hidden, 1, 0) : NULL;
    for (int s = 0; s < SIDES; s++) {
        struct device *dev = f->rig.side[s].dev;

        f->kv_bytes[s] = N_PAGES * dev->ops->kv_page_bytes(dev, &shape, PAGE_TOKENS);
        f->kv[s] = (struct kv_cache){dev->ops->alloc(dev, f->kv_bytes[s]),
                                     N_PAGES,
                                     PAGE_TOKENS,
                                     2,
                                     c->kv_heads,
                                     c->head_dim};
        ASSERT(f->kv[s].data);
    }
}

/* n rows: decoding sequences up to 16, else a segment; every one with pages of its own. */
static void
make_batch(struct rig *rig, int n)
{
    static int32_t pages[N_PAGES];
    struct ops_seq seqs[16];
    int n_seqs = n <= 16 ? n : 1;

    for (int i = 0; i < N_PAGES; i++)
        pages[i] = (i * 29 + 11) % N_PAGES;
    for (int i = 0; i < n_seqs; i++)
        seqs[i] =
            n <= 16
                ? (struct ops_seq){.n_rows = 1, .context = i, .pages = pages + 2 * i, .n_pages = 2}
                : (struct ops_seq){.n_rows = n, .pages = pages, .n_pages = N_PAGES};
    rig_batch(rig, seqs, n_seqs, n <= 16 ? n : 0);
}

/* What an attention layer leaves on the way from x to q. */
struct projected {
    struct twin *h, *q, *k, *v, *angles;
};

static struct projected
make_projected(struct fused *f, int n)
{
    const struct fused_shape *c = &f->f;
    struct rig *rig = &f->rig;
    int64_t q = (int64_t)c->heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim;

    return (struct projected){.h = rig_twin(rig, CONTENT_ACTIVATION, n, c->hidden, 0, 0),
                              .q = rig_twin(rig, CONTENT_ACTIVATION, n, q, 0, 0),
                              .k = rig_twin(rig, CONTENT_ACTIVATION, n, kv, 0, 0),
                              .v = rig_twin(rig, CONTENT_ACTIVATION, n, kv, 0, 0),
                              .angles = rig_twin(rig, CONTENT_F32, n, c->head_dim, 0, 0)};
}

static void
run_angles(struct fused *f, int s, const struct projected *p)
{
    int dim = f->f.head_dim;
    struct device *dev = f->rig.side[s].dev;
    double inv_freq[256];

    for (int i = 0; i < dim / 2; i++)
        inv_freq[i] = pow(1e4, -2.0 * i / dim);
    rig_did(&f->rig, s,
            dev->ops->rope_angles(dev, p->angles->at[s], dim, inv_freq, 1,
                                  &f->rig.side[s].view.batch, NULL));
}

/* project_qkv, or what it stands for. */
static void
run_qkv(struct fused *f, int s, const struct twin *x, const struct projected *p, int n)
{
    const struct fused_shape *c = &f->f;
    struct rig *rig = &f->rig;
    const struct model_shape *m = &rig->shape;
    struct device *dev = rig->side[s].dev;
    const struct device_ops *ops = dev->ops;
    const struct batch *b = &rig->side[s].view.batch;
    struct qkv_weights w = qkv_of(f, s);
    void *h = p->h->at[s], *q = p->q->at[s], *k = p->k->at[s], *v = p->v->at[s];
    struct matmul_part parts[3] = {{q, w.q, w.q_bias}, {k, w.k, w.k_bias}, {v, w.v, w.v_bias}};

    if (ops->project_qkv) {
        rig_did(
            rig, s,
            ops->project_qkv(dev, q, x->at[s], &w, p->angles->at[s], &f->kv[s], 1, m, b, NULL));
        return;
    }
    rig_did(rig, s, ops->rms_norm(dev, h, x->at[s], w.norm, n, c->hidden, m->norm_eps, NULL));
    rig_did(rig, s, ops->matmul_group(dev, parts, 3, h, b, NULL));
    if (c->qk_norm) {
        rig_did(rig, s,
                ops->rms_norm(dev, q, q, w.q_norm, (int64_t)n * c->heads, c->head_dim, m->norm_eps,
                              NULL));
        rig_did(rig, s,
                ops->rms_norm(dev, k, k, w.k_norm, (int64_t)n * c->kv_heads, c->head_dim,
                              m->norm_eps, NULL));
    }
    rig_did(rig, s, ops->rope(dev, q, k, m, p->angles->at[s], b, NULL));
    rig_did(rig, s, ops->kv_write(dev, &f->kv[s], 1, k, v, b, NULL));
}

static void
check_qkv(struct fused *f, int n)
{
    const struct fused_shape *c = &f->f;
    struct rig *rig = &f->rig;

    make_batch(rig, n);
    struct twin *x = rig_twin(rig, CONTENT_F32, n, c->hidden, 1, 0);
    struct twin *out =
        rig_twin(rig, CONTENT_ACTIVATION, n, (int64_t)c->heads * c->head_dim, 0, 0);
    struct projected p = make_projected(f, n);
    rig_begin(rig, NULL, 0);
    for (int s = 0; s < SIDES; s++) {
        struct device *dev = rig->side[s].dev;

        run_angles(f, s, &p);
        run_qkv(f, s, x, &p, n);
        rig_did(rig, s,
                dev->ops->attention(dev, out->at[s], p.q->at[s], &f->kv[s], 1, &rig->shape,
                                    &rig->side[s].view.batch, NULL));
    }
    rig_end(rig);
    const char *how = c->together ? "" : ", apart", *bias = c->bias ? ", bias" : "";
    ops_report(rig, "project_qkv", twin_error(rig, p.q), BOUND_FUSED,
               "%d rows of %d, %d/%d of %d%s%s: q", n, c->hidden, c->heads, c->kv_heads,
               c->head_dim, how, bias);
    ops_report(rig, "project_qkv", twin_error(rig, out), 2 * BOUND_FUSED,
               "%d rows of %d, %d/%d of %d%s%s: attended", n, c->hidden, c->heads, c->kv_heads,
               c->head_dim, how, bias);
}

/* x += down(silu(gate(h)) * up(h)), h = rms_norm(x). */
static void
run_feed_forward(struct fused *f, int s, const struct twin *x, const struct twin *h,
                 const struct twin *gate, const struct twin *up, int n)
{
    const struct fused_shape *c = &f->f;
    struct rig *rig = &f->rig;
    const struct model_shape *m = &rig->shape;
    struct device *dev = rig->side[s].dev;
    const struct device_ops *ops = dev->ops;
    const struct batch *b = &rig->side[s].view.batch;
    struct feed_forward_weights w = feed_forward_of(f, s);
    struct matmul_part parts[2] = {{gate->at[s], w.gate, w.gate_bias},
                                   {up->at[s], w.up, w.up_bias}};

    rig_did(rig, s,
            ops->rms_norm(dev, h->at[s], x->at[s], w.norm, n, c->hidden, m->norm_eps, NULL));
    rig_did(rig, s, ops->matmul_group(dev, parts, 2, h->at[s], b, NULL));
    rig_did(rig, s,
            ops->silu_mul(dev, gate->at[s], gate->at[s], up->at[s], (int64_t)n * c->intermediate,
                          NULL));
    rig_did(rig, s, ops->matmul(dev, x->at[s], gate->at[s], w.down, w.down_bias, true, b, NULL));
}

/* finish_layer and the project_qkv that follows it, and both again: what a kernel leaves behind for the next. */
static void
check_finish_layer(struct fused *f, int n, bool ahead)
{
    const struct fused_shape *c = &f->f;
    struct rig *rig = &f->rig;
    int64_t q_width = (int64_t)c->heads * c->head_dim;

    make_batch(rig, n);
    struct twin *x = rig_twin(rig, CONTENT_F32, n, c->hidden, 0.5f, 0);
    struct twin *attended = rig_twin(rig, CONTENT_ACTIVATION, n, q_width, 1, 0);
    struct twin *gate = rig_twin(rig, CONTENT_ACTIVATION, n, c->intermediate, 0, 0);
    struct twin *up = rig_twin(rig, CONTENT_ACTIVATION, n, c->intermediate, 0, 0);
    struct projected p = make_projected(f, n);
    rig_begin(rig, NULL, 0);
    for (int s = 0; s < SIDES; s++) {
        struct device *dev = rig->side[s].dev;
        const struct device_ops *ops = dev->ops;
        const struct batch *b = &rig->side[s].view.batch;
        struct layer_end_weights end = {.o = twin_weight(f->o, s),
                                        .o_bias = twin_weight(f->o_bias, s),
                                        .feed_forward = feed_forward_of(f, s)};

        if (ahead)
            end.next_norm = twin_weight(f->norm, s);
        run_angles(f, s, &p);
        for (int turn = 0; turn < 2; turn++) {
            if (ops->finish_layer) {
                rig_did(rig, s,
                        ops->finish_layer(dev, x->at[s], attended->at[s], &end, &rig->shape, b,
                                          NULL));
            } else {
                rig_did(rig, s,
                        ops->matmul(dev, x->at[s], attended->at[s], end.o, end.o_bias, true, b,
                                    NULL));
                run_feed_forward(f, s, x, p.h, gate, up, n);
            }
            run_qkv(f, s, x, &p, n);
        }
    }
    rig_end(rig);
    const char *how = c->together ? "" : ", apart", *bias = c->bias ? ", bias" : "";
    ops_report(rig, "finish_layer", twin_error(rig, x), BOUND_FUSED, "%d rows of %d to %d%s%s%s: x",
               n, c->hidden, c->intermediate, how, bias, ahead ? "" : ", last");
    ops_report(rig, "finish_layer", twin_error(rig, p.q), 2 * BOUND_FUSED,
               "%d rows of %d to %d%s%s%s: q", n, c->hidden, c->intermediate, how, bias,
               ahead ? "" : ", last");
}

void
ops_fused(void)
{
    static const struct fused_shape shapes[] = {
        {256, 4, 2, 64, 512, true, false, true},      {1024, 16, 8, 128, 3072, true, false, true},
        {4096, 32, 8, 128, 12288, true, false, true}, {1024, 8, 1, 256, 2048, true, false, true},
        {512, 8, 8, 64, 1024, false, true, true},     {512, 8, 2, 128, 1000, true, true, false},
        {512, 6, 2, 80, 1000, true, true, true},      {512, 16, 4, 32, 1024, false, false, true},
        {100, 4, 2, 50, 202, true, false, true},      {520, 8, 2, 64, 1000, true, true, true},
        {256, 4, 2, 64, 14336, true, false, true},
    };
    static const int rows[] = {1, 2, 3, 4, 5, 8, 9, 16, 31, 40, 64, 70, 300};
    int n_shapes = ops_options.quick ? 2 : (int)(sizeof shapes / sizeof *shapes);

    if (!ops_wanted("project_qkv") && !ops_wanted("finish_layer"))
        return;
    for (int i = 0; i < n_shapes; i++) {
        struct fused *f = malloc(sizeof *f);

        ASSERT(f);
        fused_open(f, &shapes[i]);
        int n_twins = f->rig.n_twins;
        for (int r = 0; r < (int)(sizeof rows / sizeof *rows); r++) {
            if (ops_options.quick && rows[r] != 1 && rows[r] != 16 && rows[r] != 40)
                continue;
            if (ops_wanted("project_qkv"))
                check_qkv(f, rows[r]);
            rig_drop(&f->rig, n_twins);
            for (int ahead = 0; ahead < 2 && ops_wanted("finish_layer"); ahead++) {
                check_finish_layer(f, rows[r], ahead);
                rig_drop(&f->rig, n_twins);
            }
        }
        for (int s = 0; s < SIDES; s++)
            f->rig.side[s].dev->ops->free(f->rig.side[s].dev, f->kv[s].data, f->kv_bytes[s]);
        rig_close(&f->rig);
        free(f);
    }
}
