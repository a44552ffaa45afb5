#include "model/config_keys.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

enum rule {
    PASSES,    /* understood elsewhere, or harmless */
    NULL_YES,  /* changes the result unless null */
    FALSE_YES, /* ... unless null or false */
    TRUE_YES,
    ZERO_YES, /* ... unless null or 0 */
    ONE_YES,
};

static const struct key {
    const char *name;
    enum rule rule;
} keys[] = {
    /* understood by model_config.c, rope_config.c, engram_config.c */
    {"architectures", PASSES},
    {"attention_bias", PASSES},
    {"bos_token_id", PASSES},
    {"engram", PASSES},
    {"eos_token_id", PASSES},
    {"head_dim", PASSES},
    {"hidden_act", PASSES},
    {"hidden_size", PASSES},
    {"intermediate_size", PASSES},
    {"layer_types", PASSES},
    {"max_position_embeddings", PASSES},
    {"max_window_layers", PASSES},
    {"mlp_bias", PASSES},
    {"model_type", PASSES},
    {"num_attention_heads", PASSES},
    {"num_hidden_layers", PASSES},
    {"num_key_value_heads", PASSES},
    {"original_max_position_embeddings", PASSES},
    {"rms_norm_eps", PASSES},
    {"rope_parameters", PASSES},
    {"rope_scaling", PASSES},
    {"rope_theta", PASSES},
    {"sliding_window", PASSES},
    {"tie_word_embeddings", PASSES},
    {"use_sliding_window", PASSES},
    {"vocab_size", PASSES},

    /* training, bookkeeping, and how other programs run the model */
    {"attention_dropout", PASSES},
    {"attn_implementation", PASSES},
    {"chunk_size_feed_forward", PASSES},
    {"dtype", PASSES},
    {"embd_pdrop", PASSES},
    {"finetuning_task", PASSES},
    {"gradient_checkpointing", PASSES},
    {"hidden_dropout", PASSES},
    {"id2label", PASSES},
    {"initializer_range", PASSES},
    {"is_decoder", PASSES},
    {"keys_to_ignore_at_inference", PASSES},
    {"label2id", PASSES},
    {"name_or_path", PASSES},
    {"output_attentions", PASSES},
    {"output_hidden_states", PASSES},
    {"pad_token_id", PASSES},
    {"prefix", PASSES},
    {"problem_type", PASSES},
    {"resid_pdrop", PASSES},
    {"return_dict", PASSES},
    {"sep_token_id", PASSES},
    {"task_specific_params", PASSES},
    {"tie_encoder_decoder", PASSES},
    {"tokenizer_class", PASSES},
    {"torch_dtype", PASSES},
    {"torchscript", PASSES},
    {"transformers_version", PASSES},
    {"unk_token_id", PASSES},
    {"use_bfloat16", PASSES},
    {"use_cache", PASSES},
    {"use_return_dict", PASSES},

    /* weights stored in another form */
    {"adapter_config", NULL_YES},
    {"compression_config", NULL_YES},
    {"pruned_heads", NULL_YES},
    {"quantization", NULL_YES},
    {"quantization_config", NULL_YES},
    {"sparsity_config", NULL_YES},

    /* scaling of logits, scores, embeddings and residuals */
    {"attention_multiplier", NULL_YES},
    {"attn_logit_softcapping", NULL_YES},
    {"clip_qkv", NULL_YES},
    {"dim_model_base", NULL_YES},
    {"embedding_multiplier", ONE_YES},
    {"final_logit_softcapping", NULL_YES},
    {"logit_scale", ONE_YES},
    {"logit_softcapping", NULL_YES},
    {"logits_scaling", ONE_YES},
    {"query_pre_attn_scalar", NULL_YES},
    {"residual_multiplier", ONE_YES},
    {"scale_depth", NULL_YES},
    {"scale_emb", ONE_YES},
    {"swiglu_limit", NULL_YES},

    /* mixtures of experts */
    {"decoder_sparse_step", NULL_YES},
    {"first_k_dense_replace", ZERO_YES},
    {"mlp_layer_types", NULL_YES},
    {"moe_intermediate_size", ZERO_YES},
    {"moe_layer_freq", NULL_YES},
    {"n_routed_experts", ZERO_YES},
    {"n_shared_experts", ZERO_YES},
    {"num_experts", ZERO_YES},
    {"num_experts_per_tok", ZERO_YES},
    {"num_local_experts", ZERO_YES},
    {"shared_expert_intermediate_size", ZERO_YES},

    /* attention of another shape */
    {"add_cross_attention", FALSE_YES},
    {"alibi", FALSE_YES},
    {"attention_chunk_size", NULL_YES},
    {"attention_sink", NULL_YES},
    {"dual_chunk_attention_config", NULL_YES},
    {"is_causal", TRUE_YES},
    {"is_encoder_decoder", FALSE_YES},
    {"kv_lora_rank", NULL_YES},
    {"num_kv_shared_layers", ZERO_YES},
    {"no_rope_layer_interval", NULL_YES},
    {"no_rope_layers", NULL_YES},
    {"parallel_attn", FALSE_YES},
    {"q_lora_rank", NULL_YES},
    {"qk_layernorm", FALSE_YES},
    {"qk_nope_head_dim", NULL_YES},
    {"qk_rope_head_dim", NULL_YES},
    {"sliding_window_pattern", NULL_YES},
    {"use_alibi", FALSE_YES},
    {"use_parallel_residual", FALSE_YES},
    {"v_head_dim", NULL_YES},

    /* rotary positions */
    {"partial_rotary_factor", ONE_YES},
    {"rope_interleave", FALSE_YES},
    {"rope_interleaved", FALSE_YES},
    {"rope_local_base_freq", NULL_YES},
    {"rotary_dim", NULL_YES},
    {"rotary_pct", ONE_YES},

    /* biases no tensor role exists for, other modules, several models in one */
    {"add_bias", FALSE_YES},
    {"audio_config", NULL_YES},
    {"cross_layer_sharing", NULL_YES},
    {"hidden_activation", NULL_YES},
    {"hidden_size_per_layer_input", ZERO_YES},
    {"lm_head_bias", FALSE_YES},
    {"ngram_config", NULL_YES},
    {"norm_after", FALSE_YES},
    {"num_nextn_predict_layers", ZERO_YES},
    {"num_residual_streams", ONE_YES},
    {"per_layer_config", NULL_YES},
    {"ple_config", NULL_YES},
    {"pretraining_tp", ONE_YES},
    {"qkv_bias", FALSE_YES},
    {"text_config", NULL_YES},
    {"use_bias", FALSE_YES},
    {"vision_config", NULL_YES},
};

