"""A run folder: what it holds, how it is read, and who may write it."""

import copy
import dataclasses
import json
import math
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import fedgen
from fedgen import Plan, Run, lora, places, tree
from fedgen import plan as plans
from fedgen.aggregate import Average
from fedgen.cohort import Uniform
from fedgen.data import Folder
from fedgen.errors import DataError, StoreError
from fedgen.records import Report, Update
from fedgen.run import Began, Finished

PROCESSES = multiprocessing.get_context("forkserver")  # forks from a process that has imported all and done nothing
PROCESSES.set_forkserver_preload(["fedgen", "transformers.models.llama.modeling_llama"])
CLIENTS = ["ann", "bob", "cleo", "dan", "eve", "finn"]


# --- what is in the folder


def test_a_finished_run_holds_all_of_it_and_nothing_else(tiny_run: Run) -> None:
    found = {path.name for path in tiny_run.folder.iterdir()} - {"report.html"}
    assert found == {
        "plan.toml", "facts.json", "journal.jsonl", "checkpoint.safetensors", "scores.json",
        "adapters", "shelf", "lock",
    }  # fmt: skip
    assert tiny_run.finished
    assert len(list((tiny_run.folder / "shelf").iterdir())) == 6


def test_the_plan_is_resolved(tiny_run: Run, tiny_plan: dict[str, Any]) -> None:
    asked, resolved = plans.read(tiny_plan), tiny_run.plan
    assert resolved.adapter.targets == ("q_proj", "v_proj")
    assert resolved.training.cohort > 0
    training = dataclasses.replace(resolved.training, cohort=asked.training.cohort)
    assert dataclasses.replace(resolved, adapter=asked.adapter, training=training) == asked


def test_the_journal_has_a_line_a_round(tiny_run: Run) -> None:
    assert [line["round"] for line in tiny_run.journal] == [1, 2]
    for line in tiny_run.journal:
        assert len(set(line["clients"])) == 4
        assert set(line["clients"]) <= set(CLIENTS)
        assert line["failures"] == []
        assert line["up"] > 0
        assert line["metrics"]["terms"] == 4 * 3 * 2 * 32
        assert 1 < line["metrics"]["perplexity"] < 1000


def test_scores_are_of_every_client_under_every_adapter(tiny_run: Run) -> None:
    assert list(tiny_run.scores) == CLIENTS
    for found in tiny_run.scores.values():
        assert list(found) == ["backbone", "global", "personal"]
        assert len({(score.terms, score.words, score.bytes) for score in found.values()}) == 1
        assert all(math.isfinite(score.per_term) and score.terms > 0 for score in found.values())
        assert found["personal"].loss < found["backbone"].loss
    assert tiny_run.outcome["failures"] == []
    assert tiny_run.outcome["peak_memory"] > 2**20


def test_run_takes_a_path_as_text(tiny_run: Run) -> None:
    assert Run(str(tiny_run.folder)) == tiny_run  # type: ignore[arg-type]


# --- adapters by name


def test_adapters_are_listed_and_loaded_by_name(tiny_run: Run) -> None:
    assert tiny_run.adapters() == ["global", *(f"client/{name}" for name in CLIENTS)]
    shared, card = tiny_run.adapter("global")
    assert (card.cluster, card.round, card.run, card.rank) == ("global", 2, tiny_run.folder.name, lora.rank(shared))
    assert card.hash == tree.digest(shared)
    for name in CLIENTS:
        own, lineage = tiny_run.adapter(f"client/{name}")
        assert (lineage.client, lineage.parent) == (name, card.hash)
        assert own.keys() == shared.keys()
        assert tree.norm(tree.add(own, shared, -1)) > 0


