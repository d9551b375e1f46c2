"""Runs in simulated time: what their journals say of it, and what their pages show."""

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import fedgen
from fedgen import Run, report
from fedgen import plan as plans
from fedgen.places import inprocess, silent
from fedgen.report.wording import span
from fedgen.run import Place
from fedgen.screen import Screen

LAPTOPS = {"kind": "drawn", "classes": ["laptop"]}
STRAGGLERS = {"kind": "drawn", "classes": ["board", "gateway"], "spread": 1.5}


def clocked(plan: dict[str, Any], devices: dict[str, Any], terms: dict[str, Any], rounds: int = 3) -> dict[str, Any]:
    made = copy.deepcopy(plan) | {"rounds": rounds, "devices": devices, "fleet": terms, "personal": {"kind": "none"}}
    return made | {"cohort": {"count": 5}, "evaluate": {"rows": 2, "clients": 2}}


@pytest.fixture(scope="module")
def waited(tiny_plan: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, str]:
    """A run that waits for four of the five it asks, and what was said in the terminal."""
    out, folder = Console(record=True, width=200), tmp_path_factory.mktemp("clocked") / "waited"
    with Screen(out) as screen:
        run = fedgen.run(clocked(tiny_plan, STRAGGLERS, {"spare": 0.2, "quorum": 0.2}), folder, tell=screen.tell)
    return run, out.export_text()


