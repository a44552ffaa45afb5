#include "tools/bench_corpus.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "model/compressed_ids.h"
#include "model/ngram_hash.h"
#include "model/tokenizer.h"

void
bench_corpus_read(struct bench_corpus *c, const char *text_path, const char *tokenizer_path,
                  const struct model_shape *shape)
{
    struct tokenizer *tokenizer;
    struct err err = ERR_INIT;
    FILE *file = fopen(text_path, "re");
    size_t room = 64 << 20, size;
    char *bytes = malloc(room);
    int count;

    if (file == NULL) {
        fprintf(stderr, "engram-bench: %s: %s\n", text_path, strerror(errno));
        exit(1);
    }
    ASSERT(bytes);
    size = fread(bytes, 1, room, file);
    fclose(file);
    if (tokenizer_load(&tokenizer, tokenizer_path, shape->vocab, &err) < 0)
        bench_fail(tokenizer_path, &err);
    c->n_ids = tokenizer_encode(tokenizer, bytes, size, 0, &c->ids, &err);
    if (c->n_ids < 0)
        bench_fail(text_path, &err);
    c->compressed = calloc((size_t)shape->vocab, sizeof *c->compressed);
    ASSERT(c->compressed);
    if (compressed_ids_build(tokenizer, shape->vocab, shape->engram.pad_id, c->compressed, &count,
                             &err) < 0)
        bench_fail(tokenizer_path, &err);
    tokenizer_free(tokenizer);
    free(bytes);
}

void
bench_corpus_free(struct bench_corpus *c)
{
    free(c->ids);
    free(c->compressed);
    *c = (struct bench_corpus){0};
}

enum dtype
bench_table_dtype(const char *name)
{
    if (strcmp(name, "fp8") == 0)
        return DTYPE_F8_E4M3;
    if (strcmp(name, "bf16") == 0)
        return DTYPE_BF16;
    fprintf(stderr, "engram-bench: '%s' is not fp8 or bf16\n", name);
    exit(BENCH_USAGE);
}

void
bench_add_engram(struct model_shape *s, enum dtype dtype, double params, int heads, int head_dim,
                 int layer)
{
    int64_t rows = (int64_t)(params / head_dim / (2.0 * heads));
    int64_t size[SHAPE_MAX_ORDERS] = {rows, rows};
    struct err err = ERR_INIT;

    s->engram = (struct engram_shape){.n_layers = 1,
                                      .max_order = 3,
                                      .heads = heads,
                                      .head_dim = head_dim,
                                      .conv_kernel = 4,
                                      .norm_eps = 1e-5f,
                                      .table_dtype = dtype,
                                      .compressed_vocab = s->vocab};
    s->engram.table[0].layer = layer;
    if (layer >= s->layers)
        (void)err_set(&err, EINVAL, "layer %d of a model of %d", layer, s->layers);
    else if (ngram_hash_derive(&s->engram, 1, size, &err) == 0)
        return;
    bench_fail("the Engram layer", &err);
}
