"""A bank's slots: which adapter is in which, who holds it, and the lines of a batch gathered from them."""

from collections import Counter
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor

from fedgen.bank import Bank, abreast
from fedgen.errors import BusyError, ServeError
from fedgen.serve.pool.adapter import BARE, Adapter, Course, Mixture, sound

Lines = tuple[Tensor, Tensor | None] | None  # a line a group, or several and their weights; none for the backbone
SOON = 1.0  # seconds after which a slot may be free


class Slots:
    """Adapters in a bank by content: counted while rows hold them, and the longest unused make room.

    One thread touches it. `pinned` tells the hashes that never make room, whenever room is wanted.
    """

    def __init__(self, bank: Bank, pinned: Callable[[], AbstractSet[str]] = frozenset) -> None:
        self.bank = bank
        self.pinned = pinned
        self.loads = self.hits = self.evictions = 0
        self._at: dict[str, int] = {}  # in which slot each is, the longest unused first
        self._holders: Counter[str] = Counter()
        self._free = list(range(len(bank.lines) - 1, 0, -1))

    def __len__(self) -> int:
        """How many adapters are in memory."""
        return len(self._at)

    @property
    def room(self) -> int:
        """How many there is room for."""
        return len(self.bank.lines) - 1

    def hold(self, course: Course) -> None:
        """Bring every adapter of a course into a slot, to stay until `release`: all of them, or none."""
        wanted, held = _adapters(course), []
        try:
            for adapter in wanted:
                self._take(adapter, wanted)
                self._holders[adapter.hash] += 1
                held.append(adapter)
        finally:
            if len(held) < len(wanted):
                self._drop(held)

    def release(self, course: Course) -> None:
        """Undo one `hold`; the adapters stay in memory until room is needed."""
        self._drop(_adapters(course))

    def gather(self, rows: Sequence[Mixture]) -> Lines:
        """The lines of a batch's rows, each of so many equal groups with its own mixture; where all are one, one."""
        if all(row == rows[0] for row in rows):
            rows = rows[:1]
        parts = [[(self._line(one), weight) for one, weight in row.items() if one != BARE] for row in rows]
        return abreast(parts, self.bank.lines[0]) if any(parts) else None

    def carry(self, lines: Lines) -> AbstractContextManager[None]:
        """Carry what was gathered for as long as the context lasts."""
        return self.bank.carry(lines[0], weights=lines[1]) if lines else nullcontext()

    def lay(self, rows: Sequence[Mixture]) -> AbstractContextManager[None]:
        """Gather and carry in one."""
        return self.carry(self.gather(rows))

    def _line(self, adapter: Adapter) -> Tensor:
        if not self._holders[adapter.hash]:
            raise ServeError(f"slots: adapter {adapter.hash[:12]} is not held; hold a row's course before it is laid")
        return self.bank.lines[self._at[adapter.hash]]

    def _take(self, adapter: Adapter, wanted: Sequence[Adapter]) -> None:
        """See that it is in a slot, and the one used last."""
        if adapter.hash in self._at:
            self.hits += 1
        else:
            self._load(adapter, wanted)
        self._at[adapter.hash] = self._at.pop(adapter.hash)

    def _load(self, adapter: Adapter, wanted: Sequence[Adapter]) -> None:
        goes = None if self._free else self._spare(wanted)  # before it is read, as that takes longest
        found = sound(adapter, self.bank.layout)
        slot = self._at[goes] if goes else self._free[-1]
        self.bank.write(slot, found)  # refuses before it writes
        if goes:
            del self._at[goes]
            self.evictions += 1
        else:
            self._free.pop()
        self._at[adapter.hash] = slot
        self.loads += 1

    def _spare(self, wanted: Sequence[Adapter]) -> str:
        """The longest unused of those that may go."""
        own, pinned = {adapter.hash for adapter in wanted}, self.pinned() & self._at.keys()
        for known in self._at:
            if not self._holders[known] and known not in pinned and known not in own:
                return known
        if len(own | pinned) > self.room:  # then waiting is of no use
            which = f"{len(pinned)} of {self.room} are pinned"
            raise ServeError(f"slots: no room for {len(own)} adapters at once, {which}; name fewer, or unpin some")
        raise BusyError(f"slots: all {self.room} hold adapters that are in use; ask again in a moment", SOON)

    def _drop(self, adapters: Sequence[Adapter]) -> None:
        for adapter in adapters:
            self._holders[adapter.hash] -= 1
            if not self._holders[adapter.hash]:
                del self._holders[adapter.hash]
            self._at[adapter.hash] = self._at.pop(adapter.hash)


def _adapters(course: Course) -> list[Adapter]:
    """Every adapter of a course, once."""
    return list(dict.fromkeys(one for _, mixture in course for one in mixture if one != BARE))
