"""Which token comes next: one rule, by row, for a text that is written alone and for a crowd of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Taste:
    """How one row chooses: at temperature 0 the likeliest, else by chance among those that hold `top_p` of it."""

    draw: torch.Generator
    temperature: float = 0.0
    top_p: float = 1.0


def choose(logits: Tensor, tastes: Sequence[Taste]) -> list[int]:
    """The next token of each row [n, vocabulary], or -1 where its largest number is not finite.

    A row that chooses by chance takes one number from its own generator, so its text is not its neighbours' business.
    """
    largest, best = logits.max(-1)
    warm = [at for at, taste in enumerate(tastes) if taste.temperature > 0]
    if warm:
        best[warm] = _drawn(logits[warm], largest[warm], [tastes[at] for at in warm])
    return best.masked_fill_(~largest.isfinite(), -1).tolist()


def _drawn(logits: Tensor, largest: Tensor, tastes: Sequence[Taste]) -> Tensor:
    """Where each row's chance falls among its shares, laid end to end in the order of the vocabulary."""
    chances = [torch.rand((), generator=taste.draw).item() for taste in tastes]
    temperature = logits.new_tensor([taste.temperature for taste in tastes], dtype=torch.float64)
    shares = ((logits.double() - largest.double()[:, None]) / temperature[:, None]).softmax(-1)
    narrow = [at for at, taste in enumerate(tastes) if taste.top_p < 1]
    if narrow:
        top_p = logits.new_tensor([tastes[at].top_p for at in narrow], dtype=torch.float64)
        shares[narrow] = _kept(shares[narrow], top_p[:, None])
    ends = shares.cumsum(-1)
    falls = ends[:, -1:] * logits.new_tensor(chances, dtype=torch.float64)[:, None]
    return torch.searchsorted(ends, falls, right=True)[:, 0].clamp_(max=logits.shape[1] - 1)


def _kept(shares: Tensor, top_p: Tensor) -> Tensor:
    """The fewest of the largest shares that hold `top_p`, the rest zeros; equal shares stay or go together."""
    falling = shares.sort(-1, descending=True).values
    inside = (falling.cumsum(-1) - falling < top_p).sum(-1, keepdim=True)
    return shares.where(shares >= falling.gather(-1, inside.clamp(min=1) - 1), 0.0)
