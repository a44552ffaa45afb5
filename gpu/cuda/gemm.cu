/* gemm: products of many rows with BF16 weights, by cuBLASLt.
 *
 * Row-major out [m, n] = x [m, k] w^T is column-major out^T [n, m] = w [n, k] x^T: w is the first
 * operand, transposed. A plan is cuBLASLt's first choice for a shape, found without running
 * anything: a choice by timing would differ between two runs, and so would the bits. Plans are kept for
 * the life of the device. Thread: engine. */
#include <stdlib.h>

#include "gpu/cuda/cuda_state.h"


#include <cublasLt.h>

enum { MAX_PLANS = 1024, WORKSPACE_BYTES = 64 << 20, ALIGNMENT = 16 };

struct plan_key {
    int64_t m, n, k, ld_out;
    int f32_out, accumulate;
};

struct plan {
    struct plan_key key;
    cublasLtMatmulDesc_t product;
    cublasLtMatrixLayout_t w, x, out;
    cublasLtMatmulAlgo_t algorithm;
    size_t workspace_bytes;
    bool simple; /* cuBLASLt has nothing for it: simple_kernel */
};

struct cuda_gemms {
    cublasLtHandle_t handle;
    void *workspace;
    struct plan plan[MAX_PLANS];
    int n_plans;
    unsigned next; /* to be replaced when all are taken */
};

static void
plan_free(struct plan *p)
{
    if (p->product)
        (void)cublasLtMatmulDescDestroy(p->product);
    if (p->w)
        (void)cublasLtMatrixLayoutDestroy(p->w);
    if (p->x)
        (void)cublasLtMatrixLayoutDestroy(p->x);
    if (p->out)
        (void)cublasLtMatrixLayoutDestroy(p->out);
    *p = {};
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
    *ret_gemms = g;
    return 0;
}

struct cuda_gemms *
cuda_gemms_free(struct cuda_gemms *g)
{
    if (!g)
        return NULL;
    for (int i = 0; i < g->n_plans; i++)
        plan_free(&g->plan[i]);
    if (g->handle)
        (void)cublasLtDestroy(g->handle);
    (void)cudaFree(g->workspace);
    free(g);
    return NULL;
}

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

static bool
make_plan(struct cuda_gemms *g, struct plan *p, const struct plan_key *key)
{
    cudaDataType_t out_type = key->f32_out ? CUDA_R_32F : CUDA_R_16BF;
    cublasOperation_t turned = CUBLAS_OP_T;
    cublasLtMatmulPreference_t preference = NULL;
    cublasLtMatmulHeuristicResult_t found = {};
    uint64_t workspace = WORKSPACE_BYTES;
    uint32_t alignment = ALIGNMENT;
    int n_found = 0;
    bool ok = cublasLtMatmulDescCreate(&p->product, CUBLAS_COMPUTE_32F, CUDA_R_32F) ==
                  CUBLAS_STATUS_SUCCESS &&
              cublasLtMatmulDescSetAttribute(p->product, CUBLASLT_MATMUL_DESC_TRANSA, &turned,
                                             sizeof turned) == CUBLAS_STATUS_SUCCESS &&
              cublasLtMatrixLayoutCreate(&p->w, CUDA_R_16BF, (uint64_t)key->k, (uint64_t)key->n,
                                         key->k) == CUBLAS_STATUS_SUCCESS &&
              cublasLtMatrixLayoutCreate(&p->x, CUDA_R_16BF, (uint64_t)key->k, (uint64_t)key->m,
                                         key->k) == CUBLAS_STATUS_SUCCESS &&
              cublasLtMatrixLayoutCreate(&p->out, out_type, (uint64_t)key->n, (uint64_t)key->m,
                                         key->ld_out) == CUBLAS_STATUS_SUCCESS &&
              cublasLtMatmulPreferenceCreate(&preference) == CUBLAS_STATUS_SUCCESS;
    static const cublasLtMatmulPreferenceAttributes_t alignments[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};

    for (int i = 0; i < 4 && ok; i++)
        ok = cublasLtMatmulPreferenceSetAttribute(preference, alignments[i], &alignment,
                                                  sizeof alignment) == CUBLAS_STATUS_SUCCESS;
    ok = ok &&
         cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                              &workspace,
                                              sizeof workspace) == CUBLAS_STATUS_SUCCESS &&
         cublasLtMatmulAlgoGetHeuristic(g->handle, p->product, p->w, p->x, p->out, p->out,
                                        preference, 1, &found, &n_found) == CUBLAS_STATUS_SUCCESS &&
         n_found == 1;
    if (preference)
        (void)cublasLtMatmulPreferenceDestroy(preference);
    p->algorithm = found.algo;
    p->workspace_bytes = found.workspaceSize;
    return ok;
}

static struct plan *
find_plan(struct cuda_gemms *g, const struct plan_key *key)
{
    for (int i = 0; i < g->n_plans; i++) {
        const struct plan_key *k = &g->plan[i].key;

        if (k->m == key->m && k->n == key->n && k->k == key->k && k->ld_out == key->ld_out &&
            k->f32_out == key->f32_out && k->accumulate == key->accumulate)
            return &g->plan[i];
    }
    struct plan *p =
        g->n_plans < MAX_PLANS ? &g->plan[g->n_plans++] : &g->plan[g->next++ % MAX_PLANS];
    plan_free(p);
    p->key = *key;
    bool aligned = key->k % 8 == 0 && key->ld_out % (key->f32_out ? 4 : 8) == 0;
    p->simple = !aligned || !make_plan(g, p, key);
    return p;
}

int
cuda_gemm(struct cuda_device *cuda, void *out, int64_t ld_out, bool f32_out, bool accumulate,
          const void *x, const void *w, int64_t m, int64_t n, int64_t k)
{
    struct cuda_gemms *g = cuda->gemms;
    struct plan_key key = {m, n, k, ld_out, f32_out, accumulate};
    bool aligned = ((uintptr_t)out | (uintptr_t)x | (uintptr_t)w) % ALIGNMENT == 0;
    struct plan *p = find_plan(g, &key);

    if (p->simple || !aligned) {
        dim3 grid((unsigned)((n + 127) / 128), (unsigned)m);
        return LAUNCH(simple_kernel, grid, 128, 0, cuda->stream, out, ld_out, f32_out, accumulate,
                      (const __nv_bfloat16 *)x, (const __nv_bfloat16 *)w, n, k);
    }
    const float one = 1, beta = accumulate ? 1.0f : 0.0f;
    return cublasLtMatmul(g->handle, p->product, &one, w, p->w, x, p->x, &beta, out, p->out, out,
                          p->out, &p->algorithm, g->workspace, p->workspace_bytes,
                          cuda->stream) == CUBLAS_STATUS_SUCCESS
               ? 0
               : -EIO;
}

