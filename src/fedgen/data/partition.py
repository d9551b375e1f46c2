"""Who holds which documents: shares as client names with lists of indices, drawn from a generator."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace
from itertools import pairwise
from typing import Annotated, Literal, Protocol, TypeVar

import numpy as np
import torch

from fedgen.errors import DataError
from fedgen.records import Document, Range

WORDS = 4096  # the commonest words that topics are told apart by
RESTARTS = 4  # how often k-means starts anew
Item = TypeVar("Item")


class Partition(Protocol):
    """Anything that shares documents out; names come sorted, and so do the indices of each."""

    def share(self, documents: Sequence[Document], draw: torch.Generator) -> dict[str, list[int]]:
        """Every document once, by the name of the client that holds it."""
        ...


@dataclass(frozen=True)
class ByField:
    """A client for every owner, or for every label: the split that the data itself has."""

    field: Literal["owner", "label"] = "owner"

    def share(self, documents: Sequence[Document], draw: torch.Generator) -> dict[str, list[int]]:
        """Named by the field; nothing is drawn."""
        if not documents:
            raise DataError("partition by field: wanted documents, came 0")
        held = _group(range(len(documents)), _values(documents, self.field, "choose another partition"))
        return dict(sorted(held.items()))


@dataclass(frozen=True)
class Even:
    """So many clients, alike but for chance: documents at random, in numbers that differ by at most one a part."""

    clients: Annotated[int, Range(1)]

    def share(self, documents: Sequence[Document], draw: torch.Generator) -> dict[str, list[int]]:
        """Each part is shuffled, then cut."""
        return _share(documents, self.clients, lambda indices: _runs(_shuffle(indices, draw), self.clients))


@dataclass(frozen=True)
class Contiguous:
    """So many clients, each with a run of neighbouring documents."""

    clients: Annotated[int, Range(1)]

    def share(self, documents: Sequence[Document], draw: torch.Generator) -> dict[str, list[int]]:
        """Each part is cut as it lies; nothing is drawn."""
        return _share(documents, self.clients, lambda indices: _runs(indices, self.clients))


@dataclass(frozen=True)
class Dirichlet:
    """So many clients with skewed labels: of each label they hold proportions drawn from Dirichlet(alpha).

    With `topics` above 0 the labels are topics found in the text by TF-IDF and k-means. A client's proportions are the
    same in every part; whoever would go without takes one document of the client that holds most.
    """

    clients: Annotated[int, Range(1)]
    alpha: Annotated[float, Range(0, open=True)] = 0.5
    topics: Annotated[int, Range(0)] = 0

    def share(self, documents: Sequence[Document], draw: torch.Generator) -> dict[str, list[int]]:
        """Each label of each part is shuffled, then cut by its proportions."""
        _check(self.clients, len(documents), "")
        remedy = "name the field that holds the label, or set topics above 0"
        labels = _topics(documents, self.topics, draw) if self.topics else _values(documents, "label", remedy)
        numbers = np.random.default_rng(_seed(draw))
        ends = {label: numbers.dirichlet([self.alpha] * self.clients).cumsum() for label in sorted(set(labels))}

        def cut(indices: list[int]) -> list[list[int]]:
            held: list[list[int]] = [[] for _ in range(self.clients)]
            for label, own in sorted(_group(indices, labels).items()):
                _pour(_shuffle(own, draw), ends[label], held)
            return _fill(held)

        return _share(documents, self.clients, cut)


@dataclass(frozen=True)
class Classes:
    """So many clients that each hold `each` labels alone, the harshest skew; every label has about as many holders.

    A client holds the same labels in every part, and the holders of a label share its documents evenly.
    """

    clients: Annotated[int, Range(1)]
    each: Annotated[int, Range(1)] = 2

    def share(self, documents: Sequence[Document], draw: torch.Generator) -> dict[str, list[int]]:
        """Labels go to clients at random; each label of each part is shuffled, then cut."""
        _check(self.clients, len(documents), "")
        labels = _values(documents, "label", "name the field that holds the label")
        holders = self._holders(sorted(set(labels)), draw)

        def cut(indices: list[int]) -> list[list[int]]:
            held: list[list[int]] = [[] for _ in range(self.clients)]
            groups = _group(indices, labels)
            for label, holding in holders.items():
                own = groups.get(label, [])
                if len(own) < len(holding):
                    wish = f"a document for each of the {len(holding)} clients that hold label '{label}'"
                    came = f"{len(own)} {documents[indices[0]].part}".rstrip()
                    raise DataError(f"Classes: wanted {wish}, came {came} documents; share among fewer clients")
                for client, run in zip(holding, _runs(_shuffle(own, draw), len(holding)), strict=True):
                    held[client] += run
            return held

        return _share(documents, self.clients, cut)

    def _holders(self, labels: list[str], draw: torch.Generator) -> dict[str, list[int]]:
        """Clients choose in turn among the labels with fewest holders, so in the end these differ by at most one."""
        if not self.each <= len(labels) <= self.clients * self.each:
            wish = f"{self.each} to {self.clients * self.each} labels for {self.clients} clients with {self.each} each"
            raise DataError(f"Classes: wanted {wish}, came {len(labels)}; change clients or each")
        holders: dict[str, list[int]] = {label: [] for label in labels}
        for client in range(self.clients):
            for label in sorted(_shuffle(labels, draw), key=lambda label: len(holders[label]))[: self.each]:
                holders[label].append(client)
        return holders


def _share(
    documents: Sequence[Document], clients: int, cut: Callable[[list[int]], list[list[int]]]
) -> dict[str, list[int]]:
    """Cut every part on its own, so that each client gets some of each."""
    _check(clients, len(documents), "")
    held: list[list[int]] = [[] for _ in range(clients)]
    parts = _group(range(len(documents)), [document.part for document in documents])
    for part, indices in sorted(parts.items()):
        _check(clients, len(indices), part)
        for own, more in zip(held, cut(indices), strict=True):
            own += more
    width = len(str(clients))
    return {f"client-{number:0{width}d}": sorted(own) for number, own in enumerate(held, 1)}


def _check(clients: int, documents: int, part: str) -> None:
    if not 1 <= clients <= documents:
        kind = f"{part} documents" if part else "documents"
        wish = f"at least one client and a document for each, came {clients} clients and {documents} {kind}"
        raise DataError(f"partition: wanted {wish}; change the number of clients")


def _values(documents: Sequence[Document], field: Literal["owner", "label"], remedy: str) -> list[str]:
    values = [document.owner if field == "owner" else document.label for document in documents]
    if "" in values:
        raise DataError(f"partition: document {values.index('')} of {len(values)} has no {field}; {remedy}")
    return values


def _group(indices: Iterable[int], keys: Sequence[str]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for index in indices:
        groups.setdefault(keys[index], []).append(index)
    return groups


def _runs(items: list[int], clients: int) -> list[list[int]]:
    bounds = [len(items) * number // clients for number in range(clients + 1)]
    return [items[start:end] for start, end in pairwise(bounds)]


def _shuffle(items: list[Item], draw: torch.Generator) -> list[Item]:
    return [items[index] for index in torch.randperm(len(items), generator=draw).tolist()]


def _seed(draw: torch.Generator) -> int:
    return int(torch.randint(2**31 - 1, (), generator=draw).item())


def _pour(items: list[int], ends: np.ndarray, held: list[list[int]]) -> None:
    """Hand items out by the ends of everyone's proportion; the last end is all, whatever rounding says."""
    bounds = [0, *(ends[:-1] * len(items)).astype(int).tolist(), len(items)]
    for own, (start, end) in zip(held, pairwise(bounds), strict=True):
        own += items[start:end]


