"""The shelf: newest first, bounded memory, and back to any round that is not settled."""

import gc
from pathlib import Path

import pytest
import torch

from fedgen.errors import StoreError
from fedgen.records import Tree
from fedgen.store import Shelf

NAMES = [
    "alice", "Alice", "../../etc/passwd", "a/b", "a%2fb", "", "%%", ".", "nul\0", "zoë", "👩‍🚀", "\ud800",
    "x" * 500, "x" * 499, "é" * 300,
]  # fmt: skip


def make(number: float, size: int = 8) -> Tree:
    return {"b": torch.full((size,), float(number)), "a": torch.full((2, 3), -float(number))}


def same(found: Tree | None, wanted: Tree) -> bool:
    return (
        found is not None
        and found.keys() == wanted.keys()
        and all(torch.equal(found[key], wanted[key]) for key in wanted)
    )


def files(folder: Path) -> int:
    return len(list(folder.iterdir()))


def test_the_newest_part_is_given(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    assert shelf.get("alice") is None
    assert shelf.round_of("alice") is None
    shelf.put("alice", 3, make(3))
    shelf.put("alice", 1, make(1))
    shelf.put("bob", 2, make(2))
    assert same(shelf.get("alice"), make(3))
    assert shelf.round_of("alice") == 3
    assert shelf.clients() == ["alice", "bob"]
    shelf.put("alice", 3, make(33))
    assert same(shelf.get("alice"), make(33))


def test_what_is_put_and_what_is_given_are_copies(tmp_path: Path) -> None:
    shelf, tree = Shelf(tmp_path), make(1)
    shelf.put("alice", 1, tree)
    tree["a"].zero_()
    assert same(shelf.get("alice"), make(1))
    (shelf.get("alice") or {})["a"].zero_()
    assert same(shelf.get("alice"), make(1))


@pytest.mark.parametrize("limit", [0, 2**30])
def test_any_name_will_do_and_none_is_taken_for_another(tmp_path: Path, limit: int) -> None:
    shelf = Shelf(tmp_path / "deep" / "shelf", limit)
    for at, name in enumerate(NAMES):
        shelf.put(name, 1, make(at))
    shelf.flush()
    again = Shelf(tmp_path / "deep" / "shelf", limit)
    assert again.clients() == shelf.clients() == sorted(NAMES)
    for at, name in enumerate(NAMES):
        assert same(shelf.get(name), make(at))
        assert same(again.get(name), make(at))
    found = [path.name for path in (tmp_path / "deep" / "shelf").iterdir()]
    assert len({name.lower() for name in found}) == len(NAMES)
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]


def test_memory_is_bounded_and_the_rest_lies_on_disk(tmp_path: Path) -> None:
    one = 4 * (1000 + 6)
    shelf = Shelf(tmp_path, limit=3 * one)
    for at in range(10):
        shelf.put(f"client{at}", 1, make(at, 1000))
    assert files(tmp_path) == 7
    for at in range(10):
        assert same(shelf.get(f"client{at}"), make(at, 1000))
    shelf.flush()
    assert files(tmp_path) == 10


def test_order_and_types_are_the_same_from_memory_and_from_disk(tmp_path: Path) -> None:
    tree = {
        "z": torch.ones(2, dtype=torch.bfloat16),
        "a": torch.arange(6.0).view(2, 3).T,
        "m": torch.ones(3, dtype=torch.int64),
    }
    shelf = Shelf(tmp_path)
    shelf.put("alice", 1, tree)
    shelf.flush()
    warm, cold = shelf.get("alice"), Shelf(tmp_path).get("alice")
    assert warm is not None
    assert cold is not None
    assert list(warm) == list(cold) == ["a", "m", "z"]
    assert all(torch.equal(warm[key], cold[key]) and warm[key].dtype == cold[key].dtype for key in warm)


@pytest.mark.parametrize("limit", [0, 2**30])
def test_a_run_killed_in_a_round_goes_back_to_the_last_one(tmp_path: Path, limit: int) -> None:
    shelf = Shelf(tmp_path, limit)
    for turn in (1, 2):
        shelf.put("alice", turn, make(turn))
        shelf.flush()
        shelf.settle(turn)
    shelf.put("bob", 1, make(10))
    shelf.flush()
    shelf.settle(2)
    shelf.put("alice", 3, make(3))
    shelf.put("carol", 3, make(30))
    shelf.flush()  # and the machine goes down before the checkpoint of round 3
    (tmp_path / ".alice.4.safetensors.0123.part").write_bytes(b"half")
    again = Shelf(tmp_path, limit)
    assert again.round_of("alice") == 3
    again.rewind(2)
    assert same(again.get("alice"), make(2))
    assert same(again.get("bob"), make(10))
    assert again.get("carol") is None
    assert again.clients() == ["alice", "bob"]
    assert files(tmp_path) == 2


