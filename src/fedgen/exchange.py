"""What clusters learn from each other: a share of the others' adapters, or of the steps they took in this round.

Clusters are taken in the order of their sorted names, which is that of the rows of `likeness` and of `weights`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import torch
from torch import Tensor

from fedgen import lora, tree
from fedgen.errors import TreeError
from fedgen.records import Range, Tree

Of = Literal["adapters", "steps"]
On = Literal["products", "factors"]
Share = Annotated[float, Range(0, 1)]
Trees = Mapping[str, Tree]


@dataclass(frozen=True)
class Mixed:
    """What the adapters became: row c of `weights` has the shares that all have in the new one of c.

    They are shares of whole adapters and sum to one, or of steps, of which its own keeps all it had. `error` is how
    much of that sum's energy the new adapter misses, as a share.
    """

    adapters: Mapping[str, Tree]
    weights: Tensor
    error: Mapping[str, float]


class Exchange(Protocol):
    """A rule by which clusters learn from each other."""

    def mix(self, adapters: Trees, likeness: Tensor, sizes: Mapping[str, float], turn: int, before: Trees) -> Mixed:
        """The clusters' adapters after this round's exchange, where `before` are those that it began with.

        `sizes` are their examples, `likeness` lies in -1..1.
        """


@dataclass(frozen=True)
class Alone:
    """Clusters learn nothing from each other."""

    def mix(self, adapters: Trees, likeness: Tensor, sizes: Mapping[str, float], turn: int, before: Trees) -> Mixed:
        """Every adapter as it is."""
        return _mixed(adapters, torch.eye(len(adapters), dtype=torch.float64), "products")


@dataclass(frozen=True)
class Neighbours:
    """Each cluster takes from the others, most from those most like it: softmax(likeness / temperature).

    It takes a share of `strength`, in later rounds `fade` times as much each; with `thin` above 0 the odds of taking
    grow with that power as data gets scarcer than the mean. Taken are shares `of` this round's steps, which are added
    to its own, or of whole adapters, for which as much of its own gives way.
    """

    strength: Share = 0.5
    temperature: Annotated[float, Range(0, open=True)] = 1.0
    fade: Share = 1.0
    thin: Annotated[float, Range(0, 4)] = 0.0
    of: Of = "steps"
    on: On = "products"

    def mix(self, adapters: Trees, likeness: Tensor, sizes: Mapping[str, float], turn: int, before: Trees) -> Mixed:
        """Its own, and as much as the pull says from the others."""
        size = _sizes(adapters, sizes)
        logits = _likeness(likeness, size) / self.temperature
        lends = (size > 0).expand_as(logits) & ~torch.eye(len(size), dtype=torch.bool)
        others = logits.masked_fill(~lends, -torch.inf).softmax(1).nan_to_num(0.0)  # a row without others is NaN
        pull = pulls(self.strength * self.fade ** (turn - 1), self.thin, size) * others.sum(1)
        return _taken(adapters, pull, others, self, before)


@dataclass(frozen=True)
class Toward:
    """Each cluster takes from the mean of all, weighted by their examples; settings are those of `Neighbours`."""

    strength: Share = 0.5
    fade: Share = 1.0
    thin: Annotated[float, Range(0, 4)] = 0.0
    of: Of = "steps"
    on: On = "products"

    def mix(self, adapters: Trees, likeness: Tensor, sizes: Mapping[str, float], turn: int, before: Trees) -> Mixed:
        """Its own, and as much as the pull says from the mean."""
        size = _sizes(adapters, sizes)
        pull = pulls(self.strength * self.fade ** (turn - 1), self.thin, size)
        return _taken(adapters, pull, _means(size), self, before)


@dataclass(frozen=True)
class SharedA:
    """One A for all, the mean weighted by their examples, and each cluster's own B; `weights` are those of A."""

    def mix(self, adapters: Trees, likeness: Tensor, sizes: Mapping[str, float], turn: int, before: Trees) -> Mixed:
        """Each B beside the mean A."""
        size = _sizes(adapters, sizes)
        found = _mixed(adapters, _rows((size > 0).double(), _means(size)), "factors")
        new = {
            name: mixed | {key: half for key, half in adapters[name].items() if key.endswith(lora.B_END)}
            for name, mixed in found.adapters.items()
        }
        return Mixed(new, found.weights, dict.fromkeys(found.error, 0.0))


