"""From documents to clients: encode what each holds and deal it into train, validation and test rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from torch import Tensor

from fedgen.data.disk import on_disk, size
from fedgen.errors import DataError
from fedgen.records import Client, Document, Range, Rows

PARTS = ("train", "valid", "test")
PASSAGE, APART = 400, 2000  # of a text without a prompt, so many characters tell what it is about, so far apart


def count(rows: Rows) -> int:
    """How many rows; none at all is a table without columns."""
    return len(next(iter(rows.values()))) if rows else 0


def take(rows: Rows, index: Tensor) -> Rows:
    """The rows at `index`, in its order."""
    return {key: value[index] for key, value in rows.items()}


def join(tables: Sequence[Rows]) -> Rows:
    """All rows of all tables, one after the other; tables without columns add nothing."""
    tables = [rows for rows in tables if rows]
    for rows in tables:
        if rows.keys() != tables[0].keys():
            raise DataError(f"join: wanted the columns {sorted(tables[0])}, came {sorted(rows)}")
    return {key: torch.cat([rows[key] for rows in tables]) for key in tables[0]} if tables else {}


@dataclass(frozen=True)
class Deal:
    """How a client's rows become three parts: shares of validation and test, at random or held out from the tail.

    A client needs `least` rows to train on and one each to validate and test; a `small` one is an error or left out.
    Up to `memory` megabytes of all clients' rows are kept in memory; more goes to temporary files. `pooled` gives every
    client the rows of all to train on: what could be had without keeping data apart.
    """

    valid: Annotated[float, Range(0, 1)] = 0.1
    test: Annotated[float, Range(0, 1)] = 0.15
    order: Literal["random", "tail"] = "random"
    least: Annotated[int, Range(1)] = 1
    small: Literal["error", "drop"] = "error"
    memory: Annotated[int, Range(0)] = 1024
    pooled: bool = False

    def __post_init__(self) -> None:
        if not self.valid + self.test < 1:
            came = f"valid = {self.valid} and test = {self.test}"
            raise DataError(f"valid and test: wanted shares that leave some to train, came {came}")

    def deal(self, name: str, parts: Mapping[str, Rows], draw: torch.Generator) -> Client | None:
        """The client, or None if it is too small and small ones are dropped. Rows of a named part stay in it."""
        for part in parts:
            if part not in ("", *PARTS):
                raise DataError(f"client '{name}': wanted the parts {', '.join(PARTS)} or none, came '{part}'")
        dealt = self._split(parts.get("", {}), draw)
        train, valid, test = (join([parts.get(part, {}), rows]) for part, rows in zip(PARTS, dealt, strict=True))
        if count(train) >= self.least and count(valid) and count(test):
            return Client(name, train, valid, test)
        if self.small == "drop":
            return None
        came = f"{count(train)} to train, {count(valid)} to validate, {count(test)} to test"
        remedy = "give it more data, share among fewer clients, or leave small ones out (deal.small = 'drop')"
        raise DataError(f"client '{name}': wanted at least {self.least}, 1 and 1 rows, came {came}; {remedy}")

    def _split(self, rows: Rows, draw: torch.Generator) -> list[Rows]:
        total = count(rows)
        valid = min(_held_out(total, self.valid), total)
        test = min(_held_out(total, self.test), total - valid)
        order = torch.randperm(total, generator=draw) if self.order == "random" else torch.arange(total)
        return [take(rows, piece.sort().values) for piece in order.split([total - valid - test, valid, test])]


def _held_out(total: int, share: float) -> int:
    """A share of the rows, and never none of it where some is wanted."""
    return max(round(total * share), 1) if share else 0


def clients(
    documents: Sequence[Document],
    shares: Mapping[str, Sequence[int]],
    encode: Callable[[Sequence[Document]], Rows],
    deal: Deal,
    draw_of: Callable[[str], torch.Generator],
) -> tuple[dict[str, Client], tuple[str, ...]]:
    """The clients by name, and the names of those dropped as too small; `encode` is called once a client and part."""
    kept: dict[str, Client] = {}
    dropped: list[str] = []
    room = deal.memory * 2**20
    for name in sorted(shares):
        parts = {part: encode(own) for part, own in _by_part(documents, shares[name]).items()}
        client = deal.deal(name, parts, draw_of(name))
        if client is None:
            dropped.append(name)
            continue
        client = replace(client, asks=asks([documents[at] for at in shares[name]]))
        if size(client) <= room:
            room -= size(client)
        else:
            client = on_disk(client)
        kept[name] = client
    if not kept:
        raise DataError(f"data: wanted at least one client with enough data, came {len(dropped)}, all too small")
    if deal.pooled:
        rows = join([client.train for client in kept.values()])
        kept = {name: replace(client, train=rows) for name, client in kept.items()}
    return kept, tuple(dropped)


def asks(documents: Sequence[Document]) -> tuple[str, ...]:
    """What documents to learn from ask for, each thing once: their prompts, or passages, or labels."""
    own = [document for document in documents if document.part in ("", "train")]
    return tuple(dict.fromkeys(text for document in own for text in _passages(document) if text.strip()))


def _passages(document: Document) -> list[str]:
    if document.prompt or not document.text:
        return [document.prompt or document.label]
    return [document.text[at : at + PASSAGE] for at in range(0, len(document.text), APART)]


def _by_part(documents: Sequence[Document], indices: Sequence[int]) -> dict[str, list[Document]]:
    parts: dict[str, list[Document]] = {}
    for index in indices:
        parts.setdefault(documents[index].part, []).append(documents[index])
    return parts
