"""The adapters under a batch's passes: gathered when the rows of a pass change, and carried until the next pass."""

import contextlib

from fedgen.serve.pool import Mixture, Slots
from fedgen.serve.pool.slots import Lines


class Under:
    """What each kind of pass is under; two kinds may take turns without gathering anything anew."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._carried = contextlib.ExitStack()
        self._now: list[Mixture] = []
        self._gathered: dict[str, tuple[list[Mixture], Lines]] = {}

    def lay(self, kind: str, rows: list[Mixture]) -> None:
        """Carry the lines of these rows, until another pass or `rest`."""
        known = next((found for found in self._gathered.values() if found[0] == rows), None)
        self._gathered[kind] = known or (rows, self._slots.gather(rows))
        if rows != self._now:
            self._carried.close()
            self._now = []  # should what follows fail, nothing is carried
            self._carried.enter_context(self._slots.carry(self._gathered[kind][1]))
            self._now = rows

    def rest(self) -> None:
        """Carry nothing and keep nothing."""
        self._carried.close()
        self._gathered.clear()
        self._now = []
