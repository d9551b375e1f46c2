"""Rules that average factors: each apart, padded, corrected towards the mean of the products, or with one A of all."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch

from fedgen import factors, lora, tree
from fedgen.aggregate.folds import Fold, Kept, Parts, Summed, Weight, said, weight_of, widened
from fedgen.errors import TreeError
from fedgen.records import Range, Tree, Update

GRAIN = 2**-20  # lengths are weighed in whole grains, whose sum is the same in any order; what is shorter counts as one
UNIT = 2**-10  # the length that weighs 1, so that a Sum holds enough behind the point of the shortest


@dataclass(frozen=True)
class Average:
    """The weighted mean of the factors A and B, each apart (FedIT): cheap, and off by their covariance."""

    weight: Weight = "examples"

    def fold(self, like: Tree) -> Fold:
        """A fold that keeps one sum, however many updates come."""
        return Summed(partial(self._read, like))

    def _read(self, like: Tree, update: Update) -> tuple[Tree, float]:
        tree.check(update.adapter, like, said(update))
        return update.adapter, weight_of(update, self.weight)


@dataclass(frozen=True)
class Padded:
    """The mean of A and B apart, narrow updates padded with zeros, by the length of their products (HetLoRA)."""

    weight: Literal["norm", "examples", "uniform"] = "norm"

    def fold(self, like: Tree) -> Fold:
        """A fold that keeps one sum, however many updates come."""
        return Summed(partial(self._read, like))

    def _read(self, like: Tree, update: Update) -> tuple[Tree, float]:
        wide = widened(like, update)
        if self.weight != "norm":
            return wide, weight_of(update, self.weight)
        length = math.sqrt(max(lora.inner(wide, wide), 0.0))
        return wide, max(round(length / GRAIN), 1) * (GRAIN / UNIT)


@dataclass(frozen=True)
class Turned:
    """The mean of B under one A of all, in new factors: A with orthonormal rows, the length in B (FedSVD)."""

    weight: Weight = "examples"

    def fold(self, like: Tree) -> Fold:
        """A fold that keeps one sum, however many updates come."""
        return Summed(partial(self._read, like), factors.turned)

    def _read(self, like: Tree, update: Update) -> tuple[Tree, float]:
        wide = widened(like, update)
        offered = factors.head(like, lora.rank(update.adapter))
        own = [key for key in like if key.endswith(lora.A_END)]
        for key in own:
            if not torch.equal(update.adapter[key], offered[key]):
                raise TreeError(f"{said(update)}: '{key}' is not the one that was offered; clients must train B only")
        return wide | {key: like[key] for key in own}, weight_of(update, self.weight)


@dataclass(frozen=True)
class Fair:
    """The mean of A and B apart, with B corrected towards the mean of the products (LoRA-FAIR).

    The correction D of B is the least squares ||M - (B + D) A||^2 + ridge ||D||^2, M being the mean of the products, in
    closed form; the paper descends a cosine instead.
    """

    weight: Weight = "examples"
    ridge: Annotated[float, Range(0, open=True)] = 0.01

    def fold(self, like: Tree) -> Fold:
        """A fold that keeps the updates, as the mean of A must be known first."""
        return Kept(partial(widened, like), self.weight, self._end)

    def _end(self, parts: Parts) -> tuple[Tree, Mapping[str, float]]:
        return lora.tree_of(self._corrected(row) for row in lora.aligned(parts)), {}

    def _corrected(self, row: Sequence[tuple[float, lora.Pair]]) -> lora.Pair:
        (bs, many), (b, a) = lora.stacked(row), lora.mean_apart(row)
        gram = a @ a.mT
        missing = bs @ (many @ a.mT) - b @ gram
        ridge = self.ridge * torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
        return lora.pair_of((b + torch.linalg.solve(gram + ridge, missing.mT).mT, a), row[0][1])
