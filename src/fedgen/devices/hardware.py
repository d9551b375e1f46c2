"""What a device can do, and a few classes of devices to begin with."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fedgen.errors import PlanError
from fedgen.records import Range

DAY = 24.0
MEGABIT, GIGABYTE = 1e6 / 8, 2**30
MOST = 1e18  # of anything: far more than there is
TAKES = {
    "memory": Range(1, MOST),
    "speed": Range(0, MOST, open=True),
    "up": Range(0, MOST, open=True),
    "down": Range(0, MOST, open=True),
    "hours": Range(0, DAY),
    "lost": Range(0, 1),
    "rows": Range(0, MOST),
}
NEEDED, WHOLE = ("memory", "speed", "up", "down"), ("memory", "rows")


@dataclass(frozen=True)
class Hardware:
    """What a device can do.

    `memory` is in bytes that training may take, `speed` in FLOP/s that it reaches, `up` and `down` in bytes/s. It is
    online in these `hours` of the day, of which the first may be the later one; an online day begins and ends alike. A
    turn is `lost` with this chance, and at most so many `rows` are kept to train on (0: all).
    """

    kind: str
    memory: int
    speed: float
    up: float
    down: float
    hours: tuple[float, float] = (0.0, DAY)
    lost: float = 0.0
    rows: int = 0


# Memory is half of what such a device has: the rest is the system's. Speed is about 0.3 of what a matrix product
# reaches in single precision on all cores, as training in small batches does. Links are the world's means in Ookla's
# Speedtest Global Index of September 2020: 11 up and 36 down over mobile networks, 46 and 86 over fixed ones, Mbit/s.
# Phones take part at night, when they are idle and charging, and 6 to 10 % of them drop out of a round (Bonawitz et
# al., "Towards federated learning at scale", 2019). Other hours, chances and speeds are round numbers of ours: a file
# of devices says what yours are.
CLASSES: dict[str, Hardware] = {
    "phone": Hardware("phone", 2 * GIGABYTE, 15e9, 11 * MEGABIT, 36 * MEGABIT, (22.0, 6.0), 0.08),  # 4 GB, 8 cores
    "tablet": Hardware("tablet", 3 * GIGABYTE, 20e9, 46 * MEGABIT, 86 * MEGABIT, (20.0, 7.0), 0.06),  # 6 GB, on Wi-Fi
    "laptop": Hardware("laptop", 8 * GIGABYTE, 100e9, 46 * MEGABIT, 86 * MEGABIT, (8.0, 18.0), 0.05),  # 16 GB, at work
    # A Raspberry Pi 4 of 2 GB: some 8 GFLOP/s in High Performance Linpack (double precision), so 5 here.
    "board": Hardware("board", 1 * GIGABYTE, 5e9, 46 * MEGABIT, 86 * MEGABIT, lost=0.02),
    # A fanless PC of 8 GB with four small cores, on a line of its own of 100 Mbit/s, never switched off.
    "gateway": Hardware("gateway", 4 * GIGABYTE, 40e9, 100 * MEGABIT, 100 * MEGABIT, lost=0.01),
}


def nearest(memory: float, speed: float) -> str:
    """The class whose memory and speed are nearest, as ratios."""
    return min(CLASSES, key=lambda name: _apart(CLASSES[name], memory, speed))


def _apart(known: Hardware, memory: float, speed: float) -> float:
    return math.hypot(math.log(known.memory / memory), math.log(known.speed / speed))


# ---- one that is said


def read_hardware(where: str, said: Any, known: Mapping[str, Hardware] = CLASSES) -> Hardware:
    """The device that a table says, or one clear line; `like` one of those known it needs to say only what differs."""
    if not isinstance(said, Mapping):
        raise PlanError(f"{where}: wanted a table with {', '.join(TAKES)}, came {said!r}")
    given, like = {key: value for key, value in said.items() if key != "like"}, said.get("like")
    if like is not None and like not in list(known):
        raise PlanError(f"{where}.like: {like!r} is not one of {', '.join(known)}")
    if odd := [key for key in given if key not in TAKES]:
        raise PlanError(f"{where}.{odd[0]}: no such key; a device has {', '.join(TAKES)}, or is like another")
    if like is None and (missing := [key for key in NEEDED if key not in given]):
        raise PlanError(f"{where}.{missing[0]}: is missing; say it, or like = 'phone' or another class")
    values = {key: _value(f"{where}.{key}", value, key) for key, value in given.items()}
    return replace(known[like], **values) if like else Hardware("own", **values)


def said_again(where: str, said: Any) -> Hardware:
    """The device of a class of ours that `dataclasses.asdict` has said in full."""
    kind = said["kind"]
    if kind not in list(CLASSES):
        raise PlanError(f"{where}.kind: {kind!r} is not one of {', '.join(CLASSES)}")
    own = {key: value for key, value in said.items() if key != "kind"}
    return replace(read_hardware(where, own), kind=kind)


def _value(where: str, value: Any, key: str) -> Any:
    if key != "hours":
        return _number(where, value, TAKES[key], whole=key in WHOLE)
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise PlanError(f"{where}: wanted two hours of the day, such as [22, 6], came {value!r}")
    return tuple(_number(where, each, TAKES[key], whole=False) for each in value)


def _number(where: str, value: Any, takes: Range, *, whole: bool) -> float:
    right = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not right or value not in takes:
        raise PlanError(f"{where}: wanted a {'whole ' if whole else ''}number {takes}, came {value!r}")
    return value if whole else float(value)
