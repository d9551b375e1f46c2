"""How well an adapter knows held-out rows: summed loss, and what it comes to per token, per word and per byte."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedgen.backbones import Backbone
from fedgen.bank import Bank
from fedgen.data.deal import count, join, take
from fedgen.records import Rows


@dataclass(frozen=True)
class Score:
    """Summed loss in nats over so many terms (tokens, for text), words and bytes."""

    loss: float
    terms: int
    words: int = 0
    bytes: int = 0

    @property
    def per_term(self) -> float:
        """Perplexity per token."""
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


@torch.no_grad()
def score(backbone: Backbone, bank: Bank, tasks: Sequence[tuple[Tensor, Rows]], batch: int = 16) -> list[Score]:
    """Score each adapter's line on its rows; rows of all tasks share the passes."""
    owner = torch.cat([torch.full((count(rows),), at) for at, (_, rows) in enumerate(tasks)])
    rows = join([rows for _, rows in tasks])
    lines = torch.stack([line for line, _ in tasks]).to(bank.lines)
    losses, terms = torch.zeros(len(owner), dtype=torch.float64), torch.zeros(len(owner), dtype=torch.long)
    for part in torch.arange(len(owner)).split(batch):
        with bank.carry(lines[owner[part]]):
            sums, counts = backbone.losses(backbone.draw(take(rows, part), torch.Generator().manual_seed(0)))
        losses[part], terms[part] = sums.double().cpu(), counts.cpu()
    none = torch.zeros(len(owner), dtype=torch.long)
    words, size = rows.get("words", none), rows.get("bytes", none)
    return [
        Score(losses[own].sum().item(), *(int(numbers[own].sum()) for numbers in (terms, words, size)))
        for own in (owner == at for at in range(len(tasks)))
    ]


@dataclass(frozen=True)
class Gains:
    """What adapters gained on held-out rows over many clients: mean and spread of the relative fall of perplexity."""

    mean: float
    spread: float
    worst_decile: float
    gained: int
    clients: int


def gains(before: Mapping[str, Score], after: Mapping[str, Score]) -> Gains:
    """The relative fall of each client's perplexity from one adapter to another; the worst decile is a mean."""
    falls = sorted(1 - after[name].per_term / before[name].per_term for name in before)
    n = len(falls)
    mean = math.fsum(falls) / n
    spread = math.sqrt(math.fsum((fall - mean) ** 2 for fall in falls) / n)
    tenth = falls[: max(1, n // 10)]
    return Gains(mean, spread, math.fsum(tenth) / len(tenth), sum(fall > 0 for fall in falls), n)
