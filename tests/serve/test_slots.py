"""A bank's slots: adapters stay while rows hold them, the longest unused make room, and what is wrong never gets in."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor, nn

from fedgen import lora, tree
from fedgen.bank import Bank
from fedgen.errors import BusyError, FedgenError, ServeError, StoreError
from fedgen.records import Tree
from fedgen.serve.pool import BARE, Adapter, Course, Mixture, Slots
from fedgen.store import Card

RANK, ROOM = 4, 3


class Net(nn.Module):
    """Two linear layers, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """x [rows, 6]."""
        return self.b(self.a(x).tanh())


LAYERS = lora.targets(Net(), ["a", "b"])


def content(seed: int, rank: int = RANK) -> Tree:
    draw = torch.Generator().manual_seed(seed)
    return {key: torch.randn(value.shape, generator=draw) for key, value in lora.fresh(LAYERS, rank, draw).items()}


@dataclass
class Disk:
    """Where adapters lie: counts how often each is read, and what is there may be spoilt."""

    held: dict[str, Tree] = field(default_factory=dict)
    read: list[str] = field(default_factory=list)

    def put(self, name: str, found: Tree) -> Adapter:
        self.held[name] = found

        def read() -> Tree:
            self.read.append(name)
            return self.held[name]

        return Adapter(Card(kind="text", backbone="net", hash=tree.digest(found), rank=RANK), read)


@pytest.fixture
def network() -> Net:
    return Net()


@pytest.fixture
def slots(network: Net) -> Iterator[Slots]:
    with Bank(network, ["a", "b"], RANK, ROOM) as bank:
        yield Slots(bank)


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def some(disk: Disk) -> list[Adapter]:
    """More adapters than there is room for."""
    return [disk.put(name, content(seed)) for seed, name in enumerate("abcdef")]


def alone(adapter: Adapter) -> Course:
    return [(1.0, {adapter: 1.0})]


@torch.no_grad()
def under(slots: Slots, *rows: Mixture) -> Tensor:
    """What the network says of the same input in each row."""
    x = torch.randn(1, 6, generator=torch.Generator().manual_seed(9)).expand(len(rows), -1)
    with slots.lay(rows):
        found: Tensor = slots.bank.network(x)
    return found


def used_once(slots: Slots, adapter: Adapter) -> Tensor:
    slots.hold(alone(adapter))
    try:
        return under(slots, {adapter: 1.0})
    finally:
        slots.release(alone(adapter))


def test_the_longest_unused_makes_room_and_is_read_again_when_wanted(
    slots: Slots, disk: Disk, some: list[Adapter]
) -> None:
    first = [used_once(slots, adapter) for adapter in some[:3]]
    used_once(slots, some[0])  # so b is the longest unused
    assert (slots.loads, slots.hits, slots.evictions, len(slots)) == (3, 1, 0, 3)
    used_once(slots, some[3])
    assert (slots.evictions, len(slots)) == (1, ROOM)
    again = [used_once(slots, some[at]) for at in (0, 2)]
    assert disk.read == ["a", "b", "c", "d"]  # those two were still there
    assert used_once(slots, some[1]).equal(first[1])
    assert disk.read == ["a", "b", "c", "d", "b"]
    assert again[0].equal(first[0])
    assert again[1].equal(first[2])


def test_two_of_one_content_share_a_slot(slots: Slots, disk: Disk, some: list[Adapter]) -> None:
    twin = disk.put("twin", content(0))
    slots.hold([(1.0, {some[0]: 0.5})])
    slots.hold(alone(twin))
    assert (len(slots), slots.hits, disk.read) == (1, 1, ["a"])
    slots.release(alone(some[0]))
    for adapter in some[1:4]:
        used_once(slots, adapter)
    assert under(slots, {twin: 1.0}).equal(used_once(slots, some[0]))  # held once more, so it stood
    assert disk.read.count("a") == 1


