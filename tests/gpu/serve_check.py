#!/usr/bin/env python3
"""A short serve of the demo model on a GPU, over real sockets; and its tokens against another device's.

  serve_check.py [ENGRAMD] [--device cuda:0] [--wrap COMMAND] [--conf FILE] [--few]
  serve_check.py [ENGRAMD] [--device cuda:0] --compare cpu [--prompts 50] [--tokens 48]

The first starts the daemon, under COMMAND if there is one (such as "compute-sanitizer --tool memcheck --error-exitcode 9"),
sends a request of every kind, ends it with SIGTERM and looks at its exit status: a line a check; --few makes it a
handful of small requests that still reach every kind of step, each check in a daemon of its own, for tools that slow the
device down a hundred times and keep what they see. The second asks the
device and the other one for greedy continuations of the same prompts, and the device once more with its tables in RAM
and on the disk alone: how many tokens are equal, how close the two best logits were where they are not, how far
log-probabilities are apart; and whether placement changed a bit, which it may not. Exit status 1: something failed; 77:
there is no such device here.
"""
import argparse
import http.client
import json
import math
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "http"))
from daemon import ROOT, SANITIZER, Daemon, Skip  # noqa: E402

STORY = "Once upon a time there was a king who had three sons."
OTHER = "The old man opened the door and"
GREEDY = {"temperature": 0, "ignore_eos": True}
IDS = {"return_tokens_as_token_ids": True}
PLACEMENTS = {
    "HBM only": {"tier.hbm.size": "64MiB", "tier.ram.size": "0B"},
    "RAM only": {"tier.hbm.size": "0B", "tier.ram.size": "64MiB"},
    "disk alone": {"tier.hbm.size": "0B", "tier.ram.size": "0B"},
}
# A difference of tokens is rounding where the other device's two best log-probabilities are this close: twice the
# largest difference of a log-probability seen on an H100 (docs/measurements.md).
NEAR_TIE = 0.06
FEW_CHUNK = 64


