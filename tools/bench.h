/* bench: what the commands of engram-bench share. A command prints one table or, with --json, one
 * object a line, and returns the exit code. */
#ifndef TOOLS_BENCH_H
#define TOOLS_BENCH_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/shape.h"
#include "gpu/cuda/counters.h"
#include "gpu/forward.h"

enum { BENCH_USAGE = 64 };

int bench_serve(int argc, char **argv);
int bench_decode(int argc, char **argv);
int bench_prefill(int argc, char **argv);
int bench_text(int argc, char **argv);
int bench_rows(int argc, char **argv);

/* A number from least to most, or exit 64 with a message. */
int bench_number(const char *text, int least, int most);
void bench_fail(const char *what, const struct err *err) __attribute__((noreturn));

/* Backbones by name: qwen3-0.6b, qwen3-4b, qwen3-8b (their config.json) and tiny, for tests. -EINVAL
 * names those there are. */
int bench_shape(const char *name, struct model_shape *ret_shape, struct err *err);

/* Bytes of the weights a decode step reads, whatever its rows: all but the embedding, of which it
 * reads a row each; with tied embeddings the table is the head, and counts. */
uint64_t bench_weight_bytes(const struct model_shape *shape);
/* Bytes of keys and values of one token of all layers, as this device keeps them. */
uint64_t bench_kv_bytes(const struct device *device, const struct model_shape *shape);
/* Multiply-adds times two of a token's products with weights, without the head. */
double bench_token_flop(const struct model_shape *shape);

/* "cpu", "cuda:N" or "auto". */
int bench_device(const char *name, struct device **ret_device, struct err *err);
/* The machine in words: the device, the host's CPUs, its memory. Static. */
const char *bench_device_text(const struct device *device);

/* The limits of the device, measured now. A model that fits the CPUs' caches may beat
 * theirs: memory is read in order, 512 MiB of it. */
struct bench_limits {
    double read_bytes_per_s;
    double flop_per_s;            /* BF16 with F32 sums on a GPU, F32 on the CPU */
    double to_device_bytes_per_s; /* from pinned memory; the CPU: 0 */
};
int bench_host_limits(struct bench_limits *ret_limits, struct err *err);
int bench_limits(struct device *device, struct bench_limits *ret_limits, struct err *err);

/* The least seconds that `steps` steps can take: weights once a step and the KV cache at the bandwidth, the
 * prompts' products at the matrix rate. context: tokens in the KV cache, summed over the decode rows. */
double bench_least_seconds(const struct device *device, const struct model_shape *shape,
                           const struct bench_limits *limits, double steps, double context,
                           double prompt_tokens);
/* least_s of seconds: a number for JSON, percent for a table. */
const char *bench_share_text(double least_s, double seconds, bool json, char *text, size_t size);

/* What a GPU has counted of its steps; false, and zeros, for another device. */
bool bench_counters(struct device *device, struct cuda_counters *ret_counters);

double bench_median(double *values, int n); /* sorts */

#endif
