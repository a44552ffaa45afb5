/* The Engram layer: wait_rows and engram_gather, engram_fuse and engram_keep. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/flag.h"
#include "tests/gpu/ops_rig.h"

enum { N_BUNDLES = 64, MAX_ROWS = 700, TABLE_ROWS = 4096 };

struct table {
    const char *name;
    enum dtype dtype;
    int max_order, heads, head_dim, scale_group;
    int misalign; /* bytes that bundles and table stand off their natural place */
};

static struct model_shape
shape_of(const struct table *t, int hidden, int conv_kernel)
{
    struct model_shape shape = {.vocab = 1009,
                                .hidden = hidden,
                                .layers = 2,
                                .heads = 1,
                                .kv_heads = 1,
                                .head_dim = 64,
                                .intermediate = 64};

    shape.engram = (struct engram_shape){.n_layers = 2,
                                         .max_order = t->max_order,
                                         .heads = t->heads,
                                         .head_dim = t->head_dim,
                                         .conv_kernel = conv_kernel,
                                         .norm_eps = 1e-6f,
                                         .table_dtype = t->dtype,
                                         .scale_group = t->scale_group};
    for (int l = 0; l < 2; l++) {
        struct engram_table_shape *table = &shape.engram.table[l];

        table->layer = l;
        table->rows = TABLE_ROWS;
        for (int o = 0; o < t->max_order - 1; o++)
            for (int h = 0; h < t->heads; h++) {
                table->prime[o][h] = 61 - 2 * (h % 8); /* odd is enough here */
                table->row_base[o][h] = (o * t->heads + h) * 61 % (TABLE_ROWS - 61);
            }
    }
    return shape;
}

/* Bytes of table elements that are neither NaN nor infinite, and scales around 1. */
static void
random_rows(struct rig *rig, uint8_t *to, int n_weights, int n_scales)
{
    const struct engram_shape *e = &rig->shape.engram;
    int size = (int)dtype_size_bytes(e->table_dtype);

    for (int i = 0; i < n_weights / size; i++) {
        float value = rig_random(rig, 2);
        uint16_t half = dtype_to_bf16(value);

        if (size == 1)
            to[i] = (uint8_t)(rig_bits(rig) % 127 + (rig_bits(rig) & 1) * 128);
        else
            memcpy(to + i * size, size == 2 ? (void *)&half : (void *)&value, (size_t)size);
    }
    for (int i = 0; i < n_scales; i++)
        to[n_weights + i] = (uint8_t)(118 + rig_bits(rig) % 12);
}

/* Where everything is that a gather reads and writes; shared memory of each side. */
struct places {
    uint8_t *bundles[SIDES], *promoted[SIDES], *weights[SIDES], *scales[SIDES];
    struct bundle_address *address[SIDES];
    uint64_t *mix[SIDES];
    struct flag *ready[SIDES];
    size_t bundle_stride, promoted_bytes;
};

static void
make_places(struct rig *rig, struct places *p, int misalign)
{
    const struct engram_shape *e = &rig->shape.engram;
    int weight = engram_row_weight_bytes(e), scale = engram_row_scale_bytes(e);
    size_t cells = (size_t)MAX_ROWS * (size_t)(e->max_order - 1);

    p->bundle_stride = (size_t)(engram_bundle_bytes(e) + 63) / 64 * 64;
    p->promoted_bytes = cells * p->bundle_stride + 64;
    for (int s = 0; s < SIDES; s++) {
        p->bundles[s] =
            (uint8_t *)rig_shared(rig, s, (N_BUNDLES + 1) * p->bundle_stride) + misalign;
        p->promoted[s] = (uint8_t *)rig_shared(rig, s, p->promoted_bytes) + misalign;
        p->weights[s] =
            (uint8_t *)rig_shared(rig, s, (size_t)TABLE_ROWS * (size_t)weight + 64) + misalign;
        p->scales[s] = (uint8_t *)rig_shared(rig, s, (size_t)TABLE_ROWS * (size_t)scale + 64);
        p->address[s] = rig_shared(rig, s, cells * sizeof *p->address[s]);
        p->mix[s] = rig_shared(rig, s, cells * sizeof *p->mix[s]);
        p->ready[s] = rig_shared(rig, s, sizeof *p->ready[s]);
    }
    for (int b = 0; b < N_BUNDLES; b++)
        random_rows(rig, p->bundles[HOST] + (size_t)b * p->bundle_stride, e->heads * weight,
                    e->heads * scale);
    random_rows(rig, p->weights[HOST], TABLE_ROWS * weight, 0);
    for (int i = 0; i < TABLE_ROWS * scale; i++)
        p->scales[HOST][i] = (uint8_t)(118 + rig_bits(rig) % 12);
    memcpy(p->bundles[CUDA], p->bundles[HOST], N_BUNDLES * p->bundle_stride);
    memcpy(p->weights[CUDA], p->weights[HOST], (size_t)TABLE_ROWS * (size_t)weight);
    memcpy(p->scales[CUDA], p->scales[HOST], (size_t)TABLE_ROWS * (size_t)scale);
}

