"""Oracle of the demo model: greedy continuations by the reference, and a comparison of the two implementations.

    python3 make_demo_vectors.py MODEL_FOLDER OUT/vectors.json

Float32 on the CPU. `margin` is the gap in logits between the chosen token and the runner-up: where it is tiny, another
summation order may choose otherwise.
"""
import json
import sys

import torch
from tokenizers import Tokenizer

from engram_reference import EngramReference

from export import load_checkpoint

PROMPTS = ["Once upon a time", "<|endoftext|>The Fox and the Crow\n\n", "The old king had three sons, and the youngest",
           "\"What is the matter?\" said the cat.\n\n\"Nothing,\" said", "<|endoftext|>"]
TOKENS = 32


def main():
    folder, out = sys.argv[1:3]
    tok = Tokenizer.from_file(folder + "/tokenizer.json")
    ref = EngramReference(folder, tok)
    other, hasher, _ = load_checkpoint(folder, "cpu")
    rows = []
    for prompt in PROMPTS:
        ids = tok.encode(prompt, add_special_tokens=False).ids
        n, logprobs, margins = len(ids), [], []
        for _ in range(TOKENS):
            logits = ref.logits(ids)[-1]
            top, at = logits.topk(2)
            logprobs.append(round(torch.log_softmax(logits.double(), -1)[at[0]].item(), 6))
            margins.append(round((top[0] - top[1]).item(), 6))
            ids.append(at[0].item())
        mine = ref.logits(ids)
        t = torch.tensor([ids])
        with torch.no_grad():
            diff = (other.logits(t, hasher(t))[0] - mine).abs().max().item()
            ref.off = True
            off = (other.logits(t, hasher(t), engram_on=False)[0] - ref.logits(ids)).abs().max().item()
            ref.off = False
        assert diff < 2e-3 and off < 2e-3, (diff, off)
        rows.append({"prompt": prompt, "ids": ids[:n], "greedy": ids[n:], "logprobs": logprobs, "margins": margins,
                     "text": tok.decode(ids[n:], skip_special_tokens=False)})
        print(f"{prompt!r}: diff {diff:.1e}, off {off:.1e}, smallest margin {min(margins)}: {rows[-1]['text']!r}")
    with open(out, "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")


if __name__ == "__main__":
    main()
