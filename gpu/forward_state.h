/* forward_state: what forward.c, forward_load.c, forward_memory.c, forward_warm_up.c and forward_weights.c share.
 * Private to the forward pass. Thread: engine. */
#ifndef GPU_FORWARD_STATE_H
#define GPU_FORWARD_STATE_H

#include <pthread.h>

#include "gpu/forward.h"

enum { FORWARD_MAX_HEAD_DIM = 512 };

/* Device memory of a step. Three groups of buffers are never alive together and share `wide`:
 * Engram (rows, key, value), attention (q, k, v, attended), feed-forward (gate, up). */
struct forward_scratch {
    float *x; /* [max_rows, hidden] the residual stream */
    void *h;  /* [max_rows, hidden] its normalised copy */
    void *wide;
    float *angles;                     /* [max_rows, head_dim] */
    float *u[SHAPE_MAX_ENGRAM_LAYERS]; /* [max_rows, hidden] until the end of the step */
    float *logits;                     /* [logit_rows, vocab] */
    float *sorted;                     /* [logit_rows, vocab] working memory of sampling */
    int logit_rows;
    size_t wide_bytes;
};

/* Sizes of the parts of scratch->wide, each rounded up to a cache line. */
struct wide_sizes {
    size_t rows, vector; /* Engram: gathered rows; key and value */
    size_t q, kv;        /* attention: q and attended; k and v */
    size_t intermediate; /* feed-forward: gate and up */
    size_t whole;
};

struct forward {
    struct device *device;
    struct model_shape shape;
    struct forward_limits limits;
    struct weight global[ROLE_COUNT];   /* the roles without a layer */
    struct weight (*layer)[ROLE_COUNT]; /* [shape.layers] */
    void *(*group)[ROLE_COUNT]; /* [shape.layers] memory of matrices that lie together, at the first
                                 * one's role */
    pthread_mutex_t lock;       /* of group, while loading */
    struct kv_cache kv;
    size_t kv_bytes, state_bytes; /* of the cache; of one Engram layer's states */
    float *state[SHAPE_MAX_ENGRAM_LAYERS];
    struct forward_scratch scratch;
    struct step_report *report; /* shared memory: of steps that bring none */
    uint64_t own_steps;
    double inv_freq[FORWARD_MAX_HEAD_DIM / 2], attention_scale;
};

struct wide_sizes forward_wide_sizes(const struct device *dev, const struct model_shape *s,
                                     int max_rows);
/* Bytes of one state slot of one Engram layer. */
size_t forward_ring_bytes(const struct model_shape *s);
/* Rows and columns of a weight of this shape (vectors: 1 row); false when the model has none. */
bool forward_weight_shape(const struct model_shape *shape, enum tensor_role role, int layer,
                          int *ret_rows, int *ret_cols);
/* True: kept as BF16 when it comes as BF16. The others are kept as F32. */
bool forward_is_matrix(enum tensor_role role);
/* The place of a weight in the forward pass. */
struct weight *forward_weight(struct forward *forward, enum tensor_role role, int layer);
/* What the operations want of a layer. */
struct qkv_weights forward_qkv_weights(const struct forward *forward, int layer);
struct feed_forward_weights forward_feed_forward_weights(const struct forward *forward, int layer);
struct weight forward_head(const struct forward *forward);
extern const char *const forward_role_name[ROLE_COUNT]; /* for errors */
size_t forward_weight_bytes(const struct weight *w);
/* Takes the memory of a weight that comes as dtype, and says where it is to go and as what; -EINVAL
 * when the model has none or it is there already. Thread: any. */
int forward_place_weight(struct forward *forward, enum tensor_role role, int layer,
                         enum dtype dtype, struct weight *ret_weight, struct err *err);
/* The memory goes back, but for that of a group: forward_weights_free. */
void forward_give_weight_back(struct forward *forward, enum tensor_role role,
                              const struct weight *w);
/* Index into shape->engram.table of the table in front of this layer, or -1. */
int forward_engram_index(const struct model_shape *shape, int layer);
void forward_weights_free(struct forward *forward);

#endif
