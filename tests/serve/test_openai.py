"""The official `openai` client, unchanged, gets what it asks for, and its own errors where something is wrong."""

import base64
import io
import time
from collections.abc import Iterator
from types import SimpleNamespace

import openai
import pytest
from openai import OpenAI
from PIL import Image

from fedgen.serve.house import House


@pytest.fixture
def client(server: SimpleNamespace) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key=server.keys["ann"], max_retries=0) as made:
        yield made


def test_models_are_listed_and_found(client: OpenAI) -> None:
    found = client.models.list().data
    assert found[0].id == "stories:backbone"
    assert {"stories:global", "stories:cluster-1", "stories:user/ann", "digits:global"} <= {one.id for one in found}
    assert client.models.retrieve("stories:user/ann").owned_by == "ann"


def test_a_completion_is_the_same_whole_and_streamed(client: OpenAI) -> None:
    whole = client.completions.create(model="global", prompt="the quick", max_tokens=12, seed=3)
    parts = client.completions.create(
        model="global", prompt="the quick", max_tokens=12, seed=3, stream=True, stream_options={"include_usage": True}
    )
    heard = list(parts)
    assert "".join(part.choices[0].text for part in heard if part.choices) == whole.choices[0].text != ""
    assert heard[-1].usage is not None
    assert whole.usage is not None
    assert heard[-1].usage.completion_tokens == whole.usage.completion_tokens == 12
    assert [part.choices[0].finish_reason for part in heard if part.choices][-1] == "length"
    assert len({part.id for part in heard}) == 1


def test_several_prompts_and_answers_come_in_order(client: OpenAI) -> None:
    several = client.completions.create(model="global", prompt=["one", "two"], n=2, max_tokens=6, seed=1)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    alone = client.completions.create(model="global", prompt="two", n=2, max_tokens=6, seed=1)
    assert [choice.text for choice in several.choices[2:]] == [choice.text for choice in alone.choices]
    assert alone.choices[0].text != alone.choices[1].text


def test_a_completion_ends_before_a_stop_word(client: OpenAI) -> None:
    whole = client.completions.create(model="global", prompt="the quick", max_tokens=12, seed=3).choices[0].text
    word = whole[3:5]
    cut = client.completions.create(model="global", prompt="the quick", max_tokens=12, seed=3, stop=[word]).choices[0]
    assert (cut.text, cut.finish_reason) == (whole[: whole.index(word)], "stop")


def test_log_probabilities_of_a_completion(client: OpenAI) -> None:
    found = client.completions.create(model="global", prompt="the", max_tokens=5, temperature=0, logprobs=3)
    told = found.choices[0].logprobs
    assert told is not None
    assert told.token_logprobs is not None
    assert told.top_logprobs is not None
    assert len(told.tokens or []) == len(told.text_offset or []) == 5
    for likely, own in zip(told.top_logprobs, told.token_logprobs, strict=True):
        assert max(likely.values()) == pytest.approx(own)


def test_a_chat_whole_and_streamed(client: OpenAI) -> None:
    said = [{"role": "system", "content": "be brief"}, {"role": "user", "content": [{"type": "text", "text": "hello"}]}]
    whole = client.chat.completions.create(
        model="user/ann", messages=said, max_completion_tokens=6, seed=2, logprobs=True, top_logprobs=2
    )
    assert whole.choices[0].message.role == "assistant"
    assert whole.choices[0].logprobs is not None
    assert [len(one.top_logprobs) for one in whole.choices[0].logprobs.content or []] == [2] * 6
    heard = list(client.chat.completions.create(model="user/ann", messages=said, max_tokens=6, seed=2, stream=True))
    assert heard[0].choices[0].delta.role == "assistant"
    assert not any(part.choices[0].delta.role for part in heard[1:])
    assert "".join(part.choices[0].delta.content or "" for part in heard) == whole.choices[0].message.content


