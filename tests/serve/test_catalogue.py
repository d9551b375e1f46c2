"""Names point to the round that is good, answer to those they are for, and nothing reads half of a change."""

import math
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from fedgen import lora, tree
from fedgen.bank import Layout
from fedgen.errors import FedgenError, ServeError, UnknownError
from fedgen.records import Tree
from fedgen.serve.keys import ALL, Who
from fedgen.serve.pool import BACKBONE, BARE, Adapter, Catalogue, Entry, load
from fedgen.store import Card, save_bundle

RANK = 4
LAYERS = {"a": nn.Linear(6, 8), "b": nn.Linear(8, 3)}
ALICE, BOB, ROOT = Who("alice", frozenset({"alice"})), Who("bob", frozenset({"bob"})), Who("root", frozenset({ALL}))
CARD = Card(kind="text", backbone="net", backbone_hash="here")


def content(seed: int, rank: int = RANK) -> Tree:
    draw = torch.Generator().manual_seed(seed)
    return {key: torch.randn(value.shape, generator=draw) for key, value in lora.fresh(LAYERS, rank, draw).items()}


def adapter(seed: int, rank: int = RANK) -> Adapter:
    found = content(seed, rank)
    return Adapter(replace(CARD, hash=tree.digest(found), rank=rank), found.copy)


@pytest.fixture
def catalogue() -> Catalogue:
    return Catalogue(Layout(LAYERS, RANK), "here", margin=0.1)


def names(catalogue: Catalogue, who: Who) -> list[str]:
    return [entry.name for entry in catalogue.visible(who)]


def live(catalogue: Catalogue, name: str = "global") -> Entry:
    return catalogue.find(name, ROOT)


# ---- who sees what


@pytest.fixture
def crowd(catalogue: Catalogue) -> Catalogue:
    """A run's names, and two people's."""
    catalogue.publish("user/alice", adapter(5), kind="personal", round=3)
    catalogue.publish("style", adapter(7), kind="loaded")
    catalogue.publish("cluster-10", adapter(2), kind="cluster", round=3)
    catalogue.publish("cluster-9", adapter(3), kind="cluster", round=3)
    catalogue.publish("global", adapter(1), kind="global", round=3)
    catalogue.publish("user/bob", adapter(6), kind="personal", owner="bob")
    catalogue.place({"alice": "cluster-10", "bob": "cluster-9", "carl": "cluster-9"})
    return catalogue


def test_each_sees_the_runs_names_and_their_own_in_order(crowd: Catalogue) -> None:
    shared = [BACKBONE, "global", "global@round-3", "cluster-9", "cluster-9@round-3", "cluster-10"]
    shared += ["cluster-10@round-3"]
    assert names(crowd, ALICE) == [*shared, "user/alice", "user/alice@round-3", "style"]
    assert names(crowd, BOB) == [*shared, "user/bob", "style"]
    assert names(crowd, Who("nobody", admin=True)) == [*shared, "style"]
    assert len(names(crowd, ROOT)) == len(shared) + 4
    assert crowd.find(BACKBONE, BOB).adapter is BARE


def test_somebody_elses_is_told_as_what_is_missing(crowd: Catalogue) -> None:
    def told(name: str, who: Who) -> str:
        with pytest.raises(UnknownError) as caught:
            crowd.find(name, who)
        return str(caught.value)

    hers = ("user/alice", "user/alice@round-3")
    before = [told(name, BOB) for name in hers]
    assert before[0] == "model 'user/alice': is not here; the nearest are user/bob"
    crowd.remove("user/alice")
    assert [told(name, BOB) for name in hers] == before
    assert told("user/alice", ALICE) != before[0]  # she is not told of bob's
    assert told("user/alice", Who("nobody")) == "model 'user/alice': is not here; ask /v1/models for those that are"
    assert "the nearest are cluster-9, " in told("clutser-9", BOB)
    assert len(told("x" * 10**6, BOB)) < 300


