"""A round: the client's half as if alone, what a client keeps for itself, and the server's half, failures included."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedgen import factors, lora, seeds, tree
from fedgen import plan as plans
from fedgen.aggregate import AGGREGATES, Average, Exact, takes
from fedgen.bank import Bank
from fedgen.cohort import Uniform
from fedgen.data import count
from fedgen.errors import ClientError, TreeError
from fedgen.groups import offers
from fedgen.outer import Momentum, Plain
from fedgen.personal import FineTune, Keep, Nothing, Personal
from fedgen.places.inprocess import hold_data
from fedgen.records import GLOBAL, Client, Failure, Offer, Reply, Rows, State, Tree, Update
from fedgen.rounds import Server, play
from fedgen.share import Halves
from fedgen.store import Shelf
from fedgen.turns import CLUSTER, Site, head, read_scores, turn, turns

Make = Callable[[Personal], Site]


@pytest.fixture(scope="module")
def ground(tiny_plan: dict[str, Any]) -> tuple[Any, Bank, dict[str, Client], plans.Plan]:
    """What all sites of these tests share: the backbone, a bank on it, and the clients."""
    plan = plans.read(tiny_plan)
    backbone = plan.backbone.load()
    held, _ = hold_data(plan, backbone)
    return backbone, Bank(backbone.network, backbone.targets, 2), held, plan


@pytest.fixture
def make(ground: tuple[Any, Bank, dict[str, Client], plans.Plan], tmp_path: Path) -> Make:
    """A fresh site with a rule for the clients' own adapters."""
    backbone, bank, held, plan = ground
    return lambda personal: Site(3, backbone, bank, held, plan.training, personal, Shelf(tmp_path / "shelf"), 2)


@pytest.fixture
def start(ground: tuple[Any, Bank, dict[str, Client], plans.Plan]) -> Tree:
    """An adapter that does something: both halves drawn."""
    made = ground[1].fresh(seeds.generator(0, -1, "", "adapter"))
    draw = torch.Generator().manual_seed(1)
    return {key: value + 0.05 * torch.randn(value.shape, generator=draw) for key, value in made.items()}


def same(a: Tree, b: Tree) -> bool:
    return a.keys() == b.keys() and all(a[key].equal(b[key]) for key in a)


def near(a: Tree, b: Tree) -> bool:
    return a.keys() == b.keys() and all(torch.allclose(a[key], b[key], rtol=0, atol=1e-5) for key in a)


def trained(reply: Reply) -> Update:
    assert isinstance(reply, Update), reply
    return reply


# --- the client's half


@pytest.mark.parametrize("personal", [Nothing(), Keep(steps=2)])
def test_several_at_once_are_as_each_alone(personal: Personal, make: Make, start: Tree, tmp_path: Path) -> None:
    together, alone = make(personal), replace(make(personal), shelf=Shelf(tmp_path / "other"))
    asked = [Offer(1, name, GLOBAL, start) for name in ("eve", "ann", "finn")]
    for offer, reply in zip(asked, turns(together, asked), strict=True):
        one, other = trained(reply), trained(turn(alone, offer))
        assert (one.client, one.round, one.cluster) == (offer.client, 1, GLOBAL)
        assert near(one.adapter, other.adapter)
        assert not near(one.adapter, start)
        assert one.examples == other.examples == count(together.clients[offer.client].train)
        assert one.metrics["steps"] == other.metrics["steps"] == 3
        assert one.metrics["terms"] == other.metrics["terms"] > 0
        assert one.metrics["loss"] == pytest.approx(other.metrics["loss"], abs=1e-5)
        if personal.each_round:
            assert near(together.shelf.get(offer.client) or {}, alone.shelf.get(offer.client) or {})


def test_the_same_turn_twice_is_the_same_bit_for_bit(make: Make, start: Tree) -> None:
    offer = Offer(2, "bob", GLOBAL, start)
    one, other = (trained(turn(make(Nothing()), offer)) for _ in range(2))
    assert same(one.adapter, other.adapter)
    assert not same(one.adapter, trained(turn(make(Nothing()), replace(offer, round=3))).adapter)