class Server(Daemon):
    """The daemon with a configuration file, maybe inside another program, which may be slow and has the exit status."""

    def __init__(self, args, device, options=None):
        super().__init__(admin=True)
        self.args, self.on_cpu = args, device == "cpu"
        self.patience = 900 if args.wrap else 120
        self.few = args.few
        settings = {"device": device, "server.listen": "127.0.0.1:0", "server.admin_socket": self.admin_path,
                    **(options or {})}
        self.arguments = [*shlex.split(args.wrap or ""), str(pathlib.Path(args.engramd).resolve()),
                          "--config", str(pathlib.Path(args.conf).resolve())]
        for key, value in settings.items():
            self.arguments += ["--set", f"{key}={value}"]

    def __enter__(self):
        # compute-sanitizer reports on standard output.
        self.process = subprocess.Popen(self.arguments, cwd=ROOT, env=self.env, stdin=subprocess.DEVNULL,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        self.process.stderr = self.process.stdout
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        try:
            self.wait(self.patience)
        except AssertionError:
            self.close()
            missing = re.search(r"device = cuda:\d+:.*", self.text())
            if missing:
                raise Skip(missing[0]) from None
            raise
        return self

    def daemon_pid(self):
        """The daemon's own process: a wrapper may not hand signals on."""
        parent, name = {}, {}
        for entry in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                before, _, after = (entry / "stat").read_text().rpartition(")")
            except OSError:
                continue
            parent[int(entry.name)] = int(after.split()[1])
            name[int(entry.name)] = before.partition("(")[2]
        for pid in name:
            at = pid
            while at in parent and at != self.process.pid:
                at = parent[at]
            if at == self.process.pid and name[pid].startswith("engramd"):
                return pid
        return self.process.pid

    def stop(self, signal_number=signal.SIGTERM, seconds=None):
        if self.process.poll() is None:
            os.kill(self.daemon_pid(), signal_number)
        try:
            status = self.process.wait(seconds or self.patience)
        except subprocess.TimeoutExpired:
            os.kill(self.daemon_pid(), signal.SIGKILL)
            self.process.kill()
            self.process.wait()
            raise AssertionError("it did not end") from None
        self.reader.join(10)
        if SANITIZER.search(self.text()):
            raise AssertionError("sanitizer report:\n" + self.text())
        return status

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.reader.join(10)
        self.process.stderr.close()
        self.folder.cleanup()

    def connect(self, timeout=None):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout or self.patience)

    def request(self, method, path, body=None, headers=None, timeout=None):
        return super().request(method, path, body, headers, timeout or self.patience)

    def cut(self, n):
        """How many tokens to ask for where n are wanted of a whole run."""
        return max(2, n // 12) if self.few else n

    def ids(self, prompt, n, **fields):
        """Greedy, unless fields say otherwise: token ids and log-probabilities."""
        answer = self.complete(prompt, max_tokens=n, logprobs=0, **{**GREEDY, **IDS, **fields})
        got = answer["choices"][0]["logprobs"]
        return [int(t.removeprefix("token_id:")) for t in got["tokens"]], got["token_logprobs"]


def check_greedy(server):
    n = server.cut(24)
    tokens, logprobs = server.ids(STORY, n)
    assert len(tokens) == n and all(-30 < x <= 0 for x in logprobs), logprobs
    for _ in range(3):  # issued, captured, replayed
        assert server.ids(STORY, n) == (tokens, logprobs), "the same request again gives other bits"
    text = server.complete(STORY, max_tokens=n, **GREEDY)["choices"][0]["text"]
    assert text, "no text"
    return text.replace("\n", " ")[:60]


def check_seed(server):
    fields = {"temperature": 0.9, "ignore_eos": True}
    a, b, c = (server.ids(STORY, server.cut(24), seed=seed, **fields)[0] for seed in (7, 7, 8))
    assert a == b, "a seed gives other tokens the second time"
    assert a != c, "two seeds give the same tokens"


def check_narrow(server):
    n = server.cut(12)
    wanted, _ = server.ids(STORY, n)
    for fields in ({"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1}):
        assert server.ids(STORY, n, temperature=1, seed=3, **fields)[0] == wanted, fields
    for fields in ({"top_k": 20}, {"top_p": 0.9}, {"min_p": 0.05}, {"top_k": 40, "top_p": 0.95, "min_p": 0.01}):
        again = [server.ids(STORY, n, temperature=1.1, seed=5, **fields) for _ in range(2)]
        assert again[0] == again[1], fields


def check_penalties(server):
    plain, _ = server.ids(STORY, 40)
    assert server.ids(STORY, 40, repetition_penalty=1.0, presence_penalty=0, frequency_penalty=0)[0] == plain
    for fields in ({"repetition_penalty": 100.0}, {"presence_penalty": 2.0}, {"frequency_penalty": 2.0}):
        changed, _ = server.ids(STORY, 40, **fields)
        assert len(set(changed)) > len(set(plain)), (fields, plain, changed)


def check_bias(server):
    first, _ = server.ids(STORY, 8)
    assert first[0] not in server.ids(STORY, 8, logit_bias={str(first[0]): -100})[0]
    assert server.ids(STORY, 8, logit_bias={str(first[3]): 100}, temperature=1)[0] == [first[3]] * 8
    many = {str(i): -1 for i in range(300)}
    assert len(server.ids(STORY, 8, logit_bias=many)[0]) == 8


def check_logprobs(server):
    got = server.complete(STORY, max_tokens=server.cut(12), logprobs=20, **GREEDY)["choices"][0]["logprobs"]
    for token, logprob, top in zip(got["tokens"], got["token_logprobs"], got["top_logprobs"], strict=True):
        assert len(top) >= 18 and abs(top[token] - logprob) < 1e-6
        assert max(top.values()) <= logprob + 1e-6, "greedy did not take the likeliest"
        assert sum(math.exp(x) for x in top.values()) <= 1.001


def check_scoring(server):
    got = server.complete(STORY, max_tokens=0, echo=True, logprobs=1)["choices"][0]["logprobs"]
    scores = got["token_logprobs"]
    assert scores[0] is None and len(scores) > 8 and all(-40 < x <= 0 for x in scores[1:]), scores
    off = server.complete(STORY, max_tokens=0, echo=True, logprobs=1, engram=False)["choices"][0]["logprobs"]
    assert off["token_logprobs"] != scores, "without Engram the scores are the same"
    return f"mean {sum(scores[1:]) / (len(scores) - 1):.3f}, without Engram " \
           f"{sum(off['token_logprobs'][1:]) / (len(scores) - 1):.3f}"


def check_choices(server):
    fields = dict(n=4, max_tokens=16, temperature=1, seed=11, ignore_eos=True)
    choices = server.complete(STORY, **fields)["choices"]
    assert [c["index"] for c in choices] == [0, 1, 2, 3]
    assert len({c["text"] for c in choices}) > 1, choices
    assert choices == server.complete(STORY, **fields)["choices"]


def text_of(events):
    assert events[-1] == "[DONE]", events[-1]
    assert not any("error" in event for event in events[:-1]), events[-2]
    return "".join(c["text"] for event in events[:-1] for c in event["choices"])


def check_streams(server):
    prompts, result, n = [STORY, OTHER], {}, server.cut(64)
    alone = [server.complete(p, max_tokens=n, **GREEDY)["choices"][0]["text"] for p in prompts]

    def ask(i):
        result[i] = text_of(server.stream(prompts[i], max_tokens=n, **GREEDY))
    threads = [threading.Thread(target=ask, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(result) == 2, "a stream failed"
    together = [result[0], result[1]]
    # The CPU promises the bits of a row whatever is beside it; a GPU those of a padded number of rows.
    if server.on_cpu:
        assert together == alone
    assert all(together)
    return f"{sum(a == b for a, b in zip(together, alone))} of 2 texts are those of each alone"


def check_batch(server):
    words = (ROOT / "tests" / "bench" / "prose.txt").read_text().split()
    prompts = [" ".join(words[i * 60:i * 60 + 5 + 3 * i]) for i in range(16)]
    choices = server.complete(prompts, max_tokens=24, **GREEDY)["choices"]
    alone = [server.complete(p, max_tokens=24, **GREEDY)["choices"][0]["text"] for p in prompts]
    same = sum(c["text"] == text for c, text in zip(choices, alone, strict=True))
    assert same >= (16 if server.on_cpu else 12), f"{same} of 16 texts are those of each alone"
    return f"{same} of 16 texts are those of each alone"


def check_long(server):
    text = (ROOT / "tests" / "bench" / "prose.txt").read_text()[:1300 if server.few else 5200]
    answer = server.complete(text, max_tokens=server.cut(16), **GREEDY)
    n = answer["usage"]["prompt_tokens"]
    assert n > 3 * (FEW_CHUNK if server.few else 256), n
    scores = server.complete(text, max_tokens=0, echo=True, logprobs=0)["choices"][0]["logprobs"]["token_logprobs"]
    assert all(-60 < x <= 0 for x in scores[1:])
    return f"{n} prompt tokens, mean log-probability {sum(scores[1:]) / (len(scores) - 1):.3f}"


def check_prefix(server):
    # Chunks end where they ended the first time, so that the last one is the same step.
    prompt = " ".join((ROOT / "tests" / "bench" / "prose.txt").read_text().split()[3000:3600])
    before = server.metric("prefix_cache_hit_tokens_total")
    first = server.ids(prompt, 16)
    assert server.metric("prefix_cache_hit_tokens_total") == before, "the prompt is not new"
    again = server.ids(prompt, 16)
    found = server.metric("prefix_cache_hit_tokens_total") - before
    assert found >= 256, f"{found} tokens found"
    assert again == first, "other bits than without the cache"
    return f"{found:.0f} tokens found, same bits"


def check_preemption(server):
    words = (ROOT / "tests" / "bench" / "prose.txt").read_text().split()
    prompts = [" ".join(words[i * 50:i * 50 + 8]) for i in range(6)]
    room = "4MiB" if server.on_cpu else "2MiB"  # 512 tokens; the six take 750 or more
    with Server(server.args, server.args.device, {"engine.kv_size": room}) as small:
        alone = [small.complete(p, max_tokens=120, **GREEDY)["choices"][0]["text"] for p in prompts]
        assert small.metric("preemptions_total") == 0
        answer = small.complete(prompts, max_tokens=120, **GREEDY)
        n, times = answer["usage"]["completion_tokens"], small.metric("preemptions_total")
        assert n == 6 * 120 and times > 0, f"{n} tokens, {times} preemptions"
        same = sum(c["text"] == text for c, text in zip(answer["choices"], alone, strict=True))
        # A GPU computes a preempted sequence's tokens again as a prompt, with other roundings.
        assert not small.on_cpu or same == 6, f"{same} of 6 texts are those of each alone"
        small.idle(small.patience)
        assert small.stop() == 0
    return f"{times:.0f} preemptions, {same} of 6 texts are those of each alone"


def check_missing(server):
    """A device that is not there: what was looked for, what was found, and no daemon."""
    done = subprocess.run([str(pathlib.Path(server.args.engramd).resolve()), "--config",
                           str(pathlib.Path(server.args.conf).resolve()), "--set", "device=cuda:99", "--set",
                           "server.listen=127.0.0.1:0"], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, timeout=60, check=False)
    said = re.search(r"device = cuda:99: .*", done.stderr)
    assert done.returncode == 69 and said, (done.returncode, done.stderr[-400:])
    assert server.on_cpu or re.search(r"looked for GPU 99, found [1-9]", said[0]), said[0]
    return said[0][:100]


def check_disconnect(server):
    for received in (0, 1):
        connection = server.connect()
        connection.request("POST", "/v1/completions", json.dumps(
            {"prompt": STORY, "max_tokens": 1500, "stream": True, "ignore_eos": True, "n": 4}),
            {"Content-Type": "application/json"})
        if received:
            assert connection.getresponse().read(20).startswith(b"data: ")
        connection.close()
    begin = time.monotonic()
    server.idle(server.patience)
    waited = time.monotonic() - begin
    return f"idle after {waited:.2f} s"


def check_resize(server):
    wanted = server.ids(STORY, 24)
    for hbm, ram in (("0B", "0B"), ("32KiB", "64KiB"), ("64MiB", "0B"), ("0B", "64MiB"), ("384KiB", "5632KiB")):
        status, answer = server.admin("PATCH", "/v1/tiers", {"tiers": {"hbm": hbm, "ram": ram}})
        assert status == 200, answer
        for _ in range(2):  # cold, then as warm as it gets
            assert server.ids(STORY, 24) == wanted, f"hbm {hbm}, ram {ram}: other bits"


def check_resize_under_load(server):
    stop, failures = threading.Event(), []

    def resize():
        i = 0
        while not stop.wait(0.01):
            i += 1
            status, answer = server.admin("PATCH", "/v1/tiers", {"tiers": {
                "hbm": ["0B", "64KiB", "2MiB"][i % 3], "ram": ["1MiB", "0B", "16KiB", "4MiB"][i % 4]}})
            if status != 200:
                failures.append(answer)
    wanted = server.ids(OTHER, 100)
    thread = threading.Thread(target=resize)
    thread.start()
    try:
        assert server.ids(OTHER, 100) == wanted, "other bits"
    finally:
        stop.set()
        thread.join()
    assert not failures, failures[0]


def check_reports(server):
    tiers = server.get("/v1/tiers")
    assert tiers["nvme"]["errors"] == 0, tiers["nvme"]
    assert server.get("/readyz")["status"] == "ok"
    assert server.metric("generation_tokens_total") > 500
    return ", ".join(f"{tier['name']} {tier['hits']} hits" for tier in tiers["tiers"])


CHECKS = {
    "greedy, four times": check_greedy,
    "temperature with a seed": check_seed,
    "top_k, top_p, min_p": check_narrow,
    "penalties": check_penalties,
    "logit_bias": check_bias,
    "logprobs": check_logprobs,
    "echo and scores of a prompt": check_scoring,
    "n = 4": check_choices,
    "two streams at once": check_streams,
    "sixteen prompts at once": check_batch,
    "a long prompt in chunks": check_long,
    "a prompt seen before": check_prefix,
    "more sequences than KV pages": check_preemption,
    "a GPU that is missing": check_missing,
    "clients that leave": check_disconnect,
    "tiers resized between requests": check_resize,
    "tiers resized during one": check_resize_under_load,
    "what it reports": check_reports,
}
FEW = ["greedy, four times", "temperature with a seed", "top_k, top_p, min_p", "logprobs", "two streams at once",
       "a long prompt in chunks"]


def run_checks(args, checks):
    """In one daemon; the titles of what failed."""
    failed, ended = [], None
    server = Server(args, args.device, {"engine.prefill_chunk": FEW_CHUNK} if args.few else None)
    server.__enter__()
    try:
        for line in server.lines:
            if "device " in line:
                print("# " + line)
        for title, check in checks.items():
            begin = time.monotonic()
            try:
                said = check(server)
                print(f"ok     {title} ({time.monotonic() - begin:.2f} s){': ' + said if said else ''}", flush=True)
            except Exception as error:  # noqa: BLE001: the next check may pass
                failed.append(title)
                print(f"FAILED {title}: {type(error).__name__}: {str(error)[:800]}", flush=True)
            if server.process.poll() is not None:
                failed.append("the daemon's life")
                break
        ended = server.stop()
    except AssertionError as error:
        print(f"FAILED the end: {error}")
    finally:
        server.close()
    if ended == 0:
        print("ok     SIGTERM: exit status 0")
    else:
        failed.append("exit status")
        found = next((i for i, line in enumerate(server.lines) if "===== " in line and "COMPUTE-SANITIZER" not in line
                      and line.strip("= ")), None)
        if found is not None:
            print("the first finding:\n" + "\n".join(server.lines[found:found + 40]))
        print(f"FAILED exit status {ended}; the last lines:\n" + "\n".join(server.lines[-20:]))
    for line in server.lines:
        if " SUMMARY: " in line:
            print("# " + line)
    return failed


def serve(args):
    # racecheck keeps some GiB of every step until its program ends.
    rounds = [{title: CHECKS[title]} for title in FEW] if args.few else [CHECKS]
    failed = [title for checks in rounds for title in run_checks(args, checks)]
    print(f"{sum(map(len, rounds)) + len(rounds) - len(failed)} passed, {len(failed)} failed: {args.device}"
          f"{', under ' + args.wrap if args.wrap else ''}")
    return 1 if failed else 0


def prompts_of(n):
    """Beginnings of sentences all over the text, of 4 to 40 words."""
    words = (ROOT / "tests" / "bench" / "prose.txt").read_text().split()
    starts = [i + 1 for i, word in enumerate(words[:-60]) if word.endswith(".") and word[:-1].isalpha()]
    return [" ".join(words[starts[k * len(starts) // n]:][:4 + k * 7 % 37]) for k in range(n)]


def continuations(args, device, options):
    result = []
    with Server(args, device, options) as server:
        for prompt in prompts_of(args.prompts):
            choice = server.complete(prompt, max_tokens=args.tokens, logprobs=2, **GREEDY, **IDS)["choices"][0]
            result.append(choice["logprobs"])
        tiers = {tier["name"]: tier["hits"] for tier in server.get("/v1/tiers")["tiers"]}
        server.idle(server.patience)
    print(f"# {device}, {options}: hits {tiers}", flush=True)
    return result


def compare(args):
    other = continuations(args, args.compare, PLACEMENTS["HBM only"])
    mine = {name: continuations(args, args.device, options) for name, options in PLACEMENTS.items()}
    failed, texts, tokens, most, margins = 0, 0, 0, 0.0, []
    for a, b in zip(other, mine["HBM only"], strict=True):
        same = next((i for i, (x, y) in enumerate(zip(a["tokens"], b["tokens"])) if x != y), len(a["tokens"]))
        assert len(a["tokens"]) == len(b["tokens"]) == args.tokens
        tokens += same
        most = max([most, *(abs(x - y) for x, y in zip(a["token_logprobs"][:same], b["token_logprobs"][:same]))])
        if same == args.tokens:
            texts += 1
            continue
        best = sorted(a["top_logprobs"][same].values(), reverse=True)
        margins.append(best[0] - best[1])
    print(f"{args.device} against {args.compare}: {texts} of {args.prompts} continuations equal, {tokens} of "
          f"{args.prompts * args.tokens} tokens before the first difference")
    print(f"where they part, {args.compare}'s two best are apart by: {', '.join(f'{m:.4f}' for m in margins) or '-'}")
    print(f"largest difference of a log-probability before that: {most:.4f}")
    if any(m > NEAR_TIE for m in margins) or most > NEAR_TIE:
        failed += 1
        print(f"FAILED: more than {NEAR_TIE}")
    for name in list(PLACEMENTS)[1:]:
        equal = sum(a == b for a, b in zip(mine["HBM only"], mine[name], strict=True))
        failed += equal != args.prompts
        print(f"{args.device}, {name} against HBM only: {equal} of {args.prompts} bit-equal, log-probabilities too"
              f"{'' if equal == args.prompts else ': FAILED'}")
    return 1 if failed else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engramd", nargs="?", default=str(ROOT / "build" / "engramd"))
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--conf", default=str(ROOT / "conf" / "demo.conf"))
    parser.add_argument("--wrap", help="a program and its arguments to run the daemon under")
    parser.add_argument("--few", action="store_true", help="a handful of small requests")
    parser.add_argument("--compare", metavar="DEVICE", help="greedy tokens against those of this device")
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=48)
    args = parser.parse_args()
    try:
        return compare(args) if args.compare else serve(args)
    except Skip as why:
        print(f"skipped: {why}")
        return 77


if __name__ == "__main__":
    sys.exit(main())
