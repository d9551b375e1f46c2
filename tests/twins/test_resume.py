"""A run that is killed, wherever it is, and resumed ends as the run that nobody stopped: the same bytes.

Each part is played in its own process, which kills itself at a fault point: the moment before the n-th time that
it puts a file in place, opens one to write, or removes one, or the moment after the n-th reply of a client.
"""

import copy
import json
import multiprocessing
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PROCESSES = multiprocessing.get_context("forkserver")  # forks from a process that has imported all and done nothing
PROCESSES.set_forkserver_preload(["fedgen", "transformers.models.llama.modeling_llama"])

PLAY = """
import os, re, signal, sys
import torch
import fedgen
from fedgen.records import Update

torch.set_num_threads(1)
seen = 0

def count(line):
    global seen
    if {fault!r} and re.search({fault!r}, line):
        seen += 1
        if seen == {number}:
            os.kill(os.getpid(), signal.SIGKILL)

def hook(event, args):
    if event in ("os.rename", "os.remove"):
        count(event + " " + str(args[1 if event == "os.rename" else 0]))
    if event == "open" and not str(args[1]).startswith("r"):
        count("open " + str(args[0]))

def tell(event):
    count(type(event).__name__ + " " + str(getattr(event, "round", "")))

sys.addaudithook(hook)
if os.path.exists({folder!r} + "/plan.toml"):
    fedgen.resume({folder!r}, tell=tell)
else:
    fedgen.run({plan!r}, {folder!r}, tell=tell)
"""


@dataclass(frozen=True)
class Fault:
    """Where a process kills itself: at the `number`-th event that looks like `pattern`; nowhere if that is empty."""

    pattern: str
    number: int = 1


def play(plan: dict[str, Any], folder: Path, fault: Fault = Fault("")) -> None:
    """Play the run, or what is left of it, in a process of its own, to its end or to the fault."""
    code = PLAY.format(fault=fault.pattern, number=fault.number, folder=str(folder), plan=plan)
    process = PROCESSES.Process(target=exec, args=(code, {}))
    process.start()
    process.join()
    assert process.exitcode == (-signal.SIGKILL if fault.pattern else 0), f"{fault} was not met"


def content(folder: Path) -> dict[str, Any]:
    """Every file of a run, but for when it began, how long things took, and how much memory the last process held."""
    found: dict[str, Any] = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "lock"
    }
    lines = [json.loads(line) for line in found["journal.jsonl"].splitlines()]
    found["journal.jsonl"] = [{key: value for key, value in line.items() if key != "seconds"} for line in lines]
    scores = json.loads(found["scores.json"])
    found["scores.json"] = {key: value for key, value in scores.items() if key not in ("seconds", "peak_memory")}
    facts = json.loads(found["facts.json"])
    found["facts.json"] = {key: value for key, value in facts.items() if key != "began"}
    return found


FAULTS = {
    "keep": [
        Fault(r"rename .*/plan\.toml"),  # nothing is there yet: the run is begun anew
        Fault("Update 1", 6),  # the round's training is done, its checking is under way
        Fault(r"rename .*\.1\.safetensors", 3),  # between two clients' own adapters
        Fault(r"rename .*/checkpoint\.safetensors", 2),  # round 2 is in the journal, and not in the checkpoint
        Fault(r"remove .*\.1\.safetensors", 2),  # the checkpoint stands, older own adapters are being forgotten
        Fault("Update 3", 2),  # in the middle of the last round's training
        Fault(r"open .*/journal\.jsonl"),  # own adapters are down, the journal's line is not
        Fault("Update 4", 3),  # in the last scoring
        Fault(r"rename .*/scores\.json"),  # all is there but the last file
    ],
    "finetune": [
        Fault("Report 1"),  # between two rounds
        Fault(r"rename .*/adapters/global@round-2$"),  # the kept adapter is written, and not yet in its place
        Fault(r"rename .*/checkpoint\.safetensors"),  # it is in its place, and the round does not count yet
        Fault(r"rename .*\.4\.safetensors", 2),  # in the last scoring, between two clients' own adapters
        Fault(r"rename .*/adapters/global$"),  # the bundle is written, and not yet in its place
        Fault(r"rename .*/scores\.json"),
    ],
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_run_killed_again_and_again_ends_as_if_nobody_had(
    kind: str, tiny_plan: dict[str, Any], tmp_path: Path
) -> None:
    plan = copy.deepcopy(tiny_plan)
    plan |= {"rounds": 3, "outer": {"kind": "adam"}, "personal": {"kind": kind, "steps": 2}}
    plan |= {"training": {"steps": 2, "batch": 2}, "evaluate": {"rows": 2, "clients": 2, "keep": 2}}
    play(plan, tmp_path / "whole" / "run")
    for fault in FAULTS[kind]:
        play(plan, tmp_path / "killed" / "run", fault)
    play(plan, tmp_path / "killed" / "run")
    whole, killed = content(tmp_path / "whole" / "run"), content(tmp_path / "killed" / "run")
    assert list(whole) == list(killed)
    assert [name for name in whole if whole[name] != killed[name]] == []
    assert len([name for name in whole if name.startswith("shelf/")]) == 6
    assert {name.split("/")[1] for name in whole if name.startswith("adapters/")} == {"global", "global@round-2"}
    assert {"adapters/global/adapter_model.safetensors", "checkpoint.safetensors", "scores.json"} <= set(whole)


TIMED = {
    "waited for": {"spare": 0.25, "quorum": 0.25},
    "asynchronous": {"buffer": 2, "quorum": 0.25},
}


@pytest.mark.parametrize("kind", TIMED)
def test_simulated_time_and_what_is_in_flight_survive(kind: str, tiny_plan: dict[str, Any], tmp_path: Path) -> None:
    plan = copy.deepcopy(tiny_plan)
    plan |= {"rounds": 4, "devices": {"kind": "drawn", "classes": ["board"], "spread": 1.5}, "fleet": TIMED[kind]}
    plan |= {"training": {"steps": 2, "batch": 2}, "evaluate": {"rows": 2, "clients": 2}, "personal": {"kind": "none"}}
    play(plan, tmp_path / "whole" / "run")
    for fault in (
        Fault(r"rename .*/clock-1\."),  # the round is played, and nothing of it is down
        Fault(r"rename .*/checkpoint\.safetensors", 2),  # two rounds' times are there, and round 1 counts
        Fault(r"remove .*/clock-2\."),  # round 3 counts, and round 2 is not forgotten yet
        Fault("Update 4"),
    ):
        play(plan, tmp_path / "killed" / "run", fault)
    play(plan, tmp_path / "killed" / "run")
    whole, killed = content(tmp_path / "whole" / "run"), content(tmp_path / "killed" / "run")
    assert list(whole) == list(killed)
    assert [name for name in whole if whole[name] != killed[name]] == []
    assert len(whole["clock-4.safetensors"]) > (4 * 1024 if kind == "asynchronous" else 0)  # with changes in it
    assert whole["journal.jsonl"][-1]["metrics"]["clock"] > whole["journal.jsonl"][0]["metrics"]["clock"] > 0
