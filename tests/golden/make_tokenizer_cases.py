"""Oracle ids of the `tokenizers` library: single texts, whole corpus slices, compressed-id maps.

Called by make_golden.py; writes OUT/cases.json and the tokenizer `flags`, whose added tokens carry every flag.
add_special_tokens is off throughout.
"""
import base64
import json
import os

import numpy as np
import xxhash
from tokenizers import AddedToken, Tokenizer, normalizers

from corpus import read_bytes
from engram_hash import compressed_map

PYTHON = '''def fib(n: int) -> int:
    """Fibonacci."""
    if n < 2:
        return n
\tx = {"a": [1, 2.5e-3], 'b': None}
    return fib(n-1) + fib(n - 2)  # slow!
'''
C_CODE = '''#include <stdio.h>
int main(int argc, char **argv)
{
\tfor (size_t i = 0; i < 10; i++) {
\t\tprintf("%zu:\\t0x%08lx\\n", i, ~0UL >> i); /* bits */
\t}
        return (a && b) || !c ? -1 : a->b[3].c;
}
'''


def runs(unit, *lengths):
    return "".join("w" + unit * n for n in lengths) + "w"


TEXTS = {
    "empty": "", "one letter": "a", "one space": " ", "one newline": "\n", "one digit": "7", "nul": "\x00",
    "nul inside": "a\x00b\x00\x00 c", "controls": "\x01\x02\x1b[0m\x7f\x85\x1c\x1d\x0b\x0c end",
    "english": "The quick brown fox jumps over the lazy dog. It didn't bark -- not once!",
    "paragraphs": "CHAPTER I\n\nMr. Smith, aged 42, said: \"Well...\"\n\n  Indented line.\n\n\n\nEnd",
    "chinese": "今天天气很好,我们去公园玩吧。孫悟空道:「師父莫怕!」",
    "chinese long": "却说那唐僧师徒四众歇马投庄不觉又行了三五日到了一座高山之下抬头观看真个是好山",
    "mixed": "我用Python3写了a function叫做foo(),它return 42个结果。OK?",
    "japanese": "吾輩は猫である。名前はまだ無い。カタカナ、ﾊﾝｶｸ、々〆ヶ",
    "korean": "안녕하세요 세계! 한국어", "korean decomposed": "\u1112\u1161\u11ab\u1100\u116e\u11a8\u110b\u1165",
    "arabic": "مرحبا بالعالم، كيف حالك؟ ١٢٣٤٥ السَّلَامُ", "hebrew": "שָׁלוֹם עוֹלָם",
    "hindi": "नमस्ते दुनिया, क्षत्रिय १२३ हिन्दी", "thai": "สวัสดีชาวโลก น้ำ ๑๒๓", "tibetan": "བོད་སྐད་ཡིག",
    "russian": "Привет, МИР! ёлка, и\u0306", "greek": "ΟΔΥΣΣΕΥΣ Ὀδυσσεύς άέή", "turkish": "İstanbul ılık ISPARTA",
    "vietnamese": "Tiếng Việt rất đẹp: ậ ệ ộ", "vietnamese decomposed": "Tie\u0302\u0301ng Vie\u0323\u0302t",
    "python": PYTHON, "c": C_CODE, "json": '{"k": [1,2,{"x":"\\u00e9\\n"}],"t":true}', "html": "<p class='a'>x&nbsp;</p>",
    "urls": "https://example.com/a/b?q=1&r=%20#frag user@host.org 192.168.0.1 C:\\dir\\f.txt",
    "emoji": "😀👍🏽👩‍👩‍👧‍👦🏳️‍🌈🇩🇪🇫🇷❤️ 1️⃣ ok", "emoji glued": "a😀b 😀 c😀😀", "astral": "𝒜𝓫𝔠 𐍈 𠮷野家 🜁 \U0010fffd",
    "private use": "\ue000x\uf8ff \U000f0000", "bom": "\ufeffstart \u200b\u200d\u2060 zero",
    "digits": "0 12 123 1234 12345 123456 1234567 12345678901234567890 3.14159 1,000,000 ½ ² ⅷ ٣٤٥ １２３",
    "contractions": "I'm you're he'll we'd they've it's don't I'M YOU'RE HE'LL WE'D THEY'VE IT'S DON'T 'Tis 'sup 'LLama",
    "contractions odd": "x'ſ y'ſt o'clock rock'n'roll ''s '' ' 's's 'K\u212aelvin I\u2019m don\u2019t",
    "crlf": "one\r\ntwo\r\n\r\nthree\rfour\n\rfive \r\n  \r\n six",
    "spaces": runs(" ", 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65, 100, 200),
    "spaces before punctuation": "a  ( b   ! c    ?\n  .  \n", "trailing spaces": "word   ", "leading spaces": "    word",
    "newlines": runs("\n", 1, 2, 3, 4, 5, 8, 9, 16, 33, 100), "tabs": runs("\t", 1, 2, 3, 4, 5, 8, 9, 16, 33, 70),
    "mixed white": "a \n b\t\n \tc \n\n d\n \n\te  \t  f\n   \n   g", "unicode white": "a\u00a0b\u2003c\u3000d\u2028e\u2029f\u0085g\u1680h",
    "unicode white runs": "a\u3000\u3000b \u00a0 c\u2003\n\u2003d", "letters run": "a" * 120 + " " + "Ab" * 40,
    "punctuation run": "!!!???...---===***###___" + "=" * 80, "punctuation letters": "(hello)[world]{x}<y>/z\\w_v-u+t",
    "nfc sensitive": "e\u0301 a\u030a o\u0308 n\u0303 c\u0327 \u212b \u2126 \u1e9b\u0323 \u0958 \uf900 \u0344",
    "nfd order": "q\u0307\u0323 q\u0323\u0307 \u0041\u030a\u0301", "combining alone": "\u0301a \u0301 \u20dd\u0489x",
    "many marks": "Z\u0351\u036b\u0343\u036a\u0302a\u0328\u0321l\u0334g\u0322o\u0321!", "ligatures": "ﬁne ﬂow ß ẞ Ǆ ǆ ŉ ①②",
    "superscript": "x² + y³ = z⁴, H₂O, 5′10″, 20 °C, €5 £3 ¥9 ¢1", "roman": "Chapter Ⅳ, Ⅷ ⅳ", "quotes": "“Quoted” ‘single’ «guillemets» „low“ — – …",
    "math": "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋ ≠ ∞ √2 ≈ 1.41421", "box": "┌──┬──┐\n│  │██│\n└──┴──┘", "braille": "⠓⠑⠇⠇⠕", "cuneiform": "𒀀𒀁 𓀀",
    "interlinear": "\ufff9a\ufffab\ufffb \ufffc \ufffd", "noncharacters": "\uffff \ufdd0 \U0001ffff", "soft hyphen": "co\u00adop \u2011 \u2060x",
    "bidi": "\u202eabc\u202c \u2066x\u2069", "variation": "☃︎ ☃️ 葛󠄀", "modifier letters": "ʰʲˠ ˈaɪ ᴬᴮ ʼn ㎏ ㈱",
    "camel": "parseHTTPResponseCode snake_case_name SCREAMING_CASE kebab-case x1y2z3", "long word": "Donaudampfschifffahrtsgesellschaftskapitän",
    "prompt": "User: Hi\nAssistant: Hello!\n\nUser: 2+2=?\nAssistant:",
}
BROKEN = {
    "lone ff": b"\xff", "lone continuation": b"a\x80b", "cut two": b"caf\xc3", "cut three": "中".encode()[:2] + b"x",
    "cut four": b"\xf0\x9f\x98", "cut four then text": b"\xf0\x9f ok", "surrogate": b"\xed\xa0\x80\xed\xb0\x80",
    "overlong nul": b"\xc0\x80", "overlong three": b"\xe0\x80\xaf", "beyond unicode": b"\xf4\x90\x80\x80",
    "five bytes": b"\xf8\x88\x80\x80\x80", "run of bad": b"\xfe\xfe\xff\xff \xc3\xc3\xa9", "latin1": "déjà vu".encode("latin-1"),
    "good among bad": b"\xe4\xbd\xa0\xe5\xa5\xe4\xbd\xa0 \xf0\x9f\x98\x80\xf0\x9f",
}
FILES = [("corpus/en_valid.txt", 300000), ("corpus/zh_xiyou_ji.txt", 200000), ("corpus/zh_sanguo_yanyi.txt", 150000),
         ("corpus/multi_udhr.jsonl", 300000), ("corpus/multi_stories_asp.jsonl", 300000),
         ("corpus/en_zh_tatoeba.tsv", 200000), ("prompts/chat_prompts_cc0.jsonl", 300000),
         ("corpus/en_web_bible.txt", 100000)]