def test_what_rows_hold_is_never_overwritten(slots: Slots, some: list[Adapter]) -> None:
    for adapter in some[:ROOM]:
        slots.hold(alone(adapter))
    before = slots.bank.lines.clone()
    with pytest.raises(BusyError, match="all 3 hold adapters that are in use; ask again") as caught:
        slots.hold(alone(some[3]))
    assert caught.value.after > 0
    assert slots.bank.lines.equal(before)
    slots.hold(alone(some[1]))  # one that is there needs no room
    slots.release(alone(some[1]))
    with pytest.raises(BusyError):  # it is held by the first row still
        slots.hold(alone(some[3]))
    slots.release(alone(some[1]))
    slots.hold(alone(some[3]))
    assert not slots.bank.lines.equal(before)
    assert slots.evictions == 1


def test_a_course_is_held_whole_or_not_at_all(slots: Slots, disk: Disk, some: list[Adapter]) -> None:
    slots.hold(alone(some[0]))
    slots.hold(alone(some[1]))
    course = [(0.5, {some[2]: 0.5, some[0]: 0.5}), (1.0, {some[3]: 1.0})]
    with pytest.raises(BusyError):
        slots.hold(course)
    slots.release(alone(some[0]))
    with pytest.raises(BusyError):  # what the failed try had taken is free, but three do not fit beside b
        slots.hold(course)
    slots.release(alone(some[1]))
    slots.hold(course)
    assert under(slots, {some[0]: 1.0}, {some[2]: 1.0}, {some[3]: 1.0}).unique(dim=0).shape[0] == 3
    del disk.held["e"]
    slots.release(course)
    with pytest.raises(KeyError):
        slots.hold([(1.0, {some[0]: 0.5, some[4]: 0.5})])
    for adapter in (some[1], some[5]):  # a slot for each: nothing is held by mistake
        slots.hold(alone(adapter))
    slots.hold(alone(some[2]))


def test_a_course_wider_than_the_room_can_never_be_held_and_is_told_so(slots: Slots, some: list[Adapter]) -> None:
    with pytest.raises(ServeError, match="no room for 4 adapters at once, 0 of 3 are pinned; name fewer") as caught:
        slots.hold([(1.0, dict.fromkeys(some[:4], 0.25))])
    assert not isinstance(caught.value, BusyError)
    for adapter in some[3:]:  # and the three that fitted are not held
        slots.hold(alone(adapter))


def test_pinned_ones_never_make_room(slots: Slots, disk: Disk, some: list[Adapter]) -> None:
    pins: set[str] = {some[0].hash}
    slots.pinned = lambda: pins
    for adapter in [*some, *some[1:]]:
        used_once(slots, adapter)
    used_once(slots, some[0])
    assert disk.read.count("a") == 1
    pins |= {some[4].hash, some[5].hash}
    with pytest.raises(ServeError, match="3 of 3 are pinned; name fewer, or unpin some") as caught:
        used_once(slots, some[1])
    assert not isinstance(caught.value, BusyError)  # to wait is of no use
    pins.clear()
    used_once(slots, some[1])


def test_a_row_goes_on_under_its_version_while_its_name_moves_on(slots: Slots, some: list[Adapter]) -> None:
    old, new, *others = some
    slots.hold(alone(old))
    before = under(slots, {old: 1.0})
    slots.hold(alone(new))
    both = under(slots, {old: 1.0}, {new: 1.0})
    for adapter in others:
        used_once(slots, adapter)
    assert torch.allclose(both[0], before[0], atol=1e-6)
    assert under(slots, {old: 1.0}).equal(before)
    assert not torch.allclose(both[1], before[0], atol=1e-2)
    assert under(slots, {old: 1.0}, {new: 1.0}).equal(both)