/* generation_config.json: understood, or no business of the sampler. */
static const char *const generation_keys[] = {"assistant_early_exit",
                                              "bos_token_id",
                                              "cache_implementation",
                                              "do_sample",
                                              "eos_token_id",
                                              "max_length",
                                              "max_new_tokens",
                                              "min_length",
                                              "min_p",
                                              "output_attentions",
                                              "output_hidden_states",
                                              "output_scores",
                                              "pad_token_id",
                                              "repetition_penalty",
                                              "return_dict_in_generate",
                                              "temperature",
                                              "top_k",
                                              "top_p",
                                              "transformers_version",
                                              "trust_remote_code",
                                              "use_cache"};

static bool
is_neutral(const json_t *value, enum rule rule)
{
    switch (rule) {
    case PASSES:
        return true;
    case NULL_YES:
        return false;
    case FALSE_YES:
        return json_is_false(value);
    case TRUE_YES:
        return json_is_true(value);
    case ZERO_YES:
        return json_is_number(value) && json_number_value(value) == 0;
    case ONE_YES:
        return json_is_number(value) && json_number_value(value) == 1;
    }
    return false;
}

/* Appends "prefix" "name"; once one did not fit, the list ends in "..." and stays as it is. */
static void
append_name(char *list, size_t size, const char *prefix, const char *name)
{
    static const char more[] = ", ...";
    size_t used = strlen(list), need = strlen(prefix) + strlen(name) + 2;
    if (used >= sizeof more - 1 && strcmp(list + used - (sizeof more - 1), more) == 0)
        return;
    if (used + need + sizeof more > size)
        (void)snprintf(list + used, size - used, "%s", used ? more : "...");
    else
        (void)snprintf(list + used, size - used, "%s%s%s", used ? ", " : "", prefix, name);
}

static const struct key *
find_key(const char *name)
{
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        if (strcmp(keys[i].name, name) == 0)
            return &keys[i];
    }
    return NULL;
}

int
config_keys_check(const json_t *config, char *unknown, size_t unknown_size, struct err *err)
{
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)config, name, value)
    {
        const struct key *key = find_key(name);
        if (json_is_null(value) || name[0] == '_')
            continue;
        if (!key)
            append_name(unknown, unknown_size, "", name);
        else if (!is_neutral(value, key->rule))
            return err_set(err, EBADMSG,
                           "config.json: %s: this would change the result and is not supported",
                           name);
    }
    return 0;
}

void
config_keys_check_generation(const json_t *generation, char *unknown, size_t unknown_size)
{
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)generation, name, value)
    {
        bool known = json_is_null(value) || name[0] == '_';
        for (size_t i = 0; !known && i < sizeof generation_keys / sizeof generation_keys[0]; i++)
            known = strcmp(generation_keys[i], name) == 0;
        if (!known)
            append_name(unknown, unknown_size, "generation_config.", name);
    }
}
