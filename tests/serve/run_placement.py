#!/usr/bin/env python3
"""Placement decides speed, never tokens: the same prompts with every placement of the tables, bit for bit."""
import pathlib
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "http"))
from daemon import Daemon, run  # noqa: E402

PROMPTS = ["Once upon a time", "The old king", "There was a little girl who", "In the morning the sun",
           "\"Where are you going?\" said", "The fox and the", "He opened the door and", "A ship came into the",
           "When the winter", "She had never seen", "Two brothers lived", "The wolf looked at",
           "It was a dark night, and", "My dear child,", "Far away in the forest", "The teacher asked the boys",
           "Nobody knew what", "At last they reached", "The queen was", "And so the story"]

PLACEMENTS = {
    "everything hot": {"tier.hbm.size": "64MiB", "tier.ram.size": "0B"},
    "everything warm": {"tier.hbm.size": "0B", "tier.ram.size": "64MiB"},
    "everything warm, as rows": {"tier.hbm.size": "0B", "tier.ram.size": "64MiB", "tier.ram.tables": "no"},
    "one table, and rows of the other": {"tier.hbm.size": "16KiB", "tier.ram.size": "5MiB"},
    "tiny hot and warm": {"tier.hbm.size": "16KiB", "tier.ram.size": "64KiB"},
    "disk only": {"tier.hbm.size": "0B", "tier.ram.size": "0B"},
    "disk only, read through the page cache": {"tier.hbm.size": "0B", "tier.ram.size": "0B",
                                               "tier.nvme.direct": "no", "tier.nvme.depth": "1"},
}


def ask(daemon, prompt, temperature):
    choice = daemon.complete(prompt, max_tokens=24, temperature=temperature, seed=7, logprobs=5,
                             return_tokens_as_token_ids=True)["choices"][0]
    return choice["text"], choice["logprobs"], choice["finish_reason"]


def answers(daemon, between=None):
    result = []
    for i, prompt in enumerate(PROMPTS):
        if between:
            between(i)
        result.append(ask(daemon, prompt, 0 if i % 2 else 0.9))
    return result


reference = {}


def reference_answers():
    if not reference:
        with Daemon(PLACEMENTS["everything hot"]) as daemon:
            reference["answers"] = answers(daemon)
            tiers = {tier["name"]: tier for tier in daemon.get("/v1/tiers")["tiers"]}
            assert tiers["hbm"]["hits"] > 0, tiers
    return reference["answers"]


def test_the_same_prompts_give_the_same_bits_wherever_the_rows_are():
    for name, options in PLACEMENTS.items():
        with Daemon(options) as daemon:
            assert answers(daemon) == reference_answers(), name
            tiers = {tier["name"]: tier for tier in daemon.get("/v1/tiers")["tiers"]}
            if name.startswith("disk only"):
                assert tiers["hbm"]["hits"] == tiers["ram"]["hits"] == 0, tiers
                assert tiers["nvme"]["hits"] > 0, tiers
            if name.startswith("everything warm"):
                assert tiers["ram"]["hits"] > 0, tiers


def test_budgets_that_change_between_requests_change_no_bit():
    sizes = ["0B", "32KiB", "64MiB", "8KiB", "1MiB"]
    with Daemon(PLACEMENTS["tiny hot and warm"], admin=True) as daemon:
        def resize(i):
            body = {"tiers": {"hbm": sizes[i % 5], "ram": sizes[(i * 3 + 1) % 5]}}
            status, answer = daemon.admin("PATCH", "/v1/tiers", body)
            assert status == 200, answer
        assert answers(daemon, between=resize) == reference_answers()


def test_budgets_that_change_while_requests_run_change_no_bit():
    with Daemon(PLACEMENTS["tiny hot and warm"], admin=True) as daemon:
        stop = threading.Event()
        failures = []

        def resize():
            i = 0
            while not stop.wait(0.003):
                i += 1
                status, answer = daemon.admin("PATCH", "/v1/tiers", {"tiers": {
                    "hbm": ["0B", "64KiB", "2MiB"][i % 3], "ram": ["1MiB", "0B", "16KiB", "4MiB"][i % 4]}})
                if status != 200:
                    failures.append(answer)
        thread = threading.Thread(target=resize)
        thread.start()
        try:
            assert answers(daemon) == reference_answers()
        finally:
            stop.set()
            thread.join()
        assert not failures, failures[0]


