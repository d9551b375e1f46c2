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

import numpy as np
import pytest
import torch

from fedgen import lora, plan, tree
from fedgen.aggregate import AGGREGATES, Aggregate, Exact
from fedgen.client import Training
from fedgen.cohort import COHORTS, Cohort, Uniform, Weighted
from fedgen.data import PARTITIONS, SOURCES, ByField, Partition
from fedgen.errors import FedgenError, PlanError, TreeError
from fedgen.outer import OUTERS, Adam, Momentum, Outer, Plain
from fedgen.personal import PERSONALS, Keep
from fedgen.plan import TABLES, Plan
from fedgen.records import Document, Tree, Update

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


@pytest.mark.parametrize(("section", "kind"), EVERY_KIND)
def test_a_part_comes_back_from_a_written_plan(section: str, kind: str, tmp_path: Path) -> None:
    whole = replace(Plan(), **{section: made(section, kind)})
    file = tmp_path / "plan.toml"
    file.write_text(plan.write(whole), "utf-8")
    assert plan.read(file) == whole
    assert plan.kind_of(section, getattr(plan.read(file), section)) == kind


@pytest.mark.parametrize(("section", "kind"), EVERY_KIND)
def test_settings_other_than_the_defaults_come_back_too(section: str, kind: str, tmp_path: Path) -> None:
    part, file = made(section, kind), tmp_path / "plan.toml"
    for spot in dataclasses.fields(part):
        whole = replace(Plan(), **{section: changed(part, spot.name)})
        file.write_text(plan.write(whole), "utf-8")
        assert plan.read(file) == whole


def test_no_part_stands_in_two_rows() -> None:
    for table in TABLES.values():
        assert len(set(table.values())) == len(table)


# ---- aggregates


def template() -> dict[str, torch.nn.Module]:
    return {"flat": torch.nn.Linear(12, 9), "conv": torch.nn.Conv2d(3, 8, 3)}


LIKE: Tree = lora.fresh(template(), 4, torch.Generator().manual_seed(0))


def adapter(seed: int) -> Tree:
    draw = torch.Generator().manual_seed(seed)
    return {key: 0.3 * torch.randn(value.shape, generator=draw) for key, value in LIKE.items()}


def update(number: int, examples: int, body: Tree | None = None) -> Update:
    return Update(1, f"c{number}", "global", adapter(number) if body is None else body, examples)


def folded(rule: Aggregate, updates: Sequence[Update]) -> Tree:
    fold = rule.fold(LIKE)
    for one in updates:
        fold.add(one)
    return fold.close()


def products(body: Tree) -> dict[str, torch.Tensor]:
    return {pair.path: pair.b.flatten(1).double() @ pair.a.flatten(1).double() for pair in lora.pairs(body)}


def far(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[key] - b[key]).abs().max()) for key in a)


RULES = [
    pytest.param(part(weight=weight), id=f"{kind}-{weight}")
    for kind, part in AGGREGATES.items()
    for weight in ("examples", "uniform")
]
SOME = [update(1, 7), update(2, 1), update(3, 30), update(4, 12)]


@pytest.mark.parametrize("rule", RULES)
def test_the_order_of_arrival_leaves_no_trace(rule: Aggregate) -> None:
    wanted = folded(rule, SOME)
    for shuffled in itertools.permutations(SOME):
        found = folded(rule, shuffled)
        assert list(found) == list(wanted)
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("rule", RULES)
def test_a_mean_of_equal_updates_is_that_update(rule: Aggregate) -> None:
    found = folded(rule, [update(number, number + 1, adapter(1)) for number in range(5)])
    tree.check(found, LIKE, "mean")
    assert far(products(found), products(adapter(1))) < 1e-6


@pytest.mark.parametrize("rule", RULES)
def test_one_update_is_itself(rule: Aggregate) -> None:
    assert far(products(folded(rule, SOME[:1])), products(SOME[0].adapter)) < 1e-5


@pytest.mark.parametrize("rule", RULES)
def test_only_the_weights_proportions_count(rule: Aggregate) -> None:
    more = [replace(one, examples=1000 * one.examples) for one in SOME]
    assert far(products(folded(rule, SOME)), products(folded(rule, more))) < 1e-5


@pytest.mark.parametrize("kind", AGGREGATES)
def test_examples_weigh_and_uniform_does_not(kind: str) -> None:
    one, two = (folded(AGGREGATES[kind](weight="examples"), SOME), folded(AGGREGATES[kind](weight="uniform"), SOME))
    same = [replace(each, examples=5) for each in SOME]
    assert far(products(one), products(two)) > 1e-3
    assert far(products(folded(AGGREGATES[kind](weight="examples"), same)), products(two)) < 1e-5


@pytest.mark.parametrize("rule", RULES)
def test_updates_are_left_as_they_came(rule: Aggregate) -> None:
    folded(rule, SOME)
    assert all(torch.equal(one.adapter[key], adapter(at)[key]) for at, one in enumerate(SOME, 1) for key in one.adapter)


@pytest.mark.parametrize("rule", RULES)
def test_what_cannot_be_a_mean_is_refused(rule: Aggregate) -> None:
    first = next(iter(LIKE))
    less = {key: value for key, value in adapter(1).items() if "conv" not in key}
    spoilt = {key: value * (torch.nan if key == first else 1) for key, value in adapter(1).items()}
    for wrong in ([], [update(1, 5, less)], [SOME[1], update(1, 5, less)], [update(1, 5, spoilt)]):
        with pytest.raises(TreeError):
            folded(rule, wrong)


