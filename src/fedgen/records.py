"""Frozen records that cross floors, and the two shapes of tensors that travel: a tree and a table of rows."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

Tree = dict[str, Tensor]  # an adapter: PEFT state dict, safetensors file and body of a message at once
GLOBAL = "global"  # the name of the adapter of all, and of the one cluster where there is no clustering
Rows = dict[str, Tensor]  # encoded examples: every tensor has one entry an example along its first dimension


@dataclass(frozen=True)
class Range:
    """The numbers a setting may take: from `low` (or above it, if `open`) to `high`."""

    low: float
    high: float = math.inf
    open: bool = False

    def __contains__(self, value: float) -> bool:
        return (self.low < value if self.open else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        least = f"above {self.low:g}" if self.open else f"at least {self.low:g}"
        return least if math.isinf(self.high) else f"{least} and at most {self.high:g}"


@dataclass(frozen=True)
class Document:
    """One text or picture with its holder; `prompt` is read but not learnt, `part` is train, valid, test or none.

    A `picture` is bytes as [channels, height, width], one channel for grey and three for red, green and blue.
    """

    owner: str
    text: str
    prompt: str = ""
    label: str = ""
    part: str = ""
    picture: Tensor | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Client:
    """One holder of private data, encoded for the backbone and dealt into three parts."""

    name: str
    train: Rows
    valid: Rows
    test: Rows


@dataclass(frozen=True)
class Offer:
    """What the server asks of a client.

    `train` this adapter; `check` it on validation rows; or, when the rounds are over, `score` it on test rows beside
    the bare backbone and the client's own adapter.
    """

    round: int
    client: str
    cluster: str
    adapter: Tree
    use: Literal["train", "check", "score"] = "train"


@dataclass(frozen=True)
class Update:
    """What comes back: the trained adapter, on how many examples, and how it went; `up`, `down` are bytes on a wire."""

    round: int
    client: str
    cluster: str
    adapter: Tree
    examples: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    up: int = 0
    down: int = 0


@dataclass(frozen=True)
class Failure:
    """Why nothing came back."""

    round: int
    client: str
    cluster: str
    reason: str
    down: int = 0


@dataclass(frozen=True)
class State:
    """All that the server carries from round to round: an adapter a cluster, the outer step's memory of each, and which
    cluster a client is in. No clustering is one cluster."""

    round: int
    adapters: Mapping[str, Tree]
    memory: Mapping[str, Tree] = field(default_factory=dict)
    where: Mapping[str, str] = field(default_factory=dict)

    def cluster(self, client: str) -> str:
        """The cluster whose adapter a client is offered."""
        return self.where.get(client, GLOBAL)


@dataclass(frozen=True)
class Report:
    """What one round did."""

    round: int
    clients: tuple[str, ...]
    failures: tuple[Failure, ...]
    metrics: Mapping[str, float]
    up: int
    down: int
    seconds: float


Reply = Update | Failure
Ask = Callable[[Iterable[Offer]], Iterator[Reply]]
