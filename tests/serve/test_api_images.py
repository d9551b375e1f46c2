"""Pictures over HTTP: as they are asked for, with how they were made inside, sketched on the way, side by side."""

import base64
import io
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
from PIL import Image

from fedgen import encode
from fedgen.backbones import DiffusionBackbone
from fedgen.records import Document
from fedgen.serve.api.asks import ImageAsk
from fedgen.serve.api.errors import RefusedError
from fedgen.serve.api.images import _asked
from fedgen.serve.house import House

Ask = Callable[..., httpx.Response]
DRAW = "/v1/images/generations"
BODY: dict[str, Any] = {"model": "global", "prompt": "a seven", "steps": 4, "seed": 7}


def pictures(answer: httpx.Response) -> list[Image.Image]:
    assert answer.status_code == 200, answer.text
    return [opened(one["b64_json"]) for one in answer.json()["data"]]


def opened(b64: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(b64)))


def events(answer: httpx.Response) -> list[tuple[str, dict[str, Any]]]:
    assert answer.headers["Content-Type"].startswith("text/event-stream"), answer.text
    told = [part.split("\n") for part in answer.text.split("\n\n") if part and not part.startswith(":")]
    return [(kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for kind, data in told]


def test_a_picture_says_how_it_was_made(ask: Ask) -> None:
    answer = ask("POST", DRAW, json=BODY | {"guidance": 1.5})
    made = json.loads(pictures(answer)[0].info["parameters"])
    hashes = answer.json()["fedgen"]["hashes"][0]
    assert made == {
        "prompt": "a seven", "adapter": "global", "run": "digits", "steps": 4, "guidance": 1.5, "seed": 7,
        "hashes": hashes,
    }  # fmt: skip
    same = {key: made[key] for key in ("prompt", "steps", "guidance", "seed")}
    again = ask("POST", DRAW, json=same | {"model": made["adapter"]})
    assert again.json()["data"] == answer.json()["data"]


def test_settings_go_by_either_name(ask: Ask) -> None:
    ours = ask("POST", DRAW, json=BODY | {"guidance": 1.0, "mix": [{"name": "global", "scale": 0.5}], "size": "8x8"})
    theirs = {"num_inference_steps": 4, "guidance_scale": 1.0, "lora": {"name": "global", "scale": 0.5}, "size": "auto"}
    theirs |= {"model": "backbone", "prompt": "a seven", "seed": 7, "quality": "auto", "output_format": "png"}
    assert ours.json()["data"] == ask("POST", DRAW, json=theirs).json()["data"]


def test_side_by_side_is_each_alone(ask: Ask) -> None:
    models = ["backbone", "global", "backbone until 0.5 then global"]
    together = ask("POST", DRAW, json={"models": models, **{key: BODY[key] for key in ("prompt", "steps", "seed")}})
    assert [one["model"] for one in together.json()["data"]] == [f"digits:{model}" for model in models]
    assert {one["seed"] for one in together.json()["data"]} == {7}
    for model, picture in zip(models, pictures(together), strict=True):
        (alone,) = pictures(ask("POST", DRAW, json=BODY | {"model": model}))
        most = max(abs(a - b) for a, b in zip(picture.tobytes(), alone.tobytes(), strict=True))
        assert most <= 1  # of 255


def test_a_sealed_prompt_is_drawn_as_the_plain_one(ask: Ask, house: House) -> None:
    raw = base64.b64encode(encode.seal("a seven", house.stands["digits"].backbone)).decode()
    sealed = {key: value for key, value in BODY.items() if key != "prompt"} | {"prompt_embeds": raw}
    plain, closed = (pictures(ask("POST", DRAW, json=body))[0] for body in (BODY, sealed))
    assert plain.tobytes() == closed.tobytes()
    assert "prompt" not in json.loads(closed.info["parameters"])
    house.plain = False
    try:
        answer = ask("POST", DRAW, json=BODY)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "plain_prompt_refused")
        assert ask("POST", DRAW, json=sealed).status_code == 200
    finally:
        house.plain = True


def test_a_stream_shows_every_picture_coming(ask: Ask) -> None:
    body = BODY | {"n": 2, "steps": 6}
    told = events(ask("POST", DRAW, json=body | {"stream": True, "partial_images": 2}))
    assert all(kind == said["type"] for kind, said in told)
    for index, whole in enumerate(ask("POST", DRAW, json=body).json()["data"]):
        own = [(kind, said) for kind, said in told if said["index"] == index]
        assert [kind.rpartition(".")[2] for kind, _ in own] == ["partial_image", "partial_image", "completed"]
        assert [said["partial_image_index"] for _, said in own[:-1]] == [0, 1]
        last = own[-1][1]
        assert (last["b64_json"], last["seed"], last["model"]) == (whole["b64_json"], whole["seed"], whole["model"])
        assert last["fedgen"]["models"] == ["digits:global"]
        assert opened(own[0][1]["b64_json"]).tobytes() != opened(last["b64_json"]).tobytes()


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"size": "1024x1024"}, "size", "wanted 8x8"),
    ({"response_format": "url"}, "response_format", "'b64_json', came \"url\""),
    ({"negative_prompt": "blurry"}, "negative_prompt", "is not done here"),
    ({"output_format": "webp"}, "output_format", "'png'"),
    ({"background": "transparent"}, "background", "is not known here"),
    ({"num_inference_steps": 9}, "num_inference_steps", "another number than steps"),
    ({"partial_images": 2}, "partial_images", "wanted stream = true"),
    ({"partial_images": 4, "stream": True}, "partial_images", "less than or equal to 3"),
    ({"steps": 0}, "steps", "greater than or equal to 1"),
    ({"prompt": None}, "prompt", "wanted one of prompt, label and prompt_embeds, came none"),
    ({"label": "7"}, "prompt", "came prompt and label"),
    ({"lora": {"name": "global"}, "mix": [{"name": "global"}]}, "lora", "which is the same"),
]


@pytest.mark.parametrize(("more", "param", "said"), REFUSED, ids=[param for _, param, _ in REFUSED])
def test_what_is_not_done_is_refused_by_its_name(ask: Ask, more: dict[str, Any], param: str, said: str) -> None:
    answer = ask("POST", DRAW, json=BODY | more)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert said in answer.json()["error"]["message"]


def test_a_label_is_not_asked_of_what_reads_prompts(
    ask: Ask, house: House, denoisers: dict[str, DiffusionBackbone]
) -> None:
    body = {key: value for key, value in BODY.items() if key != "prompt"}
    for label in ("7", ""):
        answer = ask("POST", DRAW, json=body | {"label": label})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "label"), answer.text
    assert "run 'digits' draws by prompt; give a prompt instead" in answer.json()["error"]["message"]
    classes = replace(house.stands["digits"], backbone=denoisers["dit"])
    with pytest.raises(RefusedError, match="draws by label; give a label instead"):
        _asked(classes, ImageAsk(prompt="a seven"))
    assert _asked(classes, ImageAsk(label="7")) == [Document("", "", prompt="", label="7")]


def test_a_text_is_not_asked_of_pictures(ask: Ask) -> None:
    answer = ask("POST", DRAW, json=BODY | {"model": "stories:global"})
    assert answer.status_code == 400
    assert "/v1/completions" in answer.json()["error"]["message"]
