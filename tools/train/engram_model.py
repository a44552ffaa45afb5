"""The demo model: a Qwen3-style decoder whose layers may open with an Engram, in plain PyTorch.

Parameters are float32 masters named exactly as in the checkpoint; matrix products run in `compute`, everything
else in float32. Shapes: B sequences, T positions, D width, C columns (orders x heads) of the lookup.
"""
import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class Config:
    vocab_size: int = 8192
    hidden_size: int = 256
    num_hidden_layers: int = 8
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    intermediate_size: int = 704
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 2048
    # Engram
    layer_ids: list = field(default_factory=lambda: [1, 4])
    max_ngram_size: int = 3
    heads_per_ngram: int = 4
    engram_head_dim: int = 32
    vocab_size_per_ngram: list = field(default_factory=lambda: [8000, 16000])
    table_scale_group: int = 32
    conv_kernel_size: int = 4
    norm_eps: float = 1e-6
    seed: int = 0
    compressed_vocab_size: int = 0  # from the tokenizer
    pad_token_id: int = 0  # a compressed id
    # Training only, not part of the checkpoint
    compute: torch.dtype = torch.bfloat16
    dropout: float = 0.0  # on what attention and MLP add
    lookup_dropout: float = 0.0  # on whole table rows of the lookup

    @property
    def columns(self):
        return (self.max_ngram_size - 1) * self.heads_per_ngram

    def to_json(self):
        """config.json of the checkpoint: every field of a Qwen3 config, plus `engram`."""
        return {
            "architectures": ["EngramForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
            "bos_token_id": None, "dtype": "bfloat16",
            "engram": {
                "layer_ids": self.layer_ids, "max_ngram_size": self.max_ngram_size,
                "heads_per_ngram": self.heads_per_ngram, "head_dim": self.engram_head_dim,
                "vocab_size_per_ngram": self.vocab_size_per_ngram,
                "compressed_vocab_size": self.compressed_vocab_size, "pad_token_id": self.pad_token_id,
                "seed": self.seed, "conv_kernel_size": self.conv_kernel_size, "norm_eps": self.norm_eps,
                "table_dtype": "F8_E4M3", "table_scale_group": self.table_scale_group},
            "eos_token_id": 0, "head_dim": self.head_dim, "hidden_act": "silu", "hidden_size": self.hidden_size,
            "initializer_range": 0.02, "intermediate_size": self.intermediate_size,
            "layer_types": ["full_attention"] * self.num_hidden_layers,
            "max_position_embeddings": self.max_position_embeddings, "max_window_layers": self.num_hidden_layers,
            "model_type": "engram", "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers, "num_key_value_heads": self.num_key_value_heads,
            "pad_token_id": None, "rms_norm_eps": self.rms_norm_eps,
            "rope_parameters": {"rope_theta": self.rope_theta, "rope_type": "default"},
            "sliding_window": None, "tie_word_embeddings": True, "transformers_version": "5.17.0",
            "use_cache": True, "use_sliding_window": False, "vocab_size": self.vocab_size}

    @classmethod
    def from_json(cls, j):
        e = dict(j["engram"])
        e["engram_head_dim"] = e.pop("head_dim")
        e.pop("table_dtype")
        names = ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                 "head_dim", "intermediate_size", "rms_norm_eps", "max_position_embeddings"]
        return cls(**{n: j[n] for n in names}, rope_theta=j["rope_parameters"]["rope_theta"], **e)


def rms(x, weight, eps):
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def mm(x, weight, dtype):
    return F.linear(x.to(dtype), weight.to(dtype))


class Scale(nn.Module):
    def __init__(self, *shape, value=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.full(shape, value))


