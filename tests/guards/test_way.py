"""The guards of a run at both its ends: changes from what was offered, in order and in reverse, and what is owed."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fedgen import factors, lora, tree
from fedgen.bank import Bank
from fedgen.errors import TreeError
from fedgen.guards import GUARDS, PACKED, Clip, Compress, Guard, Guards
from fedgen.records import GLOBAL, Failure, Offer, Tree, Update
from fedgen.share import Halves, Increment, Share, Square, Top
from fedgen.store import Shelf
from fedgen.weights import Weights

RANK = 2
TARGETS = ("one", "conv", "grouped")
EXACT = Compress(32)
SHARES: list[Share] = [
    Halves(), Halves("a"), Halves("b"), Halves("turns"), Halves("a", keep=True), Halves("none", keep=True),
    Halves(last=0.4, keep=True), Increment(), Increment("b"), Top(), Square(),
]  # fmt: skip


class Net(nn.Module):
    """A linear layer, a convolution and a grouped one; only their shapes matter."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.conv, self.grouped = nn.Linear(6, 6), nn.Conv2d(4, 8, 3), nn.Conv2d(4, 8, 1, groups=2)


@pytest.fixture(scope="module")
def bank() -> Bank:
    return Bank(Net(), TARGETS, 2 * RANK)


def adapter(seed: int = 0, rank: int = RANK) -> Tree:
    draw = torch.Generator().manual_seed(seed)
    like = lora.fresh(lora.targets(Net(), TARGETS), rank, draw)
    return {key: torch.randn(value.shape, generator=draw) for key, value in like.items()}


def offer(now: Tree, turn: int = 1, **changes: Any) -> Offer:
    return replace(Offer(turn, "ann", GLOBAL, now, rank=RANK), **changes)


def update(asked: Offer, sent: Tree) -> Update:
    return Update(asked.round, asked.client, asked.cluster, sent, 5)


def moved(share: Share, asked: Offer, by: float) -> tuple[Tree, Tree]:
    """What would be sent of a start that training moved everywhere, and of one that it did not."""
    base = share.sent(share.begin(asked).adapter, asked)
    return {key: value + by for key, value in base.items()}, base


def close(found: Tree, wanted: Tree, atol: float = 1e-5) -> bool:
    return found.keys() == wanted.keys() and all(torch.allclose(found[key], wanted[key], atol=atol) for key in wanted)


@dataclass(frozen=True)
class Times:
    """A guard that can be seen: times a number on the way out, and less one on the way back."""

    by: float

    def out(self, change: Tree, draw: torch.Generator) -> Tree:
        return tree.scale(change, self.by)

    def back(self, came: Tree, like: Tree) -> Tree:
        return {key: value - 1 for key, value in came.items()}


# ---- both ends


@pytest.mark.parametrize("share", SHARES, ids=repr)
def test_whatever_is_shared_comes_back_whole(share: Share, tmp_path: Path) -> None:
    guards, asked = Guards((EXACT,), share), offer(adapter())
    trained, _ = moved(share, asked, 0.5)
    sent = guards.sent(trained, asked, Shelf(tmp_path))
    assert sent.keys() == ({PACKED} if trained else set())
    found = guards.opened(update(asked, sent), asked)
    assert isinstance(found, Update)
    assert close(found.adapter, trained)


@pytest.mark.parametrize("share", [share for share in SHARES if share != Halves("none", keep=True)], ids=repr)
def test_what_an_offer_loses_on_its_way_never_gets_into_the_servers_adapter(
    share: Share, bank: Bank, tmp_path: Path
) -> None:
    guards, exact = Guards((Compress(32, down=4),), share), offer(adapter(rank=RANK + 2), round=2)
    (met,) = guards.met([guards.offering()(exact)], bank.layout)
    assert not close(met.adapter, exact.adapter)
    trained, _ = moved(share, met, 0.5)
    found = guards.opened(update(exact, guards.sent(trained, met, Shelf(tmp_path))), exact)
    assert isinstance(found, Update)
    assert close(found.adapter, moved(share, exact, 0.5)[0])


def test_without_guards_nothing_is_touched(bank: Bank, tmp_path: Path) -> None:
    guards, asked, trained = Guards(), offer(adapter()), adapter(1)
    assert guards.offering()(asked) is asked
    assert guards.met([asked], bank.layout) == [asked]
    assert guards.sent(trained, asked, Shelf(tmp_path)) is trained
    reply = update(asked, trained)
    assert guards.opened(reply, asked) is reply


def test_guards_are_unwound_in_reverse(tmp_path: Path) -> None:
    first, second = Times(2.0), Times(10.0)
    guards, asked = Guards((first, second)), offer(tree.zeros(adapter()))
    sent = guards.sent({key: value + 3 for key, value in asked.adapter.items()}, asked, Shelf(tmp_path))
    assert {float(x) for value in sent.values() for x in value.flatten()} == {60.0}
    found = guards.opened(update(asked, sent), asked)
    assert isinstance(found, Update)
    assert {float(x) for value in found.adapter.values() for x in value.flatten()} == {58.0}


