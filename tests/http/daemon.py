"""A real engramd for the test suites: started on a free loopback port, stopped, and looked at when it ends.

Python 3 standard library only. ENGRAMD_BUILD names the build folder (default: build). Servers listen on loopback.
"""
import http.client
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("ENGRAMD_BUILD", ROOT / "build"))
DEMO = ROOT / "models" / "demo"
TINY = ROOT / "tests" / "golden" / "engram_tiny"
PROGRAM = (BUILD / "engramd").read_bytes() if (BUILD / "engramd").exists() else b""
SANITIZED = b"__asan_init" in PROGRAM or b"__tsan_init" in PROGRAM
# Instrumented kernels are thirty times slower: the tiny model walks the same paths.
MODEL = TINY if SANITIZED else DEMO
SANITIZER = re.compile(r"ERROR: (Address|Leak|Thread)Sanitizer|WARNING: ThreadSanitizer|runtime error:")


class Daemon:
    """with Daemon({"tier.ram.size": "0B"}) as d: d.post("/v1/completions", {...})"""

    def __init__(self, options=None, model=None, env=None, ready=True, admin=False, wrapper=()):
        self.folder = tempfile.TemporaryDirectory(prefix="engramd-test-")
        self.admin_path = os.path.join(self.folder.name, "admin.sock") if admin else None
        settings = {"server.listen": "127.0.0.1:0", "model.path": str(model or MODEL), "device": "cpu",
                    "cpu.threads": "2", "engine.kv_size": "64MiB", "tier.hbm.size": "512KiB",
                    "tier.ram.size": "1MiB", "log.level": "debug"}
        if self.admin_path:
            settings["server.admin_socket"] = self.admin_path
        settings.update(options or {})
        self.arguments = [*wrapper, str(BUILD / "engramd")]
        for key, value in settings.items():
            self.arguments += ["--set", f"{key}={value}"]
        self.env = dict(os.environ, ASAN_OPTIONS="detect_leaks=1:abort_on_error=0",
                        TSAN_OPTIONS="exitcode=66", UBSAN_OPTIONS="print_stacktrace=1", **(env or {}))
        for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "RUNTIME_DIRECTORY"):
            if not env or name not in env:
                self.env.pop(name, None)
        self.wait_ready = ready
        self.port = None
        self.lines = []
        self.process = None

    def __enter__(self):
        self.process = subprocess.Popen(self.arguments, cwd=ROOT, env=self.env, stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                                        errors="replace")
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        if self.wait_ready:
            self.wait()
        return self

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    def text(self):
        return "\n".join(self.lines)

    def wait(self, seconds=60):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = re.search(r"serving (\S+) on http://127\.0\.0\.1:(\d+)", self.text())
            if found:
                self.model, self.port = found[1], int(found[2])
                return
            if self.process.poll() is not None:
                self.reader.join(2)
                raise AssertionError(f"engramd ended with {self.process.returncode}:\n{self.text()}")
            time.sleep(0.005)
        self.process.kill()
        raise AssertionError(f"engramd was not ready after {seconds} s:\n{self.text()}")

    def stop(self, signal_number=signal.SIGTERM, seconds=60):
        """Ends the process; returns its exit status. Fails on a sanitizer's report."""
        if self.process.poll() is None:
            self.process.send_signal(signal_number)
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"engramd did not end within {seconds} s:\n{self.text()}")
        self.reader.join(5)
        if SANITIZER.search(self.text()):
            raise AssertionError("sanitizer report:\n" + self.text())
        return status

    def __exit__(self, kind, value, trace):
        try:
            if self.process.returncode is None:
                status = self.stop()
                if kind is None and status != 0:
                    raise AssertionError(f"engramd ended with {status}:\n{self.text()}")
            else:
                self.stop()
        finally:
            self.process.stderr.close()
            self.folder.cleanup()
            if kind is not None:
                sys.stderr.write("--- engramd's last lines ---\n" + "\n".join(self.lines[-30:]) + "\n")

    def connect(self, timeout=120):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def socket(self, timeout=60):
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout)

    def request(self, method, path, body=None, headers=None, timeout=120):
        """(status, headers as a dict with lower-case names, body bytes)"""
        connection = self.connect(timeout)
        try:
            if isinstance(body, (dict, list)):
                body = json.dumps(body)
                headers = {"Content-Type": "application/json", **(headers or {})}
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
        finally:
            connection.close()

    def get(self, path):
        status, _, body = self.request("GET", path)
        assert status == 200, (status, body)
        return json.loads(body)

    def post(self, path, body, expect=200):
        status, _, answer = self.request("POST", path, body)
        assert status == expect, (status, answer)
        return json.loads(answer)

    def complete(self, prompt, **fields):
        return self.post("/v1/completions", {"prompt": prompt, **fields})

    def stream(self, prompt, **fields):
        """The data of each event, parsed; [DONE] as the string."""
        status, headers, body = self.request("POST", "/v1/completions",
                                             {"prompt": prompt, "stream": True, **fields})
        assert status == 200, (status, body)
        events = body.decode().split("\n\n")
        assert events.pop() == "", events
        data = [event.removeprefix("data: ") for event in events if not event.startswith(":")]
        return [json.loads(item) if item != "[DONE]" else item for item in data]

    def admin(self, method, path, body=None):
        connection = http.client.HTTPConnection("localhost", timeout=60)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(self.admin_path)
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None,
                               {"Content-Type": "application/json"} if body is not None else {})
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def idle(self, seconds=20):
        """Waits until no sequence runs or waits."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            text = self.request("GET", "/metrics")[2].decode()
            values = [float(v) for v in re.findall(r"^engramd_num_requests_\w+ (\S+)$", text, re.M)]
            if len(values) == 2 and sum(values) == 0:
                return
            time.sleep(0.02)
        raise AssertionError("sequences are still running")

    def metric(self, name, labels=""):
        text = self.request("GET", "/metrics")[2].decode()
        wanted = f"engramd_{name}{{{labels}}}" if labels else f"engramd_{name}"
        for line in text.splitlines():
            if line.startswith(wanted + " "):
                return float(line.rsplit(" ", 1)[1])
        raise AssertionError(f"no metric {wanted}")


_shared = {}


def shared(**options):
    """A daemon that lives for the whole suite; options as tier__ram__size="1MiB". run() stops it and looks."""
    key = tuple(sorted(options.items()))
    if key not in _shared:
        _shared[key] = Daemon({name.replace("__", "."): value for name, value in options.items()}).__enter__()
    return _shared[key]


class Skip(Exception):
    """Raised by a test that cannot run here; the text says why."""


def need_demo():
    """For tests of long or readable answers, which the tiny model cannot give."""
    if MODEL != DEMO:
        raise Skip("sanitized builds serve the tiny model, whose context and text are too small for this")


def run(namespace):
    """Runs every function named test_* of a module in order, prints TAP-like lines and the closing count."""
    passed = failed = skipped = 0
    only = sys.argv[1:]
    for name, test in list(namespace.items()):
        if not name.startswith("test_") or (only and name not in only):
            continue
        begin = time.monotonic()
        title = name.removeprefix("test_").replace("_", " ")
        try:
            test()
            passed += 1
            print(f"ok - {title} ({time.monotonic() - begin:.2f} s)", flush=True)
        except Skip as reason:
            skipped += 1
            print(f"ok - {title} # SKIP {reason}", flush=True)
        except Exception:
            failed += 1
            print(f"not ok - {title}", flush=True)
            traceback.print_exc()
    for daemon in _shared.values():
        title = "the server lived through all of this and ends cleanly"
        try:
            assert daemon.process.poll() is None, "it has ended before"
            assert daemon.stop() == 0
            passed += 1
            print(f"ok - {title}", flush=True)
        except Exception:
            failed += 1
            print(f"not ok - {title}", flush=True)
            traceback.print_exc()
            sys.stderr.write("\n".join(daemon.lines[-40:]) + "\n")
        finally:
            daemon.process.stderr.close()
            daemon.folder.cleanup()
    print(f"{passed} passed, {failed} failed, {skipped} skipped", flush=True)
    sys.exit(1 if failed else 0)
