"""Train the demo model on one GPU, export it, measure the export, print samples.

    python3 train.py DATA TOKENIZER OUT

The learning rate follows the clock, not a step count: whatever the machine's speed, the run ends annealed. Writes
OUT/model/ (the checkpoint), OUT/train.log and OUT/report.json; the checkpoint is on disk before anything is measured.
"""
import argparse
import json
import os
import shutil
import sys
import time

import numpy as np
import torch
from tokenizers import Tokenizer

from corpus import documents, encode
from engram_model import Config, cross_entropy
from export import bits_per_byte, build, load_checkpoint, sample, write_checkpoint
from muon import Muon

PROMPTS = ["Once upon a time", "The old king had three sons, and", "\"Where are you going?\" asked the fox.",
           "It was a dark night, and the wind", "The little girl opened the door and saw"]


def rate(x, warm=0.01, hold=0.4):
    """Share of the peak learning rate at progress x in [0, 1]: warm up, hold, fall linearly to nothing."""
    return min(x / warm, 1.0) if x < hold else max(0.0, (1 - x) / (1 - hold))


def load_stream(data, tokenizer, weights, device):
    """All documents as one int32 stream on the device, shuffled, children's books repeated."""
    start, streams, n_bytes, seen = time.time(), [], 0, 0
    for name, times in weights.items():
        docs = documents(data, name)
        ids = encode(tokenizer, docs)
        n_bytes += sum(len(d.encode()) for d in docs)
        seen += sum(map(len, ids))
        streams += ids * times
    order = np.random.default_rng(1).permutation(len(streams))
    stream = torch.from_numpy(np.concatenate([streams[i] for i in order]).astype(np.int32)).to(device)
    return stream, {"bytes": n_bytes, "distinct_tokens": seen, "stream_tokens": len(stream),
                    "encode_seconds": round(time.time() - start, 1)}


