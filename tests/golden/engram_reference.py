"""Engram in the most literal PyTorch, hooked into Hugging Face's Qwen3: the oracle of family `engram`.

One sequence at a time, float32, one residual stream. Kept apart from the training code on purpose: the two are
compared with each other in make_demo_vectors.py.
"""
import json
import os
import sys

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tools", "train"))
import safetensors_file as st  # noqa: E402
from engram_hash import compressed_map, hash_constants, row_ids  # noqa: E402


def norm(x, weight, eps):
    return x / torch.sqrt(torch.mean(x * x, dim=-1, keepdim=True) + eps) * weight


def engram(x, rows, w, max_ngram, eps):
    """x [T, D], rows int64 [T, C], w: this layer's tensors as float32. Returns x after the Engram layer."""
    t, d = x.shape
    e = w["table"][rows].reshape(t, -1)
    key = e @ w["key_proj.weight"].T + w["key_proj.bias"]
    value = e @ w["value_proj.weight"].T + w["value_proj.bias"]
    dot = (norm(key, w["key_norm.weight"][0], eps) * norm(x, w["query_norm.weight"][0], eps)).sum(-1) / d**0.5
    gate = torch.sigmoid(torch.sign(dot) * torch.sqrt(torch.clamp(torch.abs(dot), min=1e-6)))
    v = gate[:, None] * value
    u = norm(v, w["conv_norm.weight"][0], 1e-5)
    kernel = w["conv.weight"].shape[1]
    conv = torch.nn.Conv1d(d, d, kernel, groups=d, dilation=max_ngram, padding=(kernel - 1) * max_ngram, bias=False)
    conv.weight.data = w["conv.weight"][:, None, :].clone()
    out = conv(u.T[None])[0, :, :t].T
    return x + v + out * torch.sigmoid(out)


def qwen3_config(j):
    """The plain Qwen3 part of an `engram` config.json."""
    drop = ("engram", "architectures", "model_type", "transformers_version", "dtype", "torch_dtype")
    j = {k: v for k, v in j.items() if k not in drop}
    if "rope_parameters" not in j:  # the older keys
        rope = j.pop("rope_scaling", None) or {"rope_type": "default"}
        j["rope_parameters"] = {**rope, "rope_theta": j.pop("rope_theta")}
    cfg = Qwen3Config(**j)
    cfg._attn_implementation = "eager"
    return cfg


class EngramReference:
    """A checkpoint of family `engram`, loaded from its folder as float32."""

    def __init__(self, folder, tokenizer):
        with open(os.path.join(folder, "config.json")) as f:
            self.config = json.load(f)
        e = self.e = self.config["engram"]
        raw = st.read(os.path.join(folder, "model.safetensors"))
        self.model = Qwen3ForCausalLM(qwen3_config(self.config)).float().eval()
        plain = {n: t.float() for n, t in raw.items() if ".engram." not in n}
        missing, unexpected = self.model.load_state_dict(plain, strict=False)
        assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
        self.model.tie_weights()
        self.map, count = compressed_map(tokenizer, self.config["vocab_size"])
        assert count == e["compressed_vocab_size"]
        self.mult, self.primes = hash_constants(count, e["vocab_size_per_ngram"], e["max_ngram_size"],
                                                e["heads_per_ngram"], e["seed"], e["layer_ids"])
        self.weights, self.trace, self.rows, self.off = {}, {}, {}, False
        for l in e["layer_ids"]:
            at = f"model.layers.{l}.engram."
            w = {n[len(at):]: t for n, t in raw.items() if n.startswith(at)}
            table = w.pop("table.weight")
            scale = w.pop("table.scale", None)
            w = {n: t.float() for n, t in w.items()}
            w["table"] = table.float() if scale is None else st.dequantise(table, scale)
            assert w["table"].shape[0] == int(self.primes[l].sum())
            self.weights[l] = w
            self.model.model.layers[l].register_forward_pre_hook(self._hook(l), with_kwargs=True)

    def _hook(self, l):
        def hook(_module, args, kwargs):
            if self.off:
                return None
            x = args[0] if args else kwargs["hidden_states"]
            y = engram(x[0], self.rows[l], self.weights[l], self.e["max_ngram_size"], self.e["norm_eps"])
            self.trace[l] = (x[0].clone(), y.clone())
            if args:
                return (y[None],) + args[1:], kwargs
            return args, {**kwargs, "hidden_states": y[None]}
        return hook

    @torch.no_grad()
    def logits(self, ids):
        """ids: list or int64 [T]; float32 [T, vocab]. `trace[l]` then holds (before, after) of each Engram layer."""
        ids = torch.as_tensor(ids, dtype=torch.int64)
        cids = self.map[ids.numpy()]
        for l in self.e["layer_ids"]:
            self.rows[l] = torch.from_numpy(row_ids(cids, self.e["pad_token_id"], self.mult[l], self.primes[l]))
        return self.model(input_ids=ids[None], use_cache=False).logits[0].float()
