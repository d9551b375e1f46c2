"""A run is followed round by round: what is good is live, what is worse or spoilt is told, and the rest goes on."""

import dataclasses
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import fedgen
from fedgen import Run, lora, tree
from fedgen.bank import Bank, Layout
from fedgen.errors import UnknownError
from fedgen.journal import Journal, load_checkpoint, save_checkpoint
from fedgen.records import GLOBAL, Report, State
from fedgen.run import ADAPTERS, CHECKPOINT, JOURNAL, SCORES
from fedgen.serve.keys import ALL, Who
from fedgen.serve.pool import BACKBONE, Catalogue, Follow, Verdict, fill

ALL_EYES, ANN, NOBODY = Who("root", frozenset({ALL})), Who("ann", frozenset({"ann"})), Who("nobody")
CLUSTERED = {"encode": {"kind": "ngrams", "width": 64}, "cluster": {"kind": "kmeans", "count": 2}}


@pytest.fixture(scope="module")
def layout(tiny_run: Run) -> Iterator[Layout]:
    """How adapters of the tiny run lie in a bank of its width."""
    backbone: Any = tiny_run.plan.backbone.load()
    with Bank(backbone.network, tiny_run.plan.adapter.targets, tiny_run.plan.width) as bank:
        yield bank.layout


@pytest.fixture
def catalogue(layout: Layout, tiny_run: Run) -> Catalogue:
    return Catalogue(layout, tiny_run.facts["backbone_hash"], margin=0.05)


@pytest.fixture
def copied(tiny_run: Run, tmp_path: Path) -> Run:
    """A copy of the finished run, to be spoilt."""
    return Run(Path(shutil.copytree(tiny_run.folder, tmp_path / "copied")))


@pytest.fixture
def halfway(copied: Run) -> Run:
    """The run as it was before its end."""
    (copied.folder / SCORES).unlink()
    shutil.rmtree(copied.folder / ADAPTERS)
    return copied


def names(catalogue: Catalogue, who: Who = ALL_EYES) -> list[str]:
    return [entry.name for entry in catalogue.visible(who)]


def told(catalogue: Catalogue) -> list[tuple[str, int, bool]]:
    return [(verdict.name, verdict.round, verdict.published) for verdict in catalogue.verdicts]


def state_of(run: Run) -> State:
    found = load_checkpoint(run.folder / CHECKPOINT)
    assert found is not None
    return found


def play(run: Run, measure: float | None, *, seed: int = 0, **changes: Any) -> State:
    """One more round as a server writes it down: the journal's line, then the checkpoint."""
    before, draw = state_of(run), torch.Generator().manual_seed(seed)
    adapters = {
        name: {key: value + 0.01 * torch.randn(value.shape, generator=draw) for key, value in adapter.items()}
        for name, adapter in before.adapters.items()
    }
    state = dataclasses.replace(before, round=before.round + 1, **({"adapters": adapters} | changes))
    last = run.journal[-1]
    metrics = {name: value for name, value in last["metrics"].items() if name != "perplexity"}
    metrics |= {} if measure is None else {"perplexity": measure}
    Journal(run.folder / JOURNAL).append(last | {"round": state.round, "metrics": metrics})
    save_checkpoint(run.folder / CHECKPOINT, state)
    return state


def last_measure(run: Run) -> float:
    found: float = run.journal[-1]["metrics"]["perplexity"]
    return found


# ---- a finished run


def test_a_finished_run_is_there_with_what_its_owners_have_handed_over(catalogue: Catalogue, tiny_run: Run) -> None:
    fill(catalogue, tiny_run, ["ann", "bob"])
    assert names(catalogue) == [
        BACKBONE, "global", "global@round-2", "user/ann", "user/ann@round-2", "user/bob", "user/bob@round-2",
    ]  # fmt: skip
    assert names(catalogue, ANN) == [BACKBONE, "global", "global@round-2", "user/ann", "user/ann@round-2"]
    found, card = tiny_run.adapter("global")
    entry = catalogue.find("global", NOBODY)
    assert (entry.kind, entry.round, entry.adapter.card, entry.measure) == ("global", 2, card, last_measure(tiny_run))
    assert tree.digest(entry.adapter.read()) == tree.digest(found)
    own, _ = tiny_run.adapter("client/ann")
    hers = catalogue.find("user/ann", ANN)
    assert (hers.kind, hers.owner, hers.adapter.hash) == ("personal", "ann", tree.digest(own))
    assert (hers.adapter.card.client, hers.adapter.card.cluster, hers.adapter.card.rank) == ("ann", GLOBAL, 4)
    assert tree.digest(hers.adapter.read()) == tree.digest(own)
    with pytest.raises(UnknownError):
        catalogue.find("user/cleo", ALL_EYES)  # never handed over