def batches(stream, seq, batch, device):
    """Endless [batch, seq + 1] windows: every epoch a new shift and a new order."""
    gen = torch.Generator(device).manual_seed(7)
    at = torch.arange(seq + 1, device=device)
    while True:
        shift = int(torch.randint(0, seq, (1,), generator=gen, device=device))
        n = (len(stream) - shift - 1) // seq
        order = torch.randperm(n, generator=gen, device=device) * seq + shift
        for i in range(0, n - batch + 1, batch):
            yield stream[order[i:i + batch, None] + at].long()


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("data")
    ap.add_argument("tokenizer")
    ap.add_argument("out")
    ap.add_argument("--seconds", type=float, default=385)
    ap.add_argument("--seq", type=int, default=2048)
    ap.add_argument("--batch", type=int, default=32)
    ap.add_argument("--muon-lr", type=float, default=0.02)
    ap.add_argument("--adam-lr", type=float, default=3e-3)
    ap.add_argument("--table-lr", type=float, default=1e-2)
    ap.add_argument("--decay", type=float, default=0.1)
    ap.add_argument("--dropout", type=float, default=0.1)
    ap.add_argument("--lookup-dropout", type=float, default=0.25)
    ap.add_argument("--children", type=int, default=2)
    ap.add_argument("--eval-every", type=float, default=60)
    ap.add_argument("--eager", action="store_true")
    args = ap.parse_args()
    os.makedirs(args.out, exist_ok=True)
    log_file = open(os.path.join(args.out, "train.log"), "w")

    def log(text):
        print(text, flush=True)
        log_file.write(text + "\n")
        log_file.flush()

    device = "cuda"
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("highest")  # the float32 measurement must not be TF32
    tokenizer = Tokenizer.from_file(args.tokenizer)
    stream, facts = load_stream(args.data, tokenizer, {"en_train_children": args.children, "en_train_prose_a": 1,
                                                       "en_train_prose_b": 1}, device)
    valid_docs = documents(args.data, "en_valid")
    valid = torch.from_numpy(np.concatenate(encode(tokenizer, valid_docs)).astype(np.int64)).to(device)
    valid_bytes = sum(len(d.encode()) for d in valid_docs)
    log(f"data: {facts}, valid {len(valid)} tokens, {valid_bytes} bytes")

    cfg = Config(dropout=args.dropout, lookup_dropout=args.lookup_dropout)
    model, hasher = build(cfg, tokenizer, device)
    model.train()
    muon, embed, tables, rest = [], [], [], []
    for name, p in model.named_parameters():
        if name.endswith("table.weight"):
            tables.append(p)
        elif name.endswith("embed_tokens.weight"):
            embed.append(p)
        elif name.endswith("proj.weight"):
            muon.append(p)
        else:
            rest.append(p)
    sizes = {"backbone": sum(p.numel() for n, p in model.named_parameters() if ".engram." not in n),
             "engram_dense": sum(p.numel() for n, p in model.named_parameters()
                                 if ".engram." in n and not n.endswith("table.weight")),
             "engram_tables": sum(p.numel() for p in tables)}
    log(f"parameters: {sizes}, compressed vocabulary {cfg.compressed_vocab_size}, pad {cfg.pad_token_id}")

    # Tables get a higher rate and no decay: a row is touched by few tokens, and decay would erase the rare ones.
    adam = torch.optim.AdamW([{"params": embed, "lr": args.adam_lr, "weight_decay": 0.01},
                              {"params": rest, "lr": args.adam_lr, "weight_decay": 0.0},
                              {"params": tables, "lr": args.table_lr, "weight_decay": 0.0}],
                             betas=(0.9, 0.95), eps=1e-10, fused=True)
    peak = [g["lr"] for g in adam.param_groups]
    muon = Muon(muon, args.muon_lr, weight_decay=args.decay)
    loss_fn = cross_entropy
    if not args.eager:
        torch._dynamo.config.recompile_limit = 64
        for layer in model.model.layers:
            layer.compile()
            if hasattr(layer, "engram"):
                layer.engram.compile()
        loss_fn = torch.compile(cross_entropy)

    def one_step(block):
        ids, targets = block[:, :-1], block[:, 1:]
        x = model.hidden(ids, hasher(ids))
        loss = loss_fn(x, model.model.norm.weight, model.model.embed_tokens.weight, targets, cfg.rms_norm_eps,
                       cfg.compute)
        loss.backward()
        return loss.detach()

    def measure(limit=None):
        on = bits_per_byte(model, hasher, valid, valid_bytes, True, limit=limit)
        off = bits_per_byte(model, hasher, valid, valid_bytes, False, limit=limit)
        model.train()
        return on, off

    source = batches(stream, args.seq, args.batch, device)
    tick = time.time()
    for _ in range(3):  # compile before the clock starts
        loss = one_step(next(source))
        adam.zero_grad()
        for p in model.parameters():
            p.grad = None
    log(f"warm after {time.time() - tick:.1f} s, first loss {loss.item():.3f}")

    start, paused, step, next_eval, history = time.time(), 0.0, 0, args.eval_every, []
    while True:
        elapsed = time.time() - start - paused
        x = elapsed / args.seconds
        if x >= 1:
            break
        factor = rate(x)
        for g, lr in zip(adam.param_groups, peak):
            g["lr"] = lr * factor
        muon.lr = args.muon_lr * factor
        muon.momentum = min(0.95, 0.85 + 0.1 * step / 300)
        loss = one_step(next(source))
        adam.step()
        muon.step()
        for p in model.parameters():
            p.grad = None
        step += 1
        if step % 20 == 0:
            value = loss.item()  # also keeps the queue short, so that the clock means something
            if step % 200 == 0:
                tokens = step * args.batch * args.seq
                log(f"step {step} time {elapsed:.1f} loss {value:.4f} lr {factor:.3f} "
                    f"tokens {tokens / 1e6:.1f}M rate {tokens / max(elapsed, 1e-9) / 1e6:.3f}M/s")
                if not np.isfinite(value):
                    log("loss is not finite: stopping")
                    sys.exit(1)
        if elapsed > next_eval:
            next_eval += args.eval_every
            tick = time.time()
            on, off = measure(limit=256)
            history.append([step, round(elapsed, 1), on[0], on[1], off[1]])
            log(f"valid (part): step {step} nll {on[0]:.4f} bpb {on[1]:.4f} engram off {off[1]:.4f}")
            paused += time.time() - tick
    torch.cuda.synchronize()
    seconds = time.time() - start - paused
    tokens = step * args.batch * args.seq

    folder = os.path.join(args.out, "model")
    write_checkpoint(folder, model)
    shutil.copy(args.tokenizer, os.path.join(folder, "tokenizer.json"))
    log(f"exported: {step} steps, {tokens} tokens, {seconds:.1f} s")
    on, off = measure()
    log(f"before export (bf16 compute, float32 weights): nll {on[0]:.4f} bpb {on[1]:.4f} engram off {off[1]:.4f}")

    stored, hasher, tokenizer = load_checkpoint(folder, device)
    q_on = bits_per_byte(stored, hasher, valid, valid_bytes, True)
    q_off = bits_per_byte(stored, hasher, valid, valid_bytes, False)
    log(f"exported checkpoint (float32): nll {q_on[0]:.4f} bpb {q_on[1]:.4f} engram off {q_off[1]:.4f}")
    files = {f: os.path.getsize(os.path.join(folder, f)) for f in sorted(os.listdir(folder))}
    report = {"args": vars(args), "data": facts, "parameters": sizes, "steps": step, "tokens": tokens,
              "seconds": round(seconds, 1), "device": torch.cuda.get_device_name(), "files": files,
              "before_export": {"nll": on[0], "bpb": on[1], "bpb_off": off[1]},
              "exported": {"nll": q_on[0], "bpb": q_on[1], "nll_off": q_off[0], "bpb_off": q_off[1]},
              "history": history, "valid_tokens": len(valid), "valid_bytes": valid_bytes, "samples": []}
    report_path = os.path.join(args.out, "report.json")
    for prompt in PROMPTS:
        for temperature in (0.0, 0.8):
            text = sample(stored, hasher, tokenizer, prompt, 120, temperature)
            report["samples"].append({"prompt": prompt, "temperature": temperature, "text": text})
            log(f"--- temperature {temperature}\n{text}")
            with open(report_path, "w") as f:
                json.dump(report, f, indent=1)
    log(f"files {files} total {sum(files.values())}")


if __name__ == "__main__":
    main()
