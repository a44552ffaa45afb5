#!/usr/bin/env python3
"""A device that is a plugin: whether it is there, how much fits, and what happens when it fails. The plugin is
stub_plugin.c, beside a copy of the daemon, so that no real one is found first."""
import http.client
import json
import os
import pathlib
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "http"))
from daemon import BUILD, MODEL, ROOT, SANITIZED, Daemon, Skip, run  # noqa: E402

FOLDER = tempfile.TemporaryDirectory(prefix="engramd-device-")
PROGRAM = pathlib.Path(FOLDER.name) / "with" / "engramd"
ALONE = pathlib.Path(FOLDER.name) / "without" / "engramd"
for program in (PROGRAM, ALONE):
    program.parent.mkdir()
    shutil.copy(BUILD / "engramd", program)
shutil.copy(BUILD / "tests" / "serve" / "libengram-cuda.so", PROGRAM.parent)


class OnStub(Daemon):
    def __init__(self, options=None, program=PROGRAM, **more):
        env = {name: more.pop(name) for name in list(more) if name.isupper()}
        super().__init__({"device": "cuda:0", **(options or {})}, env=env, **more)
        self.arguments[0] = str(program)


def refused(options, program=PROGRAM, **env):
    """Exit status and last words of a daemon that does not start."""
    words = [str(program), "--set", f"model.path={MODEL}", "--set", "server.listen=127.0.0.1:0"]
    for key, value in options.items():
        words += ["--set", f"{key}={value}"]
    try:
        done = subprocess.run(words, cwd=ROOT, timeout=20, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              errors="replace", env={**os.environ, **env})
    except subprocess.TimeoutExpired as late:
        raise AssertionError(f"it started: {late.stderr}") from None
    return done.returncode, done.stderr


def test_a_missing_gpu_is_a_failed_start_that_says_what_was_looked_for_and_found():
    for n in ("1", "0"):
        code, text = refused({"device": "cuda:1"}, STUB_GPUS=n)
        assert code == 69 and f"device = cuda:1: looked for GPU 1, found {n}" in text, (code, text)
        assert "device cpu" not in text, text
    code, text = refused({"device": "cuda:0"}, STUB_GPUS="-1")
    assert code == 69 and "device = cuda:0: the driver cannot be used" in text, (code, text)


def test_a_missing_plugin_is_a_failed_start_that_names_every_place():
    code, text = refused({"device": "cuda:9999"}, program=ALONE)
    if code == 69 and "looked for GPU 9999" in text:
        raise Skip("the plugin is installed here")
    assert code == 69 and "device = cuda:9999: the CUDA plugin cannot be loaded" in text, (code, text)
    assert f"{ALONE.parent}/libengram-cuda.so: no such file" in text, text
    assert text.count("libengram-cuda.so") >= 3, text


def test_a_plugin_that_is_none_is_a_failed_start():
    folder = pathlib.Path(FOLDER.name) / "broken"
    folder.mkdir()
    shutil.copy(BUILD / "engramd", folder)
    (folder / "libengram-cuda.so").write_text("not a library")
    code, text = refused({"device": "cuda:0"}, program=folder / "engramd")
    assert code == 69 and f"{folder}/libengram-cuda.so: " in text, (code, text)
    assert "no such file" not in text.split(";")[0], text


def test_auto_takes_a_gpu_that_is_there_and_says_why_it_takes_the_cpu():
    for n, line in (("1", "device cuda:0: stub"), ("0", "device auto: the CPU: no NVIDIA GPU was found"),
                    ("-1", "device auto: the CPU: the driver cannot be used")):
        with OnStub({"device": "auto"}, STUB_GPUS=n) as daemon:
            assert line in daemon.text(), daemon.text()
            assert ("device cpu" in daemon.text()) == (n != "1"), daemon.text()
            assert daemon.complete("Once", max_tokens=4, ignore_eos=True)["usage"]["completion_tokens"] == 4


