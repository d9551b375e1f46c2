"""A run's voice: wishes under many adapters share the passes, and each is drawn as if it were the only one."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import fedgen
from fedgen import Run
from fedgen.errors import DataError, StoreError
from fedgen.records import Document
from fedgen.sample import BARE, CROWD, Sampler, Wish, sampler

STEPS, GUIDANCE = 2, 3.0
CAT = Document("", "", "a cat")


@pytest.fixture(scope="module")
def run(digits_plan: Callable[[str], dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run over digits, told in words."""
    return fedgen.run(digits_plan("flow"), tmp_path_factory.mktemp("runs") / "digits")


@pytest.fixture(scope="module")
def voice(run: Run) -> Iterator[Sampler]:
    """Its backbone, under its own adapter and three loud ones."""
    found = sampler(run)
    lines = 0.3 * torch.randn(3, found.bank.layout.width, generator=torch.Generator().manual_seed(0))
    with found.bank:
        yield replace(found, known=dict(zip(("a", "b", "c"), lines, strict=True)))


@pytest.fixture(scope="module")
def words(tiny_run: Run) -> Iterator[Sampler]:
    found = sampler(tiny_run)
    with found.bank:
        yield found


def painted(voice: Sampler, *wishes: Wish) -> Tensor:
    return torch.stack(list(voice.paint(wishes, steps=STEPS, guidance=GUIDANCE))).int()


def test_many_wishes_are_painted_as_one_at_a_time(voice: Sampler) -> None:
    adapters = ["a", BARE, "b", "global", "c"]
    wishes = [Wish(adapters[at % 5], Document("", "", f"a cat {at % 3}"), at % 4) for at in range(CROWD + 5)]
    together = painted(voice, *wishes)
    alone = torch.cat([painted(voice, wish) for wish in wishes])
    assert together.shape == (CROWD + 5, 1, 8, 8)
    assert (together - alone).abs().max() <= 1  # a rounding to bytes may fall to either side
    assert len({picture.numpy().tobytes() for picture in together}) > CROWD / 2


def test_adapter_prompt_seed_and_use_all_tell(voice: Sampler) -> None:
    wish = Wish("a", CAT, 0)
    same, again, *others = painted(
        voice, wish, wish, replace(wish, adapter="b"), replace(wish, adapter=BARE), replace(wish, seed=1),
        replace(wish, use="other"), replace(wish, asked=Document("", "", "a dog")),
    )  # fmt: skip
    assert same.equal(again)
    assert all((same - other).abs().max() > 1 for other in others)


def test_no_adapter_is_the_bare_backbone(voice: Sampler) -> None:
    wish = Wish(BARE, CAT, 0)
    assert voice.line(BARE).count_nonzero() == 0
    assert voice.line("global").count_nonzero() > 0
    bare = Sampler(voice.run, voice.backbone, voice.bank, {"zeros": torch.zeros_like(voice.line("a"))})
    assert painted(voice, wish).equal(painted(bare, replace(wish, adapter="zeros")))


def test_no_wish_is_no_picture(voice: Sampler) -> None:
    assert list(voice.paint([], steps=STEPS, guidance=GUIDANCE)) == []


def test_an_adapter_that_is_not_there_is_named(voice: Sampler) -> None:
    with pytest.raises(StoreError, match=r"has no adapter 'client/ann'; it has global"):
        painted(voice, Wish("client/ann", CAT, 0))


def test_a_prompt_that_is_too_long_is_refused(voice: Sampler) -> None:
    with pytest.raises(DataError, match="wanted at most 16 tokens, came"):
        painted(voice, Wish("a", Document("", "", "a cat " * 40), 0))


def test_a_run_of_text_refuses_to_paint_and_one_of_pictures_to_write(voice: Sampler, words: Sampler) -> None:
    with pytest.raises(StoreError, match=r"its backbone writes text and draws no pictures; use write"):
        painted(words, Wish(BARE, CAT, 0))
    with pytest.raises(StoreError, match=r"its backbone draws pictures and writes no text; use paint"):
        "".join(voice.write("the harbour"))


def test_a_voice_writes_the_same_from_the_same_seed(words: Sampler) -> None:
    def written(seed: int) -> str:
        return "".join(words.write("the harbour ", adapter="client/ann", tokens=12, temperature=1.0, seed=seed))

    assert written(3) == written(3) != written(4)
