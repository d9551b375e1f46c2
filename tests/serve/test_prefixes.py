"""Beginnings that are known: whose, under what, how long, and which go first."""

import pytest
import torch
from torch import Tensor

from fedgen.serve.engine.prefixes import BLOCK, Prefixes
from fedgen.serve.engine.slab import Slab
from fedgen.serve.pool import BARE, Adapter, Mixture
from fedgen.store import Card

HEADS, SIZE, LAYERS, LENGTH = 2, 4, 3, 96
WIDE = 2 * LAYERS * HEADS * SIZE
BYTES = 4 * BLOCK * WIDE  # of one block


def adapter(name: str) -> Adapter:
    return Adapter(Card(kind="text", backbone="tiny", hash=name), dict)


ANN: Mixture = {adapter("ann"): 1.0}
IDS = list(range(1, 71))  # four blocks and a bit


@pytest.fixture
def slab() -> Slab:
    """Two rows full of numbers."""
    one = torch.zeros(1, HEADS, 1, SIZE)
    made = Slab([(one, one)] * LAYERS, 2, LENGTH)
    draw = torch.Generator().manual_seed(0)
    for row in range(2):
        made.write(row, torch.randn(LENGTH, WIDE, generator=draw))
    return made


def kept(slab: Slab, *texts: list[int], room: int = 64 * BYTES) -> Prefixes:
    made = Prefixes(room)
    for ids in texts:
        made.keep("ann", ANN, ids, slab=slab, row=0)
    return made


def length(found: Tensor | None) -> int:
    return 0 if found is None else len(found)


def test_what_is_found_is_what_was_kept(slab: Slab) -> None:
    found = kept(slab, IDS).find("ann", ANN, IDS)
    assert found is not None
    assert torch.equal(found, slab.read(0, 0, 4 * BLOCK))
    slab.write(1, found)
    assert torch.equal(slab.read(1, 0, 4 * BLOCK), slab.read(0, 0, 4 * BLOCK))


@pytest.mark.parametrize(
    ("asked", "blocks"),
    [
        (IDS, 4), (IDS[:65], 4), (IDS[:64], 3), (IDS[:17], 1), (IDS[:16], 0), (IDS[:3], 0), ([], 0),
        (IDS + IDS, 4), (IDS[:40] + [0] * 40, 2), ([0, *IDS], 0), (IDS[1:], 0), (IDS[16:], 0),
    ],
)  # fmt: skip
def test_the_longest_shared_beginning_is_found_but_never_the_last_token(
    slab: Slab, asked: list[int], blocks: int
) -> None:
    assert length(kept(slab, IDS).find("ann", ANN, asked)) == blocks * BLOCK


@pytest.mark.parametrize(
    ("owner", "mixture"),
    [
        ("bob", ANN), ("", ANN), ("ann", {BARE: 1.0}), ("ann", {adapter("bob"): 1.0}), ("ann", {adapter("ann"): 0.9}),
        ("ann", ANN | {adapter("bob"): 0.5}), ("ann", {}),
    ],
)  # fmt: skip
def test_nobody_finds_anothers_nor_under_another_adapter(slab: Slab, owner: str, mixture: Mixture) -> None:
    assert kept(slab, IDS).find(owner, mixture, IDS) is None


def test_a_mixture_is_the_same_in_any_order(slab: Slab) -> None:
    bob = {adapter("bob"): 0.5}
    prefixes = Prefixes(64 * BYTES)
    prefixes.keep("ann", ANN | bob, IDS, slab=slab, row=0)
    assert length(prefixes.find("ann", bob | ANN, IDS)) == 4 * BLOCK


def test_blocks_that_are_shared_are_kept_once(slab: Slab) -> None:
    prefixes = kept(slab, IDS, IDS, IDS[:40] + [0] * 30)
    assert len(prefixes) == 6
    assert prefixes.nbytes == 6 * BYTES


def test_the_longest_unused_go_first_and_of_one_text_its_end(slab: Slab) -> None:
    other = [0, *IDS]
    prefixes = kept(slab, IDS, other, room=6 * BYTES)
    assert prefixes.nbytes == 6 * BYTES
    assert length(prefixes.find("ann", ANN, IDS)) == 2 * BLOCK
    assert length(prefixes.find("ann", ANN, other)) == 4 * BLOCK
    prefixes.find("ann", ANN, IDS)  # used again, and so longer kept than the other
    prefixes.keep("ann", ANN, [7, *IDS[:32]], slab=slab, row=0)
    assert length(prefixes.find("ann", ANN, IDS)) == 2 * BLOCK
    assert length(prefixes.find("ann", ANN, other)) == 2 * BLOCK


@pytest.mark.parametrize(("room", "blocks"), [(0, 0), (BYTES - 1, 0), (BYTES, 1), (3 * BYTES + 1, 3)])
def test_there_is_never_more_than_there_is_room_for(slab: Slab, room: int, blocks: int) -> None:
    prefixes = kept(slab, IDS, room=room)
    assert len(prefixes) == blocks
    assert prefixes.nbytes <= room
    assert length(prefixes.find("ann", ANN, IDS)) == blocks * BLOCK


def test_hits_and_misses_are_counted_by_blocks(slab: Slab) -> None:
    prefixes = kept(slab, IDS)
    prefixes.find("ann", ANN, IDS[:40] + [0] * 30)
    assert (prefixes.hits, prefixes.misses) == (2, 2)
