"""The server's end of a fleet: what is under way, and when a round has waited long enough."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from fedgen.errors import ClientError
from fedgen.guards import Guards
from fedgen.places import wire
from fedgen.places.late import change, laid, of
from fedgen.places.roll import NAP, Arrived, Noticed, Post
from fedgen.places.wire import Errand
from fedgen.plan import Fleet
from fedgen.records import Failure, Offer, Reply, Tree, Update

NEVER = 1e9  # seconds of a deadline that is none


@dataclass(frozen=True)
class Sent:
    """Offers under way to one node: since when, for which ask, and each one's share of the parcel's bytes."""

    node: int
    offers: tuple[Offer, ...]
    at: float
    ask: "Asked"
    shares: tuple[int, ...]


@dataclass(eq=False)
class Asked:
    """One ask: what it is about, the offers still to be sent, and what has come of it."""

    round: int
    use: str
    many: int
    began: float
    waiting: dict[str, Offer]
    now: Mapping[str, Tree]  # each cluster's adapter as it is offered
    offered: Callable[[Offer], Offer]  # how an offer goes out
    answered: int = 0
    updates: int = 0
    up: int = 0
    down: int = 0


@dataclass(frozen=True)
class Standing:
    """How an ask stands."""

    round: int
    use: str
    nodes: int
    asked: int
    answered: int
    seconds: float
    deadline: float
    up: int
    down: int


class Presence(Protocol):
    """Who is online, and where a client is."""

    online: set[int]

    def look(self) -> None:
        """See how that stands now."""

    def at(self, client: str) -> int | None:
        """The node that a client can be reached on now."""


class Asking:
    """Asks clients wherever they are; `most` bytes are read of one reply, `nap` seconds lie between two looks."""

    def __init__(
        self,
        post: Post,
        errand: Errand,
        terms: Fleet,
        roll: Presence,
        most: int,
        *,
        tell: Callable[[object], None],
        nap: float = NAP,
        guards: Guards | None = None,
    ) -> None:
        self.post, self.errand, self.terms, self.roll, self.most = post, errand, terms, roll, most
        self.tell, self.nap, self.guards = tell, nap, guards or Guards()
        self.flying: dict[str, Sent] = {}
        self.early: list[Reply] = []  # changes that came while something else was asked
        self._began = False

    def ask(self, offers: Iterable[Offer]) -> Iterator[Reply]:
        """Offer, and yield replies as they come, until enough have or the time is up."""
        found = list(offers)
        if not found:
            return
        first, done = found[0], found[0].round - 1
        if not self._began:  # a session's first ask is of the round after the last finished one
            self._began, self.errand = True, replace(self.errand, base=done)
        self.errand = replace(self.errand, done=done)
        busy = self._busy() if self._lasts(first.use) else set()  # they are let be, and asked in a later round
        waiting = {offer.client: offer for offer in found if not (busy and self.roll.at(offer.client) in busy)}
        now = {offer.cluster: offer.adapter for offer in found}
        began, offered = time.monotonic(), self.guards.offering()
        asked = Asked(first.round, first.use, len(found), began, waiting, now, offered)
        while not self._over(asked):
            self.roll.look()
            self._send(asked)
            before = asked.answered
            for reply in self._arrivals(asked):
                yield self._counted(asked, reply)
            self._stand(asked)
            if asked.answered == before:
                time.sleep(self.nap)
        for failure in self._given_up(asked):
            yield self._counted(asked, failure)
        self._stand(asked)
        asked.now, asked.waiting, asked.offered = {}, {}, Guards().offering()  # what may come late needs none of them

    # ---- how long

    def _lasts(self, use: str) -> bool:
        """Whether those who are asked may take longer than the round."""
        return use == "train" and self.terms.buffer > 0

    def _busy(self, asked: Asked | None = None) -> set[int]:
        """The nodes that are at the question of another ask; a second one would only wait in line behind it."""
        return {sent.node for sent in self.flying.values() if sent.ask is not asked}

    def _over(self, asked: Asked) -> bool:
        """Whether this ask has waited long enough; too few updates of a round are an error."""
        lasting = self._lasts(asked.use)
        if asked.use == "train" and asked.updates >= (self.terms.buffer or of(asked.many, 1 - self.terms.spare)):
            return True
        out = any(sent.ask is asked or (lasting and sent.ask.use == "train") for sent in self.flying.values())
        if not out and not asked.waiting:
            return True
        spent = time.monotonic() - asked.began
        enough = asked.use == "check" or asked.updates >= of(asked.many, self.terms.quorum)
        if enough and (spent > self.terms.deadline or not (out or self._may_come(asked))):
            return True
        if spent <= max(self.terms.deadline, self.terms.patience):
            return False
        if asked.use == "train" and not lasting:
            wish = f"wanted updates of {self.terms.quorum:g} of those asked (fleet.quorum)"
            came = f"came {asked.updates} of {asked.many} in {spent:.0f} s, with {len(self.roll.online)} nodes online"
            raise ClientError(f"round {asked.round}: {wish}, {came}; resume once more are online, or lower it")
        return True

    def _may_come(self, asked: Asked) -> bool:
        """Whether to wait for those who have not been asked yet; at the end for all, as nobody asks again."""
        if asked.use == "score":
            return True
        out = self._busy(asked) if asked.use == "check" else set()
        return any(self.roll.at(name) not in (None, *out) for name in asked.waiting)

    def _given_up(self, asked: Asked) -> Iterator[Failure]:
        """Those who are not waited for any more, with the reason; asynchronous ones may take longer than a round."""
        now, terms = time.monotonic(), self.terms
        spent = now - asked.began
        for offer in asked.waiting.values():
            there = self.roll.at(offer.client) is not None
            yield offer.failed("its node is at an earlier question" if there else "its node is not online")
        for ticket, sent in list(self.flying.items()):
            if self._lasts(sent.ask.use):
                if asked.use == "train" and now - sent.at > terms.deadline:
                    del self.flying[ticket]
                    yield from _silent(sent, f"no answer within {terms.deadline:g} s")
            elif now - sent.at > 2 * (terms.deadline + terms.patience):  # long late, and no longer listened for
                del self.flying[ticket]
            elif sent.ask is asked:
                why = f"no answer within {spent:.0f} s" if spent > terms.deadline else "enough others were faster"
                bare = tuple(replace(offer, adapter={}, beside={}) for offer in sent.offers)  # what may come is late
                self.flying[ticket] = replace(sent, offers=bare)
                yield from _silent(sent, why)

    # ---- there and back

    def _send(self, asked: Asked) -> None:
        """Send what is still to be sent to those who are online, a parcel a node."""
        by_node: dict[int, list[Offer]] = {}
        busy = self._busy(asked)
        for name, offer in asked.waiting.items():
            if (node := self.roll.at(name)) is not None and node not in busy:
                by_node.setdefault(node, []).append(offer)
        for node, own in by_node.items():
            parcel = wire.offered(self.errand, [asked.offered(offer) for offer in own])
            each, rest = divmod(parcel.size, len(own))
            ticket = self.post.send(node, parcel, asked.use, asked.round)
            if not ticket:
                self.roll.online.discard(node)
                continue
            shares = tuple(each + (at < rest) for at in range(len(own)))
            self.flying[ticket] = Sent(node, tuple(own), time.monotonic(), asked, shares)
            for offer in own:
                del asked.waiting[offer.client]

    def _arrivals(self, asked: Asked) -> Iterator[Reply]:
        """The replies to this ask that have come, and with a buffer all changes, whatever ask they are of."""
        if asked.use == "train":
            yield from (self._laid(reply, asked) for reply in self.early)
            self.early = []
        for arrived in self.post.arrived(list(self.flying)) if self.flying else ():
            sent = self.flying.pop(arrived.ticket)
            late = sent.ask is not asked and not self._lasts(sent.ask.use)
            if late and not arrived.gone:
                names, spent = ", ".join(offer.client for offer in sent.offers), time.monotonic() - sent.at
                what = f"round {sent.ask.round}: {names} answered '{sent.ask.use}'"
                self.tell(Noticed(f"{what} after {spent:.0f} s, too late; dropped"))
            elif arrived.gone and sent.ask is asked:  # its node may come back in time
                self.roll.online.discard(sent.node)
                asked.waiting |= {offer.client: offer for offer in sent.offers}
            elif not late:
                yield from self._read(sent, arrived, asked)

    def _read(self, sent: Sent, arrived: Arrived, asked: Asked) -> Iterator[Reply]:
        replies: list[Reply] = [offer.failed(wire.plain(arrived.reason)) for offer in sent.offers]
        if arrived.parcel is not None:
            replies = wire.read_replies(arrived.parcel, sent.offers, self.most, packed=self.guards.compress is not None)
        for reply, offer, share in zip(replies, sent.offers, sent.shares, strict=True):
            reply = self._opened(replace(reply, down=share), offer)
            if not self._lasts(sent.ask.use):
                yield reply
            elif asked.use == "train":
                yield self._laid(change(reply, offer), asked)
            else:
                self.early.append(change(reply, offer))

    def _opened(self, reply: Reply, offer: Offer) -> Reply:
        """The reply once it has passed the guards; another machine's words in what they say are made plain."""
        found = self.guards.opened(reply, offer)
        return replace(found, reason=wire.plain(found.reason)) if isinstance(found, Failure) else found

    def _laid(self, reply: Reply, asked: Asked) -> Reply:
        return laid(reply, asked.now, asked.round, self.terms.staleness)

    # ---- what is told

    def _counted(self, asked: Asked, reply: Reply) -> Reply:
        asked.answered += 1
        asked.down += reply.down
        if isinstance(reply, Update):
            asked.updates += 1
            asked.up += reply.up
        self.tell(reply)
        return reply

    def _stand(self, asked: Asked) -> None:
        spent, online = time.monotonic() - asked.began, len(self.roll.online)
        counts = asked.many, asked.answered, spent, self.terms.deadline, asked.up, asked.down
        self.tell(Standing(asked.round, asked.use, online, *counts))


def _silent(sent: Sent, reason: str) -> Iterator[Failure]:
    """Those of a parcel who have not answered; its bytes have gone down all the same."""
    for offer, share in zip(sent.offers, sent.shares, strict=True):
        yield replace(offer.failed(reason), down=share)