class Engram(nn.Module):
    """Gated lookup added to the stream before a layer's attention (paper section 2; one residual stream)."""

    def __init__(self, cfg, table_rows):
        super().__init__()
        self.cfg = cfg
        d, width = cfg.hidden_size, cfg.columns * cfg.engram_head_dim
        self.table = nn.Embedding(table_rows, cfg.engram_head_dim)
        self.key_proj = nn.Linear(width, d)
        self.value_proj = nn.Linear(width, d)
        self.key_norm, self.query_norm, self.conv_norm = Scale(1, d), Scale(1, d), Scale(1, d)
        self.conv = Scale(d, cfg.conv_kernel_size, value=0.0)  # starts as the identity

    def forward(self, x, rows):
        """x [B, T, D] float32, rows int64 [B, T, C]; returns the new x."""
        cfg = self.cfg
        e = F.embedding(rows, self.table.weight)
        if self.training and cfg.lookup_dropout:
            e = e * F.dropout(torch.ones_like(e[..., :1]), cfg.lookup_dropout)
        e = e.flatten(2)
        key = mm(e, self.key_proj.weight, cfg.compute).float() + self.key_proj.bias
        value = mm(e, self.value_proj.weight, cfg.compute).float() + self.value_proj.bias
        dot = (rms(key, self.key_norm.weight[0], cfg.norm_eps)
               * rms(x, self.query_norm.weight[0], cfg.norm_eps)).sum(-1, keepdim=True)
        dot = dot / math.sqrt(cfg.hidden_size)
        gate = torch.sigmoid(torch.sign(dot) * torch.sqrt(dot.abs().clamp_min(1e-6)))
        v = gate * value
        u = rms(v, self.conv_norm.weight[0], 1e-5)
        # Tap k reaches back (kernel - 1 - k) * dilation positions; the dilation is the largest order.
        t, k, n = x.shape[1], cfg.conv_kernel_size, cfg.max_ngram_size
        padded = F.pad(u, (0, 0, (k - 1) * n, 0))
        conv = sum(padded[:, i * n:i * n + t] * self.conv.weight[:, i] for i in range(k))
        return x + v + F.silu(conv)


