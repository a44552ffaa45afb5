"""Make the golden model vectors: tiny random checkpoints and what PyTorch says of them.

    python3 make_golden.py DATA OUT [--demo-tokenizer FILE]

DATA is the folder with corpus/ and tokenizers/; OUT receives one folder per model and tokenizer/. Weights are rounded
to their stored dtype first and then run in float32 on the CPU, so the stored weights are exactly the ones used.
"""
import argparse
import copy
import json
import os
import sys
import traceback

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from engram_reference import EngramReference, compressed_map, hash_constants, st

import engram_hash
from corpus import documents

VOCAB = 384
EOT_ID = VOCAB - 1


def tiny_tokenizer(data, path):
    """GPT-2 style byte-level BPE; the special token is an added token beyond the model's own vocabulary."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    tok.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(vocab_size=VOCAB - 1, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  show_progress=False)
    tok.train_from_iterator(documents(data, "en_valid")[0][:300000].splitlines(keepends=True), trainer)
    tok.add_special_tokens(["<|endoftext|>"])
    assert tok.token_to_id("<|endoftext|>") == EOT_ID and tok.get_vocab_size() == VOCAB
    tok.save(path, pretty=False)
    return tok


def randomise(model, gen, qk_norm=1.5):
    """Weights whose logits vary well: unit-gain matrices, norms away from one."""
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=gen)
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            p.data = qk_norm + 0.2 * noise
        elif p.ndim == 1:
            p.data = 1.0 + 0.2 * noise
        elif "embed_tokens" in name or "lm_head" in name:
            p.data = 0.3 * noise
        else:
            p.data = noise * p.shape[1] ** -0.5


def round_to(model, dtype):
    for p in model.parameters():
        p.data = p.data.to(dtype).float()


def write_json(path, j):
    with open(path, "w") as f:
        f.write(json.dumps(j, indent=2) + "\n")


def read_json(path):
    with open(path) as f:
        return json.load(f)


def finish(folder, tok_path, generation):
    with open(tok_path, "rb") as a, open(os.path.join(folder, "tokenizer.json"), "wb") as b:
        b.write(a.read())
    write_json(os.path.join(folder, "generation_config.json"), generation)


def old_rope_keys(path):
    """Rewrite config.json to the keys used before `rope_parameters` existed."""
    j = read_json(path)
    rope = j.pop("rope_parameters")
    j["rope_theta"] = rope.pop("rope_theta")
    if rope.get("rope_type") == "default":
        rope = None
    j["rope_scaling"] = rope
    j["torch_dtype"] = j.pop("dtype", "bfloat16")
    write_json(path, j)


def plain(folder, cls, cfg, dtype, gen, ids, last=None, shard="1GB", old_keys=False, min_shards=1):
    """One plain checkpoint and its vectors; reloaded through the library to see that the files say the same."""
    cfg._attn_implementation = "eager"
    model = cls(cfg).float().eval()
    randomise(model, gen)
    model.tie_weights()
    round_to(model, dtype)
    ids = torch.tensor(ids)
    with torch.no_grad():
        logits = model(input_ids=ids[None], use_cache=False).logits[0]
    stored = copy.deepcopy(model).to(dtype)
    stored.save_pretrained(folder, max_shard_size=shard)
    if old_keys:
        old_rope_keys(os.path.join(folder, "config.json"))
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        diff = (again(input_ids=ids[None], use_cache=False).logits[0] - logits).abs().max().item()
    shards = len([f for f in os.listdir(folder) if f.endswith(".safetensors")])
    vectors = {"ids": ids, "logits": logits}
    if last:
        at = torch.arange(len(ids) - last, len(ids))
        vectors = {"ids": ids, "positions": at, "logits": logits[at]}
    st.write(os.path.join(folder, "vectors.safetensors"), vectors)
    print(f"{os.path.basename(folder)}: T {len(ids)}, logits std {logits.std():.3f}, max {logits.abs().max():.2f}, "
          f"distinct argmax {len(set(logits.argmax(-1).tolist()))}, reload diff {diff:.2e}, files {shards}")
    assert diff < 1e-5 and shards >= min_shards
    assert 0.3 < logits.std() < 10


def with_engram(folder, tok, cfg, engram, table_dtype, gen, ids, old_keys=False):
    """A checkpoint of family `engram` with its module-level vectors."""
    cfg._attn_implementation = "eager"
    os.makedirs(folder, exist_ok=True)
    model = Qwen3ForCausalLM(cfg).float().eval()
    randomise(model, gen)
    model.tie_weights()
    cmap, count = compressed_map(tok, VOCAB)
    engram = {**engram, "compressed_vocab_size": count, "pad_token_id": int(cmap[EOT_ID]), "conv_kernel_size": 4,
              "norm_eps": 1e-6, "table_dtype": table_dtype}
    engram.setdefault("table_scale_group", engram["head_dim"])
    mult, primes = hash_constants(count, engram["vocab_size_per_ngram"], engram["max_ngram_size"],
                                  engram["heads_per_ngram"], engram["seed"], engram["layer_ids"])
    d = cfg.hidden_size
    width = (engram["max_ngram_size"] - 1) * engram["heads_per_ngram"] * engram["head_dim"]

    def rand(*shape, std=1.0, mean=0.0):
        return mean + std * torch.randn(shape, generator=gen)

    tensors = {n: p.to(torch.bfloat16) for n, p in model.state_dict().items()
               if not (cfg.tie_word_embeddings and n == "lm_head.weight")}
    tables = {}
    for l in engram["layer_ids"]:
        at = f"model.layers.{l}.engram."
        dense = {"key_proj.weight": rand(d, width, std=width**-0.5), "key_proj.bias": rand(d, std=0.3),
                 "value_proj.weight": rand(d, width, std=2 * width**-0.5), "value_proj.bias": rand(d, std=0.3),
                 "key_norm.weight": rand(1, d, std=0.3, mean=1.5), "query_norm.weight": rand(1, d, std=0.3, mean=1.5),
                 "conv_norm.weight": rand(1, d, std=0.2, mean=1.0), "conv.weight": rand(d, 4, std=0.5)}
        tensors.update({at + n: t.to(torch.bfloat16) for n, t in dense.items()})
        rows = int(primes[l].sum())
        # Row sizes over a factor of 16, so that the scales differ and a wrong one shows.
        table = rand(rows, engram["head_dim"]) * torch.exp2(torch.randint(-3, 2, (rows, 1), generator=gen).float())
        if table_dtype == "F8_E4M3":
            values, codes = st.quantise(table, engram["table_scale_group"])
            tables[at + "table.scale"] = st.E8M0(codes)
            tables[at + "table.weight"] = values
        else:
            tables[at + "table.weight"] = table.to(torch.bfloat16)
    st.write(os.path.join(folder, "model.safetensors"), {**tensors, **tables})
    cfg.dtype = torch.bfloat16
    cfg.save_pretrained(folder)
    path = os.path.join(folder, "config.json")
    j = read_json(path)
    j.update({"architectures": ["EngramForCausalLM"], "model_type": "engram", "engram": engram})
    write_json(path, dict(sorted(j.items())))
    if old_keys:
        old_rope_keys(path)

    ref = EngramReference(folder, tok)
    logits = ref.logits(ids)
    vectors = {"ids": torch.tensor(ids), "logits": logits, "compressed_map": torch.from_numpy(cmap).long()}
    for l in engram["layer_ids"]:
        before, after = ref.trace[l]
        vectors.update({f"rows_l{l}": ref.rows[l], f"multipliers_l{l}": torch.from_numpy(mult[l]),
                        f"primes_l{l}": torch.from_numpy(primes[l]), f"engram_in_l{l}": before,
                        f"engram_out_l{l}": after})
        print(f"  layer {l}: in std {before.std():.3f}, change std {(after - before).std():.3f}")
    st.write(os.path.join(folder, "vectors.safetensors"), vectors)
    ref.off = True
    print(f"{os.path.basename(folder)}: T {len(ids)}, compressed {count}, pad {engram['pad_token_id']}, logits std "
          f"{logits.std():.3f}, distinct argmax {len(set(logits.argmax(-1).tolist()))}, "
          f"engram off moves them by {(ref.logits(ids) - logits).std():.3f}")
    # The library's own reader must accept the file too.
    from safetensors import safe_open
    with safe_open(os.path.join(folder, "model.safetensors"), framework="pt") as f:
        assert set(f.keys()) == set(tensors) | set(tables)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("data")
    ap.add_argument("out")
    ap.add_argument("--demo-tokenizer")
    ap.add_argument("--no-tokenizer-cases", action="store_true", help="the models only")
    args = ap.parse_args()
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    engram_hash.self_check()
    os.makedirs(os.path.join(args.out, "tokenizer", "tiny"), exist_ok=True)
    tok_path = os.path.join(args.out, "tokenizer", "tiny", "tokenizer.json")
    tok = tiny_tokenizer(args.data, tok_path)
    stream = tok.encode(documents(args.data, "en_valid")[1][2000:12000], add_special_tokens=False).ids

    def text(at, n):
        """Real text, opened by the end-of-text token as in training."""
        return [EOT_ID] + stream[at:at + n - 1]

    common = {"vocab_size": VOCAB, "bos_token_id": None, "eos_token_id": EOT_ID, "pad_token_id": None}
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    jobs = {}

    def job(fn):
        jobs[fn.__name__] = fn
        return fn

    @job
    def qwen3_tiny(folder, gen):
        cfg = Qwen3Config(**common, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
                          num_key_value_heads=2, head_dim=32, max_position_embeddings=512, tie_word_embeddings=False,
                          rope_parameters={"rope_type": "default", "rope_theta": 1000000.0})
        plain(folder, Qwen3ForCausalLM, cfg, torch.bfloat16, gen, text(0, 48), shard="150KB", min_shards=2)
        return {"do_sample": True, "eos_token_id": [EOT_ID, 10], "temperature": 0.6, "top_k": 20, "top_p": 0.95}

    @job
    def qwen3_yarn(folder, gen):
        cfg = Qwen3Config(**common, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                          num_key_value_heads=1, head_dim=32, max_position_embeddings=256, tie_word_embeddings=True,
                          rope_parameters={"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
                                           "original_max_position_embeddings": 64})
        plain(folder, Qwen3ForCausalLM, cfg, torch.bfloat16, gen, text(100, 200), last=16)
        return {"eos_token_id": EOT_ID, "pad_token_id": EOT_ID}

    @job
    def llama_tiny(folder, gen):
        cfg = LlamaConfig(**common, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                          num_key_value_heads=4, max_position_embeddings=256, tie_word_embeddings=False,
                          rms_norm_eps=1e-5, rope_parameters=dict(rope))
        plain(folder, LlamaForCausalLM, cfg, torch.float32, gen, text(400, 48), last=16)
        return {"eos_token_id": EOT_ID, "max_length": 128}

    @job
    def llama3_rope(folder, gen):
        cfg = LlamaConfig(**common, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                          num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True,
                          rms_norm_eps=1e-5,
                          rope_parameters={"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0,
                                           "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                           "original_max_position_embeddings": 64})
        plain(folder, LlamaForCausalLM, cfg, torch.bfloat16, gen, text(500, 120), last=16, old_keys=True)
        return {"do_sample": True, "eos_token_id": [EOT_ID], "temperature": 0.7, "top_p": 0.9}

    @job
    def engram_tiny(folder, gen):
        cfg = Qwen3Config(**common, hidden_size=64, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
                          num_key_value_heads=2, head_dim=16, max_position_embeddings=512, tie_word_embeddings=True,
                          rope_parameters=dict(rope))
        with_engram(folder, tok, cfg, {"layer_ids": [1, 3], "max_ngram_size": 3, "heads_per_ngram": 4, "head_dim": 16,
                                       "vocab_size_per_ngram": [200, 300], "seed": 0, "table_scale_group": 16},
                    "F8_E4M3", gen, text(700, 32))
        return {"do_sample": True, "eos_token_id": EOT_ID, "temperature": 0.8}

    @job
    def engram_bf16(folder, gen):
        cfg = Qwen3Config(**common, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
                          num_key_value_heads=1, head_dim=16, max_position_embeddings=512, tie_word_embeddings=False,
                          rope_parameters=dict(rope))
        with_engram(folder, tok, cfg, {"layer_ids": [2], "max_ngram_size": 4, "heads_per_ngram": 2, "head_dim": 8,
                                       "vocab_size_per_ngram": [200, 300, 400], "seed": 12345},
                    "BF16", gen, text(900, 32), old_keys=True)
        return {"eos_token_id": EOT_ID}

    failed = []
    for number, (name, fn) in enumerate(jobs.items()):
        folder = os.path.join(args.out, name)
        try:
            finish(folder, tok_path, fn(folder, torch.Generator().manual_seed(100 + number)))
        except Exception:  # one broken vector must not cost the others
            traceback.print_exc()
            failed.append(name)
    try:
        if args.no_tokenizer_cases:
            return 1 if failed else 0
        from make_tokenizer_cases import make_cases
        make_cases(args.data, os.path.join(args.out, "tokenizer"), args.demo_tokenizer)
    except Exception:
        traceback.print_exc()
        failed.append("tokenizer")
    print("failed:", failed or "none")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
