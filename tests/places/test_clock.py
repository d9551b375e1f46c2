"""Simulated time: when turns begin and end, when a round has waited long enough, and what lies in flight meanwhile."""

import math
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedgen.client import Training
from fedgen.devices import Hardware, Load
from fedgen.errors import ClientError, StoreError
from fedgen.places.clock import Clock, Unheard
from fedgen.places.late import of
from fedgen.places.pace import HOUR, Pace, opened
from fedgen.plan import Fleet
from fedgen.records import GLOBAL, Failure, Offer, Reply, Report, Tree, Update

DOWN = 7  # bytes of an offer that is not answered


def device(seconds: float, **changes: Any) -> Hardware:
    """One whose turn takes so many seconds."""
    return replace(Hardware("phone", 100, 1 / seconds, 1.0, 1.0), **changes)


def load(**changes: Any) -> Load:
    """One step of one row of one FLOP, and messages of no bytes."""
    return replace(Load(0, 0, 1, 1, 1.0, (Training(steps=1, batch=1),), lambda rank: (0, 0)), **changes)


def nothing(offer: Offer) -> tuple[int, int]:
    """The bytes of its messages."""
    return 0, 0


def leaf(number: float) -> Tree:
    return {"a": torch.full((2, 3), float(number)), "b": torch.full((4,), float(number))}


def offers(names: Iterable[str], turn: int = 1, number: float = 0.0, use: Any = "train") -> list[Offer]:
    shared = leaf(number)
    return [Offer(turn, name, GLOBAL, shared, use, rank=1) for name in names]


@dataclass
class Crowd:
    """A clock over clients that add 1 to what they are offered; `trained` is who did, and `broken` who fails at it."""

    hardware: Mapping[str, Hardware]
    terms: Fleet
    load: Load = field(default_factory=load)
    broken: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self.trained: list[tuple[int, str]] = []
        self.encodings = 0
        self.told: list[object] = []
        pace = Pace(self.hardware, self.load, dict.fromkeys(self.hardware, 1), seed=0, messages=nothing)
        self.clock = Clock(self._train, pace, self.terms, self._unheard, self.told.append)

    def _unheard(self) -> Unheard:
        self.encodings += 1
        return lambda offer, reason: replace(offer.failed(reason), down=DOWN)

    def _train(self, asked: Iterable[Offer]) -> Iterator[Reply]:
        for offer in asked:
            self.trained.append((offer.round, offer.client))
            if offer.client in self.broken:
                yield replace(offer.failed("diverged"), down=DOWN)
                continue
            moved = {key: value + 1 for key, value in offer.adapter.items()}
            yield Update(offer.round, offer.client, offer.cluster, moved, 5, {"loss": 1.0, "terms": 3}, 11, DOWN)

    def ask(self, asked: Iterable[Offer]) -> dict[str, Reply]:
        before, found = len(self.told), list(self.clock.ask(asked))
        assert self.told[before:] == found
        assert len({reply.client for reply in found}) == len(found)
        return {reply.client: reply for reply in found}

    def round(self, turn: int, number: float = 0.0) -> tuple[dict[str, float], dict[str, str]]:
        """Everyone is offered a number: who sent which one, and why the others sent none."""
        found = self.ask(offers(self.hardware, turn, number))
        sent = {name: reply.adapter["a"][0, 0].item() for name, reply in found.items() if isinstance(reply, Update)}
        return sent, {name: reply.reason for name, reply in found.items() if isinstance(reply, Failure)}

    def stamp(self) -> Report:
        return self.clock.stamped(Report(1, (), (), {"loss": 1.0}, 0, 0, 1.0))


def crowd(terms: Fleet, **seconds: float) -> Crowd:
    return Crowd({name: device(own) for name, own in seconds.items()}, terms)


def terms(**changes: Any) -> Fleet:
    return replace(Fleet(deadline=100.0, patience=1.0), **changes)


# ---- when a turn is


@pytest.mark.parametrize(
    ("hours", "at", "begins"),
    [
        ((0, 24), 0, 0), ((0, 24), 99.9, 99.9), ((8, 18), 7, 8), ((8, 18), 8, 8), ((8, 18), 17.5, 17.5),
        ((8, 18), 18, 32), ((8, 18), 30, 32), ((8, 18), 33, 33), ((22, 6), 0, 0), ((22, 6), 6, 22), ((22, 6), 21, 22),
        ((22, 6), 23, 23), ((22, 6), 29, 29), ((22, 6), 30, 46), ((5, 5), 3, 3), ((5, 5), 5, 5),
    ],
)  # fmt: skip
def test_a_turn_begins_when_its_device_is_online(hours: tuple[float, float], at: float, begins: float) -> None:
    assert opened(hours, at * HOUR) == begins * HOUR


