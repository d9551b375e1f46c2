"""Exchange between clusters: shares that sum to one, exact sums of products, and nothing where there is none to do."""

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedgen import lora
from fedgen.errors import TreeError
from fedgen.exchange import EXCHANGES, Alone, Mixed, Neighbours, SharedA, Toward
from fedgen.records import Tree

LAYERS: Mapping[str, nn.Module] = {"flat": nn.Linear(12, 9), "conv": nn.Conv2d(3, 8, 3)}
NAMES = ["cluster-1", "cluster-10", "cluster-2"]
SIZES = {"cluster-1": 30.0, "cluster-10": 5.0, "cluster-2": 10.0}
LIKENESS = torch.tensor([[1.0, 0.9, 0.2], [0.9, 1.0, 0.3], [0.2, 0.3, 1.0]])
NEAR = Neighbours(strength=0.1, temperature=0.1, thin=1.0, of="adapters")
MEAN = Toward(strength=0.1, thin=1.0, of="adapters")
PULLS = [NEAR, MEAN, replace(NEAR, on="factors"), replace(MEAN, on="factors")]
STEPS = [replace(rule, of="steps") for rule in PULLS]
WHOLE = [*PULLS, SharedA(), replace(NEAR, strength=1.0, thin=0.0), replace(MEAN, strength=1.0)]
EVERY = [*WHOLE, *STEPS]


def adapter(seed: int, rank: int = 3) -> Tree:
    draw = torch.Generator().manual_seed(seed)
    like = lora.fresh(LAYERS, rank, draw)
    return {key: torch.randn(value.shape, generator=draw) for key, value in like.items()}


ADAPTERS = {name: adapter(at) for at, name in enumerate(NAMES)}


def same(one: Mapping[str, Tree], two: Mapping[str, Tree]) -> bool:
    return one.keys() == two.keys() and all(
        one[name][key].equal(two[name][key]) for name in one for key in {*one[name], *two[name]}
    )


def products(tree: Tree) -> list[Tensor]:
    return [pair.b.flatten(1).double() @ pair.a.flatten(1).double() for pair in lora.pairs(tree)]


BEFORE = {name: adapter(at + 7) for at, name in enumerate(NAMES)}


def mixed(rule: Any, turn: int = 1, **changes: Any) -> Mixed:
    given = {"adapters": ADAPTERS, "likeness": LIKENESS, "sizes": SIZES, "before": BEFORE} | changes
    found: Mixed = rule.mix(given["adapters"], given["likeness"], given["sizes"], turn, given["before"])
    return found


# ---- shares


@pytest.mark.parametrize("rule", WHOLE, ids=repr)
def test_every_rows_shares_sum_to_one_and_none_is_negative(rule: Any) -> None:
    for turn, sizes in itertools.product((1, 7), (SIZES, SIZES | {"cluster-2": 0.0}, dict.fromkeys(NAMES, 0.0))):
        weights = mixed(rule, turn, sizes=sizes).weights
        assert weights.shape == (3, 3)
        assert weights.sum(1).allclose(torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-12)
        assert (weights >= 0).all()


def test_neighbours_take_by_likeness_and_temperature() -> None:
    rule = replace(NEAR, strength=0.2, temperature=0.5, thin=0.0)
    near = (LIKENESS[0, 1:] / 0.5).softmax(0)
    assert mixed(rule).weights[0].tolist() == pytest.approx([0.8, *(0.2 * near).tolist()], rel=1e-6)
    sharp = mixed(replace(rule, temperature=0.01)).weights
    assert sharp[0].tolist() == pytest.approx([0.8, 0.2, 0.0], abs=1e-9)
    assert sharp[2].tolist() == pytest.approx([0.2 * 4.5e-5, 0.2, 0.8], rel=1e-2)


def test_the_global_pull_is_to_the_mean_by_examples() -> None:
    found = mixed(replace(MEAN, strength=0.3, thin=0.0)).weights
    mean = torch.tensor([30, 5, 10]) / 45
    assert found.allclose(0.7 * torch.eye(3).double() + 0.3 * mean.double(), atol=1e-7)


@pytest.mark.parametrize(
    "rule", [replace(NEAR, strength=0.1, thin=1.0), replace(MEAN, strength=0.1, thin=1.0)], ids=repr
)
def test_a_cluster_with_little_data_borrows_most(rule: Any) -> None:
    def moved(rule: Any) -> list[float]:
        before, after = ADAPTERS, mixed(rule).adapters
        return [float((products(after[name])[0] - products(before[name])[0]).norm()) for name in NAMES]

    rich, poor, middling = moved(rule)
    assert poor > 1.5 * middling > 2.25 * rich > 0
    alike = moved(replace(rule, thin=0.0))
    assert max(alike) < 4 * min(alike)