def added_token_texts(contents):
    """Texts around a tokenizer's own added tokens, and near misses."""
    out = {}
    for c in contents:
        middle = len(c) // 2
        out.update({
            f"added {c}": c, f"added inside {c}": f"a{c}b {c} c", f"added twice {c}": c + c,
            f"added lines {c}": f"x  {c}\n\n{c}  y", f"added cut {c}": c[:-1] + " " + c[1:],
            f"added split {c}": c[:middle] + " " + c[middle:], f"added case {c}": c.upper() + c.lower(),
            f"added overlap {c}": c[:middle] + c + c[middle:]})
    return out


FLAG_TOKENS = [
    AddedToken("<plain>", normalized=False), AddedToken("<left>", lstrip=True, normalized=False),
    AddedToken("<right>", rstrip=True, normalized=False),
    AddedToken("<both>", lstrip=True, rstrip=True, normalized=False),
    AddedToken("word", single_word=True, normalized=False), AddedToken("caf\u00e9!", normalized=True),
    AddedToken("r\u00e9s", normalized=False), AddedToken("<aa>", normalized=False), AddedToken("<aa><bb>", normalized=False),
    AddedToken("aa><", normalized=True), AddedToken("两个", single_word=True, normalized=False)]
FLAG_SPECIAL = [AddedToken("<|s|>", special=True, normalized=False, lstrip=True),
                AddedToken("<|mask|>", special=True, normalized=False, single_word=True)]