/* Bundles, in place, failed reads; a third of what is read is promoted. */
static void
make_addresses(struct rig *rig, struct places *p, int n_cells, bool in_place)
{
    for (int i = 0; i < n_cells; i++) {
        uint32_t kind = rig_bits(rig) % 8, bundle = rig_bits(rig) % N_BUNDLES;
        bool promote = rig_bits(rig) % 3 == 0;
        uint64_t mix = (uint64_t)rig_bits(rig) << 32 | rig_bits(rig);

        for (int s = 0; s < SIDES; s++) {
            struct bundle_address *at = &p->address[s][i];

            at->source = kind == 0              ? NULL
                         : kind < 4 && in_place ? BUNDLE_IN_PLACE
                                                : p->bundles[s] + bundle * p->bundle_stride;
            at->promote = promote ? p->promoted[s] + (size_t)i * p->bundle_stride : NULL;
            p->mix[s][i] = mix;
        }
    }
}

/* Waits for the layer's rows and gathers them, on both sides. */
static void
issue_gather(struct rig *rig, int index, struct twin *out)
{
    for (int s = 0; s < SIDES; s++) {
        struct ops_side *side = &rig->side[s];
        const struct device_ops *ops = side->dev->ops;
        rig_did(rig, s, ops->wait_rows(side->dev, &side->step, index, NULL));
        rig_did(rig, s,
                ops->engram_gather(side->dev, out->at[s], &side->view.engram[index], index,
                                   &rig->shape.engram, &side->view.batch, NULL));
    }
}

static void
check_gather(struct rig *rig, const struct table *t, int n_decode, int n_prefill, bool in_place)
{
    const struct engram_shape *e = &rig->shape.engram;
    struct ops_seq seqs[9] = {{0}};
    struct places p;
    int n_seqs = 0, orders = e->max_order - 1, index = 1;

    for (; n_seqs < n_decode; n_seqs++)
        seqs[n_seqs] = (struct ops_seq){.n_rows = 1, .context = 5, .engram_off = n_seqs == 1};
    if (n_prefill > 0) {
        seqs[n_seqs++] = (struct ops_seq){.n_rows = n_prefill};
        seqs[n_seqs++] = (struct ops_seq){.n_rows = 3, .engram_off = 1};
    }
    rig_batch(rig, seqs, n_seqs, n_decode);
    make_places(rig, &p, t->misalign);
    make_addresses(rig, &p, rig->n_rows * orders, in_place);
    struct twin *out = rig_twin(rig, CONTENT_ACTIVATION, (int64_t)rig->n_rows * orders,
                                (int64_t)e->heads * e->head_dim, 1, 0);
    for (int s = 0; s < SIDES; s++) {
        flag_raise(p.ready[s], 3);
        rig->side[s].step.engram[index] = (struct forward_engram){.address = p.address[s],
                                                                  .ready = p.ready[s],
                                                                  .ready_value = 3,
                                                                  .mix = p.mix[s],
                                                                  .weights = p.weights[s],
                                                                  .scales = p.scales[s]};
    }
    rig_begin(rig, NULL, 0);
    issue_gather(rig, index, out);
    rig_end(rig);
    ops_report(rig, "engram_gather", twin_error_rounded(rig, out), BOUND_EXACT,
               "%s %dx%dx%d, %d+%d rows%s", t->name, orders, e->heads, e->head_dim, n_decode,
               n_prefill, in_place ? ", in place too" : "");
    ops_report_fact(rig, "engram_gather",
                    memcmp(p.promoted[HOST], p.promoted[CUDA], p.promoted_bytes - 64) == 0,
                    "%s %dx%dx%d, %d+%d rows%s: promoted bytes", t->name, orders, e->heads,
                    e->head_dim, n_decode, n_prefill, in_place ? ", in place too" : "");
    rig_reset(rig);
}