def test_settle_keeps_what_a_rewind_may_ask_for(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    for turn in (1, 2, 3, 5):
        shelf.put("alice", turn, make(turn))
    shelf.put("bob", 9, make(9))
    shelf.settle(4)
    shelf.flush()
    assert files(tmp_path) == 3
    shelf.rewind(4)
    assert same(shelf.get("alice"), make(3))
    assert shelf.round_of("bob") is None
    shelf.rewind(2)
    assert shelf.get("alice") is None
    assert files(tmp_path) == 0


def test_a_shelf_without_a_folder_leaves_nothing_behind() -> None:
    shelf = Shelf(limit=0)
    shelf.put("alice", 1, make(1))
    folder = shelf._folder
    assert files(folder) == 1
    assert same(shelf.get("alice"), make(1))
    del shelf
    gc.collect()
    assert not folder.exists()


def test_a_damaged_part_and_a_file_for_a_folder_are_told(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "shelf")
    shelf.put("alice", 1, make(1))
    shelf.flush()
    path = tmp_path / "shelf" / "alice.1.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(StoreError, match=r"alice.1.safetensors: wanted whole safetensors, .*; remove the file"):
        Shelf(tmp_path / "shelf").get("alice")
    with pytest.raises(StoreError, match="wanted a folder"):
        Shelf(path)


@pytest.mark.parametrize("limit", [0, 2**30])
def test_the_part_before_a_round_is_given_however_much_came_later(tmp_path: Path, limit: int) -> None:
    shelf = Shelf(tmp_path, limit)
    for turn in (2, 5, 3):
        shelf.put("alice", turn, make(turn))
    shelf.put("bob", 0, make(10))
    shelf.flush()
    for found in (shelf, Shelf(tmp_path, limit)):
        wanted = {1: None, 2: None, 3: 2, 4: 3, 5: 3, 6: 5, 99: 5}
        for turn, part in wanted.items():
            got = found.get("alice", before=turn)
            assert got is None if part is None else same(got, make(part))
        assert same(found.get("alice"), make(5))
        assert same(found.get("bob", before=1), make(10))
        assert found.get("bob", before=0) is None
        assert found.get("carol", before=9) is None


def test_a_turn_that_is_taken_again_meets_what_was_there_before(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    shelf.put("alice", 1, make(1))
    for _ in range(2):
        assert same(shelf.get("alice", before=2), make(1))
        shelf.put("alice", 2, make(2))
    shelf.settle(1)
    assert same(shelf.get("alice", before=2), make(1)), "round 2 is not done, and may be asked for again"
    shelf.settle(2)
    assert shelf.get("alice", before=2) is None


# ---- drawers


def test_a_drawer_is_a_shelf_of_its_own(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    shelf.put("ann", 1, make(1))
    shelf.drawer("owed").put("bob", 1, make(2))
    assert shelf.clients() == ["ann"]
    assert shelf.drawer("owed").clients() == ["bob"]
    assert shelf.get("bob") is None
    assert same(shelf.drawer("owed").get("bob"), make(2))


def test_a_drawer_is_flushed_with_its_shelf(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    shelf.drawer("owed").put("ann", 1, make(1))
    assert not Shelf(tmp_path).drawer("owed").clients()
    shelf.flush()
    assert same(Shelf(tmp_path).drawer("owed").get("ann"), make(1))
    assert Shelf(tmp_path).clients() == []


@pytest.mark.parametrize("opened", [True, False], ids=["opened", "as it lies on disk"])
def test_a_drawer_is_rewound_and_settled_with_its_shelf(opened: bool, tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    for turn in (1, 2, 3):
        shelf.drawer("owed").put("ann", turn, make(turn))
    shelf.flush()
    shelf = shelf if opened else Shelf(tmp_path)
    shelf.rewind(2)
    assert files(tmp_path / "owed") == 2
    shelf.settle(2)
    assert files(tmp_path / "owed") == 1
    assert same(Shelf(tmp_path).drawer("owed").get("ann"), make(2))