def test_a_device_with_memory_of_its_own_gives_the_tokens_of_the_cpu_whatever_the_tiers():
    fields = {"max_tokens": 24, "temperature": 0, "ignore_eos": True, "logprobs": 2}
    with Daemon() as daemon:
        wanted = daemon.complete("Once upon a time", **fields)["choices"]
    with OnStub(admin=True) as daemon:
        for hbm, ram in ((None, None), ("0B", "0B"), ("64KiB", "64KiB"), ("64MiB", "0B"), ("0B", "64MiB")):
            if hbm:
                status, answer = daemon.admin("PATCH", "/v1/tiers", {"tiers": {"hbm": hbm, "ram": ram}})
                assert status == 200, answer
            for _ in range(2):
                assert daemon.complete("Once upon a time", **fields)["choices"] == wanted, (hbm, ram)


def test_what_does_not_fit_the_gpu_is_named_at_the_start_and_at_a_change():
    code, text = refused({"device": "cuda:0"}, STUB_MEMORY="1000000")
    assert code == 78, (code, text)
    for word in ("engine.kv_size", "tier.hbm.size", "working memory", "the GPU's memory"):
        assert word in text, (word, text)
    with OnStub(admin=True, STUB_MEMORY=str(1 << 36)) as daemon:
        for size, status in (("63GiB", 200), ("65GiB", 400), ("1MiB", 200)):
            got, answer = daemon.admin("PATCH", "/v1/tiers", {"tiers": {"hbm": size}})
            assert got == status, (size, got, answer)
            assert status == 200 or "tier.hbm.size 65" in json.dumps(answer), answer


def test_a_device_is_warmed_up_with_all_weights_there_before_the_first_step():
    with OnStub(STUB_WARM_UP="7") as daemon:
        text = daemon.text()
        assert 0 < text.find("warmed up 7 products in ") < text.find("serving "), text
    code, text = refused({"device": "cuda:0"}, STUB_WARM_UP="-5")
    assert code == 65 and "the device failed while it warmed up" in text, (code, text)


class Poller(threading.Thread):
    """Asks for readiness on a connection of its own for as long as anybody answers."""

    def __init__(self, daemon):
        super().__init__(daemon=True)
        self.connection, self.statuses, self.end = daemon.connect(), [], None

    def run(self):
        try:
            while True:
                self.connection.request("GET", "/readyz")
                response = self.connection.getresponse()
                response.read()
                self.statuses.append(response.status)
                time.sleep(0.001)
        except (http.client.HTTPException, OSError) as problem:
            self.end = problem


class Manager:
    """The service manager: hears what the daemon says of itself."""

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(os.path.join(self.folder.name, "notify"))
        self.socket.settimeout(20)
        return self

    def __exit__(self, *_):
        self.socket.close()
        self.folder.cleanup()

    def last_words(self):
        said = ""
        while "ERRNO=" not in said:
            said = self.socket.recv(4096).decode()
        return said


def expect_gone(daemon, poller):
    """Readiness was there, and nobody answers any more."""
    poller.join(10)
    daemon.reader.join(5)
    assert poller.end is not None, "somebody still answers"
    assert poller.statuses[0] == 200, poller.statuses[:3]
    try:
        socket.create_connection(("127.0.0.1", daemon.port), timeout=5).close()
        raise AssertionError("the port is still open")
    except ConnectionRefusedError:
        pass


def fail_while_serving(how):
    """What clients, the service manager and the one who waits for the process see of a device that fails."""
    result = queue.Queue()
    with Manager() as manager, OnStub(STUB_FAIL_STEP="30", STUB_FAIL_HOW=how,
                                      NOTIFY_SOCKET=manager.socket.getsockname()) as daemon:
        poller = Poller(daemon)
        poller.start()

        def ask(stream):
            body = {"prompt": "Once upon a time", "max_tokens": 60, "ignore_eos": True, "temperature": 0,
                    "stream": stream}
            result.put((stream, *daemon.request("POST", "/v1/completions", body)[::2]))
        threads = [threading.Thread(target=ask, args=(stream,)) for stream in (True, False, True, False)]
        for thread in threads:
            thread.start()
        status = daemon.process.wait(20)
        for thread in threads:
            thread.join(10)
        expect_gone(daemon, poller)
        assert status == 70, (status, daemon.text())
        assert "the compute device failed" in daemon.text(), daemon.text()
        assert result.qsize() == len(threads), f"{result.qsize()} of {len(threads)} requests were answered"
        while not result.empty():
            stream, code, body = result.get()
            if stream:
                events = [e.removeprefix("data: ") for e in body.decode().split("\n\n") if e]
                assert code == 200 and events[-1] == "[DONE]", (code, events[-3:])
                error = json.loads(events[-2])["error"]
            else:
                assert code == 500, (code, body)
                error = json.loads(body)["error"]
            assert "the compute device failed" in error["message"] and error["type"] == "server_error", error
        assert "The compute device failed" in manager.last_words()


