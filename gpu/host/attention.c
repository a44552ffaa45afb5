/* attention: paged KV cache and causal attention on the CPU.
 *
 * A page holds all layers: [layer][k, v][kv_head][token][head_dim], F32. Attention of one query
 * vector walks the positions in blocks of HOST_KEY_BLOCK from position 0 with a running maximum and
 * sum (the online softmax); the arithmetic of a query depends on its own position and nothing else.
 * Query vectors that share a KV head (of one row, and of neighbouring rows of a prefill segment)
 * walk together so that keys and values are read once. The pool splits (tile of rows, KV head)
 * pairs.   */
#include <math.h>
#include <string.h>

#include "base/check.h"
#include "gpu/host/host_state.h"

size_t
host_kv_page_bytes(const struct device *dev, const struct model_shape *shape, int page_tokens)
{
    return (size_t)shape->layers * 2 * (size_t)shape->kv_heads * (size_t)shape->head_dim *
           (size_t)page_tokens * sizeof(float);
}

/* Where the tokens of one (page, layer, k or v, head) start. */
static float *
kv_at(const struct kv_cache *kv, int32_t page, int layer, int is_v, int head)
{
    size_t block = (size_t)kv->page_tokens * (size_t)kv->head_dim;
    size_t index = (((size_t)page * (size_t)kv->layers + (size_t)layer) * 2 + (size_t)is_v) *
                       (size_t)kv->kv_heads +
                   (size_t)head;

    ASSERT(page >= 0 && page < kv->n_pages);
    return (float *)kv->data + index * block;
}

struct write_args {
    const struct kv_cache *kv;
    int layer;
    const float *k, *v;
    const struct batch *batch;
};

static void
write_part(void *arg, int part, int n_parts)
{
    struct write_args *a = arg;
    const struct kv_cache *kv = a->kv;
    size_t dim = (size_t)kv->head_dim;
    long begin, end;

    pool_slice(a->batch->n_rows, 1, part, n_parts, &begin, &end);
    for (long r = begin; r < end; r++) {
        const struct batch_seq *seq = &a->batch->seq[a->batch->row_seq[r]];
        int32_t position = a->batch->position[r];
        int32_t page = seq->pages[position / kv->page_tokens];
        size_t slot = (size_t)(position % kv->page_tokens) * dim;
        for (int h = 0; h < kv->kv_heads; h++) {
            size_t from = ((size_t)r * (size_t)kv->kv_heads + (size_t)h) * dim;
            memcpy(kv_at(kv, page, a->layer, 0, h) + slot, a->k + from, dim * sizeof *a->k);
            memcpy(kv_at(kv, page, a->layer, 1, h) + slot, a->v + from, dim * sizeof *a->v);
        }
    }
}

int
host_kv_write(struct device *dev, const struct kv_cache *kv, int layer, const void *k,
              const void *v, const struct batch *batch, struct stream *stream)
{
    struct write_args a = {kv, layer, k, v, batch};

    host_run(host_of(dev), write_part, &a, 0.2 * batch->n_rows * kv->kv_heads * kv->head_dim);
    return 0;
}

int
host_kv_copy_page(struct device *dev, const struct kv_cache *kv, int dst_page, int src_page,
                  struct stream *stream)
{
    size_t page = (size_t)kv->layers * 2 * (size_t)kv->kv_heads * (size_t)kv->head_dim *
                  (size_t)kv->page_tokens;

    ASSERT(dst_page >= 0 && dst_page < kv->n_pages && src_page >= 0 && src_page < kv->n_pages);
    if (dst_page != src_page)
        memcpy((float *)kv->data + (size_t)dst_page * page,
               (const float *)kv->data + (size_t)src_page * page, page * sizeof(float));
    return 0;
}

struct attention_args {
    float *out;
    const float *q;
    const struct kv_cache *kv;
    int layer, heads;
    const struct batch *batch;
    struct host_device *host;
    int group;       /* query heads of one KV head */
    int tile_rows;   /* rows of a tile */
    int group_tiles; /* tiles one row's group is cut into when it is wider than HOST_QUERY_TILE */
};