def test_every_guard_keeps_its_promise() -> None:
    for kind in GUARDS.values():
        guard: Guard = kind()
        change = tree.scale(adapter(), 1e-3)
        found = guard.back(guard.out(change, torch.Generator()), change)
        assert close(found, change, atol=1e-3)


def test_both_ends_shorten_a_change(tmp_path: Path) -> None:
    guards, asked = Guards((Clip(0.5), EXACT)), offer(adapter())
    trained, base = moved(Halves(), asked, 3.0)
    honest = guards.opened(update(asked, guards.sent(trained, asked, Shelf(tmp_path))), asked)
    wild = EXACT.out(tree.add(trained, base, -1.0), torch.Generator())
    other = guards.opened(update(asked, wild), asked)
    for found in (honest, other):
        assert isinstance(found, Update)
        assert tree.norm(tree.add(found.adapter, base, -1.0)) == pytest.approx(0.5, abs=1e-4)
        assert close(found.adapter, honest.adapter)  # type: ignore[union-attr]  # the same direction
    with pytest.raises(TreeError, match="clip: 'x' is not expected here"):
        Clip().back({**base, "x": torch.zeros(1)}, base)


def test_a_change_is_from_the_adapter_that_its_client_took(tmp_path: Path) -> None:
    guards, own, other = Guards((EXACT,)), adapter(1), adapter(2)
    asked = offer(own, cluster="one", beside={"two": other})
    took = offer(other, cluster="two", beside={"one": own})
    trained, _ = moved(Halves(), took, 0.5)
    found = guards.opened(update(took, guards.sent(trained, took, Shelf(tmp_path))), asked)
    assert isinstance(found, Update)
    assert close(found.adapter, trained)


@pytest.mark.parametrize(
    ("came", "line"),
    [
        ({PACKED: torch.zeros(3, dtype=torch.uint8)}, "update: compress: wanted 512 more bytes, came 3"),
        (adapter(), "update: compress: wanted one line of bytes, came 6 tensors"),
    ],
)
def test_what_cannot_be_read_is_its_clients_failure(came: Tree, line: str) -> None:
    asked = offer(adapter())
    found = Guards((EXACT,)).opened(replace(update(asked, came), down=77), asked)
    assert isinstance(found, Failure)
    assert found.reason.startswith(line)
    assert (found.client, found.round, found.down) == ("ann", 1, 77)


def test_scores_and_failures_pass() -> None:
    guards, asked = Guards((EXACT,)), offer(adapter(), use="check")
    scored, failed = update(asked, {}), asked.failed("no")
    assert guards.opened(scored, asked) is scored
    assert guards.opened(failed, offer(adapter())) is failed


# ---- the way down


def test_an_adapter_is_encoded_once_for_all_who_are_offered_it(bank: Bank) -> None:
    guards, shared, other = Guards((Compress(down=8),)), adapter(1), adapter(2)
    offered = guards.offering()
    first = offered(offer(shared))
    second = offered(offer(other, client="bob", beside={"one": shared}))
    assert second.beside["one"] is first.adapter
    assert second.adapter is not first.adapter
    met = guards.met([first, second], bank.layout)
    assert met[1].beside["one"] is met[0].adapter
    assert close(met[0].adapter, shared, atol=0.02)


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_adapters_of_any_ranks_go_down(bits: Any, bank: Bank) -> None:
    guards = Guards((Compress(down=bits),))
    uneven = {**adapter(1, 2), **{key: value for key, value in adapter(2, 4).items() if ".one." in key}}
    for shared in (adapter(1, 2), adapter(2, 4), uneven):
        (met,) = guards.met([guards.offering()(offer(shared))], bank.layout)
        assert close(met.adapter, shared, atol=0.3)
        assert {key: value.shape for key, value in met.adapter.items()} == {
            key: value.shape for key, value in shared.items()
        }


def test_whole_models_go_down() -> None:
    models = Weights(Net())
    shared = {key: torch.randn(value.shape) for key, value in models.layout.like.items()}
    guards = Guards((Compress(down=8),))
    (met,) = guards.met([guards.offering()(offer(shared))], models.layout)
    assert close(met.adapter, shared, atol=0.03)


def test_an_offer_of_nothing_stays_one(bank: Bank) -> None:
    guards, asked = Guards((Compress(down=8),)), offer({}, use="encode")
    assert guards.met([guards.offering()(asked)], bank.layout) == [asked]


def test_an_offer_of_other_layers_is_refused(bank: Bank) -> None:
    guards = Guards((Compress(down=8),))
    sent = guards.offering()(offer(adapter()))
    odd = replace(sent, adapter=sent.adapter | {"ranks": torch.tensor([2, 2], dtype=torch.int16)})
    with pytest.raises(TreeError, match="offer: wanted one rank, or one for each layer, came 2"):
        guards.met([odd], bank.layout)
    wide = replace(sent, adapter=sent.adapter | {"ranks": torch.tensor([4], dtype=torch.int16)})
    with pytest.raises(TreeError, match="compress: wanted"):
        guards.met([wide], bank.layout)


