"""What every aggregate and every outer step promises: means that are means, and steps that are the published ones."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedgen import lora, tree
from fedgen.aggregate import AGGREGATES, Aggregate, Exact, Padded, Residual, Stack, Turned
from fedgen.errors import TreeError
from fedgen.outer import OUTERS, Adam, Momentum, Outer, Plain
from fedgen.records import Tree, Update

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


# Stack's updates are increments, and Residual's go beside a frozen part: LIKE changes nothing, so here they are whole.
RULES = [
    pytest.param(part(weight=weight, **({"rank": 32} if kind in ("residual", "stack") else {})), id=f"{kind}-{weight}")
    for kind, part in AGGREGATES.items()
    for weight in ("norm", "examples", "uniform")
    if weight != "norm" or part is Padded
]


def some(rule: Aggregate) -> list[Update]:
    """Four updates that a rule can take."""
    return [update(at, examples, body(rule, at)) for at, examples in enumerate((7, 1, 30, 12), 1)]


def body(rule: Aggregate, seed: int) -> Tree:
    """An adapter that a client of such a server may send: under Turned, the A that all were offered."""
    kept = [key for key in LIKE if "lora_A" in key] if isinstance(rule, Turned) else []
    return adapter(seed) | {key: LIKE[key].clone() for key in kept}


@pytest.mark.parametrize("rule", RULES)
def test_the_order_of_arrival_leaves_no_trace(rule: Aggregate) -> None:
    wanted = folded(rule, some(rule))
    for shuffled in itertools.permutations(some(rule)):
        found = folded(rule, shuffled)
        assert list(found) == list(wanted)
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("rule", RULES)
def test_a_mean_of_equal_updates_is_that_update(rule: Aggregate) -> None:
    found = folded(rule, [update(number, number + 1, body(rule, 1)) for number in range(5)])
    lora.check_layers(found, LIKE, "mean")
    assert far(products(found), products(body(rule, 1))) < 1e-6


@pytest.mark.parametrize("rule", RULES)
def test_one_update_is_itself(rule: Aggregate) -> None:
    assert far(products(folded(rule, some(rule)[:1])), products(body(rule, 1))) < 1e-5


@pytest.mark.parametrize("rule", RULES)
def test_the_mean_has_the_servers_rank_or_grows_to_its_own(rule: Aggregate) -> None:
    found = folded(rule, some(rule))
    if type(rule) in (Residual, Stack):
        assert lora.rank(found) == (32 + 4 if type(rule) is Residual else 9)  # 9: the widest layer has no more
    else:
        tree.check(found, LIKE, "mean")


@pytest.mark.parametrize("rule", RULES)
def test_only_the_weights_proportions_count(rule: Aggregate) -> None:
    more = [replace(one, examples=1000 * one.examples) for one in some(rule)]
    assert far(products(folded(rule, some(rule))), products(folded(rule, more))) < 1e-5


@pytest.mark.parametrize("kind", AGGREGATES)
def test_examples_weigh_and_uniform_does_not(kind: str) -> None:
    by_size, alike = AGGREGATES[kind](weight="examples"), AGGREGATES[kind](weight="uniform")
    same = [replace(each, examples=5) for each in some(alike)]
    assert far(products(folded(by_size, some(alike))), products(folded(alike, some(alike)))) > 1e-3
    assert far(products(folded(by_size, same)), products(folded(alike, some(alike)))) < 1e-5


@pytest.mark.parametrize("rule", RULES)
def test_updates_are_left_as_they_came(rule: Aggregate) -> None:
    came = some(rule)
    folded(rule, came)
    for one, again in zip(came, some(rule), strict=True):
        assert all(torch.equal(one.adapter[key], again.adapter[key]) for key in again.adapter)


@pytest.mark.parametrize("rule", RULES)
def test_what_is_told_says_nothing_of_the_order_and_is_finite(rule: Aggregate) -> None:
    told = []
    for updates in (some(rule), some(rule)[::-1]):
        fold = rule.fold(LIKE)
        for one in updates:
            fold.add(one)
        assert fold.told == {}  # before it is closed there is nothing to tell
        fold.close()
        told.append(fold.told)
    assert told[0] == told[1]
    assert all(np.isfinite(value) for value in told[0].values())


@pytest.mark.parametrize("rule", RULES)
def test_what_cannot_be_a_mean_is_refused(rule: Aggregate) -> None:
    first = next(key for key in LIKE if "lora_B" in key)
    whole = body(rule, 1)
    less = {key: value for key, value in whole.items() if "conv" not in key}
    spoilt = {key: value * (torch.nan if key == first else 1) for key, value in whole.items()}
    for wrong in ([], [update(1, 5, less)], [some(rule)[1], update(1, 5, less)], [update(1, 5, spoilt)]):
        with pytest.raises(TreeError):
            folded(rule, wrong)


def test_exact_is_the_dense_weighted_mean_at_the_offered_rank() -> None:
    found, updates = products(folded(Exact(), some(Exact()))), some(Exact())
    for path in found:
        mean = sum(one.examples / 50 * products(one.adapter)[path] for one in updates)
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