FLAG_TEXTS = {
    "plain": "a <plain> b<plain>c", "left": "a  <left> b \n\t<left>c", "right": "a <right>  b<right>\n\n c<right>",
    "both": "a  <both>  b\u3000<both>\u00a0c", "both only": "  <both>  ", "single word": "word words sword word, (word) word_ word1 word",
    "single word unicode": "wordé éword word中 中word word\u0301 word", "single word han": "两个 这两个人 两个, a两个",
    "normalized composed": "caf\u00e9! x", "normalized decomposed": "cafe\u0301! x", "raw composed": "r\u00e9s x",
    "raw decomposed": "re\u0301s x", "longest": "<aa><bb> <aa><b <aa>", "leftmost": "<aa>< x<aa><aa><bb>",
    "special left": "a  <|s|> b <|s|><|s|>", "special single": "a<|mask|>b <|mask|> (<|mask|>) 1<|mask|>", "left twice": " <left> <left> ",
    "right then left": "<right> <left>", "nested": "<pl<plain>ain>", "near": "<plain <PLAIN> < plain> plain>"}


def flags_tokenizer(folder):
    """The tiny tokenizer with an NFC normaliser and one added token per flag."""
    tok = Tokenizer.from_file(os.path.join(folder, "tiny", "tokenizer.json"))
    tok.normalizer = normalizers.NFC()
    tok.add_tokens(FLAG_TOKENS)
    tok.add_special_tokens(FLAG_SPECIAL)
    os.makedirs(os.path.join(folder, "flags"), exist_ok=True)
    tok.save(os.path.join(folder, "flags", "tokenizer.json"), pretty=False)