class Attention(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        d, hd = cfg.hidden_size, cfg.head_dim
        self.q_proj = nn.Linear(d, cfg.num_attention_heads * hd, bias=False)
        self.k_proj = nn.Linear(d, cfg.num_key_value_heads * hd, bias=False)
        self.v_proj = nn.Linear(d, cfg.num_key_value_heads * hd, bias=False)
        self.o_proj = nn.Linear(cfg.num_attention_heads * hd, d, bias=False)
        self.q_norm, self.k_norm = Scale(hd), Scale(hd)


class MLP(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.gate_proj = nn.Linear(cfg.hidden_size, cfg.intermediate_size, bias=False)
        self.up_proj = nn.Linear(cfg.hidden_size, cfg.intermediate_size, bias=False)
        self.down_proj = nn.Linear(cfg.intermediate_size, cfg.hidden_size, bias=False)


class Layer(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.self_attn, self.mlp = Attention(cfg), MLP(cfg)
        self.input_layernorm, self.post_attention_layernorm = Scale(cfg.hidden_size), Scale(cfg.hidden_size)

    def forward(self, x, cos, sin):
        cfg, a, m, dt = self.cfg, self.self_attn, self.mlp, self.cfg.compute
        b, t, _ = x.shape
        h = rms(x, self.input_layernorm.weight, cfg.rms_norm_eps)
        q = mm(h, a.q_proj.weight, dt).view(b, t, -1, cfg.head_dim)
        k = mm(h, a.k_proj.weight, dt).view(b, t, -1, cfg.head_dim)
        v = mm(h, a.v_proj.weight, dt).view(b, t, -1, cfg.head_dim)
        q = rotate(rms(q, a.q_norm.weight, cfg.rms_norm_eps), cos, sin).to(dt)
        k = rotate(rms(k, a.k_norm.weight, cfg.rms_norm_eps), cos, sin).to(dt)
        group = cfg.num_attention_heads // cfg.num_key_value_heads
        k, v = k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)
        o = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True)
        o = mm(o.transpose(1, 2).reshape(b, t, -1), a.o_proj.weight, dt).float()
        x = x + F.dropout(o, cfg.dropout, self.training)
        h = rms(x, self.post_attention_layernorm.weight, cfg.rms_norm_eps).to(dt)
        h = F.silu(mm(h, m.gate_proj.weight, dt).float()) * mm(h, m.up_proj.weight, dt).float()
        return x + F.dropout(mm(h, m.down_proj.weight, dt).float(), cfg.dropout, self.training)


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


class EngramLM(nn.Module):
    def __init__(self, cfg, rows_per_layer):
        super().__init__()
        self.cfg = cfg
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(cfg.vocab_size, cfg.hidden_size)
        self.model.layers = nn.ModuleList(Layer(cfg) for _ in range(cfg.num_hidden_layers))
        self.model.norm = Scale(cfg.hidden_size)
        for l in cfg.layer_ids:
            self.model.layers[l].engram = Engram(cfg, rows_per_layer[l])
        inv = cfg.rope_theta ** (-torch.arange(0, cfg.head_dim, 2, dtype=torch.float32) / cfg.head_dim)
        angle = torch.arange(cfg.max_position_embeddings, dtype=torch.float32)[:, None] * inv
        angle = torch.cat((angle, angle), dim=-1)[None, :, None, :]
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        self.reset()

    def reset(self):
        depth = self.cfg.num_hidden_layers
        for name, p in self.named_parameters():
            if name.endswith("proj.bias"):
                nn.init.zeros_(p)
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.normal_(p, std=p.shape[1] ** -0.5 / math.sqrt(2 * depth))
            elif name.endswith("proj.weight"):
                nn.init.normal_(p, std=p.shape[1] ** -0.5)
            elif name.endswith(("embed_tokens.weight", "table.weight")):
                nn.init.normal_(p, std=0.02)

    def hidden(self, ids, rows, engram_on=True):
        """ids int64 [B, T], rows {layer: int64 [B, T, C]}; the last layer's output before the final norm."""
        t = ids.shape[1]
        cos, sin = self.cos[:, :t], self.sin[:, :t]
        x = F.embedding(ids, self.model.embed_tokens.weight)
        for l, layer in enumerate(self.model.layers):
            # Calling the module takes its compiled form; .forward stays eager, for odd shapes.
            if engram_on and l in rows:
                x = (layer.engram if self.training else layer.engram.forward)(x, rows[l])
            x = (layer if self.training else layer.forward)(x, cos, sin)
        return x

    def logits(self, ids, rows, engram_on=True):
        h = rms(self.hidden(ids, rows, engram_on), self.model.norm.weight, self.cfg.rms_norm_eps)
        return mm(h, self.model.embed_tokens.weight, self.cfg.compute).float()


def cross_entropy(x, norm, embed, targets, eps, dtype):
    h = rms(x, norm, eps)
    out = mm(h, embed, dtype).float()
    return F.cross_entropy(out.view(-1, out.shape[-1]), targets.reshape(-1))


class Hasher:
    """Row ids on the device, for a batch of sequences that each start at their own position 0."""

    def __init__(self, cfg, cmap, mult, primes, device):
        self.cfg = cfg
        self.cmap = torch.as_tensor(cmap, dtype=torch.int64, device=device)
        self.mult = {l: m.tolist() for l, m in mult.items()}
        self.primes = {l: torch.as_tensor(p, device=device) for l, p in primes.items()}
        self.offset = {l: torch.cumsum(p, 0) - p for l, p in self.primes.items()}

    def __call__(self, ids):
        """ids int64 [B, T] to {layer: int64 [B, T, C]}."""
        c = [self.cmap[ids]]
        for _ in range(self.cfg.max_ngram_size - 1):
            c.append(F.pad(c[-1][:, :-1], (1, 0), value=self.cfg.pad_token_id))
        out, h = {}, self.cfg.heads_per_ngram
        for l in self.cfg.layer_ids:
            mix, cols = c[0] * self.mult[l][0], []
            for n in range(1, self.cfg.max_ngram_size):
                mix = mix ^ (c[n] * self.mult[l][n])
                cols.append(mix[..., None] % self.primes[l][(n - 1) * h:n * h])
            out[l] = torch.cat(cols, dim=-1) + self.offset[l]
        return out
