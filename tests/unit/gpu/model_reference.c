/* model_reference: the forward pass in double precision, as plainly as it can be written. */
#include <math.h>
#include <stdlib.h>

#include "base/check.h"
#include "gpu/rope_table.h"
#include "tests/unit/gpu/model_fixture.h"

static void
ref_norm(double *out, const double *x, const float *w, int n, double eps)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += x[i] * x[i];
    for (int i = 0; i < n; i++)
        out[i] = x[i] / sqrt(sum / n + eps) * (double)w[i];
}

static void
ref_matmul(double *out, const double *x, const float *w, const float *bias, int n_out, int n_in)
{
    for (int o = 0; o < n_out; o++) {
        double sum = bias ? (double)bias[o] : 0;
        for (int i = 0; i < n_in; i++)
            sum += x[i] * (double)w[(size_t)o * (size_t)n_in + (size_t)i];
        out[o] = sum;
    }
}

static double
ref_sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

static void
ref_engram(const struct model_fixture *m, const int32_t *tokens, int n, int table, double *x)
{
    const struct engram_shape *e = &m->shape.engram;
    int d = m->shape.hidden, width = e->heads * e->head_dim, lookup = width * (e->max_order - 1);
    float *const *w = m->layer[e->table[table].layer];
    double *row = calloc((size_t)lookup, sizeof *row), *key = calloc((size_t)d, sizeof *key);
    double *value = calloc((size_t)d, sizeof *value), *query = calloc((size_t)d, sizeof *query);
    double *u = calloc((size_t)(n * d), sizeof *u), *v = calloc((size_t)(n * d), sizeof *v);

    ASSERT(row && key && value && query && u && v);
    for (int t = 0; t < n; t++) {
        for (int o = 2; o <= e->max_order; o++) {
            const float *from = m->bundle_values + fixture_bundle(m, tokens, t, table, o) * width;
            for (int i = 0; i < width; i++)
                row[(o - 2) * width + i] = (double)from[i];
        }
        ref_matmul(key, row, w[ROLE_ENGRAM_KEY], w[ROLE_ENGRAM_KEY_BIAS], d, lookup);
        ref_matmul(value, row, w[ROLE_ENGRAM_VALUE], w[ROLE_ENGRAM_VALUE_BIAS], d, lookup);
        ref_norm(key, key, w[ROLE_ENGRAM_KEY_NORM], d, (double)e->norm_eps);
        ref_norm(query, x + t * d, w[ROLE_ENGRAM_QUERY_NORM], d, (double)e->norm_eps);
        double dot = 0;
        for (int i = 0; i < d; i++)
            dot += key[i] * query[i];
        dot /= sqrt(d);
        double sign = dot > 0 ? 1 : dot < 0 ? -1 : 0;
        double gate = ref_sigmoid(sign * sqrt(fmax(fabs(dot), 1e-6)));
        for (int i = 0; i < d; i++)
            v[t * d + i] = gate * value[i];
        ref_norm(u + t * d, v + t * d, w[ROLE_ENGRAM_CONV_NORM], d, 1e-5);
    }
    for (int t = 0; t < n; t++)
        for (int i = 0; i < d; i++) {
            double sum = 0;
            for (int j = 0; j < e->conv_kernel; j++) {
                int from = t - (e->conv_kernel - 1 - j) * e->max_order;
                if (from >= 0)
                    sum += (double)w[ROLE_ENGRAM_CONV][i * e->conv_kernel + j] * u[from * d + i];
            }
            x[t * d + i] += v[t * d + i] + sum * ref_sigmoid(sum);
        }
    free(row);
    free(key);
    free(value);
    free(query);
    free(u);
    free(v);
}

static void
ref_rotate(double *x, int dim, const double *inv_freq, double scale, int position)
{
    for (int i = 0; i < dim / 2; i++) {
        double c = cos(inv_freq[i] * position) * scale, s = sin(inv_freq[i] * position) * scale;
        double low = x[i], high = x[i + dim / 2];
        x[i] = low * c - high * s;
        x[i + dim / 2] = high * c + low * s;
    }
}

