"""The server's end of a fleet: who is asked, how long a round waits, and what is late."""

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from fedgen.errors import ClientError
from fedgen.places import roll, wire
from fedgen.places.asking import Asking, Standing
from fedgen.places.roll import Arrived, Noticed, Roll
from fedgen.places.wire import Errand, Parcel, Present
from fedgen.plan import Fleet
from fedgen.records import GLOBAL, Failure, Offer, Reply, Tree, Update

Answer = Callable[[Parcel], Parcel]
ERRAND = Errand("tiny-0a1b", "", "one")
HASH = "0123456789abcdef"
MOST = 10**7
SOON, NAP = 0.3, 0.005  # seconds of a deadline here, and between two looks


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks follow each other without a pause."""
    monkeypatch.setattr(roll, "LOOK", 0.0)
    monkeypatch.setattr(roll, "NAP", NAP)


@dataclass
class Carrier:
    """Carries parcels to nodes in this process, each as late as `delays` says of it; None: it never comes back."""

    desks: dict[int, Answer]
    online: set[int] = field(default_factory=set)
    delays: dict[str, Iterator[float | None]] = field(default_factory=dict)  # by client, of one parcel after the other
    sent: list[tuple[int, str, Parcel]] = field(default_factory=list)
    back: list[Parcel] = field(default_factory=list)
    lost: set[str] = field(default_factory=set)  # tickets whose node went away
    _flying: dict[str, tuple[int, float, Parcel]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.online = self.online or set(self.desks)

    def nodes(self) -> set[int]:
        return set(self.online)

    def send(self, node: int, parcel: Parcel, use: str, turn: int) -> str:
        ticket = f"t{len(self.sent)}"
        self.sent.append((node, use, parcel))
        names = [own["client"] for own in json.loads(parcel.words).get("offers", [])]
        delays = [next(self.delays[name]) for name in names if name in self.delays]
        if None in delays:
            return ticket
        wait = max((delay for delay in delays if delay), default=0.0)
        self._flying[ticket] = node, time.monotonic() + wait, parcel
        return ticket

    def arrived(self, tickets: Sequence[str]) -> list[Arrived]:
        gone = [ticket for ticket in tickets if ticket in self.lost]
        self.lost -= set(gone)
        ready = [key for key in tickets if key in self._flying and self._flying[key][1] <= time.monotonic()]
        found = [Arrived(ticket, None, "its node went away", gone=True) for ticket in gone]
        for ticket in ready:
            node, _, parcel = self._flying.pop(ticket)
            self.back.append(self.desks[node](parcel))
            found.append(Arrived(ticket, self.back[-1]))
        return found

    def asked(self, use: str) -> list[list[str]]:
        """Whom each parcel of a use has asked."""
        return [
            [own["client"] for own in json.loads(parcel.words)["offers"]]
            for _, said, parcel in self.sent
            if said == use
        ]


def leaf(number: float) -> Tree:
    return {"a": torch.full((2, 3), float(number)), "b": torch.full((4,), -float(number))}


SCORE = {"loss": 3.0, "terms": 4, "words": 1, "bytes": 5}


def adder(*names: str, by: float = 1.0, name: str = "") -> Answer:
    """A node whose clients add a number to what they are offered; it speaks the wire as every other."""

    def reply(offer: Offer) -> Reply:
        if offer.use == "train":
            moved = {key: value + by for key, value in offer.adapter.items()}
            return Update(offer.round, offer.client, offer.cluster, moved, 5, {"loss": 1.0, "terms": 3, "steps": 1})
        keys = [offer.cluster] if offer.use == "check" else ["backbone", GLOBAL]
        metrics = {f"{key}.{part}": value for key in keys for part, value in SCORE.items()}
        return Update(offer.round, offer.client, offer.cluster, {}, 5, metrics)

    def answer(parcel: Parcel) -> Parcel:
        _, offers = wire.read_offers(parcel)
        if offers is None:
            return wire.introduced(Present(name or names[0], dict.fromkeys(names, 5), {}, backbone=HASH))
        return wire.answered([reply(offer) for offer in offers])

    return answer


def three() -> dict[int, Answer]:
    return {1: adder("ann", "bob"), 2: adder("cleo"), 3: adder("dan")}


NAMES = ("ann", "bob", "cleo", "dan")


def offers(number: float = 0.0, turn: int = 1, use: Any = "train", names: Sequence[str] = NAMES) -> list[Offer]:
    shared = leaf(number)
    return [Offer(turn, name, GLOBAL, shared, use) for name in names]


@dataclass
class Server:
    """An `ask` over a carrier, with all that it tells."""

    post: Carrier
    terms: Fleet
    told: list[object] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.roll = Roll(self.post, ERRAND, self.terms, HASH, self.told.append)
        self.asking = Asking(self.post, ERRAND, self.terms, self.roll, MOST, tell=self.told.append, nap=NAP)
        self.roll.gather()

    def ask(self, asked: Sequence[Offer]) -> dict[str, Reply]:
        found = list(self.asking.ask(asked))
        assert len({reply.client for reply in found}) == len(found)
        return {reply.client: reply for reply in found}

    def noticed(self) -> list[str]:
        return [event.said for event in self.told if isinstance(event, Noticed)]


def terms(**changes: Any) -> Fleet:
    return replace(Fleet(nodes=3, deadline=SOON, patience=SOON), **changes)


def reason(reply: Reply) -> str:
    assert isinstance(reply, Failure), reply
    return reply.reason


def holds(reply: Reply, number: float) -> None:
    """An update that is this number all over; the other half the same, less what it began at."""
    assert isinstance(reply, Update), reply
    assert torch.allclose(reply.adapter["a"], torch.full((2, 3), float(number)), rtol=0, atol=1e-6), reply.adapter["a"]


# ---- one round


def test_everyone_answers_each_node_is_sent_one_parcel() -> None:
    server = Server(Carrier(three()), terms())
    found = server.ask(offers(4.0))
    for name in NAMES:
        holds(found[name], 5.0)
    assert sorted(server.post.asked("train")) == [["ann", "bob"], ["cleo"], ["dan"]]
    for use in ("check", "score"):
        assert all(isinstance(reply, Update) for reply in server.ask(offers(use=use)).values())
    assert list(server.asking.ask([])) == []
    assert all(reply in server.told for reply in found.values())


@pytest.mark.parametrize("rank", [0, 10])
def test_bytes_are_those_of_the_parcels(rank: int) -> None:
    """Of a parcel for two, whose bytes are even or odd."""
    server = Server(Carrier(three()), terms())
    met = len(server.post.sent)
    first, *others = offers(4.0)
    found = server.ask([replace(first, rank=rank), *others])
    train = [parcel for _, use, parcel in server.post.sent if use == "train"]
    assert sum(reply.down for reply in found.values()) == sum(parcel.size for parcel in train)
    back = server.post.back[met:]
    frames = 3 * len('{"replies": []}') + len(", ")  # what is around four replies in three parcels
    up = sum(reply.up for reply in found.values() if isinstance(reply, Update))
    assert up == sum(parcel.size for parcel in back) - frames
    last = [event for event in server.told if isinstance(event, Standing)][-1]
    assert (last.asked, last.answered, last.nodes, last.use) == (4, 4, 3, "train")
    assert (last.down, last.up) == (sum(parcel.size for parcel in train), up)


def test_a_node_that_comes_in_time_is_asked() -> None:
    post = Carrier(three(), {1, 2})
    server = Server(post, terms(nodes=2, deadline=30.0, quorum=1.0))
    asked = server.asking.ask(offers())
    first = [next(asked) for _ in range(3)]
    assert sorted(reply.client for reply in first) == ["ann", "bob", "cleo"]
    post.online.add(3)
    (last,) = asked
    assert (last.client, isinstance(last, Update)) == ("dan", True)
    assert "node 'dan' holds dan" in server.noticed()


def test_a_node_that_stays_away_is_not_waited_for_once_enough_have_answered() -> None:
    post = Carrier(three())
    server = Server(post, terms(deadline=30.0))
    post.online.discard(3)
    found = server.ask(offers())  # well before the deadline, or this test takes long
    assert reason(found["dan"]) == "its node is not online"
    assert sum(isinstance(reply, Update) for reply in found.values()) == 3
    assert "node 'dan' is offline" in server.noticed()
    post.online.add(3)
    holds(server.ask(offers(turn=2))["dan"], 1.0)
    assert "node 'dan' is online again" in server.noticed()


def test_after_the_deadline_a_round_goes_on_and_what_comes_later_is_dropped() -> None:
    post = Carrier(three(), delays={"dan": iter([2 * SOON, 0.0])})
    server = Server(post, terms())
    found = server.ask(offers())
    assert reason(found["dan"]) == "no answer within 0 s"
    assert found["dan"].down > 0
    time.sleep(1.2 * SOON)
    again = server.ask(offers(10.0, turn=2))
    holds(again["dan"], 11.0)
    assert "round 1: dan answered 'train' after 1 s, too late; dropped" in server.noticed()


def test_too_few_by_the_deadline_is_an_error_with_both_numbers() -> None:
    never: dict[str, Iterator[float | None]] = {name: itertools.repeat(None) for name in ("ann", "cleo", "dan")}
    server = Server(Carrier(three(), delays=never), terms(quorum=0.75))
    wanted = r"round 1: wanted updates of 0.75 of those asked .*, came 0 of 4 in 0 s, with 3 nodes online; resume once"
    began = time.monotonic()
    with pytest.raises(ClientError, match=wanted):
        server.ask(offers())
    assert time.monotonic() - began < 10 * SOON
    for use in ("check", "score"):  # these are told of as they are
        found = server.ask(offers(use=use))
        assert sorted(name for name, reply in found.items() if isinstance(reply, Failure)) == [
            "ann",
            "bob",
            "cleo",
            "dan",
        ]


def test_with_spare_ones_the_slowest_are_not_waited_for() -> None:
    post = Carrier(three(), delays={"cleo": iter([0.2, 0.0])})
    server = Server(post, terms(spare=0.25, deadline=30.0))
    began = time.monotonic()
    found = server.ask(offers())
    assert time.monotonic() - began < 0.2
    assert reason(found["cleo"]) == "enough others were faster"
    time.sleep(0.2)
    holds(server.ask(offers(turn=2, names=["cleo"]))["cleo"], 1.0)
    assert any("too late; dropped" in said and "cleo" in said for said in server.noticed())


@pytest.mark.parametrize(("many", "spare", "wanted"), [(10, 0.7, 3), (10, 0.9, 1), (4, 0.25, 3), (7, 0.5, 4)])
def test_a_share_of_so_many_is_what_it_says(many: int, spare: float, wanted: int) -> None:
    names = [f"c{at}" for at in range(many)]
    slow: dict[str, Iterator[float | None]] = {name: itertools.repeat(None) for name in names[wanted:]}
    post = Carrier({at: adder(name) for at, name in enumerate(names)}, delays=slow)
    server = Server(post, terms(spare=spare, deadline=30.0, patience=30.0, nodes=many))
    found = server.ask(offers(names=names))
    assert sum(isinstance(reply, Update) for reply in found.values()) == wanted


def test_a_node_that_goes_away_with_offers_and_comes_back_is_asked_again() -> None:
    post = Carrier(three(), delays={"dan": iter([None, 0.0])})
    server = Server(post, terms(deadline=30.0, quorum=1.0))
    asked = server.asking.ask(offers())
    first = [next(asked) for _ in range(3)]
    post.online.discard(3)
    post.lost = {f"t{at}" for at, (node, use, _) in enumerate(post.sent) if (node, use) == (3, "train")}
    assert post.lost
    server.roll.look()
    post.online.add(3)
    (last,) = asked
    assert isinstance(last, Update)
    assert {reply.client for reply in first} | {last.client} == set(NAMES)
    assert post.asked("train").count(["dan"]) == 2


def test_an_answer_that_is_none_fails_and_the_others_count() -> None:
    desks = three()
    desks[3] = lambda parcel: Parcel("nonsense") if "offers" in parcel.words else adder("dan")(parcel)
    found = Server(Carrier(desks), terms()).ask(offers())
    assert reason(found["dan"]).startswith("the answer is none to what was asked")
    assert sum(isinstance(reply, Update) for reply in found.values()) == 3


def test_a_session_says_where_it_began_and_what_is_done() -> None:
    server = Server(Carrier(three()), terms())
    for turn, use in ((4, "train"), (4, "check"), (5, "train"), (6, "score")):
        server.ask(offers(turn=turn, use=use))
    said = [wire.read_offers(parcel)[0] for _, use, parcel in server.post.sent if use != "meet"]
    assert {(errand.session, errand.base) for errand in said} == {("one", 3)}
    assert [errand.done for errand in said[::3]] == [3, 3, 4, 5]


# ---- asynchronous rounds


def test_late_changes_are_laid_on_today_s_adapter_and_weigh_less() -> None:
    post = Carrier(three(), delays={"dan": itertools.chain([0.15], itertools.repeat(None))})
    server = Server(post, terms(buffer=3, staleness=0.5, deadline=30.0))
    first = server.ask(offers(0.0))
    assert sorted(first) == ["ann", "bob", "cleo"]
    second = server.ask(offers(10.0, turn=2))
    assert sorted(second) == ["ann", "bob", "cleo"]
    holds(second["ann"], 11.0)
    assert post.asked("train").count(["dan"]) == 1, "nobody is asked twice while under way"
    time.sleep(0.15)
    third = server.ask(offers(20.0, turn=3))
    assert "dan" in third
    holds(third["dan"], 20.0 + (1 + 2) ** -0.5)
    assert third["dan"].round == 3
    for name in set(third) - {"dan"}:
        holds(third[name], 21.0)
    assert post.asked("train").count(["dan"]) == 1


def test_check_passes_by_who_trains_score_waits_and_changes_that_come_meanwhile_are_kept() -> None:
    post = Carrier(three(), delays={"dan": itertools.chain([0.3], itertools.repeat(0.0))})
    server = Server(post, terms(buffer=3, staleness=1.0, deadline=30.0))
    assert "dan" not in server.ask(offers(0.0))
    check = server.ask(offers(5.0, use="check"))
    assert reason(check.pop("dan")) == "its node is at an earlier question"
    score = server.ask(offers(5.0, use="score"))  # in which dan's change of round 1 comes
    for found, names in ((check, NAMES[:3]), (score, NAMES)):
        assert {name: type(reply) for name, reply in found.items()} == dict.fromkeys(names, Update)
    second = list(server.asking.ask(offers(10.0, turn=2)))
    late = [reply for reply in second if reply.client == "dan"]
    holds(late[0], 10.0 + 0.5)
    assert all(reply.round == 2 for reply in second)


def test_a_node_that_is_late_is_not_asked_anything_else_until_it_has_answered() -> None:
    post = Carrier(three(), delays={"dan": itertools.chain([3 * SOON], itertools.repeat(0.0))})
    server = Server(post, terms(quorum=0.5))
    for turn in (1, 2):
        assert isinstance(server.ask(offers(turn=turn))["dan"], Failure)
    assert post.asked("train").count(["dan"]) == 1
    time.sleep(2 * SOON)
    server.ask(offers(turn=3))
    assert isinstance(server.ask(offers(turn=4))["dan"], Update)
    assert any("dan answered 'train'" in said for said in server.noticed())


def test_at_the_end_a_node_that_is_away_has_until_the_deadline_to_come_back() -> None:
    post = Carrier(three())
    server = Server(post, terms(deadline=30.0, patience=30.0))
    post.online.discard(3)
    threading.Timer(0.2, post.online.add, [3]).start()
    assert isinstance(server.ask(offers(use="score"))["dan"], Update)


def test_one_who_takes_longer_than_the_deadline_is_given_up_and_asked_anew() -> None:
    post = Carrier(three(), delays={"dan": itertools.chain([None], itertools.repeat(0.0))})
    server = Server(post, terms(buffer=3))
    server.ask(offers())
    server.ask(offers(use="check"))
    time.sleep(SOON)
    assert reason(server.ask(offers(turn=2))["dan"]) == f"no answer within {SOON:g} s"
    assert "dan" in server.ask(offers(turn=3))


def test_a_late_check_is_no_failure_of_a_round() -> None:
    post = Carrier(three(), delays={"dan": itertools.chain([0.0, None], itertools.repeat(0.0))})
    server = Server(post, terms(buffer=4))
    server.ask(offers())
    assert "no answer within" in reason(server.ask(offers(use="check"))["dan"])
    assert all(isinstance(reply, Update) for reply in server.ask(offers(turn=2)).values())


@pytest.mark.parametrize(
    "odd",
    [
        {"a": torch.ones(()), "b": torch.ones(4)}, {"a": torch.ones(3, 2), "b": torch.ones(4)},
        {"x": torch.ones(0), "a": torch.ones(2, 3)}, {"x": torch.ones(0, 5)}, {"\x1b[2J\n": torch.ones(2)},
    ],
)  # fmt: skip
def test_an_odd_change_fails_and_the_others_count(odd: Tree) -> None:
    def answer(parcel: Parcel) -> Parcel:
        if '"offers"' not in parcel.words:
            return adder("dan")(parcel)
        return wire.answered([Update(1, "dan", GLOBAL, odd, 5, {"loss": 1.0, "terms": 3})])

    found = Server(Carrier(three() | {3: answer}), terms(buffer=4)).ask(offers())
    assert reason(found["dan"]).endswith("is not like the one that was offered")
    assert reason(found["dan"]).isprintable()
    assert found["dan"].down > 0
    assert sum(isinstance(reply, Update) for reply in found.values()) == 3
