"""The training text: documents out of the corpus files, and token streams out of documents."""
import lzma
import os
import re

import numpy as np

EOT = "<|endoftext|>"


def read_bytes(root, rel):
    """A data file as plain bytes, whether it is stored plain or as .xz."""
    path = os.path.join(root, rel)
    if os.path.exists(path):
        with open(path, "rb") as f:
            return f.read()
    with lzma.open(path + ".xz") as f:
        return f.read()


def documents(root, name):
    text = read_bytes(root, f"corpus/{name}.txt").decode("utf-8")
    parts = re.split(r"^<\|endoftext\|>$", text, flags=re.M)
    return [p.strip("\n") + "\n" for p in parts if p.strip()]


def encode(tokenizer, docs):
    """uint16 [tokens] per document, each opened by the end-of-text token: a document starts after it."""
    eot = tokenizer.token_to_id(EOT)
    out = []
    for i in range(0, len(docs), 64):
        for e in tokenizer.encode_batch_fast(docs[i:i + 64], add_special_tokens=False):
            out.append(np.array([eot] + e.ids, dtype=np.uint16))
    return out