def test_shared_adapters_are_kept_on_the_way(tiny_plan: dict[str, Any], tmp_path: Path) -> None:
    settings = ["rounds=11", "evaluate.keep=5", "evaluate.every=5", "training.steps=1", "personal.kind=none"]
    found = fedgen.run(tiny_plan, tmp_path / "run", settings=settings)
    assert found.adapters() == ["global", "global@round-5", "global@round-10"]
    fifth, card = found.adapter("global@round-5")
    assert (card.cluster, card.round, card.hash) == ("global", 5, tree.digest(fifth))
    assert card.metrics == {"perplexity": found.journal[4]["metrics"]["perplexity"]}
    shorter = fedgen.run(tiny_plan, tmp_path / "shorter", settings=[*settings, "rounds=5"])
    assert shorter.adapter("global")[1].hash == card.hash
    unmeasured = fedgen.run(tiny_plan, tmp_path / "unmeasured", settings=[*settings, "rounds=5", "evaluate.every=0"])
    assert unmeasured.adapter("global@round-5")[1].metrics == {}


@pytest.mark.parametrize("name", ["nobody", "client/nobody", "client/", "", ".."])
def test_an_unknown_adapter_is_told_which_there_are(name: str, tiny_run: Run) -> None:
    with pytest.raises(StoreError) as caught:
        tiny_run.adapter(name)
    line = str(caught.value)
    if name != "..":
        begin, _, listed = line.partition("; it has ")
        assert begin == f"run '{tiny_run.folder}': has no adapter '{name}'"
        assert sorted(listed.split(", ")) == sorted(["global", *(f"client/{client}" for client in CLIENTS)])
    assert "\n" not in line


# --- who may write


def test_a_folder_that_holds_no_run(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "no-such"):
        with pytest.raises(StoreError, match=rf"run '{folder}': holds no plan\.toml; wanted the folder of a run"):
            Run(folder)
        with pytest.raises(StoreError, match=r"holds no plan\.toml"):
            fedgen.resume(folder)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_a_run_is_not_written_over(tiny_run: Run, tiny_plan: dict[str, Any]) -> None:
    before = contents(tiny_run.folder)
    with pytest.raises(StoreError, match=r"holds a run already; go on with `fedgen resume .*`, or name another folder"):
        fedgen.run(tiny_plan, tiny_run.folder)
    assert contents(tiny_run.folder) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}


def test_a_finished_run_resumed_is_read_and_left_alone(tiny_run: Run, tiny_plan: dict[str, Any]) -> None:
    before, heard = contents(tiny_run.folder), []
    began = time.perf_counter()
    assert fedgen.resume(tiny_run.folder, tell=heard.append) == tiny_run
    assert time.perf_counter() - began < 1
    assert heard == []
    assert contents(tiny_run.folder) == before