/* A host that answers CUDA's rows a few at a time, the first `end` of them. What is not answered has addresses that
 * nobody may follow. */
struct answering {
    struct places *p;
    const struct bundle_address *address; /* all of them, and the mixes */
    const uint64_t *mix;
    uint64_t rows_from;
    int end, orders;
};

static void *
answer_rows(void *arg)
{
    const struct answering *a = arg;

    for (int row = 0, n = 1; row < a->end; row += n, n = n % 7 + 1) {
        uint64_t begin_ns = clock_now_ns();

        while (clock_now_ns() - begin_ns < 3000)
            ;
        n = n < a->end - row ? n : a->end - row;
        size_t first = (size_t)row * (size_t)a->orders, cells = (size_t)n * (size_t)a->orders;
        memcpy(a->p->address[CUDA] + first, a->address + first, cells * sizeof *a->address);
        memcpy(a->p->mix[CUDA] + first, a->mix + first, cells * sizeof *a->mix);
        flag_raise(a->p->ready[CUDA], a->rows_from + (uint64_t)(row + n));
    }
    return NULL;
}

/* n_answered: of n_rows; fewer: the step's time is over. */
static void
check_rows_that_come(struct rig *rig, const struct table *t, int n_rows, int n_answered)
{
    const struct engram_shape *e = &rig->shape.engram;
    struct ops_seq seqs[2] = {{.n_rows = 1, .context = 5}, {.n_rows = n_rows - 1}};
    struct places p;
    int orders = e->max_order - 1, index = 0;
    size_t cells = (size_t)n_rows * (size_t)orders;
    pthread_t thread;

    rig_batch(rig, seqs, 2, 1);
    make_places(rig, &p, t->misalign);
    make_addresses(rig, &p, (int)cells, true);
    struct bundle_address *address = calloc(cells, sizeof *address);
    uint64_t *mix = calloc(cells, sizeof *mix), rows_from = step_rows_from(7);
    ASSERT(address && mix);
    memcpy(address, p.address[CUDA], cells * sizeof *address);
    memcpy(mix, p.mix[CUDA], cells * sizeof *mix);
    for (size_t i = 0; i < cells; i++)
        p.address[CUDA][i] = (struct bundle_address){(void *)64, (void *)64};
    memset(p.mix[CUDA], 0xff, cells * sizeof *mix);
    struct twin *out = rig_twin(rig, CONTENT_ACTIVATION, (int64_t)cells,
                                (int64_t)e->heads * e->head_dim, 1, 0);
    for (int s = 0; s < SIDES; s++)
        rig->side[s].step.engram[index] =
            (struct forward_engram){.address = p.address[s],
                                    .ready = p.ready[s],
                                    .ready_value = rows_from + (uint64_t)n_rows,
                                    .rows_from = rows_from,
                                    .mix = p.mix[s],
                                    .weights = p.weights[s],
                                    .scales = p.scales[s]};
    flag_raise(p.ready[HOST], rows_from + (uint64_t)n_rows);
    rig_begin(rig, NULL, 0);
    issue_gather(rig, index, out);
    struct answering answering = {&p, address, mix, rows_from, n_answered, orders};
    ASSERT(pthread_create(&thread, NULL, answer_rows, &answering) == 0);
    if (n_answered == n_rows) {
        rig_end(rig);
        ops_report(rig, "engram_gather", twin_error_rounded(rig, out), BOUND_EXACT,
                   "%s, %d rows that come a few at a time", t->name, n_rows);
        ops_report_fact(rig, "engram_gather",
                        memcmp(p.promoted[HOST], p.promoted[CUDA], p.promoted_bytes - 64) == 0,
                        "%s, %d rows that come a few at a time: promoted bytes", t->name, n_rows);
    } else {
        struct ops_side *side = &rig->side[CUDA];
        uint64_t limit_ns = side->step.wait_timeout_ns;

        rig_did(rig, CUDA, side->dev->ops->end_step(side->dev, &side->step, 0, NULL));
        rig_did(rig, CUDA, side->dev->ops->synchronize(side->dev, NULL));
        ops_report_fact(rig, "engram_gather",
                        side->report->done == rig->steps && side->report->status == -ETIMEDOUT &&
                            side->report->waited_ns[index] >= limit_ns &&
                            side->report->waited_ns[index] < 2 * limit_ns,
                        "%s, %d of %d rows come: the time is over", t->name, n_answered, n_rows);
        side = &rig->side[HOST];
        rig_did(rig, HOST, side->dev->ops->end_step(side->dev, &side->step, 0, NULL));
    }
    ASSERT(pthread_join(thread, NULL) == 0);
    free(address);
    free(mix);
    rig_reset(rig);
}

