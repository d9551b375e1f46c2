"""Partitions: everyone exactly once, the same from the same generator, and as skewed as asked."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from fedgen.data import PARTITIONS, ByField, Classes, Contiguous, Dirichlet, Even, Partition
from fedgen.errors import DataError
from fedgen.records import Document

TOPICS = {
    "sea": "ship sail harbour wave captain",
    "kitchen": "flour oven bread butter cook",
    "sky": "star moon orbit comet",
}
MADE: dict[str, Partition] = {
    "owner": ByField(),
    "label": ByField("label"),
    "even": Even(7),
    "contiguous": Contiguous(7),
    "labels": Dirichlet(7, alpha=0.3),
    "topics": Dirichlet(7, alpha=0.3, topics=3),
    "classes": Classes(7, each=2),
}
PARTS = {"train": "xyz", "test": "xy"}
NUMBERED: list[Callable[[int], Partition]] = [Even, Contiguous, Dirichlet, Classes]


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def corpus(size: int = 300, parts: tuple[str, ...] = ("",)) -> list[Document]:
    labels = sorted(TOPICS)
    return [
        Document(f"owner-{i % 11}", f"{TOPICS[labels[i % 3]]} {i % 5}", label=labels[i % 3], part=parts[i % len(parts)])
        for i in range(size)
    ]


def skew(shares: dict[str, list[int]], documents: list[Document]) -> float:
    """The mean share of a client's commonest label: a third when even, one when each holds a single label."""
    tops = [max(Counter(documents[i].label for i in own).values()) / len(own) for own in shares.values()]
    return sum(tops) / len(tops)


@pytest.mark.parametrize("part", MADE.values(), ids=MADE)
@pytest.mark.parametrize("parts", [("",), ("train", "train", "valid", "test")], ids=["whole", "in parts"])
def test_every_document_once_and_again_the_same(part: Partition, parts: tuple[str, ...]) -> None:
    documents = corpus(parts=parts)
    shares = part.share(documents, draw())
    assert sorted(i for own in shares.values() for i in own) == list(range(len(documents)))
    assert list(shares) == sorted(shares)
    assert all(own and own == sorted(own) for own in shares.values())
    again = part.share(documents, draw())
    assert (again, list(again)) == (shares, list(shares))


@pytest.mark.parametrize("name", ["even", "labels", "topics", "classes"])
def test_another_generator_shares_otherwise(name: str) -> None:
    assert MADE[name].share(corpus(), draw(0)) != MADE[name].share(corpus(), draw(1))


@pytest.mark.parametrize("name", ["even", "contiguous", "labels", "topics", "classes"])
def test_every_client_holds_some_of_each_part(name: str) -> None:
    documents = corpus(parts=("train", "train", "valid", "test"))
    for own in MADE[name].share(documents, draw()).values():
        assert {documents[i].part for i in own} == {"train", "valid", "test"}


def test_clients_are_numbered_to_the_width_of_their_count() -> None:
    assert list(Contiguous(3).share(corpus(), draw())) == ["client-1", "client-2", "client-3"]
    names = list(Even(100).share(corpus(), draw()))
    assert (names[0], names[6], names[-1]) == ("client-001", "client-007", "client-100")


def test_by_field_is_the_data_s_own_split() -> None:
    documents = [Document("b", "1", label="y"), Document("a", "2", label="y"), Document("b", "3", label="x")]
    assert list(ByField().share(documents, draw()).items()) == [("a", [1]), ("b", [0, 2])]
    assert list(ByField("label").share(documents, draw()).items()) == [("x", [2]), ("y", [0, 1])]


def test_even_is_equal_in_number_and_mixed() -> None:
    documents = corpus(302)
    shares = Even(4).share(documents, draw())
    assert sorted(len(own) for own in shares.values()) == [75, 75, 76, 76]
    assert skew(shares, documents) < 0.45
    assert all(max(own) - min(own) > 200 for own in shares.values())


