"""What every row of every table must keep to, and what each kind of part promises."""

import dataclasses
import functools
import itertools
import time
import typing
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from fedgen import lora, plan
from fedgen.aggregate import Average, Changes, Residual, Stack, Turned
from fedgen.allot import Dealt
from fedgen.client import Start, Training
from fedgen.cluster import Losses
from fedgen.cohort import COHORTS, Cohort, Uniform, Weighted
from fedgen.data import PARTITIONS, SOURCES, ByField, Partition
from fedgen.devices import Drawn
from fedgen.encode import Ngrams
from fedgen.errors import FedgenError, PlanError
from fedgen.personal import PERSONALS, Keep
from fedgen.plan import TABLES, Plan
from fedgen.records import GLOBAL, Document, Offer, Tree
from fedgen.share import Halves, Increment, Top

EVERY_KIND = [(section, kind) for section, table in TABLES.items() for kind in table]
CHANGED: dict[type, Callable[[Any], Any]] = {
    bool: lambda value: not value,
    int: lambda value: value + 3,
    float: lambda value: value / 2,
    str: lambda value: f'{value} "quoted" \\ ünïcode\ttab\x7f',
    tuple: lambda value: (*value, "more"),
}


def changed(part: Any, name: str) -> Any:
    """The part with one setting that is not the default."""
    value, hint = getattr(part, name), typing.get_type_hints(type(part))[name]
    if name == "shares":
        return replace(part, shares=(0.5,) * len(part.classes))
    if name in ("styles", "characters", "classes"):  # only known ones will do
        return replace(part, **{name: value[:-1]})
    choices = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
    other = next((choice for choice in choices if choice != value), None) or CHANGED[type(value)](value)
    return replace(part, **{name: other})


def made(section: str, kind: str) -> Any:
    """A part with every needed key said; text where text is needed, and a small number where a number is."""
    part = TABLES[section][kind]
    needed = [spot.name for spot in dataclasses.fields(part) if spot.default is dataclasses.MISSING]
    return part(**{name: 3 if name == "clients" else "somewhere" for name in needed})


# ---- every part


@pytest.mark.parametrize(("section", "kind"), EVERY_KIND)
def test_a_part_is_a_frozen_dataclass_whose_repr_says_its_settings(section: str, kind: str) -> None:
    part = made(section, kind)
    assert dataclasses.is_dataclass(part)
    for spot in dataclasses.fields(part):
        assert f"{spot.name}={getattr(part, spot.name)!r}" in repr(part)
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, spot.name, getattr(part, spot.name))
    assert part == made(section, kind)
    assert hash(part) == hash(made(section, kind))


def beside(section: str, part: Any) -> dict[str, Any]:
    """What else a plan needs so that this part agrees with it."""
    if section == "share":
        return {"aggregate": {"increment": Stack(), "top": Residual()}.get(part.sends, Average())}
    if section == "aggregate":
        shares: dict[type[Any], Any] = {Turned: Halves("b"), Residual: Top(), Stack: Increment()}
        return {"share": shares.get(type(part), Halves())}
    if section == "allot" and part != Dealt():
        return {"aggregate": Changes(), "devices": Drawn()}
    return {"cluster": {"encode": Ngrams()}, "exchange": {"cluster": Losses()}}.get(section, {})


@pytest.mark.parametrize(("section", "kind"), EVERY_KIND)
def test_a_part_comes_back_from_a_written_plan(section: str, kind: str, tmp_path: Path) -> None:
    part = made(section, kind)
    whole = replace(Plan(), **beside(section, part), **{section: part})
    file = tmp_path / "plan.toml"
    file.write_text(plan.write(whole), "utf-8")
    assert plan.read(file) == whole
    assert plan.kind_of(section, getattr(plan.read(file), section)) == kind


@pytest.mark.parametrize(("section", "kind"), EVERY_KIND)
def test_settings_other_than_the_defaults_come_back_too(section: str, kind: str, tmp_path: Path) -> None:
    part, file = Halves("b") if kind == "halves" else made(section, kind), tmp_path / "plan.toml"
    for spot in dataclasses.fields(part):
        other = changed(part, spot.name)
        whole = replace(Plan(), **beside(section, other), **{section: other})
        file.write_text(plan.write(whole), "utf-8")
        assert plan.read(file) == whole


def test_no_part_stands_in_two_rows() -> None:
    for table in TABLES.values():
        assert len(set(table.values())) == len(table)


# ---- cohorts

NAMES = [f"client-{at:03d}" for at in range(40)]
SIZED = {name: 1 + 9 * (at % 4 == 0) for at, name in enumerate(NAMES)}  # a quarter holds ten times as much


@pytest.mark.parametrize("part", COHORTS.values(), ids=list(COHORTS))
def test_a_cohort_has_each_client_at_most_once_and_the_right_number(part: Any) -> None:
    for count, fraction, wanted in ((7, 0.5, 7), (40, 0.5, 40), (0, 0.5, 20), (0, 0.01, 1), (0, 1.0, 40)):
        cohort: Cohort = part(count=count, fraction=fraction)
        for turn in range(1, 6):
            picked = cohort.pick(NAMES, SIZED, run=0, turn=turn)
            assert len(picked) == len(set(picked)) == wanted
            assert set(picked) <= set(NAMES)


@pytest.mark.parametrize("part", COHORTS.values(), ids=list(COHORTS))
def test_a_cohort_depends_on_run_and_round_and_nothing_else(part: Any) -> None:
    pick = functools.partial(part(count=8).pick, NAMES, SIZED)
    torch.manual_seed(1)
    first = pick(run=3, turn=5)
    torch.manual_seed(2)
    assert pick(run=3, turn=5) == first
    assert pick(run=3, turn=6) != first
    assert pick(run=4, turn=5) != first