def test_a_turn_takes_its_way_down_its_work_and_its_way_up() -> None:
    heavy = load(trainings=(Training(epochs=2, batch=4),), messages=lambda rank: (1, 1))
    tablet = Hardware("tablet", 10**6, speed=0.5, up=10.0, down=20.0, hours=(9.0, 10.0))
    pace = Pace({"ann": tablet}, heavy, {"ann": 9}, 0, lambda offer: (30 * offer.rank, 100 * offer.rank))
    flight = pace.flight(replace(*offers(["ann"]), rank=2), 3.0)
    assert flight.begin == pytest.approx(9 * HOUR)
    assert flight.end - flight.begin == pytest.approx(200 / 20 + 2 * 12 / 0.5 + 60 / 10)


def test_turns_are_lost_with_their_device_s_chance_and_the_same_ones_each_time() -> None:
    names = [f"c{at}" for at in range(400)]
    pace = Pace({name: device(1, lost=0.25) for name in names}, load(), dict.fromkeys(names, 1), 3, nothing)
    lost = [[pace.flight(offer, 0.0).end == math.inf for offer in offers(names, turn)] for turn in (1, 1, 2)]
    assert lost[0] == lost[1] != lost[2]
    assert 70 < sum(lost[0]) < 130  # 100, give or take 3.5 standard deviations


# ---- synchronous rounds


def test_a_round_takes_as_long_as_its_slowest() -> None:
    some = crowd(terms(), ann=3, bob=7, cleo=5)
    assert some.round(1, 4.0) == ({"ann": 5, "bob": 5, "cleo": 5}, {})
    assert some.trained == [(1, "ann"), (1, "cleo"), (1, "bob")]
    assert some.stamp().metrics == {"loss": 1.0, "clock": 7.0, "waited": 7.0}
    some.round(2)
    assert some.stamp().metrics == {"loss": 1.0, "clock": 14.0, "waited": 7.0}


def test_with_spare_ones_the_slowest_train_nothing_and_are_at_it_still_when_asked_again() -> None:
    some = crowd(terms(spare=0.25), ann=1, bob=2, cleo=3, dan=7.5)
    assert some.round(1) == ({"ann": 1, "bob": 1, "cleo": 1}, {"dan": "enough others were faster"})
    assert some.clock.now == 3
    sent, failed = some.round(2)
    assert (len(sent), failed) == (3, {"dan": "its node is at an earlier question"})
    some.round(3)
    assert (some.clock.now, some.clock.flying["dan"].end) == (9, 15)  # it was free at 7.5 and began again
    assert (1, "dan") not in some.trained
    assert dict(some.stamp().devices) == {"phone": {"turns": 9, "missed": 3, "seconds": 18.0}}


def test_after_the_deadline_a_round_goes_on_with_its_quorum() -> None:
    some = crowd(terms(deadline=5.0), ann=1, bob=2, cleo=6, dan=9)
    sent, failed = some.round(1)
    assert (sorted(sent), some.clock.now) == (["ann", "bob"], 5)
    assert failed == dict.fromkeys(("cleo", "dan"), "no answer within 5 s")


def test_a_quorum_that_is_late_is_waited_for() -> None:
    some = crowd(terms(deadline=5.0, quorum=0.75), ann=1, bob=2, cleo=60, dan=90)
    sent, failed = some.round(1)
    assert (sorted(sent), failed, some.clock.now) == (["ann", "bob", "cleo"], {"dan": "no answer within 60 s"}, 60)


def test_who_is_offline_is_not_waited_for_once_enough_have_answered_nor_sent_anything() -> None:
    day = device(1, hours=(8.0, 18.0))
    some = Crowd({"ann": device(1), "bob": device(2), "cleo": day}, terms(deadline=10**6))
    found = some.ask(offers(some.hardware))
    assert some.clock.now == 2
    assert found["cleo"] == Failure(1, "cleo", GLOBAL, "its node is not online")
    alone = Crowd({"cleo": day, "dan": day}, terms())
    assert alone.round(1)[1] == {}
    assert alone.clock.now == 8 * HOUR + 1


def test_what_went_down_in_vain_counts() -> None:
    some = crowd(terms(spare=0.5), ann=1, bob=2)
    assert [reply.down for reply in some.ask(offers(["ann", "bob"])).values()] == [DOWN, DOWN]


