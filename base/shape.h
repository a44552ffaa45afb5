/* shape: the numbers that say what a model is, shared by model/ (which reads them) and gpu/ (which
 * computes with them). Plain values, no pointers into files. Source of each: config.json field in
 * brackets.                                                                                       */
#ifndef BASE_SHAPE_H
#define BASE_SHAPE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/dtype.h"

enum { SHAPE_MAX_LAYERS = 256, SHAPE_MAX_ENGRAM_LAYERS = 8, SHAPE_MAX_ORDER = 6,
       SHAPE_MAX_ORDERS = SHAPE_MAX_ORDER - 1, SHAPE_MAX_HEADS_PER_NGRAM = 32 };

enum model_family { FAMILY_QWEN3, FAMILY_LLAMA, FAMILY_ENGRAM };

enum rope_kind { ROPE_DEFAULT, ROPE_LINEAR, ROPE_YARN, ROPE_LLAMA3 };

struct rope_shape {
    enum rope_kind kind;
    double theta;                          /* [rope_theta] */
    double factor;                         /* [factor]: yarn, linear, llama3 */
    double original_max_position;          /* [original_max_position_embeddings] */
    double beta_fast, beta_slow;           /* yarn; defaults 32, 1 */
    double attention_factor;               /* yarn; 0 = derive from factor (mscale fields included) */
    double mscale, mscale_all_dim;         /* yarn; 0 = absent */
    double low_freq_factor, high_freq_factor; /* llama3 */
    bool truncate;                         /* yarn; default true */
};

/* One Engram layer's tables: C = (max_order - 1) * heads columns, order 2 heads 0.., then order 3, ... */
struct engram_table_shape {
    int layer;          /* decoder layer it precedes the attention of, zero-based [layer_ids] */
    int64_t rows;       /* of table.weight; the sum of all primes */
    int64_t prime[SHAPE_MAX_ORDERS][SHAPE_MAX_HEADS_PER_NGRAM];    /* [order - 2][head] */
    int64_t row_base[SHAPE_MAX_ORDERS][SHAPE_MAX_HEADS_PER_NGRAM]; /* first row of the column */
    int64_t multiplier[SHAPE_MAX_ORDER];                           /* m_0 .. m_{N-1} */
};

struct engram_shape {
    int n_layers; /* 0: the model has no Engram */
    int max_order;     /* N [max_ngram_size] */
    int heads;         /* H per order [heads_per_ngram] */
    int head_dim;      /* [head_dim] */
    int conv_kernel;   /* [conv_kernel_size]; dilation is N */
    float norm_eps;    /* of the two gate norms [norm_eps] */
    enum dtype table_dtype; /* F8_E4M3, BF16 or F32 [table_dtype] */
    int scale_group;   /* elements per F8_E8M0 scale; 0 without scales [table_scale_group] */
    int compressed_vocab; /* V_c [compressed_vocab_size] */
    int pad_id;        /* compressed id before the start of a sequence [pad_token_id] */
    struct engram_table_shape table[SHAPE_MAX_ENGRAM_LAYERS]; /* in order of layer */
};

struct model_shape {
    enum model_family family;
    int vocab;         /* [vocab_size] */
    int hidden;        /* D [hidden_size] */
    int layers;        /* [num_hidden_layers] */
    int heads;         /* query heads [num_attention_heads] */
    int kv_heads;      /* [num_key_value_heads] */
    int head_dim;      /* [head_dim], else hidden / heads */
    int intermediate;  /* [intermediate_size] */
    int max_position;  /* [max_position_embeddings] */
    float norm_eps;    /* [rms_norm_eps] */
    bool qk_norm;      /* qwen3, engram */
    bool tied_embeddings; /* [tie_word_embeddings] */
    bool attention_bias;  /* q, k, v, o have biases [attention_bias] */
    bool mlp_bias;        /* gate, up, down have biases [mlp_bias] */
    struct rope_shape rope;
    struct engram_shape engram;
};

/* Bytes of one row of a table: weight, then its scales. */
static inline int
engram_row_weight_bytes(const struct engram_shape *e)
{
    return e->head_dim * (int)dtype_size_bytes(e->table_dtype);
}
static inline int
engram_row_scale_bytes(const struct engram_shape *e)
{
    return e->scale_group ? e->head_dim / e->scale_group : 0;
}
/* A bundle: the H rows of one (layer, order, N-gram): all H weights, then all H scale rows. */
static inline int
engram_bundle_bytes(const struct engram_shape *e)
{
    return e->heads * (engram_row_weight_bytes(e) + engram_row_scale_bytes(e));
}

#endif
