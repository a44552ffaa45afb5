#!/usr/bin/env python3
"""Operation: the service manager's protocol, signals, exit codes, memory, idle CPU, faults of the disk."""
import json
import os
import pathlib
import pty
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


class Manager:
    """The service manager's end of the notify protocol."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory()
        self.path = os.path.join(self.folder.name, "notify")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.messages = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        while True:
            self.messages.put(self.socket.recv(4096).decode())

    def receive(self, wanted):
        """Messages up to and including the first one that has the wanted line's beginning."""
        seen = []
        while True:
            seen.append(self.messages.get(timeout=10))
            if any(line.startswith(wanted) for line in seen[-1].splitlines()):
                return seen


def wait_for(daemon, metric, seconds=30):
    """Until the metric is not zero."""
    deadline = time.monotonic() + seconds
    while daemon.metric(metric) == 0:
        assert time.monotonic() < deadline, f"{metric} stays 0"
        time.sleep(0.01)


def test_the_service_manager_hears_loading_ready_watchdog_and_stopping():
    manager = Manager()
    with Daemon(env={"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "400000"}) as daemon:
        before_ready = manager.receive("READY=1")
        assert any("STATUS=Loading" in text for text in before_ready), before_ready
        begin = time.monotonic()
        manager.receive("WATCHDOG=1")
        manager.receive("WATCHDOG=1")
        assert time.monotonic() - begin < 1.0, "the idle engine must feed the watchdog in time"
        daemon.complete("Once", max_tokens=4)
        daemon.process.send_signal(signal.SIGTERM)
        manager.receive("STOPPING=1")
        assert daemon.stop() == 0


def test_an_abstract_notify_socket_works_too():
    name = f"engramd-test-{os.getpid()}"
    server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    server.bind("\0" + name)
    server.settimeout(10)
    with Daemon(env={"NOTIFY_SOCKET": "@" + name}, ready=False) as daemon:
        while "READY=1" not in server.recv(4096).decode():
            pass
        daemon.wait()


def test_sigterm_drains_and_refuses_new_work():
    with Daemon({"tier.nvme.fault": "delay=20ms", "tier.hbm.size": "0B", "tier.ram.size": "0B"}) as daemon:
        result = {}

        def ask():
            result["answer"] = daemon.complete("Once upon a time", max_tokens=30, temperature=0, ignore_eos=True)
        thread = threading.Thread(target=ask)
        thread.start()
        wait_for(daemon, "num_requests_running")
        daemon.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        status, headers, body = daemon.request("POST", "/v1/completions", {"prompt": "x"})
        assert status == 503 and headers["retry-after"] and headers["connection"] == "close", (status, headers)
        assert json.loads(body)["error"]["code"] == "draining"
        assert daemon.request("GET", "/readyz")[0] == 503
        assert daemon.request("GET", "/livez")[0] == 200
        thread.join()
        assert result["answer"]["usage"]["completion_tokens"] == 30
        assert daemon.stop() == 0


def test_signals_without_end_do_not_turn_an_end_into_a_kill():
    for _ in range(8):
        with Daemon() as daemon:
            deadline = time.monotonic() + 30
            while daemon.process.poll() is None and time.monotonic() < deadline:
                daemon.process.send_signal(signal.SIGTERM)
            assert daemon.stop() == 0, daemon.text()


def test_a_drain_that_takes_too_long_ends_streams_with_an_error_event():
    with Daemon({"tier.nvme.fault": "delay=50ms", "tier.hbm.size": "0B", "tier.ram.size": "0B",
                 "server.shutdown_timeout": "300ms"}) as daemon:
        result = {}

        def ask():
            result["events"] = daemon.stream("Once upon a time", max_tokens=500, temperature=0, ignore_eos=True)
        thread = threading.Thread(target=ask)
        thread.start()
        wait_for(daemon, "generation_tokens_total")
        assert daemon.stop() == 0
        thread.join()
        assert result["events"][-1] == "[DONE]"
        assert result["events"][-2]["error"]["code"] == "server_shutdown", result["events"][-2]


def test_a_second_signal_ends_at_once():
    with Daemon({"tier.nvme.fault": "delay=50ms", "tier.hbm.size": "0B", "tier.ram.size": "0B"}) as daemon:
        thread = threading.Thread(target=lambda: daemon.request(
            "POST", "/v1/completions", {"prompt": "Once", "max_tokens": 450, "ignore_eos": True}))
        thread.start()
        wait_for(daemon, "num_requests_running")
        begin = time.monotonic()
        daemon.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        assert daemon.stop() == 0
        assert time.monotonic() - begin < 5
        thread.join()


def read_rss(pid):
    return int(re.search(r"VmHWM:\s+(\d+) kB", pathlib.Path(f"/proc/{pid}/status").read_text())[1]) * 1024


def test_resident_memory_stays_within_weights_budgets_kv_and_64_mib():
    if SANITIZED:
        raise Skip("sanitizers take memory of their own")
    hbm, ram, kv = 1 << 20, 2 << 20, 32 << 20
    with Daemon({"tier.hbm.size": f"{hbm}B", "tier.ram.size": f"{ram}B", "engine.kv_size": f"{kv}B"}) as daemon:
        prompts = [f"Story number {i}: once upon a time there was a" for i in range(32)]
        daemon.complete(prompts, max_tokens=64, temperature=1.0)
        daemon.complete("word " * 900, max_tokens=16, logprobs=5, echo=True)
        model = daemon.get("/v1/models")["data"][0]
        tables = next(t for t in daemon.get("/v1/tiers")["tiers"] if t["name"] == "nvme")["budget_bytes"]
        weights = sum(f.stat().st_size for f in pathlib.Path(MODEL).glob("*.safetensors")) - tables
        bound = weights + hbm + ram + kv + (64 << 20)
        peak = read_rss(daemon.process.pid)
        print(f"# peak resident {peak / 2**20:.1f} MiB, bound {bound / 2**20:.1f} MiB, model {model['id']}")
        assert peak <= bound, (peak, bound)


def test_an_idle_server_takes_no_cpu():
    with Daemon() as daemon:
        daemon.complete("Once upon a time", max_tokens=16)
        time.sleep(0.3)

        def ticks():
            fields = pathlib.Path(f"/proc/{daemon.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
            return int(fields[11]) + int(fields[12])
        before = ticks()
        time.sleep(2)
        used = (ticks() - before) / os.sysconf("SC_CLK_TCK")
        assert used <= 0.03, f"{used} s of CPU in 2 s"


def table_ranges():
    """(file index, begin, end) of the table.weight tensors of the model."""
    files = sorted(pathlib.Path(MODEL).glob("*.safetensors"))
    ranges = []
    for index, path in enumerate(files):
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        for name, tensor in header.items():
            if name.endswith("engram.table.weight"):
                begin, end = tensor["data_offsets"]
                ranges.append((index, 8 + size + begin, 8 + size + end))
    return ranges


def test_a_read_error_fails_only_the_requests_that_needed_the_row():
    """A stretch of the first table is unreadable: prompts that hash into it fail, the others do not."""
    index, begin, end = table_ranges()[0]
    span = (end - begin) // 100
    options = {"tier.nvme.fault": f"bad={index}:{begin}-{begin + span}", "tier.hbm.size": "0B",
               "tier.ram.size": "0B", "tier.nvme.retries": "1"}
    prompts = [f"{a} {b}" for a in ("The old", "A young", "My dear", "One small") for b in
               ("king", "fox", "girl", "house", "bird", "river", "stone", "apple")]
    with Daemon({"tier.hbm.size": "0B", "tier.ram.size": "0B"}) as daemon:
        good = [daemon.complete(p, max_tokens=4, temperature=0)["choices"][0]["text"] for p in prompts]
    with Daemon(options) as daemon:
        outcome = {}

        def ask(i):
            status, _, body = daemon.request("POST", "/v1/completions",
                                             {"prompt": prompts[i], "max_tokens": 4, "temperature": 0})
            outcome[i] = status, json.loads(body)
        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        failed = [i for i, (status, _) in outcome.items() if status != 200]
        for i, (status, body) in outcome.items():
            if status == 200:
                assert body["choices"][0]["text"] == good[i], prompts[i]
            else:
                assert status == 500 and body["error"]["type"] == "server_error", (status, body)
        assert 0 < len(failed) < len(prompts), f"{len(failed)} of {len(prompts)} failed"
        assert daemon.get("/v1/tiers")["nvme"]["errors"] > 0
        ok = next(i for i in outcome if i not in failed)
        assert daemon.complete(prompts[ok], max_tokens=4, temperature=0)["choices"][0]["text"] == good[ok]


def test_a_read_error_in_a_stream_is_an_error_event_and_the_next_request_works():
    options = {"tier.nvme.fault": "fail-from=400", "tier.hbm.size": "0B", "tier.ram.size": "0B",
               "tier.nvme.retries": "0"}
    with Daemon(options) as daemon:
        events = daemon.stream("Once upon a time there was", max_tokens=400, temperature=0, ignore_eos=True)
        assert events[-1] == "[DONE]" and "error" in events[-2], events[-2:]
        assert events[-2]["error"]["type"] == "server_error"
        assert any("choices" in event for event in events[:-2]), "some tokens came before"
        assert daemon.get("/v1/tiers")["nvme"]["errors"] > 0
        assert daemon.get("/readyz")["status"] == "ok"


def test_rows_that_never_come_in_time_end_the_request_and_not_the_server():
    with Daemon({"tier.nvme.fault": "delay=2s", "tier.nvme.timeout": "100ms", "tier.hbm.size": "0B",
                 "tier.ram.size": "0B"}) as daemon:
        status, _, body = daemon.request("POST", "/v1/completions", {"prompt": "Once", "max_tokens": 4})
        assert status == 500 and "in time" in json.loads(body)["error"]["message"], body
        assert daemon.request("GET", "/livez")[0] == 200


def exit_of(*arguments, model=None):
    process = subprocess.run([str(BUILD / "engramd"), *(("--set", f"model.path={model}") if model else ()),
                              "--set", "server.listen=127.0.0.1:0", *arguments], cwd=ROOT, timeout=60,
                             stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    return process.returncode, process.stderr


def test_a_wrong_configuration_is_refused_with_78_and_a_suggestion():
    code, text = exit_of("--set", "tier.ram.sizee=1GiB", model=MODEL)
    assert code == 78 and "tier.ram.size" in text, (code, text)
    code, text = exit_of("--set", "tier.ram.size=lots", model=MODEL)
    assert code == 78, (code, text)
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as file:
        file.write("[server]\nlissten = 127.0.0.1:0\n[tier.ram]\nsize = -3\n")
        file.flush()
        code, text = exit_of("--config", file.name, "--check-config", model=MODEL)
        assert code == 78, (code, text)
        assert f"{file.name}:2" in text and "listen" in text and f"{file.name}:4" in text, text


def test_a_missing_model_and_a_missing_device_fail_the_start():
    code, text = exit_of(model="/nonexistent/model")
    assert code == 78 and "/nonexistent/model" in text, (code, text)
    code, text = exit_of("--set", "device=cuda:9999", model=MODEL)  # there may be a GPU
    assert code == 69 and "cuda:9999" in text, (code, text)


def test_a_terminal_gets_a_bar_that_makes_way_and_a_file_gets_lines():
    ours, theirs = pty.openpty()
    process = subprocess.Popen([str(BUILD / "engramd"), "--set", f"model.path={MODEL}", "--set", "device=cpu", "--set",
                                "server.listen=127.0.0.1:0"], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                               stderr=theirs, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    shown = ""
    try:
        while " on http://" not in shown:
            shown += os.read(ours, 4096).decode(errors="replace")
    finally:
        process.terminate()
        process.wait(60)
        os.close(ours)
    bars = re.findall(r"\rweights  \[[#.]+\] +\d+ %[^\n]*?\x1b\[K\r", shown)
    assert bars, repr(shown)
    after = shown[shown.rindex(bars[-1]) + len(bars[-1]):]
    assert after.startswith("\r\x1b[K"), repr(after)  # wiped
    assert re.search(r"info weights: .* in \d", after), repr(after)
    with Daemon() as daemon:
        assert "\r" not in daemon.text() and "weights  [" not in daemon.text(), daemon.text()
        assert re.search(r"info weights: .* in \d", daemon.text()), daemon.text()


def test_an_address_in_use_is_named():
    with Daemon() as daemon:
        code, text = exit_of("--set", f"server.listen=127.0.0.1:{daemon.port}", model=MODEL)
        assert code != 0 and str(daemon.port) in text, (code, text)


def test_budgets_beyond_the_machine_are_refused_with_the_sum():
    code, text = exit_of("--set", "engine.kv_size=15TiB", model=MODEL)
    assert code == 78 and "engine.kv_size" in text, (code, text)


def damaged(change):
    """A copy of the model folder, damaged by change(folder)."""
    folder = tempfile.mkdtemp(prefix="engramd-damaged-")
    for path in pathlib.Path(MODEL).iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    change(pathlib.Path(folder))
    try:
        return exit_of(model=folder)
    finally:
        shutil.rmtree(folder)


def weights_of(folder):
    return sorted(folder.glob("*.safetensors"))[0]


def test_a_damaged_model_is_refused_by_name():
    def truncate(folder):
        with weights_of(folder).open("r+b") as file:
            file.truncate(os.path.getsize(file.name) - 100)

    def lie_about_a_shape(folder):
        path = weights_of(folder)
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8:8 + size])
        name = next(n for n in header if n.endswith("q_proj.weight"))
        header[name]["shape"][0] += 1
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size:])

    def huge_header(folder):
        path = weights_of(folder)
        path.write_bytes((1 << 62).to_bytes(8, "little") + path.read_bytes()[8:])

    def shuffle(folder):
        path = weights_of(folder)
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8:8 + size])
        names = [n for n in header if n != "__metadata__"]
        a, b = header[names[0]], header[names[-1]]
        a["data_offsets"], b["data_offsets"] = b["data_offsets"], a["data_offsets"]
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size:])

    def lie_about_compressed_ids(folder):
        config = json.loads((folder / "config.json").read_text())
        config["engram"]["compressed_vocab_size"] += 1
        (folder / "config.json").write_text(json.dumps(config))

    def no_tokenizer(folder):
        (folder / "tokenizer.json").unlink()

    def broken_tokenizer(folder):
        (folder / "tokenizer.json").write_text("{\"model\": {\"type\": \"WordPiece\"}}")

    def broken_config(folder):
        (folder / "config.json").write_text("{\"hidden_size\": NaN}")

    for change, word in ((truncate, "safetensors"), (lie_about_a_shape, "q_proj"), (huge_header, "safetensors"),
                         (shuffle, "safetensors"), (lie_about_compressed_ids, "compressed_vocab_size"),
                         (no_tokenizer, "tokenizer.json"), (broken_tokenizer, "tokenizer.json"),
                         (broken_config, "config.json")):
        code, text = damaged(change)
        assert code in (65, 78), (change.__name__, code, text)
        assert word in text, (change.__name__, text)