static void
ref_attention(const struct model_fixture *m, int layer, int n, double *x)
{
    const struct model_shape *s = &m->shape;
    int d = s->hidden, hd = s->head_dim, nq = s->heads * hd, nk = s->kv_heads * hd;
    float *const *w = m->layer[layer];
    double *h = calloc((size_t)d, sizeof *h), *q = calloc((size_t)(n * nq), sizeof *q);
    double *k = calloc((size_t)(n * nk), sizeof *k), *v = calloc((size_t)(n * nk), sizeof *v);
    double *p = calloc((size_t)n, sizeof *p), *o = calloc((size_t)nq, sizeof *o);
    double inv_freq[256], scale;

    ASSERT(h && q && k && v && p && o);
    ASSERT(rope_table_make(&s->rope, hd, inv_freq, &scale, NULL) >= 0);
    for (int t = 0; t < n; t++) {
        ref_norm(h, x + t * d, w[ROLE_ATTN_NORM], d, (double)s->norm_eps);
        ref_matmul(q + t * nq, h, w[ROLE_Q], w[ROLE_Q_BIAS], nq, d);
        ref_matmul(k + t * nk, h, w[ROLE_K], w[ROLE_K_BIAS], nk, d);
        ref_matmul(v + t * nk, h, w[ROLE_V], w[ROLE_V_BIAS], nk, d);
        for (int i = 0; i < s->heads + s->kv_heads; i++) {
            double *at = i < s->heads ? q + t * nq + i * hd : k + t * nk + (i - s->heads) * hd;
            if (s->qk_norm)
                ref_norm(at, at, w[i < s->heads ? ROLE_Q_NORM : ROLE_K_NORM], hd,
                         (double)s->norm_eps);
            ref_rotate(at, hd, inv_freq, scale, t);
        }
    }
    for (int t = 0; t < n; t++) {
        for (int i = 0; i < s->heads; i++) {
            int g = i / (s->heads / s->kv_heads);
            double top = -INFINITY, sum = 0;
            for (int j = 0; j <= t; j++) {
                p[j] = 0;
                for (int c = 0; c < hd; c++)
                    p[j] += q[t * nq + i * hd + c] * k[j * nk + g * hd + c];
                p[j] /= sqrt(hd);
                top = fmax(top, p[j]);
            }
            for (int j = 0; j <= t; j++)
                sum += p[j] = exp(p[j] - top);
            for (int c = 0; c < hd; c++) {
                o[i * hd + c] = 0;
                for (int j = 0; j <= t; j++)
                    o[i * hd + c] += p[j] / sum * v[j * nk + g * hd + c];
            }
        }
        ref_matmul(h, o, w[ROLE_O], w[ROLE_O_BIAS], d, nq);
        for (int i = 0; i < d; i++)
            x[t * d + i] += h[i];
    }
    free(h);
    free(q);
    free(k);
    free(v);
    free(p);
    free(o);
}

void
fixture_reference(const struct model_fixture *m, const int32_t *tokens, int n, bool engram_off,
                  double *logits)
{
    const struct model_shape *s = &m->shape;
    int d = s->hidden, wide = s->intermediate;
    double *x = calloc((size_t)(n * d), sizeof *x), *h = calloc((size_t)d, sizeof *h);
    double *gate = calloc((size_t)wide, sizeof *gate), *up = calloc((size_t)wide, sizeof *up);

    ASSERT(x && h && gate && up);
    for (int t = 0; t < n; t++)
        for (int i = 0; i < d; i++)
            x[t * d + i] = (double)m->global[ROLE_EMBED][tokens[t] * d + i];
    for (int layer = 0; layer < s->layers; layer++) {
        float *const *w = m->layer[layer];
        for (int e = 0; e < s->engram.n_layers && !engram_off; e++)
            if (s->engram.table[e].layer == layer)
                ref_engram(m, tokens, n, e, x);
        ref_attention(m, layer, n, x);
        for (int t = 0; t < n; t++) {
            ref_norm(h, x + t * d, w[ROLE_MLP_NORM], d, (double)s->norm_eps);
            ref_matmul(gate, h, w[ROLE_GATE], w[ROLE_GATE_BIAS], wide, d);
            ref_matmul(up, h, w[ROLE_UP], w[ROLE_UP_BIAS], wide, d);
            for (int i = 0; i < wide; i++)
                gate[i] *= ref_sigmoid(gate[i]) * up[i];
            ref_matmul(h, gate, w[ROLE_DOWN], w[ROLE_DOWN_BIAS], d, wide);
            for (int i = 0; i < d; i++)
                x[t * d + i] += h[i];
        }
    }
    for (int t = 0; t < n; t++) {
        ref_norm(h, x + t * d, m->global[ROLE_FINAL_NORM], d, (double)s->norm_eps);
        ref_matmul(logits + (size_t)t * (size_t)s->vocab, h,
                   m->global[s->tied_embeddings ? ROLE_EMBED : ROLE_LM_HEAD], NULL, s->vocab, d);
    }
    free(x);
    free(h);
    free(gate);
    free(up);
}
