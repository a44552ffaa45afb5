/* gemm: products of many rows with BF16 weights, by cuBLASLt.
 *
 * Row-major out [m, n] = x [m, k] w^T is column-major out^T [n, m] = w [n, k] x^T: w is the first
 * operand, transposed. A plan is cuBLASLt's first choice, found without running anything: a choice by
 * timing would differ between two runs, and so would the bits. The choice is made for the largest of a bucket of
 * numbers of rows and serves all of them, so that all there are can be made, and their kernels loaded, before the
 * first step (cuda_warm_up). Which plan m rows get depends on the shape and on m, never on what was asked before.
 *
 * An algorithm is promised for the sizes it was chosen for. For others cublasLtMatmulAlgoCheck says whether it can
 * be run; it is asked when m changes, and all layers of a step have the same. Where it says no, m has a plan of
 * its own. Plans are kept for the life of the device. Thread: engine; before the first step whoever warms up. */
#include <stdlib.h>
#include <string.h>

#include "gpu/cuda/cuda_state.h"

#include <cublasLt.h>

enum {
    PLAN_SLOTS = 2048, /* a power of two */
    MOST_PLANS = PLAN_SLOTS / 4 * 3,
    WORKSPACE_BYTES = 64 << 20,
    ALIGNMENT = 16,
};

struct plan_key {
    int64_t m; /* the largest of a bucket; of a plan for one m alone: any other */
    int64_t n, k, ld_out;
    int32_t f32_out, accumulate;
};

struct plan {
    struct plan_key key; /* m 0: a slot without a plan */
    bool simple;         /* cuBLASLt has nothing for it: simple_kernel */
    bool fits;           /* the algorithm can do m rows */
    int64_t m;           /* which x and out are laid out for */
    cublasLtMatmulDescOpaque_t product;
    cublasLtMatrixLayoutOpaque_t w, x, out;
    cublasLtMatmulAlgo_t algorithm;
};

struct cuda_gemms {
    cublasLtHandle_t handle;
    void *workspace;
    struct plan plan[PLAN_SLOTS]; /* a hash table */
    int n_plans;
};

/* Shapes whose rows are not 16-byte aligned, which cuBLASLt may refuse: a thread an element. */
__global__ static void
simple_kernel(void *out, int64_t ld_out, bool f32_out, bool accumulate, const __nv_bfloat16 *x,
              const __nv_bfloat16 *w, int64_t n, int64_t k)
{
    int64_t c = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, r = blockIdx.y;
    float sum = 0;

    dependency_wait();
    if (c >= n)
        return;
    for (int64_t i = 0; i < k; i++)
        sum += __bfloat162float(x[r * k + i]) * __bfloat162float(w[c * k + i]);
    if (f32_out) {
        float *to = (float *)out + r * ld_out + c;
        *to = accumulate ? *to + sum : sum;
    } else {
        __nv_bfloat16 *to = (__nv_bfloat16 *)out + r * ld_out + c;
        *to = __float2bfloat16(accumulate ? __bfloat162float(*to) + sum : sum);
    }
}

int
cuda_gemms_new(struct cuda_gemms **ret_gemms, struct cuda_device *cuda)
{
    struct cuda_gemms *g = (struct cuda_gemms *)calloc(1, sizeof *g);

    if (!g)
        return -ENOMEM;
    if (cublasLtCreate(&g->handle) != CUBLAS_STATUS_SUCCESS ||
        cudaMalloc(&g->workspace, WORKSPACE_BYTES) != cudaSuccess) {
        (void)cuda_gemms_free(g);
        return -EIO;
    }
    LOAD_KERNELS(cuda, simple_kernel);
    *ret_gemms = g;
    return 0;
}

struct cuda_gemms *
cuda_gemms_free(struct cuda_gemms *g)
{
    if (!g)
        return NULL;
    if (g->handle)
        (void)cublasLtDestroy(g->handle);
    (void)cudaFree(g->workspace);
    free(g);
    return NULL;
}

int64_t
cuda_gemm_bucket(int64_t m)
{
    int64_t power = 1;

    while (power * 2 <= m)
        power *= 2;
    if (m <= 8)
        return power < m ? power * 2 : m;
    int64_t step = power > 64 ? power / 8 : 8;
    return (m + step - 1) / step * step;
}

static bool
lay_out(struct plan *p, int64_t m)
{
    const struct plan_key *key = &p->key;
    cudaDataType_t out_type = key->f32_out ? CUDA_R_32F : CUDA_R_16BF;

    p->m = m;
    return cublasLtMatrixLayoutInit(&p->x, CUDA_R_16BF, (uint64_t)key->k, (uint64_t)m, key->k) ==
               CUBLAS_STATUS_SUCCESS &&
           cublasLtMatrixLayoutInit(&p->out, out_type, (uint64_t)key->n, (uint64_t)m,
                                    key->ld_out) == CUBLAS_STATUS_SUCCESS;
}

