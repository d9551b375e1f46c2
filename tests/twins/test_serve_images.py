"""A server's batch of pictures == each alone == merged weights == what `fedgen generate` draws, whatever is beside it.

Rows join and leave between steps, with adapters, mixtures, stages, steps, seeds and guidance of their own.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedgen import Bank, Run, lora, seeds
from fedgen.backbones import DiffusionBackbone
from fedgen.records import Document, Tree
from fedgen.sample import Sampler, Wish, stages
from fedgen.serve.engine.drawing import Drawing
from fedgen.serve.engine.wishes import Broken, Draw, Drawn, Ended, Event, Job
from fedgen.serve.pool import BARE, Adapter, Course, Slots
from fedgen.store import Card
from fedgen.tree import digest

Denoisers = dict[str, DiffusionBackbone]

KINDS = ["ddpm", "classes", "stable", "dit", "pixart", "flow"]
SCHEDULERS = ["EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "UniPCMultistepScheduler"]
RANK, LEVEL = 4, 1  # of 255: a rounding to bytes may fall to either side
RANKS = {"a": 4, "b": 3, "c": 1}


@dataclass(frozen=True)
class Asked:
    """One picture: when it joins, under what, and how it is drawn."""

    at: int
    under: str
    steps: int
    guidance: float
    seed: int

    @property
    def document(self) -> Document:
        """What it is of."""
        return Document("", "", f"client {self.seed}", str(self.seed))


CROWD = [
    Asked(0, "a", 6, 3.0, 1),
    Asked(0, "backbone", 4, 1.0, 2),
    Asked(1, "b until 0.5 then a=0.7,c=0.7", 5, 2.0, 3),
    Asked(2, "a=0.5,b=0.5", 7, 1.0, 4),
    Asked(5, "c=1.5,a=-0.5,b=0.2", 4, 4.0, 5),
    Asked(5, "a", 4, 1.0, 1),
    Asked(9, "b", 8, 2.0, 6),  # all guided from here on
]


def loud(denoiser: DiffusionBackbone) -> dict[str, Tree]:
    """Three adapters of several ranks that change much."""
    layers, found = lora.targets(denoiser.network, denoiser.targets), {}
    for name, rank in RANKS.items():
        draw = torch.Generator().manual_seed(rank)
        fresh = lora.fresh(layers, rank, draw)
        found[name] = {key: value + 0.3 * torch.randn(value.shape, generator=draw) for key, value in fresh.items()}
    return found


def adapters(trees: Mapping[str, Tree]) -> dict[str, Adapter]:
    """Each as the server knows it."""
    cards = {name: Card(kind="image", backbone="", hash=digest(one), rank=RANKS[name]) for name, one in trees.items()}
    return {name: Adapter(cards[name], lambda one=one: one) for name, one in trees.items()} | {"backbone": BARE}


def course(text: str, known: Mapping[str, Adapter]) -> Course:
    return [(until, {known[name]: weight for name, weight in mixed.items()}) for until, mixed in stages(text)]


def served(denoiser: DiffusionBackbone, trees: Mapping[str, Tree], crowd: Sequence[Asked]) -> list[Tensor]:
    """What the batch draws of each."""
    known, heard = adapters(trees), [list[Event]() for _ in crowd]
    jobs = [
        Job(Draw(one.document, one.steps, one.guidance, one.seed), course(one.under, known), told.append)
        for one, told in zip(crowd, heard, strict=True)
    ]
    with Bank(denoiser.network, denoiser.targets, RANK, slots=len(trees)) as bank:
        batch, step = Drawing(denoiser, Slots(bank)), 0
        while len(batch) or any(one.at >= step for one in crowd):
            for one, job in zip(crowd, jobs, strict=True):
                if one.at == step:
                    batch.join(job)
            if len(batch):
                batch.step()
            step += 1
    return [picture_of(told) for told in heard]


def picture_of(told: Sequence[Event]) -> Tensor:
    drawn, ended = told
    assert isinstance(drawn, Drawn)
    assert isinstance(ended, Ended)
    return drawn.picture


def off(a: Tensor, b: Tensor) -> int:
    """How many levels of a byte apart."""
    return int((a.int() - b.int()).abs().max())


def merged(denoiser: DiffusionBackbone, parts: Mapping[str, float], trees: Mapping[str, Tree]) -> DiffusionBackbone:
    """The denoiser with every product added to a copy of its weights."""
    changed: nn.Module = copy.deepcopy(denoiser.network)
    for name, weight in parts.items():
        for pair in lora.pairs(trees.get(name, {})):
            layer: Any = changed.get_submodule(pair.path)
            layer.weight.data += weight * (pair.b.flatten(1) @ pair.a.flatten(1)).view(layer.weight.shape)
    return replace(denoiser, network=changed)


def painted(denoiser: DiffusionBackbone, one: Asked) -> Tensor:
    draw = seeds.generator(one.seed, -1, "", "sample")
    return denoiser.paint([one.document], [draw], steps=one.steps, guidance=one.guidance)[0]


def of_kind(kind: str, denoisers: Denoisers) -> DiffusionBackbone:
    """One of the tiny denoisers, or one of them under another scheduler."""
    if kind in KINDS:
        return denoisers[kind]
    scheduler: Any = getattr(pytest.importorskip("diffusers"), kind)
    return replace(denoisers["stable"], scheduler=scheduler.from_config(denoisers["stable"].scheduler.config))


@pytest.mark.parametrize("kind", [*KINDS, *SCHEDULERS])
def test_any_batch_is_each_alone_and_merged_and_as_generated(kind: str, tiny_run: Run, denoisers: Denoisers) -> None:
    denoiser = of_kind(kind, denoisers)
    trees = loud(denoiser)
    together = served(denoiser, trees, CROWD)
    alone = [served(denoiser, trees, [replace(one, at=0)])[0] for one in CROWD]
    assert [off(one, two) <= LEVEL for one, two in zip(together, alone, strict=True)] == [True] * len(CROWD)
    for one, picture in zip(CROWD, together, strict=True):
        parts = stages(one.under)
        bare = painted(denoiser, one)
        assert (off(picture, bare) > LEVEL) == (one.under != "backbone")
        if len(parts) == 1:
            assert off(picture, painted(merged(denoiser, parts[0][1], trees), one)) <= LEVEL
    with Bank(denoiser.network, denoiser.targets, RANK) as bank:
        voice = Sampler(tiny_run, denoiser, bank, {name: bank.layout.vector(one) for name, one in trees.items()})
        for one, picture in zip(CROWD, together, strict=True):
            wish = Wish(one.under, one.document, one.seed)
            (generated,) = voice.paint([wish], steps=one.steps, guidance=one.guidance)
            assert off(picture, generated) <= LEVEL


def test_a_swap_in_mid_batch_changes_no_running_row_and_every_later_one(denoisers: Denoisers) -> None:
    """Two adapters and two slots: the newer version takes the older one's slot as soon as nobody uses that."""
    denoiser = denoisers["pixart"]
    trees = loud(denoiser)
    known = adapters(trees)
    before, beside, after = (Asked(0, name, steps, 2.0, 7) for name, steps in (("a", 6), ("b", 9), ("c", 4)))
    heard: dict[str, list[Event]] = {name: [] for name in "abc"}

    def job(one: Asked) -> Job:
        wish = Draw(one.document, one.steps, one.guidance, one.seed)
        return Job(wish, course(one.under, known), heard[one.under].append)

    with Bank(denoiser.network, denoiser.targets, RANK, slots=2) as bank:
        batch = Drawing(denoiser, Slots(bank))
        batch.join(job(before))
        batch.join(job(beside))
        for _ in range(6):
            batch.step()
        batch.join(job(after))
        while len(batch):
            batch.step()
    assert batch.slots.evictions == 1
    for one in (before, beside, after):
        picture = picture_of(heard[one.under])
        assert off(picture, painted(merged(denoiser, {one.under: 1.0}, trees), one)) <= LEVEL
        assert off(picture, painted(denoiser, one)) > LEVEL


def test_a_row_that_turns_to_nan_is_alone_in_that(denoisers: Denoisers) -> None:
    denoiser = denoisers["flow"]
    trees = loud(denoiser)
    known, told, others = adapters(trees), list[Event](), [list[Event](), list[Event]()]
    wishes = [Draw(one.document, one.steps, one.guidance, one.seed) for one in CROWD[:2]]
    with Bank(denoiser.network, denoiser.targets, RANK, slots=3) as bank:
        batch = Drawing(denoiser, Slots(bank))
        batch.join(Job(wishes[0], course("a", known), others[0].append))
        batch.join(Job(Draw(CROWD[2].document, 5, 1e38, 3), course("b", known), told.append))
        batch.join(Job(wishes[1], course("backbone", known), others[1].append))
        while len(batch):
            batch.step()
    assert len(told) == 1
    assert isinstance(told[0], Broken)
    assert "turned to NaN or infinity at step" in str(told[0].error)
    for one, heard in zip(CROWD, others, strict=False):
        assert off(picture_of(heard), served(denoiser, trees, [one])[0]) <= LEVEL
