#!/usr/bin/env python3
"""Clients that are slow, greedy, or gone: before, during and after generation. Nothing of them stays behind."""
import json
import os
import random
import socket
import threading
import time

from daemon import Daemon, need_demo, run, shared
from wire import Wire, ask, wait_until

LONG = {"prompt": "Once upon a time", "max_tokens": 400, "temperature": 0, "ignore_eos": True}
# Every row comes from a disk that takes its time: a token takes 20 ms and more.
SLOW = {"tier.nvme.fault": "delay=20ms", "tier.hbm.size": "0B", "tier.ram.size": "0B"}


def server():
    return shared()


def slow():
    return shared(**{key.replace(".", "__"): value for key, value in SLOW.items()})


def alive(daemon):
    answer = daemon.complete("Once", max_tokens=2, temperature=0, ignore_eos=True)
    assert answer["usage"]["completion_tokens"] == 2


def send_completion(wire, body):
    return wire.request("POST", "/v1/completions", body)


def tokens_so_far(daemon):
    return daemon.metric("generation_tokens_total")


def check_slot_is_freed(daemon, leave):
    """leave() begins LONG and goes away; nothing of it may run on."""
    before, cancelled = tokens_so_far(daemon), daemon.metric("requests_cancelled_total")
    leave()
    daemon.idle(5)
    wait_until(lambda: daemon.metric("requests_cancelled_total") == cancelled + 1, 5, "a cancelled request")
    used = tokens_so_far(daemon) - before
    assert used < 200, f"{used} tokens were made for nobody"
    alive(daemon)


def leaver(daemon, wait, reset, stream):
    def leave():
        wire = Wire(daemon)
        send_completion(wire, {**LONG, "stream": stream})
        wait(wire)
        wire.reset() if reset else wire.close()
    return leave


def before_anything(_):
    time.sleep(0.01)


def while_it_runs(_):
    wait_until(lambda: slow().metric("num_requests_running") == 1, 5, "a running request")
    time.sleep(0.1)


def after_some_events(wire):
    wire.head()
    chunks = wire.chunks()
    for _ in range(3):
        assert next(chunks).startswith(b"data: ")


def test_a_client_that_leaves_before_the_first_token_frees_its_slot():
    for stream in [True, False]:
        for reset in [True, False]:
            check_slot_is_freed(slow(), leaver(slow(), before_anything, reset, stream))


def test_a_client_that_leaves_while_its_answer_is_made_frees_its_slot():
    for reset in [True, False]:
        check_slot_is_freed(slow(), leaver(slow(), while_it_runs, reset, False))


def test_a_client_that_leaves_a_stream_frees_its_slot():
    for reset in [True, False]:
        check_slot_is_freed(slow(), leaver(slow(), after_some_events, reset, True))


def test_a_client_that_leaves_many_choices_frees_them_all():
    def leave():
        with Wire(slow()) as wire:
            send_completion(wire, {**LONG, "prompt": ["a", "b", "c"], "n": 4, "stream": True, "max_tokens": 200})
            after_some_events(wire)
    before = tokens_so_far(slow())
    leave()
    slow().idle(5)
    assert tokens_so_far(slow()) - before < 600
    alive(slow())


def test_a_client_that_leaves_after_its_answer_is_nothing_special():
    before = server().metric("requests_cancelled_total")
    for reset in [True, False]:
        for stream in [True, False]:
            wire = Wire(server())
            send_completion(wire, {**LONG, "max_tokens": 3, "stream": stream})
            assert wire.response().status == 200
            wire.reset() if reset else wire.close()
    alive(server())
    assert server().metric("requests_cancelled_total") == before


def test_a_client_that_leaves_in_the_middle_of_its_request_leaves_nothing():
    body = json.dumps(LONG)
    data = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    for size in range(0, len(data), 5):
        wire = Wire(server())
        wire.send(data[:size])
        wire.reset() if size % 2 else wire.close()
    alive(server())
    wait_until(lambda: server().metric("http_connections") == 1, 5, "one connection, that of the question")
    assert server().metric("num_requests_running") == 0


