#!/usr/bin/env python3
"""What POST /v1/completions means: prompts, sampling, stops, log-probabilities, streams, usage."""
import math
import threading

from daemon import MODEL, Daemon, Skip, need_demo, run, shared
from wire import ask

STORY = "Once upon a time there was a king who"
GREEDY = {"temperature": 0, "ignore_eos": True}


def server():
    return shared(engine__max_context="512")


def text_of(prompt, **fields):
    return server().complete(prompt, **fields)["choices"][0]["text"]


def score(prompt, **fields):
    """The logprobs object of the prompt alone."""
    fields = {"max_tokens": 0, "echo": True, "logprobs": 1, "temperature": 0, **fields}
    [choice] = server().complete(prompt, **fields)["choices"]
    return choice["logprobs"]


def ids_of(text):
    return [int(name.removeprefix("token_id:")) for name in score(text, return_tokens_as_token_ids=True)["tokens"]]


def generated_ids(prompt, n, **fields):
    [choice] = server().complete(prompt, max_tokens=n, logprobs=0, return_tokens_as_token_ids=True,
                                 **{**GREEDY, **fields})["choices"]
    return [int(name.removeprefix("token_id:")) for name in choice["logprobs"]["tokens"]]


def collect(events):
    """Chunks of a stream put together, by index; asserts what every stream must keep to."""
    assert events[-1] == "[DONE]"
    choices, usage = {}, None
    for event in events[:-1]:
        assert "error" not in event, event
        if not event["choices"]:
            assert usage is None and event["usage"], "one usage chunk, at the end"
            usage = event["usage"]
            continue
        assert usage is None
        [choice] = event["choices"]
        into = choices.setdefault(choice["index"], {"text": "", "finish_reason": None, "chunks": 0, "logprobs": []})
        assert into["finish_reason"] is None, "nothing comes after the end of a choice"
        into["text"] += choice["text"]
        into["finish_reason"] = choice["finish_reason"]
        into["stop_reason"] = choice.get("stop_reason")
        into["chunks"] += 1
        if choice["logprobs"]:
            into["logprobs"].append(choice["logprobs"])
    assert all(c["finish_reason"] for c in choices.values()), choices
    return choices, usage


def test_the_four_forms_of_a_prompt_mean_the_same():
    ids = ids_of(STORY)
    wanted = text_of(STORY, max_tokens=12, **GREEDY)
    for form in [STORY, [STORY], ids, [ids]]:
        [choice] = server().complete(form, max_tokens=12, **GREEDY)["choices"]
        assert choice["text"] == wanted, form


def test_many_prompts_give_choices_in_order():
    prompts = [STORY, "The old man", "In the morning", "She said"]
    alone = [text_of(p, max_tokens=8, **GREEDY) for p in prompts]
    answer = server().complete(prompts, max_tokens=8, **GREEDY)
    assert [c["index"] for c in answer["choices"]] == [0, 1, 2, 3]
    assert [c["text"] for c in answer["choices"]] == alone
    answer = server().complete([ids_of(p) for p in prompts], max_tokens=8, **GREEDY)
    assert [c["text"] for c in answer["choices"]] == alone
    assert answer["usage"]["completion_tokens"] == 32
    assert answer["usage"]["prompt_tokens"] == sum(len(ids_of(p)) for p in prompts)


def test_n_choices_follow_their_prompt():
    answer = server().complete([STORY, "The old man"], n=3, max_tokens=8, temperature=1, seed=5, ignore_eos=True)
    assert [c["index"] for c in answer["choices"]] == list(range(6))
    first = [c["text"] for c in answer["choices"][:3]]
    assert len(set(first)) > 1, "choices of one prompt are sampled apart"
    alone = server().complete(STORY, n=3, max_tokens=8, temperature=1, seed=5, ignore_eos=True)
    assert [c["text"] for c in alone["choices"]] == first
    greedy = server().complete(STORY, n=3, max_tokens=8, **GREEDY)
    assert len({c["text"] for c in greedy["choices"]}) == 1
    assert greedy["usage"]["prompt_tokens"] == len(ids_of(STORY)), "a prompt counts once"
    assert greedy["usage"]["completion_tokens"] == 24