@pytest.fixture(scope="module")
def buffered(tiny_plan: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An asynchronous one."""
    terms = {"buffer": 2, "quorum": 0.2}
    return fedgen.run(clocked(tiny_plan, STRAGGLERS, terms), tmp_path_factory.mktemp("clocked") / "buffered")


def test_rounds_take_the_time_of_the_slowest_that_are_waited_for(
    waited: tuple[Run, str], tiny_plan: dict[str, Any]
) -> None:
    run, said = waited
    settled = run.plan
    place = inprocess.place(settled, settled.backbone.load(), None, silent)
    time = 0.0
    for line in run.journal:
        turns = turns_of(place, settled.adapter.rank, line["clients"])
        failed = {failure["client"]: failure["reason"] for failure in line["failures"]}
        assert len(failed) >= 1
        slowest = max(took for name, took in turns.items() if name not in failed)
        assert line["metrics"]["waited"] == pytest.approx(line["metrics"]["clock"] - time)
        assert line["metrics"]["waited"] >= slowest * (1 - 1e-9)
        time = line["metrics"]["clock"]
        assert sum(own["turns"] for own in line["devices"].values()) == 5 - len(failed)
        assert sum(own["missed"] for own in line["devices"].values()) == len(failed)
        assert f"{span(time)} simulated" in said
    first = turns_of(place, settled.adapter.rank, run.journal[0]["clients"])
    assert run.journal[0]["metrics"]["waited"] == pytest.approx(sorted(first.values())[3])  # nobody's is lost
    assert set(run.facts["devices"]) == {"board", "gateway"}


def turns_of(place: Place, rank: int, names: Sequence[str]) -> dict[str, float]:
    """How long these clients' turns take."""
    assert place.load
    found = {name: place.load.seconds(place.hardware[name], rank, place.sizes[name]) for name in names}
    return {name: turn.down + turn.work + turn.up for name, turn in found.items()}


def test_with_time_for_everyone_the_clock_changes_no_number(tiny_plan: dict[str, Any], tmp_path: Path) -> None:
    always = {"kind": "drawn", "classes": ["board"], "spread": 1.0}
    patient = clocked(tiny_plan, always, {"deadline": 1e6, "quorum": 1.0}, rounds=1)
    plan = copy.deepcopy(patient)
    del plan["devices"]
    seed = next(seed for seed in range(50) if nobody_is_lost(plans.read(patient, [f"seed={seed}"])))
    timed = fedgen.run(patient, tmp_path / "timed", settings=[f"seed={seed}"])
    bare = fedgen.run(plan, tmp_path / "bare", settings=[f"seed={seed}"])
    adapters = [run.adapter("global")[0] for run in (timed, bare)]
    assert all(torch.equal(adapters[0][key], value) for key, value in adapters[1].items())
    ours, others = timed.journal[0], bare.journal[0]
    assert [ours[key] for key in ("clients", "failures", "up", "down")] == [
        others[key] for key in ("clients", "failures", "up", "down")
    ]
    assert ours["metrics"].keys() - others["metrics"].keys() == {"clock", "waited"}
    assert (others["devices"], list(ours["devices"])) == ({}, ["board"])


def nobody_is_lost(plan: plans.Plan) -> bool:
    """Whether every turn of the first round comes back."""
    names = ["ann", "bob", "cleo", "dan", "eve", "finn"]
    found = plan.devices.of(names, plan.seed)
    draws = [fedgen.seeds.generator(plan.seed, 1, name, "lost") for name in names]
    return all(
        torch.rand((), generator=draw).item() >= found[name].lost for name, draw in zip(names, draws, strict=True)
    )


def test_an_asynchronous_run_says_how_late_its_updates_were(buffered: Run) -> None:
    lines = buffered.journal
    assert [line["metrics"]["answered"] for line in lines] == [2, 2, 2]
    assert lines[0]["metrics"]["late"] == 0 < sum(line["metrics"]["late"] for line in lines)
    assert sum(own["turns"] for line in lines for own in line["devices"].values()) == 6
    times = [line["metrics"]["clock"] for line in lines]
    assert times == sorted(times)


def test_places_elsewhere_have_no_clock(tiny_plan: dict[str, Any]) -> None:
    assert plans.read(clocked(tiny_plan, LAPTOPS, {})).clocked
    assert not plans.read(clocked(tiny_plan, LAPTOPS, {}) | {"place": "ray"}).clocked
    assert not plans.read(tiny_plan).clocked


# ---- on the page


def test_a_page_shows_quality_by_time_and_the_devices(waited: tuple[Run, str], buffered: Run, tmp_path: Path) -> None:
    run, _ = waited
    page = report.write(run).read_text("utf-8")
    whole = run.journal[-1]["metrics"]["clock"]
    for title in ("Perplexity by simulated time", "Perplexity by bytes sent up", "simulated seconds"):
        assert title in page
    assert f"<strong>{span(whole)}</strong>" in page
    assert "Reckoned, not measured" in page
    rows = dict(re.findall(r'<th scope="row">(board|gateway)</th>(.*?)</tr>', page))
    for kind, many in run.facts["devices"].items():
        own = [line["devices"][kind] for line in run.journal if kind in line["devices"]]
        turns, missed = (sum(one[key] for one in own) for key in ("turns", "missed"))
        mean = span(sum(one["seconds"] for one in own) / turns) if turns else "–"
        assert re.findall(r"<td>(.*?)</td>", rows[kind]) == [f"{many}", f"{turns}", f"{missed}", mean]
    late = report.write(buffered).read_text("utf-8")
    assert "Rounds late" in late
    assert "Rounds late" not in page
    assert f"15 turns asked for, {2 * 3} answered" in late


def test_runs_are_laid_over_each_other_by_time(
    waited: tuple[Run, str], buffered: Run, tiny_run: Run, tmp_path: Path
) -> None:
    page = report.compare([waited[0], tiny_run, buffered], tmp_path / "all.html").read_text("utf-8")
    figures = dict(re.findall(r"<h3>(.*?)</h3></figcaption>(.*?)</figure>", page, re.DOTALL))
    named = {title: re.findall(r"</i>(.*?)</span>", figure) for title, figure in figures.items()}
    assert named["Perplexity by simulated time"] == ["waited", "buffered"]
    assert named["Perplexity by bytes sent up"] == ["waited", "tiny", "buffered"]
    assert '<th scope="col">Simulated time</th>' in page
    alone = report.compare([tiny_run], tmp_path / "one.html").read_text("utf-8")
    assert "imulated" not in alone
