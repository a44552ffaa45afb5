#!/usr/bin/env python3
"""Bad input gets an answer, in OpenAI's shape, and the server lives."""
import json
import random

from daemon import Daemon, run, shared
from wire import Wire, ask

GOOD = {"prompt": "Once upon a time", "max_tokens": 2, "temperature": 0}


def server():
    return shared(engine__max_context="256", server__max_body_size="256KiB", server__max_header_size="8KiB")


def alive(daemon=None):
    answer = (daemon or server()).complete(**GOOD)
    assert answer["usage"]["completion_tokens"] >= 1
    (daemon or server()).idle()


def send_body(wire, body):
    body = body if isinstance(body, bytes) else body.encode()
    wire.send(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
              b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
    return wire.response()


def check_refused(answer, code, param, status=400):
    error = answer.error()
    assert (answer.status, error["code"], error["param"]) == (status, code, param), (answer.status, error)
    assert error["type"] == "invalid_request_error"
    assert len(answer.body) < 1500, "error bodies are bounded"
    return error


def test_what_is_not_http_is_refused_and_the_connection_ends():
    bad = [
        b"\r\n\r\n\x00", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40), b"hello\r\n\r\n", b"GET\r\n\r\n",
        b"GET /\r\n\r\n", b"GET / HTTP/1.1\n\n", b"GET / HTTP/9.9\r\n\r\n", b"SSH-2.0-x\r\n", b"{}\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n", b"GET nothing HTTP/1.1\r\nHost: a\r\n\r\n",
        b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n", b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 1e3\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}x\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\n",
    ]
    for data in bad:
        with Wire(server()) as wire:
            answer = wire.send(data).response()
            assert 400 <= answer.status < 600 and answer.status not in (500, 503), (data, answer.status)
            answer.error()
            assert answer.headers["connection"] == "close" and answer.headers["x-request-id"]
            assert wire.ended(), data
    alive()


