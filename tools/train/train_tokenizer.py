"""Train the demo model's tokenizer: byte-level BPE, 8,192 entries, <|endoftext|> is id 0.

    python3 train_tokenizer.py DATA OUT/tokenizer.json

The split pattern is the one of the Qwen2 family, so that the demo exercises the path real models take. There is no
normaliser: text survives encoding byte for byte.
"""
import sys
import time

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from corpus import EOT, documents

SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
         r"\s*[\r\n]+|\s+(?!\S)|\s+")


def main():
    data, out = sys.argv[1:3]
    start = time.time()
    # All of the children's books, a third of the rest: merges should serve simple prose first.
    docs = (documents(data, "en_train_children") + documents(data, "en_train_prose_a")[::3]
            + documents(data, "en_train_prose_b")[::3])
    # Paragraph by paragraph for parallel counting; the break stays, or no merge would ever cover it.
    pieces = [p + "\n\n" for d in docs for p in d.rstrip("\n").split("\n\n")]
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    tok.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(vocab_size=8192, min_frequency=2, special_tokens=[EOT], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tok.train_from_iterator(pieces, trainer)
    assert tok.get_vocab_size() == 8192 and tok.token_to_id(EOT) == 0
    sample = documents(data, "en_valid")[0][:100000]
    ids = tok.encode(sample, add_special_tokens=False).ids
    assert tok.decode(ids, skip_special_tokens=False) == sample
    tok.save(out, pretty=False)
    print(f"tokenizer: {sum(map(len, pieces)) / 1e6:.1f} M characters, {time.time() - start:.1f} s, "
          f"{len(sample.encode()) / len(ids):.3f} bytes per token on validation text")


if __name__ == "__main__":
    main()
