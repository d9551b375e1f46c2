"""Dealing: rows into three parts, nothing lost or twice, and small clients named."""

from collections.abc import Sequence
from typing import Literal

import pytest
import torch

from fedgen.data import Deal, clients, count, join, take
from fedgen.errors import DataError
from fedgen.records import Client, Document, Rows


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(*numbers: int) -> Rows:
    ids = torch.tensor(numbers, dtype=torch.long)
    return {"ids": ids[:, None].expand(-1, 2), "weight": ids.float()}


def ids(table: Rows) -> list[int]:
    assert table["ids"][:, 1].tolist() == table["weight"].tolist()
    return table["ids"][:, 0].tolist()


def dealt(client: Client | None) -> tuple[list[int], list[int], list[int]]:
    assert client is not None
    return ids(client.train), ids(client.valid), ids(client.test)


def test_rows_are_counted_taken_and_joined() -> None:
    assert (count({}), count(rows()), count(rows(5, 6, 7))) == (0, 0, 3)
    assert ids(take(rows(5, 6, 7), torch.tensor([2, 0]))) == [7, 5]
    assert ids(join([rows(5), {}, rows(), rows(6, 7)])) == [5, 6, 7]
    assert join([]) == {}


def test_join_of_other_columns() -> None:
    with pytest.raises(DataError, match=r"wanted the columns \['ids', 'weight'\], came \['ids'\]"):
        join([rows(1), {"ids": torch.zeros(1, 2)}])


def test_random_deals_each_row_once_in_the_asked_shares() -> None:
    train, valid, test = dealt(Deal(valid=0.1, test=0.2).deal("ann", {"": rows(*range(100))}, draw()))
    assert (len(train), len(valid), len(test)) == (70, 10, 20)
    assert sorted(train + valid + test) == list(range(100))
    assert test != list(range(80, 100))
    assert valid == sorted(valid)


def test_random_follows_the_generator() -> None:
    def held(seed: int) -> tuple[list[int], list[int], list[int]]:
        return dealt(Deal().deal("ann", {"": rows(*range(100))}, draw(seed)))

    assert held(0) == held(0)
    assert held(0) != held(1)


def test_tail_holds_the_last_rows_out() -> None:
    parts = {"": rows(*range(10))}
    assert dealt(Deal(0.2, 0.3, order="tail").deal("ann", parts, draw())) == ([0, 1, 2, 3, 4], [5, 6], [7, 8, 9])


@pytest.mark.parametrize("order", ["random", "tail"])
def test_three_rows_are_enough(order: Literal["random", "tail"]) -> None:
    parts = dealt(Deal(order=order).deal("ann", {"": rows(0, 1, 2)}, draw()))
    assert [len(part) for part in parts] == [1, 1, 1]


def test_named_parts_stay_as_they_are() -> None:
    parts = {"train": rows(3, 1, 2), "valid": rows(5), "test": rows(9, 8)}
    assert dealt(Deal().deal("ann", parts, draw())) == ([3, 1, 2], [5], [9, 8])


def test_unnamed_rows_join_the_named() -> None:
    parts = {"": rows(0, 1, 2, 3), "test": rows(9)}
    assert dealt(Deal(valid=0.25, test=0.0, order="tail").deal("ann", parts, draw())) == ([0, 1, 2], [3], [9])


def test_small_client_is_an_error_with_its_name_and_counts() -> None:
    with pytest.raises(DataError, match=r"client 'ann': .* came 0 to train, 1 to validate, 1 to test"):
        Deal().deal("ann", {"": rows(0, 1)}, draw())


def test_too_few_to_train() -> None:
    with pytest.raises(DataError, match="wanted at least 4, 1 and 1 rows, came 3 to train"):
        Deal(least=4).deal("ann", {"": rows(*range(5))}, draw())


@pytest.mark.parametrize("size", [0, 1, 2])
def test_small_client_is_dropped_when_asked(size: int) -> None:
    assert Deal(small="drop").deal("ann", {"": rows(*range(size))}, draw()) is None


def test_missing_part() -> None:
    with pytest.raises(DataError, match="came 1 to train, 0 to validate, 1 to test"):
        Deal().deal("ann", {"train": rows(1), "test": rows(2)}, draw())


def test_unknown_part() -> None:
    with pytest.raises(DataError, match="client 'ann': wanted the parts train, valid, test or none, came 'dev'"):
        Deal().deal("ann", {"dev": rows(1)}, draw())


@pytest.mark.parametrize(("valid", "test"), [(0.5, 0.5), (0.0, 1.0), (float("nan"), 0.1)])
def test_shares_that_leave_none_to_train(valid: float, test: float) -> None:
    with pytest.raises(DataError, match="valid and test: wanted shares that leave some to train"):
        Deal(valid, test)


DOCUMENTS = [Document("", str(i), part=part) for i, part in enumerate(["train", "train", "valid", "test"] * 2)]


def encode(documents: Sequence[Document]) -> Rows:
    return rows(*(int(document.text) for document in documents))


def test_clients_encode_once_a_client_and_part() -> None:
    calls: list[list[str]] = []

    def counted(documents: Sequence[Document]) -> Rows:
        calls.append([document.text for document in documents])
        return encode(documents)

    shares = {"bob": [4, 5, 6, 7], "ann": [0, 1, 2, 3]}
    found, dropped = clients(DOCUMENTS, shares, counted, Deal(), lambda name: draw())
    assert calls == [["0", "1"], ["2"], ["3"], ["4", "5"], ["6"], ["7"]]
    assert {name: dealt(client) for name, client in found.items()} == {
        "ann": ([0, 1], [2], [3]),
        "bob": ([4, 5], [6], [7]),
    }
    assert dropped == ()


def test_clients_do_not_depend_on_the_order_of_shares() -> None:
    documents = [Document("", str(i)) for i in range(40)]
    shares = {"bob": list(range(20)), "ann": list(range(20, 40))}
    names: list[str] = []

    def drawn(name: str) -> torch.Generator:
        names.append(name)
        return draw(len(name) + ord(name[0]))

    one, _ = clients(documents, shares, encode, Deal(), drawn)
    other, _ = clients(documents, dict(reversed(shares.items())), encode, Deal(), drawn)
    assert names == ["ann", "bob"] * 2
    assert list(one) == list(other) == ["ann", "bob"]
    assert all(dealt(one[name]) == dealt(other[name]) for name in one)


def test_clients_names_those_dropped() -> None:
    shares = {"ann": [0, 1, 2, 3], "eve": [4], "bob": []}
    found, dropped = clients(DOCUMENTS, shares, encode, Deal(small="drop"), lambda name: draw())
    assert (list(found), dropped) == (["ann"], ("bob", "eve"))


def test_clients_too_small_without_leave_to_drop() -> None:
    with pytest.raises(DataError, match="client 'eve'"):
        clients(DOCUMENTS, {"ann": [0, 1, 2, 3], "eve": [4]}, encode, Deal(), lambda name: draw())


@pytest.mark.parametrize("shares", [{}, {"eve": [4]}])
def test_no_client_left(shares: dict[str, list[int]]) -> None:
    with pytest.raises(DataError, match=f"wanted at least one client with enough data, came {len(shares)}"):
        clients(DOCUMENTS, shares, encode, Deal(small="drop"), lambda name: draw())
