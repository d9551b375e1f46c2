"""What clusters learn from each other: each one's adapter becomes a mixture of all, most of it its own.

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

On = Literal["products", "factors"]
Share = Annotated[float, Range(0, 1)]


@dataclass(frozen=True)
class Mixed:
    """What the adapters became: row c of `weights` has the shares that the old ones have in the new one of c.

    `error` is how much of that mixture's energy the new adapter misses, as a share.
    """

    adapters: Mapping[str, Tree]
    weights: Tensor
    error: Mapping[str, float]


class Exchange(Protocol):
    """A rule by which clusters learn from each other."""

    def mix(self, adapters: Mapping[str, Tree], likeness: Tensor, sizes: Mapping[str, float], turn: int) -> Mixed:
        """The clusters' adapters after this round's exchange; `sizes` are their examples, `likeness` lies in -1..1."""


@dataclass(frozen=True)
class Alone:
    """Clusters learn nothing from each other."""

    def mix(self, adapters: Mapping[str, Tree], likeness: Tensor, sizes: Mapping[str, float], turn: int) -> Mixed:
        """Every adapter as it is."""
        return _mixed(adapters, torch.eye(len(adapters), dtype=torch.float64), "products")


@dataclass(frozen=True)
class Neighbours:
    """Pull each cluster towards the others, most to those most like it: softmax(likeness / temperature).

    A cluster of middling size takes `strength` from the others, in later rounds `fade` times as much each; the odds of
    taking grow as data gets scarce, by the power `thin` (0: all take the same).
    """

    strength: Share = 0.1
    temperature: Annotated[float, Range(0, open=True)] = 0.1
    fade: Share = 1.0
    thin: Annotated[float, Range(0, 4)] = 1.0
    on: On = "products"

    def mix(self, adapters: Mapping[str, Tree], likeness: Tensor, sizes: Mapping[str, float], turn: int) -> Mixed:
        """(1 - pull) of its own, and the rest from the others."""
        size = _sizes(adapters, sizes)
        logits = _likeness(likeness, size) / self.temperature
        lends = (size > 0).expand_as(logits) & ~torch.eye(len(size), dtype=torch.bool)
        others = logits.masked_fill(~lends, -torch.inf).softmax(1).nan_to_num(0.0)  # a row without others is NaN
        pull = pulls(self.strength * self.fade ** (turn - 1), self.thin, size) * others.sum(1)
        return _mixed(adapters, _rows(pull, others), self.on)


@dataclass(frozen=True)
class Toward:
    """Pull each cluster towards the mean of all, weighted by their examples; settings are those of `Neighbours`."""

    strength: Share = 0.1
    fade: Share = 1.0
    thin: Annotated[float, Range(0, 4)] = 1.0
    on: On = "products"

    def mix(self, adapters: Mapping[str, Tree], likeness: Tensor, sizes: Mapping[str, float], turn: int) -> Mixed:
        """(1 - pull) of its own, and the rest from the mean."""
        size = _sizes(adapters, sizes)
        pull = pulls(self.strength * self.fade ** (turn - 1), self.thin, size)
        return _mixed(adapters, _rows(pull, _means(size)), self.on)


@dataclass(frozen=True)
class SharedA:
    """One A for all, the mean weighted by their examples, and each cluster's own B; `weights` are those of A."""

    def mix(self, adapters: Mapping[str, Tree], likeness: Tensor, sizes: Mapping[str, float], turn: int) -> Mixed:
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


def _mixed(adapters: Mapping[str, Tree], weights: Tensor, on: On) -> Mixed:
    names = sorted(adapters)
    new, error = {}, {}
    for name, row in zip(names, weights.tolist(), strict=True):
        parts = {other: share for other, share in zip(names, row, strict=True) if share}
        new[name], error[name] = (adapters[name], 0.0) if set(parts) == {name} else _mixture(adapters, parts, name, on)
    return Mixed(new, weights, error)


def _mixture(adapters: Mapping[str, Tree], parts: Mapping[str, float], name: str, on: On) -> tuple[Tree, float]:
    """The mixture at the cluster's own rank, and the share of its energy that is missed."""
    shares = [(share, adapters[other]) for other, share in parts.items()]
    if on == "products":
        return lora.compact(shares, lora.rank(adapters[name]))
    for other in parts:
        tree.check(adapters[other], adapters[name], f"exchange of factors of '{other}' with '{name}'")
    summed = {key: torch.stack([share * one[key].double() for share, one in shares]).sum(0) for key in adapters[name]}
    return {key: half.to(adapters[name][key].dtype) for key, half in summed.items()}, lora.apart_error(shares) ** 2


EXCHANGES = {"none": Alone, "neighbours": Neighbours, "global": Toward, "shared_a": SharedA}
