"""What a turn is to each kind of device: whether it fits, and how long it takes."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from fedgen.devices.hardware import Hardware
from fedgen.devices.load import Load, Turn


@dataclass(frozen=True)
class Burden:
    """A turn on the devices of one kind: so many `clients`, of whom it `fits` so many, at ranks from low to high.

    `needs` is the most bytes that a turn takes of them, `memory` the fewest that one of them has, `turn` their mean.
    """

    kind: str
    clients: int
    fits: int
    ranks: tuple[int, int]
    needs: int
    memory: int
    turn: Turn


def burdens(
    hardware: Mapping[str, Hardware], load: Load, ranks: Mapping[str, int], rows: Mapping[str, int]
) -> tuple[Burden, ...]:
    """One a kind, of clients with these devices, ranks and rows to train on."""
    kinds: dict[str, list[str]] = {}
    for name, device in hardware.items():
        kinds.setdefault(device.kind, []).append(name)
    found = []
    for kind, names in sorted(kinds.items()):
        turns = [load.seconds(hardware[name], ranks[name], rows[name]) for name in names]
        own = [ranks[name] for name in names]
        found.append(
            Burden(
                kind,
                clients=len(names),
                fits=sum(load.fits(hardware[name], ranks[name]) for name in names),
                ranks=(min(own), max(own)),
                needs=load.memory(max(own)),
                memory=min(hardware[name].memory for name in names),
                turn=Turn(fmean(x.down for x in turns), fmean(x.work for x in turns), fmean(x.up for x in turns)),
            )
        )
    return tuple(found)
