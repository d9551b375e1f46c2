"""Which device each client has: none that is known, one drawn, or one that a file names."""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Protocol

import torch

from fedgen import seeds
from fedgen.devices.hardware import CLASSES, DAY, Hardware, read_hardware
from fedgen.errors import PlanError
from fedgen.records import Range


class Devices(Protocol):
    """A rule for the device of each client."""

    def of(self, names: Iterable[str], seed: int) -> dict[str, Hardware]:
        """The clients' devices by name; none at all where they are not known."""


@dataclass(frozen=True)
class Unknown:
    """Nothing is known of clients' devices, and nothing asked of them."""

    def of(self, names: Iterable[str], seed: int) -> dict[str, Hardware]:
        """None."""
        return {}


@dataclass(frozen=True)
class Drawn:
    """Each client draws one of these `classes`, with chances in proportion to `shares` (none: all alike).

    Speed and links vary within a class by a factor that is log-normal with this `spread`, and the hours in which a
    device is online are moved by up to `shift`, either way. A draw depends on the client's name and the seed alone.
    """

    classes: tuple[str, ...] = tuple(CLASSES)
    shares: tuple[float, ...] = ()
    spread: Annotated[float, Range(0, 2)] = 0.0
    shift: Annotated[float, Range(0, DAY / 2)] = 0.0

    def __post_init__(self) -> None:
        if odd := [name for name in self.classes if name not in CLASSES]:
            raise PlanError(f"classes: '{odd[0]}' is not one of {', '.join(CLASSES)}")
        if not self.classes:
            raise PlanError(f"classes: wanted one or more of {', '.join(CLASSES)}, came none")
        if self.shares and len(self.shares) != len(self.classes):
            came = f"came {len(self.shares)} for {len(self.classes)} classes"
            raise PlanError(f"shares: wanted one a class, or none at all, {came}")
        if self.shares and (min(self.shares) < 0 or not sum(self.shares)):
            raise PlanError(f"shares: wanted chances of 0 and more, not all 0, came {list(self.shares)}")

    def of(self, names: Iterable[str], seed: int) -> dict[str, Hardware]:
        """One a client."""
        return {name: self._drawn(seeds.generator(seed, -1, name, "device")) for name in names}

    def _drawn(self, draw: torch.Generator) -> Hardware:
        chances = torch.tensor(self.shares or [1.0] * len(self.classes), dtype=torch.float64)
        known = CLASSES[self.classes[int(torch.multinomial(chances, 1, generator=draw))]]
        speed, up, down = (torch.randn(3, generator=draw, dtype=torch.float64) * self.spread).exp().tolist()
        moved = self.shift * (2 * torch.rand((), generator=draw, dtype=torch.float64).item() - 1)
        begin, end = known.hours
        hours = known.hours if (begin - end) % DAY == 0 else ((begin + moved) % DAY, (end + moved) % DAY)
        return replace(known, speed=known.speed * speed, up=known.up * up, down=known.down * down, hours=hours)


@dataclass(frozen=True)
class Named:
    """A TOML `file` says each client's: under [clients], NAME = "class", or a table of what a device has.

    A class is one of ours or the file's own, as [classes.NAME]. A table says memory, speed, up and down, and if need be
    hours, lost and rows; or with like = "class" only what differs from that.
    """

    file: str

    def of(self, names: Iterable[str], seed: int) -> dict[str, Hardware]:
        """As the file says; a client that it does not name is an error."""
        said, where = _loaded(Path(self.file)), f"devices '{self.file}'"
        if odd := said.keys() - {"classes", "clients"}:
            raise PlanError(f"{where}: '{min(odd)}' is not one of classes, clients")
        known, clients = dict(CLASSES), _table(f"{where}: clients", said.get("clients", {}))
        for name, own in _table(f"{where}: classes", said.get("classes", {})).items():
            if name in CLASSES:
                raise PlanError(f"{where}: classes.{name}: is a class already; choose another name")
            known[name] = replace(read_hardware(f"{where}: classes.{name}", own, known), kind=name)
        return {name: _named(where, name, clients, known) for name in names}


def _named(where: str, name: str, clients: Mapping[str, Any], known: Mapping[str, Hardware]) -> Hardware:
    if name not in clients:
        raise PlanError(f"{where}: says nothing of client '{name}'; add it under [clients], as a class or a table")
    own = clients[name]
    if not isinstance(own, str):
        return read_hardware(f"{where}: clients.{name}", own, known)
    if own not in known:
        raise PlanError(f"{where}: clients.{name}: '{own}' is not one of {', '.join(known)}")
    return known[own]


def _loaded(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise PlanError(f"devices '{path}': cannot be read ({error.strerror}); wanted a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PlanError(f"devices '{path}': is not TOML: {error}") from error


def _table(where: str, said: Any) -> Mapping[str, Any]:
    if not isinstance(said, Mapping):
        raise PlanError(
            f"{where}: is a section, came {said!r}; write [{where.rpartition(' ')[2]}] and its keys below it"
        )
    return said


DEVICES: dict[str, type[Devices]] = {"none": Unknown, "drawn": Drawn, "named": Named}
