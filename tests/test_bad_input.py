"""Bad input, end to end: one clear line that says where, what was wanted and what came, and nothing half-written."""

import contextlib
import copy
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import CTRLConfig, CTRLLMHeadModel

import fedgen
from fedgen import Run, places
from fedgen.errors import BackboneError, DataError, FedgenError, PlanError, StoreError
from fedgen.records import Report
from fedgen.run import Began
from fedgen.store import load_bundle

Plan = dict[str, Any]


@pytest.fixture
def plan(tiny_plan: Plan) -> Plan:
    """A plan of one's own to spoil."""
    return copy.deepcopy(tiny_plan)


def refused(plan: Plan, tmp_path: Path, *settings: str, kind: type[FedgenError]) -> str:
    """The line with which both a run and a question for its cost are refused; nothing may be there afterwards."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(kind) as caught:
        fedgen.run(plan, tmp_path / "runs" / "run", settings=settings)
    with pytest.raises(kind) as asked:
        places.cost(plan, settings=settings)
    assert "\n" not in str(caught.value)
    assert str(asked.value) == str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before
    return str(caught.value)


# --- the backbone


def test_a_backbone_folder_that_is_not_there(plan: Plan, tmp_path: Path) -> None:
    plan["backbone"]["source"] = str(tmp_path / "no-such")
    line = refused(plan, tmp_path, kind=BackboneError)
    wanted = "wanted 'embedded', a Hugging Face folder, or 'hub:owner/name'"
    assert line == f"backbone: no config.json in '{tmp_path / 'no-such'}'; {wanted}"


def spoil_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama", ')


def spoil_type(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "perpetuum"}')


def cut_weights(folder: Path) -> None:
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(raw[: len(raw) // 2])


def lose_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def lose_one_weight(folder: Path) -> None:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})


def lose_tokenizer(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()


@pytest.mark.parametrize(
    "spoil", [spoil_config, spoil_type, cut_weights, lose_weights, lose_one_weight, lose_tokenizer]
)
def test_a_broken_backbone_folder(spoil: Callable[[Path], None], plan: Plan, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(plan["backbone"]["source"], folder)
    spoil(folder)
    plan["backbone"]["source"] = str(folder)
    assert f"backbone: '{folder}'" in refused(plan, tmp_path, kind=BackboneError)


def test_a_backbone_without_the_layers_that_are_to_be_adapted(plan: Plan, tmp_path: Path) -> None:
    line = refused(plan, tmp_path, "adapter.targets=['query']", kind=BackboneError)
    assert line.startswith(
        "adapter.targets: 'query' is no layer of this backbone; those to adapt are: down_proj, gate_proj,"
    )
    line = refused(plan, tmp_path, "adapter.targets=['embed_tokens']", kind=BackboneError)
    assert line.endswith("no adapter fits a layer of type Embedding, only linear ones and Conv2d")


def test_a_backbone_that_has_none_of_the_usual_layers(plan: Plan, tmp_path: Path) -> None:
    folder = tmp_path / "ctrl"
    shutil.copytree(plan["backbone"]["source"], folder)
    lose_weights(folder)
    config = CTRLConfig(vocab_size=300, n_positions=64, n_embd=16, dff=16, n_layer=1, n_head=2)
    CTRLLMHeadModel(config).save_pretrained(folder)
    plan["backbone"]["source"] = str(folder)
    line = refused(plan, tmp_path, kind=BackboneError)
    assert line.startswith(
        "adapter.targets: 'q_proj' is no layer of this backbone; those to adapt are: Wk, Wq, Wv, dense, ffn.0"
    )


# --- the data


def test_a_folder_without_a_text(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    plan["data"]["path"] = str(tmp_path / "empty")
    line = refused(plan, tmp_path, kind=DataError)
    assert line.startswith(f"{tmp_path / 'empty'}: wanted at least one text file, came none")
    plan["data"]["path"] = str(tmp_path / "no-such")
    assert "wanted a folder of text, came nothing" in refused(plan, tmp_path, kind=DataError)


def test_a_file_that_is_not_utf_8(plan: Plan, tmp_path: Path) -> None:
    shutil.copytree(plan["data"]["path"], tmp_path / "text")
    (tmp_path / "text" / "zoe.txt").write_bytes(b"caf\xe9")
    plan["data"]["path"] = str(tmp_path / "text")
    line = refused(plan, tmp_path, kind=DataError)
    came = "wanted UTF-8 text, came byte 0xe9 at position 3; save it as UTF-8 or take it away"
    assert line == f"{tmp_path / 'text' / 'zoe.txt'}: {came}"


def test_a_broken_line_of_json_is_numbered(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"who": "a", "said": "x"}\n{"who": "a", "said": "y"}\n{"who": "a", "sa\n')
    plan["data"] = {"kind": "jsonl", "path": str(path), "answer": "said", "owner": "who"}
    line = refused(plan, tmp_path, kind=DataError)
    assert line.startswith(f"{path}, line 3: wanted one whole JSON object, came a broken line (")


def test_no_clients(plan: Plan, tmp_path: Path) -> None:
    plan["partition"] = {"kind": "even", "clients": 0}
    line = "partition.clients: wanted a whole number at least 1, came 0"
    assert refused(plan, tmp_path, kind=PlanError) == line
    del plan["partition"]
    line = refused(plan, tmp_path, "deal.least=100000", "deal.small=drop", kind=DataError)
    assert line == "data: wanted at least one client with enough data, came 6, all too small"


def test_more_clients_than_documents(plan: Plan, tmp_path: Path) -> None:
    plan["partition"] = {"kind": "even", "clients": 7}
    line = refused(plan, tmp_path, kind=DataError)
    assert "wanted at least one client and a document for each, came 7 clients and 6 documents" in line


@pytest.mark.parametrize("kind", ["uniform", "weighted"])
def test_a_cohort_larger_than_the_clients(kind: str, plan: Plan, tmp_path: Path) -> None:
    plan["cohort"] = {"kind": kind, "count": 7}
    line = refused(plan, tmp_path, kind=PlanError)
    assert line == "cohort.count: wanted 7 clients a round, there are 6; lower it"


def test_a_folder_that_cannot_be_made(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match=r"run '.*file': cannot be written \(File exists\); choose another folder"):
        fedgen.run(plan, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


# --- a run that is stopped, and what becomes of its folder meanwhile


class StopHere(Exception):  # noqa: N818  it is no error
    """What stops a run in these tests."""


def stop_after(turn: int) -> Callable[[object], None]:
    def tell(event: object) -> None:
        if isinstance(event, Report) and event.round == turn:
            raise StopHere

    return tell


@pytest.fixture
def stopped(plan: Plan, tmp_path: Path) -> Path:
    """The folder of a run that was stopped after its first round."""
    with pytest.raises(StopHere):
        fedgen.run(plan, tmp_path / "run", tell=stop_after(1))
    return tmp_path / "run"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}


def test_a_checkpoint_cut_short(stopped: Path, tiny_run: Run) -> None:
    path = stopped / "checkpoint.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    before = contents(stopped)
    with pytest.raises(
        StoreError, match=r"checkpoint '.*': wanted whole safetensors.*; put back a copy of it, or delete"
    ):
        fedgen.resume(stopped)
    assert contents(stopped) == before
    path.unlink()  # the second remedy that the line names
    assert_same(fedgen.resume(stopped), tiny_run)


def assert_same(run: Run, other: Run) -> None:
    name = "adapters/global/adapter_model.safetensors"
    assert (run.folder / name).read_bytes() == (other.folder / name).read_bytes()
    assert run.outcome["clients"] == other.outcome["clients"]
    assert [line["round"] for line in run.journal] == [line["round"] for line in other.journal]


def test_data_that_is_not_what_the_run_began_with(plan: Plan, tmp_path: Path, tiny_run: Run) -> None:
    text = tmp_path / "text"
    shutil.copytree(plan["data"]["path"], text)
    plan["data"]["path"] = str(text)
    with pytest.raises(StopHere):
        fedgen.run(plan, tmp_path / "run", tell=stop_after(1))
    (text / "ann.txt").rename(tmp_path / "away.txt")
    with pytest.raises(
        StoreError, match=r"wanted clients as at its start \(6\), came 5; put the backbone and the data"
    ):
        fedgen.resume(tmp_path / "run")
    (tmp_path / "away.txt").rename(text / "ann.txt")
    assert_same(fedgen.resume(tmp_path / "run"), tiny_run)


def test_a_backbone_that_is_not_what_the_run_began_with(plan: Plan, tmp_path: Path) -> None:
    folder = tmp_path / "backbone"
    shutil.copytree(plan["backbone"]["source"], folder)
    plan["backbone"]["source"] = str(folder)
    with pytest.raises(StopHere):
        fedgen.run(plan, tmp_path / "run", tell=stop_after(1))
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights["model.norm.weight"] *= 1.5
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(StoreError, match="wanted backbone_hash as at its start"):
        fedgen.resume(tmp_path / "run")


# --- bundles


@pytest.fixture
def finished(tiny_run: Run, tmp_path: Path) -> Run:
    """A copy of a finished run, to spoil."""
    shutil.copytree(tiny_run.folder, tmp_path / "copy")
    return Run(tmp_path / "copy")


def test_a_bundle_for_another_backbone(finished: Run, plan: Plan, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(plan["backbone"]["source"], other)
    weights = safetensors.torch.load_file(other / "model.safetensors")
    weights["model.norm.weight"] *= 1.5
    safetensors.torch.save_file(weights, other / "model.safetensors", {"format": "pt"})
    foreign = fedgen.run(plan, tmp_path / "foreign", settings=["rounds=1", f"backbone.source={other}"])
    shutil.rmtree(finished.folder / "adapters" / "global")
    shutil.copytree(foreign.folder / "adapters" / "global", finished.folder / "adapters" / "global")
    with pytest.raises(StoreError, match=r"adapters/global: made for backbone 'other' \(.*\), not for this one"):
        finished.adapter("global")


def test_a_bundle_with_numbers_that_are_none(finished: Run) -> None:
    path = finished.folder / "adapters" / "global" / "adapter_model.safetensors"
    adapter = safetensors.torch.load_file(path)
    first = min(adapter)
    adapter[first][0, 0] = torch.nan
    safetensors.torch.save_file(adapter, path, {"format": "pt"})
    with pytest.raises(StoreError, match=f"{path}: '{first}' holds NaN or infinity"):
        finished.adapter("global")
    with pytest.raises(StoreError, match="holds NaN or infinity"):
        load_bundle(path.parent)


# --- a full disk


@contextlib.contextmanager
def limited(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


FULL = {  # from which event on no file may be larger than how many bytes, and which file is the first to feel it
    "own adapters": (Began, 3000, "keep", r"shelf/.*\.1\.safetensors"),
    "the journal": (Began, 150, "none", r"journal\.jsonl"),
    "the checkpoint": (Report, 3000, "none", r"checkpoint\.safetensors"),
    "the last own adapters": (Report, 3000, "finetune", r"shelf/.*\.2\.safetensors"),
    "the bundle": (Report, 3000, "none", "adapters/global"),
}


@pytest.mark.parametrize("case", FULL)
def test_a_disk_that_fills_up_stops_the_run_and_loses_nothing(case: str, plan: Plan, tmp_path: Path) -> None:
    event, size, personal, path = FULL[case]
    rounds = 2 if case == "the checkpoint" else 1
    settings = [f"rounds={rounds}", f"personal.kind={personal}"]
    whole = fedgen.run(plan, tmp_path / "whole" / "run", settings=settings)
    folder = tmp_path / "full" / "run"
    with contextlib.ExitStack() as room:

        def tell(heard: object) -> None:
            if type(heard) is event:
                room.enter_context(limited(size))

        with pytest.raises(StoreError, match=rf"{path}: cannot be written \(File too large\); make room") as caught:
            fedgen.run(plan, folder, settings=settings, tell=tell)
    assert "\n" not in str(caught.value)
    assert [found for found in folder.rglob("*") if found.name.endswith(".part")] == []
    assert not Run(folder).finished
    resumed = fedgen.resume(folder)
    assert_same(resumed, whole)
    assert {str(found.relative_to(folder)) for found in folder.rglob("*")} == {
        str(found.relative_to(whole.folder)) for found in whole.folder.rglob("*")
    }


def test_a_small_disk_that_grows_takes_the_run_a_little_further_each_time(
    plan: Plan, tmp_path: Path, tiny_run: Run
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(mount(disk, "size=4k"), capture_output=True, check=False).returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        for size in (4, 8, 12, 16, 32, 64):
            subprocess.run(mount(disk, f"remount,size={size}k"), check=True)
            with pytest.raises(StoreError, match=r"No space left on device"):
                go_on(plan, disk / "run")
            assert [found for found in disk.rglob("*") if found.name.endswith(".part")] == []
        subprocess.run(mount(disk, "remount,size=10m"), check=True)
        assert_same(go_on(plan, disk / "run"), tiny_run)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def mount(folder: Path, options: str) -> list[str]:
    return ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]


def go_on(plan: Plan, folder: Path) -> Run:
    return fedgen.resume(folder) if (folder / "plan.toml").exists() else fedgen.run(plan, folder)
