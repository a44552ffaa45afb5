"""The demo checkpoint on disk: quantise and write it, read it back, measure it, sample from it."""
import json
import math
import os

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import safetensors_file as st
from engram_hash import compressed_map, hash_constants
from engram_model import Config, EngramLM, Hasher

GENERATION = {"do_sample": True, "eos_token_id": 0, "max_new_tokens": 256, "temperature": 0.8, "top_k": 0,
              "top_p": 0.95, "transformers_version": "5.17.0"}


def write_checkpoint(folder, model):
    """BF16 backbone first, then every Engram layer's scales and table, so that the tables end the file."""
    cfg = model.cfg
    os.makedirs(folder, exist_ok=True)
    tensors, tables = {}, {}
    for name, p in model.named_parameters():
        if name.endswith("table.weight"):
            values, codes = st.quantise(p.detach().float().cpu(), cfg.table_scale_group)
            tables[name.replace("table.weight", "table.scale")] = st.E8M0(codes)
            tables[name] = values
        else:
            tensors[name] = p.detach().to(torch.bfloat16)
    st.write(os.path.join(folder, "model.safetensors"), {**tensors, **tables})
    for name, j in (("config.json", cfg.to_json()), ("generation_config.json", GENERATION)):
        with open(os.path.join(folder, name), "w") as f:
            f.write(json.dumps(j, indent=2) + "\n")


def build(cfg, tokenizer, device):
    """A model with fresh weights and its hasher; completes cfg from the tokenizer, or checks it."""
    cmap, count = compressed_map(tokenizer, cfg.vocab_size)
    assert cfg.compressed_vocab_size in (0, count)
    cfg.compressed_vocab_size = count
    cfg.pad_token_id = int(cmap[tokenizer.token_to_id("<|endoftext|>")])
    mult, primes = hash_constants(count, cfg.vocab_size_per_ngram, cfg.max_ngram_size, cfg.heads_per_ngram,
                                  cfg.seed, cfg.layer_ids)
    model = EngramLM(cfg, {l: int(p.sum()) for l, p in primes.items()}).to(device)
    return model, Hasher(cfg, cmap, mult, primes, device)


def load_checkpoint(folder, device):
    """The exported model as float32, computing in float32: (model, hasher, tokenizer)."""
    with open(os.path.join(folder, "config.json")) as f:
        cfg = Config.from_json(json.load(f))
    cfg.compute = torch.float32
    tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    model, hasher = build(cfg, tokenizer, device)
    raw = st.read(os.path.join(folder, "model.safetensors"))
    state = {}
    for name, t in raw.items():
        if name.endswith("table.weight"):
            state[name] = st.dequantise(t, raw[name.replace("table.weight", "table.scale")])
        elif not name.endswith("table.scale"):
            state[name] = t.float()
    model.load_state_dict(state)
    return model.eval(), hasher, tokenizer


@torch.no_grad()
def bits_per_byte(model, hasher, stream, n_bytes, engram_on, window=1024, limit=None):
    """Windows of `window` predictions that do not overlap; each starts with one token of context.

    stream: int64 [tokens], documents each opened by <|endoftext|>; n_bytes: their plain text. `limit`
    windows, evenly spread, give a quick estimate.
    """
    model.eval()
    windows = range(0, len(stream) - window, window)
    if limit:
        windows = windows[::max(1, len(windows) // limit)]
    nll, count = 0.0, 0
    for i in range(0, len(windows), 16):
        rows = torch.stack([stream[j:j + window + 1] for j in windows[i:i + 16]])
        ids, targets = rows[:, :-1], rows[:, 1:]
        out = model.logits(ids, hasher(ids), engram_on)
        nll += F.cross_entropy(out.flatten(0, 1), targets.flatten(), reduction="sum").double().item()
        count += targets.numel()
    # What was left out (the last partial window, or all that `limit` skips) takes its share of the bytes with it.
    return nll / count, nll / math.log(2) / (n_bytes * count / (len(stream) - 1))


@torch.no_grad()
def sample(model, hasher, tokenizer, prompt, tokens, temperature, top_p=0.95, seed=0):
    """Recomputes the whole prefix each step: slow, and too simple to be wrong."""
    model.eval()
    device = model.cos.device
    gen = torch.Generator(device).manual_seed(seed)
    ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False).ids], device=device)
    for _ in range(tokens):
        logits = model.logits(ids, hasher(ids))[:, -1]
        if temperature == 0:
            nxt = logits.argmax(-1, keepdim=True)
        else:
            p, order = torch.softmax(logits / temperature, -1).sort(-1, descending=True)
            p = p.masked_fill(p.cumsum(-1) - p > top_p, 0.0)
            nxt = order.gather(-1, torch.multinomial(p, 1, generator=gen))
        if nxt.item() == 0:
            break
        ids = torch.cat((ids, nxt), dim=1)
    return tokenizer.decode(ids[0].tolist(), skip_special_tokens=False)