def test_one_who_has_nothing_to_hand_over_is_told_so_and_nobody_else(catalogue: Catalogue, tiny_run: Run) -> None:
    fill(catalogue, tiny_run, ["zoë", "ann"])
    verdict = next(one for one in catalogue.verdicts if not one.published)
    assert verdict == Verdict("user/zoë", 0, False, "client 'zoë': has no adapter of its own in this run", "zoë")
    assert "user/ann" in names(catalogue, ANN)


def test_filled_again_nothing_is_new(catalogue: Catalogue, tiny_run: Run) -> None:
    fill(catalogue, tiny_run, ["ann"])
    before, said = catalogue.visible(ALL_EYES), catalogue.verdicts
    fill(catalogue, tiny_run, ["ann"])
    assert catalogue.visible(ALL_EYES) == before
    assert catalogue.verdicts == said


SPOILS: dict[str, tuple[Callable[[Path, dict[str, torch.Tensor]], object], str]] = {
    "torn": (lambda path, found: path.write_bytes(path.read_bytes()[:-9]), "wanted whole safetensors"),
    "changed": (
        lambda path, found: save_file({k: v + 1 for k, v in found.items()}, path),
        "is not what its card names",
    ),
    "nan": (
        lambda path, found: save_file(found | {min(found): found[min(found)] * torch.nan}, path),
        "holds NaN or infinity",
    ),
    "wide": (lambda path, found: rewrite(path, lora.resize(found, 9)), "is too wide: has rank 9, wanted at most 4"),
    "elsewhere": (lambda path, found: rewrite(path, found, backbone_hash="0" * 64), "is made for backbone"),
    "layers": (
        lambda path, found: rewrite(path, {key.replace("layers.1", "layers.7"): v for key, v in found.items()}),
        "differ in layer",
    ),
    "gone": (lambda path, found: path.unlink(), "cannot be read"),
}


def rewrite(path: Path, found: dict[str, torch.Tensor], **changes: Any) -> None:
    """Put another content into a bundle, whole as such, with a card that names it."""
    save_file(found, path, {"format": "pt"})
    card = path.with_name("card.json")
    said = json.loads(card.read_text()) | {"hash": tree.digest(found), "rank": lora.rank(found)} | changes
    card.write_text(json.dumps(said))
    config = path.with_name("adapter_config.json")
    wide = {"r": lora.rank(found), "lora_alpha": lora.rank(found)}
    config.write_text(json.dumps(json.loads(config.read_text()) | wide))


@pytest.mark.parametrize("kind", SPOILS)
def test_a_spoilt_bundle_is_told_and_the_old_one_stays(catalogue: Catalogue, copied: Run, kind: str) -> None:
    fill(catalogue, copied)
    before = catalogue.find("global", NOBODY)
    path = copied.folder / ADAPTERS / GLOBAL / "adapter_model.safetensors"
    spoil, said = SPOILS[kind]
    spoil(path, load_file(path))
    for _ in range(3):
        fill(catalogue, copied, ["ann"])
    assert catalogue.find("global", NOBODY) == before
    (wrong,) = [verdict for verdict in catalogue.verdicts if not verdict.published]  # said once
    assert said in wrong.reason
    assert str(copied.folder.parent) not in wrong.reason
    assert "user/ann" in names(catalogue, ANN)


def test_a_part_on_the_shelf_that_is_spoilt_is_for_its_owners_eyes(catalogue: Catalogue, copied: Run) -> None:
    (path,) = (copied.folder / "shelf").glob("ann.*.safetensors")
    path.write_bytes(b"torn")
    fill(catalogue, copied, ["ann", "bob"])
    (wrong,) = [verdict for verdict in catalogue.verdicts if not verdict.published]
    assert (wrong.name, wrong.owner) == ("user/ann", "ann")
    assert "user/bob" in names(catalogue)


