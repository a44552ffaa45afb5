#include "base/flag.h"
#include "tests/unit/gpu/model_fixture.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "gpu/forward_state.h"

static uint64_t random_state;

static uint32_t
random_bits(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33);
}

static float
random_bf16(float scale)
{
    float value = ((float)random_bits() / 2147483648.0f * 2 - 1) * scale;
    return dtype_bf16(dtype_to_bf16(value));
}

static void
make_shape(struct model_shape *s, enum fixture_kind kind)
{
    *s = (struct model_shape){
        .family = FAMILY_QWEN3,
        .vocab = 101,
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
    };
    if (kind == FIXTURE_LLAMA_BIAS) {
        s->family = FAMILY_LLAMA;
        s->qk_norm = false;
        s->tied_embeddings = false;
        s->attention_bias = s->mlp_bias = true;
        s->heads = 4;
        s->kv_heads = 4;
        s->rope = (struct rope_shape){.kind = ROPE_LLAMA3,
                                      .theta = 500000,
                                      .factor = 8,
                                      .original_max_position = 64,
                                      .low_freq_factor = 1,
                                      .high_freq_factor = 4};
    }
    if (kind == FIXTURE_ENGRAM) {
        s->family = FAMILY_ENGRAM;
        s->engram = (struct engram_shape){
            .n_layers = 2,
            .max_order = 3,
            .heads = 4,
            .head_dim = 8,
            .conv_kernel = 4,
            .norm_eps = 1e-6f,
            .table_dtype = DTYPE_F8_E4M3,
            .scale_group = 4,
        };
        s->engram.table[0].layer = 0;
        s->engram.table[1].layer = 2;
    }
}

static void
make_bundles(struct model_fixture *m)
{
    const struct engram_shape *e = &m->shape.engram;
    int bytes = engram_bundle_bytes(e), weights = e->heads * engram_row_weight_bytes(e);
    int values = e->heads * e->head_dim;

    m->n_bundles = 200;
    m->bundles = calloc((size_t)m->n_bundles, (size_t)bytes);
    m->bundle_values = calloc((size_t)m->n_bundles * (size_t)values, sizeof(float));
    ASSERT(m->bundles && m->bundle_values);
    for (int b = 0; b < m->n_bundles; b++) {
        uint8_t *at = m->bundles + (size_t)b * (size_t)bytes;
        for (int i = 0; i < weights; i++)
            at[i] = (uint8_t)(random_bits() % 120 + (random_bits() & 1) * 128);
        for (int i = weights; i < bytes; i++)
            at[i] = (uint8_t)(118 + random_bits() % 4);
        for (int i = 0; i < values; i++)
            m->bundle_values[b * values + i] =
                dtype_e4m3_table[at[i]] * ldexpf(1, at[weights + i / e->scale_group] - 127);
    }
}

void
fixture_make(struct model_fixture *m, enum fixture_kind kind, unsigned seed)
{
    memset(m, 0, sizeof *m);
    random_state = seed * 7919u + 17;
    make_shape(&m->shape, kind);
    for (int layer = -1; layer < m->shape.layers; layer++)
        for (int role = 0; role < ROLE_COUNT; role++) {
            int rows, cols;
            if (!forward_weight_shape(&m->shape, role, layer, &rows, &cols))
                continue;
            float **to = layer < 0 ? &m->global[role] : &m->layer[layer][role];
            size_t n = (size_t)rows * (size_t)cols;
            *to = calloc(n, sizeof **to);
            ASSERT(*to);
            bool norm = role == ROLE_FINAL_NORM || role == ROLE_ATTN_NORM ||
                        role == ROLE_MLP_NORM || role == ROLE_Q_NORM || role == ROLE_K_NORM ||
                        (role >= ROLE_ENGRAM_KEY_NORM && role <= ROLE_ENGRAM_CONV_NORM);
            for (size_t i = 0; i < n; i++)
                (*to)[i] = norm ? 1 + random_bf16(0.25f)
                                : random_bf16(role == ROLE_EMBED ? 1 : 2 / sqrtf((float)cols));
            for (size_t i = 0; i < n && norm; i++)
                (*to)[i] = dtype_bf16(dtype_to_bf16((*to)[i]));
        }
    if (m->shape.engram.n_layers > 0)
        make_bundles(m);
}

void
fixture_free(struct model_fixture *m)
{
    for (int role = 0; role < ROLE_COUNT; role++) {
        free(m->global[role]);
        for (int layer = 0; layer < m->shape.layers; layer++)
            free(m->layer[layer][role]);
    }
    free(m->bundles);
    free(m->bundle_values);
}

struct source {
    const float *values;
    enum dtype dtype;
};

