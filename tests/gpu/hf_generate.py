#!/usr/bin/env python3
"""Greedy decode throughput of Hugging Face transformers' `generate` with a random Qwen3, for comparison.

  hf_generate.py [--shape NAME]... [--batch N]... [--prompt N]... [--new N] [--ids FILE]
                 [--compile | --no-compile] [--device cuda] [--runs 3]

BF16, sdpa attention, static KV cache; weights are made on the GPU, nothing is downloaded. A case is measured by the
difference of a long and a short run, so that the prefill and what generate does once cancel out:
ms_per_step = (time of `new` tokens - time of SHORT tokens) / (new - SHORT), tokens_per_s = batch / that. Warm-up runs
come first, the long one before the short one, so that both use a cache of one size; medians of --runs.

A static cache on a GPU makes generate compile the forward pass unless `disable_compile` is set; by default both are
measured, the compiled one last. One JSON line a case; a case that fails prints one with "error", and the next is tried.
FILE has token ids apart by white space or commas; row i of a batch begins i * prompt ids into it, and starts again at
its end. Without it ids are random.
"""
import argparse
import gc
import json
import re
import statistics
import sys
import time

SHORT = 8
FIELDS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
          "intermediate_size", "vocab_size", "tie_word_embeddings")
SHAPES = {
    "qwen3-8b": (4096, 36, 32, 8, 128, 12288, 151936, False),
    "qwen3-4b": (2560, 36, 32, 8, 128, 9728, 151936, True),
    "qwen3-0.6b": (1024, 28, 16, 8, 128, 3072, 151936, True),
    "tiny": (64, 2, 4, 2, 16, 128, 1000, True),  # to try this script where there is no GPU
}


def make_model(shape, device):
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(**dict(zip(FIELDS, SHAPES[shape])), max_position_embeddings=40960, rms_norm_eps=1e-6)
    config._attn_implementation = "sdpa"
    torch.manual_seed(1)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = Qwen3ForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    wrong = {str(p.dtype) for p in model.parameters()} - {"torch.bfloat16"}
    if wrong:
        raise RuntimeError(f"weights of type {wrong}")
    return model.eval()


def make_ids(ids, batch, prompt, vocab, device):
    import torch

    if ids is None:
        generator = torch.Generator().manual_seed(2)
        return torch.randint(0, vocab, (batch, prompt), generator=generator).to(device)
    rows = [[ids[(row * prompt + i) % len(ids)] for i in range(prompt)] for row in range(batch)]
    return torch.tensor(rows, device=device)


def read_ids(path, vocab):
    with open(path) as file:
        ids = [int(word) for word in re.split(r"[\s,\[\]]+", file.read()) if word]
    bad = [i for i in ids if not 0 <= i < vocab]
    if not ids or bad:
        raise ValueError(f"{path}: {f'token {bad[0]} of {vocab}' if bad else 'no token ids'}")
    return ids


class Case:
    def __init__(self, model, input_ids, device, compiled):
        import torch

        self.torch, self.model, self.input_ids, self.device = torch, model, input_ids, device
        self.compiled = compiled
        self.mask = torch.ones_like(input_ids)

    def settings(self, n_new):
        from transformers import GenerationConfig

        return GenerationConfig(do_sample=False, num_beams=1, min_new_tokens=n_new, max_new_tokens=n_new,
                                cache_implementation="static", disable_compile=not self.compiled,
                                eos_token_id=None, pad_token_id=0, bos_token_id=None)

    def seconds(self, n_new):
        settings = self.settings(n_new)
        self.synchronize()
        start = time.perf_counter()
        with self.torch.inference_mode():
            out = self.model.generate(input_ids=self.input_ids, attention_mask=self.mask, generation_config=settings)
        self.synchronize()
        taken = time.perf_counter() - start
        if out.shape[1] != self.input_ids.shape[1] + n_new:
            raise RuntimeError(f"{out.shape[1] - self.input_ids.shape[1]} new tokens, not {n_new}")
        return taken

    def synchronize(self):
        if self.device.startswith("cuda"):
            self.torch.cuda.synchronize()