def test_a_damaged_journal_leaves_the_adapters_without_a_measure(catalogue: Catalogue, copied: Run) -> None:
    (copied.folder / JOURNAL).write_bytes(b"{damaged\n")
    fill(catalogue, copied)
    assert catalogue.find("global", NOBODY).measure is None
    assert [verdict.published for verdict in catalogue.verdicts] == [False, True]
    assert "line 1: wanted a round as JSON" in catalogue.verdicts[0].reason


# ---- a run under way, in steps


def test_a_new_round_is_live_from_memory_and_a_worse_one_is_held_back(catalogue: Catalogue, halfway: Run) -> None:
    follow = Follow(halfway, catalogue)
    fill(catalogue, halfway, ["ann"])
    assert names(catalogue) == [BACKBONE]
    follow.look()
    good = last_measure(halfway)
    first = catalogue.find("global", NOBODY)
    assert (first.round, first.measure, first.kind) == (2, good, "global")
    assert first.adapter.card.metrics == {"perplexity": good}
    assert not (halfway.folder / ADAPTERS).exists()  # so it is read from memory
    assert tree.digest(first.adapter.read()) == first.adapter.hash
    play(halfway, good * 1.2)
    follow.look()
    assert catalogue.find("global", NOBODY) == first
    assert told(catalogue)[-1] == ("global", 3, False)
    assert f"measured {good * 1.2:.4g}, more than 0.05 worse than {good:.4g}" in catalogue.verdicts[-1].reason
    play(halfway, good * 1.04)
    follow.look()
    assert catalogue.find("global", NOBODY).round == 4
    play(halfway, None)
    follow.look()
    assert catalogue.find("global", NOBODY).round == 5
    assert catalogue.verdicts[-1].reason == "not measured"
    assert first.adapter.read()  # a row that began under round 2 can still be read for
    said = catalogue.verdicts
    follow.look()
    assert catalogue.verdicts == said


def test_a_spoilt_checkpoint_is_told_once_and_the_next_one_is_taken(catalogue: Catalogue, halfway: Run) -> None:
    follow = Follow(halfway, catalogue)
    follow.look()
    before = catalogue.find("global", NOBODY)
    path = halfway.folder / CHECKPOINT
    whole = path.read_bytes()
    for raw in (whole[: len(whole) // 2], b"", tree.pack({"x": torch.ones(1)})):
        count = len(catalogue.verdicts)
        path.write_bytes(raw)
        for _ in range(3):
            follow.look()
        assert catalogue.find("global", NOBODY) == before
        assert [verdict.published for verdict in catalogue.verdicts[count:]] == [False]
        wrong = catalogue.verdicts[-1]
        assert wrong.name == "copied"
        assert "checkpoint 'copied/checkpoint.safetensors': wanted" in wrong.reason
    path.write_bytes(whole)
    play(halfway, last_measure(halfway))
    follow.look()
    assert catalogue.find("global", NOBODY).round == 3


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda found: {key: value * torch.nan for key, value in found.items()}, "holds NaN or infinity"),
        (lambda found: lora.resize(found, 9), "is too wide"),
    ],
)
def test_one_spoilt_cluster_does_not_stop_the_others(
    catalogue: Catalogue, halfway: Run, spoil: Callable[..., Any], said: str
) -> None:
    good = state_of(halfway).adapters[GLOBAL]
    half = {key: value / 2 for key, value in good.items()}
    play(halfway, 9.0, adapters={"cluster-1": half, GLOBAL: spoil(good), "cluster-2": good}, where={"ann": "cluster-2"})
    Follow(halfway, catalogue).look()
    shown = [BACKBONE, "cluster-1", "cluster-1@round-3", "cluster-2", "cluster-2@round-3"]
    assert names(catalogue) == shown
    (wrong,) = [verdict for verdict in catalogue.verdicts if not verdict.published]
    assert (wrong.name, wrong.round) == ("global", 3)
    assert said in wrong.reason
    assert catalogue.chain("user/ann", ANN) == ["cluster-2", BACKBONE]