# ---- what is owed

SIGNS = Compress(1, feedback=True)


def owed(shelf: Shelf) -> Tree:
    return shelf.drawer("residual").get("ann") or {}


def test_what_was_lost_is_added_to_the_next_change(tmp_path: Path) -> None:
    guards, shelf, now = Guards((SIGNS,)), Shelf(tmp_path), tree.zeros(adapter())
    change = adapter(3)
    total = tree.zeros(change)
    for turn in range(1, 30):
        asked = offer(now, turn)
        found = guards.opened(update(asked, guards.sent(change, asked, shelf)), asked)
        assert isinstance(found, Update)
        total = tree.add(total, found.adapter)
        rest = tree.add(tree.scale(change, float(turn)), total, -1.0)
        assert close(owed(shelf), rest, atol=1e-3), "what came and what is owed are all that was to be sent"
    mean = tree.scale(total, 1 / 29)
    assert tree.norm(tree.add(mean, change, -1.0)) < 0.2 * tree.norm(change)


@pytest.mark.parametrize("way", [SIGNS, Compress(4, top=0.1, feedback=True), Compress(8, skip=0.9, feedback=True)])
def test_what_is_owed_stays_bounded(way: Compress, tmp_path: Path) -> None:
    guards, shelf = Guards((way,)), Shelf(tmp_path)
    lengths = []
    for turn in range(1, 121):
        guards.sent(adapter(turn), offer(tree.zeros(adapter()), turn), shelf)
        lengths.append(tree.norm(owed(shelf)))
    assert max(lengths[60:]) < 1.3 * max(lengths[:60])
    assert max(lengths) < 12 * tree.norm(adapter())


def test_a_turn_taken_twice_is_the_same_turn(tmp_path: Path) -> None:
    guards, shelf, asked = Guards((SIGNS,)), Shelf(tmp_path), offer(tree.zeros(adapter()), 2)
    guards.sent(adapter(1), replace(asked, round=1), shelf)
    once = guards.sent(adapter(2), asked, shelf)
    kept = owed(shelf)
    again = guards.sent(adapter(2), asked, shelf)
    assert torch.equal(once[PACKED], again[PACKED])
    assert close(owed(shelf), kept, atol=0)


def test_only_what_compression_lost_is_owed(tmp_path: Path) -> None:
    guards, shelf = Guards((Clip(0.1), Compress(32, feedback=True))), Shelf(tmp_path)
    guards.sent(adapter(1), offer(tree.zeros(adapter())), shelf)
    assert tree.norm(owed(shelf)) == 0.0


def test_what_is_owed_of_other_shapes_is_dropped(tmp_path: Path) -> None:
    guards, shelf, wide = Guards((SIGNS,)), Shelf(tmp_path), factors.head(adapter(1, 4), 4)
    guards.sent(wide, offer(tree.zeros(wide)), shelf)
    narrow = guards.sent(adapter(2), offer(tree.zeros(adapter()), 2), shelf)
    alone = guards.sent(adapter(2), offer(tree.zeros(adapter()), 2), Shelf(tmp_path / "other"))
    assert torch.equal(narrow[PACKED], alone[PACKED])


def test_halves_in_turns_are_each_made_up_for(tmp_path: Path) -> None:
    share = Halves("turns")
    guards, shelf = Guards((SIGNS,), share), Shelf(tmp_path)
    for turn in (1, 2):
        asked = offer(adapter(), turn)
        guards.sent(moved(share, asked, 0.5)[0], asked, shelf)
    assert owed(shelf).keys() == adapter().keys()


def test_a_draw_belongs_to_run_round_and_client(tmp_path: Path) -> None:
    def sent(seed: int, turn: int, client: str) -> bytes:
        asked = offer(tree.zeros(adapter()), turn, client=client)
        return tree.pack(Guards((Compress(4),), seed=seed).sent(adapter(1), asked, Shelf(tmp_path)))

    found = [sent(0, 1, "ann"), sent(1, 1, "ann"), sent(0, 2, "ann"), sent(0, 1, "bob")]
    assert len(set(found)) == 4
    assert sent(0, 1, "ann") == found[0]


# ---- sizes


def test_sizes_are_those_of_messages(tmp_path: Path) -> None:
    for way in [(), (Clip(),), (Compress(4, down=8),), (Compress(1, top=0.25),)]:
        guards, asked = Guards(way), offer(adapter())
        up, down = guards.sizes(adapter(), RANK)
        assert up == len(tree.pack(guards.sent(adapter(1), asked, Shelf(tmp_path))))
        assert down == len(tree.pack(guards.offering()(asked).adapter))
    assert Guards((), Halves("b")).sizes(adapter(), RANK)[0] < Guards().sizes(adapter(), RANK)[0]


def test_sizes_go_by_no_order_of_keys() -> None:
    """A resumed run reads its adapter in another order, and its clock must not go otherwise."""
    shared, guards = adapter(), Guards((Compress(4, top=0.2, lossless="zstd", down=4),))
    assert guards.sizes(shared, RANK) == guards.sizes(dict(reversed(shared.items())), RANK)
