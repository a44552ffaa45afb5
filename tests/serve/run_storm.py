#!/usr/bin/env python3
"""Many clients at once, some of whom leave, while tier sizes change: every answer is the one a client alone gets."""
import json
import pathlib
import random
import re
import signal
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "http"))
from daemon import SANITIZED, Daemon, run  # noqa: E402
from wire import Wire, wait_until  # noqa: E402

SECONDS = 12
WORDS = ["Once upon a time", "The king", "My dear", "In the old house there was", "x", "One morning, "]


def requests_of(rng, n):
    """Requests of every kind; each says the same whenever it is asked."""
    for _ in range(n):
        prompt = rng.choice([rng.choice(WORDS), rng.sample(WORDS, 2), rng.choice(WORDS) * 20])
        body = {"prompt": prompt, "max_tokens": rng.choice([1, 5, 12, 30]), "n": rng.choice([1, 1, 2, 3, 8]),
                "seed": rng.randrange(1000), "temperature": rng.choice([0, 0.7, 1.5]), "ignore_eos": True}
        if rng.random() < 0.3:
            body["logprobs"] = rng.randrange(6)
        if rng.random() < 0.3:
            body["echo"] = True
        if rng.random() < 0.3:
            body["stop"] = [rng.choice("aeiost"), " the "]
        if rng.random() < 0.2:
            body["frequency_penalty"] = 0.5
        yield body


def essence(choices):
    """What must not change: texts and reasons, bit by bit; log-probabilities within 1e-4 (batches differ)."""
    exact = [(c["index"], c["text"], c["finish_reason"], c["logprobs"] and c["logprobs"]["tokens"],
              c["logprobs"] and c["logprobs"]["text_offset"]) for c in choices]
    scores = [v for c in choices if c["logprobs"] for v in c["logprobs"]["token_logprobs"]]
    return exact, scores


def equal(a, b):
    return a[0] == b[0] and len(a[1]) == len(b[1]) and all(
        x is y or abs(x - y) <= 1e-4 for x, y in zip(a[1], b[1], strict=True))


def gather(chunks):
    """The choices of a whole answer, out of the events of a stream."""
    events = b"".join(chunks).decode().split("\n\n")
    assert events.pop() == "" and events.pop() == "data: [DONE]"
    events = [event for event in events if event != ": ping"]  # who waits long for a token is told that it is on its way
    choices = {}
    for event in events:
        [part] = json.loads(event.removeprefix("data: "))["choices"]
        whole = choices.setdefault(part["index"], part)
        if whole is part:
            continue
        assert whole["finish_reason"] is None, "a choice goes on after its end"
        whole["text"] += part["text"]
        whole["finish_reason"] = part["finish_reason"]
        for key in part["logprobs"] or ():
            whole["logprobs"][key] = (whole["logprobs"][key] or []) + (part["logprobs"][key] or [])
    return [choices[i] for i in sorted(choices)]


def client(daemon, rng, wanted, until, counts):
    while time.monotonic() < until:
        body, essential = rng.choice(wanted)
        stream, leave = rng.random() < 0.5, rng.random() < 0.25
        try:
            with Wire(daemon, timeout=120) as wire:
                wire.request("POST", "/v1/completions", {**body, "stream": stream})
                if leave:
                    time.sleep(rng.random() * 0.2)
                    if rng.random() < 0.5:
                        wire.reset()
                    counts["left"] += 1
                    continue
                answer = wire.head() if stream else wire.response()
                if answer.status == 429:
                    counts["refused"] += 1
                    time.sleep(0.05)
                    continue
                assert answer.status == 200, answer.status
                choices = gather(wire.chunks()) if stream else answer.json()["choices"]
                assert equal(essence(choices), essential), (body, choices)
                counts["answered"] += 1
        except ConnectionResetError:
            assert leave


