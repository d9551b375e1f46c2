"""What each client is offered: cut to its rank, in order, once for all who have that rank."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import pytest
import torch

from fedgen import factors, lora
from fedgen import plan as plans
from fedgen.allot import Fit, fitted
from fedgen.records import GLOBAL, Offer, Reply, Tree, Use

LAYERS = {"k": torch.nn.Linear(6, 5), "q": torch.nn.Linear(4, 8)}


def adapter(seed: int, rank: int = 4) -> Tree:
    draw = torch.Generator().manual_seed(seed)
    like = lora.fresh(LAYERS, rank, draw)
    return {key: torch.randn(value.shape, generator=draw) for key, value in like.items()}


NOW, OTHER = adapter(1), adapter(2)
RANKS = {"ann": 1, "bob": 2, "cleo": 4, "dan": 2}


def asked(
    fit: Fit, adapter: Tree = NOW, use: Use = "train", beside: Mapping[str, Tree] | None = None, rank: int = 0
) -> dict[str, Offer]:
    """What reaches each client."""
    seen: list[Offer] = []

    def ask(offers: Sequence[Offer]) -> Iterator[Reply]:
        seen.extend(offers)
        return iter(())

    list(fitted(ask, fit)(Offer(1, name, GLOBAL, adapter, use, beside or {}, rank) for name in RANKS))  # type: ignore[arg-type]
    return {offer.client: offer for offer in seen}


@pytest.mark.parametrize("use", ["train", "check", "score"])
def test_everyone_is_offered_the_best_of_its_rank(use: Use) -> None:
    found = asked(Fit(RANKS, own=True), use=use, beside={"other": OTHER})
    for name, rank in RANKS.items():
        assert found[name].rank == rank
        for tree, whole in ((found[name].adapter, NOW), (found[name].beside["other"], OTHER)):
            wanted = lora.best(whole, rank) if rank < 4 else whole
            assert all(tree[key].equal(wanted[key]) for key in wanted)
    assert found["bob"].adapter is found["dan"].adapter  # made once, and so sent once
    assert found["bob"].beside["other"] is found["dan"].beside["other"]
    assert found["cleo"].adapter is NOW


def test_an_adapter_is_put_in_order_once_whatever_ranks_are_cut() -> None:
    calls: list[Tree] = []

    def order(tree: Tree) -> Tree:
        calls.append(tree)
        return factors.ordered(tree)

    asked(Fit(RANKS, own=True, order=order))
    assert [tree is NOW for tree in calls] == [True]


def test_a_layer_that_has_learnt_nothing_keeps_its_first_ranks() -> None:
    idle = NOW | {key: torch.zeros_like(half) for key, half in NOW.items() if "q.lora_B" in key}
    found = asked(Fit(RANKS, own=True), idle)["bob"].adapter
    first, best = factors.head(idle, 2), lora.best(idle, 2)
    for key in found:
        assert found[key].equal(first[key] if ".q." in key else best[key])


def test_without_ranks_of_their_own_all_are_offered_all() -> None:
    found = asked(Fit(dict.fromkeys(RANKS, 2)))
    assert all(offer.adapter is NOW and offer.rank == 2 for offer in found.values())


def test_clients_hold_as_much_of_the_adapter_below_as_they_carry() -> None:
    plan = plans.read({"share": {"kind": "increment", "carries": 3}, "aggregate": {"kind": "stack"}})
    found = asked(plan.fit(RANKS))
    for name, rank in RANKS.items():
        assert found[name].rank == rank
        assert lora.rank(found[name].adapter) == 3
    assert asked(plan.fit(RANKS), adapter(1, 2))["ann"].adapter.keys() == NOW.keys()
    assert lora.rank(asked(plan.fit(RANKS), adapter(1, 2))["ann"].adapter) == 2  # there is no more yet


def test_the_padded_are_offered_the_first_ranks() -> None:
    plan = plans.read({"adapter": {"ranks": [1, 2]}, "aggregate": {"kind": "padded"}})
    found = asked(plan.fit(RANKS))["bob"].adapter
    assert all(found[key].equal(half) for key, half in factors.head(NOW, 2).items())


def test_a_client_that_has_pruned_its_ranks_keeps_to_that() -> None:
    found = asked(Fit(RANKS, own=True), rank=1)
    assert {lora.rank(offer.adapter) for offer in found.values()} == {1}


def test_a_question_for_profiles_has_nothing_to_cut() -> None:
    assert all(offer.adapter == {} for offer in asked(Fit(RANKS, own=True), {}, "encode").values())


def test_by_need_what_is_trained_is_spread_and_what_is_measured_is_not() -> None:
    fit = Fit(RANKS, own=True, mean=1.5)
    trained, measured = asked(fit), asked(fit, use="check")
    numbers = sum(half.numel() for half in NOW.values()) / 4
    assert sum(sum(half.numel() for half in offer.adapter.values()) for offer in trained.values()) <= 1.5 * 4 * numbers
    assert factors.ranks_of(trained["ann"].adapter) == {"k": 1, "q": 1}
    assert all(offer.rank == max(factors.ranks_of(offer.adapter).values()) for offer in trained.values())
    assert {name: lora.rank(offer.adapter) for name, offer in measured.items()} == RANKS


def test_who_needs_more_is_given_more() -> None:
    fit = Fit(dict.fromkeys(RANKS, 4), own=True, mean=1.75)
    seen: list[Offer] = []

    def ask(offers: Sequence[Offer]) -> Iterator[Reply]:
        seen.extend(offers)
        return iter(())

    offers = [Offer(2, name, GLOBAL, NOW) for name in RANKS]
    list(fitted(ask, fit, {"ann": 4.0, "bob": 0.1, "cleo": 0.1})(offers))  # type: ignore[arg-type]
    ranks = {offer.client: sum(factors.ranks_of(offer.adapter).values()) for offer in seen}
    assert ranks["ann"] > ranks["dan"] > ranks["bob"] == ranks["cleo"]  # one that is not known yet is as the mean


def test_at_first_everyone_trains_all_that_its_device_carries() -> None:
    idle = {key: half if "lora_A" in key else torch.zeros_like(half) for key, half in NOW.items()}
    found = asked(Fit(RANKS, own=True, mean=1.0), idle)
    assert {name: lora.rank(offer.adapter) for name, offer in found.items()} == RANKS
    assert replace(found["cleo"], adapter={}) == Offer(1, "cleo", GLOBAL, {}, rank=4)
