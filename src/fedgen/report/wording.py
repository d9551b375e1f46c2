"""Numbers as people read them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedgen.records import GLOBAL

ABSENT = "–"
UNITS = ("bytes", "kB", "MB", "GB", "TB")


def number(value: float, most: int = 2) -> str:
    """A measured value with as many digits as mean something."""
    if not math.isfinite(value):
        return ABSENT
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else most
    return f"{value:,.{digits}f}".replace("-", "−")


def percent(share: float) -> str:
    """A share in percent."""
    return f"{100 * share:.1f}%".replace("-", "−") if math.isfinite(share) else ABSENT


def saving(share: float) -> str:
    """A saved share, never rounded up: 98.999% is not 99%."""
    return f"{math.floor(share * 10_000) / 100:.2f}%".replace("-", "−")


def size(count: float) -> str:
    """Bytes in decimal units."""
    step = 0
    while count >= 999.5 and step < len(UNITS) - 1:
        count, step = count / 1000, step + 1
    return f"{count:.3g} {UNITS[step]}" if count < 999.5 else f"{count:,.0f} {UNITS[step]}"


def span(seconds: float) -> str:
    """A time in the two units that matter."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def scale(seconds: float) -> tuple[str, float]:
    """The largest unit of which so long a time has a few, and its seconds."""
    units = {"hours": 3600.0, "minutes": 60.0}
    return next(((name, unit) for name, unit in units.items() if seconds >= 2 * unit), ("seconds", 1.0))


def amount(count: int) -> str:
    """A count, in millions where it is one."""
    return f"{count / 1e6:.2f} million" if count >= 1_000_000 else f"{count:,}"


def counted(count: int, one: str, many: str = "") -> str:
    """A count with its noun."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def listed(names: Sequence[str], most: int = 8) -> str:
    """Names one after the other, the first few of many."""
    more = f", … ({len(names):,} in all)" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def called(cluster: str) -> str:
    """A cluster's name; a client in none is under the global adapter."""
    return "in no cluster" if cluster == GLOBAL else cluster


def happened(event: Mapping[str, Any]) -> str:
    """What befell clusters in a round."""
    if event["event"] == "moved":
        return f"{counted(event['clients'], 'client')} moved to another cluster"
    if event["event"] == "folded":
        few = f"fewer than {counted(event['least'], 'client')}"
        return f"{counted(event['clusters'], 'cluster')} of {few} folded into the nearest (hierarchy.least)"
    if event["event"] == "left out":
        return f"{counted(event['clients'], 'client')} in no cluster; the first said: {event['reason']}"
    before, after = listed(event["from"]), listed(event["into"])
    return f"{after} formed" if event["event"] == "formed" else f"{before} {event['event']} into {after}"
