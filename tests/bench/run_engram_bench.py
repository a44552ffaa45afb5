#!/usr/bin/env python3
"""engram-bench runs, on the CPU and a tiny model: every command prints what it says, and mistakes are named.

  run_engram_bench.py ENGRAM_BENCH
"""
import json
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TEXT = ["--text", "tests/bench/prose.txt", "--tokenizer", "models/demo/tokenizer.json"]
ENGRAM = ["--shape", "tiny", "--device", "cpu", "--params", "3e5", "--head-dim", "16", "--heads", "2",
          "--sequences", "6", "--streams", "3", "--least", "5", "--most", "20", "--chunk", "32", "--kv", "8MiB", "--warm", "2"]
failed = 0


def run(*words):
    return subprocess.run([str(pathlib.Path(sys.argv[1]).resolve()), *words], cwd=ROOT, capture_output=True, text=True,
                          timeout=120, check=False)


def check(what, right, done):
    global failed
    print("ok    " if right else "FAILED", what)
    if not right:
        failed += 1
        print(done.returncode, done.stdout[-400:], done.stderr[-400:])


def main():
    done = run("decode", "--shape", "tiny", "--device", "cpu", "--batch", "1", "--batch", "3", "--context", "70",
               "--steps", "3", "--json")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    check("decode: a line for each batch", [f["batch"] for f in found] == [1, 3] and found[0]["tokens_per_s"] > 0, done)
    check("decode: more rows need more time at least", 0 < found[0]["bound_ms"] < found[1]["bound_ms"] and
          all(abs(f["share"] - f["bound_ms"] / f["step_ms"]) < 0.01 for f in found), done)
    done = run("prefill", "--shape", "tiny", "--device", "cpu", "--tokens", "100", "--chunk", "33", "--json")
    check("prefill: in chunks that do not divide it", json.loads(done.stdout)["tokens_per_s"] > 0 and
          json.loads(done.stdout)["limit_tflops"] > 0, done)
    done = run("serve", "--prompts", "2", "--tokens", "8", "--prompt-tokens", "8", "--rounds", "1", "--json")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    check("serve: three placements of a checkpoint",
          [f["placement"] for f in found] == ["all-hot", "configured", "nvme-only"] and found[2]["nvme"] == 100, done)
    hot, _, cold = found
    check("serve: machine, model, sizes of tiers and table", hot["device"].startswith("cpu, ") and "CPUs (" in hot["device"] and
          hot["shape"] == "demo" and hot["hbm_size"] > hot["table_size"] > 6e6 and cold["hbm_size"] == cold["ram_size"] == 0, done)
    check("serve: bytes are those of the tier that has them", hot["hbm_mb"] > 0 and hot["ram_mb"] == hot["nvme_mb"] == 0 and
          cold["nvme_mb"] > 0 and cold["hbm_mb"] == cold["ram_mb"] == 0, done)
    check("serve: steps, time, reads; the least time that the CPUs allow, and its share", hot["steps"] >= 16 and hot["seconds"] > 0 and
          cold["reads_per_token"] > hot["reads_per_token"] == 0 <= cold["stall_us_per_token"] and 0 < hot["limit_s"] and
          abs(hot["share"] * hot["seconds"] - hot["limit_s"]) < 0.1 * hot["limit_s"], done)
    done = run("serve", "--prompts", "1", "--tokens", "2", "--prompt-tokens", "4", "--rounds", "1")
    lines = done.stdout.splitlines()
    check("serve: the same as a table", len(lines) == 5 and "CPUs (" in lines[0] and lines[1].split()[-1] == "share" and
          all(line.split()[-1].endswith("%") for line in lines[2:]), done)
    with tempfile.TemporaryDirectory() as folder:
        places = ["none", "device", "host", "host,hbm=256KiB", "disk,hbm=64KiB,ram=64KiB"]
        options = [word for place in places for word in ("--place", place)]
        done = run("text", *TEXT, *ENGRAM, *options, "--table", f"{folder}/table", "--json")
        found = [json.loads(line) for line in done.stdout.splitlines()]
        check("text: every placement", [f["placement"] for f in found] == places, done)
        check("text: the same requests in each", len({(f["in"], f["out"]) for f in found}) == 1, done)
        by_place = {f["placement"]: f for f in found}
        check("text: shares of the tiers are where the table is",
              by_place["device"]["hbm"] == 100 and by_place["host"]["ram"] == 100 and
              by_place["disk,hbm=64KiB,ram=64KiB"]["nvme"] > 0 and by_place["host"]["ram_gb"] > 0 and
              by_place["none"]["hbm"] == 0, done)
        check("text: machine and table", all(f["device"].startswith("cpu, ") and f["table_dtype"] == "F8_E4M3" for f in found), done)
        done = run("text", *TEXT, *ENGRAM, "--place", "device", "--place", "host", "--table-dtype", "bf16", "--json")
        wide = {f["placement"]: f for f in map(json.loads, done.stdout.splitlines())}
        check("text: a table of BF16 has twice the bytes and the same look-ups",
              all(wide[p]["table_dtype"] == "BF16" and abs(wide[p][key] - 2 * by_place[p][key]) < 2e-9 < wide[p][key] and
                  (wide[p]["in"], wide[p]["out"]) == (by_place[p]["in"], by_place[p]["out"])
                  for p, key in (("device", "hbm_gb"), ("host", "ram_gb"))), done)
    for words, code, text in ((["decode", "--shape", "qwen9"], 1, "qwen9"), (["decode", "--batch", "0"], 64, "'0'"),
                              (["text", *TEXT, "--place", "none", "--table-dtype", "fp4"], 64, "'fp4'"),
                              (["decode", "--device", "cuda:x", "--shape", "tiny"], 1, "cuda:x"), (["nothing"], 64, "Usage"),
                              (["text", *TEXT, "--place", "device,hbm=1GiB"], 1, "nothing to hold"),
                              (["text", *TEXT, "--place", "host,hbm=much"], 1, "much"),
                              (["text", "--text", "/nonexistent", "--tokenizer", "x", "--shape", "tiny", "--place", "none"],
                               1, "/nonexistent")):
        done = run(*words)
        check(f"{' '.join(words)[:60]}: refused", done.returncode == code and text in done.stderr, done)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