def test_exact_is_the_dense_weighted_mean_at_the_offered_rank() -> None:
    found, whole = products(folded(Exact(), SOME)), sum(one.examples for one in SOME)
    for path in found:
        mean = sum(one.examples / whole * products(one.adapter)[path] for one in SOME)
        u, s, v = torch.linalg.svd(mean, full_matrices=False)
        assert (found[path] - (u[:, :4] * s[:4]) @ v[:4]).abs().max() < 1e-6
        assert s[4] > 1e-3  # something is cut, or this would prove nothing


def test_exact_takes_any_rank() -> None:
    narrow = lora.best(adapter(2), 2)
    found = folded(Exact(), [update(1, 1, lora.best(adapter(1), 2)), update(2, 1, narrow)])
    wanted = {
        path: (a + b) / 2
        for (path, a), b in zip(products(lora.best(adapter(1), 2)).items(), products(narrow).values(), strict=True)
    }
    assert lora.rank(found) == 4
    assert far(products(found), wanted) < 1e-6


# ---- outer steps


@pytest.mark.parametrize("part", OUTERS.values(), ids=list(OUTERS))
def test_where_all_agree_nothing_moves(part: type[Outer]) -> None:
    now = adapter(1)
    new, _ = part().step(now, {key: value.clone() for key, value in now.items()}, {})
    assert all(torch.equal(new[key], now[key]) for key in now)


@pytest.mark.parametrize("part", OUTERS.values(), ids=list(OUTERS))
def test_a_step_leaves_what_it_was_given(part: type[Outer]) -> None:
    now, mean = adapter(1), adapter(2)
    _, memory = part().step(now, mean, {})
    kept = {key: value.clone() for key, value in memory.items()}
    part().step(now, mean, memory)
    assert all(torch.equal(now[key], adapter(1)[key]) and torch.equal(mean[key], adapter(2)[key]) for key in now)
    assert all(torch.equal(memory[key], kept[key]) for key in kept)


@pytest.mark.parametrize("part", OUTERS.values(), ids=list(OUTERS))
def test_a_memory_that_was_packed_goes_on_the_same(part: type[Outer]) -> None:
    first, memory = part().step(adapter(1), adapter(2), {})
    again, _ = tree.unpack(tree.pack(memory)) if memory else ({}, {})
    one, two = (part().step(first, adapter(3), found)[0] for found in (memory, again))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_plain_goes_there_or_a_share_of_the_way() -> None:
    now, mean = adapter(1), adapter(2)
    there, _ = Plain().step(now, mean, {})
    near, _ = Plain(lr=0.25).step(now, mean, {})
    assert all(torch.equal(there[key], mean[key]) for key in mean)
    assert far(near, {key: 0.75 * now[key] + 0.25 * mean[key] for key in now}) < 1e-6


def momentum_by_hand(part: Momentum, now: np.ndarray, means: Sequence[np.ndarray]) -> np.ndarray:
    speed = np.zeros_like(now)
    for mean in means:
        speed = part.beta * speed + (mean - now)
        now = now + part.lr * speed
    return now


def adam_by_hand(part: Adam, now: np.ndarray, means: Sequence[np.ndarray]) -> np.ndarray:
    first, second = np.zeros_like(now), np.zeros_like(now)
    for mean in means:
        move = mean - now
        first = part.beta * first + (1 - part.beta) * move
        second = part.beta2 * second + (1 - part.beta2) * move**2
        now = now + part.lr * first / (np.sqrt(second) + part.epsilon)
    return now


@pytest.mark.parametrize(
    ("part", "by_hand"),
    [
        (Momentum(), momentum_by_hand),
        (Momentum(lr=0.5, beta=0.7), momentum_by_hand),
        (Adam(), adam_by_hand),
        (Adam(lr=0.1, beta=0.8, beta2=0.9, epsilon=0.01), adam_by_hand),
    ],
)
def test_three_rounds_by_hand(part: Outer, by_hand: Callable[..., np.ndarray]) -> None:
    now, memory, means = adapter(1), {}, [adapter(seed) for seed in (2, 3, 4)]
    for mean in means:
        now, memory = part.step(now, mean, memory)
    for key, value in adapter(1).items():
        wanted = by_hand(part, value.double().numpy(), [mean[key].double().numpy() for mean in means])
        assert np.abs(now[key].numpy() - wanted).max() < 1e-6


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


@pytest.mark.parametrize("part", PERSONALS.values(), ids=list(PERSONALS))
def test_a_personal_rule_says_when_from_where_and_how(part: Any) -> None:
    rule, own, shared = part(), adapter(1), adapter(2)
    training = rule.training(Training(batch=3, proximal=0.5))
    assert isinstance(rule.each_round, bool)
    assert training.batch == 3
    for begun in (rule.begin(None, shared), rule.begin(own, shared)):
        assert begun is None or begun is own or begun is shared
    if rule.begin(None, shared) is not None:
        assert (training.lr, training.epochs, training.steps, training.proximal) == (
            rule.lr,
            rule.epochs,
            rule.steps,
            0,
        )
    else:
        assert not rule.each_round


def test_only_keep_goes_on_from_the_own_adapter() -> None:
    own, shared = adapter(1), adapter(2)
    goes_on = [part for part in PERSONALS.values() if part().begin(own, shared) is own]
    assert goes_on == [Keep]


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


@pytest.mark.parametrize("kind", [kind for kind in SOURCES if kind not in ("stdlib", "hub")])
def test_a_source_that_is_not_there_is_one_clear_line(kind: str, tmp_path: Path) -> None:
    part, nowhere = SOURCES[kind], str(tmp_path / "nowhere")
    needed = [spot.name for spot in dataclasses.fields(part) if spot.default is dataclasses.MISSING]  # type: ignore[arg-type]
    source: Any = part(**{name: nowhere if name == "path" else "field" for name in needed})
    with pytest.raises(FedgenError, match="nowhere") as caught:
        source.read()
    assert "\n" not in str(caught.value)