def _fill(held: list[list[int]]) -> list[list[int]]:
    """Give every client without anything one document of whoever holds most at that moment."""
    most = [(-len(own), number) for number, own in enumerate(held)]
    heapify(most)
    for own in held:
        if not own:
            size, number = most[0]
            own.append(held[number].pop())
            heapreplace(most, (size + 1, number))
    return held


def _topics(documents: Sequence[Document], topics: int, draw: torch.Generator) -> list[str]:
    """A topic for each document. One thread: several would add in the order they finish, and a tie could fall anew."""
    if topics > len(documents):
        raise DataError(f"Dirichlet: wanted at most a topic a document, came {topics} for {len(documents)} documents")
    from sklearn.cluster import KMeans  # a second to import, and only topics need it
    from sklearn.feature_extraction.text import TfidfVectorizer
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    seed = _seed(draw)
    texts = (f"{document.prompt} {document.text}" for document in documents)
    try:
        table = TfidfVectorizer(max_features=WORDS, sublinear_tf=True).fit_transform(texts)
    except ValueError as error:
        raise DataError(f"Dirichlet: wanted words to find topics by, came {len(documents)} texts without") from error
    with threadpool_limits(1):
        found = KMeans(topics, n_init=RESTARTS, random_state=seed).fit_predict(table)
    return [f"topic-{topic}" for topic in found.tolist()]


PARTITIONS: dict[str, type[Partition]] = {
    "field": ByField,
    "even": Even,
    "contiguous": Contiguous,
    "dirichlet": Dirichlet,
    "classes": Classes,
}
