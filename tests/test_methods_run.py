"""Every method plays a whole run, on text and on pictures, and leaves the backbone as it was."""

import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fedgen
from fedgen import Run, lora, tree
from fedgen import plan as plans
from fedgen.errors import StoreError
from fedgen.methods import METHODS

runs = importlib.import_module("fedgen.run")  # the room, which the function of its name hides
BRIEF = ["rounds=2", "cohort.count=2", "training.steps=2", "personal.steps=2", "evaluate.every=0", "evaluate.rows=2"]


def brief(plan: dict[str, Any], name: str) -> plans.Plan:
    """A plan as the method has it, cut short."""
    return METHODS[name].over(plans.read(plan, BRIEF))


def check(run: Run, name: str) -> None:
    """The run came to its end, and no more was sent than the method says."""
    assert run.finished
    assert not run.outcome["failures"]
    assert all(math.isfinite(score.loss) for own in run.scores.values() for score in own.values())
    best = {key for own in run.scores.values() for key in own}
    assert ("personal" in best) == (plans.kind_of("personal", run.plan.personal) != "none" or run.plan.share.keep)
    up = sum(line["up"] for line in run.journal)
    taking_part = sum(len(line["clients"]) for line in run.journal)
    whole = sum(path.stat().st_size for path in (run.folder / "adapters" / "global").glob("*.safetensors"))
    little = up < 600 * taking_part
    assert little == (name == "local") or name == "thin", "a few hundred bytes are a message with nothing in it"
    assert up / taking_part < whole + 2000 or name in ("flexlora", "fedsb"), (up / taking_part, whole)


@pytest.mark.parametrize("name", METHODS)
def test_on_text(name: str, tiny_plan: dict[str, Any], tmp_path: Path) -> None:
    run = fedgen.run(brief(tiny_plan, name), tmp_path / name)
    check(run, name)
    assert run.plan.backbone.load().hash == run.facts["backbone_hash"]


@pytest.mark.parametrize("name", METHODS)
def test_on_pictures(name: str, digits_plan: Callable[[str], dict[str, Any]], tmp_path: Path) -> None:
    plan = digits_plan("classes") | {"partition": {"kind": "even", "clients": 6}, "personal": {"kind": "finetune"}}
    check(fedgen.run(brief(plan, name), tmp_path / name), name)


def test_thin_sends_a_twentieth_of_an_adapter_and_offers_a_quarter() -> None:
    plan = METHODS["thin"].over(plans.read({}))
    a, b = (torch.zeros(8, 512), torch.zeros(192, 8))
    adapter = lora.tree_of(lora.Pair(f"layers.{at}", a, b) for at in range(4))
    up, down = plan.passage.sizes(adapter, 8)
    assert up < len(tree.pack(adapter)) / 20
    assert len(tree.pack(adapter)) / 5 < down < len(tree.pack(adapter)) / 3


@pytest.mark.parametrize("name", ["fedsa", "local", "dual"])
def test_a_run_that_breaks_off_while_it_is_measured_ends_as_if_it_had_not(
    name: str, tiny_plan: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What clients keep is asked for again, from where it was before it was measured."""
    whole = fedgen.run(brief(tiny_plan, name), tmp_path / "whole")
    write = runs.write_whole

    def full(path: Path, raw: bytes) -> None:
        if path.name == runs.SCORES:
            raise StoreError("no room left")
        write(path, raw)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "write_whole", full)
        with pytest.raises(StoreError, match="no room left"):
            fedgen.run(brief(tiny_plan, name), tmp_path / "broken")
    assert fedgen.resume(tmp_path / "broken").scores == whole.scores
