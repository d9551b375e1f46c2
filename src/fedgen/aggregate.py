"""How updates become one adapter: a rule opens a fold, which takes updates in any order and closes to the same."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from fedgen import lora, tree
from fedgen.errors import TreeError
from fedgen.records import Tree, Update


class Fold(Protocol):
    """Updates under way."""

    @property
    def told(self) -> Mapping[str, float]:
        """What a round's line should say of the folding, once it is closed."""

    def add(self, update: Update) -> None:
        """Take one update in."""

    def close(self) -> Tree:
        """The adapter they come to."""


class Aggregate(Protocol):
    """A rule that makes one adapter of many."""

    @property
    def anew(self) -> bool:
        """Whether it factors anew, so that the new factors are not to be compared with the old ones."""

    def widest(self, rank: int) -> int:
        """The rank that it makes at most of updates of this one."""

    def fold(self, like: Tree) -> Fold:
        """A new fold for updates of an adapter shaped like this one."""


def weight_of(update: Update, weight: Literal["examples", "uniform"]) -> float:
    """How much an update counts."""
    return float(update.examples) if weight == "examples" else 1.0


@dataclass(frozen=True)
class Average:
    """The weighted mean of the factors A and B, each apart (FedIT): cheap, and off by their covariance."""

    weight: Literal["examples", "uniform"] = "examples"
    anew: ClassVar[bool] = False

    def widest(self, rank: int) -> int:
        """The same."""
        return rank

    def fold(self, like: Tree) -> Fold:
        """A fold that keeps one sum, however many updates come."""
        return _Mean(self, like)


class _Mean:
    told: ClassVar[Mapping[str, float]] = {}

    def __init__(self, rule: Average, like: Tree) -> None:
        self.rule, self.like, self.sum = rule, like, tree.Sum()

    def add(self, update: Update) -> None:
        tree.check(update.adapter, self.like, f"update of client '{update.client}'")
        self.sum.add(update.adapter, weight_of(update, self.rule.weight))

    def close(self) -> Tree:
        return self.sum.mean()


@dataclass(frozen=True)
class Exact:
    """The weighted mean of the products B A, as the best factors of the offered rank: takes updates of any rank."""

    weight: Literal["examples", "uniform"] = "examples"
    anew: ClassVar[bool] = True

    def widest(self, rank: int) -> int:
        """The same."""
        return rank

    def fold(self, like: Tree) -> Fold:
        """A fold that keeps the factors until the end, as their products have no shorter sum."""
        return _Stack(self, like)


class _Stack:
    told: ClassVar[Mapping[str, float]] = {}

    def __init__(self, rule: Exact, like: Tree) -> None:
        self.rule, self.like = rule, like
        self.updates: dict[str, Update] = {}

    def add(self, update: Update) -> None:
        lora.check_layers(update.adapter, self.like, f"update of client '{update.client}'")
        self.updates[update.client] = update

    def close(self) -> Tree:
        weights = {name: weight_of(update, self.rule.weight) for name, update in self.updates.items()}
        whole = sum(weights.values())
        if not whole:
            raise TreeError("mean: nothing was added")
        parts = [(weights[name] / whole, self.updates[name].adapter) for name in sorted(weights)]
        return lora.best(lora.product_sum(parts), lora.rank(self.like))


AGGREGATES = {"average": Average, "exact": Exact}
