#!/usr/bin/env python3
"""Clients that others wrote: the openai package of npm and curl, against the real binary.

The package is installed once into build/openai-client (remove that folder to get a newer one). Without node, npm or
the registry those tests skip.
"""
import json
import os
import re
import shutil
import subprocess
import time

from daemon import ROOT, Daemon, Skip, need_demo, run, shared
from wire import wait_until

CLIENT = ROOT / "build" / "openai-client"
# Every row comes from a disk that takes its time: a token takes 20 ms and more.
SLOW = {"tier.nvme.fault": "delay=20ms", "tier.hbm.size": "0B", "tier.ram.size": "0B"}
COLD = {"tier.hbm.size": "0B", "tier.ram.size": "0B", "tier.nvme.retries": "0"}
STORY = {"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0, "ignore_eos": True}

_openai = []


def server():
    return shared()


def url(daemon):
    return f"http://127.0.0.1:{daemon.port}"


def install_openai():
    """Installs the newest version that npm gives this node; returns why not, or None."""
    if not shutil.which("node") or not shutil.which("npm"):
        return "node and npm are not installed"
    if not (CLIENT / "node_modules" / "openai").exists():
        CLIENT.mkdir(parents=True, exist_ok=True)
        try:
            done = subprocess.run(["npm", "install", "--prefix", str(CLIENT), "--no-audit", "--no-fund",
                                   "--no-package-lock", "--ignore-scripts", "openai"], cwd=CLIENT, timeout=120,
                                  stdin=subprocess.DEVNULL, capture_output=True, text=True)
        except subprocess.TimeoutExpired:
            return "npm install openai took longer than two minutes"
        if done.returncode:
            return "npm cannot install openai: " + (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    package = json.loads((CLIENT / "node_modules" / "openai" / "package.json").read_text())
    print(f"# openai {package['version']}")
    return None


def openai(daemon, scenario):
    """Runs one scenario of openai_client.mjs."""
    if not _openai:
        _openai.append(install_openai())
    if _openai[0]:
        raise Skip(_openai[0])
    env = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    done = subprocess.run(["node", str(ROOT / "tests" / "http" / "openai_client.mjs"), str(CLIENT), url(daemon),
                           scenario], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stdout + done.stderr


def test_openai_lists_models():
    openai(server(), "models")


def test_openai_completes():
    need_demo()
    openai(server(), "complete")


def test_openai_streams():
    openai(server(), "stream")


def test_openai_aborts_and_the_slot_is_free_within_a_second():
    with Daemon(SLOW) as daemon:
        openai(daemon, "abort")


def test_openai_aborts_before_the_first_token():
    with Daemon({**SLOW, "tier.nvme.fault": "delay=250ms"}) as daemon:
        openai(daemon, "abortEarly")


def test_openai_gets_typed_errors():
    openai(server(), "errors")


def test_openai_is_told_to_come_again_when_the_queue_is_full():
    with Daemon({**SLOW, "engine.max_sequences": "1", "engine.max_queue": "0"}) as daemon:
        openai(daemon, "full")


def test_openai_gets_a_server_error_from_a_disk_that_fails():
    with Daemon({**COLD, "tier.nvme.fault": "fail-from=1"}) as daemon:
        openai(daemon, "broken")


def test_openai_gets_an_error_out_of_a_stream():
    with Daemon({**COLD, "tier.nvme.fault": "fail-from=400"}) as daemon:
        openai(daemon, "breaking")


def curl(daemon, path, *arguments, status=0):
    """(headers and body as curl -i prints them, split)"""
    if not shutil.which("curl"):
        raise Skip("curl is not installed")
    done = subprocess.run(["curl", "-q", "-sS", "-i", "--noproxy", "*", "--max-time", "60", *arguments,
                           url(daemon) + path], stdin=subprocess.DEVNULL, capture_output=True, timeout=90)
    assert done.returncode == status, (done.returncode, done.stderr)
    head, _, body = done.stdout.partition(b"\r\n\r\n")
    return head.decode(), body.decode()


def status_of(head):
    return int(re.match(r"HTTP/1\.\d (\d{3}) ", head)[1])


def events_of(body):
    events = body.split("\n\n")
    assert events.pop() == ""
    assert all(event.startswith("data: ") for event in events), events
    assert events[-1] == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events[:-1]]


def test_curl_completes_with_and_without_a_content_type():
    wanted = server().complete(**STORY)["choices"]
    for more in [[], ["-H", "Content-Type: application/json"], ["-H", "Content-Type:"], ["--http1.0"],
                 ["-H", "Transfer-Encoding: chunked"], ["-H", "Expect: 100-continue"], ["--compressed"]]:
        head, body = curl(server(), "/v1/completions", "-d", json.dumps(STORY), *more)
        if status_of(head) == 100:
            head, _, body = body.partition("\r\n\r\n")
        assert status_of(head) == 200, (more, head)
        assert json.loads(body)["choices"] == wanted, more


def test_curl_streams():
    text = server().complete(**STORY)["choices"][0]["text"]
    for version in ["--http1.1", "--http1.0"]:
        head, body = curl(server(), "/v1/completions", "-N", version, "-d", json.dumps({**STORY, "stream": True}))
        assert status_of(head) == 200 and "text/event-stream" in head, head
        assert ("transfer-encoding: chunked" in head.lower()) == (version == "--http1.1"), head
        events = events_of(body)
        assert "".join(event["choices"][0]["text"] for event in events) == text
        assert [event["choices"][0]["finish_reason"] for event in events] == [None] * 7 + ["length"]


def test_curl_sees_tokens_as_they_are_made():
    with Daemon(SLOW) as daemon:
        if not shutil.which("curl"):
            raise Skip("curl is not installed")
        process = subprocess.Popen(["curl", "-q", "-sS", "-N", "--noproxy", "*", url(daemon) + "/v1/completions", "-d",
                                    json.dumps({**STORY, "max_tokens": 30, "stream": True})], stdout=subprocess.PIPE)
        times = [time.monotonic() for line in process.stdout if line.startswith(b"data: {")]
        assert process.wait(10) == 0 and len(times) == 30
        assert times[-1] - times[0] > 0.3, "the tokens came all at once"


def test_curl_that_is_interrupted_frees_its_slot():
    with Daemon(SLOW) as daemon:
        for stream in [True, False]:
            before = daemon.metric("requests_cancelled_total")
            curl(daemon, "/v1/completions", "--max-time", "1", "-d",
                 json.dumps({**STORY, "max_tokens": 400, "stream": stream}), status=28)
            wait_until(lambda: daemon.metric("num_requests_running") == 0, 1, "a free slot")
            assert daemon.metric("requests_cancelled_total") == before + 1


def test_curl_asks_for_heads_and_options():
    for path in ["/health", "/v1/models", "/v1/tiers", "/metrics"]:
        head, body = curl(server(), path, "-I")
        assert status_of(head) == 200 and body == "", (path, head)
        length = int(re.search(r"(?i)^content-length: (\d+)\r?$", head, re.M)[1])
        assert length > 0
    head, _ = curl(server(), "/v1/completions", "-I")
    assert status_of(head) == 405 and re.search(r"(?i)^allow: POST, OPTIONS\r?$", head, re.M), head
    head, body = curl(server(), "/v1/completions", "-X", "OPTIONS", "-H", "Origin: http://a.example", "-H",
                      "Access-Control-Request-Method: POST", "-H",
                      "Access-Control-Request-Headers: authorization,content-type,x-stainless-os,x-stainless-timeout")
    assert status_of(head) == 204 and body == "", head
    allowed = re.search(r"(?i)^access-control-allow-headers: (.*?)\r?$", head, re.M)[1].lower().replace(" ", "")
    assert {"authorization", "content-type", "x-stainless-os", "x-stainless-timeout"} <= set(allowed.split(",")), head


def test_curl_reuses_its_connection():
    if not shutil.which("curl"):
        raise Skip("curl is not installed")
    for version in ["--http1.1", "--http1.0"]:
        stream = json.dumps({**STORY, "stream": True})
        done = subprocess.run(["curl", "-q", "-sS", "--noproxy", "*", version, "-w", "%{num_connects} %{http_code}\n",
                               "-o", "/dev/null", "-d", stream, url(server()) + "/v1/completions",
                               "--next", "-q", "-sS", "--noproxy", "*", version, "-w", "%{num_connects} %{http_code}\n",
                               "-o", "/dev/null", "-d", json.dumps(STORY), url(server()) + "/v1/completions"],
                              capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        wanted = ["1 200", "0 200"] if version == "--http1.1" else ["1 200", "1 200"]
        assert done.stdout.splitlines() == wanted, (version, done.stdout)


if __name__ == "__main__":
    run(globals())
