"""What a denoiser is told: prompts as transformers reads them, classes by their number, or nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, CLIPTextModel

from fedgen.backbones import DiffusionBackbone
from fedgen.backbones.conditions import CALLS, Classes, Prompts, Unasked, condition_of
from fedgen.errors import BackboneError, DataError
from fedgen.records import Document

PROMPTS = ["the quick brown fox", "", "a client", "the quick brown fox"]
LONG = "z" * 40


def documents(*prompts: str) -> list[Document]:
    return [Document("", "", prompt) for prompt in prompts]


def prompts_of(denoiser: DiffusionBackbone) -> Prompts:
    assert isinstance(denoiser.condition, Prompts)
    return denoiser.condition


@pytest.mark.parametrize(("kind", "masked"), [("stable", False), ("pixart", True)])
@torch.no_grad()
def test_prompts_are_read_as_transformers_reads_them(
    kind: str, masked: bool, denoisers: dict[str, DiffusionBackbone], pipelines: dict[str, Path]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(pipelines[kind] / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(pipelines[kind] / "text_encoder")
    given = tokenizer(PROMPTS, padding="max_length", return_tensors="pt")
    seen = given["attention_mask"]
    wanted = encoder(given["input_ids"], attention_mask=seen if masked else None).last_hidden_state
    rows = denoisers[kind].condition.rows(documents(*PROMPTS))
    assert (rows["text"] - wanted).abs().max() < 1e-5
    assert set(rows) == ({"text", "seen"} if masked else {"text"})
    assert (rows["text"][0] - rows["text"][2]).abs().max() > 0.1
    if masked:
        assert torch.equal(rows["seen"], seen)
        assert len(set(seen.sum(1).tolist())) == 3


@pytest.mark.parametrize("kind", ["stable", "pixart"])
def test_asking_for_nothing_is_the_empty_prompt(kind: str, denoisers: dict[str, DiffusionBackbone]) -> None:
    condition = prompts_of(denoisers[kind])
    empty, rows = condition.empty(), condition.rows(documents("", "a client"))
    assert all(torch.equal(empty[key][0], rows[key][0]) for key in rows)
    assert not torch.equal(empty["text"][0], rows["text"][1])


def test_many_prompts_come_back_in_their_order(denoisers: dict[str, DiffusionBackbone]) -> None:
    """More than the encoder takes at once, each of them twice."""
    condition = prompts_of(denoisers["pixart"])
    prompts = [f"client {number % 70}" for number in range(140)]
    rows = condition.rows(documents(*prompts))
    assert torch.equal(rows["text"][:70], rows["text"][70:])
    for at in (0, 63, 64, 69, 139):
        alone = condition.rows(documents(prompts[at]))
        assert (rows["text"][at] - alone["text"][0]).abs().max() < 1e-5


def test_no_documents_are_no_rows(denoisers: dict[str, DiffusionBackbone]) -> None:
    assert denoisers["stable"].condition.rows([]) == {}


def test_a_prompt_that_is_too_long_is_refused_or_cut(denoisers: dict[str, DiffusionBackbone]) -> None:
    condition = prompts_of(denoisers["stable"])
    assert condition.length == 16
    fits = "z" * 14  # a token each, and a mark at both ends
    assert condition.rows(documents(fits))["text"].shape == (1, 16, 32)
    with pytest.raises(DataError) as caught:
        condition.rows(documents("fine", LONG))
    assert str(caught.value) == (
        f"prompt '{LONG}...': wanted at most 16 tokens, came 42; shorten it, or set backbone.long = 'cut'"
    )
    cut = replace(condition, long="cut").rows(documents(LONG, fits))
    assert torch.equal(cut["text"][0], cut["text"][1])


@pytest.mark.parametrize("long", ["error", "cut"])
def test_a_prompt_that_is_far_too_long_is_not_even_read(long: Any, denoisers: dict[str, DiffusionBackbone]) -> None:
    condition = replace(prompts_of(denoisers["stable"]), tokenizer=_Unread(), long=long)
    with pytest.raises(
        DataError, match=r"^prompt 'z{40}\.\.\.': wanted at most 1024 characters, came 1025; shorten it$"
    ):
        condition.check(documents("fine", "z" * 1025))  # for 16 tokens


class _Unread:
    """A tokenizer that is never asked."""

    model_max_length = 10**6


def test_an_encoder_that_gives_no_numbers(denoisers: dict[str, DiffusionBackbone], pipelines: dict[str, Path]) -> None:
    encoder = CLIPTextModel.from_pretrained(pipelines["stable"] / "text_encoder")
    next(encoder.parameters()).data.fill_(torch.inf)
    condition = replace(prompts_of(denoisers["stable"]), encoder=encoder)
    with pytest.raises(BackboneError, match=r"text encoder: gives numbers that are not finite; .*dtype = 'float32'"):
        condition.rows(documents("a client"))


def test_classes_are_the_numbers_that_labels_name() -> None:
    classes = Classes(10, nothing=True)
    rows = classes.rows([Document("", "", label=label) for label in ("3", "0", "9", "007")])
    assert rows["class"].tolist() == [3, 0, 9, 7]
    assert classes.empty() == {"class": torch.tensor([10])}
    assert Classes(10, nothing=False).empty() is None


@pytest.mark.parametrize("label", ["", "10", "-1", "cat", "1.0", "²", "٣", "9" * 5000])
def test_a_label_that_is_no_class(label: str) -> None:
    with pytest.raises(
        DataError, match=rf"^label '{label[:40]}': wanted the number of a class, 0 to 9; name such a label$"
    ):
        Classes(10, nothing=True).rows([Document("", "", label=label)])


def test_nothing_is_told_and_nothing_left_out() -> None:
    assert Unasked().rows(documents("a client")) == {}
    assert Unasked().empty() is None


CONDITIONS = {"ddpm": Unasked(), "classes": Classes(10, nothing=False), "dit": Classes(1000, nothing=True)}


@pytest.mark.parametrize("kind", ["ddpm", "classes", "stable", "dit", "pixart", "flow"])
def test_each_kind_is_told_what_it_knows(kind: str, denoisers: dict[str, DiffusionBackbone]) -> None:
    denoiser = denoisers[kind]
    assert type(denoiser.network).__name__ in CALLS
    if kind in CONDITIONS:
        assert denoiser.condition == CONDITIONS[kind]
    else:
        assert prompts_of(denoiser).masked == (kind != "stable")


@pytest.mark.parametrize("kind", ["stable", "pixart"])
def test_a_text_encoder_that_does_not_fit(kind: str, denoisers: dict[str, DiffusionBackbone]) -> None:
    condition = prompts_of(denoisers[kind])
    settings: Any = condition.encoder.config.__class__(hidden_size=24, intermediate_size=8, num_attention_heads=2)
    with pytest.raises(BackboneError, match="the denoiser reads text of width 32, the text encoder writes 24"):
        condition_of(denoisers[kind].network, condition.tokenizer, CLIPTextModel(settings), "error")
    name = type(denoisers[kind].network).__name__
    with pytest.raises(BackboneError, match=f"{name} reads prompts, but the folder has no tokenizer and text_encoder"):
        condition_of(denoisers[kind].network, condition.tokenizer, None, "error")