@pytest.mark.parametrize("part", COHORTS.values(), ids=list(COHORTS))
def test_a_cohort_larger_than_the_clients_is_refused(part: Any) -> None:
    with pytest.raises(PlanError, match=r"cohort\.count: .*41.* 40"):
        part(count=41).pick(NAMES, SIZED, run=0, turn=1)


def seen(cohort: Cohort, rounds: int) -> Counter[str]:
    return Counter(name for turn in range(rounds) for name in cohort.pick(NAMES, SIZED, run=0, turn=turn))


def test_uniform_reaches_everyone_alike() -> None:
    times = seen(Uniform(count=8), 500)  # each is expected 100 times, give or take 9
    assert set(times) == set(NAMES)
    assert 60 < min(times.values()) <= max(times.values()) < 140


def test_weighted_prefers_who_holds_more() -> None:
    times = seen(Weighted(count=1), 2000)
    large = sum(times[name] for name in NAMES if SIZED[name] > 1) / 2000
    assert abs(large - 100 / 130) < 0.05  # ten of forty hold 100 of 130 examples
    assert sum(name in times for name in NAMES if SIZED[name] == 1) > 25


class Registered(Sequence[str]):
    """So many names that are made when they are asked for, and counted."""

    def __init__(self, size: int) -> None:
        self.size, self.asked = size, 0

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, at: Any) -> Any:
        self.asked += 1
        return f"client-{range(self.size)[at]}"


def test_uniform_looks_at_no_more_clients_than_it_takes() -> None:
    took = {}
    for size in (1000, 10**9):
        names, began = Registered(size), time.perf_counter()
        assert len(set(Uniform(count=50).pick(names, {}, run=0, turn=1))) == 50
        took[size] = time.perf_counter() - began
        assert names.asked <= 50
    assert took[10**9] < 20 * took[1000] + 0.05


# ---- personal rules

LAYERS = {"layer": torch.nn.Linear(3, 5)}
ADAPTERS: tuple[Tree, Tree] = (
    lora.fresh(LAYERS, 4, torch.Generator().manual_seed(0)),
    lora.fresh(LAYERS, 4, torch.Generator().manual_seed(1)),
)


def begun(rule: Any, own: Tree | None) -> Start | None:
    """Where a rule begins under the second of the adapters."""
    offer = Offer(1, "ann", GLOBAL, ADAPTERS[1], "score")
    start: Start | None = rule.begin(
        own, offer, lambda rank: lora.fresh(LAYERS, rank, torch.Generator().manual_seed(2))
    )
    return start


@pytest.mark.parametrize("part", PERSONALS.values(), ids=list(PERSONALS))
def test_a_personal_rule_says_when_from_where_and_how(part: Any) -> None:
    rule, (own, shared) = part(), ADAPTERS
    training = rule.training(Training(batch=3, proximal=0.5))
    assert isinstance(rule.each_round, bool)
    assert training.batch == 3
    for start in (begun(rule, None), begun(rule, own)):
        if start is None:
            assert not rule.each_round
            continue
        assert any(start.adapter is one for one in (own, shared)) == (start.free is None)
        assert lora.rank(start.adapter) <= rule.rank(4)
        assert (training.lr, training.epochs, training.steps) == (rule.lr, rule.epochs, rule.steps)
        assert training.proximal == 0


def test_only_keep_goes_on_from_the_own_adapter() -> None:
    starts = {part: begun(part(), ADAPTERS[0]) for part in PERSONALS.values()}
    assert [part for part, start in starts.items() if start and start.adapter is ADAPTERS[0]] == [Keep]


# ---- partitions and sources

DOCUMENTS = [Document(f"o{at % 5}", f"text number {at} of {at % 3}", label=f"l{at % 3}") for at in range(30)]


def partition(kind: str) -> Partition:
    part: Any = PARTITIONS[kind]
    return part() if part is ByField else part(clients=4)


@pytest.mark.parametrize("kind", PARTITIONS)
def test_a_partition_hands_out_every_document_once(kind: str) -> None:
    shares = partition(kind).share(DOCUMENTS, torch.Generator().manual_seed(0))
    assert sorted(itertools.chain(*shares.values())) == list(range(30))
    assert list(shares) == sorted(shares)
    assert all(held == sorted(held) and held for held in shares.values())


@pytest.mark.parametrize("kind", PARTITIONS)
def test_a_partition_is_its_generators(kind: str) -> None:
    one, two = (partition(kind).share(DOCUMENTS, torch.Generator().manual_seed(3)) for _ in range(2))
    assert one == two


@pytest.mark.parametrize("kind", PARTITIONS)
def test_nothing_cannot_be_shared_out(kind: str) -> None:
    with pytest.raises(FedgenError):
        partition(kind).share([], torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", [kind for kind in SOURCES if kind not in ("stdlib", "hub", "digits", "glyphs")])
def test_a_source_that_is_not_there_is_one_clear_line(kind: str, tmp_path: Path) -> None:
    part, nowhere = SOURCES[kind], str(tmp_path / "nowhere")
    needed = [spot.name for spot in dataclasses.fields(part) if spot.default is dataclasses.MISSING]  # type: ignore[arg-type]
    source: Any = part(**{name: nowhere if name == "path" else "field" for name in needed})
    with pytest.raises(FedgenError, match="nowhere") as caught:
        source.read()
    assert "\n" not in str(caught.value)
