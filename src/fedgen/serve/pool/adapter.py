"""One adapter as the server knows it: its content's name, its card, and how it is read (again)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fedgen import lora, tree
from fedgen.bank import Layout
from fedgen.errors import ServeError
from fedgen.records import Tree
from fedgen.store import Card


@dataclass(frozen=True, eq=False)
class Adapter:
    """A content, wherever it lies. Two of one hash are one; the bare backbone has none."""

    card: Card
    read: Callable[[], Tree]

    @property
    def hash(self) -> str:
        """The content's name."""
        return self.card.hash

    def __hash__(self) -> int:
        return hash(self.hash)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Adapter) and other.hash == self.hash


BARE = Adapter(Card(kind="", backbone=""), dict)
"""No adapter at all: slot 0."""

Mixture = Mapping[Adapter, float]  # adapters, and how much of each
Course = Sequence[tuple[float, Mixture]]  # mixtures in turn, and until which share of the steps each; text has one


def sound(adapter: Adapter, layout: Layout) -> Tree:
    """Read an adapter, and refuse one that is not what its hash says, not all numbers, or too wide for the bank."""
    short = adapter.hash[:12]
    if not adapter.card.rank:
        raise ServeError(f"adapter {short}: is the change of a full model, and a bank holds pairs of factors alone")
    found = adapter.read()
    if tree.digest(found) != adapter.hash:
        raise ServeError(f"adapter {short}: what is read now is another content; load it anew under its name")
    if not tree.is_finite(found):
        raise ServeError(f"adapter {short}: holds NaN or infinity; the training that made it went wrong")
    if (rank := lora.rank(found)) > layout.rank:
        wide = f"has rank {rank}, wanted at most {layout.rank}"
        raise ServeError(f"adapter {short}: is too wide: {wide}; shrink it, or serve with a higher --rank")
    return found
