/* bench_host_limits: what the CPUs of this machine do at most, measured now: all of them read memory in order, or
 * multiply and add in registers. The CPU backend reads BF16 weights once a step and computes in F32. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/pool.h"
#include "tools/bench.h"

#if __x86_64__
#include <immintrin.h>
#endif

enum { ROUNDS = 5, READ_BYTES = 512 << 20, TURNS = 1 << 20, SUMS = 12 };

struct sweep {
    const uint64_t *words;
    _Atomic uint64_t seen; /* for the compiler: what is read is used */
};

/* Not instrumented: it would measure that, for seconds. */
__attribute__((no_sanitize("address", "thread"))) static void
read_part(void *arg, int part, int n_parts)
{
    struct sweep *sweep = arg;
    long begin, end;
    uint64_t sum[16] = {0}, all = 0;

    pool_slice(READ_BYTES / 8, 16, part, n_parts, &begin, &end);
    for (long i = begin; i < end; i += 16)
        for (int k = 0; k < 16; k++)
            sum[k] += sweep->words[i + k];
    for (int k = 0; k < 16; k++)
        all += sum[k];
    atomic_fetch_add_explicit(&sweep->seen, all, memory_order_relaxed);
}

/* Each lane's sum stays finite: it converges to 1 / (1 - 0.5). */
#if __x86_64__
__attribute__((target("avx512f"))) static float
multiply_avx512(void)
{
    __m512 sum[SUMS], half = _mm512_set1_ps(0.5f), one = _mm512_set1_ps(1);
    float all = 0;

    for (int i = 0; i < SUMS; i++)
        sum[i] = _mm512_set1_ps((float)i);
    for (int turn = 0; turn < TURNS; turn++)
        for (int i = 0; i < SUMS; i++)
            sum[i] = _mm512_fmadd_ps(sum[i], half, one);
    for (int i = 0; i < SUMS; i++)
        all += _mm512_reduce_add_ps(sum[i]);
    return all;
}

__attribute__((target("avx2,fma"))) static float
multiply_avx2(void)
{
    __m256 sum[SUMS], half = _mm256_set1_ps(0.5f), one = _mm256_set1_ps(1);
    float all = 0;

    for (int i = 0; i < SUMS; i++)
        sum[i] = _mm256_set1_ps((float)i);
    for (int turn = 0; turn < TURNS; turn++)
        for (int i = 0; i < SUMS; i++)
            sum[i] = _mm256_fmadd_ps(sum[i], half, one);
    for (int i = 0; i < SUMS; i++)
        all += _mm256_cvtss_f32(sum[i]);
    return all;
}
#endif

typedef float four __attribute__((vector_size(16)));

static float
multiply_portable(void)
{
    four sum[SUMS];
    float all = 0;

    for (int i = 0; i < SUMS; i++)
        sum[i] = (four){(float)i, 1, 2, 3};
    for (int turn = 0; turn < TURNS; turn++)
        for (int i = 0; i < SUMS; i++)
            sum[i] = sum[i] * 0.5f + 1.0f;
    for (int i = 0; i < SUMS; i++)
        all += sum[i][0];
    return all;
}

struct products {
    float (*multiply)(void);
    int lanes;        /* numbers it takes at a time */
    _Atomic bool odd; /* for the compiler, likewise */
};

static void
multiply_part(void *arg, int part, int n_parts)
{
    struct products *products = arg;

    if (!(products->multiply() > 0))
        atomic_store_explicit(&products->odd, true, memory_order_relaxed);
}

/* Of several runs behind a first one, which wakes the threads and touches memory. */
static double
seconds_of(struct pool *pool, pool_fn fn, void *arg)
{
    double seconds[ROUNDS];

    pool_run(pool, fn, arg);
    for (int i = 0; i < ROUNDS; i++) {
        uint64_t begin = clock_now_ns();

        pool_run(pool, fn, arg);
        seconds[i] = (double)(clock_now_ns() - begin) * 1e-9;
    }
    return bench_median(seconds, ROUNDS);
}

int
bench_host_limits(struct bench_limits *ret_limits, struct err *err)
{
    struct products products = {multiply_portable, 4, false};
    struct sweep sweep = {0};
    struct pool *pool;
    int result = pool_new(&pool, 0, err);

    if (result < 0)
        return result;
    void *memory = malloc(READ_BYTES);
    if (!memory) {
        (void)pool_free(pool);
        return err_set(err, ENOMEM, "no memory to measure its bandwidth with");
    }
    memset(memory, 1, READ_BYTES); /* pages that were never written are one and the same */
    sweep.words = memory;
#if __x86_64__
    if (__builtin_cpu_supports("avx512f"))
        products = (struct products){multiply_avx512, 16, false};
    else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        products = (struct products){multiply_avx2, 8, false};
#endif
    double read_s = seconds_of(pool, read_part, &sweep);
    double multiply_s = seconds_of(pool, multiply_part, &products);

    *ret_limits = (struct bench_limits){
        .read_bytes_per_s = READ_BYTES / read_s,
        .flop_per_s = 2.0 * products.lanes * SUMS * TURNS * pool_threads(pool) / multiply_s,
    };
    free(memory);
    (void)pool_free(pool);
    return 0;
}