def test_contiguous_cuts_as_it_lies() -> None:
    documents = [Document("", str(i), part=part) for part in ("train", "test") for i in range(4)]
    assert Contiguous(2).share(documents, draw()) == {"client-1": [0, 1, 4, 5], "client-2": [2, 3, 6, 7]}


def test_dirichlet_is_skewed_when_alpha_is_small_and_even_when_large() -> None:
    documents = corpus(3000)
    skews = [skew(Dirichlet(10, alpha).share(documents, draw()), documents) for alpha in (0.05, 0.5, 5.0, 1000.0)]
    assert skews == sorted(skews, reverse=True)
    assert skews[0] > 0.8
    assert skews[-1] < 0.38


def test_dirichlet_shares_have_the_variance_of_the_law() -> None:
    """One label, n clients: a share's variance is (1/n)(1 - 1/n) / (n alpha + 1)."""
    clients, alpha, documents = 5, 2.0, [Document("", "", label="x")] * 1000
    runs = [Dirichlet(clients, alpha).share(documents, draw(seed)) for seed in range(200)]
    sizes = torch.tensor([[len(own) / 1000 for own in run.values()] for run in runs])
    wanted = (1 / clients) * (1 - 1 / clients) / (clients * alpha + 1)
    assert sizes.mean(0).tolist() == pytest.approx([0.2] * clients, abs=0.03)
    assert sizes.var().item() == pytest.approx(wanted, rel=0.2)


def test_dirichlet_keeps_a_client_s_proportions_in_every_part() -> None:
    documents = [Document("", "", label=label, part=part) for part in ("train", "test") for label in "xyz" * 1000]
    shares = Dirichlet(6, alpha=0.5).share(documents, draw())
    for own in shares.values():
        held = Counter((documents[i].label, documents[i].part) for i in own)
        for label in "xyz":
            assert abs(held[label, "train"] - held[label, "test"]) <= 1


def test_dirichlet_leaves_nobody_without() -> None:
    documents = corpus(60)
    sizes = [len(own) for own in Dirichlet(50, alpha=0.01).share(documents, draw()).values()]
    assert min(sizes) >= 1


def test_topics_find_the_labels_that_nobody_wrote_down() -> None:
    documents = corpus()
    blank = [Document(d.owner, d.text) for d in documents]
    mixed = skew(Dirichlet(6, alpha=1000.0, topics=3).share(blank, draw()), documents)
    shares = Dirichlet(6, alpha=0.02, topics=3).share(blank, draw())
    assert mixed < 0.45
    assert skew(shares, documents) > 0.8


def ten_classes(parts: tuple[str, ...] = ("",)) -> list[Document]:
    return [Document("", "", label=str(i % 10), part=part) for part in parts for i in range(1000)]


@pytest.mark.parametrize("each", [1, 2, 3, 10])
def test_classes_hold_so_many_labels_and_the_same_in_every_part(each: int) -> None:
    documents = ten_classes(("train", "valid", "test"))
    for own in Classes(12, each).share(documents, draw()).values():
        held = {
            part: {documents[i].label for i in own if documents[i].part == part} for part in ("train", "valid", "test")
        }
        assert len(held["train"]) == each
        assert held["train"] == held["valid"] == held["test"]