def test_what_goes_down_is_encoded_once_an_ask() -> None:
    some = crowd(terms(spare=0.75), ann=1, bob=2, cleo=3, dan=4)
    for turn in (1, 2):
        assert len(some.round(turn)[1]) == 3
    assert some.encodings == 2


def test_too_many_lost_turns_are_an_error_with_both_numbers() -> None:
    names = ["ann", "bob", "cleo", "dan"]
    some = Crowd({name: device(1, lost=1.0) for name in names} | {"ann": device(1)}, terms())
    wanted = (
        r"round 6: wanted updates of 0.5 of those asked \(fleet.quorum\), came 1 of 4, as .* lost; lower it, or ask"
    )
    with pytest.raises(ClientError, match=wanted):
        some.round(6)
    enough = Crowd(some.hardware, terms(quorum=0.25))
    sent, failed = enough.round(1)
    assert (sent, set(failed.values()), enough.clock.now) == ({"ann": 1}, {"no answer within 100 s"}, 100)


def test_a_device_that_cannot_carry_a_turn_says_so_at_once() -> None:
    small = device(1, kind="watch", memory=10)
    some = Crowd({"ann": small, "bob": device(3)}, terms(), load(frozen=50))
    sent, failed = some.round(1)
    assert (sent, some.clock.now) == ({"bob": 1}, 3)
    assert failed == {"ann": "a turn at rank 1 takes 66 bytes, and its watch has 10"}
    assert dict(some.stamp().devices["watch"]) == {"turns": 0, "missed": 1, "seconds": 0.0}


@pytest.mark.parametrize("use", ["check", "score", "encode"])
def test_measuring_takes_no_time(use: str) -> None:
    some = crowd(terms(spare=0.5), ann=1, bob=2)
    assert len(some.ask(offers(["ann", "bob"], use=use))) == 2
    assert (some.clock.now, some.ask([])) == (0, {})


def ticked(ends: Mapping[str, float], begins: Mapping[str, int], terms: Fleet) -> tuple[list[str], int]:
    """The slow twin: the rules of `Asking`, looked at second by second."""
    answered: list[str] = []
    for now in range(1024):
        for name in sorted(name for name, end in ends.items() if end == now):
            answered.append(name)
            if len(answered) >= of(len(ends), 1 - terms.spare):
                return answered, now
        out = any(begins[name] <= now for name in ends if name not in answered)
        enough = len(answered) >= of(len(ends), terms.quorum)
        if (not out and len(answered) == len(ends)) or (enough and (now >= terms.deadline or not out)):
            return answered, now
    raise ClientError("too few")


def test_rounds_end_as_those_of_a_fleet_do() -> None:
    draw, refused = random.Random(0), 0
    for _ in range(400):
        names = [f"c{at}" for at in range(draw.randint(1, 8))]
        begins = {name: draw.choice([0, 0, 0, 225]) for name in names}
        took = {name: draw.choice([1, 2, 4, 8, 16, 32, 512]) for name in names}
        lost = {name: draw.random() < 0.2 for name in names}
        ends = {name: math.inf if lost[name] else float(begins[name] + took[name]) for name in names}
        own = terms(deadline=draw.choice([2.0, 6.0, 20.0, 600.0]), quorum=draw.choice([0.25, 0.5, 1.0]),
                    spare=draw.choice([0.0, 0.3, 0.6]))  # fmt: skip
        hardware = {
            name: device(took[name], lost=float(lost[name]), hours=(begins[name] / 3600, 24.0)) for name in names
        }
        some = Crowd(hardware, own)
        try:
            expected, when = ticked(ends, begins, own)
        except ClientError:
            refused += 1
            with pytest.raises(ClientError):
                some.round(1)
            continue
        sent, _ = some.round(1)
        assert (sorted(sent), some.clock.now) == (sorted(expected), pytest.approx(when))
    assert 0 < refused < 200


# ---- asynchronous rounds


def test_a_round_ends_with_the_buffer_th_change_and_late_ones_weigh_less() -> None:
    some = crowd(terms(buffer=2, staleness=0.5), ann=2, bob=3, cleo=8)
    assert some.round(1, 0.0) == ({"ann": 1, "bob": 1}, {})
    assert some.trained == [(1, "ann"), (1, "bob"), (1, "cleo")]
    assert some.stamp().metrics == {"loss": 1.0, "clock": 3.0, "waited": 3.0, "late": 0.0}
    assert some.round(2, 10.0) == ({"ann": 11, "bob": 11}, {})
    assert (2, "cleo") not in some.trained
    assert some.clock.now == 6
    some.stamp()
    sent, _ = some.round(3, 20.0)
    assert sent == pytest.approx({"ann": 21, "cleo": 20 + (1 + 2) ** -0.5})  # ann at 8 as well, and first by name
    assert some.stamp().metrics == {"loss": 1.0, "clock": 8.0, "waited": 2.0, "late": 1.0}
    assert some.round(4, 30.0)[0] == pytest.approx({"bob": 30 + 2**-0.5, "ann": 31})  # bob is still at round 3's