def test_the_pull_is_the_strength_at_the_mean_size_and_its_odds_are_inverse_to_size() -> None:
    sizes = {"cluster-1": 40.0, "cluster-10": 20.0, "cluster-2": 0.5, "cluster-3": 19.5}
    rule = replace(NEAR, strength=0.2, temperature=1.0, thin=1.0)
    found = rule.mix({name: adapter(1) for name in sizes}, torch.zeros(4, 4), sizes, 1, {}).weights
    pull = 1 - found.diagonal()
    assert pull[1] == pytest.approx(0.2)
    odds = pull / (1 - pull)
    assert (odds * torch.tensor([40.0, 20.0, 0.5, 19.5])).tolist() == pytest.approx([5.0] * 4)


def test_strength_fades_over_rounds() -> None:
    rule = replace(NEAR, strength=0.4, fade=0.5, thin=0.0)
    for turn, pull in ((1, 0.4), (2, 0.2), (4, 0.05)):
        assert (1 - mixed(rule, turn).weights.diagonal()).tolist() == pytest.approx([pull] * 3)
    assert same(mixed(replace(rule, fade=0.0), 2).adapters, ADAPTERS)
    assert not same(mixed(replace(rule, fade=0.0), 1).adapters, ADAPTERS)


# ---- adapters


@pytest.mark.parametrize("rule", [NEAR, replace(MEAN, strength=0.4)], ids=repr)
def test_products_are_mixed_exactly_where_the_rank_has_room(rule: Any) -> None:
    wide = {name: lora.resize(tree, 9) for name, tree in ADAPTERS.items()}
    found = mixed(rule, adapters=wide)
    for name, row in zip(NAMES, found.weights, strict=True):
        assert found.error[name] < 1e-9
        for at, made in enumerate(products(found.adapters[name])):
            wanted = sum(float(share) * products(wide[other])[at] for share, other in zip(row, NAMES, strict=True))
            assert (made - wanted).norm() < 1e-6 * made.norm()


@pytest.mark.parametrize("on", ["products", "factors"])
def test_the_error_is_the_share_of_the_mixtures_energy_that_is_missed(on: Any) -> None:
    found = mixed(replace(NEAR, strength=0.4, on=on))
    for name, row in zip(NAMES, found.weights, strict=True):
        assert lora.rank(found.adapters[name]) == 3
        parts = [(float(share), ADAPTERS[other]) for share, other in zip(row, NAMES, strict=True)]
        wanted = products(lora.product_sum(parts))
        off = sum((a - b).square().sum() for a, b in zip(products(found.adapters[name]), wanted, strict=True))
        assert found.error[name] == pytest.approx(float(off / sum(one.square().sum() for one in wanted)), rel=1e-4)
        assert found.error[name] > 0.01


def test_the_best_of_the_rank_misses_less_than_the_factors_apart() -> None:
    exact, apart = (mixed(replace(MEAN, strength=0.5, on=on)).error for on in ("products", "factors"))
    assert all(exact[name] < apart[name] for name in NAMES)


def test_factors_are_mixed_apart() -> None:
    found = mixed(replace(MEAN, strength=0.4, on="factors"))
    for name, row in zip(NAMES, found.weights, strict=True):
        for key, made in found.adapters[name].items():
            wanted = sum(float(share) * ADAPTERS[other][key] for share, other in zip(row, NAMES, strict=True))
            assert made.allclose(wanted, atol=1e-6)
            assert made.dtype == torch.float32


def test_a_shared_a_is_the_mean_and_every_b_its_own() -> None:
    found = mixed(SharedA())
    for name in NAMES:
        for key, made in found.adapters[name].items():
            mean = sum(SIZES[other] / 45 * ADAPTERS[other][key] for other in NAMES)
            assert made.equal(ADAPTERS[name][key]) if key.endswith(lora.B_END) else made.allclose(mean, atol=1e-6)
    assert found.error == dict.fromkeys(NAMES, 0.0)
    assert list(found.adapters["cluster-1"]) == list(ADAPTERS["cluster-1"])


