/* model_config: config.json and generation_config.json, checked.
 *
 * Knows the families engram, qwen3 and llama (dense). A field that would change the arithmetic and
 * is not understood (another rope type, sliding window in use, quantization_config, another
 * activation) is an error that names it (model/config_keys.h). Multipliers and primes of the Engram
 * tables are derived here (model/ngram_hash.h).
 *
 * An absent field means what transformers 5 takes it to mean, but for the sizes (vocab_size,
 * hidden_size, num_hidden_layers, num_attention_heads, intermediate_size) and everything in
 * `engram`, which must be there. engram.pad_token_id is a compressed id. Tables stand in order of
 * layer in the shape; primes are dealt in the order of layer_ids.
 *
 * Of generation_config.json only the fields below count, and only where they are given; do_sample
 * does not (as in vLLM: a file that says false and no temperature still means temperature 1). */
#ifndef MODEL_MODEL_CONFIG_H
#define MODEL_MODEL_CONFIG_H

#include <stddef.h>

#include "base/err.h"
#include "base/shape.h"

enum { CONFIG_MAX_EOS = 16 };

struct model_config {
    struct model_shape shape;
    int n_eos;
    int eos[CONFIG_MAX_EOS]; /* token ids that end a completion; generation_config wins over config
                              */
    int bos;                 /* -1: none */
    /* Sampling defaults of generation_config.json; 1, 1, 0 and 0 where absent. */
    double temperature, top_p, min_p;
    int top_k;
    double repetition_penalty;
    /* Fields of both files that are neither understood nor known to be harmless, for a warning:
     * "a, b, generation_config.c"; ends in ", ..." when there are more. "" when there are none. */
    char unknown[512];
};

/* -EBADMSG: the file and the field are named in err. */
int model_config_read(struct model_config *ret_config, const char *folder, struct err *err);
/* The same from memory; generation may be NULL. For tests and the fuzzer. */
int model_config_parse(struct model_config *ret_config, const char *config, size_t config_size,
                       const char *generation, size_t generation_size, struct err *err);

#endif
