"""Adapters in memory: by content, in slots, under names that point to them."""

from fedgen.serve.pool.adapter import BARE, Adapter, Course, Mixture
from fedgen.serve.pool.bundle import load
from fedgen.serve.pool.catalogue import Catalogue
from fedgen.serve.pool.entries import BACKBONE, Entry, Verdict
from fedgen.serve.pool.follow import Follow, fill
from fedgen.serve.pool.slots import Slots

__all__ = [
    "BACKBONE",
    "BARE",
    "Adapter",
    "Catalogue",
    "Course",
    "Entry",
    "Follow",
    "Mixture",
    "Slots",
    "Verdict",
    "fill",
    "load",
]
