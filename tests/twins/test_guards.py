"""Compression against loops over numbers, one place against another, and a run that stops against one that does not."""

import math
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import fedgen
from fedgen import Run
from fedgen import plan as plans
from fedgen.guards import PACKED, Compress
from fedgen.places import inprocess
from fedgen.places.asking import Asking
from fedgen.places.desk import Desk
from fedgen.places.device import Consent, Device
from fedgen.places.roll import Arrived
from fedgen.places.wire import Errand, Parcel
from fedgen.plan import Fleet
from fedgen.records import GLOBAL, Failure, Offer, Report, Tree, Update
from fedgen.run import PLAN, SHELF, go
from fedgen.store import write_whole

LIKE: Tree = {"b": torch.zeros(7, 9), "a": torch.zeros(40), "c": torch.zeros(3)}
WAYS = [
    Compress(bits, group, rounding="nearest", top=top, skip=skip)
    for bits in (32, 16, 8, 4, 1)
    for group, top, skip in ((64, 1.0, 0.0), (10, 0.25, 0.0), (7, 1.0, 0.5), (5, 0.5, 0.5))
]  # fmt: skip


def some() -> Tree:
    draw = torch.Generator().manual_seed(5)
    scales = {"a": 0.1, "b": 1.0, "c": 2.0}
    return {key: torch.randn(LIKE[key].shape, generator=draw) * scale for key, scale in scales.items()}


# ---- by loops


def single(number: float) -> float:
    """As float32 has it."""
    found: float = struct.unpack("<f", struct.pack("<f", number))[0]
    return found


def scale_of(length: float) -> tuple[bytes, float]:
    """The length, rounded up to what bfloat16 has."""
    (raw,) = struct.unpack("<I", struct.pack("<f", length))
    upper = (raw >> 16) + (1 if raw & 0xFFFF else 0)
    return struct.pack("<H", upper), struct.unpack("<f", struct.pack("<I", upper << 16))[0]


def bits_of(marks: Sequence[bool]) -> bytes:
    filled = [*marks, *[False] * (-len(marks) % 8)]
    return bytes(sum(filled[at + i] << (7 - i) for i in range(8)) for at in range(0, len(filled), 8))


def steps_of(group: Sequence[float], scale: float, levels: int) -> list[int]:
    return [round(single(single(number / scale) * levels)) if scale else 0 for number in group]


def number_bytes(steps: Sequence[int], bits: int) -> bytes:
    if bits == 16:
        return struct.pack(f"<{len(steps)}h", *steps)
    if bits == 8:
        return struct.pack(f"<{len(steps)}b", *steps)
    filled = [step & 15 for step in [*steps, *[0] * (len(steps) % 2)]]
    return bytes(filled[at] + 16 * filled[at + 1] for at in range(0, len(filled), 2))


def slowly(way: Compress, change: Tree) -> tuple[bytes, Tree]:
    """The bytes of a change, and what they stand for, a number at a time."""
    found = {key: [float(x) for x in change[key].flatten()] for key in sorted(change)}
    total = sum(x * x for numbers in found.values() for x in numbers)
    count = sum(map(len, found.values()))
    raw, sent = b"", list(found)
    if way.skip:
        mean = {key: sum(x * x for x in numbers) / len(numbers) for key, numbers in found.items()}
        sent = [key for key in found if mean[key] >= way.skip**2 * total / count]
        raw += bits_of([key in sent for key in found])
    spots = [(key, at) for key in sent for at in range(len(found[key]))]
    if way.top < 1:
        order = sorted(spots, key=lambda spot: -abs(found[spot[0]][spot[1]]))  # of equals the first stays first
        chosen = set(order[: math.ceil(way.top * count)])
        raw += bits_of([spot in chosen for spot in spots])
        spots = [spot for spot in spots if spot in chosen]
    values = [found[key][at] for key, at in spots]
    scales, codes, numbers = b"", b"", list[float]()
    if way.bits == 32:
        codes, numbers = struct.pack(f"<{len(values)}f", *values), values
    else:
        steps, levels = list[int](), 2 ** (way.bits - 1) - 1
        for start in range(0, len(values), way.group):
            group = values[start : start + way.group]
            length = sum(map(abs, group)) / len(group) if way.bits == 1 else max(map(abs, group))
            packed, scale = scale_of(length)
            scales += packed
            own = [-1 if x < 0 else 1 for x in group] if way.bits == 1 else steps_of(group, scale, levels)
            steps += own
            numbers += [step * (scale if way.bits == 1 else single(scale / levels)) for step in own]
        codes = bits_of([step < 0 for step in steps]) if way.bits == 1 else number_bytes(steps, way.bits)
    back = {key: [0.0] * len(own) for key, own in found.items()}
    for (key, at), number in zip(spots, numbers, strict=True):
        back[key][at] = number
    return raw + scales + codes, {key: torch.tensor(own).view(change[key].shape) for key, own in back.items()}


