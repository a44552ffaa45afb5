#!/usr/bin/env python3
"""Every test that can run on this machine; ./bootstrap test ends here.

Stages: the unit tests and the lint (meson test) in build/, the suites that drive the real binary, both of these
again under ASan+UBSan (build-asan/) and TSan (build-tsan/), and each fuzzer for a short while (build-fuzz/).

A suite is an executable tests/FOLDER/run_*. It is started in the root of the tree with ENGRAMD_BUILD naming the
build folder, and its last line is "N passed, N failed, N skipped". A line "# builds: build build-asan" in its
source limits it to these builds.

The last line printed is the sum of them all; the exit status is 0 only when nothing failed.
"""
import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
CLOSING = re.compile(r"^(\d+) passed, (\d+) failed, (\d+) skipped$")
CMOCKA = {kind: re.compile(rf"^\[ *{word} *\] (\w+)$", re.M)
          for kind, word in (("passed", "OK"), ("failed", "FAILED"), ("skipped", "SKIPPED"))}
SUITE_SECONDS = 600
BUILDS = {
    "build": ["--buildtype=release"],
    "build-asan": ["--buildtype=debugoptimized", "-Db_sanitize=address,undefined", "-Db_lundef=false",
                   "-Dwerror=false"],
    "build-tsan": ["--buildtype=debugoptimized", "-Db_sanitize=thread", "-Db_lundef=false", "-Dwerror=false"],
    "build-fuzz": ["--buildtype=debugoptimized", "-Dfuzzers=true", "-Db_lundef=false", "-Dwerror=false"],
}


class Tally:
    def __init__(self):
        self.passed = self.failed = self.skipped = 0
        self.failures, self.skips = [], []

    def add(self, passed=0, failed=(), skipped=()):
        self.passed += passed
        self.failed += len(failed)
        self.skipped += len(skipped)
        self.failures += failed
        self.skips += skipped

    def closing(self):
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


def say(text=""):
    print(text, flush=True)


def tail(text, lines=60):
    return "\n".join(text.rstrip().splitlines()[-lines:])