def test_the_stand_ins_are_ones_cluster_then_global_and_backbone(crowd: Catalogue) -> None:
    assert crowd.chain("user/alice", ALICE) == ["user/alice", "cluster-10", "global", BACKBONE]
    crowd.remove("user/alice")
    assert crowd.chain("user/alice", ALICE) == ["cluster-10", "global", BACKBONE]
    assert crowd.chain("user/carl", ROOT) == ["cluster-9", "global", BACKBONE]  # hands nothing over, but has a cluster
    for name in ("user/bob", "user/carl", "user/nobody", "clutser-9", "", "user/"):
        assert crowd.chain(name, ALICE) == ["global", BACKBONE]  # where others are is not told
    assert crowd.chain("cluster-9", ALICE) == ["cluster-9", "global", BACKBONE]
    assert crowd.chain("global", ALICE) == ["global", BACKBONE]
    assert crowd.chain(BACKBONE, ALICE) == [BACKBONE]
    crowd.remove("cluster-10")
    crowd.remove("global")
    assert crowd.chain("user/alice", ALICE) == [BACKBONE]


def test_verdicts_on_personal_adapters_say_whose_they_are(crowd: Catalogue) -> None:
    assert [(one.name, one.owner) for one in crowd.verdicts if one.owner] == [
        ("user/alice", "alice"), ("user/bob", "bob"),
    ]  # fmt: skip
    assert {entry.name: entry.owner for entry in crowd.visible(ROOT) if entry.owner} == {
        "user/alice": "alice", "user/alice@round-3": "alice", "user/bob": "bob",
    }  # fmt: skip


# ---- from round to round


def test_a_round_that_is_no_worse_is_published_and_a_worse_one_held_back_with_the_reason(catalogue: Catalogue) -> None:
    said = [
        catalogue.publish("global", adapter(turn), kind="global", round=turn, measure=measure)
        for turn, measure in enumerate((10.0, 10.9, 12.2, 11.9, 9.0, math.nan, math.inf), 1)
    ]
    assert [verdict.published for verdict in said] == [True, True, False, True, True, False, False]
    assert said[0].reason == "first measured at 10"
    assert said[1].reason == "measured 10.9 after 10"
    assert said[2].reason == "measured 12.2, more than 0.1 worse than 10.9; that one stays"
    assert said[5].reason == "its measure is not a number; the last one stays"
    assert catalogue.verdicts == said
    assert (live(catalogue).round, live(catalogue).measure, live(catalogue).adapter) == (5, 9.0, adapter(5))
    assert live(catalogue).parent == BACKBONE


def test_without_a_measure_a_round_is_published_and_that_is_said(catalogue: Catalogue) -> None:
    for turn, measure, published in ((1, 10.0, True), (2, None, True), (3, 12.0, False), (4, 10.5, True)):
        verdict = catalogue.publish("global", adapter(turn), kind="global", round=turn, measure=measure)
        assert verdict.published is published  # held against the last one that was measured
        assert (verdict.reason == "not measured") is (measure is None)
    assert live(catalogue).round == 4


def test_measures_below_zero_are_lower_and_better_too(catalogue: Catalogue) -> None:
    published = [
        catalogue.publish("global", adapter(turn), kind="global", round=turn, measure=measure).published
        for turn, measure in enumerate((-10.0, -9.5, -8.0, -11.0), 1)
    ]
    assert published == [True, True, False, True]


def test_each_name_is_held_against_its_own_last(catalogue: Catalogue) -> None:
    catalogue.publish("cluster-1", adapter(1), kind="cluster", round=1, measure=1.0)
    assert catalogue.publish("cluster-2", adapter(2), kind="cluster", round=1, measure=9.0).published
    assert not catalogue.publish("cluster-1", adapter(3), kind="cluster", round=2, measure=9.0).published


def test_the_same_content_is_nothing_new(catalogue: Catalogue) -> None:
    first = adapter(1)
    catalogue.publish("global", first, kind="global", round=4, measure=2.0)
    again = Adapter(replace(first.card, metrics={"perplexity": 1.9}), first.read)
    verdict = catalogue.publish("global", again, kind="global", round=4)
    assert (verdict.published, verdict.reason) == (True, "the same content as before")
    assert len(catalogue.verdicts) == 1
    assert live(catalogue).adapter is again  # its newest card, and where it is read from now
    assert live(catalogue).measure == 2.0
    catalogue.publish("global", first, kind="global", round=5)
    assert names(catalogue, BOB) == [BACKBONE, "global", "global@round-4", "global@round-5"]