@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way.bits}-{way.group}-{way.top}-{way.skip}")
def test_bytes_are_those_of_plain_loops(way: Compress) -> None:
    change = some()
    raw, wanted = slowly(way, change)
    packed = way.out(change, torch.Generator())
    assert packed[PACKED].numpy().tobytes() == raw
    found = way.back(packed, change)
    for key in wanted:
        assert torch.allclose(found[key], wanted[key], rtol=1e-6, atol=0)


# ---- places

SIGNS = {"bits": 1, "top": 0.5, "feedback": True, "lossless": "zstd", "down": 8}
GUARDED = ["training.cohort=4", "rounds=3", "personal.kind=keep", "personal.steps=1", "clip.norm=0.05"]


@dataclass
class Post:
    """Carries every parcel to the one node, and its answer back at once; counts what crosses."""

    desk: Desk
    back: dict[str, Parcel] = field(default_factory=dict)
    trained: dict[int, list[int]] = field(default_factory=dict)  # by round: bytes down, and up
    online: set[int] = field(default_factory=lambda: {1})

    def nodes(self) -> set[int]:
        return self.online

    def look(self) -> None:
        """Always there."""

    def at(self, client: str) -> int:
        return 1

    def send(self, node: int, parcel: Parcel, use: str, turn: int) -> str:
        ticket, answer = f"{use} {turn}", self.desk.answer(parcel)
        self.back[ticket] = answer
        if use == "train":
            self.trained[turn] = [parcel.size, answer.size]
        return ticket

    def arrived(self, tickets: Sequence[str]) -> list[Arrived]:
        return [Arrived(ticket, self.back.pop(ticket)) for ticket in tickets]


def silent(event: object) -> None:
    pass


@pytest.fixture(scope="module")
def guarded(tiny_plan: dict[str, Any]) -> dict[str, Any]:
    return tiny_plan | {"guards": ["clip", "compress"], "compress": SIGNS}


