"""Which table rows a token reads: compressed ids, multipliers, primes, row ids.

The arithmetic of the Engram paper (arXiv 2601.07372) for checkpoint family `engram`. Everything here follows
from token ids alone; nothing is learned. Run as a program it checks itself against fixed vectors.
"""
import numpy as np


def normaliser():
    """N of the compressed-id rule, from the library's own parts so that its Unicode tables decide."""
    from tokenizers import Regex, normalizers as n

    hold = "\ue000"  # keeps a lone space alive through Strip
    return n.Sequence([
        n.NFKC(), n.NFD(), n.StripAccents(), n.Lowercase(),
        n.Replace(Regex(r"[ \t\r\n]+"), " "), n.Replace(Regex(r"^ $"), hold), n.Strip(), n.Replace(hold, " "),
    ])


def compressed_map(tokenizer, vocab):
    """int32 [vocab]: raw id to compressed id, dealt in order of first appearance. Returns (map, count)."""
    norm = normaliser()
    first = {}
    out = np.empty(vocab, dtype=np.int32)
    for i in range(vocab):
        text = tokenizer.decode([i], skip_special_tokens=False)
        if "\ufffd" in text:  # a fragment of UTF-8 has no text of its own
            key = tokenizer.id_to_token(i)
        else:
            key = norm.normalize_str(text) or text
        out[i] = first.setdefault(key, len(first))
    return out, len(first)


def is_prime(n):
    if n < 2 or n % 2 == 0:
        return n == 2
    return all(n % d for d in range(3, int(n**0.5) + 1, 2))


def hash_constants(count, sizes, max_ngram, heads, seed, layers):
    """({layer: int64 [max_ngram] multipliers}, {layer: int64 [(max_ngram - 1) * heads] primes}).

    `count` is the compressed vocabulary's size; `sizes` has one entry per order 2..max_ngram.
    """
    half = max(1, ((2**63 - 1) // count) // 2)
    used = set()  # one set over all layers: no prime is ever dealt twice
    mult, primes = {}, {}
    for layer in layers:
        draw = np.random.default_rng(seed + 10007 * layer).integers(0, half, size=max_ngram, dtype=np.int64)
        mult[layer] = draw * 2 + 1
        mine = []
        for size in sizes:
            p = size - 1
            for _ in range(heads):
                p += 1
                while p in used or not is_prime(p):
                    p += 1
                used.add(p)
                mine.append(p)
        primes[layer] = np.array(mine, dtype=np.int64)
    return mult, primes


def row_ids(cids, pad, mult, primes):
    """int64 [T, columns]: rows of one layer, offsets included. `pad` is a compressed id."""
    cids = np.asarray(cids, dtype=np.int64)
    orders = len(mult) - 1
    heads = len(primes) // orders
    offset = np.concatenate([[0], np.cumsum(primes)[:-1]])
    out = np.empty((len(cids), len(primes)), dtype=np.int64)
    mix = cids * mult[0]
    back = cids
    for order in range(orders):
        back = np.concatenate([[pad], back[:-1]])
        mix = mix ^ (back * mult[order + 1])
        for j in range(heads):
            c = order * heads + j
            out[:, c] = offset[c] + mix % primes[c]
    return out


def self_check():
    """Fixed vectors, captured from the published definition; ids are already compressed, pad is 2."""
    m, p = hash_constants(1000, [5000, 7000], 3, 4, 0, [1, 15])
    assert m[1].tolist() == [7593627661414631, 479593001838623, 3563315849468963]
    assert p[1].tolist() == [5003, 5009, 5011, 5021, 7001, 7013, 7019, 7027]
    assert m[15].tolist() == [2865651367968763, 5551170510236881, 5343936160617101]
    assert p[15].tolist() == [5023, 5039, 5051, 5059, 7039, 7043, 7057, 7069]
    ids = [5, 999, 17, 17, 0]
    r = row_ids(ids, 2, m[1], p[1])
    assert r[0].tolist() == [2500, 5785, 10870, 15168, 24071, 30811, 40312, 44879]
    assert r[1].tolist() == [1619, 6197, 11290, 18499, 27029, 31507, 37649, 46033]
    assert r[2].tolist() == [4895, 9974, 13950, 19463, 21649, 33377, 36091, 42439]
    assert r[4].tolist() == [2000, 9547, 11598, 15643, 21761, 27511, 37720, 46745]
    r = row_ids(ids, 2, m[15], p[15])
    assert r[0].tolist() == [3753, 8106, 10168, 20074, 23925, 28620, 40249, 41406]
    assert r[1].tolist() == [111, 9837, 13802, 15417, 25424, 34117, 34827, 44200]
    assert r[2].tolist() == [2756, 7526, 13049, 15779, 22025, 27979, 37209, 41762]
    assert r[4].tolist() == [4187, 7957, 14761, 16447, 24870, 33833, 38182, 46750]
    m, p = hash_constants(99092, [646400, 646400], 3, 8, 0, [1, 15])
    assert m[1].tolist() == [76632096046245, 4839876093313, 35959672319349]
    assert m[15].tolist() == [28919099099511, 56020370062535, 53929037264533]
    ids = [5, 99091, 17, 17, 0]
    assert row_ids(ids, 2, m[1], p[1])[2].tolist() == [
        352732, 724476, 1695768, 1956726, 2943917, 3296254, 4439632, 5129014,
        5500135, 6040917, 6881554, 7247993, 8024382, 8595588, 9292487, 9768144]
    assert row_ids(ids, 2, m[15], p[15])[4].tolist() == [
        543015, 794171, 1855956, 2101022, 3228747, 3421079, 4036791, 4935818,
        5457351, 6208084, 6789311, 7394883, 8007265, 8595492, 9230752, 9883994]


if __name__ == "__main__":
    self_check()
    print("engram_hash: all vectors agree")