def test_engramctl_shows_and_changes_the_tiers():
    with Daemon(admin=True) as daemon:
        ctl = [str(BUILD / "engramctl"), "--socket", daemon.admin_path]
        daemon.complete("Once upon a time", max_tokens=8)
        shown = subprocess.run([*ctl, "tiers"], capture_output=True, text=True, timeout=30)
        assert shown.returncode == 0 and "ram" in shown.stdout and "hbm" in shown.stdout, shown
        changed = subprocess.run([*ctl, "tiers", "--set", "ram=3MiB", "--json"], capture_output=True, text=True,
                                 timeout=30)
        assert changed.returncode == 0, changed
        tiers = {tier["name"]: tier for tier in daemon.get("/v1/tiers")["tiers"]}
        assert tiers["ram"]["budget_bytes"] == 3 << 20, tiers
        bad = subprocess.run([*ctl, "tiers", "--set", "rom=3MiB"], capture_output=True, text=True, timeout=30)
        assert bad.returncode != 0 and "rom" in bad.stderr, bad
        assert daemon.request("PATCH", "/v1/tiers", {"tiers": {"ram": 1}})[0] == 405, "TCP may not change sizes"


def test_a_stale_admin_socket_is_replaced_and_one_in_use_is_not():
    with Daemon(admin=True) as daemon:
        code, text = exit_of("--set", f"server.admin_socket={daemon.admin_path}", model=MODEL)
        assert code != 0 and daemon.admin_path in text, (code, text)
        stale = os.path.join(daemon.folder.name, "stale.sock")
        left = socket.socket(socket.AF_UNIX)
        left.bind(stale)
        left.close()
        with Daemon({"server.admin_socket": stale}) as second:
            second.admin_path = stale
            assert second.admin("GET", "/v1/tiers")[0] == 200


run(globals())
