"""Frozen records that cross floors, and the two shapes of tensors that travel: a tree and a table of rows."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

Tree = dict[str, Tensor]  # an adapter: PEFT state dict, safetensors file and body of a message at once
GLOBAL = "global"  # the name of the adapter of all, and of the one cluster where there is no clustering
Use = Literal["train", "check", "score", "encode"]  # what an offer is for
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
    """One holder of private data, encoded for the backbone and dealt into three parts.

    `asks` is what it asks for in words: its prompts, or how its texts begin. Only its profile ever leaves the device.
    """

    name: str
    train: Rows
    valid: Rows
    test: Rows
    asks: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Offer:
    """What the server asks of a client.

    `train` this adapter; `check` it on validation rows; or, when the rounds are over, `score` it on test rows beside
    the bare backbone and the client's own adapter; or `encode` its prompts into a profile. With others `beside` it, the
    client takes the one that knows its validation rows best. `rank` is what the client trains at.
    """

    round: int
    client: str
    cluster: str
    adapter: Tree
    use: Use = "train"
    beside: Mapping[str, Tree] = field(default_factory=dict)
    rank: int = 0

    def failed(self, reason: str) -> "Failure":
        """Why nothing came of it."""
        return Failure(self.round, self.client, self.cluster, reason)


@dataclass(frozen=True)
class Update:
    """What comes back: the trained adapter, on how many examples, and how it went; `up`, `down` are bytes on a wire.

    `cluster` is that of the adapter which the client took. A `profile` comes alone: unit vectors [tastes, width].
    """

    round: int
    client: str
    cluster: str
    adapter: Tree
    examples: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    up: int = 0
    down: int = 0
    profile: Tensor | None = None


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
    """All that the server carries from round to round.

    The global adapter and one a cluster, the outer step's memory of each, which cluster a client is in, and the
    profiles by which it came there; the ranks of clients that have pruned theirs; and the needs of clients, by how far
    the last update of each moved. A client in no cluster is offered the global adapter; in a flat run every one is.
    """

    round: int
    adapters: Mapping[str, Tree]
    memory: Mapping[str, Tree] = field(default_factory=dict)
    where: Mapping[str, str] = field(default_factory=dict)
    profiles: Mapping[str, Tensor] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)
    needs: Mapping[str, float] = field(default_factory=dict)

    def cluster(self, client: str) -> str:
        """The cluster whose adapter a client is offered."""
        return self.where.get(client, GLOBAL)

    @property
    def clusters(self) -> list[str]:
        """The clusters' names; none in a flat run."""
        return sorted(set(self.adapters) - {GLOBAL})


@dataclass(frozen=True)
class Report:
    """What one round did; `devices` is what came of turns on each kind of device, where a clock knows.

    Where clients have ranks of their own, `ranks` has the mean one of what came, by `layers` and by `clients`.
    """

    round: int
    clients: tuple[str, ...]
    failures: tuple[Failure, ...]
    metrics: Mapping[str, float]
    up: int
    down: int
    seconds: float
    clusters: Mapping[str, Any] = field(default_factory=dict)
    devices: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    ranks: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


Reply = Update | Failure
Ask = Callable[[Iterable[Offer]], Iterator[Reply]]