static void
gathers(void)
{
    static const struct table tables[] = {
        {"fp8 by 32", DTYPE_F8_E4M3, 3, 8, 64, 32, 0},
        {"bf16", DTYPE_BF16, 3, 8, 64, 0, 0},
        {"fp8 plain", DTYPE_F8_E4M3, 4, 4, 128, 0, 0},
        {"f32", DTYPE_F32, 2, 4, 32, 0, 0},
        {"fp8 by 16", DTYPE_F8_E4M3, 3, 16, 160, 16, 0},
        {"fp8 by 64", DTYPE_F8_E4M3, 3, 8, 512, 64, 0},
        {"bf16 by 32", DTYPE_BF16, 3, 4, 64, 32, 0},
        {"fp8 by 4", DTYPE_F8_E4M3, 3, 4, 8, 4, 0},
        {"bf16 odd", DTYPE_BF16, 3, 3, 7, 0, 0},
        {"fp8 by 32, off by 8", DTYPE_F8_E4M3, 3, 8, 64, 32, 8},
        {"bf16, off by 8", DTYPE_BF16, 3, 8, 64, 0, 8},
        {"bf16, off by 2", DTYPE_BF16, 3, 8, 64, 0, 2},
        {"fp8 by 32, off by 1", DTYPE_F8_E4M3, 2, 32, 64, 32, 1},
    };
    int n = ops_options.quick ? 2 : (int)(sizeof tables / sizeof *tables);

    for (int i = 0; i < n; i++) {
        struct model_shape shape = shape_of(&tables[i], 64, 4);
        struct device_limits limits = {.max_rows = MAX_ROWS,
                                       .max_sequences = 16,
                                       .max_outputs = 4,
                                       .n_states = 4,
                                       .max_step_pages = 4,
                                       .page_tokens = 16};
        struct rig rig;

        rig_open(&rig, &shape, &limits);
        check_gather(&rig, &tables[i], 1, 0, false);
        check_gather(&rig, &tables[i], 3, 40, true);
        if (!ops_options.quick)
            check_gather(&rig, &tables[i], 7, 600, true);
        check_rows_that_come(&rig, &tables[i], 2, 2);
        check_rows_that_come(&rig, &tables[i], 130, 130);
        check_rows_that_come(&rig, &tables[i], MAX_ROWS, MAX_ROWS);
        if (i < 2)
            check_rows_that_come(&rig, &tables[i], 64, 63);
        rig_close(&rig);
    }
}

struct layer {
    struct twin *key_norm, *query_norm, *conv_norm, *conv, *state;
};

/* One step of these sequences: fuse, then keep. */
static void
fuse(struct rig *rig, const struct layer *l, const struct ops_seq *seqs, int n_seqs, int n_decode,
     const char *what)
{
    const struct engram_shape *e = &rig->shape.engram;
    int hidden = rig->shape.hidden;
    int n_before = rig->n_twins;

    rig_batch(rig, seqs, n_seqs, n_decode);
    int n = rig->n_rows;
    struct twin *x = rig_twin(rig, CONTENT_F32, n, hidden, 2, 0);
    struct twin *key = rig_twin(rig, CONTENT_ACTIVATION, n, hidden, 1, 0);
    struct twin *value = rig_twin(rig, CONTENT_ACTIVATION, n, hidden, 1, 0);
    struct twin *u = rig_twin(rig, CONTENT_F32, n, hidden, 0, 0);
    rig_begin(rig, NULL, 0);
    for (int s = 0; s < SIDES; s++) {
        struct ops_side *side = &rig->side[s];
        struct engram_weights w = {.key_norm = twin_weight(l->key_norm, s),
                                   .query_norm = twin_weight(l->query_norm, s),
                                   .conv_norm = twin_weight(l->conv_norm, s),
                                   .conv = twin_weight(l->conv, s)};
        rig_did(rig, s,
                side->dev->ops->engram_fuse(side->dev, x->at[s], key->at[s], value->at[s], u->at[s],
                                            l->state->at[s], &w, e, hidden, &side->view.batch,
                                            NULL));
        rig_did(rig, s,
                side->dev->ops->engram_keep(side->dev, l->state->at[s], u->at[s], e, hidden,
                                            &side->view.batch, NULL));
    }
    rig_end(rig);
    ops_report(rig, "engram_fuse", twin_error(rig, x), BOUND_F32, "%s, %d wide, kernel %d: x", what,
               hidden, e->conv_kernel);
    /* A row that skips has no u: only the others are compared. */
    bool off = false;
    for (int i = 0; i < n_seqs; i++)
        off = off || seqs[i].engram_off;
    if (!off)
        ops_report(rig, "engram_fuse", twin_error(rig, u), BOUND_F32, "%s, %d wide, kernel %d: u",
                   what, hidden, e->conv_kernel);
    ops_report(rig, "engram_keep", twin_error(rig, l->state), BOUND_F32,
               "%s, %d wide, kernel %d: states", what, hidden, e->conv_kernel);
    rig_drop(rig, n_before);
}

