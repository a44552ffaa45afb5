#include "tests/gpu/ops_model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/flag.h"
#include "gpu/forward_state.h"

enum { N_BUNDLES = 256, ORDERS = 2, ENGRAM_LAYERS = 2, BUNDLE_BYTES = 4 * (64 + 2) };

struct model_memory {
    struct bundle_address address[ENGRAM_LAYERS][MODEL_ROWS * ORDERS]; /* 16-byte aligned: first */
    uint8_t bundles[N_BUNDLES][(BUNDLE_BYTES + 15) / 16 * 16];
    int32_t token[MODEL_ROWS], position[MODEL_ROWS], row_seq[MODEL_ROWS];
    struct batch_seq seq[MODEL_SEQS];
    struct forward_output output[MODEL_SEQS];
    struct sample_result result[MODEL_SEQS];
    struct step_report report;
    struct flag ready;
};

static uint32_t
hash_of(uint64_t seed, uint64_t index)
{
    uint64_t x = seed * 0xd1342543de82ef95u + index * 0x9e3779b97f4a7c15u;

    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return (uint32_t)(x >> 32);
}

static void
make_shape(struct model_shape *s, enum model_width width)
{
    bool wide = width == MODEL_WIDE;

    *s = (struct model_shape){.family = FAMILY_ENGRAM,
                              .vocab = MODEL_VOCAB,
                              .hidden = wide ? 1024 : 256,
                              .layers = 3,
                              .heads = 8,
                              .kv_heads = 2,
                              .head_dim = wide ? 128 : 64,
                              .intermediate = wide ? 2048 : 512,
                              .max_position = 4096,
                              .norm_eps = 1e-6f,
                              .qk_norm = true,
                              .tied_embeddings = true,
                              .rope = {.kind = ROPE_DEFAULT, .theta = 1e6}};
    s->engram = (struct engram_shape){.n_layers = ENGRAM_LAYERS,
                                      .max_order = ORDERS + 1,
                                      .heads = 4,
                                      .head_dim = 64,
                                      .conv_kernel = 4,
                                      .norm_eps = 1e-6f,
                                      .table_dtype = DTYPE_F8_E4M3,
                                      .scale_group = 32};
    s->engram.table[1].layer = 2;
    ASSERT(engram_bundle_bytes(&s->engram) == BUNDLE_BYTES);
}

struct values {
    uint64_t seed;
    float mean, scale;
};

static int
read_values(void *arg, uint64_t offset_bytes, void *dst, size_t size_bytes, struct err *err)
{
    const struct values *v = arg;
    uint16_t *out = dst;

    for (size_t i = 0; i < size_bytes / sizeof *out; i++) {
        int32_t bits = (int32_t)hash_of(v->seed, offset_bytes / sizeof *out + i);
        out[i] = dtype_to_bf16(v->mean + v->scale * (float)bits / 2147483648.0f);
    }
    return 0;
}

static int
load(struct ops_model *m, struct err *err)
{
    int result = 0;

    for (int layer = -1; layer < m->shape.layers; layer++)
        for (int role = 0; role < ROLE_COUNT && result >= 0; role++) {
            int rows, cols;
            if (!forward_weight_shape(&m->shape, role, layer, &rows, &cols))
                continue;
            bool norm = role == ROLE_FINAL_NORM || role == ROLE_ATTN_NORM ||
                        role == ROLE_MLP_NORM || role == ROLE_Q_NORM || role == ROLE_K_NORM ||
                        (role >= ROLE_ENGRAM_KEY_NORM && role <= ROLE_ENGRAM_CONV_NORM);
            struct values v = {(uint64_t)(layer + 1) * ROLE_COUNT + (uint64_t)role, norm ? 1 : 0,
                               norm                 ? 0.25f
                               : role == ROLE_EMBED ? 1
                                                    : 2 / sqrtf((float)cols)};
            result = forward_load(m->forward, role, layer, DTYPE_BF16, (int64_t)rows * cols,
                                  read_values, &v, err);
        }
    return result < 0 ? result : forward_loaded(m->forward, err);
}