def compiled_frames():
    """What dynamo has captured so far: tells whether generate compiled."""
    try:
        from torch._dynamo.utils import counters

        return sum(counters["stats"].values())
    except (ImportError, AttributeError, TypeError):
        return None


def measure(model, args, ids, batch, prompt, compiled):
    input_ids = make_ids(ids, batch, prompt, model.config.vocab_size, args.device)
    # generate fills in what a configuration leaves open from the model's own.
    model.generation_config.eos_token_id = None
    case = Case(model, input_ids, args.device, compiled)
    frames = compiled_frames()
    began = time.perf_counter()
    for n_new in (args.new, SHORT) * (2 if compiled else 1):
        case.seconds(n_new)
    warm = time.perf_counter() - began
    after = compiled_frames()
    long_runs, short_runs = [], []
    for _ in range(args.runs):
        long_runs.append(case.seconds(args.new))
        short_runs.append(case.seconds(SHORT))
    step = (statistics.median(long_runs) - statistics.median(short_runs)) / (args.new - SHORT)
    if step <= 0:
        raise RuntimeError(f"the long run took {long_runs}, the short one {short_runs}")
    return {
        "tokens_per_s": round(batch / step, 2),
        "ms_per_step": round(step * 1000, 4),
        "compiled": compiled if after is None or frames is None else after > frames,
        "new_tokens": args.new,
        "warm_up_s": round(warm, 2),
        "long_s": [round(t, 4) for t in long_runs],
        "short_s": [round(t, 4) for t in short_runs],
    }


def versions(device):
    import torch
    import transformers

    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    return {"torch": torch.__version__, "transformers": transformers.__version__, "gpu": gpu}


def forget(device):
    import torch
    import torch._dynamo

    torch._dynamo.reset()
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


def run_shape(shape, args, about):
    """Measures all cases of a shape; how many failed."""
    failed = 0
    try:
        ids = read_ids(args.ids, SHAPES[shape][FIELDS.index("vocab_size")]) if args.ids else None
        model = make_model(shape, args.device)
    except Exception as error:  # the next shape may fit
        print(json.dumps({"shape": shape, "error": f"{type(error).__name__}: {error}"[:500], **about}), flush=True)
        return 1
    for compiled in args.modes:
        for prompt in args.prompt:
            for batch in args.batch:
                line = {"shape": shape, "batch": batch, "prompt": prompt, "attn": "sdpa", "cache": "static"}
                try:
                    line.update(measure(model, args, ids, batch, prompt, compiled))
                except Exception as error:  # one case of many
                    line.update(compiled=compiled, error=f"{type(error).__name__}: {error}"[:500])
                    failed += 1
                print(json.dumps({**line, **about}), flush=True)
                # A cache that generate kept belongs to this batch.
                if hasattr(model, "_cache"):
                    del model._cache
                forget(args.device)
    del model
    forget(args.device)
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", action="append", choices=SHAPES, help="repeatable; qwen3-0.6b, -4b, -8b")
    parser.add_argument("--batch", action="append", type=int, help="repeatable; 1 and 64")
    parser.add_argument("--prompt", action="append", type=int, help="tokens; repeatable; 128")
    parser.add_argument("--new", type=int, default=136, help="new tokens of the long run; the short one has 8")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--ids", help="a file of token ids")
    parser.add_argument("--device", default="cuda")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--compile", action="store_true", help="measure compiled alone")
    only.add_argument("--no-compile", action="store_true", help="measure not compiled alone")
    args = parser.parse_args()
    args.shape = args.shape or ["qwen3-0.6b", "qwen3-4b", "qwen3-8b"]
    args.batch, args.prompt = args.batch or [1, 64], args.prompt or [128]
    args.modes = [True] if args.compile else [False] if args.no_compile else [False, True]
    if args.new <= SHORT:
        parser.error(f"--new: more than {SHORT}")
    try:
        about = versions(args.device)
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"[:500]}))
        return 77
    return 1 if sum(run_shape(shape, args, about) for shape in args.shape) else 0


if __name__ == "__main__":
    sys.exit(main())