def test_clusters_that_merge_lose_their_names_and_rows_at_work_their_adapters_not(
    catalogue: Catalogue, halfway: Run
) -> None:
    good = state_of(halfway).adapters[GLOBAL]
    three = {f"cluster-{at}": {key: at * value for key, value in good.items()} for at in (1, 2, 3)}
    follow = Follow(halfway, catalogue)
    play(halfway, 9.0, adapters={GLOBAL: good} | three, where={"ann": "cluster-3"})
    follow.look()
    row = catalogue.find("cluster-3", ANN).adapter
    assert catalogue.chain("user/ann", ANN) == ["cluster-3", "global", BACKBONE]
    merged = {name: adapter for name, adapter in three.items() if name != "cluster-3"}
    play(halfway, 9.0, adapters={GLOBAL: good} | merged, where={"ann": "cluster-1"})
    follow.look()
    assert [name for name in names(catalogue) if "@" not in name] == [BACKBONE, "global", "cluster-1", "cluster-2"]
    assert "cluster-3@round-3" not in names(catalogue)
    assert tree.digest(row.read()) == row.hash
    assert catalogue.chain("user/ann", ANN) == ["cluster-1", "global", BACKBONE]
    gone = next(verdict for verdict in catalogue.verdicts if verdict.name == "cluster-3" and not verdict.published)
    assert gone.reason == "its cluster is no more; rows at work go on"


def test_played_anew_from_an_earlier_round_it_is_followed_from_there(catalogue: Catalogue, halfway: Run) -> None:
    follow, early = Follow(halfway, catalogue), state_of(halfway)
    measure = last_measure(halfway)
    for _ in range(3):
        play(halfway, measure)
        follow.look()
    Journal(halfway.folder / JOURNAL).rewind(2)
    save_checkpoint(halfway.folder / CHECKPOINT, early)
    follow.look()
    assert catalogue.find("global", NOBODY).round == 2
    play(halfway, measure, seed=1)
    follow.look()
    entry = catalogue.find("global", NOBODY)
    assert (entry.round, tree.digest(state_of(halfway).adapters[GLOBAL])) == (3, entry.adapter.hash)
    assert catalogue.find("global@round-3", NOBODY).adapter == entry.adapter


def test_before_its_first_round_a_run_has_its_backbone(catalogue: Catalogue, halfway: Run) -> None:
    for name in (CHECKPOINT, JOURNAL, "facts.json"):
        (halfway.folder / name).unlink()
    follow = Follow(halfway, catalogue, ["ann"])
    fill(catalogue, halfway, ["ann"])
    follow.look()
    assert (names(catalogue), catalogue.verdicts, follow.over) == ([BACKBONE], [], False)


# ---- real runs


def followed(plan: dict[str, Any], folder: Path, layout: Layout, handed: list[str]) -> tuple[Run, Catalogue, list[Any]]:
    """A run looked at after each of its rounds, and at its end."""
    seen: list[Any] = []
    catalogue = Catalogue(layout, margin=0.05)
    follow: list[Follow] = []

    def tell(event: object) -> None:
        if isinstance(event, Report):
            follow[:] = follow or [Follow(Run(folder), catalogue, handed)]
            follow[0].look()
            seen.append((event, catalogue.visible(ALL_EYES)))

    run = fedgen.run(plan, folder, tell=tell)
    follow[0].look()
    assert follow[0].over
    return run, catalogue, seen


