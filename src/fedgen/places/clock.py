"""A simulated clock over the clients of this process: a turn takes the time that it would take on the client's device.

Rounds end on a fleet's terms, so a run here is the rehearsal of the fleet's; but nobody's patience ends, as waiting
costs nothing here. Only training takes time.
"""

import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedgen import tree
from fedgen.errors import ClientError, StoreError, TreeError
from fedgen.journal import REMEDY
from fedgen.places.late import change, laid, of
from fedgen.places.pace import Flight, Pace
from fedgen.plan import Fleet
from fedgen.records import Ask, Failure, Offer, Reply, Report, Tree, Update
from fedgen.store import read_bytes, write_whole

FILE = "clock-{}.safetensors"  # of a round, beside the checkpoint
Unheard = Callable[[Offer, str], Failure]  # what becomes of an offer that is not answered, and why


class Clock:
    """Asks clients in simulated time: `now` is in seconds since the run began, at 0:00 of a day.

    Who is late, lost or not needed is known before anyone trains, so they train nothing. Asynchronous turns are trained
    as they begin, and lie in flight until their time.
    """

    def __init__(
        self,
        inner: Ask,
        pace: Pace,
        terms: Fleet,
        unheard: Callable[[], Unheard],
        tell: Callable[[object], None],
    ) -> None:
        self.inner, self.pace, self.terms, self.unheard, self.tell = inner, pace, terms, unheard, tell
        self.now = 0.0
        self.flying: dict[str, Flight] = {}  # by client; of synchronous rounds those that nobody waits for any more
        self._start()

    def ask(self, offers: Iterable[Offer]) -> Iterator[Reply]:
        """Offer, and yield replies as they come, until enough have or the time is up."""
        waiting = iter(offers)
        if (first := next(waiting, None)) is None:
            return
        found = itertools.chain([first], waiting)
        for reply in self._round(list(found)) if first.use == "train" else self.inner(found):
            self.tell(reply)
            yield reply

    def stamped(self, report: Report) -> Report:
        """The report of a round with its times, and what came of the turns on each kind of device."""
        times = {"clock": self.now, "waited": self._waited}
        if self.terms.buffer:
            times["late"] = sum(self._late) / max(len(self._late), 1)
        stamped = replace(report, metrics={**report.metrics, **times}, devices=dict(sorted(self._turns.items())))
        self._start()
        return stamped

    def _start(self) -> None:
        self._waited = 0.0
        self._late: list[int] = []
        self._turns: dict[str, dict[str, float]] = {}

    # ---- a round

    def _round(self, offers: Sequence[Offer]) -> Iterator[Reply]:
        """Train those who are in time, and say of the others why nothing came of them."""
        began, lasts, busy = self.now, self.terms.buffer > 0, dict(self.flying)
        unheard = self.unheard()  # one for all, as it encodes each adapter once
        asked = [offer for offer in offers if not (lasts and offer.client in busy)]
        refused = {offer.client: why for offer in asked if (why := self.pace.refusal(offer))}
        free = {name: flight.end for name, flight in busy.items()}
        able = [offer for offer in asked if offer.client not in refused]
        new = [self.pace.flight(offer, free.get(offer.client, began)) for offer in able]
        due, self.now = self._due([*(busy.values() if lasts else ()), *new], offers)
        self._waited += self.now - began
        begun = [flight for flight in new if flight.begin <= self.now]
        if lasts:
            self._take_off(begun, unheard)
            yield from self._lasting(due, offers)
        else:
            yield from self._timely(begun, due, began, unheard)
        for offer in asked:
            if offer.client in refused:
                yield self._missed(unheard(offer, refused[offer.client]))
        for flight in new:
            if flight.begin > self.now:
                why = "its node is at an earlier question" if flight.client in busy else "its node is not online"
                yield self._missed(flight.offer.failed(why))

    def _due(self, flights: Sequence[Flight], offers: Sequence[Offer]) -> tuple[list[Flight], float]:
        """Those that arrive before a round that begins now has waited long enough, and when that is."""
        terms, at, limit = self.terms, self.now, self.now + self.terms.deadline
        enough, most = of(len(offers), terms.quorum), terms.buffer or of(len(offers), 1 - terms.spare)
        known = sorted(flights, key=lambda flight: flight.order)
        coming = [flight for flight in known if flight.end < math.inf]
        for count, flight in enumerate(coming, 1):
            at, later = max(at, flight.end), known[count:]
            if count >= most:
                return coming[:count], at
            if count < enough or (later and later[0].end <= at):
                continue
            if at >= limit or not any(other.begin <= at for other in later):
                return coming[:count], at
            if later[0].end > limit:
                return coming[:count], limit
        if len(coming) == len(known):
            return coming, at
        if not terms.buffer:
            wish = f"round {offers[0].round}: wanted updates of {terms.quorum:g} of those asked (fleet.quorum)"
            came = f"came {len(coming)} of {len(offers)}, as the turns of the others are lost"
            raise ClientError(f"{wish}, {came}; lower it, or ask more clients a round")
        return coming, max(at, limit)

    def _timely(
        self, begun: Sequence[Flight], due: Sequence[Flight], began: float, unheard: Unheard
    ) -> Iterator[Reply]:
        """The replies of a round that ends for all who were asked in it."""
        on_time, spent = {flight.client: flight for flight in due}, self.now - began
        slow = f"no answer within {spent:.0f} s" if spent >= self.terms.deadline else "enough others were faster"
        for reply in self.inner(flight.offer for flight in due):
            yield self._arrived(on_time[reply.client], reply)
        for flight in begun:
            if flight.client not in on_time:
                self.flying[flight.client] = _bare(flight)
                yield self._missed(unheard(flight.offer, slow))
        self.flying = {name: flight for name, flight in self.flying.items() if self.now < flight.end < math.inf}

    def _lasting(self, due: Sequence[Flight], offers: Sequence[Offer]) -> Iterator[Reply]:
        """The replies of an asynchronous round: changes that arrive in it, whenever they began."""
        today, turn = {offer.cluster: offer.adapter for offer in offers}, offers[0].round
        for flight in [self.flying.pop(flight.client) for flight in due]:
            reply = laid(_came(flight), today, turn, self.terms.staleness)
            if isinstance(reply, Update):
                self._late.append(turn - flight.offer.round)
            yield self._arrived(flight, reply)
        silent = f"no answer within {self.terms.deadline:g} s"
        for flight in [each for each in self.flying.values() if self.now - each.begin > self.terms.deadline]:
            del self.flying[flight.client]
            offer, reply = flight.offer, _came(flight)
            yield self._missed(Failure(turn, offer.client, offer.cluster, silent, reply.down))

    def _take_off(self, begun: Sequence[Flight], unheard: Unheard) -> None:
        """Train the turns that begin, but for those that are lost."""
        whole = {flight.client: flight for flight in begun if flight.end < math.inf}
        for flight in begun:
            if flight.client not in whole:
                self.flying[flight.client] = replace(_bare(flight), reply=unheard(flight.offer, "lost"))
        for reply in self.inner(flight.offer for flight in whole.values()):
            flight = whole[reply.client]
            self.flying[flight.client] = replace(_bare(flight), reply=change(reply, flight.offer))

    # ---- what is counted

    def _arrived(self, flight: Flight, reply: Reply) -> Reply:
        if isinstance(reply, Failure):
            return self._missed(reply)
        self._count(reply.client, turns=1, seconds=flight.end - flight.begin)
        return reply

    def _missed(self, reply: Reply) -> Reply:
        self._count(reply.client, missed=1)
        return reply

    def _count(self, client: str, **seen: float) -> None:
        kind = self.pace.hardware[client].kind
        found = self._turns.setdefault(kind, {"turns": 0, "missed": 0, "seconds": 0.0})
        for key, value in seen.items():
            found[key] += value

    # ---- what outlasts the process

    def flush(self, folder: Path, turn: int) -> None:
        """Bring the time after this round and what is in flight to the disk."""
        flights = list(self.flying.values())
        replies = [flight.reply for flight in flights]
        trees = [reply.adapter if isinstance(reply, Update) else {} for reply in replies]
        flat = {f"{at}|{key}": value for at, found in enumerate(trees) for key, value in found.items()}
        said = {"now": self.now, "flying": [_said(flight) for flight in flights]}
        write_whole(folder / FILE.format(turn), tree.pack(flat, {"clock": json.dumps(said)}))

    def settle(self, folder: Path, turn: int) -> None:
        """Forget how all other rounds ended."""
        for path in folder.glob(FILE.format("*")):
            if path.name != FILE.format(turn):
                path.unlink()

    def rewind(self, folder: Path, turn: int) -> None:
        """Go back to the end of this round: what came after it was under way when the run was stopped."""
        if turn:
            self.now, self.flying = _read(folder / FILE.format(turn))
        self.settle(folder, turn)