def test_a_chat_without_a_template_is_its_messages_as_paragraphs(client: OpenAI) -> None:
    said = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    chat = client.chat.completions.create(model="global", messages=said, max_tokens=6, temperature=0)
    plain = client.completions.create(model="global", prompt="one\n\ntwo", max_tokens=6, temperature=0)
    assert chat.choices[0].message.content == plain.choices[0].text


def test_a_chat_follows_its_tokenizers_template(client: OpenAI, house: House) -> None:
    tokenizer = house.stands["stories"].backbone.tokenizer  # type: ignore[attr-defined]
    tokenizer.chat_template = "{% for one in messages %}[{{ one.role }}] {{ one.content }}{% endfor %} ->"
    try:
        chat = client.chat.completions.create(
            model="global", messages=[{"role": "user", "content": "one"}], max_tokens=6, temperature=0
        )
        tokenizer.chat_template = "{{ raise_exception('no system here') }}"
        with pytest.raises(openai.BadRequestError, match="no system here"):
            client.chat.completions.create(model="global", messages=[{"role": "user", "content": "one"}])
    finally:
        tokenizer.chat_template = None
    plain = client.completions.create(model="global", prompt="[user] one ->", max_tokens=6, temperature=0)
    assert chat.choices[0].message.content == plain.choices[0].text


def shown(b64: str | None) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(b64 or "")))


def test_pictures_whole(client: OpenAI) -> None:
    found = client.images.generate(
        model="global", prompt="a seven", n=2, size="8x8", response_format="b64_json",  # type: ignore[call-overload]
        extra_body={"seed": 5, "steps": 3},
    )  # fmt: skip
    pictures = [shown(one.b64_json) for one in found.data]
    assert [picture.size for picture in pictures] == [(8, 8), (8, 8)]
    assert pictures[0].tobytes() != pictures[1].tobytes()
    assert [one.seed for one in found.data] == [5, 6]


def test_pictures_streamed(client: OpenAI) -> None:
    heard = list(
        client.images.generate(
            model="global", prompt="a seven", stream=True, partial_images=2, extra_body={"seed": 5, "steps": 6}
        )
    )
    kinds = [event.type.rpartition(".")[2] for event in heard]
    assert kinds == ["partial_image", "partial_image", "completed"]
    assert [event.partial_image_index for event in heard[:2]] == [0, 1]  # type: ignore[union-attr]
    whole = client.images.generate(model="global", prompt="a seven", extra_body={"seed": 5, "steps": 6})
    assert shown(heard[-1].b64_json).tobytes() == shown((whole.data or [])[0].b64_json).tobytes()


def test_errors_are_the_clients_own(client: OpenAI, server: SimpleNamespace) -> None:
    with pytest.raises(openai.NotFoundError, match="global") as missing:
        client.completions.create(model="globl", prompt="a")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("stories:nobody")
    with pytest.raises(openai.BadRequestError, match="frequency_penalty") as refused:
        client.completions.create(model="global", prompt="a", frequency_penalty=1)
    assert refused.value.param == "frequency_penalty"
    with pytest.raises(openai.AuthenticationError), OpenAI(base_url=f"{server.url}/v1", api_key="wrong") as other:
        other.models.list()


def test_a_full_queue_is_told_and_who_leaves_makes_room(client: OpenAI, house: House) -> None:
    many = ["a"] * 48
    first = client.completions.create(model="global", prompt=many, max_tokens=100, stream=True)
    next(iter(first))
    with pytest.raises(openai.RateLimitError, match="queue") as full:
        client.completions.create(model="global", prompt=many, max_tokens=100)
    assert int(full.value.response.headers["Retry-After"]) >= 1
    first.close()
    until, engine = time.monotonic() + 1, house.stands["stories"].engine
    while engine.waiting + engine.running and time.monotonic() < until:
        time.sleep(0.01)
    assert engine.waiting + engine.running == 0  # 48 rows of 100 tokens would have taken longer
