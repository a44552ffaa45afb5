#!/usr/bin/env python3
"""Limits of the server as a client meets them, and that things go on as before when a limit is no longer reached.

What is refused by its form is in run_bad_input.py, clients that misbehave are in run_bad_clients.py.
"""
import json
import os
import pathlib
import re
import socket
import threading
import time

from daemon import SANITIZED, Daemon, Skip, run, shared
from wire import Wire, ask, wait_until

STORY = {"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
# Every row comes from a disk that takes its time: a token takes 20 ms and more.
SLOW = {"tier.nvme.fault": "delay=20ms", "tier.hbm.size": "0B", "tier.ram.size": "0B"}
# An answer of about 10 MB, more than the kernel keeps for a connection.
LARGE = {"prompt": "word " * 1500, "n": 16, "max_tokens": 0, "echo": True, "logprobs": 20}


def server():
    return shared()


def completion(body):
    body = json.dumps(body).encode()
    return b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def slow_reader(daemon):
    """A connection for whose client the kernel takes little ahead of time."""
    if SANITIZED:
        raise Skip("the model of instrumented builds gives no answers of this size")
    wire = Wire.__new__(Wire)
    wire.socket, wire.buffer = socket.socket(), b""
    wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    wire.socket.settimeout(120)
    wire.socket.connect(("127.0.0.1", daemon.port))
    return wire


def sip(wire, seconds):
    """Takes little of the answer for a while."""
    while b"\r\n\r\n" not in wire.buffer:
        assert wire.more()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        wire.buffer += wire.socket.recv(4000)
        time.sleep(0.02)


def take_large(wire):
    """The rest of the answer, at once."""
    wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    head, rest = wire.head(), [wire.buffer]
    missing = int(head.headers["content-length"]) - len(wire.buffer)
    while missing:
        rest.append(wire.socket.recv(min(missing, 1 << 20)))
        assert rest[-1], f"the connection ended {missing} bytes too early"
        missing -= len(rest[-1])
    wire.buffer = b""
    return b"".join(rest)


def check_large(body):
    choices = json.loads(body)["choices"]
    assert len(choices) == LARGE["n"]
    for choice in choices:
        assert choice["logprobs"] == choices[0]["logprobs"] and choice["text"] == LARGE["prompt"]


def test_the_last_answer_of_a_connection_is_not_cut_short():
    with slow_reader(server()) as wire:
        wire.request("POST", "/v1/completions", LARGE, ["Connection: close"])
        sip(wire, 4)
        check_large(take_large(wire))
        assert wire.ended()


def test_an_answer_on_its_way_is_not_idle():
    with Daemon({"server.idle_timeout": "700ms"}) as daemon:
        with slow_reader(daemon) as wire:
            wire.request("POST", "/v1/completions", LARGE)
            sip(wire, 2)
            body = take_large(wire)
            assert wire.request("GET", "/livez").response().status == 200, "and the connection goes on"
            begin = time.monotonic()
            assert wire.ended(5) and 0.5 < time.monotonic() - begin < 3
            check_large(body)


def test_a_client_that_stops_sending_while_it_reads_gets_the_whole_answer():
    for headers in [[], ["Connection: close"]]:
        with slow_reader(server()) as wire:
            wire.request("POST", "/v1/completions", LARGE, headers)
            sip(wire, 0.1)
            wire.socket.shutdown(socket.SHUT_WR)
            sip(wire, 3)
            check_large(take_large(wire))
            assert wire.ended()


def test_a_pipeline_of_completions_may_be_longer_than_the_servers_buffer():
    """1.5 MB of requests, each of which takes a while: none is lost and none closes the connection."""
    n = 1000 if not SANITIZED else 300
    small = {"prompt": "a", "max_tokens": 1, "temperature": 0, "user": "x" * 1500}
    with Wire(server(), timeout=300) as wire:
        sender = threading.Thread(target=lambda: wire.send(completion(small) * n))
        sender.start()
        first = wire.response().json()["choices"]
        for i in range(1, n):
            assert wire.response().json()["choices"] == first, i
        sender.join()
        assert wire.request("GET", "/livez").response().status == 200


def budgets(daemon):
    return {tier["name"]: tier["budget_bytes"] for tier in daemon.get("/v1/tiers")["tiers"]}


def test_budgets_beyond_the_machine_are_refused_with_the_sums():
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with Daemon(admin=True) as daemon:
        before = budgets(daemon)
        for sizes in [{"ram": machine}, {"hbm": machine}, {"ram": "15TiB"}, {"hbm": machine // 2, "ram": machine // 2}]:
            status, answer = daemon.admin("PATCH", "/v1/tiers", {"tiers": sizes})
            assert status == 400, (sizes, answer)
            error = answer["error"]
            assert error["code"] == "invalid_value" and error["param"] == "tiers", error
            for word in ["weights", "engine.kv_size", "tier.hbm.size", "tier.ram.size", "this process may use"]:
                assert word in error["message"], error
        for size in [(1 << 44) + 1, 2**63 - 1, "17TiB"]:
            for tier in ["hbm", "ram"]:
                status, answer = daemon.admin("PATCH", "/v1/tiers", {"tiers": {tier: size}})
                assert status == 400 and f"tier.{tier}.size" in answer["error"]["message"], answer
                assert "16TiB" in answer["error"]["message"], answer
        assert budgets(daemon) == before, "nothing of it was done"
        status, _ = daemon.admin("PATCH", "/v1/tiers", {"tiers": {"ram": machine // 4}})
        assert status == 200 and budgets(daemon)["ram"] == machine // 4, "more than the tables is no mistake"
        assert daemon.complete(**STORY)["choices"] == server().complete(**STORY)["choices"]
    try:
        with Daemon({"tier.ram.size": "15TiB"}):
            raise SystemError("it started")
    except AssertionError as refused:
        assert "ended with 78" in str(refused) and "tier.ram.size" in str(refused), refused


def peak(daemon):
    text = pathlib.Path(f"/proc/{daemon.process.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", text)[1]) * 1024


def test_a_small_request_cannot_ask_for_gigabytes():
    """256 choices of 1,500 tokens with 21 scores each: 150 MB of JSON and as much again to make it."""
    if SANITIZED:
        raise Skip("the model of instrumented builds has too short a context")
    huge = {"prompt": [LARGE["prompt"]] * 4, "n": 64, "logprobs": 20}
    with Daemon({"engine.kv_size": "256MiB"}) as daemon:
        daemon.complete(LARGE["prompt"], max_tokens=1)
        before = peak(daemon)
        for fields in [{"echo": True, "max_tokens": 0}, {"max_tokens": 200, "prompt": ["x"] * 4},
                       {"echo": True, "max_tokens": 1, "stream": True}]:
            answer = ask(daemon, "POST", "/v1/completions", {**huge, **fields})
            assert answer.status == 400, answer.status
            error = answer.error()
            assert error["code"] == "invalid_value" and error["param"] == "logprobs", error
        assert peak(daemon) - before < 8 << 20
    answer = ask(server(), "POST", "/v1/completions", {**LARGE, "logprobs": 0})
    assert answer.status == 200 and len(answer.json()["choices"]) == LARGE["n"]


if __name__ == "__main__":
    run(globals())