def test_smuggled_requests_are_not_answered():
    """Whatever follows a request whose length is in doubt is never taken for a request."""
    hidden = b"GET /livez HTTP/1.1\r\nHost: a\r\nX-Request-Id: smuggled\r\n\r\n"
    for head in [b"Content-Length: 4\r\nTransfer-Encoding: chunked", b"Transfer-Encoding: chunked\r\nContent-Length: 4",
                 b"Transfer-Encoding: xchunked", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
                 b"Transfer-Encoding:\x0bchunked", b"Transfer-Encoding : chunked", b"X: y\r\n Transfer-Encoding: chunked",
                 b"Content-Length: 0\r\nContent-Length: 44", b"Content-Length: +0", b"Content-Length: 0,0"]:
        with Wire(server()) as wire:
            wire.send(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n" + head + b"\r\n\r\n0\r\n\r\n" + hidden)
            answer = wire.response()
            assert answer.status in (400, 501), (head, answer.status)
            assert wire.ended(), head


def test_a_head_that_is_too_large_is_431():
    for data in [b"X: " + b"a" * 9000, b"\r\n".join(b"X%d: y" % i for i in range(1500)), b"a" * 9000 + b": b"]:
        with Wire(server()) as wire:
            wire.send(b"GET /livez HTTP/1.1\r\nHost: a\r\n" + data + b"\r\n\r\n")
            check_refused(wire.response(), "request_too_large", None, 431)
            assert wire.ended()
    with Wire(server()) as wire:
        wire.send(b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n")
        assert wire.response().status == 431
    alive()


def test_a_body_that_is_too_large_is_413():
    limit = 256 * 1024
    fits = json.dumps({**GOOD, "user": ""})
    fits = fits.replace('"user": ""', '"user": "' + "x" * (limit - len(fits)) + '"')
    with Wire(server()) as wire:
        assert len(fits) == limit and send_body(wire, fits).status == 200
    with Wire(server()) as wire:
        wire.send(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (limit + 1))
        check_refused(wire.response(), "request_too_large", None, 413)
        assert wire.ended()
    with Wire(server()) as wire:
        wire.send(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(limit // 8192):
            wire.send(b"2000\r\n" + b" " * 8192 + b"\r\n")
        wire.send(b"1\r\n")
        check_refused(wire.response(), "request_too_large", None, 413)
    # A client that sends on regardless gets its answer, not a reset.
    with Wire(server()) as wire:
        wire.send(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 4000000\r\n\r\n")
        wire.send(b"x" * 4000000)
        assert wire.response().status == 413
    alive()


def test_bad_json_is_refused_and_the_connection_goes_on():
    bad = [b"", b"{", b"[]", b"null", b"5", b'"x"', b"{}}", b'{"prompt":"x",}', b"{'prompt':'x'}", b"prompt=x", b"\x00",
           b'{"prompt":"\xff"}', b'{"prompt":"\xc3"}', b'{"prompt":"\\ud800"}', b'{"prompt":"a\nb"}', b'\xef\xbb\xbf{}',
           b'{"prompt":"x","temperature":NaN}', b'{"prompt":"x","temperature":Infinity}',
           b'{"prompt":"x","temperature":-Infinity}', b'{"prompt":"x","prompt":"y"}', b'{"prompt":"x"} trailing',
           b'{"a":' * 40000, b"[" * 200000, b'{"prompt":"' + b"x" * 1000, b'{"prompt": tru}', b'{"prompt":01}']
    with Wire(server()) as wire:
        for body in bad:
            check_refused(send_body(wire, body), "invalid_json", None)
        assert send_body(wire, json.dumps(GOOD)).status == 200
    alive()


def test_wrong_values_are_refused_by_name():
    long = "x" * 3000
    cases = [
        ({}, "missing_required_parameter", "prompt"), ({"prompt": None}, "missing_required_parameter", "prompt"),
        ({"prompt": ""}, "invalid_value", "prompt"), ({"prompt": []}, "invalid_value", "prompt"),
        ({"prompt": [""]}, "invalid_value", "prompt.0"), ({"prompt": [[]]}, "invalid_value", "prompt.0"),
        ({"prompt": 5}, "invalid_type", "prompt"), ({"prompt": {}}, "invalid_type", "prompt"),
        ({"prompt": ["a", 1]}, "invalid_type", "prompt.1"), ({"prompt": [1, "a"]}, "invalid_type", "prompt.1"),
        ({"prompt": [True]}, "invalid_type", "prompt.0"), ({"prompt": [1.5]}, "invalid_type", "prompt.0"),
        ({"prompt": [-1]}, "invalid_value", "prompt.0"), ({"prompt": [1, 10**9]}, "invalid_value", "prompt.1"),
        ({"prompt": [[1], [2, 10**9]]}, "invalid_value", "prompt.1.1"),
        ({"prompt": [10**30]}, "invalid_value", "prompt.0"), ({"prompt": [2**31]}, "invalid_value", "prompt.0"),
        ({"prompt": [2**32]}, "invalid_value", "prompt.0"), ({"prompt": [2**63]}, "invalid_value", "prompt.0"),
        ({"max_tokens": -1}, "invalid_value", "max_tokens"), ({"max_tokens": 1.5}, "invalid_type", "max_tokens"),
        ({"max_tokens": "5"}, "invalid_type", "max_tokens"), ({"max_tokens": True}, "invalid_type", "max_tokens"),
        ({"max_tokens": 2**31}, "invalid_value", "max_tokens"), ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"temperature": -0.1}, "invalid_value", "temperature"), ({"temperature": 2.1}, "invalid_value", "temperature"),
        ({"temperature": "hot"}, "invalid_type", "temperature"), ({"top_p": 1.1}, "invalid_value", "top_p"),
        ({"top_p": -1}, "invalid_value", "top_p"), ({"top_k": -2}, "invalid_value", "top_k"),
        ({"min_p": 2}, "invalid_value", "min_p"), ({"n": 0}, "invalid_value", "n"), ({"n": 129}, "invalid_value", "n"),
        ({"n": 1.0}, "invalid_type", "n"), ({"best_of": 3}, "unsupported_parameter", "best_of"),
        ({"logprobs": 21}, "invalid_value", "logprobs"), ({"logprobs": -1}, "invalid_value", "logprobs"),
        ({"logprobs": True}, "invalid_type", "logprobs"), ({"echo": 1}, "invalid_type", "echo"),
        ({"stream": "yes"}, "invalid_type", "stream"), ({"stop": ""}, "invalid_value", "stop"),
        ({"stop": [1]}, "invalid_type", "stop.0"), ({"stop": ["x"] * 17}, "invalid_value", "stop"),
        ({"seed": "x"}, "invalid_type", "seed"), ({"seed": 2**63}, "invalid_value", "seed"),
        ({"seed": 1.5}, "invalid_type", "seed"), ({"user": 5}, "invalid_type", "user"),
        ({"presence_penalty": 2.5}, "invalid_value", "presence_penalty"),
        ({"frequency_penalty": -3}, "invalid_value", "frequency_penalty"),
        ({"repetition_penalty": 0}, "invalid_value", "repetition_penalty"),
        ({"logit_bias": []}, "invalid_type", "logit_bias"), ({"logit_bias": {"x": 1}}, "invalid_value", "logit_bias.x"),
        ({"logit_bias": {"-1": 1}}, "invalid_value", "logit_bias.-1"),
        ({"logit_bias": {"99999999": 1}}, "invalid_value", "logit_bias.99999999"),
        ({"logit_bias": {"5": 101}}, "invalid_value", "logit_bias.5"),
        ({"logit_bias": {"5": "1"}}, "invalid_type", "logit_bias.5"),
        ({"stop_token_ids": [-1]}, "invalid_value", "stop_token_ids.0"),
        ({"stop_token_ids": [10**8]}, "invalid_value", "stop_token_ids.0"),
        ({"min_tokens": 5, "max_tokens": 2}, "invalid_value", "min_tokens"),
        ({"stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
        ({"suffix": "x"}, "unsupported_parameter", "suffix"),
        ({"response_format": {"type": "json_object"}}, "unsupported_parameter", "response_format"),
        ({"guided_regex": "x"}, "unsupported_parameter", "guided_regex"),
        ({"truncate_prompt_tokens": 5}, "unsupported_parameter", "truncate_prompt_tokens"),
        ({"messages": [{"role": "user", "content": "x"}]}, "unsupported_parameter", "messages"),
        ({"model": long}, "model_not_found", "model"), ({"logit_bias": {long: 1}}, "invalid_value", None),
        ({"stop": [long, {}]}, "invalid_type", "stop.1"), ({"engram": "off"}, "invalid_type", "engram"),
    ]
    with Wire(server()) as wire:
        for fields, code, param in cases:
            body = fields if "prompt" in fields or not fields else {**GOOD, **fields}
            answer = send_body(wire, json.dumps(body))
            if param is None:
                param = answer.error()["param"]
            error = check_refused(answer, code, param, 404 if code == "model_not_found" else 400)
            assert long not in error["message"] and "/" not in error["message"].replace("and/or", ""), error
        assert send_body(wire, json.dumps(GOOD)).status == 200
    alive()


def test_a_prompt_longer_than_the_context_is_refused():
    for prompt in ["word " * 5000, "x" * 100000, [1] * 257, [[1] * 256], [[1], [1] * 300], [5] * 60000, "\n" * 90000,
                   "😀" * 20000]:
        answer = ask(server(), "POST", "/v1/completions", {"prompt": prompt, "max_tokens": 5})
        check_refused(answer, "context_length_exceeded", "prompt")
    alive()


def test_more_choices_than_fit_are_refused_or_served():
    for fields in [{"prompt": ["x"] * 5000}, {"prompt": ["x"] * 600, "n": 2}, {"prompt": [[1]] * 1025},
                   {"prompt": "x", "n": 128}, {"prompt": ["x"] * 100, "n": 128}, {"prompt": ["word"] * 1000}]:
        answer = ask(server(), "POST", "/v1/completions", {"max_tokens": 2, **fields})
        assert answer.status in (200, 400, 413, 429), answer.status
        if answer.status != 200:
            answer.error()
    alive()


def test_a_flood_of_values_is_refused():
    for body in [{"metadata": [[]] * 40000}, {"prompt": [[]] * 40000}, {"logit_bias": {str(i): 1 for i in range(20000)}},
                 {"prompt": [[1]] * 40000}]:
        with Wire(server()) as wire:
            answer = send_body(wire, json.dumps({**GOOD, **body}))
            assert answer.status in (400, 413), answer.status
            answer.error()
    alive()


def test_streams_are_refused_before_they_begin():
    """An error found while the request is read is a status, not an event of a stream that began with 200."""
    for fields in [{"prompt": [10**9]}, {"prompt": "word " * 5000}, {"temperature": 9}, {"model": "x"}]:
        answer = ask(server(), "POST", "/v1/completions", {**GOOD, "stream": True, **fields})
        assert answer.status in (400, 404) and answer.headers["content-type"] == "application/json"
        answer.error()


def mutate(rng, data):
    data = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        kind, at = rng.randrange(5), rng.randrange(len(data)) if data else 0
        if kind == 0 and data:
            data[at] = rng.randrange(256)
        elif kind == 1 and data:
            del data[at:at + rng.randint(1, 8)]
        elif kind == 2:
            data[at:at] = rng.choice([b"\0", b"\r\n", b'"', b"{", b"]", b"-", b"9" * 30, b"\xff", b",", b"null", b"1e999"])
        elif kind == 3 and data:
            data[at:at] = data[at:at + rng.randint(1, 20)]
        else:
            data = data[:at]
    return bytes(data)


def test_a_thousand_damaged_bodies_get_an_answer_each():
    rng = random.Random(1)
    seeds = [json.dumps(x).encode() for x in [
        {**GOOD, "stop": ["a", "b"], "logit_bias": {"5": 1.5}, "logprobs": 2, "n": 2, "seed": 7},
        {"prompt": [[1, 2, 3], [4, 5]], "max_tokens": 1, "echo": True, "temperature": 0.5, "stream": False},
        {"prompt": ["x", "y"], "max_tokens": 2, "stop_token_ids": [3], "min_tokens": 1, "top_k": 5, "top_p": 0.5}]]
    counts = {}
    wire = Wire(server())
    for _ in range(1000):
        answer = send_body(wire, mutate(rng, rng.choice(seeds)))
        counts[answer.status] = counts.get(answer.status, 0) + 1
        if answer.status != 200:
            assert answer.status in (400, 404), answer.status
            answer.error()
    wire.close()
    print(f"# {counts}")
    assert counts[400] > 300 and counts.get(200, 0) > 20, counts
    alive()


def test_a_thousand_damaged_requests_do_no_harm():
    rng = random.Random(2)
    body = json.dumps(GOOD).encode()
    seeds = [b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
             % (len(body), body),
             b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n"
             % (len(body), body),
             b"GET /v1/models HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n\r\nGET /livez HTTP/1.0\r\n\r\n"]
    for i in range(1000):
        with Wire(server()) as wire:
            try:
                wire.send(mutate(rng, rng.choice(seeds)))
                wire.socket.shutdown(1)
                while wire.more():
                    pass
                assert wire.buffer == b"" or wire.buffer.startswith(b"HTTP/1.1 "), wire.buffer[:100]
            except (ConnectionResetError, BrokenPipeError):
                pass
    alive()


def test_the_admin_socket_refuses_bad_sizes():
    with Daemon(admin=True) as daemon:
        before = daemon.get("/v1/tiers")["tiers"]
        for body, code in [({}, "missing_required_parameter"), ({"tiers": []}, "invalid_type"),
                           ({"tiers": {"ram": -1}}, "invalid_value"), ({"tiers": {"ram": "lots"}}, "invalid_value"),
                           ({"tiers": {"ram": 1.5}}, "invalid_type"), ({"tiers": {"ssd": 1}}, "unknown_parameter"),
                           ({"tiers": {"nvme": 1}}, "unsupported_parameter"), ([], "invalid_json"),
                           ({"tiers": {"ram": "9000PiB"}}, "invalid_value"),
                           ({"x": 1}, "unknown_parameter")]:
            status, answer = daemon.admin("PATCH", "/v1/tiers", body)
            assert status == 400 and answer["error"]["code"] == code, (body, status, answer)
        after = daemon.get("/v1/tiers")["tiers"]
        assert [t["budget_bytes"] for t in before] == [t["budget_bytes"] for t in after]
        alive(daemon)


if __name__ == "__main__":
    run(globals())
