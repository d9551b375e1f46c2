"""Ranks by layer and client under one budget: what is worth most, by the numbers that it takes, is given first."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedgen import factors, lora, tree
from fedgen.devices import Hardware
from fedgen.records import Tree


@dataclass(frozen=True)
class Wish:
    """One client's: the adapter it is to be offered, its ranks in order, the widest it carries, and its need."""

    adapter: Tree
    most: int
    need: float = 1.0


def spread(wishes: Sequence[Wish], mean: float) -> list[dict[str, int]]:
    """Each client's rank by layer: as many numbers in all as if each had rank `mean`, and one rank of each at least.

    One threshold holds for all: who has something worth as much is given it, or if it is too much for all, nobody is.
    """
    adapters = {id(wish.adapter): wish.adapter for wish in wishes}  # those of one cluster are offered one
    layers = {at: _layers(adapter) for at, adapter in adapters.items()}
    rows = [row.of(wish) for wish in wishes for row in layers[id(wish.adapter)]]
    worth = torch.cat([row.worth[1:] for row in rows])
    cost = torch.cat([torch.full((len(row.worth) - 1,), float(row.cost)).double() for row in rows])
    whole = sum(row.cost / row.step for row in rows)
    least = _threshold(worth, cost, mean * whole - sum(row.cost for row in rows))
    given = iter([row.step * (1 + int((row.worth[1:] >= least).sum())) for row in rows])
    return [{pair.path: next(given) for pair in lora.pairs(wish.adapter)} for wish in wishes]


@dataclass(frozen=True)
class _Row:
    """A layer: what each of its ranks is worth, the best first, in steps of so many, of so many numbers."""

    worth: Tensor
    step: int
    cost: int

    def of(self, wish: Wish) -> "_Row":
        """The same to one client, of which it carries so much."""
        return replace(self, worth=wish.need * self.worth[: max(wish.most // self.step, 1)])


def _layers(adapter: Tree) -> list[_Row]:
    energies, rows = factors.energies(adapter), []
    for pair in lora.pairs(adapter):
        step = lora.groups_of(pair)
        cost = (pair.a.numel() + pair.b.numel()) * step // len(pair.a)
        rows.append(_Row(energies[pair.path] / cost, step, cost))
    return rows


def _threshold(worth: Tensor, cost: Tensor, budget: float) -> float:
    """The least worth that is given, so that all of that worth and more costs no more than the budget."""
    order = worth.argsort(descending=True, stable=True)
    levels, spent = worth[order], cost[order].cumsum(0)
    last = torch.ones(len(levels), dtype=torch.bool)  # of those of one worth
    last[:-1] = levels[1:] < levels[:-1]
    fits = levels[last & (spent <= budget)]
    return float(fits[-1]) if len(fits) else math.inf


def moved(ordered: Tree, update: Tree) -> float:
    """The squared length of an update's change, by its numbers: more of them move further, but need no more for it.

    The change is against what its client was offered of an adapter in order.
    """
    offered = factors.heads(ordered, factors.ranks_of(update))
    change = lora.product_sum([(1.0, update), (-1.0, offered)])
    return max(lora.inner(change, change), 0.0) / tree.size(update)


def by_kind(ranks: Mapping[str, Mapping[str, float]], hardware: Mapping[str, Hardware]) -> dict[str, dict[str, float]]:
    """These means and, where clients' devices are known, that over the clients of each kind of them."""
    kinds: dict[str, list[float]] = {}
    for name, mean in ranks.get("clients", {}).items():
        if name in hardware:
            kinds.setdefault(hardware[name].kind, []).append(mean)
    found = {kind: sum(means) / len(means) for kind, means in sorted(kinds.items())}
    return {key: dict(value) for key, value in ranks.items()} | ({"devices": found} if found else {})


def mean_ranks(layers: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, float]]:
    """Of clients' ranks by layer, the mean over clients of each layer and over layers of each client; none of none."""
    if not layers:
        return {}
    by_client = {name: sum(ranks.values()) / len(ranks) for name, ranks in sorted(layers.items())}
    paths = sorted(next(iter(layers.values())))
    by_layer = {path: sum(ranks[path] for ranks in layers.values()) / len(layers) for path in paths}
    return {"layers": by_layer, "clients": by_client}