def test_a_run_is_live_round_by_round_and_ends_as_its_folder(
    tiny_plan: dict[str, Any], tmp_path: Path, layout: Layout
) -> None:
    plan = tiny_plan | {"rounds": 4, "evaluate": {"rows": 4, "keep": 2}} | CLUSTERED
    run, catalogue, seen = followed(plan, tmp_path / "live", layout, ["ann"])
    assert [event.round for event, _ in seen] == [1, 2, 3, 4]
    for event, entries in seen:
        live = {entry.name: entry for entry in entries}
        assert {"global", "cluster-1", "cluster-2"} <= set(live)
        measures = {"global": event.metrics["perplexity"]} | event.clusters["measure"]
        held = {
            verdict.name for verdict in catalogue.verdicts if verdict.round == event.round and not verdict.published
        }
        for name in {"global", "cluster-1", "cluster-2"} - held:
            assert (live[name].round, live[name].measure) == (event.round, measures.get(name))
    live = {entry.name: entry for entry in catalogue.visible(ALL_EYES)}
    kept = {f"{name}@round-{turn}" for name in ("global", "cluster-1", "cluster-2") for turn in (2, 4)}
    assert kept | {"user/ann"} <= set(live)
    for name in ("global", "cluster-1", "cluster-2", *kept):
        _, card = run.adapter(name)
        if live[name].round == card.round:
            assert live[name].adapter.hash == card.hash  # what was followed is what was saved
            assert live[name].adapter.card == card
    assert live["user/ann"].adapter.card.cluster == run.clusters["uses"]["ann"]
    assert catalogue.chain("user/ann", ANN)[1:] in (
        ["cluster-1", "global", BACKBONE],
        ["cluster-2", "global", BACKBONE],
    )


@pytest.mark.parametrize("rounds", [2, 3])
def test_a_round_that_training_makes_worse_is_held_back_to_the_end(
    tiny_plan: dict[str, Any], tmp_path: Path, layout: Layout, rounds: int
) -> None:
    plan = tiny_plan | {"rounds": rounds, "training": {"steps": 3, "batch": 2, "lr": 3.0}, "personal": {"kind": "none"}}
    run, catalogue, seen = followed(plan, tmp_path / "wild", layout, [])
    measures = [line["metrics"]["perplexity"] for line in run.journal]
    live, base = [], 0.0
    for at, measure in enumerate(measures, 1):
        if not base or measure <= 1.05 * base:
            base, best = measure, at
        live.append(best)
    assert live != list(range(1, rounds + 1))  # or nothing was made worse
    assert [next(e.round for e in entries if e.name == "global") for _, entries in seen] == live
    last = catalogue.find("global", NOBODY)
    assert last.round == live[-1]
    assert (live[-1] == rounds) is (last.adapter.hash == run.adapter("global")[1].hash)


def test_a_thread_follows_a_run_to_its_end_and_stops(
    tiny_plan: dict[str, Any], tmp_path: Path, catalogue: Catalogue
) -> None:
    begun = threading.Event()
    folder = tmp_path / "run"
    threads: list[Follow] = []

    def tell(event: object) -> None:
        if not threads and (folder / "plan.toml").exists():
            threads.append(Follow(Run(folder), catalogue, ["bob"], seconds=0.01))
            threads[0].start()
            begun.set()

    fedgen.run(tiny_plan, folder, tell=tell)
    assert begun.is_set()
    until = time.monotonic() + 20
    while not threads[0].over and time.monotonic() < until:
        time.sleep(0.01)
    threads[0].close()
    assert threads[0].over
    assert {"global", "user/bob"} <= set(names(catalogue))
    assert not [verdict for verdict in catalogue.verdicts if not verdict.published and verdict.name != "global"]


def test_a_thread_outlives_what_goes_wrong_and_stops_when_told(catalogue: Catalogue, halfway: Run) -> None:
    facts = (halfway.folder / "facts.json").read_bytes()
    (halfway.folder / "facts.json").write_bytes(b"{")  # which nobody expects
    follow = Follow(halfway, catalogue, seconds=0.01)
    follow.start()

    def wait(done: Callable[[], bool]) -> bool:
        until = time.monotonic() + 20
        while not done() and time.monotonic() < until:
            time.sleep(0.01)
        return done()

    assert wait(lambda: bool(catalogue.verdicts))
    assert "JSONDecodeError" in catalogue.verdicts[0].reason
    time.sleep(0.05)
    assert len(catalogue.verdicts) == 1
    (halfway.folder / "facts.json").write_bytes(facts)
    assert wait(lambda: "global" in names(catalogue))
    follow.close()
    play(halfway, last_measure(halfway))
    time.sleep(0.05)
    assert catalogue.find("global", NOBODY).round == 2
    Follow(halfway, catalogue).close()  # one that never began stops too