def test_a_device_that_refuses_a_step_ends_the_requests_readiness_and_the_process():
    fail_while_serving("launch")


def test_a_device_that_loses_a_step_ends_the_requests_readiness_and_the_process():
    fail_while_serving("silent")


def test_a_device_that_is_lost_while_nothing_runs_is_noticed_within_seconds():
    for how in ("launch", "silent"):
        lost = pathlib.Path(FOLDER.name) / f"lost-{how}"
        with Manager() as manager, OnStub(STUB_FAIL_FILE=str(lost), STUB_FAIL_HOW=how,
                                          NOTIFY_SOCKET=manager.socket.getsockname()) as daemon:
            daemon.complete("Once upon a time", max_tokens=4)
            time.sleep(2.5)
            poller = Poller(daemon)
            poller.start()
            time.sleep(0.2)
            assert daemon.process.poll() is None, daemon.text()
            begin = time.monotonic()
            lost.touch()
            status = daemon.process.wait(20)
            seconds = time.monotonic() - begin
            expect_gone(daemon, poller)
            assert status == 70, (status, daemon.text())
            assert seconds < (10 if SANITIZED else 3), f"noticed after {seconds:.2f} s"
            assert "the compute device failed (Input/output error): ending" in daemon.text(), daemon.text()
            assert "The compute device failed" in manager.last_words()


def test_an_idle_device_is_looked_at_once_a_second_and_no_more():
    with OnStub() as daemon:
        daemon.complete("Once upon a time", max_tokens=4)
        time.sleep(0.5)

        def switches():
            status = (task.read_text() for task in pathlib.Path(f"/proc/{daemon.process.pid}/task").glob("*/status"))
            return sum(int(re.search(r"\nvoluntary_ctxt_switches:\s*(\d+)", text)[1]) for text in status)
        before = switches()
        time.sleep(4)
        times = switches() - before
        assert times >= 3, f"woken {times} times in 4 s"
        assert times <= 6 or SANITIZED, f"woken {times} times in 4 s"


def end_in_time(daemon, seconds):
    """A SIGTERM to a daemon whose device will never end what it runs."""
    begin = time.monotonic()
    daemon.process.send_signal(signal.SIGTERM)
    status = daemon.process.wait(60)
    took = time.monotonic() - begin
    daemon.reader.join(5)
    assert status == 70, (status, daemon.text())
    assert took < seconds, f"it took {took:.1f} s"
    assert "the compute device failed or does not answer (Input/output error): ending without it" in daemon.text()


HASTE = {"server.shutdown_timeout": "500ms", "tier.nvme.timeout": "500ms"}


def test_a_step_that_never_ends_does_not_keep_the_daemon_from_ending():
    with Manager() as manager, OnStub(HASTE, STUB_FAIL_STEP="30", STUB_FAIL_HOW="hang",
                                      NOTIFY_SOCKET=manager.socket.getsockname()) as daemon:
        answer = queue.Queue()
        body = {"prompt": "Once upon a time", "max_tokens": 60, "ignore_eos": True}
        asking = threading.Thread(target=lambda: answer.put(daemon.request("POST", "/v1/completions", body)))
        asking.start()
        tokens = -1
        while tokens != (now := daemon.metric("generation_tokens_total")) or now == 0:
            tokens = now
            time.sleep(1)
        end_in_time(daemon, 25)
        asking.join(10)
        status, _, text = answer.get(timeout=5)
        assert status == 503 and b"shutting down" in text, (status, text)
        assert "The compute device does not answer" in manager.last_words()


def test_a_device_that_hangs_while_nothing_runs_does_not_keep_the_daemon_from_ending():
    hung = pathlib.Path(FOLDER.name) / "hung"
    with OnStub(HASTE, STUB_FAIL_FILE=str(hung), STUB_FAIL_HOW="hang") as daemon:
        daemon.complete("Once upon a time", max_tokens=4)
        hung.touch()
        time.sleep(2)
        assert daemon.process.poll() is None, daemon.text()
        end_in_time(daemon, 20)


run(globals())