def test_three_versions_are_known_by_their_rounds_and_kept_ones_for_good(catalogue: Catalogue) -> None:
    catalogue.keep("global", adapter(2), kind="global", turn=2)
    assert names(catalogue, BOB) == [BACKBONE, "global@round-2"]  # a version, and nothing is published yet
    for turn in range(1, 7):
        catalogue.publish("global", adapter(turn), kind="global", round=turn)
    assert names(catalogue, BOB) == [BACKBONE, "global", *(f"global@round-{turn}" for turn in (2, 4, 5, 6))]
    assert [live(catalogue, f"global@round-{turn}").adapter for turn in (2, 5)] == [adapter(2), adapter(5)]
    catalogue.keep("global", adapter(6), kind="global", turn=6)
    catalogue.keep("global", adapter(3), kind="global", turn=3)
    assert live(catalogue).round == 6
    for turn in range(7, 11):
        catalogue.publish("global", adapter(turn), kind="global", round=turn)
    assert names(catalogue, BOB)[2:] == [f"global@round-{turn}" for turn in (2, 3, 6, 8, 9, 10)]


def test_rolled_back_it_does_not_come_again_by_itself(catalogue: Catalogue) -> None:
    for turn, measure in ((1, 10.0), (2, 9.0), (3, 5.0)):
        catalogue.publish("global", adapter(turn), kind="global", round=turn, measure=measure)
    entry = catalogue.roll_back("global")
    assert (entry.name, entry.round, entry.adapter, entry.measure) == ("global", 2, adapter(2), 9.0)
    assert live(catalogue) == entry
    assert catalogue.verdicts[-1].reason == "taken back from round 3"
    assert names(catalogue, BOB) == [BACKBONE, "global", "global@round-1", "global@round-2"]
    verdict = catalogue.publish("global", adapter(3), kind="global", round=3)
    assert (verdict.published, verdict.reason) == (False, "was taken back for round 2")
    assert catalogue.publish("global", adapter(4), kind="global", round=4, measure=9.5).published  # against 9, not 5
    assert catalogue.roll_back("global").round == 2
    assert catalogue.roll_back("global").round == 1
    with pytest.raises(ServeError, match="model 'global': has no earlier version to go back to"):
        catalogue.roll_back("global")
    assert live(catalogue).round == 1


def test_one_can_go_back_to_a_kept_round_and_not_to_what_is_no_more(catalogue: Catalogue) -> None:
    catalogue.keep("global", adapter(2), kind="global", turn=2)
    catalogue.publish("global", adapter(9), kind="global", round=9)
    assert catalogue.roll_back("global").adapter == adapter(2)
    gone = adapter(11)
    catalogue.publish("global", replace(gone, read=gone.read), kind="global", round=11)
    catalogue.publish("global", adapter(12), kind="global", round=12)
    spoilt = replace(gone, read=lambda: content(13))
    catalogue.publish("style", gone, kind="loaded")
    catalogue.keep("global", gone, kind="global", turn=11)
    known = catalogue._versions["global"]
    catalogue._versions["global"] = tuple(replace(old, adapter=spoilt) if old.round == 11 else old for old in known)
    with pytest.raises(ServeError, match="what is read now is another content"):
        catalogue.roll_back("global")
    assert live(catalogue).round == 12


def test_one_loaded_by_hand_can_be_replaced_and_taken_back_and_loaded_again(catalogue: Catalogue) -> None:
    for seed in (1, 2, 3):
        catalogue.publish("style", adapter(seed), kind="loaded")
    assert names(catalogue, BOB) == [BACKBONE, "style"]
    assert catalogue.roll_back("style").adapter == adapter(2)
    assert catalogue.publish("style", adapter(3), kind="loaded").published  # who loads it means it
    assert live(catalogue, "style").adapter == adapter(3)


def test_a_pin_stays_with_the_name(catalogue: Catalogue) -> None:
    for turn in (1, 2):
        catalogue.publish("global", adapter(turn), kind="global", round=turn)
        catalogue.pin("global") if turn == 1 else None
    assert catalogue.pins() == {adapter(2).hash}
    assert catalogue.roll_back("global").pinned
    assert catalogue.pins() == {adapter(1).hash}
    assert not catalogue.pin("global", False).pinned
    assert catalogue.pins() == frozenset()


def test_a_name_that_goes_takes_its_versions_along_but_for_kept_ones(catalogue: Catalogue) -> None:
    for turn in (1, 2, 3):
        catalogue.publish("cluster-1", adapter(turn), kind="cluster", round=turn, measure=1.0 * turn**-2)
    catalogue.keep("cluster-1", adapter(2), kind="cluster", turn=2)
    catalogue.remove("cluster-1")
    assert names(catalogue, BOB) == [BACKBONE, "cluster-1@round-2"]
    assert catalogue.publish("cluster-1", adapter(4), kind="cluster", round=4, measure=7.0).published  # begins anew
    catalogue.remove("cluster-1@round-2")
    assert names(catalogue, BOB) == [BACKBONE, "cluster-1", "cluster-1@round-4"]
    with pytest.raises(ServeError, match="is what all others stand on"):
        catalogue.remove(BACKBONE)
    for change in (catalogue.remove, catalogue.pin, catalogue.roll_back):
        with pytest.raises(UnknownError, match="model 'none': is not here"):
            change("none")


