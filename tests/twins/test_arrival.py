"""The order in which replies arrive leaves no trace, and how many clients share a pass leaves next to none."""

import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedgen import plan as plans
from fedgen.aggregate import AGGREGATES, ANEW, FLAT, Average, Turned
from fedgen.cohort import Uniform
from fedgen.journal import save_checkpoint
from fedgen.outer import OUTERS
from fedgen.places import inprocess, silent
from fedgen.records import GLOBAL, Failure, Offer, Reply, Report, State, Tree, Update
from fedgen.rounds import Server, play

CLIENTS = [f"client-{number}" for number in range(9)]
LOST = {"client-2", "client-7"}
WHERE = dict.fromkeys(CLIENTS[::3], "south") | dict.fromkeys(CLIENTS[1::3], "north")
RULES = [
    (rule(weight), outer())
    for rule in AGGREGATES.values()
    for weight in ("examples", "uniform")
    for outer in OUTERS.values()
    if rule not in ANEW or outer is OUTERS["plain"]
]


def drawn(seed: int, rank: int = 2) -> Tree:
    draw = torch.Generator().manual_seed(seed)
    shapes = {"A": (rank, 6), "B": (5, rank)}
    return {
        f"base_model.model.{layer}.lora_{end}.weight": torch.randn(shape, generator=draw)
        for layer in ("q", "v")
        for end, shape in shapes.items()
    }


def replies(offers: Iterable[Offer], lost: set[str], ends: tuple[str, ...] = ("A", "B")) -> list[Reply]:
    """What each client says, in the order of the offers; it trains these ends of the factors."""
    made: list[Reply] = []
    for offer in offers:
        number = CLIENTS.index(offer.client)
        where = (offer.round, offer.client, offer.cluster)
        metrics = {"loss": 0.1 + number / 3, "terms": 5.0 + number, "steps": 2.0}
        trained = {k: v for k, v in drawn(17 * offer.round + number).items() if k.split("_")[-1][0] in ends}
        update = Update(*where, offer.adapter | trained, 1 + number, metrics, 100 + number, 50)
        made.append(Failure(*where, f"lost {number}", 50) if offer.client in lost else update)
    return made


def federate(rule: Any, outer: Any, *, order: int | None, lost: set[str]) -> tuple[State, list[Report]]:
    """Three rounds in which replies come in one of many orders, with three clusters of clients if the rule has any."""
    sizes = dict.fromkeys(CLIENTS, 1)
    server = Server(1, CLIENTS, sizes, Uniform(count=8), rule, outer)
    flat = isinstance(rule, FLAT)
    state = State(0, {GLOBAL: drawn(1000), "north": drawn(1001), "south": drawn(1002)}, {}, {} if flat else WHERE)
    shuffle = random.Random(order).shuffle if order is not None else lambda found: None

    def ask(offers: Iterable[Offer]) -> Iterator[Reply]:
        found = replies(offers, lost, ("B",) if isinstance(rule, Turned) else ("A", "B"))
        shuffle(found)
        yield from found

    reports = []
    for _ in range(3):
        state, report = play(server, state, ask)
        reports.append(replace(report, seconds=0.0))
    return state, reports


def raw(state: State, folder: Path) -> bytes:
    save_checkpoint(folder / "state", state)
    return (folder / "state").read_bytes()


@pytest.mark.parametrize("lost", [set(), LOST], ids=["all answer", "two fail"])
@pytest.mark.parametrize(("rule", "outer"), RULES, ids=repr)
def test_the_order_of_arrival_leaves_no_trace(rule: Any, outer: Any, lost: set[str], tmp_path: Path) -> None:
    state, reports = federate(rule, outer, order=None, lost=lost)
    assert all(bool(report.failures) == bool(lost) for report in reports)
    for order in range(4):
        other, others = federate(rule, outer, order=order, lost=lost)
        assert raw(other, tmp_path) == raw(state, tmp_path)
        assert others == reports


def test_the_check_above_sees_another_update(tmp_path: Path) -> None:
    one, _ = federate(Average(), OUTERS["plain"](), order=None, lost=set())
    other, _ = federate(Average(), OUTERS["plain"](), order=None, lost={"client-3"})
    assert raw(one, tmp_path) != raw(other, tmp_path)


def test_the_width_of_a_cohort_and_the_order_of_offers_change_next_to_nothing(tiny_plan: dict[str, Any]) -> None:
    plan = plans.read(tiny_plan, ["cohort.count=5"])
    found = [played(plan, width, order) for width, order in ((1, 0), (3, 0), (4, 1), (5, 2))]
    state, report = found[0]
    for other, said in found[1:]:
        for key, value in state.adapters[GLOBAL].items():
            assert torch.allclose(other.adapters[GLOBAL][key], value, rtol=0, atol=1e-5)
        assert said.metrics == pytest.approx(report.metrics, abs=1e-5)
        assert (said.clients, said.failures, said.down) == (report.clients, report.failures, report.down)
        assert said.up == pytest.approx(report.up, abs=5 * 20)  # a loss may take some digits more or less to say


def played(plan: plans.Plan, width: int, order: int) -> tuple[State, Report]:
    """Two rounds with so many clients in a pass, which are offered their turns in one of many orders."""
    backbone = plan.backbone.load()
    settled = inprocess.settle(replace(plan, training=replace(plan.training, cohort=width)), backbone)
    place = inprocess.place(settled, backbone, None, silent)
    server = Server(plan.seed, sorted(place.sizes), place.sizes, plan.cohort, plan.aggregate, plan.outer)

    def ask(offers: Iterable[Offer]) -> Iterator[Reply]:
        mixed = list(offers)
        random.Random(order).shuffle(mixed)
        yield from place.ask(mixed)

    state, report = State(0, {GLOBAL: place.start}), None
    for _ in range(2):
        state, report = play(server, state, ask)
    assert report is not None
    return state, report