def test_a_slow_head_or_body_is_408():
    body = json.dumps(LONG)
    with Daemon({"server.read_timeout": "500ms", "server.idle_timeout": "5s"}) as daemon:
        for data in [b"GET /livez HTTP/1.1\r\nHost: " + b"a" * 500,
                     f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode(),
                     b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 100]:
            with Wire(daemon) as wire:
                begin = time.monotonic()
                try:
                    for i in range(len(data) - 1):
                        wire.send(data[i:i + 1])
                        wire.socket.settimeout(0.03)
                        try:
                            if wire.more():
                                break
                        except TimeoutError:
                            pass
                except (ConnectionResetError, BrokenPipeError):
                    pass
                wire.socket.settimeout(5)
                answer = wire.response()
                took = time.monotonic() - begin
                assert answer.status == 408 and answer.error()["code"] == "request_timeout"
                assert answer.headers["connection"] == "close" and wire.ended()
                assert 0.4 < took < 3, took
        alive(daemon)


def test_an_idle_connection_is_closed():
    with Daemon({"server.idle_timeout": "400ms", "server.read_timeout": "10s"}) as daemon:
        with Wire(daemon) as wire:
            begin = time.monotonic()
            assert wire.ended(5) and 0.3 < time.monotonic() - begin < 3
        with Wire(daemon) as wire:
            assert wire.request("GET", "/livez").response().status == 200
            begin = time.monotonic()
            assert wire.ended(5) and 0.3 < time.monotonic() - begin < 3
        # A connection whose request is being worked on is not idle.
        alive(daemon)
    with Daemon({**SLOW, "server.idle_timeout": "300ms", "server.read_timeout": "300ms"}) as daemon:
        with Wire(daemon) as wire:
            assert send_completion(wire, {**LONG, "max_tokens": 40}).response().status == 200


def test_a_client_that_reads_nothing_is_dropped():
    need_demo()
    with Daemon({"server.write_timeout": "500ms", "server.max_output_buffer": "64KiB",
                 "engine.kv_size": "128MiB"}) as daemon:
        cancelled = daemon.metric("requests_cancelled_total")
        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", daemon.port))
        body = json.dumps({**LONG, "max_tokens": 600, "n": 16, "logprobs": 20, "stream": True})
        deaf.sendall(f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        wait_until(lambda: daemon.metric("num_requests_running") > 0, 10, "a running request")
        wait_until(lambda: daemon.metric("requests_cancelled_total") > cancelled, 40, "the client was dropped")
        daemon.idle(5)
        alive(daemon)
        assert daemon.metric("generation_tokens_total") < 16 * 600
        deaf.close()


def test_a_large_answer_reaches_a_reader_that_takes_its_time():
    need_demo()
    body = {"prompt": "word " * 300, "max_tokens": 0, "echo": True, "logprobs": 20}
    wanted = ask(server(), "POST", "/v1/completions", body).json()["choices"]
    with Wire(server()) as wire:
        send_completion(wire, body)
        time.sleep(0.5)
        while b"\r\n\r\n" not in wire.buffer:
            wire.buffer += wire.socket.recv(1000)
            time.sleep(0.01)
        assert wire.response().json()["choices"] == wanted


def test_more_connections_than_allowed_get_503():
    with Daemon({"server.max_connections": "8"}) as daemon:
        wires = [Wire(daemon) for _ in range(8)]
        for wire in wires:
            assert wire.request("GET", "/livez").response().status == 200
        with Wire(daemon) as more:
            answer = more.response()
            assert answer.status == 503 and int(answer.headers["retry-after"]) >= 1
            answer.error()
            assert more.ended()
        assert wires[0].request("GET", "/livez").response().status == 200
        wires.pop().close()
        wait_until(lambda: daemon.request("GET", "/livez")[0] == 200, 5, "a free place")
        for wire in wires:
            wire.close()
        alive(daemon)


def test_a_pipeline_behind_a_slow_request_is_answered_whole():
    small = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"
    with Wire(slow()) as wire:
        first = json.dumps({**LONG, "max_tokens": 20})
        sender = threading.Thread(target=lambda: wire.send(
            f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(first)}\r\n\r\n{first}".encode()
            + small * 20000))
        sender.start()
        assert wire.response().status == 200
        for i in range(20000):
            assert wire.response().status == 200, i
        sender.join()