def test_a_client_that_is_not_here_fails_and_the_others_do_not(make: Make, start: Tree) -> None:
    replies = turns(make(Nothing()), [Offer(1, name, GLOBAL, start) for name in ("nobody", "ann")])
    assert replies[0] == Failure(1, "nobody", GLOBAL, "no such client here")
    assert trained(replies[1]).client == "ann"
    assert turns(make(Nothing()), []) == []


def test_numbers_that_are_not_finite_are_a_failure_of_that_client_alone(make: Make, start: Tree) -> None:
    site = make(Nothing())
    broken = {key: torch.full_like(value, torch.nan) for key, value in start.items()}
    replies = turns(site, [Offer(1, "ann", GLOBAL, broken), Offer(1, "bob", GLOBAL, start)])
    assert isinstance(replies[0], Failure)
    assert replies[0].reason == "training ended in numbers that are not finite (loss nan); lower lr"
    alone = turn(make(Nothing()), Offer(1, "bob", GLOBAL, start))
    assert near(trained(replies[1]).adapter, trained(alone).adapter)


# --- what a client keeps for itself


def test_check_looks_at_validation_rows_and_never_trains(make: Make, start: Tree) -> None:
    for personal in (Nothing(), FineTune(steps=1), Keep(steps=1)):
        site = make(personal)
        reply = trained(turn(site, Offer(1, "ann", GLOBAL, start, "check")))
        assert reply.adapter == {}
        assert site.shelf.clients() == []
        scores = read_scores(reply)
        assert list(scores) == [GLOBAL]
        assert scores[GLOBAL].terms == scored(head(site.clients["ann"].valid, site.rows))


def scored(rows: Rows) -> int:
    return int(rows["scored"].sum())


def test_score_without_personal_adapters(make: Make, start: Tree) -> None:
    site = make(Nothing())
    scores = read_scores(trained(turn(site, Offer(3, "ann", "north", start, "score"))))
    assert list(scores) == ["backbone", CLUSTER]
    assert scores["backbone"].loss != scores[CLUSTER].loss
    assert {found.terms for found in scores.values()} == {scored(head(site.clients["ann"].test, 2))}
    assert site.shelf.clients() == []


def test_finetune_leaves_the_shelf_alone_until_the_end(make: Make, start: Tree) -> None:
    site = make(FineTune(steps=4, lr=1e-2))
    turn(site, Offer(1, "ann", GLOBAL, start))
    assert site.shelf.clients() == []
    scores = read_scores(trained(turn(site, Offer(2, "ann", GLOBAL, start, "score"))))
    assert list(scores) == ["backbone", GLOBAL, "personal"]
    assert scores["personal"].loss != scores[GLOBAL].loss
    first = site.shelf.get("ann")
    assert first is not None
    turn(site, Offer(2, "ann", GLOBAL, start, "score"))  # asked again, it starts from the shared adapter again
    assert same(site.shelf.get("ann") or {}, first)


def test_keep_trains_in_every_turn_and_goes_on_from_where_it_was(make: Make, start: Tree) -> None:
    site = make(Keep(steps=2, lr=1e-2))
    turn(site, Offer(1, "ann", GLOBAL, start))
    first = site.shelf.get("ann")
    assert first is not None
    assert site.shelf.round_of("ann") == 1
    turn(site, Offer(4, "ann", GLOBAL, tree.zeros(start)))  # whatever is shared by then
    second = site.shelf.get("ann")
    assert second is not None
    assert site.shelf.round_of("ann") == 4
    gone = tree.norm(tree.add(second, first, -1))
    assert 0 < gone < 0.5 * tree.norm(first), "the second turn started from somewhere else than from the first's end"
    turn(site, Offer(5, "ann", GLOBAL, start, "score"))
    assert same(site.shelf.get("ann") or {}, second)


def test_keep_gives_a_client_that_never_took_part_its_own_at_the_end(make: Make, start: Tree) -> None:
    site = make(Keep(steps=2, lr=1e-2))
    scores = read_scores(trained(turn(site, Offer(5, "bob", GLOBAL, start, "score"))))
    assert list(scores) == ["backbone", GLOBAL, "personal"]
    assert site.shelf.round_of("bob") == 5