def test_a_turn_that_is_lost_is_given_up_after_the_deadline_and_asked_anew() -> None:
    hardware = {"ann": device(4), "bob": device(4), "dan": device(1, lost=1.0)}
    some = Crowd(hardware, terms(buffer=2, deadline=6.0))
    assert some.round(1)[1] == {}
    assert some.ask(offers(hardware, 2))["dan"] == Failure(2, "dan", GLOBAL, "no answer within 6 s", DOWN)
    assert "dan" not in some.clock.flying
    some.round(3)
    assert some.clock.flying["dan"].begin == 8
    assert not [turn for turn, name in some.trained if name == "dan"]


def test_with_fewer_than_the_buffer_a_round_ends_at_its_deadline() -> None:
    some = Crowd({"ann": device(4), "dan": device(1, lost=1.0)}, terms(buffer=2))
    assert (some.round(1)[0], some.clock.now) == ({"ann": 1}, 100)
    few = crowd(terms(buffer=5), ann=4, bob=6)
    assert (few.round(1)[0], few.clock.now) == ({"ann": 1, "bob": 1}, 6)  # nobody else is out


def test_a_change_to_a_cluster_that_is_no_more_and_one_that_is_none_fail() -> None:
    some = crowd(terms(buffer=1), ann=1, bob=2)
    some.broken = frozenset(["bob"])
    assert [some.round(turn) for turn in (1, 2, 3)] == [({"ann": 1}, {}), ({"ann": 1}, {}), ({}, {"bob": "diverged"})]
    lone = crowd(terms(buffer=1), ann=1, bob=2)
    lone.round(1)
    found = lone.ask([replace(offer, cluster="c2") for offer in offers(["ann", "bob"], 2)])
    assert [type(reply) for reply in found.values()] == [Update]
    found = lone.ask([replace(offer, cluster="c3") for offer in offers(["ann"], 3)])
    assert {reply.reason for reply in found.values() if isinstance(reply, Failure)} == {"late, and 'global' is no more"}


# ---- what outlasts the process


@pytest.mark.parametrize("own", [terms(buffer=1, staleness=1.0), terms(spare=0.6)])
def test_a_clock_goes_on_where_another_one_stood(own: Fleet, tmp_path: Path) -> None:
    hardware = {"ann": device(2), "bob": device(5), "cleo": device(7), "dan": device(1, lost=1.0)}
    whole, first, other = (Crowd(hardware, own, broken=frozenset(["cleo"])) for _ in range(3))
    for turn in (1, 2):
        whole.round(turn, turn)
        first.round(turn, turn)
        first.clock.flush(tmp_path, turn)
    other.clock.rewind(tmp_path, 2)
    assert {path.name for path in tmp_path.iterdir()} == {"clock-2.safetensors"}
    assert other.clock.flying.keys() == whole.clock.flying.keys() != set()
    for turn in (3, 4, 5, 6):
        assert other.round(turn, turn) == whole.round(turn, turn)
        assert other.clock.now == whole.clock.now


def test_a_clock_goes_back_and_forgets(tmp_path: Path) -> None:
    some = crowd(terms(buffer=1), ann=1, bob=9)
    for turn in (1, 2, 3):
        some.round(turn)
        some.clock.flush(tmp_path, turn)
    some.clock.rewind(tmp_path, 2)
    assert some.clock.now == 2
    assert {path.name for path in tmp_path.iterdir()} == {"clock-2.safetensors"}
    some.clock.rewind(tmp_path, 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (None, "cannot be read"), (b"cut sh", "wanted whole safetensors"),
        (b'\x02\x00\x00\x00\x00\x00\x00\x00{}', "wanted a run's time, came another safetensors file"),
    ],
)  # fmt: skip
def test_a_damaged_clock_is_an_error(raw: bytes | None, said: str, tmp_path: Path) -> None:
    if raw is not None:
        (tmp_path / "clock-3.safetensors").write_bytes(raw)
    with pytest.raises(StoreError, match=said):
        crowd(terms(), ann=1).clock.rewind(tmp_path, 3)
