"""How well an adapter knows held-out rows: summed loss, and the measure that it is read in, by the kind of run."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedgen.backbones import Backbone
from fedgen.data.deal import count, join, take
from fedgen.records import Rows
from fedgen.weights import AnyBank


@dataclass(frozen=True)
class Score:
    """Summed loss over so many terms: nats over tokens, words and bytes, or squared error over pictures."""

    loss: float
    terms: int
    words: int = 0
    bytes: int = 0

    @property
    def per_term(self) -> float:
        """Perplexity per token, for text."""
        return _exp(self.loss / self.terms)

    @property
    def per_word(self) -> float:
        """Perplexity per word: comparable between tokenizers."""
        return _exp(self.loss / max(self.words, 1))

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte: comparable between languages too."""
        return self.loss / math.log(2) / max(self.bytes, 1)


def _exp(nats: float) -> float:
    return math.inf if nats > 709 else math.exp(nats)  # beyond that no float can say it


def total(scores: Iterable[Score]) -> Score:
    """All scores as one."""
    parts = [(score.loss, score.terms, score.words, score.bytes) for score in scores]
    loss, terms, words, size = zip(*parts, strict=True) if parts else ((), (), (), ())
    return Score(math.fsum(loss), sum(terms), sum(words), sum(size))


@dataclass(frozen=True)
class Yardstick:
    """The measure of a kind of run: its name and its key in files, of what, in terms of what, and shown how exactly.

    `loss` is the unit of the loss and `meaning` what the measure makes of it; for every one of them lower is better.
    """

    name: str
    key: str
    material: str
    term: str
    loss: str
    meaning: str
    digits: int
    read: Callable[[float], float]

    @property
    def unit(self) -> str:
        """What the measure is taken per."""
        return f"per {self.term}"

    def of(self, score: Score) -> float:
        """The measure of a score: of its mean loss a term."""
        return self.read(score.loss / score.terms)


def yardstick_of(facts: Mapping[str, Any]) -> Yardstick:
    """The measure of a run, by what its facts say of its kind."""
    return YARDSTICKS[facts.get("kind", "text")]


@torch.no_grad()
def score(backbone: Backbone, bank: AnyBank, tasks: Sequence[tuple[Tensor, Rows]], batch: int = 16) -> list[Score]:
    """Score each adapter's line on its rows; rows of all tasks share the passes.

    A row counts once, with the mean of its looks. What chance adds to a row depends on its place among its task's rows
    and on nothing else, so every adapter, round and batch size meets the same.
    """
    looks = backbone.looks
    places = [torch.arange(count(rows)).repeat_interleave(looks) for _, rows in tasks]
    owner, place = torch.cat([torch.full_like(own, at) for at, own in enumerate(places)]), torch.cat(places)
    lines = torch.stack([line for line, _ in tasks]).to(bank.lines)
    draws = [torch.Generator().manual_seed(0) for _ in tasks]
    losses, terms = torch.zeros(len(owner), dtype=torch.float64), torch.zeros(len(owner), dtype=torch.long)
    for part in bank.passes(owner.tolist(), batch):
        whose, which = owner[part], place[part]
        found = [(at, take(tasks[at][1], which[whose == at])) for at in whose.unique().tolist()]
        rows = join([backbone.draw(own, draws[at]) for at, own in found])
        with bank.carry(lines[whose[: bank.at_once]]):
            sums, counts = backbone.losses(rows)
        losses[part], terms[part] = sums.double().cpu(), counts.cpu()
    sizes = [len(own) for own in places]
    return [
        Score(loss.sum().item() / looks, int(number.sum()) // looks, _sum(rows, "words"), _sum(rows, "bytes"))
        for loss, number, (_, rows) in zip(losses.split(sizes), terms.split(sizes), tasks, strict=True)
    ]


def _sum(rows: Rows, column: str) -> int:
    """The sum of a column; none where it was not counted."""
    return int(rows[column].sum()) if column in rows else 0


@dataclass(frozen=True)
class Gains:
    """What adapters gained on held-out rows over many clients: mean and spread of the relative fall of the measure."""

    mean: float
    spread: float
    worst_decile: float
    gained: int
    clients: int


def fall(before: Score, after: Score, yardstick: Yardstick) -> float:
    """The relative fall of the measure from one adapter to another."""
    return 1 - yardstick.of(after) / yardstick.of(before)


def gains(before: Mapping[str, Score], after: Mapping[str, Score], yardstick: Yardstick) -> Gains:
    """The relative fall of each client's measure from one adapter to another; the worst decile is a mean."""
    falls = sorted(fall(before[name], after[name], yardstick) for name in before)
    n = len(falls)
    mean = math.fsum(falls) / n
    spread = math.sqrt(math.fsum((each - mean) ** 2 for each in falls) / n)
    tenth = falls[: max(1, n // 10)]
    return Gains(mean, spread, math.fsum(tenth) / len(tenth), sum(each > 0 for each in falls), n)


YARDSTICKS: dict[str, Yardstick] = {
    "text": Yardstick(
        name="perplexity",
        key="perplexity",
        material="text",
        term="token",
        loss="nats a token",
        meaning="e to the mean loss in nats",
        digits=2,
        read=_exp,
    ),
    "image": Yardstick(
        name="denoising loss",
        key="denoising",
        material="pictures",
        term="picture",
        loss="squared error",
        meaning="the mean squared error of the denoiser over a picture, weighted as in training",
        digits=4,
        read=float,
    ),
}