def resize(daemon, rng, until):
    while time.monotonic() < until:
        status, answer = daemon.admin("PATCH", "/v1/tiers", {"tiers": {
            "hbm": rng.choice([0, 1000, "64KiB", "1MiB", "16MiB"]), "ram": rng.choice([0, 1, "100KiB", "3MiB", "16MiB"])}})
        assert status == 200, answer
        time.sleep(rng.random() * 0.1)


def in_threads(functions):
    errors = []

    def guarded(function):
        try:
            function()
        except Exception as error:  # noqa: BLE001: shown below
            errors.append(error)
    threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors[:3]


def check_nothing_is_left(daemon):
    daemon.idle(20)
    wait_until(lambda: daemon.metric("http_connections") == 1, 10, "one connection, that of the question")
    wait_until(lambda: daemon.metric("kv_cache_usage_ratio") == 0, 5, "an empty KV cache")


def test_sixty_four_clients_get_what_each_would_get_alone():
    rng = random.Random(1)
    with Daemon({"tier.hbm.size": "0B", "tier.ram.size": "0B"}) as alone:
        wanted = [(body, essence(alone.complete(**body)["choices"])) for body in requests_of(rng, 40)]
    with Daemon({"engine.max_queue": "100"}, admin=True) as daemon:
        until, counts = time.monotonic() + SECONDS, dict.fromkeys(["answered", "left", "refused"], 0)
        clients = [lambda seed=seed: client(daemon, random.Random(seed), wanted, until, counts) for seed in range(64)]
        in_threads([*clients, lambda: resize(daemon, rng, until)])
        print(f"# {counts}")
        assert counts["answered"] > 20 and counts["left"] > 20, counts
        check_nothing_is_left(daemon)
        for body, essential in wanted[:10]:
            assert equal(essence(daemon.complete(**body)["choices"]), essential), body


def resident(daemon):
    text = pathlib.Path(f"/proc/{daemon.process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", text)[1]) * 1024


def test_ten_thousand_small_requests_leave_nothing_behind():
    n = 10000 if not SANITIZED else 2000
    small = {"prompt": "a", "max_tokens": 1, "temperature": 0}
    with Daemon() as daemon:
        first = daemon.complete(**small)["choices"]

        def some(count, path):
            with Wire(daemon, timeout=300) as wire:
                for _ in range(count):
                    if path:
                        assert wire.request("GET", path).response().status == 200
                    else:
                        assert wire.request("POST", "/v1/completions", small).response().json()["choices"] == first
        in_threads([lambda: some(n // 40, None)] * 4)
        before = resident(daemon)
        in_threads([lambda: some(n // 8, None)] * 4 + [lambda: some(n // 8, "/livez")] * 2 +
                   [lambda: some(n // 16, path) for path in ["/metrics", "/v1/tiers", "/v1/models"]])
        check_nothing_is_left(daemon)
        grown = resident(daemon) - before
        print(f"# {grown / 1024:.0f} KiB more than before")
        if not SANITIZED:
            assert grown < 4 << 20, grown


def test_a_server_that_is_killed_and_started_again_says_the_same():
    body = {"prompt": WORDS[:4], "n": 3, "max_tokens": 40, "seed": 5, "temperature": 0.9, "ignore_eos": True}
    with Daemon() as daemon:
        wanted = essence(daemon.complete(**body)["choices"])
    for _ in range(3):
        killed = Daemon().__enter__()
        with Wire(killed) as wire:
            wire.request("POST", "/v1/completions", {**body, "max_tokens": 400, "stream": True})
            wire.head()
            next(wire.chunks())
            killed.process.send_signal(signal.SIGKILL)
            try:
                while wire.more():
                    pass
            except ConnectionResetError:
                pass
            assert b"[DONE]" not in wire.buffer and not wire.buffer.endswith(b"0\r\n\r\n"), "it looked complete"
        assert killed.stop() == -signal.SIGKILL
        killed.process.stderr.close()
        killed.folder.cleanup()
    with Daemon() as daemon:
        assert equal(essence(daemon.complete(**body)["choices"]), wanted)


if __name__ == "__main__":
    run(globals())