def test_a_client_that_only_stops_sending_does_no_harm():
    with Wire(server()) as wire:
        send_completion(wire, {**LONG, "max_tokens": 2})
        wire.socket.shutdown(socket.SHUT_WR)
        while wire.more():
            pass
        assert wire.buffer == b"" or wire.buffer.startswith(b"HTTP/1.1 200 ")
    alive(server())


def open_files(daemon):
    return len(os.listdir(f"/proc/{daemon.process.pid}/fd"))


def test_hundreds_of_clients_that_come_and_go_leave_nothing_behind():
    daemon = server()
    alive(daemon)
    wait_until(lambda: daemon.metric("http_connections") == 1, 5, "one connection")
    files = open_files(daemon)

    def client(seed):
        rng = random.Random(seed)
        for _ in range(20):
            try:
                with Wire(daemon, timeout=20) as wire:
                    what = rng.randrange(7)
                    if what == 0:
                        pass
                    elif what == 1:
                        wire.send(b"GET /liv")
                    elif what == 2:
                        assert wire.request("GET", "/metrics").response().status == 200
                    elif what == 3:
                        send_completion(wire, {**LONG, "stream": True})
                        time.sleep(rng.random() * 0.05)
                    elif what == 4:
                        send_completion(wire, {**LONG, "max_tokens": rng.randint(1, 20), "n": rng.randint(1, 3)})
                        if rng.random() < 0.5:
                            assert wire.response().status in (200, 429)
                    elif what == 5:
                        send_completion(wire, {**LONG, "stream": True})
                        if wire.head().status == 200:
                            next(wire.chunks())
                    else:
                        send_completion(wire, {"prompt": 5})
                        assert wire.response().status == 400
                    if rng.random() < 0.5:
                        wire.reset()
            except (ConnectionResetError, BrokenPipeError):
                pass

    errors = []

    def guarded(seed):
        try:
            client(seed)
        except Exception as error:  # noqa: BLE001: shown below
            errors.append(error)
    threads = [threading.Thread(target=guarded, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    daemon.idle(10)
    wait_until(lambda: daemon.metric("http_connections") == 1, 10, "one connection")
    wait_until(lambda: open_files(daemon) <= files, 5, "as many open files as before")
    assert daemon.metric("kv_cache_usage_ratio") <= 1
    alive(daemon)


def test_a_full_queue_is_429_with_retry_after():
    with Daemon({**SLOW, "engine.max_sequences": "2", "engine.max_queue": "2"}) as daemon:
        wires = [Wire(daemon) for _ in range(8)]
        for wire in wires:
            send_completion(wire, {**LONG, "max_tokens": 30})
            time.sleep(0.02)
        answers = [wire.response() for wire in wires]
        refused = [answer for answer in answers if answer.status == 429]
        served = [answer for answer in answers if answer.status == 200]
        assert len(refused) + len(served) == 8 and refused and len(served) >= 4, [a.status for a in answers]
        for answer in refused:
            error = answer.error()
            assert error["type"] == "rate_limit_error" and error["code"] == "queue_full"
            assert int(answer.headers["retry-after"]) >= 1
            assert "x-should-retry" not in answer.headers
            assert answer.headers["connection"] == "keep-alive"
        # The connection of a refused request can ask again.
        again = wires[answers.index(refused[0])]
        assert send_completion(again, {**LONG, "max_tokens": 2}).response().status == 200
        for wire in wires:
            wire.close()
        daemon.idle()
        assert daemon.metric("requests_rejected_total") >= len(refused)


def test_a_stream_that_is_refused_gets_a_status_and_no_event():
    with Daemon({**SLOW, "engine.max_sequences": "1", "engine.max_queue": "0"}) as daemon:
        with Wire(daemon) as first, Wire(daemon) as second:
            send_completion(first, {**LONG, "max_tokens": 60, "stream": True})
            first.head()
            answers = []
            for _ in range(3):
                send_completion(second, {**LONG, "max_tokens": 1, "stream": True})
                answers.append(second.response())
            assert any(a.status == 429 for a in answers), [a.status for a in answers]
            for answer in answers:
                if answer.status == 429:
                    assert answer.headers["content-type"] == "application/json"
            b"".join(first.chunks())


if __name__ == "__main__":
    run(globals())