@pytest.mark.parametrize("rule", STEPS, ids=repr)
def test_of_steps_its_own_is_kept_whole_and_the_others_are_added(rule: Any) -> None:
    found, whole = mixed(rule), mixed(replace(rule, of="adapters")).weights
    off = ~torch.eye(3, dtype=torch.bool)
    assert found.weights.diagonal().tolist() == [1.0] * 3
    assert found.weights[off].allclose(whole[off])
    for name, row in zip(NAMES, found.weights.tolist(), strict=True):
        others = [(share, other) for share, other in zip(row, NAMES, strict=True) if other != name]
        if rule.on == "products":
            steps = [
                (sign * share, tree[other]) for share, other in others for sign, tree in ((1, ADAPTERS), (-1, BEFORE))
            ]
            wanted = lora.best(lora.product_sum([(1.0, ADAPTERS[name]), *steps]), 3)
            assert all(
                (a - b).norm() < 1e-5 for a, b in zip(products(found.adapters[name]), products(wanted), strict=True)
            )
            continue
        for key, made in found.adapters[name].items():
            added = sum(share * (ADAPTERS[other][key] - BEFORE[other][key]) for share, other in others)
            assert made.allclose(ADAPTERS[name][key] + added, atol=1e-6)


def test_clusters_of_several_ranks_keep_their_own() -> None:
    ranks = {"cluster-1": 3, "cluster-10": 2, "cluster-2": 5}
    found = mixed(NEAR, adapters={name: adapter(rank, rank) for name, rank in ranks.items()})
    assert {name: lora.rank(tree) for name, tree in found.adapters.items()} == ranks


# ---- what changes nothing


@pytest.mark.parametrize("rule", [Alone(), *(replace(rule, strength=0.0) for rule in PULLS + STEPS)], ids=repr)
def test_no_strength_gives_the_very_same_tensors(rule: Any) -> None:
    found = mixed(rule)
    assert all(found.adapters[name] is ADAPTERS[name] for name in NAMES)
    assert found.weights.equal(torch.eye(3, dtype=torch.float64))
    assert found.error == dict.fromkeys(NAMES, 0.0)


@pytest.mark.parametrize("rule", [Alone(), *EVERY], ids=repr)
def test_one_cluster_alone_keeps_its_very_tensors(rule: Any) -> None:
    alone = {"cluster-1": ADAPTERS["cluster-1"]}
    found = rule.mix(alone, torch.ones(1, 1), {"cluster-1": 4.0}, 3, BEFORE)
    assert all(found.adapters["cluster-1"][key] is value for key, value in ADAPTERS["cluster-1"].items())
    assert found.weights.tolist() == [[1.0]]


@pytest.mark.parametrize("rule", EVERY, ids=repr)
def test_an_emptied_cluster_keeps_its_adapter_and_lends_nothing(rule: Any) -> None:
    found = mixed(rule, sizes=SIZES | {"cluster-10": 0.0})
    assert all(found.adapters["cluster-10"][key].equal(half) for key, half in ADAPTERS["cluster-10"].items())
    assert found.weights[1].tolist() == [0.0, 1.0, 0.0]
    assert found.weights[[0, 2], 1].tolist() == [0.0, 0.0]
    assert not same(found.adapters, ADAPTERS)


@pytest.mark.parametrize("rule", EVERY, ids=repr)
def test_the_order_of_the_clusters_leaves_no_trace(rule: Any) -> None:
    turned = mixed(rule, adapters=dict(reversed(ADAPTERS.items())), sizes=dict(reversed(SIZES.items())))
    found = mixed(rule)
    assert same(turned.adapters, found.adapters)
    assert turned.weights.equal(found.weights)
    assert turned.error == found.error


@pytest.mark.parametrize("rule", EVERY, ids=repr)
def test_what_came_in_is_not_changed(rule: Any) -> None:
    before = {name: {key: half.clone() for key, half in tree.items()} for name, tree in ADAPTERS.items()}
    mixed(rule)
    assert same(ADAPTERS, before)


# ---- what is refused


def test_likeness_that_does_not_fit_is_refused() -> None:
    for likeness, came in ((LIKENESS * torch.nan, "not all of them numbers"), (LIKENESS[:2], r"\(2, 3\)")):
        with pytest.raises(TreeError, match=f"wanted the likeness of .3, 3. clusters, came .*{came}"):
            mixed(NEAR, likeness=likeness)


@pytest.mark.parametrize("rule", [NEAR, MEAN, SharedA()], ids=repr)
def test_sizes_that_are_none_are_refused(rule: Any) -> None:
    for sizes in ({"cluster-1": 3.0}, SIZES | {"cluster-2": -1.0}, SIZES | {"cluster-2": float("nan")}):
        with pytest.raises(TreeError, match="wanted how many examples each of"):
            mixed(rule, sizes=sizes)


def test_factors_of_several_ranks_cannot_be_mixed() -> None:
    with pytest.raises(TreeError, match=r"exchange of factors with 'cluster-1': .* has shape"):
        mixed(replace(NEAR, on="factors"), adapters=ADAPTERS | {"cluster-2": adapter(1, 5)})


def test_every_kind_has_a_row() -> None:
    assert {"none": Alone, "neighbours": Neighbours, "global": Toward, "shared_a": SharedA} == EXCHANGES