# ---- what is refused


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (adapter(2, RANK + 1), "is too wide: has rank 5, wanted at most 4; shrink it, or serve with a higher --rank"),
        (replace(adapter(2), card=replace(adapter(2).card, backbone_hash="elsewhere")), "is made for backbone 'net'"),
        (replace(adapter(2), card=replace(adapter(2).card, rank=0)), "is the change of a full model"),
        (replace(adapter(2), read=lambda: content(3)), "what is read now is another content"),
        (
            Adapter(replace(CARD, rank=1, hash=tree.digest(lora.fresh({"c": LAYERS["a"]}, 1, torch.Generator()))),
                    lambda: lora.fresh({"c": LAYERS["a"]}, 1, torch.Generator())),
            "differ in layer 'a'",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kept", [False, True])
def test_what_cannot_be_used_is_refused_and_the_old_one_stays(
    catalogue: Catalogue, made: Adapter, said: str, kept: bool
) -> None:
    catalogue.publish("global", adapter(1), kind="global", round=1)
    laid = partial(catalogue.keep, turn=2) if kept else partial(catalogue.publish, round=2)
    with pytest.raises(ServeError, match=f"model 'global': .*{said}"):
        laid("global", made, kind="global")
    assert names(catalogue, BOB) == [BACKBONE, "global", "global@round-1"]
    assert live(catalogue).adapter == adapter(1)
    assert len(catalogue.verdicts) == 1


def test_an_adapter_that_says_no_backbone_is_tried_by_its_layers(catalogue: Catalogue) -> None:
    anyones = replace(adapter(1), card=replace(adapter(1).card, backbone_hash=""))
    assert catalogue.publish("style", anyones, kind="loaded").published


@pytest.mark.parametrize("name", [
    "", "../style", "a/../b", "/style", "a//b", "a/", ".hidden", "a/.b", "a=1,b=2", "a b", "RUN:a", "a\n", "ä",
    "a@round-3", "a\\b", "a\0b", "-a", "x" * 201,
])  # fmt: skip
def test_a_name_that_reads_as_something_else_is_not_given_by_hand(catalogue: Catalogue, name: str) -> None:
    with pytest.raises(ServeError, match="cannot be called so; wanted at most 200 letters, digits"):
        catalogue.publish(name, adapter(1), kind="loaded")
    assert names(catalogue, ROOT) == [BACKBONE]


@pytest.mark.parametrize("name", [BACKBONE, "global", "cluster-3"])
def test_the_runs_own_names_are_not_given_by_hand(catalogue: Catalogue, name: str) -> None:
    with pytest.raises(ServeError, match=f"model '{name}': is a name of the run's own; load it under another"):
        catalogue.publish(name, adapter(1), kind="loaded")


def test_one_loaded_under_a_users_name_is_that_users(catalogue: Catalogue) -> None:
    catalogue.publish("user/alice", adapter(1), kind="loaded")
    assert names(catalogue, ALICE) == [BACKBONE, "user/alice"]
    assert names(catalogue, BOB) == [BACKBONE]


# ---- many threads


def test_who_asks_while_names_change_sees_the_old_or_the_new(catalogue: Catalogue) -> None:
    versions = [adapter(seed) for seed in range(4)]
    catalogue.publish("global", versions[0], kind="global", round=1)
    wrong: list[str] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            entry = catalogue.find("global", BOB)
            if entry.adapter != versions[(entry.round - 1) % 4]:
                wrong.append(f"round {entry.round} with another round's content")
            seen = {one.name: one for one in catalogue.visible(BOB)}
            if seen["global"].adapter != seen[f"global@round-{seen['global'].round}"].adapter:
                wrong.append("a name without its version")

    def change(step: Callable[[int], object]) -> None:
        for turn in range(2, 60):
            step(turn)

    askers = [threading.Thread(target=ask) for _ in range(2)]
    changers = [
        threading.Thread(target=change, args=[step])
        for step in (
            lambda turn: catalogue.publish("global", versions[(turn - 1) % 4], kind="global", round=turn),
            lambda turn: catalogue.publish(f"style-{turn}", versions[turn % 4], kind="loaded"),
            lambda turn: catalogue.publish(f"user/{turn}", versions[turn % 4], kind="personal"),
        )
    ]
    for thread in (*askers, *changers):
        thread.start()
    for thread in changers:
        thread.join()
    over.set()
    for thread in askers:
        thread.join()
    assert wrong == []
    assert len(names(catalogue, ROOT)) == 1 + 4 + 58 + 58  # no change was lost
    assert len(catalogue.verdicts) == 100


# ---- bundles loaded by hand


@pytest.fixture
def shelves(tmp_path: Path) -> Path:
    """A folder to load from, with a bundle, beside another that is nobody's business."""
    for name in ("open/style", "open/deep/er", "secret/style"):
        save_bundle(tmp_path / name, content(len(name)), CARD)
    return tmp_path / "open"


def test_a_bundle_is_loaded_from_below_the_folder_alone(shelves: Path, catalogue: Catalogue) -> None:
    found = load("style", shelves)
    assert found.hash == tree.digest(content(len("open/style")))
    assert found.read().keys() == content(0).keys()
    for same in (str(shelves / "style"), "deep/../style", "./style", "style/"):
        assert load(same, shelves) == found
    assert load("deep/er", shelves) != found
    catalogue.publish("style", found, kind="loaded")
    assert live(catalogue, "style").adapter.card.backbone == "net"


def test_what_lies_elsewhere_is_told_as_what_is_missing(shelves: Path) -> None:
    (shelves / "link").symlink_to(shelves.parent / "secret" / "style")
    (shelves / "links").symlink_to(shelves.parent / "secret")
    (shelves / "half").mkdir()
    for file in (shelves / "style").iterdir():
        (shelves / "half" / file.name).symlink_to(file)  # which stay inside
    assert load("half", shelves) == load("style", shelves)
    weights = shelves / "half" / "adapter_model.safetensors"
    weights.unlink()
    weights.symlink_to(shelves.parent / "secret" / "style" / weights.name)
    elsewhere = str(shelves.parent / "secret" / "style")
    asked = [
        "none", "../secret/style", "style/../../secret/style", elsewhere, elsewhere + "/none", "link", "links/style",
        "half", ".", "", "..", "/", "/etc", "style/adapter_config.json", "a\0b", "x" * 5000, "~root", "\udcff",
    ]  # fmt: skip
    for folder in asked:
        with pytest.raises(ServeError) as caught:
            load(folder, shelves)
        wanted = f"adapter '{folder[:200]}': no bundle is there; wanted a path below the folder for adapters"
        assert str(caught.value) == wanted


def test_what_has_come_to_lie_elsewhere_is_not_read_later(shelves: Path) -> None:
    found = load("style", shelves)
    (shelves / "style").rename(shelves.parent / "moved")
    (shelves / "style").symlink_to(shelves.parent / "moved")
    with pytest.raises(ServeError, match=r"^adapter 'style': no bundle is there; wanted a path below the folder"):
        found.read()


def test_a_folder_that_is_a_link_itself_is_followed(shelves: Path) -> None:
    (shelves.parent / "door").symlink_to(shelves)
    assert load("style", shelves.parent / "door") == load("style", shelves)


@pytest.mark.parametrize(
    ("file", "raw", "said"),
    [
        ("adapter_model.safetensors", b"torn", "wanted whole safetensors, came 4 bytes"),
        ("adapter_config.json", b"{", "wanted JSON, came something that is not"),
        ("card.json", b"{}", "'kind' must be a str, came None"),
    ],
)
def test_a_spoilt_bundle_is_refused_without_a_word_of_where_it_lies(
    shelves: Path, file: str, raw: bytes, said: str
) -> None:
    (shelves / "style" / file).write_bytes(raw)
    with pytest.raises(FedgenError, match=said) as caught:
        load("style", shelves)
    assert str(shelves) not in str(caught.value)
    assert str(caught.value).startswith("style")


def test_a_bundle_that_changes_on_the_disk_is_not_read_as_the_old_one(shelves: Path, catalogue: Catalogue) -> None:
    found = load("style", shelves)
    catalogue.publish("style", found, kind="loaded")
    save_bundle(shelves / "style", content(99), CARD)
    with pytest.raises(ServeError, match="what is read now is another content; load it anew"):
        catalogue.publish("other", found, kind="loaded")
    assert catalogue.publish("style", load("style", shelves), kind="loaded").published
