"""Rules that average the products B A themselves, and so factor them anew."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from fedgen import factors, lora
from fedgen.aggregate.folds import Fold, Kept, Parts, Weight, alike
from fedgen.errors import TreeError
from fedgen.records import Range, Tree


@dataclass(frozen=True)
class Exact:
    """The weighted mean of the products B A, as the best factors of the offered rank: takes updates of any rank."""

    weight: Weight = "examples"

    def fold(self, like: Tree) -> Fold:
        """A fold that keeps the factors until the end, as their products have no shorter sum."""
        return Kept(partial(alike, like), self.weight, partial(self._end, lora.rank(like)))

    def _end(self, ranks: int, parts: Parts) -> tuple[Tree, Mapping[str, float]]:
        found, tail = lora.compact(parts, ranks)
        return found, {"tail": tail, **_seen(parts, found)}


@dataclass(frozen=True)
class Changes:
    """The adapter plus the weighted mean of the changes of the products, each against what that client was offered.

    That is the nearest adapter of its rank. So a narrow client does not pull to zero what it never held, as it does in
    the mean of the products; where all ranks are one, the two are the same.
    """

    weight: Weight = "examples"

    def fold(self, like: Tree) -> Fold:
        """A fold that keeps the factors until the end, as their products have no shorter sum."""
        return Kept(partial(alike, like), self.weight, partial(self._end, like))

    def _end(self, like: Tree, parts: Parts) -> tuple[Tree, Mapping[str, float]]:
        unseen = _unseen(like, parts)
        found, tail = lora.compact([*parts, (1.0, unseen)] if unseen else parts, lora.rank(like))
        return found, {"tail": tail, **_seen(parts, found)}


def _unseen(like: Tree, parts: Parts) -> Tree:
    """What clients were not offered of an adapter: each of its ranks by the share of those who did not hold it."""
    own = [(share, factors.ranks_of(part)) for share, part in parts]
    if all(ranks == factors.ranks_of(like) for _, ranks in own):
        return {}
    made = []
    for pair in lora.pairs(factors.ordered(like)):
        b, a = lora.product_of(pair)
        held = [(share, ranks[pair.path] // len(a)) for share, ranks in own]
        shares = [math.fsum(share for share, ranks in held if ranks <= at) for at in range(b.shape[2])]
        made.append(lora.pair_of((b * b.new_tensor(shares), a), pair))
    return lora.tree_of(made)


def _seen(parts: Parts, found: Tree) -> dict[str, float]:
    """How far averaging the factors apart would have been off, and how many ranks the outcome really has."""
    return {"cross": lora.apart_error(parts), "breadth": factors.breadth(found)}


@dataclass(frozen=True)
class Residual:
    """The mean of A and B apart, and what it misses of the products in a frozen part of at most this rank (FedEx-LoRA).

    The adapter is the frozen part and then the moving one, which clients train and send; at first it is all moving. The
    paper adds what is missed to the backbone's weights.
    """

    weight: Weight = "examples"
    rank: Annotated[int, Range(1)] = 16

    def fold(self, like: Tree) -> Fold:
        """A fold that keeps the moving parts until the end."""
        return Kept(partial(alike, like), self.weight, partial(self._end, like))

    def _end(self, like: Tree, parts: Parts) -> tuple[Tree, Mapping[str, float]]:
        ranks = sorted({lora.rank(part) for _, part in parts})
        if len(ranks) != 1:
            raise TreeError(f"residual: wanted moving parts of one rank, came {ranks}; give all devices one rank")
        frozen, _ = factors.split(like, ranks[0])
        moving = lora.tree_of(lora.pair_of(lora.mean_apart(row), row[0][1]) for row in lora.aligned(parts))
        before = [(1.0, frozen)] if frozen else []
        frozen, tail = lora.compact([*before, *parts, (-1.0, moving)], self.rank)
        return lora.product_sum([(1.0, frozen), (1.0, moving)]), {"tail": tail}


@dataclass(frozen=True)
class Stack:
    """The adapter plus the mean of the products of increments of any rank (FLoRA), in the fewest ranks that will do.

    That is the least rank that keeps this share of the `energy`, and at most `rank`.
    """

    weight: Weight = "examples"
    rank: Annotated[int, Range(1)] = 32
    energy: Annotated[float, Range(0, 1, open=True)] = 1.0

    def fold(self, like: Tree) -> Fold:
        """A fold that keeps the increments until the end."""
        return Kept(partial(alike, like), self.weight, partial(self._end, like))

    def _end(self, like: Tree, parts: Parts) -> tuple[Tree, Mapping[str, float]]:
        found, tail = factors.fitted(lora.product_sum([(1.0, like), *parts]), self.rank, self.energy)
        return found, {"tail": tail, "rank": float(lora.rank(found)), **_seen(parts, found)}