static bool
choose_algorithm(struct cuda_gemms *g, struct plan *p)
{
    static const cublasLtMatmulPreferenceAttributes_t alignments[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    const struct plan_key *key = &p->key;
    cublasOperation_t turned = CUBLAS_OP_T;
    cublasLtMatmulPreferenceOpaque_t preference;
    cublasLtMatmulHeuristicResult_t found = {};
    uint64_t workspace = WORKSPACE_BYTES;
    uint32_t alignment = ALIGNMENT;
    int n_found = 0;
    bool ok = cublasLtMatmulDescInit(&p->product, CUBLAS_COMPUTE_32F, CUDA_R_32F) ==
                  CUBLAS_STATUS_SUCCESS &&
              cublasLtMatmulDescSetAttribute(&p->product, CUBLASLT_MATMUL_DESC_TRANSA, &turned,
                                             sizeof turned) == CUBLAS_STATUS_SUCCESS &&
              cublasLtMatrixLayoutInit(&p->w, CUDA_R_16BF, (uint64_t)key->k, (uint64_t)key->n,
                                       key->k) == CUBLAS_STATUS_SUCCESS &&
              lay_out(p, key->m) &&
              cublasLtMatmulPreferenceInit(&preference) == CUBLAS_STATUS_SUCCESS;

    for (int i = 0; i < 4 && ok; i++)
        ok = cublasLtMatmulPreferenceSetAttribute(&preference, alignments[i], &alignment,
                                                  sizeof alignment) == CUBLAS_STATUS_SUCCESS;
    ok =
        ok &&
        cublasLtMatmulPreferenceSetAttribute(&preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                             &workspace,
                                             sizeof workspace) == CUBLAS_STATUS_SUCCESS &&
        cublasLtMatmulAlgoGetHeuristic(g->handle, &p->product, &p->w, &p->x, &p->out, &p->out,
                                       &preference, 1, &found, &n_found) == CUBLAS_STATUS_SUCCESS &&
        n_found == 1;
    p->algorithm = found.algo;
    return ok;
}

static uint32_t
slot_of(const struct plan_key *key)
{
    uint64_t x = (uint64_t)key->m;

    x = x * 1000003 + (uint64_t)key->n;
    x = x * 1000003 + (uint64_t)key->k;
    x = x * 1000003 + (uint64_t)key->ld_out;
    x = x * 1000003 + (uint64_t)(key->f32_out * 2 + key->accumulate);
    return (uint32_t)((x * 0x9e3779b97f4a7c15u) >> 32);
}

/* The plan of this key, made if there is none. */
static struct plan *
find_plan(struct cuda_device *cuda, const struct plan_key *key)
{
    struct cuda_gemms *g = cuda->gemms;
    uint32_t at = slot_of(key) % PLAN_SLOTS;

    for (; g->plan[at].key.m; at = (at + 1) % PLAN_SLOTS)
        if (memcmp(&g->plan[at].key, key, sizeof *key) == 0)
            return &g->plan[at];
    if (g->n_plans == MOST_PLANS) { /* more than any model has */
        memset(g->plan, 0, sizeof g->plan);
        g->n_plans = 0;
        at = slot_of(key) % PLAN_SLOTS;
    }
    struct plan *p = &g->plan[at];
    bool aligned = key->k % 8 == 0 && key->ld_out % (key->f32_out ? 4 : 8) == 0;

    p->key = *key;
    p->simple = !aligned || !choose_algorithm(g, p);
    p->fits = true;
    g->n_plans++;
    cuda->plans_made++;
    cuda->plans_late += cuda->in_step;
    return p;
}

/* Lays the plan out for m rows; whether its algorithm can do that many. */
static bool
fit_plan(struct cuda_gemms *g, struct plan *p, int64_t m)
{
    cublasLtMatmulHeuristicResult_t result = {};

    if (p->m != m)
        p->fits = lay_out(p, m) &&
                  cublasLtMatmulAlgoCheck(g->handle, &p->product, &p->w, &p->x, &p->out, &p->out,
                                          &p->algorithm, &result) == CUBLAS_STATUS_SUCCESS &&
                  result.workspaceSize <= WORKSPACE_BYTES;
    return p->fits;
}

static struct plan *
plan_for(struct cuda_device *cuda, const struct plan_key *key)
{
    struct plan_key largest = *key;

    largest.m = cuda_gemm_bucket(key->m);
    struct plan *p = find_plan(cuda, &largest);
    return p->simple || fit_plan(cuda->gemms, p, key->m) ? p : find_plan(cuda, key);
}

int
cuda_gemm(struct cuda_device *cuda, void *out, int64_t ld_out, bool f32_out, bool accumulate,
          const void *x, const void *w, int64_t m, int64_t n, int64_t k)
{
    struct cuda_gemms *g = cuda->gemms;
    struct plan_key key = {m, n, k, ld_out, f32_out, accumulate};
    bool aligned = ((uintptr_t)out | (uintptr_t)x | (uintptr_t)w) % ALIGNMENT == 0;
    struct plan *p = plan_for(cuda, &key);

    if (p->simple || !aligned) {
        dim3 grid((unsigned)((n + 127) / 128), (unsigned)m);
        return LAUNCH(simple_kernel, grid, 128, 0, cuda->stream, out, ld_out, f32_out, accumulate,
                      (const __nv_bfloat16 *)x, (const __nv_bfloat16 *)w, n, k);
    }
    const float one = 1, beta = accumulate ? 1.0f : 0.0f;
    return cublasLtMatmul(g->handle, &p->product, &one, w, &p->w, x, &p->x, &beta, out, &p->out,
                          out, &p->out, &p->algorithm, g->workspace, WORKSPACE_BYTES,
                          cuda->stream) == CUBLAS_STATUS_SUCCESS
               ? 0
               : -EIO;
}
