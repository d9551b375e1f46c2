"""A whole run of pictures through the plan: it finishes, is resumed to the same bytes, and what it leaves is read."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import fedgen
from fedgen import Bank, Run, places, report
from fedgen.evaluate import YARDSTICKS
from fedgen.records import Document, Report

Plan = dict[str, Any]
KINDS = ["classes", "pixart"]  # told the number of a digit, and told it in words


@pytest.fixture(scope="module")
def plans(pipelines: dict[str, Path]) -> dict[str, Plan]:
    """A plan of two short rounds over digits, for each kind of backbone."""
    shared: Plan = {
        "name": "digits",
        "rounds": 2,
        "data": {"kind": "digits"},
        "partition": {"kind": "dirichlet", "clients": 5, "alpha": 1.0},
        "cohort": {"count": 3},
        "training": {"steps": 4, "batch": 2},
        "personal": {"steps": 4},
        "evaluate": {"rows": 4, "keep": 1},
    }
    backbones = {kind: {"kind": "diffusion", "source": str(pipelines[kind]), "device": "cpu"} for kind in KINDS}
    return {kind: shared | {"backbone": backbone} for kind, backbone in backbones.items()}


@pytest.fixture(scope="module")
def runs(plans: dict[str, Plan], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Each of them run to its end."""
    folder = tmp_path_factory.mktemp("runs")
    return {kind: fedgen.run(plan, folder / kind) for kind, plan in plans.items()}


class StopHere(Exception):  # noqa: N818  it is no error
    """What stops a run in these tests."""


def stop(event: object) -> None:
    if isinstance(event, Report):
        raise StopHere


def weights(run: Run) -> dict[str, bytes]:
    """The bytes of every adapter that the run left, on the clients' shelf too."""
    return {str(path.relative_to(run.folder)): path.read_bytes() for path in run.folder.rglob("*.safetensors")}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_pictures_comes_to_its_end(kind: str, runs: dict[str, Run]) -> None:
    run = runs[kind]
    assert run.finished
    assert run.yardstick == YARDSTICKS["image"]
    assert (run.facts["kind"], run.facts["component"]) == ("image", "unet" if kind == "classes" else "transformer")
    assert run.facts["rows"] > 1000
    assert run.outcome["failures"] == []
    assert len(run.scores) == 5
    for found in run.scores.values():
        assert all(0 < score.loss < 100 and score.terms == 4 for score in found.values())
        assert len({found[name].loss for name in ("backbone", "global", "personal")}) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_of_pictures_ends_as_one_that_was_not(
    kind: str, plans: dict[str, Plan], runs: dict[str, Run], tmp_path: Path
) -> None:
    with pytest.raises(StopHere):
        fedgen.run(plans[kind], tmp_path / kind, tell=stop)
    resumed = fedgen.resume(tmp_path / kind)
    assert len(resumed.journal) == 2
    assert weights(resumed) == weights(runs[kind])
    assert resumed.outcome["clients"] == runs[kind].outcome["clients"]


@pytest.mark.parametrize("kind", KINDS)
def test_its_bundles_load_and_change_what_is_painted(kind: str, runs: dict[str, Run]) -> None:
    run = runs[kind]
    assert run.adapters()[:3] == ["global", "global@round-1", "global@round-2"]
    plan, component = run.plan, run.facts["component"]
    denoiser = plan.backbone.load()
    (adapter, card), (kept, _) = run.adapter("global"), run.adapter("global@round-2")
    assert (card.kind, card.backbone_hash) == ("image", denoiser.hash)
    assert all(torch.equal(adapter[key], kept[key]) for key in adapter)
    shared = load_file(run.folder / "adapters" / "global" / "pytorch_lora_weights.safetensors")
    assert {key.partition(".")[0] for key in shared} == {component}
    asked = [Document("", "", f"the digit {digit}", str(digit)) for digit in range(2)]

    def paint(slot: int) -> torch.Tensor:
        draws = [torch.Generator().manual_seed(digit) for digit in range(2)]
        with bank.rows(torch.tensor([slot] * 2)):
            made: torch.Tensor = denoiser.paint(asked, draws, steps=4)  # type: ignore[attr-defined]
        return made

    with Bank(denoiser.network, plan.adapter.targets, plan.adapter.rank, slots=1) as bank:
        bank.write(1, adapter)
        assert not torch.equal(paint(1), paint(0))


@pytest.mark.parametrize("kind", KINDS)
def test_its_report_is_written(kind: str, runs: dict[str, Run]) -> None:
    page = report.write(runs[kind])
    assert "denoising loss" in page.read_text("utf-8")


def test_its_cost_is_told_before_it_is_run(plans: dict[str, Plan]) -> None:
    settled, cost = places.cost(plans["pixart"])
    assert settled.adapter.targets[0] == "to_q"
    assert cost.clients == 5
    assert 0 < cost.row_bytes < 10**6
    assert cost.rows_a_pass >= 2