@pytest.mark.parametrize(
    ("found", "error", "said"),
    [
        (content(1), ServeError, "what is read now is another content"),
        (content(0, RANK + 1), ServeError, "is too wide: has rank 5, wanted at most 4; shrink it"),
        ({key: value / 0 for key, value in content(0).items()}, ServeError, "holds NaN or infinity"),
        (
            {key: value[:, :5] if ".a.lora_A" in key else value for key, value in content(0).items()},
            FedgenError,
            "'a' wants A",
        ),
        ({key.replace(".b.", ".c."): value for key, value in content(0).items()}, FedgenError, "differ in layer 'b'"),
        (
            {key: value for key, value in content(0).items() if "lora_A" in key},
            FedgenError,
            "is missing, but its other",
        ),
    ],
)
def test_what_is_wrong_is_refused_and_what_was_there_stays(
    slots: Slots, disk: Disk, some: list[Adapter], found: Tree, error: type[Exception], said: str
) -> None:
    for adapter in some[1:4]:
        used_once(slots, adapter)
    lines = slots.bank.lines.clone()
    if said.startswith("what is read"):
        adapter = some[0]
        disk.held["a"] = found
    else:
        adapter = disk.put("odd", found)
    with pytest.raises(error, match=said):
        slots.hold(alone(adapter))
    assert slots.bank.lines.equal(lines)
    assert (len(slots), slots.evictions) == (ROOM, 0)


def test_one_that_cannot_be_read_or_is_a_full_model_is_refused(slots: Slots, some: list[Adapter]) -> None:
    def gone() -> Tree:
        raise StoreError("bundle: cannot be read; is the path right?")

    with pytest.raises(StoreError, match="cannot be read"):
        slots.hold(alone(replace(some[0], read=gone)))
    with pytest.raises(ServeError, match="is the change of a full model, and a bank holds pairs of factors alone"):
        slots.hold(alone(replace(some[0], card=replace(some[0].card, rank=0))))
    assert len(slots) == 0


def test_a_narrow_adapter_in_a_wide_bank_is_itself(slots: Slots, disk: Disk) -> None:
    narrow = content(3, 1)
    wide = disk.put("wide", lora.resize(narrow, RANK))
    assert torch.allclose(used_once(slots, disk.put("narrow", narrow)), used_once(slots, wide), atol=1e-5)
    assert len(slots) == 2


def test_the_backbone_takes_no_slot(slots: Slots, network: Net, some: list[Adapter]) -> None:
    slots.hold([(0.5, {BARE: 1.0}), (1.0, {})])
    assert (len(slots), slots.loads) == (0, 0)
    bare = under(slots, {})
    slots.hold(alone(some[0]))
    mixed = under(slots, {BARE: 1.0}, {some[0]: 1.0}, {}, {some[0]: 1.0, BARE: 3.0})
    assert torch.allclose(mixed[[0, 2]], bare.expand(2, -1), atol=1e-6)
    assert torch.allclose(mixed[1], mixed[3], atol=1e-6)  # more of the backbone is nothing
    assert (mixed[1] - bare[0]).abs().max() > 0.1
    slots.release([(0.5, {BARE: 1.0}), (1.0, {})])


def test_whole_adapters_pay_for_no_mixing_and_one_for_all_is_laid_once(slots: Slots, some: list[Adapter]) -> None:
    a, b, c = some[:3]
    slots.hold([(1.0, {a: 0.1, b: 0.1, c: 0.1})])

    def laid(*rows: Mixture) -> tuple[int, ...]:
        """How a layer's A is laid: groups of rows, rank, in."""
        with slots.lay(rows):
            a: Tensor = slots.bank._lanes[0].a  # type: ignore[assignment]
            return () if a is None else tuple(a.shape)

    assert laid({a: 1.0}, {b: 1.0}, {}) == (3, RANK, 6)
    assert laid({a: 1.0}, {b: 0.5, c: 0.5}) == (2, 2 * RANK, 6)
    assert laid({a: 1.0}, {a: 1.0}, {a: 1.0}) == (1, RANK, 6)
    assert laid({a: 0.3, b: 0.7}, {b: 0.7, a: 0.3}) == (1, 2 * RANK, 6)
    assert laid({}, {BARE: 1.0}) == laid() == ()
    assert slots.bank._lanes[0].a is None


def test_one_that_is_not_held_cannot_be_laid(slots: Slots, some: list[Adapter]) -> None:
    used_once(slots, some[0])
    for adapter in some[:2]:  # in memory still, and never there
        with pytest.raises(ServeError, match=f"adapter {adapter.hash[:12]} is not held"):
            slots.lay([{adapter: 1.0}])