static int
read_source(void *arg, uint64_t offset_bytes, void *dst, size_t size_bytes, struct err *err)
{
    const struct source *s = arg;
    size_t size = dtype_size_bytes(s->dtype);

    for (size_t i = 0; i < size_bytes / size; i++) {
        float value = s->values[offset_bytes / size + i];
        uint16_t half = dtype_to_bf16(value);
        memcpy((char *)dst + i * size, s->dtype == DTYPE_F32 ? (void *)&value : &half, size);
    }
    return 0;
}

int
fixture_load(const struct model_fixture *m, struct forward *forward, enum dtype dtype,
             struct err *err)
{
    for (int layer = -1; layer < m->shape.layers; layer++)
        for (int role = 0; role < ROLE_COUNT; role++) {
            int rows, cols;
            if (!forward_weight_shape(&m->shape, role, layer, &rows, &cols))
                continue;
            struct source s = {layer < 0 ? m->global[role] : m->layer[layer][role], dtype};
            int result = forward_load(forward, role, layer, dtype, (int64_t)rows * cols,
                                      read_source, &s, err);
            if (result < 0)
                return result;
        }
    return forward_loaded(forward, err);
}

int
fixture_bundle(const struct model_fixture *m, const int32_t *tokens, int position, int table,
               int order)
{
    uint64_t mix = (uint64_t)(table * 31 + order);

    for (int back = 0; back < order; back++)
        mix = mix * 1000003u + (uint64_t)(position >= back ? tokens[position - back] : 7777);
    return (int)(mix % (uint64_t)m->n_bundles);
}

/* --- steps */

static struct {
    int32_t token[FIXTURE_MAX_ROWS], position[FIXTURE_MAX_ROWS], row_seq[FIXTURE_MAX_ROWS];
    struct batch_seq seq[FIXTURE_MAX_SEQS];
    struct bundle_address address[SHAPE_MAX_ENGRAM_LAYERS][FIXTURE_MAX_ROWS * SHAPE_MAX_ORDERS];
    struct flag ready;
    struct forward_output output[FIXTURE_MAX_ROWS];
    struct sample_result result[FIXTURE_MAX_ROWS];
} step_memory;

int
fixture_step(const struct model_fixture *m, struct forward *forward, const struct step_part *parts,
             int n_parts, int n_decode, float *logits, struct sample_result *results,
             struct err *err)
{
    const struct engram_shape *e = &m->shape.engram;
    int row = 0, n_outputs = 0;

    ASSERT(n_parts <= FIXTURE_MAX_SEQS);
    for (int i = 0; i < n_parts; i++) {
        const struct step_part *p = &parts[i];
        step_memory.seq[i] = (struct batch_seq){
            .first_row = row,
            .n_rows = p->n_rows,
            .context = p->context,
            .state_slot = p->state_slot,
            .engram_off = p->engram_off,
            .n_pages = p->n_pages,
            .pages = p->pages,
        };
        for (int r = 0; r < p->n_rows; r++, row++) {
            ASSERT(row < FIXTURE_MAX_ROWS);
            step_memory.token[row] = p->tokens[p->context + r];
            step_memory.position[row] = p->context + r;
            step_memory.row_seq[row] = i;
            for (int t = 0; t < e->n_layers; t++)
                for (int o = 2; o <= e->max_order; o++) {
                    int bundle = fixture_bundle(m, p->tokens, p->context + r, t, o);
                    step_memory.address[t][row * (e->max_order - 1) + o - 2].source =
                        m->bundles + (size_t)bundle * (size_t)engram_bundle_bytes(e);
                }
            if (p->all_outputs || r == p->n_rows - 1)
                step_memory.output[n_outputs++] =
                    (struct forward_output){.row = row, .params = {.forced = -1, .n_top = 5}};
        }
    }
    flag_raise(&step_memory.ready, 1);
    struct forward_step step = {
        .batch = {row, n_parts, n_decode, step_memory.token, step_memory.position,
                  step_memory.row_seq, step_memory.seq},
        .wait_timeout_ns = 1000000000,
        .n_outputs = n_outputs,
        .outputs = step_memory.output,
        .results = results ? results : step_memory.result,
        .logits = logits,
    };
    for (int t = 0; t < e->n_layers; t++)
        step.engram[t] = (struct forward_engram){
            .address = step_memory.address[t], .ready = &step_memory.ready, .ready_value = 1};
    int result = forward_run(forward, &step, err);
    return result < 0 ? result : forward_wait(forward, &step, err);
}

double
fixture_error(const float *a, const double *b, int vocab)
{
    double most = 0, worst = 0;

    for (int i = 0; i < vocab; i++) {
        most = fmax(most, fabs(b[i]));
        double off = fabs((double)a[i] - b[i]);
        if (!(off <= worst))
            worst = off;
    }
    return worst / most;
}
