#!/usr/bin/env python3
"""The demo model's greedy continuations, against those of an independent float32 implementation."""
# builds: build
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "http"))
from daemon import DEMO, ROOT, Daemon, run  # noqa: E402

CASES = json.loads((ROOT / "tests" / "golden" / "demo" / "vectors.json").read_text())


def compare(daemon, case):
    """Same tokens and log-probabilities within 1e-3, up to the first place where the reference itself nearly ties."""
    answer = daemon.complete(case["ids"], max_tokens=len(case["greedy"]), temperature=0, logprobs=1, ignore_eos=True,
                             return_tokens_as_token_ids=True)["choices"][0]["logprobs"]
    tokens = [int(text.removeprefix("token_id:")) for text in answer["tokens"]]
    for i, (token, logprob) in enumerate(zip(tokens, answer["token_logprobs"])):
        if token != case["greedy"][i]:
            assert case["margins"][i] < 1e-3, (case["prompt"], i, token, case["greedy"][i])
            return i
        assert abs(logprob - case["logprobs"][i]) < 1e-3, (case["prompt"], i, logprob, case["logprobs"][i])
    return len(tokens)


def test_greedy_tokens_and_logprobs_are_those_of_the_reference():
    with Daemon(model=DEMO) as daemon:
        same = [compare(daemon, case) for case in CASES]
        assert sum(same) >= 0.9 * sum(len(case["greedy"]) for case in CASES), same


def test_the_prompt_is_tokenised_as_the_reference_does():
    with Daemon(model=DEMO) as daemon:
        for case in CASES:
            answer = daemon.complete(case["prompt"], max_tokens=0, echo=True, logprobs=0, return_tokens_as_token_ids=True)
            tokens = [int(t.removeprefix("token_id:")) for t in answer["choices"][0]["logprobs"]["tokens"]]
            assert tokens == case["ids"][-len(tokens):], (tokens, case["ids"])
            assert len(case["ids"]) - len(tokens) <= 1, "the reference may begin with end-of-text"


run(globals())