def test_a_prompt_seen_before_is_cached_and_answered_alike():
    prompt = (ids_of(STORY) * 40)[:300]
    with Daemon({"engine.prefill_chunk": "64"}) as daemon:
        fields = {"max_tokens": 12, "logprobs": 2, **GREEDY}
        first, again = (daemon.complete(prompt, **fields) for _ in range(2))
        assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 256
        assert first["choices"] == again["choices"]
        longer = daemon.complete(prompt[:130] + prompt[:40], n=2, **fields)
        assert longer["usage"]["prompt_tokens_details"]["cached_tokens"] == 128
        assert daemon.metric("prefix_cache_hit_tokens_total") == 256 + 128
        off = daemon.complete(prompt, engram=False, **fields)
        assert off["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    with Daemon({"engine.prefill_chunk": "64", "engine.prefix_cache": "false"}) as daemon:
        for _ in range(2):
            answer = daemon.complete(prompt, **fields)
            assert answer["choices"] == first["choices"]
            assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_max_tokens_is_16_by_default():
    for fields in [{}, {"max_tokens": None}]:
        answer = server().complete(STORY, **GREEDY, **fields)
        assert answer["usage"]["completion_tokens"] == 16
        assert answer["choices"][0]["finish_reason"] == "length"


def test_echo_puts_the_prompt_first():
    plain = text_of(STORY, max_tokens=8, **GREEDY)
    assert text_of(STORY, max_tokens=8, echo=True, **GREEDY) == STORY + plain
    assert text_of(ids_of(STORY), max_tokens=8, echo=True, **GREEDY) == STORY + plain
    choices, _ = collect(server().stream(STORY, max_tokens=8, echo=True, **GREEDY))
    assert choices[0]["text"] == STORY + plain
    answer = server().complete(STORY, max_tokens=0, echo=True)
    assert answer["choices"][0]["text"] == STORY and answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 0
    choices, _ = collect(server().stream(STORY, max_tokens=0, echo=True))
    assert choices[0]["text"] == STORY


def test_scoring_a_prompt_covers_every_position():
    """What lm-evaluation-harness does: echo, logprobs, no or one new token, lists of ids."""
    ids = ids_of(STORY)
    other = ids_of("The old man said")
    for new in [0, 1]:
        answer = server().complete([ids, other], max_tokens=new, echo=True, logprobs=1, temperature=0)
        for prompt, choice in zip([ids, other], answer["choices"]):
            got = choice["logprobs"]
            n = len(prompt) + new
            assert len(got["tokens"]) == len(got["token_logprobs"]) == len(got["top_logprobs"]) == \
                len(got["text_offset"]) == n
            assert got["token_logprobs"][0] is None and got["top_logprobs"][0] is None
            assert all(isinstance(x, float) and x <= 0 for x in got["token_logprobs"][1:])
            for token, logprob, top in list(zip(got["tokens"], got["token_logprobs"], got["top_logprobs"]))[1:]:
                assert 1 <= len(top) <= 2 and token in top
                assert top[token] == logprob and max(top.values()) >= logprob


def test_scores_do_not_depend_on_what_follows():
    alone = score(STORY, logprobs=3)
    [choice] = server().complete(STORY, max_tokens=5, echo=True, logprobs=3, **GREEDY)["choices"]
    n = len(alone["tokens"])
    assert choice["logprobs"]["tokens"][:n] == alone["tokens"]
    for a, b in zip(choice["logprobs"]["token_logprobs"][1:n], alone["token_logprobs"][1:]):
        assert abs(a - b) <= 1e-3, (a, b)
    # Scoring what was generated gives the values of generating it.
    ids = ids_of(STORY) + generated_ids(STORY, 5)
    again = score(ids, logprobs=3)
    for a, b in zip(again["token_logprobs"][n:], choice["logprobs"]["token_logprobs"][n:]):
        assert abs(a - b) <= 2e-2, (a, b)


def test_log_probabilities_are_a_distribution():
    [choice] = server().complete(STORY, max_tokens=12, logprobs=20, **GREEDY)["choices"]
    got = choice["logprobs"]
    assert len(got["tokens"]) == 12
    for token, logprob, top in zip(got["tokens"], got["token_logprobs"], got["top_logprobs"]):
        assert 18 <= len(top) <= 21
        assert token in top and abs(top[token] - logprob) < 1e-6
        assert abs(max(top.values()) - logprob) < 1e-6, "greedy takes the likeliest"
        assert sum(math.exp(x) for x in top.values()) <= 1.001
        values = list(top.values())
        assert values[:20] == sorted(values[:20], reverse=True)


def test_logprobs_of_zero_list_the_chosen_token_alone():
    [choice] = server().complete(STORY, max_tokens=4, logprobs=0, **GREEDY)["choices"]
    got = choice["logprobs"]
    assert len(got["token_logprobs"]) == 4
    assert got["top_logprobs"] is None or all(len(top) == 1 for top in got["top_logprobs"])


def test_text_offsets_point_into_the_text():
    need_demo()
    for prompt in [STORY, "Café naïve — “quoted” 😀 text. And more"]:
        [choice] = server().complete(prompt, max_tokens=10, echo=True, logprobs=1, **GREEDY)["choices"]
        got, text = choice["logprobs"], choice["text"]
        assert got["text_offset"][0] == 0
        for token, offset in zip(got["tokens"], got["text_offset"]):
            if not token.startswith("bytes:"):
                assert text[offset:offset + len(token)] == token, (token, offset)
        if not any(token.startswith("bytes:") for token in got["tokens"]):
            assert "".join(got["tokens"]) == text
    [choice] = server().complete(STORY, max_tokens=4, logprobs=1, **GREEDY)["choices"]
    assert choice["logprobs"]["text_offset"][0] == len(STORY), "offsets count from the start of the prompt"


def test_tokens_can_be_named_by_id():
    [choice] = server().complete(STORY, max_tokens=4, logprobs=3, return_tokens_as_token_ids=True, **GREEDY)["choices"]
    got = choice["logprobs"]
    assert all(name.startswith("token_id:") for name in got["tokens"])
    assert all(len(top) in (3, 4) and all(k.startswith("token_id:") for k in top) for top in got["top_logprobs"])


def test_a_stop_string_ends_the_text_before_itself():
    full = text_of(STORY, max_tokens=40, **GREEDY)
    [scored] = server().complete(STORY, max_tokens=40, logprobs=0, **GREEDY)["choices"]
    # Cut across token boundaries: the last character of one token and the first two of the next.
    base = len(STORY)
    starts = [offset - base for offset in scored["logprobs"]["text_offset"]]
    tried = 0
    for boundary in starts[3:36:4]:
        stop = full[boundary - 1:boundary + 2]
        if len(stop) < 3:
            continue
        tried += 1
        at = full.index(stop)
        for extra in [{}, {"stop": ["zzzzzz", stop, "qqqqq"]}]:
            [choice] = server().complete(STORY, max_tokens=40, **{"stop": stop, **GREEDY, **extra})["choices"]
            assert choice["text"] == full[:at], (stop, choice["text"])
            assert choice["finish_reason"] == "stop" and choice["stop_reason"] == stop
        choices, _ = collect(server().stream(STORY, max_tokens=40, stop=stop, **GREEDY))
        assert choices[0]["text"] == full[:at] and choices[0]["finish_reason"] == "stop"
        assert choices[0]["stop_reason"] == stop
        [kept] = server().complete(STORY, max_tokens=40, stop=stop, include_stop_str_in_output=True, **GREEDY)["choices"]
        assert kept["text"] == full[:at + len(stop)]
    assert tried >= 5


def test_the_earliest_stop_string_wins():
    full = text_of(STORY, max_tokens=40, **GREEDY)
    late, early = full[30:34], full[10:13]
    assert full.index(early) < full.index(late)
    [choice] = server().complete(STORY, max_tokens=40, stop=[late, early], **GREEDY)["choices"]
    assert choice["text"] == full[:full.index(early)] and choice["stop_reason"] == early


def test_text_held_back_for_a_stop_string_is_released():
    full = text_of(STORY, max_tokens=20, **GREEDY)
    # Begins like the text again and again, and never matches.
    stops = [full[i:i + 6] + "\x01" for i in range(0, len(full) - 6, 3)][:16]
    [choice] = server().complete(STORY, max_tokens=20, stop=stops, **GREEDY)["choices"]
    assert choice["text"] == full and choice["finish_reason"] == "length"
    choices, _ = collect(server().stream(STORY, max_tokens=20, stop=stops, **GREEDY))
    assert choices[0]["text"] == full and choices[0]["finish_reason"] == "length"


def test_a_stop_token_ends_the_text():
    ids = generated_ids(STORY, 20)
    position = next(i for i in range(3, 20) if ids[i] not in ids[:i])
    answer = server().complete(STORY, max_tokens=20, stop_token_ids=[ids[position]], **GREEDY)
    [choice] = answer["choices"]
    assert choice["finish_reason"] == "stop" and choice["stop_reason"] == ids[position]
    full = text_of(STORY, max_tokens=position, **GREEDY)
    assert choice["text"] == full
    # min_tokens holds it off.
    later = server().complete(STORY, max_tokens=20, stop_token_ids=[ids[position]], min_tokens=position + 2, **GREEDY)
    assert later["usage"]["completion_tokens"] >= position + 2


def test_the_end_of_text_token_stops_unless_it_is_ignored():
    if MODEL.name != "demo":
        raise Skip("the end-of-text token is only known of the demo model")
    bias = {"0": 100}
    [choice] = server().complete(STORY, max_tokens=5, logit_bias=bias, temperature=0)["choices"]
    assert choice["finish_reason"] == "stop" and choice["text"] == ""
    answer = server().complete(STORY, max_tokens=5, logit_bias=bias, **GREEDY)
    assert answer["choices"][0]["finish_reason"] == "length" and answer["usage"]["completion_tokens"] == 5
    answer = server().complete(STORY, max_tokens=9, logit_bias=bias, min_tokens=4, temperature=0)
    assert answer["usage"]["completion_tokens"] in (4, 5) and answer["choices"][0]["finish_reason"] == "stop"


def test_a_stream_says_what_a_whole_answer_says():
    cases = [dict(GREEDY, max_tokens=24), dict(temperature=1, seed=7, max_tokens=24),
             dict(temperature=0.7, top_p=0.9, top_k=20, seed=-3, n=3, max_tokens=12),
             dict(GREEDY, max_tokens=8, echo=True, logprobs=2), dict(GREEDY, max_tokens=1),
             dict(temperature=1.5, seed=11, n=2, max_tokens=30, stop=[" the", "."])]
    for fields in cases:
        for prompt in [STORY, ["The old man", "Café 😀 naïve"]]:
            whole = server().complete(prompt, **fields)
            choices, usage = collect(server().stream(prompt, stream_options={"include_usage": True}, **fields))
            assert usage == {**whole["usage"], "prompt_tokens_details": usage["prompt_tokens_details"]}
            assert sorted(choices) == [c["index"] for c in whole["choices"]]
            for choice in whole["choices"]:
                streamed = choices[choice["index"]]
                assert streamed["text"] == choice["text"], (fields, prompt)
                assert streamed["finish_reason"] == choice["finish_reason"]
                assert streamed["stop_reason"] == choice["stop_reason"]
                if choice["logprobs"]:
                    for key in ["tokens", "text_offset", "token_logprobs"]:
                        assert sum((part[key] for part in streamed["logprobs"]), []) == choice["logprobs"][key], key


def test_the_chunk_with_the_reason_carries_the_last_text():
    events = server().stream(STORY, max_tokens=6, **GREEDY)
    last = events[-2]["choices"][0]
    assert last["finish_reason"] == "length" and last["text"]
    assert len(events) == 7, "a chunk for each token"


def test_usage_is_sent_when_asked_for():
    plain = server().stream(STORY, max_tokens=4, **GREEDY)
    assert all(event.get("usage") is None for event in plain[:-1])
    events = server().stream(STORY, max_tokens=4, stream_options={"include_usage": True}, **GREEDY)
    assert events[-2]["choices"] == [] and events[-2]["usage"]["completion_tokens"] == 4
    assert all(event.get("usage") is None for event in events[:-2])
    events = server().stream(STORY, max_tokens=4, **GREEDY,
                             stream_options={"include_usage": True, "continuous_usage_stats": True})
    counts = [event["usage"]["completion_tokens"] for event in events[:-1]]
    assert counts == [1, 2, 3, 4, 4]


def test_a_seed_gives_the_same_text_whatever_else_runs():
    fields = dict(max_tokens=20, temperature=1, seed=1234, ignore_eos=True)
    alone = text_of(STORY, **fields)
    assert text_of(STORY, **fields) == alone
    assert text_of(STORY, **{**fields, "seed": 1235}) != alone
    got = []
    others = [threading.Thread(target=lambda i=i: server().complete(f"Number {i}", max_tokens=40, temperature=1))
              for i in range(8)]
    same = [threading.Thread(target=lambda: got.append(text_of(STORY, **fields))) for _ in range(4)]
    for thread in others + same:
        thread.start()
    for thread in others + same:
        thread.join()
    assert got == [alone] * 4


def test_without_a_seed_texts_differ():
    assert len({text_of(STORY, max_tokens=20, temperature=1, ignore_eos=True) for _ in range(4)}) > 1


def test_greedy_is_what_every_narrow_choice_comes_to():
    wanted = text_of(STORY, max_tokens=16, **GREEDY)
    for fields in [{"top_k": 1}, {"top_p": 0}, {"top_p": 1e-9}, {"min_p": 1}]:
        assert text_of(STORY, max_tokens=16, temperature=1, ignore_eos=True, seed=3, **fields) == wanted, fields
    for off in [{"top_k": 0}, {"top_k": -1}, {"top_p": 1}, {"min_p": 0}]:
        assert text_of(STORY, max_tokens=16, **GREEDY, **off) == wanted, off


def test_a_bias_forces_and_bans_tokens():
    first = generated_ids(STORY, 8)
    banned = generated_ids(STORY, 8, logit_bias={str(first[0]): -100})
    assert first[0] not in banned
    some = first[3]
    assert generated_ids(STORY, 8, logit_bias={str(some): 100}) == [some] * 8
    assert generated_ids(STORY, 8, logit_bias={str(some): 100}, temperature=1) == [some] * 8
    assert generated_ids(STORY, 8, logit_bias={str(first[0]): 0}) == first


def test_penalties_work_against_repetition():
    a, b = generated_ids(STORY, 1)[0], generated_ids("The old man", 2)[1]
    assert a != b
    bias = {str(a): 100, str(b): 85}
    assert set(generated_ids(STORY, 30, logit_bias=bias)) == {a}
    assert {a, b} == set(generated_ids(STORY, 30, logit_bias=bias, frequency_penalty=2))
    negative = generated_ids(STORY, 30, logit_bias=bias, frequency_penalty=-2)
    assert set(negative) == {a}
    for field, value in [("repetition_penalty", 100.0), ("presence_penalty", 2.0)]:
        plain = generated_ids(STORY, 40)
        changed = generated_ids(STORY, 40, **{field: value})
        assert changed != plain and len(set(changed)) > len(set(plain)), (field, plain, changed)


def test_a_penalty_of_nothing_changes_nothing():
    wanted = generated_ids(STORY, 12)
    assert generated_ids(STORY, 12, repetition_penalty=1.0, presence_penalty=0, frequency_penalty=0) == wanted


def test_engram_can_be_switched_off_for_a_request():
    on, off = score(STORY), score(STORY, engram=False)
    assert on["tokens"] == off["tokens"]
    assert on["token_logprobs"] != off["token_logprobs"]
    assert score(STORY, engram=True) == on and score(STORY) == on
    mean = [sum(x["token_logprobs"][1:]) / (len(x["tokens"]) - 1) for x in (on, off)]
    if MODEL.name == "demo":
        assert mean[0] > mean[1], "the tables help on English"


def test_half_characters_are_never_sent():
    prompt = "Café 😀 “naïve” — 漢字"
    for seed in range(4):
        fields = dict(max_tokens=30, temperature=2, seed=seed, ignore_eos=True)
        whole = text_of(prompt, **fields)
        events = server().stream(prompt, **fields)
        pieces = [event["choices"][0]["text"] for event in events[:-1]]
        assert "".join(pieces) == whole
        assert sum(piece.count("\ufffd") for piece in pieces) == whole.count("\ufffd")
    assert text_of(prompt, max_tokens=0, echo=True) == prompt
    assert text_of(ids_of(prompt), max_tokens=0, echo=True) == prompt


def test_odd_prompts_survive():
    for prompt in [" ", "\n", "\t\t\n  \n", "\x00", "a\x00b", "\u200b", "\U0010ffff", " " * 200, "ß" * 100, "😀" * 30,
                   "<|endoftext|>", "a" * 300, "\ufeff", "e\u0301", "\u0627\u0644\u0633\u0644\u0627\u0645"]:
        assert text_of(prompt, max_tokens=0, echo=True) == prompt, prompt
        assert server().complete(prompt, max_tokens=2, **GREEDY)["usage"]["completion_tokens"] == 2


def test_the_context_is_used_to_the_last_token():
    limit = server().get("/v1/models")["data"][0]["max_model_len"]
    some = ids_of(STORY)[0]
    for n, new in [(limit - 4, 4), (limit - 1, 1), (1, limit - 1)]:
        answer = server().complete([some] * n, max_tokens=new, **GREEDY)
        assert answer["usage"] == {**answer["usage"], "prompt_tokens": n, "completion_tokens": new}
    answer = server().complete([some] * limit, max_tokens=0, echo=True)
    assert answer["usage"]["prompt_tokens"] == limit
    for n, new in [(limit - 4, 5), (limit, 1), (limit + 1, 0), (1, limit)]:
        fields = {"echo": True} if new == 0 else {}
        refused = ask(server(), "POST", "/v1/completions", {"prompt": [some] * n, "max_tokens": new, **fields})
        error = refused.error()
        assert refused.status == 400 and error["code"] == "context_length_exceeded", (n, new, error)
        assert error["param"] == "prompt" and str(limit) in error["message"]
    # The default shrinks to what is left.
    answer = server().complete([some] * (limit - 3), **GREEDY)
    assert answer["usage"]["completion_tokens"] == 3


def test_what_load_generators_send_is_served():
    answer = server().stream(STORY, model=server().model, repetition_penalty=1.0, max_tokens=3, logprobs=None,
                             stop=None, ignore_eos=True, temperature=0.0, best_of=1, add_special_tokens=False,
                             stream_options={"include_usage": True, "continuous_usage_stats": True})
    _, usage = collect(answer)
    assert usage["completion_tokens"] == 3


def test_sixteen_requests_at_once_say_what_each_says_alone():
    prompts = [f"Chapter {i}. The" for i in range(16)]
    alone = [text_of(p, max_tokens=12, **GREEDY) for p in prompts]
    got = {}
    threads = [threading.Thread(target=lambda p=p: got.__setitem__(p, text_of(p, max_tokens=12, **GREEDY)))
               for p in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[p] for p in prompts] == alone


def test_a_model_that_is_named_must_be_the_one_that_is_served():
    with Daemon({"model.name": "my-model"}) as named:
        assert named.complete(STORY, model="my-model", max_tokens=1)["model"] == "my-model"
        answer = ask(named, "POST", "/v1/completions", {"prompt": STORY, "model": "other"})
        assert answer.status == 404 and answer.error()["code"] == "model_not_found"
        assert answer.error()["param"] == "model"


if __name__ == "__main__":
    run(globals())
