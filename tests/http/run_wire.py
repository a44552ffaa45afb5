#!/usr/bin/env python3
"""What is on the wire: heads, framing, events, request ids, CORS, methods, keep-alive, pipelining."""
import json
import re
import time

from daemon import Daemon, run, shared
from wire import Wire, ask, wait_until

PROMPT = {"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
GETS = ["/v1/models", "/v1/tiers", "/health", "/v1/health", "/livez", "/readyz", "/metrics"]
STAINLESS = ["arch", "async", "custom-poll-interval", "helper-method", "lang", "os", "package-version",
             "poll-helper", "retry-count", "runtime", "runtime-version", "timeout"]


def server():
    return shared()


def without(text, **keys):
    """The JSON object in text with some keys replaced: what differs between two answers."""
    return {**json.loads(text), **keys}


def test_a_stream_is_byte_exact():
    with Wire(server()) as wire:
        wire.request("POST", "/v1/completions", {**PROMPT, "stream": True})
        head = wire.head()
        assert head.status == 200
        assert head.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert head.headers["cache-control"] == "no-cache"
        assert head.headers["x-accel-buffering"] == "no"
        assert head.headers["transfer-encoding"] == "chunked"
        assert "content-length" not in head.headers
        body = b"".join(wire.chunks())
        assert b"\r" not in body
        assert body.endswith(b"data: [DONE]\n\n")
        events = body.decode().split("\n\n")
        assert events.pop() == ""
        assert events.pop() == "data: [DONE]"
        texts, reasons = [], []
        for event in events:
            assert "\n" not in event and event.startswith("data: {"), event
            chunk = json.loads(event.removeprefix("data: "))
            assert set(chunk) == {"id", "object", "created", "model", "system_fingerprint", "choices"}, chunk
            assert chunk["object"] == "text_completion" and chunk["id"].startswith("cmpl-")
            [choice] = chunk["choices"]
            assert choice["index"] == 0 and choice["logprobs"] is None
            texts.append(choice["text"])
            reasons.append(choice["finish_reason"])
        assert reasons == [None] * (len(events) - 1) + ["length"], reasons
        assert len({json.loads(e.removeprefix("data: "))["id"] for e in events}) == 1
        # The connection goes on.
        assert wire.request("GET", "/livez").response().status == 200
    assert "".join(texts) == server().complete(**PROMPT)["choices"][0]["text"]


def test_each_token_is_sent_when_it_is_there():
    """One chunk of HTTP per event, in separate packets: nothing waits for a full buffer."""
    with Daemon({"tier.nvme.fault": "delay=30ms", "tier.hbm.size": "0B", "tier.ram.size": "0B"}) as slow:
        with Wire(slow) as wire:
            wire.request("POST", "/v1/completions", {**PROMPT, "stream": True})
            wire.head()
            times = []
            for chunk in wire.chunks():
                times.append(time.monotonic())
                assert chunk.count(b"data: ") == 1 or b"[DONE]" in chunk, chunk
        assert times[-1] - times[0] > 0.1, times


def test_an_answer_has_all_keys_and_headers():
    before = int(time.time())
    answer = ask(server(), "POST", "/v1/completions", PROMPT)
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert int(answer.headers["content-length"]) == len(answer.body)
    assert re.fullmatch(r"\d+", answer.headers["openai-processing-ms"])
    body = answer.json()
    assert set(body) == {"id", "object", "created", "model", "system_fingerprint", "choices", "usage"}, body
    assert body["object"] == "text_completion" and body["id"].startswith("cmpl-")
    assert before <= body["created"] <= time.time() + 1
    assert body["model"] == server().model
    [choice] = body["choices"]
    assert set(choice) == {"index", "text", "logprobs", "finish_reason", "stop_reason"}, choice
    usage = body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens"] == 8
    assert usage["prompt_tokens_details"]["cached_tokens"] >= 0


def test_ids_are_unique():
    ids = {server().complete(**PROMPT)["id"] for _ in range(5)}
    assert len(ids) == 5


def test_a_http_1_0_client_gets_a_stream_without_chunks():
    with Wire(server()) as wire:
        wire.request("POST", "/v1/completions", {**PROMPT, "stream": True}, version="1.0")
        answer = wire.response()
        assert "transfer-encoding" not in answer.headers and answer.headers["connection"] == "close"
        assert answer.body.startswith(b"data: {") and answer.body.endswith(b"data: [DONE]\n\n")


def test_a_http_1_0_connection_lives_on_when_asked_to():
    with Wire(server()) as wire:
        wire.request("GET", "/livez", headers=["Connection: keep-alive"], version="1.0")
        assert wire.response().headers["connection"] == "keep-alive"
        wire.request("GET", "/livez", version="1.0")
        assert wire.response().headers["connection"] == "close"
        assert wire.ended()


def test_every_answer_has_a_request_id():
    for method, path, body in [("GET", "/livez", None), ("GET", "/nowhere", None), ("DELETE", "/livez", None),
                               ("OPTIONS", "/v1/completions", None), ("POST", "/v1/completions", PROMPT),
                               ("POST", "/v1/completions", b"{"), ("HEAD", "/v1/models", None),
                               ("POST", "/v1/completions", {**PROMPT, "stream": True}), ("GET", "/%zz", None)]:
        own = ask(server(), method, path, body)
        assert own.headers["x-request-id"], (method, path)
        given = ask(server(), method, path, body, ["X-Request-Id: mine-42"])
        if path != "/%zz":
            assert given.headers["x-request-id"] == "mine-42", (method, path)
    ids = {ask(server(), "GET", "/livez").headers["x-request-id"] for _ in range(20)}
    assert len(ids) == 20


def test_a_request_id_that_is_not_plain_is_replaced():
    for bad in ["a b", "\xe9", "x" * 1000, ""]:
        answer = ask(server(), "GET", "/livez", headers=[f"X-Request-Id: {bad}"])
        assert answer.headers["x-request-id"] not in (bad, ""), bad
        assert len(answer.headers["x-request-id"]) <= 136


def test_a_preflight_request_allows_the_sdks_headers():
    for path in ["/v1/completions", "/v1/models"]:
        asked = ["Origin: https://example.org", "Access-Control-Request-Method: POST",
                 "Access-Control-Request-Headers: authorization,content-type,x-stainless-os"]
        answer = ask(server(), "OPTIONS", path, headers=asked)
        assert answer.status in (200, 204)
        assert answer.headers["access-control-allow-origin"] in ("*", "https://example.org")
        allowed = {h.strip().lower() for h in answer.headers["access-control-allow-headers"].split(",")}
        wanted = {"authorization", "content-type", "x-request-id", *(f"x-stainless-{name}" for name in STAINLESS)}
        assert wanted <= allowed, wanted - allowed
        assert "POST" in answer.headers["access-control-allow-methods"]
        assert int(answer.headers["access-control-max-age"]) > 0
        assert answer.body == b""


def test_answers_can_be_read_by_any_page():
    for method, path, body in [("GET", "/v1/models", None), ("POST", "/v1/completions", PROMPT),
                               ("POST", "/v1/completions", {**PROMPT, "stream": True}),
                               ("POST", "/v1/completions", {}), ("GET", "/nowhere", None)]:
        answer = ask(server(), method, path, body, ["Origin: https://example.org"])
        assert answer.headers["access-control-allow-origin"] in ("*", "https://example.org"), path


def test_head_is_get_without_the_body():
    for path in GETS:
        with Wire(server()) as wire:
            body = wire.request("GET", path).response().body
            head = wire.request("HEAD", path).response(head_only=True)
            assert head.status == 200
            length = int(head.headers["content-length"])
            # Counters move between the two requests.
            assert abs(length - len(body)) <= 64 if path in ("/metrics", "/v1/tiers") else length == len(body), path
            assert wire.request("GET", "/livez").response().status == 200
    assert ask(server(), "HEAD", "/nowhere").status == 404


def test_options_lists_the_methods():
    assert {"POST", "OPTIONS"} == set(ask(server(), "OPTIONS", "/v1/completions").headers["allow"].split(", "))
    for path in GETS:
        assert {"GET", "HEAD", "OPTIONS"} == set(ask(server(), "OPTIONS", path).headers["allow"].split(", "))


def test_a_wrong_method_is_405_with_allow():
    for path, allowed in [("/v1/completions", {"POST", "OPTIONS"})] + [(p, {"GET", "HEAD", "OPTIONS"}) for p in GETS]:
        for method in {"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "TRACE"} - allowed:
            answer = ask(server(), method, path, {} if method in ("POST", "PUT", "PATCH") else None)
            assert answer.status == 405, (method, path, answer.status)
            assert set(answer.headers["allow"].split(", ")) == allowed
            if method != "HEAD":
                error = answer.error()
                assert error["code"] == "method_not_allowed" and error["type"] == "invalid_request_error"


def test_tiers_cannot_be_changed_over_tcp():
    answer = ask(server(), "PATCH", "/v1/tiers", {"tiers": {"ram": "1MiB"}})
    assert answer.status == 405 and "PATCH" not in answer.headers["allow"]


def test_an_unknown_url_is_404():
    for path in ["/", "/v1", "/v1/completion", "/v1/completions/", "/V1/models", "/v1/models/", "/v1//models",
                 "/v1/models/../tiers", "/favicon.ico", "/metrics/x"]:
        error = ask(server(), "GET", path).error()
        assert error["code"] in ("unknown_url", "model_not_found"), path
    answer = ask(server(), "GET", "/" + "a" * 5000)
    assert answer.status == 404 and len(answer.body) < 1000
    answer = ask(server(), "GET", "/%0d%0aSet-Cookie:x%1b%ff")
    assert answer.status == 404 and "set-cookie" not in answer.headers
    assert not re.search(r"[\x00-\x1f\x7f]", answer.error()["message"])


def test_the_path_is_decoded_and_the_query_is_ignored():
    assert ask(server(), "GET", "/v1/%6dodels?x=%zz&y").status == 200
    assert ask(server(), "GET", "http://localhost/v1/models").status == 200
    assert ask(server(), "POST", "/v1/completions?api-version=1", PROMPT).status == 200


def test_models_are_listed_and_found_by_name():
    listed = ask(server(), "GET", "/v1/models").json()
    assert listed["object"] == "list"
    [model] = listed["data"]
    assert model["object"] == "model" and model["id"] == server().model
    assert model["owned_by"] and model["created"] > 1_600_000_000 and model["max_model_len"] > 0
    assert ask(server(), "GET", f"/v1/models/{model['id']}").json() == model
    answer = ask(server(), "GET", "/v1/models/gpt-4")
    assert answer.status == 404 and answer.error()["code"] == "model_not_found"
    assert answer.error()["param"] == "model"


def test_a_connection_serves_many_requests():
    with Wire(server()) as wire:
        for i in range(200):
            answer = wire.request("GET", "/livez", headers=[f"X-Request-Id: {i}"]).response()
            assert answer.status == 200 and answer.headers["x-request-id"] == str(i)
            assert answer.headers.get("connection", "keep-alive") == "keep-alive"
        for _ in range(3):
            assert wire.request("POST", "/v1/completions", PROMPT).response().status == 200
            assert wire.request("POST", "/v1/completions", {"prompt": 5}).response().status == 400


def test_connection_close_is_honoured():
    for method, path, body in [("GET", "/livez", None), ("POST", "/v1/completions", PROMPT),
                               ("POST", "/v1/completions", {**PROMPT, "stream": True})]:
        with Wire(server()) as wire:
            answer = wire.request(method, path, body, ["Connection: close"]).response()
            assert answer.status == 200 and answer.headers["connection"] == "close"
            assert wire.ended()


def test_pipelined_requests_are_answered_in_order():
    with Wire(server()) as wire:
        data = b""
        for i in range(300):
            data += b"GET /livez HTTP/1.1\r\nHost: a\r\nX-Request-Id: r%d\r\n\r\n" % i
        wire.send(data)
        for i in range(300):
            assert wire.response().headers["x-request-id"] == f"r{i}"
    with Wire(server()) as wire:
        body = json.dumps(PROMPT).encode()
        stream = json.dumps({**PROMPT, "stream": True}).encode()
        data = b""
        for i in range(6):
            payload = stream if i % 2 else body
            data += b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nX-Request-Id: c%d\r\n" % i
            data += b"Content-Length: %d\r\n\r\n%s" % (len(payload), payload)
            data += b"GET /v1/models HTTP/1.1\r\nHost: a\r\nX-Request-Id: m%d\r\n\r\n" % i
        wire.send(data)
        for i in range(6):
            answer = wire.response()
            assert answer.headers["x-request-id"] == f"c{i}" and answer.status == 200
            assert answer.body.startswith(b"data: " if i % 2 else b"{")
            assert wire.response().headers["x-request-id"] == f"m{i}"


def test_a_chunked_body_is_read():
    body = json.dumps(PROMPT).encode()
    wanted = server().complete(**PROMPT)["choices"]
    for size in [1, 7, len(body)]:
        chunks = [body[at:at + size] for at in range(0, len(body), size)]
        data = b"".join(b"%x;a=b\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
        with Wire(server()) as wire:
            wire.send(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
                      b"Transfer-Encoding: chunked\r\n\r\n" + data + b"0\r\nX-Trailer: y\r\n\r\n")
            assert wire.response().json()["choices"] == wanted
            assert wire.request("GET", "/livez").response().status == 200


def test_a_request_may_arrive_byte_by_byte():
    body = json.dumps(PROMPT)
    data = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    with Wire(server()) as wire:
        for i in range(len(data)):
            wire.send(data[i:i + 1])
        assert wire.response().json()["choices"] == server().complete(**PROMPT)["choices"]


def test_a_client_that_expects_100_gets_it_before_it_sends():
    body = json.dumps(PROMPT).encode()
    with Wire(server()) as wire:
        wire.send(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n"
                  % len(body))
        interim = wire.response()
        assert interim.status == 100 and interim.head == b"HTTP/1.1 100 Continue"
        assert wire.quiet()
        assert wire.send(body).response().status == 200
        assert wire.request("GET", "/livez").response().status == 200
    with Wire(server()) as wire:
        wire.send(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999999\r\n"
                  b"Expect: 100-continue\r\n\r\n")
        answer = wire.response()
        assert answer.status == 413, "a body that would be refused is not asked for"
        assert wire.ended()
    with Wire(server()) as wire:
        wire.send(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: tea\r\n\r\n")
        assert wire.response().status == 417


def test_an_offer_to_upgrade_is_ignored():
    for offer in ["websocket", "h2c"]:
        answer = ask(server(), "GET", "/livez", headers=["Connection: Upgrade", f"Upgrade: {offer}"])
        assert answer.status == 200 and "upgrade" not in answer.headers


def test_the_content_type_is_looked_at():
    body = json.dumps(PROMPT)
    for good in ["application/json", "application/json; charset=utf-8", "APPLICATION/JSON"]:
        with Wire(server()) as wire:
            wire.send(f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: {good}\r\n"
                      f"Content-Length: {len(body)}\r\n\r\n{body}")
            assert wire.response().status == 200, good
    for bad in ["text/plain", "multipart/form-data; boundary=x", "application/jsonx", "image/png"]:
        with Wire(server()) as wire:
            wire.send(f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: {bad}\r\n"
                      f"Content-Length: {len(body)}\r\n\r\n{body}")
            answer = wire.response()
            assert answer.status == 400 and answer.error()["code"] == "invalid_json", bad
            assert wire.request("GET", "/livez").response().status == 200


def test_unknown_fields_are_listed_in_a_header():
    answer = ask(server(), "POST", "/v1/completions", {**PROMPT, "foo": 1, "b\r\nar": {"x": []}})
    assert answer.status == 200
    assert answer.headers["x-engramd-ignored-fields"].split(", ") == ["foo", "b??ar"]
    assert "x-engramd-ignored-fields" not in ask(server(), "POST", "/v1/completions", PROMPT).headers
    with Daemon({"server.strict_requests": "yes"}) as strict:
        answer = ask(strict, "POST", "/v1/completions", {**PROMPT, "foo": 1})
        assert answer.status == 400 and answer.error()["param"] == "foo"


def test_metrics_are_in_prometheus_format():
    answer = ask(server(), "GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    names = set()
    for line in answer.body.decode().splitlines():
        if line.startswith("# TYPE "):
            names.add(line.split()[2])
        elif not line.startswith("#"):
            match = re.fullmatch(r'(engramd_[a-z0-9_]+)(\{[a-z_]+="[^"]*"(,[a-z_]+="[^"]*")*\})? (\S+)', line)
            assert match, line
            float(match[4])
            assert re.sub(r"_(bucket|sum|count)$", "", match[1]) in names or match[1] in names, line
    assert "engramd_generation_tokens_total" in names


def test_tiers_have_the_promised_keys():
    tiers = ask(server(), "GET", "/v1/tiers").json()
    assert {t["name"] for t in tiers["tiers"]} >= {"hbm", "ram"}
    for tier in tiers["tiers"]:
        assert {"name", "budget_bytes", "used_bytes", "hits", "misses"} <= set(tier)
        assert tier["used_bytes"] <= tier["budget_bytes"] or tier["name"] == "nvme"
    assert {"reads", "bytes", "useful_bytes"} <= set(tiers["nvme"])


def test_health_is_200_once_serving():
    for path in ["/health", "/livez", "/readyz"]:
        assert ask(server(), "GET", path).status == 200
    checks = ask(server(), "GET", "/readyz?verbose").json()
    assert checks["status"] == "ok" and all(check["ok"] for check in checks["checks"])


def test_a_silent_stream_is_kept_alive_by_comments_of_their_own():
    with Daemon({"tier.nvme.fault": "delay=1500ms", "tier.hbm.size": "0B", "tier.ram.size": "0B",
                 "server.ping_interval": "1s"}) as slow:
        with Wire(slow) as wire:
            wire.request("POST", "/v1/completions", {**PROMPT, "max_tokens": 2, "stream": True})
            wire.head()
            body = b"".join(wire.chunks())
        assert b": ping\n\n" in body
        for event in body.split(b"\n\n"):
            assert event in (b"", b": ping") or event.startswith(b"data: "), event
            assert event.count(b"\n") == 0


if __name__ == "__main__":
    run(globals())