/* The query vectors of one tile: n_rows rows from first_row, heads first_head.. of the KV head. */
struct query_tile {
    const struct batch_seq *seq;
    int first_row, n_rows, kv_head, first_head, n_heads;
};

/* Scores of all queries of the tile against positions [begin, end). */
static void
score_block(const struct attention_args *a, const struct query_tile *t, struct host_scratch *s,
            int begin, int end)
{
    const struct kv_cache *kv = a->kv;

    for (int p = begin; p < end;) {
        int slot = p % kv->page_tokens, n = kv->page_tokens - slot;
        n = n < end - p ? n : end - p;
        struct dot_args dots = {
            .out = s->score + (p - begin),
            .out_stride = HOST_KEY_BLOCK,
            .x = s->query,
            .x_stride = kv->head_dim,
            .n_rows = t->n_rows * t->n_heads,
            .w = kv_at(kv, t->seq->pages[p / kv->page_tokens], a->layer, 0, t->kv_head) +
                 (size_t)slot * (size_t)kv->head_dim,
            .w_stride = kv->head_dim,
            .n_cols = n,
            .k = kv->head_dim,
        };
        a->host->kernels->dot_f32(&dots);
        p += n;
    }
}

/* Adds the values of positions [begin, begin + n_keys) to queries first..first + n_q, weighted. */
static void
mix_block(const struct attention_args *a, const struct query_tile *t, struct host_scratch *s,
          int first, int n_q, int begin, int n_keys, float *keep)
{
    const struct kv_cache *kv = a->kv;
    static const float one[HOST_QUERY_TILE] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    const float *factor = keep + first;

    for (int p = begin; p < begin + n_keys;) {
        int slot = p % kv->page_tokens, n = kv->page_tokens - slot;
        n = n < begin + n_keys - p ? n : begin + n_keys - p;
        a->host->kernels->mix(
            s->value + first * kv->head_dim, kv->head_dim, factor, n_q,
            s->score + first * HOST_KEY_BLOCK + (p - begin), HOST_KEY_BLOCK,
            kv_at(kv, t->seq->pages[p / kv->page_tokens], a->layer, 1, t->kv_head) +
                (size_t)slot * (size_t)kv->head_dim,
            kv->head_dim, n, kv->head_dim);
        factor = one;
        p += n;
    }
}

static void
attend_tile(const struct attention_args *a, const struct query_tile *t, struct host_scratch *s)
{
    int dim = a->kv->head_dim, n_q = t->n_rows * t->n_heads;
    float scale = 1.0f / sqrtf((float)dim);
    float maximum[HOST_QUERY_TILE], keep[HOST_QUERY_TILE];
    double sum[HOST_QUERY_TILE];
    int last = a->batch->position[t->first_row + t->n_rows - 1];

    for (int r = 0; r < t->n_rows; r++)
        a->host->kernels->scale(
            s->query + r * t->n_heads * dim,
            a->q + ((size_t)(t->first_row + r) * (size_t)a->heads + (size_t)t->first_head) *
                       (size_t)dim,
            scale, (size_t)t->n_heads * (size_t)dim);
    memset(s->value, 0, (size_t)n_q * (size_t)dim * sizeof *s->value);
    for (int i = 0; i < n_q; i++) {
        maximum[i] = -INFINITY;
        sum[i] = 0;
    }
    for (int begin = 0; begin <= last; begin += HOST_KEY_BLOCK) {
        int end = last + 1 - begin < HOST_KEY_BLOCK ? last + 1 : begin + HOST_KEY_BLOCK;
        score_block(a, t, s, begin, end);
        for (int i = 0; i < n_q; i++) {
            int position = a->batch->position[t->first_row + i / t->n_heads];
            int n = position + 1 < end ? position + 1 - begin : end - begin;
            float *score = s->score + i * HOST_KEY_BLOCK, before = maximum[i];
            bool finite;
            if (n <= 0)
                continue;
            float top = a->host->kernels->max(score, (size_t)n, &finite);
            maximum[i] = top > before ? top : before;
            a->host->kernels->exp_sum(&keep[i], &before, 1, maximum[i], 1.0f);
            sum[i] = sum[i] * (double)keep[i] +
                     a->host->kernels->exp_sum(score, score, (size_t)n, maximum[i], 1.0f);
        }
        int first_position = a->batch->position[t->first_row];
        if (first_position + 1 >= end) {
            mix_block(a, t, s, 0, n_q, begin, end - begin, keep);
            continue;
        }
        /* The block on the diagonal: each row has its own number of keys. */
        for (int r = 0; r < t->n_rows; r++) {
            int n = first_position + r + 1 < end ? first_position + r + 1 - begin : end - begin;
            if (n > 0)
                mix_block(a, t, s, r * t->n_heads, t->n_heads, begin, n, keep);
        }
    }
    for (int i = 0; i < n_q; i++) {
        size_t row = (size_t)(t->first_row + i / t->n_heads);
        size_t head = (size_t)(t->first_head + i % t->n_heads);
        a->host->kernels->scale(a->out + (row * (size_t)a->heads + head) * (size_t)dim,
                                s->value + i * dim, (float)(1.0 / sum[i]), (size_t)dim);
    }
}

