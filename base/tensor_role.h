/* tensor_role: what a checkpoint tensor is for. model/ maps names to roles, gpu/ takes tensors by role.
 * Shapes are row-major, [out, in] for projections, as in the checkpoint.                            */
#ifndef BASE_TENSOR_ROLE_H
#define BASE_TENSOR_ROLE_H

enum tensor_role {
    ROLE_EMBED,        /* [vocab, hidden] */
    ROLE_FINAL_NORM,   /* [hidden] */
    ROLE_LM_HEAD,      /* [vocab, hidden]; absent when tied */
    ROLE_ATTN_NORM,    /* [hidden]; per layer from here on */
    ROLE_Q,            /* [heads * head_dim, hidden] */
    ROLE_K,            /* [kv_heads * head_dim, hidden] */
    ROLE_V,
    ROLE_O,            /* [hidden, heads * head_dim] */
    ROLE_Q_BIAS,
    ROLE_K_BIAS,
    ROLE_V_BIAS,
    ROLE_O_BIAS,
    ROLE_Q_NORM,       /* [head_dim] */
    ROLE_K_NORM,
    ROLE_MLP_NORM,     /* [hidden] */
    ROLE_GATE,         /* [intermediate, hidden] */
    ROLE_UP,
    ROLE_DOWN,         /* [hidden, intermediate] */
    ROLE_GATE_BIAS,
    ROLE_UP_BIAS,
    ROLE_DOWN_BIAS,
    ROLE_ENGRAM_KEY,        /* [M * hidden, C * head_dim] */
    ROLE_ENGRAM_KEY_BIAS,   /* [M * hidden] */
    ROLE_ENGRAM_VALUE,      /* [hidden, C * head_dim] */
    ROLE_ENGRAM_VALUE_BIAS, /* [hidden] */
    ROLE_ENGRAM_KEY_NORM,   /* [M, hidden] */
    ROLE_ENGRAM_QUERY_NORM, /* [M, hidden] */
    ROLE_ENGRAM_CONV_NORM,  /* [M, hidden] */
    ROLE_ENGRAM_CONV,       /* [M * hidden, kernel] */
    ROLE_COUNT,
    ROLE_ENGRAM_TABLE = ROLE_COUNT, /* [rows, head_dim]; stays on disk, never loaded */
    ROLE_ENGRAM_SCALE,              /* [rows, head_dim / scale_group] */
};

#endif
