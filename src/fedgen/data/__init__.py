"""Text and pictures: sources of documents, who holds which, and each client's rows dealt into three parts."""

from fedgen.data.arrays import Cifar, Digits, Npz
from fedgen.data.deal import Deal, clients, count, join, take
from fedgen.data.partition import PARTITIONS, ByField, Classes, Contiguous, Dirichlet, Even, Partition
from fedgen.data.pictures import ImageFolder
from fedgen.data.sources import SOURCES, Folder, Hub, Jsonl, PennTreebank, Source, Stdlib

__all__ = [
    "PARTITIONS",
    "SOURCES",
    "ByField",
    "Cifar",
    "Classes",
    "Contiguous",
    "Deal",
    "Digits",
    "Dirichlet",
    "Even",
    "Folder",
    "Hub",
    "ImageFolder",
    "Jsonl",
    "Npz",
    "Partition",
    "PennTreebank",
    "Source",
    "Stdlib",
    "clients",
    "count",
    "join",
    "take",
]
