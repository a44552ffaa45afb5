/* bench_corpus: real text as token ids, and an Engram table shape for it. */
#ifndef TOOLS_BENCH_CORPUS_H
#define TOOLS_BENCH_CORPUS_H

#include "tools/bench.h"

struct bench_corpus {
    int32_t *ids;
    int64_t n_ids;
    int32_t *compressed; /* [vocab] */
};

/* At most 64 MiB of the file. Exits on failure. */
void bench_corpus_read(struct bench_corpus *corpus, const char *text_path,
                       const char *tokenizer_path, const struct model_shape *shape);
void bench_corpus_free(struct bench_corpus *corpus);

/* "fp8" or "bf16", or exit 64. */
enum dtype bench_table_dtype(const char *name);
/* One Engram layer of orders 2 and 3, without scales, the table of about `params` parameters. */
void bench_add_engram(struct model_shape *shape, enum dtype dtype, double params, int heads,
                      int head_dim, int layer);

#endif