def b64(data):
    return base64.b64encode(data).decode()


def char_boundary(data, at):
    while at < len(data) and data[at] & 0xC0 == 0x80:
        at -= 1
    return at


def digest(array):
    return xxhash.xxh64(np.asarray(array, dtype="<i4").tobytes(), seed=0).hexdigest()


def make_cases(data, out, demo_path):
    flags_tokenizer(out)
    added = {"deepseek_v3": ["<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜tool▁sep｜>"],
             "qwen2": ["<|endoftext|>", "<|im_start|>"], "glm_4_6": ["<|user|>", "<think>", "/nothink"],
             "demo": ["<|endoftext|>"], "tiny": ["<|endoftext|>"], "flags": []}
    paths = {n: os.path.join(out, n, "tokenizer.json") for n in ("tiny", "flags")}
    if demo_path:
        paths["demo"] = demo_path
    cases, corpus, compressed = [], [], []
    for name in ("deepseek_v3", "qwen2", "glm_4_6", "demo", "tiny", "flags"):
        if name in paths:
            tok = Tokenizer.from_file(paths[name])
        elif name == "demo":
            continue
        else:
            tok = Tokenizer.from_str(read_bytes(data, f"tokenizers/{name}/tokenizer.json").decode("utf-8"))
        for c in added[name]:
            assert tok.token_to_id(c) is not None, (name, c)
        texts = {**TEXTS, **BROKEN, **added_token_texts(added[name])}
        if name == "tiny":  # its merges are few: only what its other pre-tokenizer could get wrong
            texts = {k: v for i, (k, v) in enumerate(texts.items()) if i % 3 == 0 or "contr" in k or "white" in k}
        if name == "flags":
            texts = FLAG_TEXTS
        for label, text in texts.items():
            raw = text if isinstance(text, bytes) else text.encode("utf-8")
            ids = tok.encode(raw.decode("utf-8", "replace"), add_special_tokens=False).ids
            decoded = tok.decode(ids, skip_special_tokens=False).encode("utf-8")
            cases.append({"tokenizer": name, "name": label, "text_b64": b64(raw), "ids": ids, "decoded_b64": b64(decoded)})
        if name != "flags":
            for file, size in FILES:
                whole = read_bytes(data, file)
                # From the middle: the openings of these files are titles and contents.
                a = char_boundary(whole, min(len(whole) // 3, len(whole) - size))
                b = char_boundary(whole, a + size)
                ids = tok.encode(whole[a:b].decode("utf-8"), add_special_tokens=False).ids
                corpus.append({"tokenizer": name, "file": file, "offset": a, "length": b - a, "n_ids": len(ids),
                               "xxh64": digest(ids)})
        n = max(tok.get_vocab(with_added_tokens=True).values()) + 1
        cmap, count = compressed_map(tok, n)
        compressed.append({"tokenizer": name, "vocab": n, "count": count, "xxh64": digest(cmap)})
        print(f"tokenizer {name}: {len(texts)} cases, vocabulary {n}, compressed {count}")
    with open(os.path.join(out, "cases.json"), "w") as f:
        parts = ['"%s":[\n%s\n]' % (key, ",\n".join(json.dumps(r, separators=(",", ":")) for r in rows))
                 for key, rows in (("cases", cases), ("corpus", corpus), ("compressed", compressed))]
        f.write("{" + ",\n".join(parts) + "}\n")
    size = os.path.getsize(os.path.join(out, "cases.json"))
    print(f"cases.json: {len(cases)} cases, {len(corpus)} slices, {size} bytes")