struct ops_model *
model_open(struct device *dev, enum model_width width)
{
    struct ops_model *m = calloc(1, sizeof *m);
    struct forward_limits limits = {.max_rows = MODEL_ROWS,
                                    .max_sequences = MODEL_SEQS,
                                    .n_states = 2 * MODEL_SEQS,
                                    .kv_pages = MODEL_SEQS * MODEL_PAGES_EACH,
                                    .page_tokens = MODEL_PAGE_TOKENS,
                                    .max_outputs = MODEL_SEQS};
    struct err err = ERR_INIT;

    ASSERT(m);
    m->dev = dev;
    make_shape(&m->shape, width);
    m->memory = dev->ops->alloc_shared(dev, sizeof *m->memory);
    ASSERT(m->memory);
    memset(m->memory, 0, sizeof *m->memory);
    if (forward_new(&m->forward, dev, &m->shape, &limits, &err) < 0 || load(m, &err) < 0 ||
        forward_warm_up(m->forward, &err) < 0) {
        printf("%s: %s\n", dev->ops->name, err.text);
        ASSERT(!"the model can be made");
    }
    for (int s = 0; s < MODEL_SEQS; s++) {
        for (int t = 0; t < MODEL_TOKENS; t++)
            m->tokens[s][t] = (int32_t)(hash_of((uint64_t)s + 77, (uint64_t)t) % MODEL_VOCAB);
        for (int p = 0; p < MODEL_PAGES_EACH; p++)
            m->pages[s][p] = (p * 7 + s * 3) % MODEL_PAGES_EACH * MODEL_SEQS + s;
    }
    for (int b = 0; b < N_BUNDLES; b++)
        for (int i = 0; i < BUNDLE_BYTES; i++) {
            uint32_t bits = hash_of(99, (uint64_t)(b * BUNDLE_BYTES + i));
            m->memory->bundles[b][i] =
                (uint8_t)(i < 256 ? bits % 120 + (bits >> 31) * 128 : 118 + bits % 4);
        }
    flag_raise(&m->memory->ready, 1);
    return m;
}

struct ops_model *
model_close(struct ops_model *m)
{
    if (!m)
        return NULL;
    struct device *dev = m->dev;
    (void)forward_free(m->forward);
    dev->ops->free_shared(dev, m->memory, sizeof *m->memory);
    (void)dev->ops->close(dev);
    free(m);
    return NULL;
}

static void
address_row(struct ops_model *m, const struct model_part *p, int row, int position)
{
    const int32_t *tokens = m->tokens[p->seq];

    for (int l = 0; l < ENGRAM_LAYERS; l++)
        for (int o = 0; o < ORDERS; o++) {
            uint64_t mix = (uint64_t)(l * 31 + o);

            for (int back = 0; back < o + 2; back++)
                mix = mix * 1000003u +
                      (uint64_t)(position >= back ? tokens[position - back] : MODEL_VOCAB);
            m->memory->address[l][row * ORDERS + o].source = m->memory->bundles[mix % N_BUNDLES];
        }
}

int
model_step(struct ops_model *m, const struct model_part *parts, int n_parts, int n_decode,
           float *logits, struct sample_result *ret_results)
{
    struct model_memory *mem = m->memory;
    struct err err = ERR_INIT;
    int row = 0;

    for (int i = 0; i < n_parts; i++) {
        const struct model_part *p = &parts[i];

        mem->seq[i] = (struct batch_seq){.first_row = row,
                                         .n_rows = p->n_rows,
                                         .context = p->context,
                                         .state_slot = p->seq,
                                         .engram_off = p->engram_off,
                                         .n_pages = MODEL_PAGES_EACH,
                                         .pages = m->pages[p->seq]};
        for (int r = 0; r < p->n_rows; r++, row++) {
            ASSERT(row < MODEL_ROWS && p->context + r < MODEL_TOKENS);
            mem->token[row] = m->tokens[p->seq][p->context + r];
            mem->position[row] = p->context + r;
            mem->row_seq[row] = i;
            address_row(m, p, row, p->context + r);
        }
        mem->output[i] = (struct forward_output){.row = row - 1,
                                                 .params = {.temperature = 1,
                                                            .top_p = 0.9f,
                                                            .seed = (uint64_t)p->seq,
                                                            .draw = (uint64_t)p->context,
                                                            .forced = -1,
                                                            .slot = -1,
                                                            .n_top = SAMPLE_MAX_TOP}};
    }
    struct forward_step step = {
        .step = ++m->steps,
        .report = &mem->report,
        .batch = {row, n_parts, n_decode, mem->token, mem->position, mem->row_seq, mem->seq},
        .wait_timeout_ns = 1000000000,
        .n_outputs = n_parts,
        .outputs = mem->output,
        .results = mem->result,
        .logits = logits,
    };
    for (int l = 0; l < ENGRAM_LAYERS; l++)
        step.engram[l] = (struct forward_engram){
            .address = mem->address[l], .ready = &mem->ready, .ready_value = 1};
    int result = forward_run(m->forward, &step, &err);
    if (result >= 0)
        result = forward_wait(m->forward, &step, &err);
    if (result < 0)
        printf("%s: %s\n", m->dev->ops->name, err.text);
    if (ret_results)
        memcpy(ret_results, mem->result, (size_t)n_parts * sizeof *ret_results);
    return result;
}

int
model_save(struct ops_model *m, int seq)
{
    return forward_copy_state(m->forward, MODEL_SEQS + seq, seq);
}

int
model_restore(struct ops_model *m, int seq)
{
    return forward_copy_state(m->forward, seq, MODEL_SEQS + seq);
}
