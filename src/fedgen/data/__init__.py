"""Text data: sources of documents, who holds which, and each client's rows dealt into train, validation and test."""

from fedgen.data.deal import Deal, clients, count, join, take
from fedgen.data.partition import PARTITIONS, ByField, Contiguous, Dirichlet, Even, Partition
from fedgen.data.sources import SOURCES, Folder, Hub, Jsonl, PennTreebank, Source, Stdlib

__all__ = [
    "PARTITIONS",
    "SOURCES",
    "ByField",
    "Contiguous",
    "Deal",
    "Dirichlet",
    "Even",
    "Folder",
    "Hub",
    "Jsonl",
    "Partition",
    "PennTreebank",
    "Source",
    "Stdlib",
    "clients",
    "count",
    "join",
    "take",
]
