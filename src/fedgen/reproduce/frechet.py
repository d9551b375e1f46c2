"""How far the pictures that a run's shared adapter draws are from real ones, round by round."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedgen import seeds
from fedgen.backbones import DiffusionBackbone
from fedgen.data.arrays import Npz
from fedgen.errors import DataError
from fedgen.exhibit import features_of
from fedgen.quality import called, extract, frechet, moments
from fedgen.records import GLOBAL, Document
from fedgen.reproduce.cifar10 import ANIMALS, REAL, pictures
from fedgen.run import KEPT, Run
from fedgen.sample import BARE, Sampler, sampler

DRAWN, STEPS, CROWD, SEED = 300, 10, 50, 0  # the same noise for every run and round


def measured(run: Run, rounds: Sequence[int]) -> dict[str, Any]:
    """The distance after each of these rounds, 0 being the backbone alone; the run must have kept its adapters.

    `real` is what as many pictures of the clients would have.
    """
    plan = run.plan
    if not isinstance(plan.data, Npz):
        raise DataError(f"frechet: wanted a run over data.kind = 'npz', came {type(plan.data).__name__}")
    held = Path(plan.data.path)
    features, voice = features_of(plan.quality), sampler(run)
    real = stacked(pictures(held.with_name(REAL), ANIMALS))
    known, title = moments(extract(features, real)), called(features, min(DRAWN, len(real)))

    def distance(made: Tensor) -> float:
        return round(frechet(moments(extract(features, made)), known), 3)

    found = [distance(drawn(voice, f"{GLOBAL}{KEPT}{turn}" if turn else BARE)) for turn in rounds]
    own = distance(stacked(in_turn(pictures(held, ANIMALS))[:DRAWN]))
    return {"rounds": list(rounds), "distance": found, "features": title, "pictures": DRAWN, "real": own}


def drawn(voice: Sampler, adapter: str) -> Tensor:
    """Pictures of one adapter, or of a whole model: every class as often."""
    if not isinstance(voice.backbone, DiffusionBackbone):
        raise DataError(f"frechet: '{voice.backbone.name}' writes text and draws no pictures")
    asked = [Document("", "", label=ANIMALS[at % len(ANIMALS)]) for at in range(DRAWN)]
    draws = [seeds.generator(SEED, -1, str(at), "drawn") for at in range(DRAWN)]
    parts, guidance = range(0, DRAWN, CROWD), voice.run.plan.quality.guidance
    with voice.bank.carry(voice.line(adapter)[None]):
        made = [
            voice.backbone.paint(asked[at : at + CROWD], draws[at : at + CROWD], steps=STEPS, guidance=guidance)
            for at in parts
        ]
    return torch.cat(made)


def in_turn(documents: Sequence[Document]) -> list[Document]:
    """The documents label by label in turn, as long as all labels have one."""
    by_label = [[document for document in documents if document.label == label] for label in ANIMALS]
    return list(chain.from_iterable(zip(*by_label, strict=False)))


def stacked(documents: Sequence[Document]) -> Tensor:
    """The documents' pictures in one tensor."""
    return torch.stack([document.picture for document in documents if document.picture is not None])