def pulls(strength: float, thin: float, size: Tensor) -> Tensor:
    """How much of each cluster's adapter comes from others: `strength` at the mean size.

    The odds are (mean / size) ** thin of that, so a poor cluster leans on others and a rich one hardly moves; thin = 1
    is how a mean of so few examples is best shrunk. A cluster that has emptied keeps its adapter.
    """
    has = size > 0
    rich = (size / size[has].mean()).pow(thin)
    return torch.where(has, strength / (strength + (1 - strength) * rich), 0.0)


def _means(size: Tensor) -> Tensor:
    """Every row the clusters' shares of all examples."""
    return (size / size.sum().clamp(min=lora.TINY)).expand(len(size), -1)


def _rows(pull: Tensor, others: Tensor) -> Tensor:
    return torch.diag(1 - pull) + pull[:, None] * others


def _sizes(adapters: Mapping[str, Tree], sizes: Mapping[str, float]) -> Tensor:
    found = torch.tensor([sizes.get(name, torch.nan) for name in sorted(adapters)], dtype=torch.float64)
    if not (found.isfinite() & (found >= 0)).all():
        raise TreeError(f"exchange: wanted how many examples each of {sorted(adapters)} has, came {dict(sizes)}")
    return found


def _likeness(likeness: Tensor, size: Tensor) -> Tensor:
    wanted = (len(size), len(size))
    if likeness.shape != wanted or not likeness.isfinite().all():
        came = f"{tuple(likeness.shape)}" + (", not all of them numbers" if likeness.shape == wanted else "")
        raise TreeError(f"exchange: wanted the likeness of {wanted} clusters, came {came}; cluster them anew")
    return likeness.detach().cpu().double()


def _taken(adapters: Trees, pull: Tensor, others: Tensor, rule: Neighbours | Toward, before: Trees) -> Mixed:
    if rule.of == "adapters":
        return _mixed(adapters, _rows(pull, others), rule.on)
    others = others - torch.diag(others.diagonal())  # its own step it has already
    return _mixed(adapters, torch.eye(len(pull)).double() + pull[:, None] * others, rule.on, before)


def _mixed(adapters: Trees, weights: Tensor, on: On, before: Trees | None = None) -> Mixed:
    """Sums of the adapters by the rows of weights; or with `before` of the steps since, on top of each own adapter."""
    names = sorted(adapters)
    new, error = {}, {}
    for name, row, own in zip(names, weights, torch.eye(len(names)).double(), strict=True):
        if row.equal(own):
            new[name], error[name] = adapters[name], 0.0
            continue
        parts = _shares(adapters, row)
        if before is not None:
            parts = [(1.0, adapters[name]), *_shares(adapters, row - own), *_shares(before, own - row)]
        new[name], error[name] = _sum(parts, adapters[name], f"exchange of factors with '{name}'", on)
    return Mixed(new, weights, error)


def _shares(adapters: Trees, row: Tensor) -> list[tuple[float, Tree]]:
    return [(share, adapters[name]) for name, share in zip(sorted(adapters), row.tolist(), strict=True) if share]


def _sum(parts: list[tuple[float, Tree]], like: Tree, where: str, on: On) -> tuple[Tree, float]:
    """The sum at the rank of `like`, and the share of its energy that is missed."""
    if on == "products":
        return lora.compact(parts, lora.rank(like))
    for _, other in parts:
        tree.check(other, like, where)
    summed = {key: torch.stack([share * one[key].double() for share, one in parts]).sum(0) for key in like}
    return {key: half.to(like[key].dtype) for key, half in summed.items()}, lora.apart_error(parts) ** 2


EXCHANGES = {"none": Alone, "neighbours": Neighbours, "global": Toward, "shared_a": SharedA}