def _bare(flight: Flight) -> Flight:
    """The same without what was offered, which is not needed any more."""
    return replace(flight, offer=replace(flight.offer, adapter={}, beside={}))


def _came(flight: Flight) -> Reply:
    """What an asynchronous turn carries."""
    return flight.reply or flight.offer.failed("lost")


def _said(flight: Flight) -> dict[str, Any]:
    """A flight in words; the numbers of its change lie beside them."""
    offer, reply = flight.offer, flight.reply
    said = {key: value for key, value in vars(reply).items() if key not in ("adapter", "profile")} if reply else None
    turn = {"round": offer.round, "client": offer.client, "cluster": offer.cluster, "rank": offer.rank}
    return {"begin": flight.begin, "end": flight.end, "offer": turn, "reply": said}


def _read(path: Path) -> tuple[float, dict[str, Flight]]:
    """The time and the flights that `flush` wrote down."""
    try:
        flat, notes = tree.unpack(read_bytes(path), f"clock '{path}'")
        said = json.loads(notes["clock"])
        trees: dict[int, Tree] = {}
        for name, value in flat.items():
            at, _, key = name.partition("|")
            trees.setdefault(int(at), {})[key] = value
        flights = [_flight(found, trees.get(at, {})) for at, found in enumerate(said["flying"])]
        return float(said["now"]), {flight.client: flight for flight in flights}
    except TreeError as error:
        raise StoreError(f"{error}; {REMEDY}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"clock '{path}': wanted a run's time, came another safetensors file; {REMEDY}") from error


def _flight(said: Mapping[str, Any], moved: Tree) -> Flight:
    reply: Reply | None = None
    if found := said["reply"]:
        reply = Failure(**found) if "reason" in found else Update(**found, adapter=moved)
    return Flight(said["begin"], said["end"], Offer(**said["offer"], adapter={}), reply)