/* Tiles are numbered by sequence, row tile, KV head and group tile; a part takes every n_parts-th,
 * so that the long tiles at the end of a segment are shared out. */
static void
attention_part(void *arg, int part, int n_parts)
{
    struct attention_args *a = arg;
    long item = 0;

    for (int i = 0; i < a->batch->n_seqs; i++) {
        const struct batch_seq *seq = &a->batch->seq[i];
        for (int row = 0; row < seq->n_rows; row += a->tile_rows) {
            int n_rows = seq->n_rows - row < a->tile_rows ? seq->n_rows - row : a->tile_rows;
            for (int h = 0; h < a->kv->kv_heads * a->group_tiles; h++, item++) {
                if (item % n_parts != part)
                    continue;
                int width = (a->group + a->group_tiles - 1) / a->group_tiles;
                int head = h % a->group_tiles * width, kv_head = h / a->group_tiles;
                struct query_tile t = {
                    .seq = seq,
                    .first_row = seq->first_row + row,
                    .n_rows = n_rows,
                    .kv_head = kv_head,
                    .first_head = kv_head * a->group + head,
                    .n_heads = a->group - head < width ? a->group - head : width,
                };
                if (t.n_heads > 0)
                    attend_tile(a, &t, &a->host->scratch[part]);
            }
        }
    }
}

int
host_attention(struct device *dev, void *out, const void *q, const struct kv_cache *kv, int layer,
               const struct model_shape *shape, const struct batch *batch, struct stream *stream)
{
    struct host_device *host = host_of(dev);
    int group = shape->heads / shape->kv_heads;
    struct attention_args a = {
        .out = out,
        .q = q,
        .kv = kv,
        .layer = layer,
        .heads = shape->heads,
        .batch = batch,
        .host = host,
        .group = group,
        .tile_rows = group < HOST_QUERY_TILE ? HOST_QUERY_TILE / group : 1,
        .group_tiles = (group + HOST_QUERY_TILE - 1) / HOST_QUERY_TILE,
    };
    double work = 0;
    long n_tiles = 0;

    ASSERT(kv->head_dim <= HOST_MAX_HEAD_DIM);
    for (int i = 0; i < batch->n_seqs; i++) {
        n_tiles += (long)(batch->seq[i].n_rows + a.tile_rows - 1) / a.tile_rows * kv->kv_heads;
        work += 0.1 * batch->seq[i].n_rows * (batch->seq[i].context + batch->seq[i].n_rows) *
                shape->heads * shape->head_dim;
    }
    /* Few rows on many threads: heads of a group part, and read the same keys twice. */
    while (n_tiles * a.group_tiles < host->n_threads && a.group_tiles < group)
        a.group_tiles = 2 * a.group_tiles < group ? 2 * a.group_tiles : group;
    host_run(host, attention_part, &a, work);
    return 0;
}