@pytest.fixture(scope="module")
def here(guarded: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fedgen.run(guarded, tmp_path_factory.mktemp("here") / "run", settings=GUARDED)


@pytest.fixture(scope="module")
def there(guarded: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Post]:
    """The same run over the wire, on a machine's desk."""
    return across(plans.read(guarded, GUARDED), tmp_path_factory.mktemp("there"))


def across(plan: plans.Plan, folder: Path) -> tuple[Run, Post]:
    """A run over the wire, on a machine's desk."""
    settled = inprocess.settle(plan, plan.backbone.load())
    post = Post(Desk(Device("trial", consent=Consent(plan_data=True)), folder / "node"))
    errand = Errand("run", plans.write(settled), "one")
    terms = Fleet(deadline=60, patience=60)
    asking = Asking(post, errand, terms, post, 2**20, tell=silent, nap=0.0, guards=settled.passage)
    place = inprocess.place(settled, settled.backbone.load(), folder / "run" / SHELF, silent)
    write_whole(folder / "run" / PLAN, plans.write(settled).encode())
    return go(folder / "run", settled, replace(place, ask=asking.ask, clock=None), silent), post


def test_in_this_process_is_as_over_the_wire(here: Run, there: tuple[Run, Post]) -> None:
    other = there[0]
    assert not any(line["failures"] for run in (here, other) for line in run.journal)
    one, two = here.adapter("global")[0], other.adapter("global")[0]
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert here.scores == other.scores


NEED = ["training.cohort=4", "rounds=3", "adapter.rank=8", "personal.kind=none", "cohort.count=6",
        "aggregate.kind=changes", "allot.kind=needed", "allot.mean=3"]  # fmt: skip


@pytest.mark.parametrize("packed", [[], ['guards=["compress"]', "compress.bits=4", "compress.down=8"]], ids=len)
def test_ranks_by_layer_cross_as_they_are(packed: list[str], tiny_plan: dict[str, Any], tmp_path: Path) -> None:
    """On devices that carry all, so that layers and clients have unlike ranks from the second round on."""
    named = tmp_path / "devices.toml"
    device = "memory = 1_000_000_000_000\nspeed = 1e15\nup = 1e12\ndown = 1e12\n"
    clients = [f'{name} = "own"' for name in ("ann", "bob", "cleo", "dan", "eve", "finn")]
    named.write_text("\n".join([f"[classes.own]\n{device}[clients]", *clients]), "utf-8")
    plan = plans.read(tiny_plan | {"devices": {"kind": "named", "file": str(named)}}, [*NEED, *packed])
    ours, (other, post) = fedgen.run(plan, tmp_path / "run"), across(plan, tmp_path / "there")
    assert not any(line["failures"] for run in (ours, other) for line in run.journal)
    for line, its in zip(ours.journal, other.journal, strict=True):
        assert line["ranks"] == its["ranks"]
        assert line["metrics"]["loss"] == its["metrics"]["loss"]
        assert its["down"] == post.trained[line["round"]][0]
    assert all(len(set(ours.journal[1]["ranks"][by].values())) > 1 for by in ("layers", "clients"))
    one, two = ours.adapter("global")[0], other.adapter("global")[0]
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert ours.scores == other.scores


def test_reported_bytes_are_those_that_crossed(there: tuple[Run, Post]) -> None:
    run, post = there
    for line in run.journal:
        down, up = post.trained[line["round"]]
        assert line["down"] == down
        assert line["up"] <= up < line["up"] + 40  # the words around the replies


def test_fewer_bytes_cross(here: Run, tiny_plan: dict[str, Any], tmp_path: Path) -> None:
    plain = fedgen.run(tiny_plan, tmp_path / "plain", settings=[*GUARDED[:2], "personal.kind=none"])
    for line, other in zip(here.journal, plain.journal, strict=True):
        beside = 4 * 330  # headers, and what an update says beside its numbers
        assert line["up"] - beside < (other["up"] - beside) / 20
        assert line["down"] < other["down"] / 3


def test_what_was_reported_in_process_is_what_a_plan_costs(guarded: dict[str, Any], here: Run) -> None:
    _, cost = fedgen.places.cost(guarded, settings=GUARDED)
    assert cost.message < cost.down_message < cost.full_message
    for line in here.journal:
        assert abs(line["up"] - cost.round_bytes) < 4 * 300
        assert line["down"] < cost.round_down_bytes + 4 * 200  # an adapter has fewer bytes while half of it is zeros


# ---- a run that stops


class Stop(Exception):  # noqa: N818  it is no error
    """What ends a run between two rounds."""


def stopping(after: int, what: Callable[[object], bool]) -> Callable[[object], None]:
    seen: Iterator[int] = iter(range(1, 10_000))

    def tell(event: object) -> None:
        if what(event) and next(seen) == after:
            raise Stop

    return tell


@pytest.mark.parametrize(
    ("after", "what"),
    [(1, Report), (2, Report), (6, Update)],
    ids=["after round 1", "after round 2", "in round 2"],
)
def test_a_run_that_stops_and_goes_on_is_the_same_run(
    after: int, what: type, guarded: dict[str, Any], here: Run, tmp_path: Path
) -> None:
    tell = stopping(after, lambda event: isinstance(event, what))
    with pytest.raises(Stop):
        fedgen.run(guarded, tmp_path / "run", settings=GUARDED, tell=tell)
    run = fedgen.resume(tmp_path / "run")
    assert (run.folder / "checkpoint.safetensors").read_bytes() == (here.folder / "checkpoint.safetensors").read_bytes()
    assert run.scores == here.scores
    kept = [sorted(path.relative_to(each.folder) for path in (each.folder / SHELF).rglob("*")) for each in (run, here)]
    assert kept[0] == kept[1]
    assert any("residual" in path.parts for path in kept[0])
    for path in kept[0]:
        if (run.folder / path).is_file():
            assert (run.folder / path).read_bytes() == (here.folder / path).read_bytes()


OTHERS: list[tuple[dict[str, Any], dict[str, Any]]] = [  # what the server holds to, and what the client
    ({"guards": ["compress"]}, {"guards": []}),
    ({"guards": ["compress"]}, {"guards": ["compress"], "compress": {"bits": 8}}),
    ({"guards": []}, {"guards": ["compress"]}),
]


@pytest.mark.parametrize(("ours", "theirs"), OTHERS, ids=["plain numbers", "other bits", "unasked bytes"])
def test_a_client_of_other_settings_is_a_failure(
    ours: dict[str, Any], theirs: dict[str, Any], tiny_plan: dict[str, Any], tmp_path: Path
) -> None:
    server, client = (plans.read(tiny_plan | keys, ["adapter.targets=['q_proj']"]) for keys in (ours, theirs))
    with client.adapter.bank(client.backbone.load().network, client.width) as bank:
        start = inprocess.start_of(server, bank)
    post = Post(Desk(Device("trial", consent=Consent(plan_data=True)), tmp_path))
    terms, errand = Fleet(deadline=60, patience=60, quorum=0.0), Errand("run", plans.write(client), "one")
    asking = Asking(post, errand, terms, post, 2**20, tell=silent, nap=0.0, guards=server.passage)
    (reply,) = asking.ask([Offer(1, "ann", GLOBAL, start, rank=server.adapter.rank)])
    assert isinstance(reply, Failure)
    assert "wanted" in reply.reason
    assert reply.down > 0
