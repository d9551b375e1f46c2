"""Which machines are there, and which clients they hold."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from fedgen.errors import ClientError
from fedgen.places import wire
from fedgen.places.wire import Errand, Parcel, Present
from fedgen.plan import Fleet

NAP, LOOK = 0.2, 2.0  # seconds between two looks for replies, and for nodes
AGAIN = 60.0  # seconds until a node that takes no part is asked again
CENSUS = ("sizes", "labels", "dropped", "hardware")  # what a run keeps of those who were there when it began


@dataclass(frozen=True)
class Arrived:
    """What came back of something sent: a parcel, or why none; `gone` if its node went away before it could answer."""

    ticket: str
    parcel: Parcel | None = None
    reason: str = ""
    gone: bool = False


class Post(Protocol):
    """What carries parcels to nodes and back."""

    def nodes(self) -> set[int]:
        """Who is online."""

    def send(self, node: int, parcel: Parcel, use: str, turn: int) -> str:
        """Send it on its way; the ticket by which its reply is known, or none if it cannot be sent."""

    def arrived(self, tickets: Sequence[str]) -> list[Arrived]:
        """What has come back of these."""


@dataclass(frozen=True)
class Noticed:
    """Something about the fleet that is worth a line."""

    said: str


class Roll:
    """The machines that were `met`, and `home`: which of them a client lives on."""

    def __init__(self, post: Post, errand: Errand, terms: Fleet, backbone: str, tell: Callable[[object], None]) -> None:
        self.post, self.errand, self.terms, self.backbone, self.tell = post, errand, terms, backbone, tell
        self.online: set[int] = set()
        self.met: dict[int, Present] = {}
        self.home: dict[str, int] = {}
        self._asked: dict[str, int] = {}  # the node that a question is under way to, by ticket
        self._refused: dict[int, float] = {}  # since when a node takes no part
        self._said: dict[int, str] = {}
        self._looked = -math.inf

    def gather(self, clients: Iterable[str] = ()) -> None:
        """Wait until as many nodes as the plan wants have said whom they hold, and these clients are among them.

        Too few nodes are an error once patience ends; for clients that a run knows already, one node will do.
        """
        wanted = set(clients)
        least = 1 if wanted else self.terms.nodes
        until, told = time.monotonic() + self.terms.patience, False
        while self._present() < self.terms.nodes or self._asked or not wanted <= self.home.keys():
            self.look()
            if not told and not self.online:
                self.tell(Noticed(f"no node is online; waiting {self.terms.patience:g} s for one"))
                told = True
            if time.monotonic() > until and self._present() < least:
                raise ClientError(self._missing())
            if time.monotonic() > until:
                missing = (
                    f", without {', '.join(sorted(wanted - self.home.keys()))}" if wanted - self.home.keys() else ""
                )
                self.tell(Noticed(f"going on with {self._present()} nodes{missing}"))
                return
            time.sleep(NAP)

    def census(self) -> dict[str, Any]:
        """Who is here: each client's rows, labels and device, and who has too little data."""
        here = [present for present in self.met.values() if not present.reason]
        return {
            "sizes": {name: rows for one in here for name, rows in sorted(one.rows.items())},
            "labels": {name: label for one in here for name, label in sorted(one.labels.items())},
            "dropped": sorted(name for one in here for name in one.dropped),
            "hardware": {name: asdict(one.hardware) for one in here if one.hardware for name in sorted(one.rows)},
        }

    def kinds(self) -> dict[str, str]:
        """Which class of devices each node says it is."""
        return {str(node): one.hardware.kind for node, one in self.met.items() if one.hardware}

    def said(self) -> str:
        """Where the run is played, for its report."""
        return f"a fleet of {self._present()} nodes"

    def at(self, client: str) -> int | None:
        """The node that a client can be reached on now."""
        node = self.home.get(client)
        return node if node in self.online else None

    def look(self) -> None:
        """See who is online, and ask those who are new whom they hold."""
        for arrived in self.post.arrived(list(self._asked)) if self._asked else ():
            self._welcome(self._asked.pop(arrived.ticket), arrived)
        if time.monotonic() - self._looked < LOOK:
            return
        self._looked = time.monotonic()
        before, self.online = self.online, self.post.nodes()
        for node, since in list(self._refused.items()):
            if time.monotonic() - since > AGAIN:  # it may have been mended
                del self._refused[node], self.met[node]
        for node in sorted((before - self.online) & self.met.keys()):
            self.tell(Noticed(f"node '{self.met[node].name}' is offline"))
        for node in sorted((self.online - before) & self.met.keys()):
            self.tell(Noticed(f"node '{self.met[node].name}' is online again"))
        for node in sorted(self.online - self.met.keys() - set(self._asked.values())):
            if ticket := self.post.send(node, wire.question(self.errand), "meet", 0):
                self._asked[ticket] = node

    def _welcome(self, node: int, arrived: Arrived) -> None:
        """Take down whom a node holds; one that went away before it could say is asked again."""
        if arrived.gone:
            return
        try:
            present = wire.read_present(arrived.parcel) if arrived.parcel else _absent(node, wire.plain(arrived.reason))
        except ClientError as error:
            present = _absent(node, str(error))
        self.met[node] = present = self._accepted(node, present)
        self.home |= dict.fromkeys(present.rows, node)
        if present.reason:
            self._refused[node] = time.monotonic()
        said = f"takes no part: {present.reason}" if present.reason else _holds(present)
        if self._said.get(node) != said:
            self._said[node] = said
            self.tell(Noticed(wire.plain(f"node '{present.name}' {said}")))

    def _accepted(self, node: int, present: Present) -> Present:
        """The same, or without clients and with the reason."""
        others = self.online - {node}
        taken = sorted(name for name in present.rows if self.home.get(name) in others)
        why = present.reason
        if not why and present.backbone != self.backbone:
            why = f"its backbone is {present.backbone[:16]}, wanted {self.backbone[:16]}; give it the same model"
        if not why and taken:
            why = f"client '{taken[0]}' is on another node already; give each device's node.toml a name of its own"
        return replace(present, rows={}, labels={}, dropped=(), reason=why) if why else present

    def _present(self) -> int:
        return sum(not present.reason for present in self.met.values())

    def _missing(self) -> str:
        out = [f"node '{one.name}' takes no part: {one.reason}" for one in self.met.values() if one.reason]
        silent = len(self.online - self.met.keys())
        said = "; ".join([*out[:3], *([f"{silent} online have not answered yet"] if silent else [])])
        many = "node" if self.terms.nodes == 1 else "nodes"
        wish = f"wanted {self.terms.nodes} {many} within {self.terms.patience:g} s, came {self._present()}"
        slow = "mend what is named, or wait longer (fleet.patience)"
        remedy = slow if self.online else "start nodes with `fedgen fleet join`, and see `fedgen fleet status`"
        return f"fleet: {wish}{f' ({said})' if said else ''}; {remedy}"


def _holds(present: Present) -> str:
    on = f" on a {present.hardware.kind}" if present.hardware else ""
    return f"holds {', '.join(sorted(present.rows))}{on}"


def _absent(node: int, reason: str) -> Present:
    return Present(str(node), {}, {}, reason=reason)