static void
check_fuse(int hidden, int conv_kernel, int max_order)
{
    struct table t = {"fuse", DTYPE_BF16, max_order, 2, 16, 0, 0};
    struct model_shape shape = shape_of(&t, hidden, conv_kernel);
    int ring = (conv_kernel - 1) * max_order, long_part = ops_options.quick ? 20 : 200;
    struct device_limits limits = {.max_rows = 256,
                                   .max_sequences = 16,
                                   .max_outputs = 4,
                                   .n_states = 6,
                                   .max_step_pages = 4,
                                   .page_tokens = 16};
    struct rig rig;

    rig_open(&rig, &shape, &limits);
    struct layer l = {
        .key_norm = rig_twin(&rig, CONTENT_VECTOR, 1, hidden, 0.5f, 1),
        .query_norm = rig_twin(&rig, CONTENT_VECTOR, 1, hidden, 0.5f, 1),
        .conv_norm = rig_twin(&rig, CONTENT_VECTOR, 1, hidden, 0.5f, 1),
        .conv = rig_twin(&rig, CONTENT_VECTOR, conv_kernel, hidden, 1, 0),
        /* What an earlier sequence left must not show. */
        .state = rig_twin(&rig, CONTENT_F32, (int64_t)limits.n_states * ring, hidden, 100, 0),
    };
    fuse(&rig, &l,
         (struct ops_seq[]){{.n_rows = long_part, .slot = 3},
                            {.n_rows = 1, .slot = 0},
                            {.n_rows = 5, .slot = 1, .engram_off = 1},
                            {.n_rows = ring - 1, .slot = 5}},
         4, 0, "prefill from 0");
    fuse(&rig, &l,
         (struct ops_seq[]){{.n_rows = 1, .context = long_part, .slot = 3},
                            {.n_rows = 1, .context = ring - 1, .slot = 5},
                            {.n_rows = 1, .slot = 2},
                            {.n_rows = 7, .context = 1, .slot = 0}},
         4, 3, "decode, chunk");
    for (int i = 1; i < (ops_options.quick ? 2 : 4); i++)
        fuse(&rig, &l,
             (struct ops_seq[]){{.n_rows = 1, .context = long_part + i, .slot = 3},
                                {.n_rows = 1, .context = 5, .slot = 1, .engram_off = 1},
                                {.n_rows = 1, .context = i, .slot = 2},
                                {.n_rows = 1, .context = ring - 1 + i, .slot = 5},
                                {.n_rows = 1, .context = 7 + i, .slot = 0}},
             5, 5, "decode");
    rig_close(&rig);
}

void
ops_engram(void)
{
    static const struct {
        int hidden, kernel, order;
    } shapes[] = {{512, 4, 3},  {4096, 4, 3}, {1024, 4, 2}, {6144, 3, 4},
                  {2560, 4, 3}, {9216, 2, 3}, {100, 4, 3},  {5001, 4, 3}};
    int n = ops_options.quick ? 1 : (int)(sizeof shapes / sizeof *shapes);

    if (ops_wanted("engram_gather"))
        gathers();
    for (int i = 0; i < n && (ops_wanted("engram_fuse") || ops_wanted("engram_keep")); i++)
        check_fuse(shapes[i].hidden, shapes[i].kernel, shapes[i].order);
}
