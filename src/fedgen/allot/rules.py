"""Rules for the rank of each client."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

from fedgen.devices import Hardware, Load
from fedgen.records import Range


class Allot(Protocol):
    """A rule for the rank that each client trains at."""

    def ranks(
        self, names: Sequence[str], rank: int, some: Sequence[int], hardware: Mapping[str, Hardware], load: Load | None
    ) -> dict[str, int]:
        """The widest rank of each client: `rank` or, where a plan names some, one of these.

        `hardware` is what is known of the devices, and `load` what a turn asks of one.
        """


@dataclass(frozen=True)
class Dealt:
    """`adapter.ranks` are dealt out in turn by name; where the plan names none, all have `adapter.rank`."""

    def ranks(
        self, names: Sequence[str], rank: int, some: Sequence[int], hardware: Mapping[str, Hardware], load: Load | None
    ) -> dict[str, int]:
        """One after the other."""
        dealt = some or (rank,)
        return {name: dealt[at % len(dealt)] for at, name in enumerate(sorted(names))}


@dataclass(frozen=True)
class Carried:
    """Each client has the widest of `adapter.ranks` that its device carries; if none are named, of 1, 2, 4 and so on.

    That is one whose turn takes no more memory than the device has, and whose update is sent within `upload` seconds
    (0: however long it takes). A device that carries none of them, or of which nothing is known, gets the narrowest.
    """

    upload: Annotated[float, Range(0)] = 0.0

    def ranks(
        self, names: Sequence[str], rank: int, some: Sequence[int], hardware: Mapping[str, Hardware], load: Load | None
    ) -> dict[str, int]:
        """By each client's own device."""
        steps = sorted(some or doubled(rank))
        return {name: self._widest(steps, hardware.get(name), load) for name in names}

    def _widest(self, steps: Sequence[int], device: Hardware | None, load: Load | None) -> int:
        if device is None or load is None:
            return steps[0]
        return max((rank for rank in steps if self._carries(rank, device, load)), default=steps[0])

    def _carries(self, rank: int, device: Hardware, load: Load) -> bool:
        in_time = not self.upload or load.up(rank) <= self.upload * device.up
        return in_time and load.fits(device, rank)


def doubled(rank: int) -> list[int]:
    """1, 2, 4 and so on, up to this rank and with it."""
    return [*(1 << at for at in range(rank.bit_length()) if 1 << at < rank), rank]


@dataclass(frozen=True)
class Needed(Carried):
    """As carried, and under a budget: of what devices carry, more ranks go to the layers and clients that need more.

    What is offered to train on in a round has as many numbers in all as if each client had rank `mean`. A rank of a
    layer is worth the energy that it has in the adapter, by the numbers that it takes and by how far each number of its
    client's last update moved; those worth most are given, and one a layer at least. The first round finds out what is
    worth how much: in it clients train all that their devices carry.
    """

    mean: Annotated[float, Range(1)] = 4.0
