"""What a catalogue holds: names with what they point to, and verdicts on what came in."""

import re
from dataclasses import dataclass

from fedgen import sample
from fedgen.errors import ServeError
from fedgen.records import GLOBAL
from fedgen.run import KEPT
from fedgen.serve.pool.adapter import Adapter

BACKBONE = sample.BARE
KINDS = ("backbone", "global", "cluster", "personal", "loaded")
OWN = "user/"  # before the name of the client whose adapter it is
LONGEST = 200  # characters of a name
LOADED = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(/[A-Za-z0-9_][A-Za-z0-9_.+-]*)*")
RESERVED = re.compile(rf"{BACKBONE}|{GLOBAL}|cluster-\d+")


@dataclass(frozen=True)
class Entry:
    """What a name points to. A lower `measure` is better; a version that is `kept` stays, whatever comes after it."""

    name: str
    kind: str
    adapter: Adapter
    owner: str = ""
    round: int = 0
    measure: float | None = None
    pinned: bool = False
    parent: str = ""
    kept: bool = False


@dataclass(frozen=True)
class Verdict:
    """What became of a version that came in, and why; one with an owner is for that owner's eyes."""

    name: str
    round: int
    published: bool
    reason: str
    owner: str = ""

    def __str__(self) -> str:
        """As a line for a terminal."""
        which = f"{self.name} of round {self.round}" if self.round else self.name
        return f"{which} {'is live' if self.published else 'is held back'}: {self.reason}"


def version_of(name: str, turn: int) -> str:
    """What a round's version of a name is called."""
    return f"{name}{KEPT}{turn}" if turn else name


def owner_of(name: str) -> str:
    """The client whose adapter has this name."""
    return name.removeprefix(OWN) if name.startswith(OWN) else ""


def order(entry: Entry) -> tuple[int, str, int]:
    """By kind and name, cluster-10 after cluster-9, with the versions of rounds behind."""
    plain, _, version = entry.name.partition(KEPT)
    counted = re.sub(r"\d+", lambda digits: digits[0].zfill(9), plain)
    return KINDS.index(entry.kind), counted, entry.round if version else -1


def check_loaded(name: str) -> None:
    """See that what is loaded by hand has a plain name, and none of the run's."""
    if not LOADED.fullmatch(name) or len(name) > LONGEST:
        wish = f"wanted at most {LONGEST} letters, digits and _ . + -, in parts between single /"
        raise ServeError(f"model '{name[:LONGEST]}': cannot be called so; {wish}")
    if RESERVED.fullmatch(name):
        raise ServeError(f"model '{name}': is a name of the run's own; load it under another")
