#!/usr/bin/env python3
"""systemd/engramd.service is understood by systemd, exposes little, and says what the daemon relies on.

The parts that need systemd-analyze are skipped, saying so, where it is absent.
"""
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
UNIT = ROOT / "systemd" / "engramd.service"
MOST_EXPOSURE = 20  # tenths

# What the daemon's code counts on. (DESIGN: failure; daemon/notify.c, daemon/main.c)
NEEDED = {
    "Type": "notify", "NotifyAccess": "main", "WatchdogSec": "30", "Restart": "on-failure",
    "RestartPreventExitStatus": "78 65", "LimitMEMLOCK": "infinity", "RuntimeDirectory": "engramd",
    "StateDirectory": "engramd", "User": "engramd", "NoNewPrivileges": "yes",
}


def settings(text):
    found = {}
    for line in text.splitlines():
        if "=" in line and not line.startswith(("#", ";")):
            key, value = line.split("=", 1)
            found.setdefault(key, []).append(value)
    return found


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


def check_settings(unit):
    for key, value in NEEDED.items():
        assert unit.get(key) == [value], f"{key}={unit.get(key)} instead of {value}"
    assert unit["ExecStartPre"] == [unit["ExecStart"][0] + " --check-config"], "the check is of the same configuration"
    # Each of these takes the GPU, NUMA placement or /proc/meminfo away.
    for trap in ("PrivateDevices", "ProcSubset", "MemoryDenyWriteExecute", "ExecReload"):
        assert trap not in unit, trap
    assert any("char-nvidia*" in allowed for allowed in unit["DeviceAllow"])
    assert "~@resources" not in " ".join(unit["SystemCallFilter"])


def check_with_systemd(text):
    with tempfile.TemporaryDirectory() as folder:
        # verify insists that the program exists; any will do.
        copy = pathlib.Path(folder) / "engramd.service"
        copy.write_text(re.sub(r"/usr/bin/engramd", shutil.which("true") or "/bin/true", text))
        status, output = run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(copy))
        assert status == 0 and "engramd.service" not in output, output
        # The same with a mistake must be found, else the line above proves nothing.
        broken = pathlib.Path(folder) / "broken.service"
        broken.write_text(copy.read_text().replace("Type=notify", "Type=notyfi"))
        status, output = run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(broken))
        assert "notyfi" in output, output
        status, output = run("systemd-analyze", "security", "--offline=true", f"--threshold={MOST_EXPOSURE}", str(copy))
        exposure = re.search(r"Overall exposure level for \S+: (\S+)", output)
        assert status == 0 and exposure, output
        print(f"exposure {exposure[1]}, allowed {MOST_EXPOSURE / 10}")


def check_user():
    text = (ROOT / "systemd" / "engramd.sysusers").read_text()
    assert re.search(r"^u\s+engramd\s+-\s", text, re.M), text
    if shutil.which("systemd-sysusers"):
        with tempfile.TemporaryDirectory() as folder:
            (pathlib.Path(folder) / "etc").mkdir()
            status, output = run("systemd-sysusers", f"--root={folder}", str(ROOT / "systemd" / "engramd.sysusers"))
            made = (pathlib.Path(folder) / "etc" / "passwd").read_text()
            assert status == 0 and made.startswith("engramd:"), output + made


def main():
    text = UNIT.read_text()
    check_settings(settings(text))
    if not shutil.which("systemd-analyze"):
        print("no systemd-analyze here: verify and the exposure were not checked")
        return 77
    check_with_systemd(text)
    check_user()
    return 0


if __name__ == "__main__":
    sys.exit(main())
