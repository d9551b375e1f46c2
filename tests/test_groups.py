"""Clusters on the server: formed by what clients send, kept under their names, merged, split; one alone is none."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fedgen
from fedgen import Run, lora, report
from fedgen.aggregate import Average
from fedgen.cluster import Agglomerative, KMeans, Oracle
from fedgen.cohort import Uniform
from fedgen.errors import ClientError, FedgenError, PlanError
from fedgen.exchange import Neighbours
from fedgen.groups import Hierarchy, Rules, grouped, joined, merged, parted
from fedgen.outer import Plain
from fedgen.places import resume
from fedgen.records import GLOBAL, Ask, Failure, Offer, Reply, Report, State, Tree, Update
from fedgen.report.wording import happened
from fedgen.rounds import Server, play
from fedgen.sample import sampler
from fedgen.store import load_bundle

NAMES = ["ann", "bob", "cleo", "dan", "eve", "finn"]
SIZES = dict.fromkeys(NAMES, 2)
BY_PROFILE = {"encode": {"kind": "ngrams", "width": 64}, "cluster": {"kind": "kmeans", "count": 2}}


def tree_like(value: float, side: int = 0) -> Tree:
    """An adapter of rank 1 whose product has one number, in one of two places."""
    a, b = torch.zeros(1, 2), torch.full((2, 1), value)
    a[0, side] = 1.0
    return {"base_model.model.x.lora_A.weight": a, "base_model.model.x.lora_B.weight": b}


START = State(0, {GLOBAL: tree_like(0.0)})


def profile(x: float, y: float) -> Tensor:
    return torch.nn.functional.normalize(torch.tensor([[float(x), float(y)]]), dim=1)


def told(profiles: Mapping[str, Tensor], steps: Mapping[str, Tree] | None = None) -> Ask:
    """Clients that send these profiles, and these adapters; who has none of what is asked fails."""

    def ask(offers: Iterable[Offer]) -> Iterator[Reply]:
        for offer in offers:
            where, sent = (offer.round, offer.client, offer.cluster), (steps or {}).get(offer.client)
            if offer.use == "encode" and offer.client in profiles:
                yield Update(*where, {}, 2, profile=profiles[offer.client], up=10, down=5)
            elif offer.use == "train" and sent is not None:
                yield Update(*where, sent, 2, {"loss": 1.0, "terms": 2}, up=7)
            else:
                yield Failure(*where, reason="away")

    return ask


TWO = {name: profile(1, 0.01 * at) if at < 3 else profile(0.01 * at, 1) for at, name in enumerate(NAMES)}
KMEANS = Rules(KMeans(count=2))


def sides(state: State) -> set[frozenset[str]]:
    """The partition, whatever its names."""
    return {frozenset(n for n, c in state.where.items() if c == cluster) for cluster in set(state.where.values())}


def test_clients_are_grouped_by_their_profiles_and_no_other_rule_asks_for_any() -> None:
    found, said = grouped(KMEANS, START, NAMES, told(TWO))
    assert sides(found) == {frozenset(NAMES[:3]), frozenset(NAMES[3:])}
    assert set(found.adapters) == {GLOBAL, "cluster-1", "cluster-2"}
    assert said["events"] == [{"event": "formed", "from": [], "into": ["cluster-1", "cluster-2"]}]
    assert said["silhouette"] > 0.9
    assert grouped(Rules(), START, NAMES, told({})) == (START, {})


def test_the_order_of_clients_changes_no_group() -> None:
    one, _ = grouped(KMEANS, START, NAMES, told(TWO))
    other, _ = grouped(KMEANS, START, NAMES[::-1], told(TWO))
    assert one.where == other.where


def test_adapters_group_clients_by_their_products() -> None:
    steps = {name: tree_like(1.0 + at, side=at % 2) for at, name in enumerate(NAMES)}
    found, _ = grouped(Rules(Agglomerative(by="adapters", count=2)), START, NAMES, told({}, steps))
    assert sides(found) == {frozenset(NAMES[0::2]), frozenset(NAMES[1::2])}
    assert not found.profiles


def test_known_labels_name_the_clusters() -> None:
    labels = {name: "bold" if at < 2 else "serif" for at, name in enumerate(NAMES)}
    found, _ = grouped(Rules(Oracle(), labels=labels), START, NAMES, told({}))
    assert found.where == {name: f"cluster-{label}" for name, label in labels.items()}
    with pytest.raises(ClientError, match="client 'eve': wanted a known label"):
        grouped(Rules(Oracle(), labels=labels | {"eve": ""}), START, NAMES, told({}))


def test_small_clusters_are_folded_into_the_nearest() -> None:
    odd = TWO | {"finn": profile(1.0, 1.0)}
    rules = Rules(KMeans(count=3), Hierarchy(least=2))
    found, said = grouped(rules, START, NAMES, told(odd))
    assert min(map(len, sides(found))) >= 2
    assert said["events"][1:] == [{"event": "folded", "clusters": 1, "least": 2}]
    assert happened(said["events"][1]) == "1 cluster of fewer than 2 clients folded into the nearest (hierarchy.least)"


def test_formed_anew_a_cluster_keeps_its_name_and_adapter_and_a_client_of_another_taste_moves() -> None:
    rules = Rules(KMeans(count=2), Hierarchy(every=2))
    first, _ = grouped(rules, START, NAMES, told(TWO))
    grown = {name: tree_like(float(at)) for at, name in enumerate(first.clusters, 1)}
    first = replace(first, round=2, adapters={**first.adapters, **grown})
    second, said = grouped(rules, first, NAMES, told(TWO | {"ann": profile(0, 1)}))
    assert {name for name in NAMES if second.where[name] != first.where[name]} == {"ann"}
    assert second.where["ann"] == first.where["finn"]
    assert {"event": "moved", "clients": 1} in said["events"]
    assert all(second.adapters[name] is adapter for name, adapter in grown.items())
    assert grouped(rules, replace(first, round=1), NAMES, told({}))[0].where == first.where  # not due: nobody is asked


def test_who_comes_late_goes_to_the_nearest_centroid() -> None:
    early = {name: TWO[name] for name in NAMES[:-1]}
    state, _ = grouped(KMEANS, START, NAMES, told(early))
    assert "finn" not in state.where
    assert state.cluster("finn") == GLOBAL
    after, events = joined(KMEANS, state, ["ann", "finn"], told(TWO))
    assert events == []
    assert after.where["finn"] == after.where["eve"]
    assert joined(KMEANS, after, ["ann", "finn"], told({})) == (after, [])


def test_alike_clusters_become_one_and_others_stay() -> None:
    state, _ = grouped(KMEANS, START, NAMES, told(TWO))
    alike = replace(state, adapters={GLOBAL: tree_like(0), "cluster-1": tree_like(1.0), "cluster-2": tree_like(3.0)})
    rules = replace(KMEANS, hierarchy=Hierarchy(merge=0.9))
    one, events = merged(rules, alike, SIZES)
    assert set(one.where.values()) == {"cluster-1"}
    assert events == [{"event": "merged", "from": ["cluster-1", "cluster-2"], "into": ["cluster-1"]}]
    assert lora.inner(one.adapters["cluster-1"], one.adapters["cluster-1"]) == pytest.approx(8.0)  # (1 + 3) / 2 twice
    apart = replace(alike, adapters={**alike.adapters, "cluster-2": tree_like(3.0, side=1)})
    assert merged(rules, apart, SIZES) == (apart, [])
    assert merged(KMEANS, alike, SIZES) == (alike, [])


def test_a_cluster_whose_members_disagree_is_halved_and_the_absent_follow_their_like() -> None:
    where = dict.fromkeys(NAMES, "cluster-1")
    state = State(1, {GLOBAL: tree_like(0), "cluster-1": tree_like(0)}, where=where, profiles=TWO)
    steps = [
        Update(1, n, "cluster-1", tree_like(1.0, side=int(n in "dan eve")), 2) for n in ("ann", "bob", "dan", "eve")
    ]
    rules = replace(KMEANS, hierarchy=Hierarchy(split=0.5))
    found, events = parted(rules, state, state, steps)
    assert sides(found) == {frozenset(NAMES[:3]), frozenset(NAMES[3:])}
    assert events == [{"event": "split", "from": ["cluster-1"], "into": ["cluster-1", "cluster-2"]}]
    agree = [replace(step, adapter=tree_like(1.0)) for step in steps]
    assert parted(rules, state, state, agree) == (state, [])


# ---- rounds


def server(rules: Rules) -> Server:
    return Server(0, NAMES, SIZES, Uniform(fraction=1.0), Average(), Plain(), rules)


STEPS = {name: tree_like(1.0 + at) for at, name in enumerate(NAMES)}


def test_the_global_adapter_is_the_clusters_mean_by_their_examples() -> None:
    lone = TWO | {"cleo": profile(0, 1)}
    state, report = play(server(KMEANS), START, told(lone, STEPS))
    by_size = {len(own): own for own in sides(state)}
    values = {size: sum(1.0 + NAMES.index(n) for n in own) / size for size, own in by_size.items()}
    found = state.adapters[GLOBAL]["base_model.model.x.lora_B.weight"][0, 0].item()
    assert found == pytest.approx((2 * values[2] + 4 * values[4]) / 6)
    assert sum(report.clusters["members"].values()) == 6
    assert (report.clusters["up"], report.clusters["down"], report.up) == (60, 30, 42)


def test_an_emptied_cluster_and_one_nobody_answers_for_keep_their_adapters() -> None:
    state, _ = grouped(KMEANS, START, NAMES, told(TWO))
    own = {name: tree_like(9.0) for name in state.clusters}
    state = replace(state, round=1, adapters={**state.adapters, **own, "cluster-9": tree_like(5.0)})
    half = {name: STEPS[name] for name in NAMES[:3]}
    after, _ = play(server(KMEANS), state, told(TWO, half))
    assert after.adapters[state.where["finn"]] is own[state.where["finn"]]
    assert after.adapters["cluster-9"] is state.adapters["cluster-9"]
    assert after.adapters[state.where["ann"]] is not own[state.where["ann"]]


def test_an_update_of_a_cluster_that_is_none_is_refused() -> None:
    def ask(offers: Iterable[Offer]) -> Iterator[Reply]:
        for offer in offers:
            cluster = "cluster-7" if offer.client == "ann" else offer.cluster
            yield Update(1, offer.client, cluster, STEPS[offer.client], 2, {"loss": 1.0, "terms": 2})

    _, report = play(server(Rules()), START, ask)
    assert [(failure.client, failure.reason) for failure in report.failures] == [
        ("ann", "the update is of cluster 'cluster-7', which is none")
    ]


@pytest.mark.parametrize(
    ("bad", "wish"),
    [
        ({"cleo": torch.full((1, 2), torch.nan)}, "wanted finite vectors, came numbers that are not"),
        ({"cleo": torch.zeros(0, 2)}, "wanted vectors [tastes, width], came [0, 2]"),
        ({"cleo": torch.zeros(2)}, "wanted vectors [tastes, width], came [2]"),
        ({"cleo": torch.tensor([[3.0, 4.0]])}, "wanted vectors of length 1, came one that is off by 4"),
        ({"cleo": torch.zeros(1, 2)}, "wanted vectors of length 1, came one that is off by 1"),
        (
            {"cleo": profile(1, 1).new_tensor([[0.6, 0.8, 0.0]])},
            "wanted width 2 as of the others, came 3; all must encode alike",
        ),
    ],
)
def test_one_bad_profile_leaves_its_client_out_and_stops_nobody(bad: dict[str, Tensor], wish: str) -> None:
    found, said = grouped(KMEANS, START, NAMES, told(TWO | bad))
    assert set(found.where) == set(found.profiles) == set(NAMES) - {"cleo"}
    assert said["events"][-1] == {"event": "left out", "clients": 1, "reason": f"profile of client 'cleo': {wish}"}
    late, events = joined(KMEANS, found, ["cleo"], told(bad))
    assert late.where == found.where
    assert events == said["events"][-1:]
    with pytest.raises(ClientError, match=r"none of 6 clients could be grouped; the first said: (away|profile)"):
        grouped(KMEANS, START, NAMES, told({name: torch.full((1, 2), torch.nan) for name in NAMES}))


@pytest.mark.parametrize(
    "spoilt", [tree_like(float("nan")), {}, {"base_model.model.x.lora_A.weight": torch.ones(1, 2)}]
)
def test_one_bad_adapter_leaves_its_client_out_of_the_likeness_of_products(spoilt: Tree) -> None:
    steps = {name: tree_like(1.0, int(name > "cleo")) for name in NAMES}
    rules = Rules(Agglomerative(by="adapters", count=2))
    found, said = grouped(rules, START, NAMES, told({}, steps | {"bob": spoilt}))
    assert set(found.where) == set(NAMES) - {"bob"}
    assert said["events"][-1]["reason"].startswith("adapter of client 'bob': ")


def test_what_cannot_be_grouped_is_refused_before_anything_is_written(tmp_path: Path, tiny_plan: Any) -> None:
    few = {**BY_PROFILE, "cluster": {"kind": "kmeans", "count": 9}}
    unknown = {"cluster": {"kind": "oracle"}}
    for parts, wish in ((few, "wanted 9 clusters, there are 6 clients"), (unknown, "wanted a known label")):
        with pytest.raises(FedgenError, match=wish):
            fedgen.run(tiny_plan | parts, tmp_path / "run")
        assert not (tmp_path / "run" / "plan.toml").exists()


def test_more_clusters_than_clients_and_nobody_there_are_refused() -> None:
    with pytest.raises(PlanError, match=r"cluster.count: wanted 7 clusters, there are 6 clients"):
        grouped(Rules(KMeans(count=7)), START, NAMES, told(TWO))
    with pytest.raises(ClientError, match="round 1: none of 6 clients could be grouped; the first said: away"):
        grouped(KMEANS, START, NAMES, told({}))
    with pytest.raises(ClientError, match=r"round 1: none of 6 clients could be grouped; .* nobody answered"):
        grouped(KMEANS, START, NAMES, lambda offers: iter(()))


def test_equal_profiles_are_one_cluster() -> None:
    found, _ = grouped(KMEANS, START, NAMES, told(dict.fromkeys(NAMES, profile(1, 1))))
    assert set(found.where.values()) == {"cluster-1"}


# ---- whole runs


def weights(run: Run, adapter: str = GLOBAL) -> Tree:
    return load_bundle(run.folder / "adapters" / adapter)[0]


def same(a: Tree, b: Tree) -> bool:
    return a.keys() == b.keys() and all(a[key].equal(b[key]) for key in a)


Go = Callable[..., Run]


@pytest.fixture(scope="module")
def go(tiny_plan: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Go:
    """Run the tiny plan with other sections."""
    return lambda **parts: fedgen.run(tiny_plan | parts, tmp_path_factory.mktemp("clustered") / "run")


@pytest.fixture(scope="module")
def clustered(go: Go) -> Run:
    """Two clusters that exchange."""
    return go(**BY_PROFILE, exchange={"kind": "neighbours", "strength": 0.2})


def test_a_clustered_run_leaves_its_clusters_behind(clustered: Run) -> None:
    found = clustered.clusters
    assert set(found["where"]) == set(NAMES) == set(found["uses"]) == set(found["points"])
    assert set(found["where"].values()) == {"cluster-1", "cluster-2"}
    assert set(found["uses"].values()) <= {"cluster-1", "cluster-2", GLOBAL}
    assert -1 <= found["quality"]["silhouette"] <= 1
    assert clustered.adapters()[:3] == ["cluster-1", "cluster-2", GLOBAL]
    assert all(set(own) == {"backbone", GLOBAL, "cluster", "personal"} for own in clustered.scores.values())
    for line in clustered.journal:
        assert sum(line["clusters"]["members"].values()) == 6
        assert [sum(row) for row in line["clusters"]["exchange"]["weights"]] == pytest.approx([1.2, 1.2])
        assert set(line["clusters"]["measure"]) <= {"cluster-1", "cluster-2"}
    assert clustered.journal[0]["clusters"]["up"] > 6 * 64 * 4  # six profiles of 64 numbers, and what is around them


def test_one_cluster_without_exchange_is_the_flat_run_bit_for_bit(go: Go, tiny_run: Run) -> None:
    one = go(**BY_PROFILE | {"cluster": {"kind": "kmeans", "count": 1}})
    assert same(weights(one), weights(tiny_run))
    assert same(weights(one, "cluster-1"), weights(tiny_run))
    for name, scores in one.scores.items():
        flat = tiny_run.scores[name]
        assert (scores[GLOBAL], scores["cluster"], scores["personal"]) == (flat[GLOBAL], flat[GLOBAL], flat["personal"])
    assert [line["up"] for line in one.journal] == [line["up"] for line in tiny_run.journal]


def test_strength_zero_is_no_exchange_bit_for_bit(go: Go, clustered: Run) -> None:
    none = go(**BY_PROFILE)
    zero = go(**BY_PROFILE, exchange={"kind": "neighbours", "strength": 0.0})
    for name in (GLOBAL, "cluster-1", "cluster-2"):
        assert same(weights(none, name), weights(zero, name))
    assert not same(weights(none, "cluster-1"), weights(clustered, "cluster-1"))


def test_a_client_without_prompts_is_in_no_cluster_and_the_others_go_on(
    go: Go, tiny_text: Path, tmp_path: Path
) -> None:
    lines = [
        {
            "who": name,
            "ask": " " if name == "bob" else f"of {name}",
            "text": (tiny_text / f"{name}.txt").read_text()[at:][:60],
        }
        for name in NAMES
        for at in range(0, 600, 60)
    ]
    path = tmp_path / "asks.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    run = go(**BY_PROFILE, data={"kind": "jsonl", "path": str(path), "answer": "text", "prompt": "ask", "owner": "who"})
    assert set(run.clusters["where"]) == set(NAMES) - {"bob"}
    assert run.clusters["uses"]["bob"] == GLOBAL
    said = run.journal[0]["clusters"]["events"][-1]
    assert (said["event"], said["clients"]) == ("left out", 1)
    assert "no profile: " in said["reason"]
    assert "wanted at least one prompt, came none" in said["reason"]


def test_an_own_adapter_is_added_to_the_frozen_ones_below_it(go: Go, clustered: Run) -> None:
    added = go(**BY_PROFILE, personal={"kind": "added", "own": 1, "whole": 0.5, "steps": 3, "lr": 0.01})
    plain = weights(go(**BY_PROFILE))  # a wider bank trains the shared ones alike, but for the last bits
    assert all(half == pytest.approx(plain[key], abs=1e-6) for key, half in weights(added).items())
    for name in NAMES:
        own, card = added.adapter(f"client/{name}")
        uses = added.clusters["uses"][name]
        shared = [(0.5, weights(added, uses)), (0.5, weights(added))] if uses != GLOBAL else [(1.0, weights(added))]
        rank = lora.rank(own)
        assert (rank, card.rank) == (added.plan.adapter.rank * len(shared) + 1,) * 2
        assert card.parent == added.adapter(uses)[1].hash
        top = lora.product_sum([(1.0, own), *((-share, tree) for share, tree in shared)])
        assert lora.energy_kept(top, 1) == pytest.approx(1)  # what is left over is the rank that it added
        assert lora.inner(top, top) > 1e-9
    voice = sampler(added)
    with voice.bank:
        assert voice.bank.layout.rank == 9
        back = voice.bank.layout.tree(voice.line("client/ann"), lora.rank(added.adapter("client/ann")[0]))
    assert same(back, added.adapter("client/ann")[0])


def test_a_client_that_encodes_is_sent_no_adapter(clustered: Run) -> None:
    line = clustered.journal[0]["clusters"]
    assert line["down"] < 6 * 400 < clustered.journal[0]["down"] / clustered.plan.rounds


def test_the_page_counts_what_forming_clusters_took(clustered: Run) -> None:
    page = report.write(clustered).read_text("utf-8")
    row = page[page.index("To form clusters") :].partition("</tr>")[0]
    first = clustered.journal[0]["clusters"]
    assert f"{first['up']:,}" in row
    assert f"{first['down']:,}" in row


class StopHere(Exception):  # noqa: N818  it is no error
    """What stops a run in these tests."""


def test_a_clustered_run_resumed_is_the_uninterrupted_one(
    tiny_plan: dict[str, Any], clustered: Run, tmp_path: Path
) -> None:
    def stop(event: object) -> None:
        if isinstance(event, Report):
            raise StopHere

    plan = tiny_plan | BY_PROFILE | {"exchange": {"kind": "neighbours", "strength": 0.2}}
    with pytest.raises(StopHere):
        fedgen.run(plan, tmp_path / "run", tell=stop)
    found = resume(tmp_path / "run")
    for name in (GLOBAL, "cluster-1", "cluster-2"):
        assert same(weights(found, name), weights(clustered, name))
    assert found.clusters == clustered.clusters
    one, other = ((run.folder / "centroids.safetensors").read_bytes() for run in (found, clustered))
    assert one == other


def test_by_loss_each_client_takes_the_adapter_that_knows_it_best(go: Go) -> None:
    run = go(rounds=3, cluster={"kind": "losses", "count": 2}, cohort={"fraction": 1.0})
    assert set(run.clusters["where"].values()) <= {"cluster-1", "cluster-2"}
    lines = [line["clusters"] for line in run.journal]
    assert sum(lines[-1]["members"].values()) == 6
    moved = [event["clients"] for line in lines for event in line["events"] if event["event"] == "moved"]
    sizes = [list(line["members"].values()) for line in lines]
    assert any(moved) == (sizes != [[3, 3]] * 3)
    assert not same(weights(run, "cluster-1"), weights(run, "cluster-2"))


@pytest.mark.parametrize(
    ("parts", "wish"),
    [
        ({"cluster": {"kind": "kmeans"}}, "encode.kind = 'none' makes none"),
        ({"exchange": {"kind": "global"}}, "cluster.kind = 'none' makes none"),
        ({"hierarchy": {"merge": 0.5}}, "cluster.kind = 'none' makes none"),
        ({"cluster": {"kind": "losses"}, "hierarchy": {"every": 2}}, "nothing is formed anew by losses"),
        ({"cluster": {"kind": "losses"}, "exchange": {"kind": "global"}, "outer": {"kind": "adam"}}, "factored anew"),
        (
            {
                "cluster": {"kind": "losses"},
                "exchange": {"kind": "global", "of": "steps", "on": "factors"},
                "aggregate": {"kind": "exact"},
            },
            "factors take no steps",
        ),
        ({"personal": {"kind": "added", "whole": 0.5}}, r"personal\.whole: without clusters"),
    ],
)
def test_parts_that_disagree_are_refused(parts: dict[str, Any], wish: str) -> None:
    with pytest.raises(PlanError, match=wish):
        fedgen.plan.read(parts)


def test_what_the_report_reads_is_json(clustered: Run) -> None:
    assert json.loads((clustered.folder / "clusters.json").read_text("utf-8")) == clustered.clusters
    assert Neighbours(0.2) == clustered.plan.exchange