def test_the_shared_update_does_not_depend_on_the_rule_for_the_own(make: Make, start: Tree) -> None:
    offer = Offer(1, "cleo", GLOBAL, start)
    bare, kept = (trained(turn(make(rule), offer)) for rule in (Nothing(), Keep(steps=5)))
    assert same(bare.adapter, kept.adapter)


# --- the server's half, with updates that are made up: what they hold is known


def server(names: list[str], **parts: Any) -> Server:
    sizes = {name: 10 * (at + 1) for at, name in enumerate(names)}
    made = {"cohort": Uniform(fraction=1.0), "aggregate": Average(), "outer": Plain()} | parts
    return Server(5, names, sizes, made["cohort"], made["aggregate"], made["outer"])


def leaf(value: float) -> Tree:
    ends = {"A": (2, 3), "B": (4, 2)}
    return {f"base_model.model.q.lora_{end}.weight": torch.full(shape, value) for end, shape in ends.items()}


def step(offer: Offer, by: float, examples: int = 1) -> Update:
    """A client that adds a number to all it is offered."""
    made = {key: value + by for key, value in offer.adapter.items()}
    return Update(offer.round, offer.client, offer.cluster, made, examples, {"loss": by, "terms": 3, "steps": 1}, 7, 11)


def test_a_round_offers_folds_and_steps() -> None:
    heard: list[Offer] = []

    def ask(asked: Iterable[Offer]) -> Iterator[Reply]:
        for offer in asked:
            heard.append(offer)
            yield step(offer, {"a": 1.0, "b": 4.0}[offer.client], {"a": 1, "b": 2}[offer.client])

    state, report = play(server(["a", "b"]), State(4, {GLOBAL: leaf(1.0)}), ask)
    assert {(offer.client, offer.round, offer.use, offer.cluster) for offer in heard} == {
        ("a", 5, "train", GLOBAL),
        ("b", 5, "train", GLOBAL),
    }
    assert near(dict(state.adapters[GLOBAL]), leaf(1.0 + (1.0 + 2 * 4.0) / 3))
    assert (state.round, report.round, sorted(report.clients)) == (5, 5, ["a", "b"])
    assert (report.up, report.down, report.failures) == (14, 22, ())
    assert report.metrics == {"loss": 2.5, "terms": 6.0, "answered": 2.0}


def test_failures_are_reported_and_the_others_count() -> None:
    def ask(asked: Iterable[Offer]) -> Iterator[Reply]:
        for offer in asked:
            lost = offer.client in "ac"
            yield Failure(offer.round, offer.client, GLOBAL, "lost", 11) if lost else step(offer, 2.0)

    state, report = play(server(["a", "b", "c"]), State(0, {GLOBAL: leaf(0.0)}), ask)
    assert near(dict(state.adapters[GLOBAL]), leaf(2.0))
    assert [failure.client for failure in report.failures] == ["a", "c"]
    assert (sorted(report.clients), report.up, report.down) == (["a", "b", "c"], 7, 33)


def test_a_round_in_which_all_fail_is_an_error_that_says_why() -> None:
    def lost(asked: Iterable[Offer]) -> Iterator[Reply]:
        return (Failure(offer.round, offer.client, GLOBAL, "out of memory") for offer in asked)

    line = "round 1: none of 2 clients sent an update; the first said: "
    with pytest.raises(ClientError, match=line + "out of memory"):
        play(server(["a", "b"]), State(0, {GLOBAL: leaf(0.0)}), lost)
    with pytest.raises(ClientError, match=line + "nobody answered"):
        play(server(["a", "b"]), State(0, {GLOBAL: leaf(0.0)}), lambda asked: iter([]))