@pytest.mark.parametrize(("clients", "each"), [(10, 1), (12, 2), (7, 3), (33, 4)])
def test_classes_share_labels_and_documents_in_balance(clients: int, each: int) -> None:
    documents = ten_classes()
    held = [
        Counter(documents[i].label for i in own) for own in Classes(clients, each).share(documents, draw()).values()
    ]
    for label in map(str, range(10)):
        counts = [own[label] for own in held if own[label]]
        assert len(counts) in (clients * each // 10, -(-clients * each // 10))
        assert max(counts) - min(counts) <= 1


def test_classes_pair_labels_otherwise_with_another_generator() -> None:
    documents = ten_classes()

    def pairs(seed: int) -> set[frozenset[str]]:
        shares = Classes(20, each=2).share(documents, draw(seed))
        return {frozenset(documents[i].label for i in own) for own in shares.values()}

    assert len(pairs(0)) > 10  # not the same few pairs over and over
    assert pairs(0) != pairs(1)


@pytest.mark.parametrize(("clients", "each", "wish"), [(4, 2, "2 to 8"), (20, 11, "11 to 220")])
def test_classes_that_leave_labels_over_or_ask_for_too_many(clients: int, each: int, wish: str) -> None:
    with pytest.raises(DataError, match=f"wanted {wish} labels for {clients} clients with {each} each, came 10"):
        Classes(clients, each).share(ten_classes(), draw())


def test_classes_with_a_label_too_rare_for_its_holders() -> None:
    documents = [Document("", "", label=label, part=part) for part in ("test", "train") for label in "xxxxyyyyzz"]
    with pytest.raises(DataError, match=r"each of the [34] clients that hold label 'z', came 2 test documents"):
        Classes(5, each=2).share(documents, draw())
    with pytest.raises(DataError, match=r"each of the [34] clients that hold label 'z', came 2 documents"):
        Classes(5, each=2).share([replace(document, part="") for document in documents[:10]], draw())


def test_classes_with_a_label_that_a_part_is_without() -> None:
    documents = [Document("", "", label=label, part=part) for part, labels in PARTS.items() for label in labels * 3]
    with pytest.raises(DataError, match=r"each of the 2 clients that hold label 'z', came 0 test documents"):
        Classes(3, each=2).share(documents, draw())


@pytest.mark.parametrize("kind", NUMBERED)
@pytest.mark.parametrize("clients", [0, -1, 6])
def test_no_clients_or_more_than_documents(kind: Callable[[int], Partition], clients: int) -> None:
    with pytest.raises(DataError, match=f"came {clients} clients and 5 documents"):
        kind(clients).share(corpus(5), draw())


@pytest.mark.parametrize("kind", NUMBERED)
def test_more_clients_than_documents_of_a_part(kind: Callable[[int], Partition]) -> None:
    with pytest.raises(DataError, match="came 4 clients and 3 test documents"):
        kind(4).share(corpus(12, ("train", "train", "test", "valid")), draw())


@pytest.mark.parametrize("part", [ByField(), Even(1), Contiguous(1), Dirichlet(1), Classes(1)])
def test_no_documents(part: Partition) -> None:
    with pytest.raises(DataError, match=r"0|no documents"):
        part.share([], draw())


@pytest.mark.parametrize("part", [ByField("label"), Dirichlet(2), Classes(2)])
def test_missing_label(part: Partition) -> None:
    with pytest.raises(DataError, match="document 1 of 2 has no label"):
        part.share([Document("a", "x", label="l"), Document("a", "y")], draw())


def test_missing_owner() -> None:
    with pytest.raises(DataError, match="document 0 of 1 has no owner"):
        ByField().share([Document("", "x")], draw())


def test_topics_without_words() -> None:
    with pytest.raises(DataError, match="wanted words to find topics by"):
        Dirichlet(2, topics=2).share([Document("", "!"), Document("", "?")], draw())


def test_more_topics_than_documents() -> None:
    with pytest.raises(DataError, match="came 9 for 5 documents"):
        Dirichlet(2, topics=9).share(corpus(5), draw())


def test_table_names_every_partition() -> None:
    kinds = {"field": ByField, "even": Even, "contiguous": Contiguous, "dirichlet": Dirichlet, "classes": Classes}
    assert dict(PARTITIONS) == kinds


@pytest.mark.parametrize("part", [ByField(), Even(100_000), Contiguous(100_000)])
def test_a_million_documents_in_seconds(part: Partition) -> None:
    owners = [Document(str(i), "") for i in range(100_000)]
    began = time.process_time()
    shares = part.share(owners * 10, draw())
    assert time.process_time() - began < 10
    assert len(shares) == 100_000
    assert {len(own) for own in shares.values()} == {10}
