"""Rows on disk: the same numbers as in memory, in a file that goes with them."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedgen.data import Deal, clients, join, take
from fedgen.data.disk import on_disk, size
from fedgen.errors import DataError
from fedgen.records import Client, Document, Rows

MAPS = Path("/proc/self/maps")
PIXELS = 128 * 128  # of 4 bytes: a row is some 64 kB
needs_proc = pytest.mark.skipif(not MAPS.exists(), reason="only Linux says which memory is a file's")


def encode(documents: Sequence[Document]) -> Rows:
    numbers = torch.tensor([int(document.text) for document in documents])
    return {
        "picture": numbers[:, None] + torch.arange(PIXELS) / PIXELS,
        "seen": numbers[:, None] % torch.arange(2, 5) == 0,
        "half": numbers.to(torch.bfloat16),
        "nothing": torch.zeros(len(numbers), 0),
        "number": numbers,
    }


def dealt(memory: int) -> dict[str, Client]:
    documents = [Document("", str(number)) for number in range(60)]
    shares = {f"client-{at}": list(range(20 * at, 20 * at + 20)) for at in range(3)}
    return clients(documents, shares, encode, Deal(memory=memory), lambda name: torch.Generator().manual_seed(0))[0]


def tables(client: Client) -> list[Rows]:
    return [client.train, client.valid, client.test]


def mapped(value: Tensor) -> bool:
    """Whether the value's memory is that of a file of ours."""
    for line in MAPS.read_text().splitlines():
        start, end = (int(place, 16) for place in line.split()[0].split("-"))
        if start <= value.data_ptr() < end:
            return "fedgen-rows-" in line and line.endswith("(deleted)")
    return False


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in which temporary files are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_rows_on_disk_are_the_rows_in_memory(folder: Path) -> None:
    resident, away = dealt(1024), dealt(0)
    assert list(resident) == list(away)
    for name, client in resident.items():
        for here, there in zip(tables(client), tables(away[name]), strict=True):
            assert list(here) == list(there)
            assert all(torch.equal(here[key], there[key]) and here[key].dtype == there[key].dtype for key in here)
            index = torch.tensor([-1, 0])
            one, other = take(join([here, here]), index), take(join([there, there]), index)
            assert all(torch.equal(one[key], other[key]) for key in one)


@needs_proc
def test_clients_are_in_memory_up_to_the_limit_and_no_further(folder: Path) -> None:
    found = dealt(3)
    assert [size(client) // 2**20 for client in found.values()] == [1, 1, 1]  # of 1.3 MB each, two go into three
    where = {name: {mapped(rows["picture"]) for rows in tables(client)} for name, client in found.items()}
    assert where == {"client-0": {False}, "client-1": {False}, "client-2": {True}}


@needs_proc
def test_files_have_neither_name_nor_descriptor_and_go_with_the_rows(folder: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    found = dealt(0)
    assert list(folder.iterdir()) == []
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert MAPS.read_text().count("fedgen-rows-") == 3
    del found
    assert MAPS.read_text().count("fedgen-rows-") == 0


def test_no_place_for_the_rows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = dealt(1024)["client-0"]
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "nowhere"))
    with pytest.raises(
        DataError, match=r"'client-0': wanted \d+ bytes on disk in .*nowhere, came .*raise deal\.memory"
    ):
        on_disk(client)