def test_a_run_in_use_by_another_process_is_left_to_it(tiny_plan: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    other = PROCESSES.Process(target=fedgen.run, args=(dict(tiny_plan) | {"rounds": 10_000}, folder))
    other.start()
    try:
        ends = time.monotonic() + 60
        while not (folder / "checkpoint.safetensors").exists():
            assert time.monotonic() < ends
            time.sleep(0.01)
        with pytest.raises(StoreError, match=rf"is in use by process {other.pid}; wait for it, or stop it"):
            fedgen.resume(folder)
    finally:
        assert other.pid
        os.kill(other.pid, signal.SIGKILL)
        other.join()
    found = Run(folder)
    assert not found.finished
    assert found.adapters() == []
    with pytest.raises(StoreError, match="has no adapter 'global'; it has none before its end"):
        found.adapter("global")


# --- a run as it goes


def test_what_is_told_in_its_order(tiny_plan: dict[str, Any], tmp_path: Path) -> None:
    heard: list[Any] = []
    fedgen.run(tiny_plan, tmp_path / "run", settings=["rounds=1", "evaluate.clients=2"], tell=heard.append)
    kinds = [type(event) for event in heard]
    assert kinds == [Began, *[Update] * (4 + 2), Report, *[Update] * 6, Finished]
    assert (heard[0].folder, heard[0].round, heard[0].facts["clients"]) == (tmp_path / "run", 0, 6)


def test_two_runs_of_one_plan_are_the_same(tiny_run: Run, tiny_plan: dict[str, Any], tmp_path: Path) -> None:
    again = fedgen.run(tiny_plan, tmp_path / "tiny")
    for name in ("checkpoint.safetensors", "adapters/global/adapter_model.safetensors", "adapters/global/card.json"):
        assert (again.folder / name).read_bytes() == (tiny_run.folder / name).read_bytes()
    assert again.outcome["clients"] == tiny_run.outcome["clients"]
    assert fedgen.run(tiny_plan, tmp_path / "other", settings=["seed=1"]).scores != tiny_run.scores


def test_a_plan_made_in_python_and_settings_over_it(tiny_plan: dict[str, Any], tmp_path: Path) -> None:
    asked = plans.read(tiny_plan)
    made = Plan(
        backbone=asked.backbone, data=Folder(asked.data.path), rounds=5,  # type: ignore[attr-defined]
        cohort=Uniform(count=2), aggregate=Average("uniform"), training=asked.training,
    )  # fmt: skip
    found = fedgen.run(made, tmp_path / "run", settings=["rounds=1", "personal.kind=none"])
    assert len(found.journal) == 1
    assert all(list(scores) == ["backbone", "global"] for scores in found.scores.values())
    assert not (found.folder / "shelf").exists() or list((found.folder / "shelf").iterdir()) == []


def test_a_run_without_measuring_and_with_a_fit_too_wild_for_a_float(tiny_plan: dict[str, Any], tmp_path: Path) -> None:
    quiet = fedgen.run(tiny_plan, tmp_path / "quiet", settings=["evaluate.every=0", "rounds=1"])
    assert [list(line["metrics"]) for line in quiet.journal] == [["loss", "terms", "answered"]]
    settings = ["training.lr=1e3", "rounds=1", "adapter.targets=['lm_head']", "training.steps=9"]
    wild = fedgen.run(tiny_plan, tmp_path / "wild", settings=settings)
    assert wild.finished
    assert wild.journal[0]["metrics"]["perplexity"] == math.inf


def test_a_small_client_is_an_error_or_dropped_and_listed(tiny_plan: dict[str, Any], tmp_path: Path) -> None:
    plan = copy.deepcopy(tiny_plan)
    shutil.copytree(plan["data"]["path"], tmp_path / "text")
    (tmp_path / "text" / "gus.txt").write_text("too short.\n")
    plan["data"]["path"] = str(tmp_path / "text")
    with pytest.raises(DataError, match="client 'gus': wanted at least 1, 1 and 1 rows"):
        fedgen.run(plan, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    found = fedgen.run(plan, tmp_path / "run", settings=["deal.small=drop", "rounds=1"])
    assert found.facts["dropped"] == ["gus"]
    assert found.facts["clients"] == 6
    assert list(found.scores) == CLIENTS


# --- what it costs


def test_the_cost_foretold_is_the_run_s(tiny_run: Run, tiny_plan: dict[str, Any]) -> None:
    settled, cost = places.cost(tiny_plan)
    assert settled == tiny_run.plan
    assert (cost.clients, cost.cohort) == (6, 4)
    shared, _ = tiny_run.adapter("global")
    assert cost.adapter_parameters == tree.size(shared)
    assert cost.backbone_parameters == tiny_run.facts["parameters"]
    assert cost.full_message == tiny_run.facts["full_bytes"]
    for line in tiny_run.journal:
        assert cost.round_bytes < line["up"] < cost.round_bytes + 4 * 400  # an update also says who and how it went
    up = sum(line["up"] for line in tiny_run.journal)
    full = sum(len(line["clients"]) for line in tiny_run.journal) * cost.full_message
    assert cost.saved == pytest.approx(1 - up / full, abs=400 / cost.full_message)
    assert 0 < cost.saved < 1


def test_asking_for_the_cost_writes_nothing(
    tiny_plan: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    places.cost(tiny_plan, settings=["rounds=3"])
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_folder_goes_below_runs(
    tiny_plan: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = fedgen.run(tiny_plan, settings=["rounds=1", "name=short"])
    assert found.folder.parent == Path("runs")
    assert found.folder.name.startswith("short-20")
    assert json.loads((tmp_path / found.folder / "facts.json").read_text())["clients"] == 6
