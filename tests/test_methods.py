"""Every method on a problem of two numbers, held to what its paper's rule gives when it is worked out by hand.

The model is y = (w + b a) x with one weight w and a pair (a, b). A client's rows are all alike, so its loss is
(y' - y)^2 with the slope 2 x (y' - y) in w. Plain gradient descent, one step a turn, from a = 1 and b = 0.5.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from fedgen import factors, lora
from fedgen import plan as plans
from fedgen.backbones import Backbone
from fedgen.bank import Bank
from fedgen.devices import fitted
from fedgen.groups import Rules
from fedgen.methods import METHODS
from fedgen.places.inprocess import asker
from fedgen.plan import Plan
from fedgen.records import GLOBAL, Client, Document, Offer, Rows, State, Tree, Update
from fedgen.rounds import Server, play
from fedgen.share import Halves
from fedgen.store import Shelf
from fedgen.turns import Site

WEIGHT, RATE = 0.25, 0.125
KEY_A, KEY_B = f"{lora.PREFIX}only{lora.A_END}", f"{lora.PREFIX}only{lora.B_END}"
START = (1.0, 0.5)
DATA = {"ann": (1.0, 2.0, 1), "bob": (2.0, -1.0, 3)}  # x, y, and how many rows
WHOLE = sum(rows for _, _, rows in DATA.values())
Pair = tuple[float, float]


class Line(nn.Module):
    """y = w x."""

    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.only.weight, WEIGHT)

    def forward(self, x: Tensor) -> Tensor:
        return self.only(x)


@dataclass(frozen=True)
class Toy:
    """A backbone of one weight."""

    network: nn.Module = field(default_factory=Line)
    kind: str = "text"
    component: str = ""
    name: str = "toy"
    hash: str = "0" * 64
    targets: tuple[str, ...] = ("only",)
    length: int = 1
    looks: int = 1

    def encode(self, documents: Sequence[Document]) -> Rows:
        return {}

    def draw(self, rows: Rows, draw: torch.Generator) -> Rows:
        return rows

    def losses(self, rows: Rows) -> tuple[Tensor, Tensor]:
        loss = (self.network(rows["x"]) - rows["y"]).square().flatten()
        return loss, torch.ones(len(loss), dtype=torch.long)

    def seal(self, prompt: str) -> Rows:
        return {}

    def row_bytes(self) -> int:
        return 1


def rows_of(name: str) -> Rows:
    x, y, count = DATA[name]
    return {"x": torch.full((count, 1), x), "y": torch.full((count, 1), y)}


BASE = plans.read(
    {
        "adapter": {"rank": 1, "targets": ["only"]},
        "partition": {"kind": "even", "clients": 2},
        "training": {"optimizer": "sgd", "lr": RATE, "steps": 2, "batch": 4, "clip": 0.0, "cohort": 2},
        "cohort": {"count": 2},
        "personal": {"steps": 1, "lr": RATE},
    }
)


@dataclass(frozen=True)
class Played:
    """A federation of the two clients after some rounds."""

    plan: Plan
    state: State
    site: Site
    sent: Sequence[Update]
    ask: Callable[[Sequence[Offer]], object]

    @property
    def product(self) -> float:
        """b a of the server's adapter."""
        return product(self.state.adapters[GLOBAL])

    def own(self, name: str) -> Tree:
        """The client's own adapter, once it has been asked for scores."""
        cluster = self.state.cluster(name)
        offer = Offer(self.state.round + 1, name, cluster, self.state.adapters[cluster], "score")
        list(self.ask([offer]))  # type: ignore[call-overload]
        found = self.site.shelf.get(name)
        assert found is not None
        return found


def pair_tree(a: float, b: float) -> Tree:
    return {KEY_A: torch.tensor([[a]]), KEY_B: torch.tensor([[b]])}


def product(tree: Tree) -> float:
    return float((tree[KEY_B].double() @ tree[KEY_A].double()).item())


def numbers(tree: Tree) -> Pair:
    return float(tree[KEY_A].item()), float(tree[KEY_B].item())


def played(name: str, rounds: int, steps: int = 1, *settings: str) -> Played:
    """The method's own parts in the engine's own rounds."""
    plan = METHODS[name].over(plans.read(BASE, [f"training.steps={steps}", *settings]))
    toy: Backbone = Toy()
    held = {name: Client(name, rows_of(name), rows_of(name), rows_of(name), ("a", "b")) for name in DATA}
    bank = Bank(toy.network, ["only"], plan.width)
    site = Site(0, toy, bank, held, plan.training, plan.personal, Shelf(), share=plan.share)
    sizes = {name: rows for name, (_, _, rows) in DATA.items()}
    rules = Rules(plan.cluster, plan.hierarchy, plan.exchange)
    parts = plan.cohort, plan.aggregate, plan.outer, rules, plan.share, plan.adapter.rank
    server, sent = Server(0, sorted(DATA), sizes, *parts), []
    cut = bool(plan.adapter.ranks) and isinstance(plan.share, Halves)
    ask = fitted(asker(site), sorted(DATA), plan.adapter.rank, plan.adapter.ranks, cut=cut)

    def heard(offers):  # type: ignore[no-untyped-def]
        for reply in ask(offers):
            sent.append(reply)
            yield reply

    state = State(0, {GLOBAL: pair_tree(*START)})
    for _ in range(rounds):
        state, _ = play(server, state, heard)
    return Played(plan, state, site, sent, ask)


# ---- by hand


def slope(name: str, w: float) -> float:
    """dL/dw."""
    x, y, _ = DATA[name]
    return 2 * x * (w * x - y)


def step(name: str, a: float, b: float, *, still: str = "", under: float = 0.0, pull: float = 0.0, to: Pair = START) -> Pair:
    """One step of descent on (a, b), with `under` more in the weight, of which `still` does not move."""
    g = slope(name, WEIGHT + under + a * b)
    new = a - RATE * (g * b + pull * (a - to[0])), b - RATE * (g * a + pull * (b - to[1]))
    return (a if still == "a" else new[0]), (b if still == "b" else new[1])


def mean(found: dict[str, float]) -> float:
    return sum(found[name] * DATA[name][2] for name in DATA) / WHOLE


def apart(found: dict[str, Pair]) -> Pair:
    return mean({name: a for name, (a, _) in found.items()}), mean({name: b for name, (_, b) in found.items()})


def steps(a: float, b: float, *, still: str = "") -> dict[str, Pair]:
    return {name: step(name, a, b, still=still) for name in DATA}


def near(found: float | Pair, wanted: float | Pair) -> bool:
    return found == pytest.approx(wanted, rel=1e-5, abs=1e-6)