def call(command, env=None, seconds=None):
    """(exit status, output and errors together); 124 when the time was over, as timeout(1) has it. What the command
    started is ended with it: a session of its own is ended whole."""
    with subprocess.Popen(command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
            return process.returncode, output
        except (subprocess.TimeoutExpired, KeyboardInterrupt) as end:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            if isinstance(end, KeyboardInterrupt):
                raise
            return 124, output


def environment(build, **more):
    env = dict(os.environ, ENGRAMD_BUILD=str(ROOT / build),
               UBSAN_OPTIONS="halt_on_error=1:print_stacktrace=1", **more)
    suppressions = ROOT / "tests" / "tsan.supp"
    if suppressions.exists():
        env["TSAN_OPTIONS"] = f"suppressions={suppressions}"
    return env


def make(build, tally, targets=(), env=None):
    """Configures where needed, and builds. False when that failed."""
    if not (ROOT / build / "build.ninja").exists():
        shutil.rmtree(ROOT / build, ignore_errors=True)
        status, output = call(["meson", "setup", build, *BUILDS[build]], env)
        if status:
            say(tail(output))
            tally.add(failed=[f"{build}: meson setup"])
            return False
    status, output = call(["ninja", "-C", build, *targets], env)
    if status:
        say(tail("\n".join(line for line in output.splitlines() if not line.startswith("["))))
        tally.add(failed=[f"{build}: does not build"])
        return False
    return True


def count_test(build, test, tally):
    """One entry of meson's log: a cmocka program counts by its cases, anything else as one test."""
    name, result, output = test["name"], test["result"], test.get("stdout", "")
    cases = {kind: sorted(set(pattern.findall(output))) for kind, pattern in CMOCKA.items()}
    label = f"{build}: {name}"
    if result in ("OK", "EXPECTEDFAIL", "FAIL") and cases["passed"]:
        failed = [f"{label}: {case}" for case in cases["failed"]]
        if result == "FAIL" and not failed:
            failed = [label]
        tally.add(len(cases["passed"]), failed, [f"{label}: {case}" for case in cases["skipped"]])
    elif result in ("OK", "EXPECTEDFAIL"):
        tally.add(0 if cases["skipped"] else 1, [], [f"{label}: {case}" for case in cases["skipped"]])
    elif result == "SKIP":
        tally.add(skipped=[label + reason(output)])
    else:
        tally.add(failed=[f"{label} ({result})"])
    if result not in ("OK", "EXPECTEDFAIL", "SKIP"):
        say(f"--- {label}: {result}")
        say(tail(output + test.get("stderr", "")))


def reason(output):
    lines = output.strip().splitlines()
    return f": {lines[-1]}" if lines else ""


def unit_tests(build, tally, wrapper, arguments=()):
    log = ROOT / build / "meson-logs" / "testlog.json"
    log.unlink(missing_ok=True)
    status, output = call([*wrapper, "meson", "test", "-C", build, "--no-rebuild", *arguments], environment(build))
    tests = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    before = tally.failed
    for test in tests:
        count_test(build, test, tally)
    if not tests or (status and tally.failed == before):
        say(tail(output))
        tally.add(failed=[f"{build}: meson test (exit status {status})"])


def suites_for(build):
    for path in sorted((ROOT / "tests").glob("*/run_*")):
        if not path.is_file() or not os.access(path, os.X_OK):
            continue
        limit = re.search(r"^# builds: (.*)$", path.read_text(errors="replace"), re.M)
        if not limit or build in limit[1].split():
            yield path


def named(name, lines, n):
    """n entries for the closing list, with the suite's own lines as far as there are any."""
    return [f"{name}: {lines[i] if i < len(lines) else 'a test'}" for i in range(n)]


def suite(build, path, tally, wrapper):
    name = f"{build}: {path.relative_to(ROOT / 'tests')}"
    begin = time.monotonic()
    status, output = call([*wrapper, str(path)], environment(build), SUITE_SECONDS)
    lines = output.rstrip().splitlines()
    closing = CLOSING.match(lines[-1].strip()) if lines else None
    say(f"{name}: {lines[-1] if closing else f'exit status {status}'} ({time.monotonic() - begin:.0f} s)")
    if closing:
        passed, failed, skipped = map(int, closing.groups())
        failures = named(name, [line for line in lines if line.startswith("not ok")], failed)
        if status and not failed:
            failures = [f"{name} (exit status {status})"]
        tally.add(passed, failures, named(name, [line for line in lines if "# SKIP" in line], skipped))
    elif status == 77:
        failures = []
        tally.add(skipped=[name + reason(output)])
    else:
        failures = [f"{name} ({'out of time' if status == 124 else f'exit status {status}'})"]
        tally.add(failed=failures)
    if failures:
        say(tail(output, 200))


def tests_of(build, tally, wrapper=(), arguments=()):
    begin = time.monotonic()
    if not make(build, tally):
        return
    say(f"== {build}: built after {time.monotonic() - begin:.0f} s")
    unit_tests(build, tally, wrapper, arguments)
    say(f"{build}: unit tests after {time.monotonic() - begin:.0f} s; so far {tally.closing()}")
    for path in suites_for(build):
        suite(build, path, tally, wrapper)


def thread_sanitizer_wrapper():
    """What to put before a TSan program so that it runs here; None when nothing helps. gcc's run time before 14
    cannot map its shadow where newer kernels' address space randomisation may put things."""
    with tempfile.TemporaryDirectory() as folder:
        source, program = pathlib.Path(folder) / "t.c", pathlib.Path(folder) / "t"
        source.write_text("int main(void) { return 0; }\n")
        if call(["cc", "-fsanitize=thread", str(source), "-o", str(program)])[0]:
            return None
        for wrapper in ((), ("setarch", os.uname().machine, "-R")):
            if wrapper and not shutil.which(wrapper[0]):
                continue
            if all(call([*wrapper, str(program)])[0] == 0 for _ in range(10)):
                return wrapper
    return None


def fuzz_one(name, seconds):
    found = ROOT / "build-fuzz" / f"found-{name}-"
    corpus = ROOT / "build-fuzz" / f"corpus-{name}"
    corpus.mkdir(exist_ok=True)
    status, output = call([str(ROOT / "build-fuzz" / "tests" / "fuzz" / f"fuzz_{name}"), f"-max_total_time={seconds}",
                           "-timeout=20", "-rss_limit_mb=2048", f"-artifact_prefix={found}", str(corpus),
                           str(ROOT / "tests" / "fuzz" / "corpus" / name)], environment("build-fuzz"), seconds + 300)
    return name, status, output


def fuzz(tally, seconds):
    names = sorted(path.stem.removeprefix("fuzz_") for path in (ROOT / "tests" / "fuzz").glob("fuzz_*.c"))
    probe = "int LLVMFuzzerTestOneInput(const char *d, long n); int LLVMFuzzerTestOneInput(const char *d, long n)" \
            "{ return d && n < 0; }\n"
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder) / "p.c"
        source.write_text(probe)
        can = shutil.which("clang") and call(["clang", "-fsanitize=fuzzer,address", str(source), "-o",
                                              str(source.with_suffix(""))])[0] == 0
    if not can:
        tally.add(skipped=[f"fuzz_{name}: no clang with libFuzzer here" for name in names])
        return
    if not make("build-fuzz", tally, ["fuzzers"], dict(os.environ, CC="clang")):
        return
    say(f"== build-fuzz: {len(names)} fuzzers, {seconds} s each")
    with concurrent.futures.ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)))) as pool:
        for name, status, output in pool.map(lambda name: fuzz_one(name, seconds), names):
            runs = re.search(r"Done (\d+) runs", output)
            say(f"fuzz_{name}: {runs[1] if runs else '?'} runs, exit status {status}")
            if status == 0 and runs:
                tally.add(1)
            else:
                say(tail(output))
                tally.add(failed=[f"fuzz_{name}; the input is in build-fuzz/found-{name}-*"])


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--fuzz-seconds", type=int, default=20, help="time for each fuzzer (20)")
    arguments.add_argument("stage", nargs="*", help="only these: " + " ".join(BUILDS))
    asked = arguments.parse_args()
    unknown = set(asked.stage) - set(BUILDS)
    if unknown:
        arguments.error(f"no such stage: {' '.join(sorted(unknown))}")
    stages = asked.stage or list(BUILDS)
    tally, begin = Tally(), time.monotonic()
    if "build" in stages:
        tests_of("build", tally)
    # The lint and the service file are the same in every build.
    if "build-asan" in stages:
        tests_of("build-asan", tally, arguments=["--no-suite", "lint", "--timeout-multiplier", "4"])
    if "build-tsan" in stages:
        wrapper = thread_sanitizer_wrapper()
        if wrapper is None:
            tally.add(skipped=["build-tsan: programs with ThreadSanitizer do not run here"])
        else:
            tests_of("build-tsan", tally, wrapper, ["--no-suite", "lint", "--timeout-multiplier", "6"])
    if "build-fuzz" in stages:
        fuzz(tally, asked.fuzz_seconds)
    say()
    for line in tally.skips:
        say(f"skipped  {line}")
    for line in tally.failures:
        say(f"FAILED   {line}")
    say(f"{time.monotonic() - begin:.0f} s")
    say(tally.closing())
    return 1 if tally.failed or not tally.passed else 0


if __name__ == "__main__":
    sys.exit(main())