def test_two_clusters_have_adapters_folds_and_memories_of_their_own() -> None:
    where = {"a": "north", "b": "north", "c": "south"}
    by = {"a": 1.0, "b": 3.0, "c": 10.0}

    def ask(asked: Iterable[Offer]) -> Iterator[Reply]:
        return (step(offer, by[offer.client]) for offer in asked)

    one = server(["a", "b", "c"], outer=Momentum(beta=0.5))
    state = State(0, {GLOBAL: leaf(0.0), "north": leaf(0.0), "south": leaf(100.0)}, {}, where)
    state, _ = play(one, state, ask)
    assert near(dict(state.adapters["north"]), leaf(2.0))
    assert near(dict(state.adapters["south"]), leaf(110.0))
    state, _ = play(one, state, ask)
    assert near(dict(state.adapters["north"]), leaf(2.0 + (2.0 + 0.5 * 2.0)))  # the memory of round 1 is in round 2
    assert near(dict(state.adapters["south"]), leaf(110.0 + (10.0 + 0.5 * 10.0)))
    assert state.where == where
    assert state.memory.keys() == {"north", "south"}


def test_a_cluster_without_updates_keeps_its_adapter_and_its_memory() -> None:
    where = {"a": "north", "c": "south"}
    memory = {"south": {f"speed/{key}": value for key, value in leaf(7.0).items()}}

    def ask(asked: Iterable[Offer]) -> Iterator[Reply]:
        for offer in asked:
            lost = offer.cluster == "south"
            yield Failure(offer.round, offer.client, offer.cluster, "away") if lost else step(offer, 1.0)

    before = State(0, {GLOBAL: leaf(0.0), "north": leaf(0.0), "south": leaf(5.0)}, memory, where)
    kept = copy.deepcopy(before)
    after, _ = play(server(["a", "c"], outer=Momentum()), before, ask)
    assert same(dict(after.adapters["south"]), leaf(5.0))
    assert same(dict(after.memory["south"]), memory["south"])
    assert near(dict(after.adapters["north"]), leaf(1.0))
    assert (before.round, before.where) == (kept.round, kept.where)
    for name in before.adapters:
        assert same(dict(before.adapters[name]), dict(kept.adapters[name])), "play changed the state it was given"


def test_offers_carry_the_client_s_own_cluster() -> None:
    state = State(2, {GLOBAL: leaf(0.0), "south": leaf(1.0)}, {}, {"c": "south"})
    found = {offer.client: offer for offer in offers(state, ["a", "c"], 3, "check")}
    assert (found["a"].cluster, found["c"].cluster) == (GLOBAL, "south")
    assert same(found["c"].adapter, leaf(1.0))
    assert {(offer.round, offer.use) for offer in found.values()} == {(3, "check")}


def test_the_first_rows_or_all() -> None:
    rows = {"ids": torch.arange(5)}
    assert [count(head(rows, most)) for most in (0, 2, 5, 9)] == [5, 2, 5, 5]
    assert head(rows, 2)["ids"].tolist() == [0, 1]


# --- updates that no honest client sends


def changed(adapter: Tree, *first: torch.Tensor) -> Tree:
    """The adapter with another first tensor, or without any."""
    key = next(iter(adapter))
    return {**dict(zip([key], first, strict=False)), **{other: adapter[other] for other in adapter if other != key}}


HOSTILE: dict[str, Callable[[Update], Update]] = {
    "nan": lambda update: replace(update, adapter={k: x * torch.nan for k, x in update.adapter.items()}),
    "one nan": lambda update: replace(update, adapter=changed(update.adapter, torch.full((2, 3), torch.nan))),
    "infinite": lambda update: replace(update, adapter={k: x + torch.inf for k, x in update.adapter.items()}),
    "huge": lambda update: replace(update, adapter={k: x + 1e30 for k, x in update.adapter.items()}),
    "another shape": lambda update: replace(update, adapter=changed(update.adapter, torch.ones(3, 2))),
    "another rank": lambda update: replace(update, adapter=changed(update.adapter, torch.ones(4, 3))),
    "no shape": lambda update: replace(update, adapter=changed(update.adapter, torch.ones(()))),
    "no numbers": lambda update: replace(update, adapter=changed(update.adapter, torch.ones(0, 3))),
    "a key too few": lambda update: replace(update, adapter=changed(update.adapter)),
    "a key too much": lambda update: replace(update, adapter={**update.adapter, "more": torch.ones(2)}),
    "no keys": lambda update: replace(update, adapter={}),
    "other keys": lambda update: replace(update, adapter={"weight": torch.ones(2, 3)}),
    "another cluster": lambda update: replace(update, cluster="nowhere"),
}  # fmt: skip


