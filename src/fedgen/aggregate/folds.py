"""What a rule and its fold are, and the two ways to fold: into one sum, or kept until the end."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

from fedgen import lora, tree
from fedgen.errors import TreeError
from fedgen.records import Tree, Update

Weight = Literal["examples", "uniform"]
Parts = Sequence[tuple[float, Tree]]  # adapters and their shares, which sum to 1


class Fold(Protocol):
    """Updates under way; `told` is what the round's line in the journal says of them, once they are closed."""

    told: Mapping[str, float]

    def add(self, update: Update) -> None:
        """Take one update in."""

    def close(self) -> Tree:
        """The adapter they come to."""


class Aggregate(Protocol):
    """A rule that makes one adapter of many."""

    def fold(self, like: Tree) -> Fold:
        """A new fold for updates of an adapter shaped like this one."""


def weight_of(update: Update, weight: Weight) -> float:
    """How much an update counts."""
    return float(update.examples) if weight == "examples" else 1.0


def said(update: Update) -> str:
    """How an error names an update."""
    return f"update of client '{update.client}'"


def alike(like: Tree, update: Update) -> Tree:
    """The update, of any rank, once it is sure that it adapts the layers of `like`."""
    lora.check_layers(update.adapter, like, said(update))
    return update.adapter


def widened(like: Tree, update: Update) -> Tree:
    """The update with zeros up to the rank of `like`."""
    own, most = lora.rank(alike(like, update)), lora.rank(like)
    if own > most:
        raise TreeError(f"{said(update)}: rank {own}, wanted at most {most}, which is the server's")
    return lora.resize(update.adapter, most)


class Summed:
    """One sum, however many updates come."""

    def __init__(self, read: Callable[[Update], tuple[Tree, float]], end: Callable[[Tree], Tree] = dict) -> None:
        self.read, self.end, self.sum = read, end, tree.Sum()
        self.told: Mapping[str, float] = {}

    def add(self, update: Update) -> None:
        """Add what is read of one, by its weight."""
        self.sum.add(*self.read(update))

    def close(self) -> Tree:
        """What the mean ends as."""
        return self.end(self.sum.mean())


class Kept:
    """Every update, as products have no shorter sum; taken by name in the end, so that their order leaves no trace."""

    def __init__(
        self, read: Callable[[Update], Tree], weight: Weight, end: Callable[[Parts], tuple[Tree, Mapping[str, float]]]
    ) -> None:
        self.read, self.weight, self.end = read, weight, end
        self.kept: dict[str, tuple[float, Tree]] = {}
        self.told: Mapping[str, float] = {}

    def add(self, update: Update) -> None:
        """Keep what is read of one, and its weight."""
        self.kept[update.client] = (weight_of(update, self.weight), self.read(update))

    def close(self) -> Tree:
        """What the shares end as."""
        kept = [self.kept[name] for name in sorted(self.kept)]
        whole = sum(weight for weight, _ in kept)
        if not whole:
            raise TreeError("mean: nothing was added")
        made, self.told = self.end([(weight / whole, part) for weight, part in kept])
        return made
