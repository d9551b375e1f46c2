"""Texts over HTTP: what is refused and how it is said, sealed prompts, mixtures, routes, streams, and who leaves."""

import base64
import json
import math
import socket
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch

from fedgen import encode, sample
from fedgen.serve.api import choosing
from fedgen.serve.house import House, Stand

Ask = Callable[..., httpx.Response]
COMPLETE, CHAT = "/v1/completions", "/v1/chat/completions"
PLAIN: dict[str, Any] = {"model": "global", "prompt": "the quick", "max_tokens": 6, "temperature": 0}
SAID = [{"role": "user", "content": "hello"}]


@pytest.fixture
def stand(house: House) -> Stand:
    return house.stands["stories"]


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    """The parts of a stream that came to its end."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


# ---- what is refused


REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    (COMPLETE, {"echo": True}, "echo", "is not done here; leave it away"),
    (COMPLETE, {"best_of": 2}, "best_of", "is not done here"),
    (COMPLETE, {"suffix": "end"}, "suffix", "is not done here"),
    (COMPLETE, {"logit_bias": {"1": 5}}, "logit_bias", "is not done here"),
    (COMPLETE, {"presence_penalty": 0.5}, "presence_penalty", "is not done here"),
    (COMPLETE, {"tempratur": 1}, "tempratur", "is not known here; wanted one of model, n, seed"),
    (COMPLETE, {"max_tokens": "6"}, "max_tokens", 'valid integer, came "6"'),
    (COMPLETE, {"max_tokens": 0}, "max_tokens", "greater than or equal to 1, came 0"),
    (COMPLETE, {"max_tokens": True}, "max_tokens", "valid integer, came true"),
    (COMPLETE, {"temperature": 9}, "temperature", "less than or equal to 2, came 9"),
    (COMPLETE, {"n": 65}, "n", "less than or equal to 64"),
    (COMPLETE, {"prompt": 5}, "prompt", "valid string, came 5"),
    (COMPLETE, {"prompt": [[1, 2]]}, "prompt.0", "valid string, came [1, 2]"),
    (COMPLETE, {"prompt": []}, "prompt", "wanted at least one, came none"),
    (COMPLETE, {"prompt": None}, "prompt", "wanted either prompt or prompt_embeds"),
    (COMPLETE, {"prompt_embeds": "AAAA"}, "prompt", "wanted either prompt or prompt_embeds"),
    (COMPLETE, {"prompt": ["a"] * 33, "n": 2}, "n", "wanted at most 64 answers to one request, came 66"),
    (COMPLETE, {"stop": list("abcde")}, "stop", "at most 4 items"),
    (COMPLETE, {"stop": ""}, "stop", "none of them empty"),
    (COMPLETE, {"stop": "a" * 1025}, "stop", "at most 1024 characters"),
    (COMPLETE, {"model": "a" * 1025}, "model", "at most 1024 characters"),
    (COMPLETE, {"models": ["a" * 1025]}, "models.0", "at most 1024 characters"),
    (COMPLETE, {"prompt": "a" * ((1 << 20) + 1)}, "prompt", "at most 1048576 characters"),
    (COMPLETE, {"prompt": [""] * 65}, "prompt", "at most 64 items"),
    (COMPLETE, {"prompt": ["a"] * 64, "n": 64}, "n", "at most 64 answers to one request, came 4096"),
    (COMPLETE, {"stream_options": {"include_usage": True}}, "stream_options", "wanted stream = true"),
    (COMPLETE, {"stream_options": {"usage": True}}, "stream_options.usage", "is not known here"),
    (COMPLETE, {"mix": [{"name": "global"}], "models": ["global"]}, "mix", "cannot be with models"),
    (COMPLETE, {"mix": [{"name": "global"}] * 2}, "mix", "names one adapter twice"),
    (COMPLETE, {"mix": [{"name": "global", "weight": 1}]}, "mix.0.weight", "is not known here"),
    (COMPLETE, {"models": []}, "models", "wanted at least one"),
    (COMPLETE, {"model": ""}, "model", "wanted an adapter's name, see /v1/models, came none"),
    (COMPLETE, {"route": {"vector": [1.0]}}, "route", "wanted 64 finite numbers"),
    (COMPLETE, {"route": True, "prompt": ["a", "b"]}, "route", "wanted one prompt"),
    (CHAT, {"tools": [{"type": "function"}]}, "tools", "is not done here"),
    (CHAT, {"response_format": {"type": "json_schema"}}, "response_format.type", "input should be 'text'"),
    (CHAT, {"modalities": ["audio"]}, "modalities", "is not known here"),
    (CHAT, {"top_logprobs": 2}, "top_logprobs", "wanted logprobs = true"),
    (CHAT, {"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens", "another number"),
    (CHAT, {"messages": []}, "messages", "wanted at least one"),
    (CHAT, {"messages": [{"role": "tool", "content": "a"}]}, "messages.0.role", "'assistant'"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.type", "'text'"),
]


@pytest.mark.parametrize(
    ("path", "more", "param", "said"), REFUSED, ids=[f"{one[2]}-{at}" for at, one in enumerate(REFUSED)]
)
def test_what_is_not_done_is_refused_by_its_name(
    ask: Ask, path: str, more: dict[str, Any], param: str, said: str
) -> None:
    body = PLAIN if path == COMPLETE else {"model": "global", "messages": SAID}
    answer = ask("POST", path, json=body | more)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: ")
    assert said in error["message"]


def test_what_changes_nothing_is_taken(ask: Ask) -> None:
    neutral = {"echo": False, "best_of": 1, "suffix": "", "logit_bias": {}, "presence_penalty": 0, "user": "me"}
    assert text_of(ask("POST", COMPLETE, json=PLAIN | neutral)) == text_of(ask("POST", COMPLETE, json=PLAIN))
    nulls = dict.fromkeys(["n", "stop", "seed", "stream", "logprobs", "top_p", "deadline", "mix", "route"])
    assert text_of(ask("POST", COMPLETE, json=PLAIN | nulls)) == text_of(ask("POST", COMPLETE, json=PLAIN))


def test_an_error_is_short_however_long_the_question(ask: Ask) -> None:
    for body in ({"model": "a" * 4_000_000}, {"model": "a=" * 500}, {"prompt": [[1]] * 500_000}, {"a" * 4_000_000: 1}):
        answer = ask("POST", COMPLETE, json=PLAIN | body)
        assert answer.status_code in (400, 404)
        assert len(answer.content) < 4000
    many = {f"unknown-{number}": 1 for number in range(2000)}
    assert "more than 1000 things" in ask("POST", COMPLETE, json=PLAIN | many).json()["error"]["message"]


def test_the_smallest_share_is_the_likeliest_token(ask: Ask) -> None:
    greedy = text_of(ask("POST", COMPLETE, json=PLAIN))
    assert text_of(ask("POST", COMPLETE, json=PLAIN | {"temperature": 1, "top_p": 0})) == greedy


def test_without_a_seed_each_prompt_has_its_own(ask: Ask) -> None:
    body = PLAIN | {"prompt": ["a", "a"], "temperature": 1, "max_tokens": 16}
    first, second = (choice["text"] for choice in ask("POST", COMPLETE, json=body).json()["choices"])
    assert first != second
    first, second = (choice["text"] for choice in ask("POST", COMPLETE, json=body | {"seed": 1}).json()["choices"])
    assert first == second
    side = body | {"model": "", "models": ["global", "global"], "prompt": "a"}
    first, second = (choice["text"] for choice in ask("POST", COMPLETE, json=side).json()["choices"])
    assert first == second


def test_a_picture_is_not_asked_of_a_text(ask: Ask) -> None:
    answer = ask("POST", COMPLETE, json=PLAIN | {"model": "digits:global"})
    assert answer.status_code == 400
    assert "/v1/images/generations" in answer.json()["error"]["message"]


# ---- adapters


def test_side_by_side_is_each_alone(ask: Ask) -> None:
    models = ["backbone", "global", "cluster-1", "user/ann", "global=0.5,user/ann=0.5"]
    together = ask("POST", COMPLETE, json=PLAIN | {"model": "", "models": models, "seed": 4, "temperature": 1}).json()
    assert together["fedgen"]["models"] == [f"stories:{model}" for model in models]
    for choice, model in zip(together["choices"], models, strict=True):
        alone = ask("POST", COMPLETE, json=PLAIN | {"model": model, "seed": 4, "temperature": 1})
        assert text_of(alone) == choice["text"]


def test_a_mix_is_said_in_numbers_or_in_words(ask: Ask) -> None:
    parts = [{"name": "cluster-1", "scale": 0.7}, {"name": "cluster-2", "scale": 0.3}]
    numbers = ask("POST", COMPLETE, json=PLAIN | {"mix": parts})
    words = ask("POST", COMPLETE, json=PLAIN | {"model": "cluster-1=0.7,cluster-2=0.3"})
    assert text_of(numbers) == text_of(words)
    assert numbers.json()["fedgen"]["models"] == words.json()["fedgen"]["models"]
    assert len(numbers.json()["fedgen"]["hashes"][0]) == 2


def test_an_answers_model_can_be_asked_again_and_a_run_may_be_said_of_each(ask: Ask) -> None:
    parts = [{"name": "stories:cluster-1", "scale": 0.7}, {"name": "stories:cluster-2", "scale": 0.3}]
    first = ask("POST", COMPLETE, json={key: value for key, value in PLAIN.items() if key != "model"} | {"mix": parts})
    said = "stories:cluster-1=0.7,cluster-2=0.3"
    assert first.json()["model"] == first.json()["fedgen"]["models"][0] == said
    for model in (said, "stories:cluster-1=0.7,stories:cluster-2=0.3", "cluster-1=0.7, stories:cluster-2=0.3"):
        assert text_of(ask("POST", COMPLETE, json=PLAIN | {"model": model})) == text_of(first)
    twice = [parts[0], {"name": "cluster-1"}]
    assert "names one adapter twice" in ask("POST", COMPLETE, json=PLAIN | {"mix": twice}).json()["error"]["message"]


def test_a_prompt_that_waits_too_long_to_be_routed_is_told(
    ask: Ask, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "ENCODING", 0.05)
    busy = stand.engine.call(lambda: time.sleep(0.5))
    answer = ask("POST", COMPLETE, json=PLAIN | {"route": True})
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert not busy.done()
    busy.result()
    assert ask("POST", COMPLETE, json=PLAIN).status_code == 200


def test_a_prompt_is_routed_here_or_on_the_device(ask: Ask, stand: Stand) -> None:
    here = ask("POST", COMPLETE, json=PLAIN | {"route": True})
    vector = stand.encode(PLAIN["prompt"]).result()
    there = ask("POST", COMPLETE, json=PLAIN | {"route": {"vector": vector.tolist(), "top": 2}})
    expected = sample.spelled(sample.route(stand.run, vector, top=2, temperature=0.1))
    assert here.json()["fedgen"]["models"] == there.json()["fedgen"]["models"] == [f"stories:{expected}"]
    assert text_of(here) == text_of(there)


def test_the_answer_says_what_made_it(ask: Ask, stand: Stand) -> None:
    found = ask("POST", COMPLETE, json=PLAIN).json()
    assert found["system_fingerprint"] == stand.backbone.hash[:12]
    entry = next(one for one in ask("GET", "/v1/models").json()["data"] if one["id"] == "stories:global")
    assert found["fedgen"]["hashes"] == [[entry["fedgen"]["hash"]]]
    assert 0 <= found["fedgen"]["waited"] <= found["fedgen"]["seconds"]
    bare = ask("POST", COMPLETE, json=PLAIN | {"model": "backbone"}).json()
    assert bare["fedgen"]["hashes"] == [[stand.backbone.hash]]


def test_tokens_are_counted_once_a_prompt_and_known_ones_are_told(ask: Ask) -> None:
    prompt = "every round some clients train, and their adapters are averaged. " * 2
    body = PLAIN | {"prompt": [prompt, "the"], "n": 2, "max_tokens": 3}
    first, again = (ask("POST", COMPLETE, json=body).json()["usage"] for _ in range(2))
    assert first["completion_tokens"] == 12
    assert first["prompt_tokens"] == again["prompt_tokens"] < 2 * len(prompt)
    assert first["total_tokens"] == first["prompt_tokens"] + 12
    assert 0 < again["prompt_tokens_details"]["cached_tokens"] <= again["prompt_tokens"]


def test_what_is_refused_at_once_leaves_no_row(ask: Ask, stand: Stand) -> None:
    assert quiet(stand, 5)
    before = stand.engine.waiting + stand.engine.running
    body = PLAIN | {"prompt": ["a"] * 40, "max_tokens": 100, "stream_options": {"include_usage": True}}
    assert ask("POST", COMPLETE, json=body).status_code == 400
    assert stand.engine.waiting + stand.engine.running == before == 0


# ---- sealed prompts


def sealed(stand: Stand, prompt: str) -> str:
    return base64.b64encode(encode.seal(prompt, stand.backbone)).decode()


def test_a_sealed_prompt_is_continued_as_the_plain_one(ask: Ask, stand: Stand) -> None:
    closed = {key: value for key, value in PLAIN.items() if key != "prompt"}
    plain = text_of(ask("POST", COMPLETE, json=PLAIN))
    assert text_of(ask("POST", COMPLETE, json=closed | {"prompt_embeds": sealed(stand, "the quick")})) == plain
    two = ask("POST", COMPLETE, json=closed | {"prompt_embeds": [sealed(stand, "a"), sealed(stand, "the quick")]})
    assert two.json()["choices"][1]["text"] == plain
    chat = ask("POST", CHAT, json=closed | {"prompt_embeds": sealed(stand, "the quick")})
    assert chat.json()["choices"][0]["message"]["content"] == plain


def test_what_is_not_sealed_for_this_backbone_is_refused(ask: Ask, house: House) -> None:
    other = base64.b64encode(encode.seal("a seven", house.stands["digits"].backbone)).decode()
    for came, said in (
        (other, "sealed for"),
        ("%%%", "wanted base64"),
        ("AAAA", "prompt_embeds"),
        ([], "at least one"),
    ):
        answer = ask("POST", COMPLETE, json={"model": "global", "prompt_embeds": came})
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] == "prompt_embeds"
        assert said in answer.json()["error"]["message"]


def test_a_server_of_sealed_prompts_takes_no_other(ask: Ask, house: House, stand: Stand) -> None:
    house.plain = False
    try:
        for path, body in ((COMPLETE, PLAIN), (CHAT, {"model": "global", "messages": SAID})):
            answer = ask("POST", path, json=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "plain_prompt_refused")
        body = {"model": "global", "prompt_embeds": sealed(stand, "the quick"), "max_tokens": 2}
        assert ask("POST", COMPLETE, json=body).status_code == 200
        answer = ask("POST", COMPLETE, json=body | {"route": True})
        assert "wanted a `vector`" in answer.json()["error"]["message"]
        vector = torch.ones(64).tolist()
        assert ask("POST", COMPLETE, json=body | {"route": {"vector": vector}}).status_code == 200
    finally:
        house.plain = True


# ---- streams


def test_a_stream_is_the_whole_answer_in_parts(ask: Ask) -> None:
    body = PLAIN | {"n": 3, "temperature": 1, "seed": 5, "logprobs": 1}
    whole = ask("POST", COMPLETE, json=body).json()
    parts = events(ask("POST", COMPLETE, json=body | {"stream": True, "stream_options": {"include_usage": True}}))
    assert parts[-1]["usage"] == whole["usage"] | {"prompt_tokens_details": parts[-1]["usage"]["prompt_tokens_details"]}
    assert parts[-1]["choices"] == []
    assert all(part["usage"] is None for part in parts[:-1])
    for choice in whole["choices"]:
        own = [part["choices"][0] for part in parts[:-1] if part["choices"][0]["index"] == choice["index"]]
        assert "".join(part["text"] for part in own) == choice["text"]
        assert [part["finish_reason"] for part in own] == [None] * (len(own) - 1) + [choice["finish_reason"]]
        told = [part["logprobs"] for part in own if part["logprobs"]]
        for key, values in choice["logprobs"].items():
            assert [value for one in told for value in one[key]] == values
    assert parts[-2]["fedgen"]["hashes"] == whole["fedgen"]["hashes"]


def test_what_is_wrong_at_once_is_no_stream(ask: Ask) -> None:
    for body, status in (({"model": "nobody"}, 404), ({"deadline": 0}, 504), ({"max_tokens": 100_000}, 400)):
        answer = ask("POST", COMPLETE, json=PLAIN | body | {"stream": True})
        assert answer.status_code == status, answer.text
        assert "error" in answer.json()


def test_what_goes_wrong_later_is_an_event_and_the_end(ask: Ask) -> None:
    body = PLAIN | {"prompt": ["a"] * 40, "max_tokens": 100, "deadline": 0.3, "stream": True, "temperature": 1}
    answer = ask("POST", COMPLETE, json=body)
    assert answer.status_code == 200
    *_, last, rest = answer.text.split("\n\n")
    kind, data = last.split("\n")
    assert (kind, rest) == ("event: error", "")
    assert json.loads(data.removeprefix("data: "))["error"]["code"] == "deadline_exceeded"


def test_a_deadline_is_kept(ask: Ask) -> None:
    answer = ask("POST", COMPLETE, json=PLAIN | {"prompt": ["a"] * 40, "max_tokens": 100, "deadline": 0.3})
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")


def quiet(stand: Stand, seconds: float) -> bool:
    """Whether the engine has nothing to do before so many seconds are over."""
    until = time.monotonic() + seconds
    while stand.engine.running + stand.engine.waiting:
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_frees_the_rows(server: SimpleNamespace, stand: Stand, stream: bool) -> None:
    assert quiet(stand, 5)
    body = json.dumps(PLAIN | {"prompt": ["a"] * 48, "max_tokens": 110, "stream": stream}).encode()
    host, _, port = server.url.removeprefix("http://").partition(":")
    heads = f"POST {COMPLETE} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {server.keys['bob']}\r\n"
    heads += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((host, int(port))) as wire:
        wire.sendall(heads.encode() + body)
        while not stand.engine.running:
            time.sleep(0.001)
    assert quiet(stand, 1.0)  # they would have taken longer


def test_probabilities_are_numbers_that_json_can_hold(ask: Ask) -> None:
    body = {"model": "global", "messages": SAID, "max_tokens": 8, "logprobs": True, "top_logprobs": 20, "top_p": 0.01}
    found = ask("POST", CHAT, json=body).json()["choices"][0]["logprobs"]["content"]
    assert len(found) == 8
    assert all(math.isfinite(likely["logprob"]) for one in found for likely in one["top_logprobs"])
    assert all(one["bytes"] == list(one["token"].encode()) for one in found if "\ufffd" not in one["token"])