def tiers_of(daemon):
    return {tier["name"]: tier for tier in daemon.get("/v1/tiers")["tiers"]}


def wait_in_memory(daemon, count):
    deadline = time.monotonic() + 30
    while daemon.text().count("in memory: ") < count:
        assert time.monotonic() < deadline, daemon.text()
        time.sleep(0.005)


def test_whole_tables_are_read_once_and_then_no_more():
    with Daemon(PLACEMENTS["everything warm"], admin=True) as daemon:
        wait_in_memory(daemon, 2)
        before = tiers_of(daemon)
        assert before["nvme"]["used_bytes"] <= before["ram"]["used_bytes"] <= before["ram"]["budget_bytes"], before
        assert before["ram"]["budget_bytes"] == 64 << 20, before
        reads = daemon.get("/v1/tiers")["nvme"]["reads"]
        assert answers(daemon) == reference_answers()
        assert daemon.get("/v1/tiers")["nvme"]["reads"] == reads

        tables = before["nvme"]["used_bytes"]
        for count, ram in ((2, 0), (3, tables // 2 + 16384), (4, 64 << 20), (4, tables - 1), (5, 32 << 20)):
            status, answer = daemon.admin("PATCH", "/v1/tiers", {"tiers": {"ram": ram}})
            assert status == 200, answer
            wait_in_memory(daemon, count)
            assert answers(daemon) == reference_answers(), ram
            daemon.idle()
            ram_tier = tiers_of(daemon)["ram"]
            assert ram_tier["budget_bytes"] == ram and ram_tier["used_bytes"] <= ram, ram_tier


def test_used_bytes_never_exceed_the_budget():
    with Daemon({"tier.hbm.size": "100KB", "tier.ram.size": "300KB"}, admin=True) as daemon:
        for i, sizes in enumerate([(100000, 300000), (7777, 99999), (0, 65536), (65536, 0), (1 << 20, 1 << 20)]):
            status, _ = daemon.admin("PATCH", "/v1/tiers", {"tiers": {"hbm": sizes[0], "ram": sizes[1]}})
            assert status == 200
            daemon.complete(PROMPTS[i:i + 4], max_tokens=16, temperature=0)
            daemon.idle()
            tiers = {tier["name"]: tier for tier in daemon.get("/v1/tiers")["tiers"]}
            for name, size in zip(("hbm", "ram"), sizes):
                assert tiers[name]["budget_bytes"] == size, tiers
                assert tiers[name]["used_bytes"] <= size, tiers


def test_a_batch_of_sixteen_gives_the_tokens_of_one():
    """Temperature 0: identical tokens, log-probabilities within 1e-4. On this backend they are equal to the bit."""
    prompts = PROMPTS[:16]
    with Daemon(PLACEMENTS["tiny hot and warm"]) as daemon:
        fields = dict(max_tokens=24, temperature=0, logprobs=1, return_tokens_as_token_ids=True)
        alone = [daemon.complete(p, **fields)["choices"][0] for p in prompts]
        together = daemon.complete(prompts, **fields)["choices"]
        for one, many in zip(alone, together):
            assert one["logprobs"]["tokens"] == many["logprobs"]["tokens"]
            for a, b in zip(one["logprobs"]["token_logprobs"], many["logprobs"]["token_logprobs"]):
                assert a == b, (a, b)


def test_a_seed_gives_the_same_tokens_whatever_else_is_in_the_batch():
    with Daemon() as daemon:
        fields = dict(max_tokens=20, temperature=1.0, seed=1234)
        alone = daemon.complete(PROMPTS[0], **fields)["choices"][0]["text"]
        results = {}

        def other(i):
            results[i] = daemon.complete(PROMPTS[i], max_tokens=40, temperature=1.2)
        threads = [threading.Thread(target=other, args=(i,)) for i in range(1, 8)]
        for thread in threads:
            thread.start()
        crowded = daemon.complete(PROMPTS[0], **fields)["choices"][0]["text"]
        for thread in threads:
            thread.join()
        assert alone == crowded
        assert len(results) == 7


run(globals())
