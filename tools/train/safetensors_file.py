"""Read and write safetensors, keeping the order of tensors.

The library sorts tensors itself; the demo checkpoint wants its tables last, so that the part read once at start
and the part read row by row are two contiguous ranges. E8M0 scales travel as their exponent bytes (uint8).
"""
import json
import struct

import torch

NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3", torch.int64: "I64"}
TYPES = {name: dtype for dtype, name in NAMES.items()}
TYPES["F8_E8M0"] = torch.uint8


class E8M0:
    """Marks a uint8 tensor as exponent bytes: value = 2^(byte - 127)."""

    def __init__(self, codes):
        assert codes.dtype == torch.uint8
        self.codes = codes


def write(path, tensors, metadata=None):
    """tensors: {name: tensor or E8M0}, stored in the order given."""
    header = {"__metadata__": metadata or {"format": "pt"}}
    blobs, at = [], 0
    for name, t in tensors.items():
        kind = "F8_E8M0" if isinstance(t, E8M0) else NAMES[t.dtype]
        t = (t.codes if isinstance(t, E8M0) else t).detach().cpu().contiguous()
        raw = t.reshape(-1).view(torch.uint8).numpy().tobytes()
        header[name] = {"dtype": kind, "shape": list(t.shape), "data_offsets": [at, at + len(raw)]}
        blobs.append(raw)
        at += len(raw)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)))
        f.write(text)
        for raw in blobs:
            f.write(raw)


def read(path):
    """{name: tensor}; E8M0 comes back as uint8 codes."""
    with open(path, "rb") as f:
        size = struct.unpack("<Q", f.read(8))[0]
        header = json.loads(f.read(size))
        data = bytearray(f.read())
    out = {}
    for name, h in header.items():
        if name != "__metadata__":
            a, b = h["data_offsets"]
            out[name] = torch.frombuffer(data[a:b], dtype=TYPES[h["dtype"]]).reshape(h["shape"])
    return out


def quantise(table, group):
    """float32 [rows, dim] to (float8_e4m3fn [rows, dim], uint8 exponent codes [rows, dim / group]).

    The exponent is the smallest with the group's largest magnitude within 448, the format's end: the cast itself
    does not saturate.
    """
    rows, dim = table.shape
    g = table.float().reshape(rows, dim // group, group)
    exponent = torch.ceil(torch.log2(g.abs().amax(-1).clamp_min(1e-12) / 448.0)).clamp(-60, 60)
    scaled = (g * torch.exp2(-exponent)[..., None]).clamp(-448.0, 448.0)
    return scaled.reshape(rows, dim).to(torch.float8_e4m3fn), (exponent + 127).to(torch.uint8)


def dequantise(values, codes):
    rows, dim = values.shape
    scale = torch.exp2(codes.float() - 127.0)
    return (values.float().reshape(rows, codes.shape[1], -1) * scale[..., None]).reshape(rows, dim)