PAIRS = [(what, kind) for what in HOSTILE for kind, rule in AGGREGATES.items() if takes(rule, "whole")]


@pytest.mark.parametrize(("what", "aggregate"), PAIRS)
def test_a_hostile_update_is_a_failure_and_the_others_count_in_any_order(what: str, aggregate: str) -> None:
    names = ["a", "b", "x"]

    def ask(order: Sequence[str]) -> Callable[[Iterable[Offer]], Iterator[Reply]]:
        def asked(found: Iterable[Offer]) -> Iterator[Reply]:
            own = {offer.client: step(offer, {"a": 1.0, "b": 4.0}.get(offer.client, 2.0)) for offer in found}
            own["x"] = HOSTILE[what](own["x"])
            return (own[name] for name in order if name in own)

        return asked

    one = replace(server(names), aggregate=AGGREGATES[aggregate]())
    ends = [play(one, State(0, {GLOBAL: leaf(1.0)}), ask(order)) for order in ("abx", "xba", "axb")]
    wanted, _ = play(one, State(0, {GLOBAL: leaf(1.0)}), ask("ab"))
    for state, report in ends:
        assert [failure.client for failure in report.failures] == ["x"]
        assert report.failures[0].reason
        assert (report.metrics["terms"], report.up) == (6.0, 14)
        assert same(dict(state.adapters[GLOBAL]), dict(wanted.adapters[GLOBAL]))


def test_where_ranks_are_given_up_an_update_of_several_is_a_failure() -> None:
    """Exact takes updates of any rank, and one that has another in each layer has none to keep to."""
    like = lora.tree_of(lora.Pair(path, torch.ones(2, 3), torch.ones(4, 2)) for path in ("k", "q"))
    one = replace(server(["a", "x"]), aggregate=Exact(), share=Halves(prune=True))

    def ask(found: Iterable[Offer]) -> Iterator[Reply]:
        for offer in found:
            ranks = {"k": 1, "q": 2} if offer.client == "x" else {"k": 1, "q": 1}
            sent = Update(1, offer.client, GLOBAL, factors.heads(like, ranks), 1, {"loss": 1.0, "terms": 1})
            yield sent

    state, report = play(one, State(0, {GLOBAL: like}), ask)
    assert [(failure.client, failure.reason) for failure in report.failures] == [
        ("x", "adapter: wanted one rank in all layers, came [1, 2]; resize it to one rank")
    ]
    assert state.ranks == {"a": 1}


def test_nobody_counts_for_more_than_it_said_it_holds() -> None:
    names = ["a", "b"]

    def ask(found: Iterable[Offer]) -> Iterator[Reply]:
        sent = {"a": (3.0, 2**52), "b": (1.0, 1)}
        return (replace(step(offer, sent[offer.client][0]), examples=sent[offer.client][1]) for offer in found)

    one = replace(server(names), sizes={"a": 1, "b": 1})
    state, report = play(one, State(0, {GLOBAL: leaf(0.0)}), ask)
    assert report.failures == ()
    assert all(value.eq(2.0).all() for value in state.adapters[GLOBAL].values())


def test_a_sum_is_as_if_what_it_refuses_had_not_come() -> None:
    sums = [tree.Sum(), tree.Sum()]
    for total, hostile in zip(sums, (False, True), strict=True):
        for number in (1.0, 2.0, 3.0):
            if hostile:
                with pytest.raises(TreeError, match="can be summed exactly"):
                    total.add(leaf(1e30), 1.0)
                with pytest.raises(TreeError, match="can be summed exactly"):
                    total.add(leaf(1.0), 2.0**52)
            total.add(leaf(number), 10.0)
    assert same(sums[0].mean(), sums[1].mean())
    assert sums[0].weight == sums[1].weight == 30.0
